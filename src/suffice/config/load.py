"""Reads suffice.toml, or makes settings from what the environment offers."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath

from pydantic import BaseModel, ValidationError

from suffice.config.settings import RENAMED_KEYS, TABLES, RouteSettings, Settings, StoreSettings
from suffice.errors import ConfigError, nearest
from suffice.providers.registry import PROVIDERS

DEFAULT_FILE = "suffice.toml"

EXAMPLE_TOML = """\
# suffice.toml: everything here is optional but the models of a route.
[server]
host = "127.0.0.1"            # any other host needs keys: see api_keys_env
port = 8484
# api_keys_env = "SUFFICE_API_KEYS"   # environment variable with the clients' keys, comma-separated

[store]
url = "sqlite:///suffice.db"  # a relative path starts at the folder of this file
keep_prompts = false          # prompts are stored only if you say so

[providers.openai]            # a known name needs neither dialect nor base_url
api_key_env = "OPENAI_API_KEY"

[models."openai/gpt-5-nano"]  # overrides what the catalog knows
quality = 0.72                # how often this model suffices on your traffic

[routes.auto]
models = ["openai/gpt-5-nano", "openai/gpt-5"]
objective = { keep_quality = 0.95 }
"""

# Without a file: the models of each provider whose key is set, cheap to strong.
DEFAULT_MODELS: dict[str, tuple[str, ...]] = {
    "openai": ("gpt-6-luna", "gpt-6.1-terra", "gpt-6.1-sol"),
    "anthropic": ("claude-haiku-5-5", "claude-sonnet-5-5"),
    "google": ("gemini-3.5-flash-lite", "gemini-3.8-flash"),
    "mistral": ("mistral-small-2603", "mistral-large-4"),
    "deepseek": ("deepseek-v4-flash", "deepseek-v4-pro"),
    "groq": ("openai/gpt-oss-20b", "openai/gpt-oss-120b"),
    "together": ("Qwen/Qwen3.8-Flash", "moonshotai/Kimi-K3"),
    "fireworks": ("gpt-oss-20b", "glm-5p3"),
    "xai": ("grok-4-1-fast-non-reasoning", "grok-4.7"),
    "cohere": ("command-r7b", "command-a"),
    "openrouter": ("qwen/qwen3.8-27b", "moonshotai/kimi-k3"),
}

_NOT_KEYS = ("source", "warnings")  # fields of `Settings` that a file must not set


# ── a file ───────────────────────────────────────────────────────────────────────────────────────


def load_settings(path: str | Path | None, env: Mapping[str, str]) -> Settings:
    """Load settings from a file.

    Args:
        path: The file; `None` = ./suffice.toml, or else what the environment offers.
        env: The environment.

    Returns:
        The settings. A relative SQLite path in them starts at the folder of the file.

    Raises:
        ConfigError: With the file, the field and the remedy.
    """
    if path is None:
        if not Path(DEFAULT_FILE).exists():
            return discover(env)
        path = DEFAULT_FILE
    settings = parse_settings(_read_toml(Path(path)), str(path))
    return _with_store_next_to(Path(path), settings)


def _read_toml(path: Path) -> dict[str, object]:
    source = str(path)
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(
            "There is no such file.", source=source, remedy="Give the path of a suffice.toml."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"It cannot be read: {error.strerror}.", source=source, remedy="Check its permissions."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(
            "File is not valid UTF-8.", source=source, remedy="Save it as UTF-8."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"File is not valid TOML: {error}.", source=source, remedy="Fix that line."
        ) from None


def _with_store_next_to(file: Path, settings: Settings) -> Settings:
    """The settings with a relative SQLite path resolved against the folder of the config file."""
    prefix, url = "sqlite:///", settings.store.url
    name, _, query = url.removeprefix(prefix).partition("?")
    relative = (
        url.startswith(prefix)
        and name != ""
        and not name.startswith((":memory:", "file:"))
        and not Path(name).is_absolute()
        and not PureWindowsPath(name).is_absolute()
    )
    if not relative or file.parent == Path():
        return settings
    target = file.parent.resolve() / name
    if Path(name).exists() and not target.exists():
        # A database that an earlier release made in the current directory.
        warning = (
            f"store.url: using {name} in the current directory. A relative path starts at the "
            f"folder of the config file: move the database to {target}, or write its absolute path."
        )
        return settings.model_copy(update={"warnings": (*settings.warnings, warning)})
    moved = f"{prefix}{target.as_posix()}" + (f"?{query}" if query else "")
    store = StoreSettings.model_validate({**settings.store.model_dump(), "url": moved})
    return settings.model_copy(update={"store": store})


def parse_settings(data: Mapping[str, object], source: str = "settings") -> Settings:
    """Validate a mapping in the shape of suffice.toml.

    Args:
        data: The mapping.
        source: Where it comes from, for errors.

    Returns:
        The settings.

    Raises:
        ConfigError: With the field and the remedy.
    """
    for name in _NOT_KEYS:
        if name in data:
            error: ConfigError = _unknown_key((name,), source)
            raise error
    warnings: list[str] = []
    current = _rename_keys(data, source, warnings)
    try:
        return Settings.model_validate({**current, "source": source, "warnings": tuple(warnings)})
    except ValidationError as failure:
        error = _config_error(failure, source)
        raise error from None


def _rename_keys(
    data: Mapping[str, object], source: str, warnings: list[str]
) -> Mapping[str, object]:
    """The mapping with renamed keys under their new names; a warning for each."""
    routes = data.get("routes")
    if not isinstance(routes, Mapping):
        return data
    renamed = {}
    for name, route in routes.items():
        if not isinstance(route, Mapping):
            renamed[name] = route
            continue
        path = f"routes.{name}"
        route = _rename_in("routes", route, path, source, warnings)
        for table in ("audit", "retries"):
            inner = route.get(table)
            if isinstance(inner, Mapping):
                inner = _rename_in(table, inner, f"{path}.{table}", source, warnings)
                route = {**route, table: inner}
        renamed[name] = route
    return {**data, "routes": renamed}


def _rename_in(
    kind: str, table: Mapping[str, object], path: str, source: str, warnings: list[str]
) -> Mapping[str, object]:
    for old, new in RENAMED_KEYS[kind].items():
        if old not in table:
            continue
        if new in table:
            raise ConfigError(
                f"{old!r} is the old name of {new!r}, and both are given.",
                field=f"{path}.{old}",
                source=source,
                remedy=f"Remove {old!r}.",
            )
        warnings.append(
            f"{path}.{old} is deprecated and will be removed in the next release: write {new}."
        )
        table = {(new if key == old else key): value for key, value in table.items()}
    return table


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


def _table_of(path: tuple[int | str, ...]) -> type[BaseModel]:
    """The settings class that the last part of a key's path belongs to."""
    # The second part is a name that the operator chose, which may be that of a table.
    owners = [str(p) for i, p in enumerate(path[:-1]) if i != 1 and p in TABLES]
    return TABLES[owners[-1]] if owners else Settings


def _unknown_key(path: tuple[int | str, ...], source: str) -> ConfigError:
    known = [key for key in _table_of(path).model_fields if key not in _NOT_KEYS]
    close = nearest(str(path[-1]), known, 1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return ConfigError(
        f"Unknown key {str(path[-1])!r}.",
        field=".".join(map(str, path)),
        source=source,
        remedy=f"{hint}Known here: {', '.join(known)}.",
    )


def _config_error(error: ValidationError, source: str) -> ConfigError:
    first = error.errors(include_url=False)[0]
    path = first["loc"]
    if first["type"] == "extra_forbidden":
        return _unknown_key(path, source)
    value = first.get("input")
    message = first["msg"].removeprefix("Value error, ")
    # Secrets may be written where the name of a variable or a header belongs.
    secret = any(str(part).endswith("_env") or part == "headers" for part in path)
    hidden = secret or isinstance(value, dict) or first["type"] == "missing"
    shown = "" if hidden else f" (got {value!r})"
    remedy = "Add it." if first["type"] == "missing" else None
    return ConfigError(
        f"{message}{shown}.", field=".".join(map(str, path)), source=source, remedy=remedy
    )


# ── no file ──────────────────────────────────────────────────────────────────────────────────────


def discover(env: Mapping[str, str], local: Mapping[str, list[str]] | None = None) -> Settings:
    """Make settings from the keys in the environment and the local servers that answer.

    Args:
        env: The environment.
        local: Provider -> model names; `None` = ask the usual loopback ports (at most 0.3 s).

    Returns:
        Settings with one route, `auto`.

    Raises:
        ConfigError: There is nothing to route to.
    """
    if local is None:
        local = _local_servers()
    models: list[str] = []
    for name, served in local.items():
        models += [f"{name}/{model}" for model in served[:8]]
    for name, upstreams in DEFAULT_MODELS.items():
        variable = PROVIDERS[name].api_key_env
        if variable is not None and env.get(variable, "").strip():
            models += [f"{name}/{upstream}" for upstream in upstreams]
    if not models:
        variables = ", ".join(str(PROVIDERS[n].api_key_env) for n in list(DEFAULT_MODELS)[:4])
        raise ConfigError(
            "There is nothing to route to: no suffice.toml here, no provider key in the "
            "environment, and no local model server answers.",
            remedy=f"Set a key ({variables}, ...), start Ollama, LM Studio, vLLM or llama.cpp, or "
            "write a suffice.toml. `suffice demo` needs none of them.",
        )
    route = RouteSettings(models=tuple(models))
    return Settings(routes={"auto": route}, source="the environment")


def _local_servers() -> dict[str, list[str]]:
    # Only needed without a file: keeps the HTTP client out of every other start.
    import asyncio

    from suffice.providers.discovery import discover_local_models

    return asyncio.run(discover_local_models(PROVIDERS.values()))
