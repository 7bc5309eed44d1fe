"""One frozen Settings tree from suffice.toml and the environment, and what it resolves to.

    load_settings(path, env) -> Settings     the file, checked: an unknown key is an error
    resolve(settings, env)   -> Resolved     plain records for the router: models, routes, providers

Secrets come by the name of an environment variable, never by value.
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from suffice import catalog, policies
from suffice.errors import ConfigError, nearest
from suffice.providers.registry import PROVIDERS
from suffice.types import Model, Objective, Provider, RetryPolicy, Timeouts

DEFAULT_FILE = "suffice.toml"

EXAMPLE_TOML = """\
# suffice.toml: everything here is optional but the models of a route.
[server]
host = "127.0.0.1"            # any other host needs keys: see api_keys_env
port = 8484
# api_keys_env = "SUFFICE_API_KEYS"   # environment variable with the clients' keys, comma-separated

[store]
url = "sqlite:///suffice.db"
keep_prompts = false          # texts are stored only when you say so

[providers.openai]            # a known name needs neither dialect nor base_url
api_key_env = "OPENAI_API_KEY"

[models."openai/gpt-5-nano"]  # overrides what the catalog knows
quality = 0.72                # how often this model suffices on your traffic

[routes.auto]
models = ["openai/gpt-5-nano", "openai/gpt-5"]
objective = { keep_quality = 0.95 }
"""

# With no file: what each provider whose key is set contributes to `auto`, cheap to strong.
_DISCOVERED: dict[str, tuple[str, ...]] = {
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


Ability = Literal["tools", "vision", "json_schema", "audio", "reasoning"]
Signal = Literal[
    "schema", "tool_call", "empty", "refusal", "retried", "truncated", "upstream_error"
]


class _FrozenModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(_FrozenModel):
    host: str = "127.0.0.1"
    port: int = Field(default=8484, ge=1, le=65535)
    workers: int = Field(default=1, ge=1, le=64)
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1024)
    api_keys_env: str = "SUFFICE_API_KEYS"


class StoreSettings(_FrozenModel):
    url: str = "sqlite:///suffice.db"
    keep_prompts: bool = False


class ProviderSettings(_FrozenModel):
    dialect: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    auth: Literal["bearer", "x-api-key", "api-key", "none"] | None = None
    headers: dict[str, str] = {}


class ModelSettings(_FrozenModel):
    input_usd_per_mtok: float | None = Field(default=None, ge=0)
    output_usd_per_mtok: float | None = Field(default=None, ge=0)
    cached_input_usd_per_mtok: float | None = Field(default=None, ge=0)
    cache_write_usd_per_mtok: float | None = Field(default=None, ge=0)
    context_tokens: int | None = Field(default=None, ge=1)
    max_output_tokens: int | None = Field(default=None, ge=1)
    capabilities: tuple[Ability, ...] | None = None
    quality: float | None = Field(default=None, ge=0, le=1)
    first_chunk_s: float | None = Field(default=None, gt=0)
    output_tokens_per_s: float | None = Field(default=None, gt=0)


class TimeoutSettings(_FrozenModel):
    connect_s: float = Field(default=5.0, gt=0)
    first_chunk_s: float | None = Field(default=None, gt=0)
    idle_s: float = Field(default=30.0, gt=0)
    total_s: float = Field(default=600.0, gt=0)


class RetrySettings(_FrozenModel):
    per_model: int = Field(default=1, ge=0, le=10)
    max_attempts: int = Field(default=6, ge=1, le=50)
    base_s: float = Field(default=0.25, ge=0)
    max_wait_s: float = Field(default=5.0, ge=0)


class AuditSettings(_FrozenModel):
    share: float = Field(default=0.0, ge=0, le=0.05)
    judge: str | None = None
    max_usd_per_day: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    false_alarm: float = Field(default=0.05, gt=0, lt=1)
    trust_feedback: tuple[str, ...] = ()

    @field_validator("trust_feedback")
    @classmethod
    def _check_sources(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for source in value:
            if source == "audit" or source.startswith("implicit:"):
                raise ValueError(
                    f"{source!r} is the gateway's own; a source that is trusted scores good answers "
                    "as well as bad ones"
                )
        return value


class RouteSettings(_FrozenModel):
    models: tuple[str, ...] = Field(min_length=1)
    policy: str = "default"
    certificate: str | None = None
    learning: Literal["off", "shadow", "on"] = "shadow"
    explore: float = Field(default=0.02, ge=0, le=0.03)
    implicit: dict[Signal, float] = {}
    audit: AuditSettings | None = None
    objective: Any = "balanced"
    fallbacks: tuple[str, ...] = ()
    fallback_max_usd_per_query: float | None = Field(default=None, gt=0)
    timeouts: TimeoutSettings = TimeoutSettings()
    retries: RetrySettings = RetrySettings()

    @field_validator("implicit")
    @classmethod
    def _check_implicit(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            if not 0.0 < weight <= 1.0:
                raise ValueError(f"the weight of {name} must be above 0 and at most 1")
        return value

    @field_validator("objective")
    @classmethod
    def _check_objective(cls, value: Any) -> Any:
        policies.parse_objective(value)
        return value


class Settings(_FrozenModel):
    """What suffice.toml says. `source` names the file, or where else it came from."""

    server: ServerSettings = ServerSettings()
    store: StoreSettings = StoreSettings()
    providers: dict[str, ProviderSettings] = {}
    models: dict[str, ModelSettings] = {}
    routes: dict[str, RouteSettings] = {}
    source: str = Field("settings", exclude=True)


class AuditSpec(msgspec.Struct, frozen=True):
    """How a route's certificate is watched. judge: None where it cannot be called, and then nothing
    is audited."""

    share: float
    judge: Model | None
    max_usd_per_day: float
    false_alarm: float
    trust_feedback: frozenset[str]


class RouteSpec(msgspec.Struct, frozen=True):
    """A route with every name in it resolved."""

    name: str
    models: tuple[Model, ...]
    policy: str
    certificate: str | None
    learning: Literal["off", "shadow", "on"]
    explore: float
    implicit: dict[str, float]
    audit: AuditSpec | None
    objective: Objective
    fallbacks: tuple[Model, ...]
    fallback_max_usd_per_query: float | None
    timeouts: Timeouts
    retries: RetryPolicy


class ResolvedConfig(msgspec.Struct, frozen=True):
    """What the router is built from: plain records, nothing left to look up."""

    settings: Settings
    models: tuple[Model, ...]
    providers: dict[str, Provider]
    routes: dict[str, RouteSpec]
    api_keys: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def load_settings(path: str | Path | None, env: Mapping[str, str]) -> Settings:
    """Settings from `path`, else ./suffice.toml, else from what the environment offers.

    Raises ConfigError that names the file, the field and the remedy.
    """
    if path is None:
        if not Path(DEFAULT_FILE).exists():
            return discover(env)
        path = DEFAULT_FILE
    source = str(path)
    try:
        data = tomllib.loads(Path(path).read_bytes().decode("utf-8"))
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
            "It is not UTF-8 text.", source=source, remedy="Save it as UTF-8."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"It is not valid TOML: {error}.", source=source, remedy="Mend that line."
        ) from None
    return parse_settings(data, source)


def parse_settings(data: Mapping[str, Any], source: str = "settings") -> Settings:
    """A mapping in suffice.toml's shape, checked. Raises ConfigError."""
    if "source" in data:
        raise _unknown_key(("source",), source)
    try:
        return Settings.model_validate({**data, "source": source})
    except ValidationError as error:
        raise _config_error(error, source) from None


def _model_at(path: tuple[Any, ...]) -> type[BaseModel] | None:
    """The settings class whose field `path` names, by walking the tree of annotations."""
    tables: dict[str, type[BaseModel]] = {
        "server": ServerSettings,
        "store": StoreSettings,
        "providers": ProviderSettings,
        "models": ModelSettings,
        "routes": RouteSettings,
        "timeouts": TimeoutSettings,
        "retries": RetrySettings,
        "audit": AuditSettings,
    }
    # What stands second is a name somebody chose, which may be that of a table.
    owners = [p for i, p in enumerate(path[:-1]) if i != 1 and p in tables]
    return tables[owners[-1]] if owners else Settings


def _unknown_key(path: tuple[Any, ...], source: str) -> ConfigError:
    owner = _model_at(path)
    known = [k for k in (owner.model_fields if owner else {}) if k != "source"]
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
    given = first.get("input")
    said = first["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(given, dict) or first["type"] == "missing" else f" (got {given!r})"
    remedy = "Add it." if first["type"] == "missing" else None
    return ConfigError(
        f"{said}{shown}.", field=".".join(map(str, path)), source=source, remedy=remedy
    )


# ── no file ──────────────────────────────────────────────────────────────────────────────────────


def discover(env: Mapping[str, str], local: Mapping[str, list[str]] | None = None) -> Settings:
    """Settings from the keys in the environment and the local servers that answer.

    local: provider -> model names; None asks the usual loopback ports (0.3 s at most).
    Raises ConfigError that says what to do where there is nothing to route to.
    """
    if local is None:
        local = _ask_local_servers()
    models: list[str] = []
    for name, served in local.items():
        models += [f"{name}/{m}" for m in served[:8]]
    for name, upstreams in _DISCOVERED.items():
        key = PROVIDERS[name].api_key_env
        if key is not None and env.get(key):
            models += [f"{name}/{u}" for u in upstreams]
    if not models:
        keys = ", ".join(str(PROVIDERS[n].api_key_env) for n in list(_DISCOVERED)[:4])
        raise ConfigError(
            "There is nothing to route to: no suffice.toml here, no provider key in the "
            "environment, and no local model server answers.",
            remedy=f"Set a key ({keys}, ...), start Ollama, LM Studio, vLLM or llama.cpp, or write "
            "a suffice.toml. `suffice demo` needs none of them.",
        )
    route = RouteSettings(models=tuple(models))
    return Settings(routes={"auto": route}, source="the environment")


def _ask_local_servers() -> dict[str, list[str]]:
    import asyncio

    from suffice.providers.discovery import discover_local_models

    return asyncio.run(discover_local_models(PROVIDERS.values()))


# ── resolving ────────────────────────────────────────────────────────────────────────────────────


def resolve(
    settings: Settings, env: Mapping[str, str], *, need_keys: bool = True
) -> ResolvedConfig:
    """Names to records. Raises ConfigError for what cannot be resolved.

    need_keys False: providers without a key stay in, for explaining and for `doctor`, which call
    nothing.
    """
    warnings: list[str] = []
    builtin = {m.name: m for m in catalog.builtin_models()}
    named = dict.fromkeys(
        [
            *settings.models,
            *(n for r in settings.routes.values() for n in (*r.models, *r.fallbacks)),
            *(r.audit.judge for r in settings.routes.values() if r.audit and r.audit.judge),
        ]
    )
    providers: dict[str, Provider] = {}
    models: dict[str, Model] = {}
    for name in named:
        model = _resolve_model(name, settings, builtin, warnings)
        if model.provider not in providers:
            row = _resolve_provider(model.provider, settings, env, name)
            providers[model.provider] = row
            lacking = row.api_key_env is not None and not row.api_key
            if lacking and need_keys:
                warnings.append(
                    f"providers.{row.name}: no key in the environment variable "
                    f"{row.api_key_env}, so its models are left out."
                )
        models[name] = model
    usable = {
        n: m
        for n, m in models.items()
        if not need_keys or providers[m.provider].api_key or not providers[m.provider].api_key_env
    }
    routes = {
        name: _resolve_route(name, route, usable, providers, models, settings.source, warnings)
        for name, route in settings.routes.items()
    }
    if not routes:
        raise ConfigError(
            "There are no routes.",
            field="routes",
            source=settings.source,
            remedy='Add [routes.auto] with models = ["provider/model", ...].',
        )
    keys = env.get(settings.server.api_keys_env, "")
    return ResolvedConfig(
        settings,
        tuple(usable.values()),
        providers,
        routes,
        tuple(k.strip() for k in keys.split(",") if k.strip()),
        tuple(warnings),
    )


def _resolve_model(
    name: str, settings: Settings, builtin: Mapping[str, Model], warnings: list[str]
) -> Model:
    provider, slash, upstream = name.partition("/")
    if not slash or not provider or not upstream:
        close = nearest(name, [*builtin, *settings.models])
        raise ConfigError(
            f"{name!r} is not of the form provider/model.",
            field="models",
            source=settings.source,
            remedy=f"Nearest known: {', '.join(close)}." if close else "Write provider/model.",
        )
    own = settings.models.get(name)
    base = builtin.get(name)
    priced = own is not None and own.input_usd_per_mtok is not None
    if base is None and not priced and provider in PROVIDERS and not PROVIDERS[provider].local:
        base = catalog.lookup(provider, upstream)
    if base is None:
        base = Model(name=name, provider=provider, upstream=upstream)
        if provider in PROVIDERS and PROVIDERS[provider].local:
            base = catalog.apply_overrides(
                base, {"input_usd_per_mtok": 0.0, "output_usd_per_mtok": 0.0}
            )
    model = catalog.apply_overrides(base, own.model_dump()) if own is not None else base
    if model.price.input_usd_per_mtok is None or model.price.output_usd_per_mtok is None:
        warnings.append(f"models.{name}: its price is unknown; costs with it are shown as unknown.")
    return model


def _resolve_provider(
    name: str, settings: Settings, env: Mapping[str, str], model: str
) -> Provider:
    own = settings.providers.get(name, ProviderSettings())
    known = PROVIDERS.get(name)
    base_url = own.base_url or (known.base_url if known else "")
    field = f"providers.{name}"
    if known is None and name not in settings.providers:
        close = nearest(name, [*PROVIDERS, *settings.providers])
        hint = f"Did you mean {close[0]!r}? Or add" if close else "Add"
        raise ConfigError(
            f"The model {model!r} names a provider that is not known.",
            field=field,
            source=settings.source,
            remedy=f"{hint} [providers.{name}] with dialect and base_url.",
        )
    if not base_url.startswith(("http://", "https://")):
        raise ConfigError(
            f"It needs a base_url that begins with http:// or https:// (got {base_url!r}).",
            field=f"{field}.base_url",
            source=settings.source,
            remedy='For example base_url = "https://example.com/v1".',
        )
    dialect = own.dialect or (known.dialect if known else "openai")
    if dialect not in ("openai",):
        close = nearest(dialect, ["openai"], 1)
        raise ConfigError(
            f"The dialect {dialect!r} is not spoken here.",
            field=f"{field}.dialect",
            source=settings.source,
            remedy=f"Known: openai{' (did you mean that?)' if close else ''}.",
        )
    key_env = own.api_key_env or (known.api_key_env if known else None)
    auth = own.auth or (known.auth if known else ("bearer" if key_env else "none"))
    return Provider(
        name=name,
        dialect=dialect,
        base_url=base_url,
        api_key_env=key_env,
        api_key=env.get(key_env) if key_env else None,
        auth=auth,
        headers=tuple(own.headers.items()),
        local=bool(known and known.local),
    )


def _resolve_route(
    name: str,
    route: RouteSettings,
    usable: Mapping[str, Model],
    providers: Mapping[str, Provider],
    models: Mapping[str, Model],
    source: str,
    warnings: list[str],
) -> RouteSpec:
    kept = tuple(usable[n] for n in dict.fromkeys(route.models) if n in usable)
    if not kept:
        wanted = {str(providers[models[n].provider].api_key_env) for n in route.models}
        raise ConfigError(
            "None of its models can be called: their keys are not in the environment.",
            field=f"routes.{name}.models",
            source=source,
            remedy=f"Set {' or '.join(sorted(wanted))}.",
        )
    t = route.timeouts
    limits = Timeouts(t.connect_s, t.first_chunk_s or 30.0, t.idle_s, t.total_s, t.first_chunk_s)
    r = route.retries
    return RouteSpec(
        name=name,
        models=kept,
        policy=route.policy,
        certificate=route.certificate,
        learning=route.learning,
        explore=route.explore,
        implicit={str(name): weight for name, weight in route.implicit.items()},
        audit=_resolve_audit(name, route.audit, kept, usable, source, warnings),
        objective=policies.parse_objective(route.objective),
        fallbacks=tuple(usable[n] for n in route.fallbacks if n in usable),
        fallback_max_usd_per_query=route.fallback_max_usd_per_query,
        timeouts=limits,
        retries=RetryPolicy(r.per_model, r.max_attempts, r.base_s, r.max_wait_s),
    )


_LONGEST_AUDITED = 96  # characters of a route's name; audit and watch add their own to it


def _resolve_audit(
    route: str,
    audit: AuditSettings | None,
    pool: tuple[Model, ...],
    usable: Mapping[str, Model],
    source: str,
    warnings: list[str],
) -> AuditSpec | None:
    if audit is None:
        return None
    from suffice.judging import family

    at = f"routes.{route}.audit"
    if len(route) > _LONGEST_AUDITED:
        raise ConfigError(
            f"A route that is watched has a name of at most {_LONGEST_AUDITED} characters.",
            field=at,
            source=source,
            remedy="Give the route a shorter name.",
        )
    if audit.share > 0.0 and audit.judge is None:
        raise ConfigError(
            "Audits need a judge.",
            field=f"{at}.judge",
            source=source,
            remedy='Add judge = "provider/model", best of another family than the judged models.',
        )
    judge = usable.get(audit.judge or "")
    if audit.judge is not None and judge is None:
        warnings.append(f"{at}: {audit.judge} cannot be called, so nothing is audited.")
    if judge is not None and audit.share > 0.0:
        price = judge.price
        if price.input_usd_per_mtok is None or price.output_usd_per_mtok is None:
            raise ConfigError(
                f"The price of {judge.name} is unknown, so max_usd_per_day could not be kept.",
                field=f"{at}.judge",
                source=source,
                remedy=f'Give its prices under [models."{judge.name}"], or take another judge.',
            )
        kin = [m.name for m in pool if family(m.name) == family(judge.name)]
        if kin:
            warnings.append(
                f"{at}.judge: {judge.name} is of the same family as {', '.join(kin)}: judges favour "
                "answers of their own kind."
            )
    return AuditSpec(
        share=audit.share,
        judge=judge,
        max_usd_per_day=audit.max_usd_per_day,
        false_alarm=audit.false_alarm,
        trust_feedback=frozenset(audit.trust_feedback),
    )


def check_bind(host: str, api_keys: tuple[str, ...], keys_env: str) -> None:
    """Raise ConfigError where `host` is reachable from outside and no key protects it."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and not api_keys:
        raise ConfigError(
            f"{host} is reachable from other machines and no key protects it.",
            field="server.host",
            remedy=f"Put keys into the environment variable {keys_env} (comma-separated), or "
            "listen on 127.0.0.1.",
        )
