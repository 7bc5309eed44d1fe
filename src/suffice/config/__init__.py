"""Settings from suffice.toml and the environment, and what they resolve to.

    load_settings(path, env) -> Settings         the file, validated: an unknown key is an error
    resolve(settings, env)   -> ResolvedConfig   records for the router: models, routes, providers

Secrets are given by the name of an environment variable, never by value.
"""

from __future__ import annotations

from suffice.config.load import DEFAULT_FILE, EXAMPLE_TOML, discover, load_settings, parse_settings
from suffice.config.resolve import check_bind, resolve
from suffice.config.settings import (
    AuditSettings,
    ModelSettings,
    ProviderSettings,
    RetrySettings,
    RouteSettings,
    ServerSettings,
    Settings,
    StoreSettings,
    TimeoutSettings,
)
from suffice.config.specs import AuditSpec, ResolvedConfig, RouteSpec

__all__ = [
    "DEFAULT_FILE",
    "EXAMPLE_TOML",
    "AuditSettings",
    "AuditSpec",
    "ModelSettings",
    "ProviderSettings",
    "ResolvedConfig",
    "RetrySettings",
    "RouteSettings",
    "RouteSpec",
    "ServerSettings",
    "Settings",
    "StoreSettings",
    "TimeoutSettings",
    "check_bind",
    "discover",
    "load_settings",
    "parse_settings",
    "resolve",
]
