"""Resolves a provider's table to the provider with its key, dialect and base URL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from suffice.config.settings import ProviderSettings, Settings, is_header_text
from suffice.dialects import DIALECTS
from suffice.errors import ConfigError, nearest
from suffice.providers.registry import PROVIDERS
from suffice.types import Provider

# Paths that belong to one endpoint. A base URL ends before them.
_ENDPOINTS = ("/chat/completions", "/completions", "/messages", "/responses", "/embeddings")


def resolve_provider(
    name: str,
    model: str,
    settings: Settings,
    env: Mapping[str, str],
    warnings: list[str],
    *,
    need_keys: bool,
) -> Provider:
    """Resolve the provider of a model.

    Args:
        name: The provider's name.
        model: The model that names it, for errors.
        settings: The settings.
        env: The environment, which holds the key.
        warnings: Warnings are appended.
        need_keys: Whether a missing key is worth a warning.

    Returns:
        The provider, with its key if there is one.

    Raises:
        ConfigError: The provider is unknown, or a value cannot be used.
    """
    table = settings.providers.get(name, ProviderSettings())
    known = PROVIDERS.get(name)
    source = settings.source
    if known is None and name not in settings.providers:
        error = _unknown_provider(name, model, settings)
        raise error
    key_env = table.api_key_env or (known.api_key_env if known else None)
    api_key = _api_key(name, key_env, env, source)
    if key_env is not None and not api_key and need_keys:
        warnings.append(
            f"providers.{name}: no key in the environment variable {key_env}, so its models are "
            "left out."
        )
    default_auth = known.auth if known else ("bearer" if key_env else "none")
    return Provider(
        name=name,
        dialect=_dialect(name, table.dialect or (known.dialect if known else "openai"), source),
        base_url=_base_url(
            name, table.base_url or (known.base_url if known else ""), source, warnings
        ),
        api_key_env=key_env,
        api_key=api_key,
        auth=table.auth or default_auth,
        headers=tuple(table.headers.items()),
        local=bool(known and known.local),
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest known name; empty if none is near."""
    close = nearest(name, known, 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _unknown_provider(name: str, model: str, settings: Settings) -> ConfigError:
    close = nearest(name, [*PROVIDERS, *settings.providers])
    hint = f"Did you mean {close[0]!r}? Or add" if close else "Add"
    return ConfigError(
        f"The model {model!r} names a provider that is not known.",
        field=f"providers.{name}",
        source=settings.source,
        remedy=f"{hint} [providers.{name}] with dialect and base_url.",
    )


def _api_key(
    provider: str, variable: str | None, env: Mapping[str, str], source: str
) -> str | None:
    """The provider's key, without the white space that files and `echo` leave around it."""
    key = env.get(variable) if variable else None
    if key is None:
        return None
    key = key.strip()
    if not is_header_text(key):
        raise ConfigError(
            f"The key in the environment variable {variable} has a line break or another "
            "character that HTTP forbids in a header.",
            field=f"providers.{provider}.api_key_env",
            source=source,
            remedy="Set the variable to the key alone.",
        )
    return key


def _dialect(provider: str, dialect: str, source: str) -> str:
    if dialect not in DIALECTS:
        raise ConfigError(
            f"Unknown dialect {dialect!r}.",
            field=f"providers.{provider}.dialect",
            source=source,
            remedy=f"Supported: {', '.join(DIALECTS)}.{did_you_mean(dialect, DIALECTS)}",
        )
    return dialect


def _base_url(provider: str, url: str, source: str, warnings: list[str]) -> str:
    url = url.strip().rstrip("/")
    field = f"providers.{provider}.base_url"
    if not url.startswith(("http://", "https://")) or not is_header_text(url):
        raise ConfigError(
            f"It needs a base_url that begins with http:// or https:// (got {url!r}).",
            field=field,
            source=source,
            remedy='For example base_url = "https://example.com/v1".',
        )
    for path in _ENDPOINTS:
        if url.endswith(path):
            trimmed = url.removesuffix(path)
            warnings.append(
                f"{field}: it ends in {path}, which is added to every request. Using {trimmed}."
            )
            return trimmed
    return url
