"""The schema of suffice.toml. An unknown key is an error."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from suffice import policies

Capability = Literal["tools", "vision", "json_schema", "audio", "reasoning"]
ImplicitSignal = Literal[
    "schema", "tool_call", "empty", "refusal", "retried", "truncated", "upstream_error"
]

DEFAULT_OBJECTIVE = {"keep_quality": 0.95}

# Renamed keys, by the table they are in. The old names work for one release.
RENAMED_KEYS: dict[str, dict[str, str]] = {
    "routes": {"explore": "explore_share", "implicit": "implicit_feedback"},
    "audit": {
        "share": "sample_rate",
        "false_alarm": "false_alarm_rate",
        "trust_feedback": "trusted_sources",
    },
    "retries": {"base_s": "backoff_base_s"},
}

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Keys that could also be the name of a variable: by the prefix of known providers, or by their shape.
_KEY = re.compile(
    r"(gsk|xai|hf|r8|fw|sk|AIza)_?(?=.*[a-z0-9])[A-Za-z0-9_]{16,}"
    r"|(?=.*[0-9])(?=.*[a-z])[A-Za-z0-9]{24,}"
)


class _FrozenModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _check_variable(value: str | None) -> str | None:
    """Refuse a secret in place of a variable's name, without repeating it."""
    if value is None:
        return None
    if _VARIABLE.fullmatch(value) is None or _KEY.fullmatch(value) is not None:
        raise ValueError(
            "Expected the name of an environment variable, not a key. Put the key into a variable "
            "and write the variable's name here"
        )
    return value


class ServerSettings(_FrozenModel):
    """`[server]`."""

    host: str = "127.0.0.1"
    port: int = Field(default=8484, ge=1, le=65535)
    workers: int = Field(default=1, ge=1, le=64)
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1024)
    api_keys_env: str = "SUFFICE_API_KEYS"

    _check_keys = field_validator("api_keys_env")(_check_variable)


class StoreSettings(_FrozenModel):
    """`[store]`."""

    url: str = "sqlite:///suffice.db"
    keep_prompts: bool = False


class ProviderSettings(_FrozenModel):
    """`[providers.NAME]`."""

    dialect: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    auth: Literal["bearer", "x-api-key", "api-key", "none"] | None = None
    headers: dict[str, str] = {}

    _check_key = field_validator("api_key_env")(_check_variable)

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not is_header_text(name) or not is_header_text(text):
                raise ValueError(
                    f"the header {name!r} has a line break or another character that HTTP forbids"
                )
        return value


class ModelSettings(_FrozenModel):
    """`[models."PROVIDER/NAME"]`."""

    input_usd_per_mtok: float | None = Field(default=None, ge=0)
    output_usd_per_mtok: float | None = Field(default=None, ge=0)
    cached_input_usd_per_mtok: float | None = Field(default=None, ge=0)
    cache_write_usd_per_mtok: float | None = Field(default=None, ge=0)
    context_tokens: int | None = Field(default=None, ge=1)
    max_output_tokens: int | None = Field(default=None, ge=1)
    capabilities: tuple[Capability, ...] | None = None
    quality: float | None = Field(default=None, ge=0, le=1)
    first_chunk_s: float | None = Field(default=None, gt=0)
    output_tokens_per_s: float | None = Field(default=None, gt=0)


class TimeoutSettings(_FrozenModel):
    """`timeouts` of a route."""

    connect_s: float = Field(default=5.0, gt=0)
    first_chunk_s: float | None = Field(default=None, gt=0)
    idle_s: float = Field(default=30.0, gt=0)
    total_s: float = Field(default=600.0, gt=0)


class RetrySettings(_FrozenModel):
    """`retries` of a route."""

    per_model: int = Field(default=1, ge=0, le=10)
    max_attempts: int = Field(default=6, ge=1, le=50)
    backoff_base_s: float = Field(default=0.25, ge=0)
    max_wait_s: float = Field(default=5.0, ge=0)


class AuditSettings(_FrozenModel):
    """`audit` of a route."""

    sample_rate: float = Field(default=0.0, ge=0, le=0.05)
    judge: str | None = None
    max_usd_per_day: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    false_alarm_rate: float = Field(default=0.05, gt=0, lt=1)
    trusted_sources: tuple[str, ...] = ()

    @field_validator("trusted_sources")
    @classmethod
    def _check_sources(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for source in value:
            if source == "audit" or source.startswith("implicit:"):
                raise ValueError(
                    f"{source!r} is the gateway's own; a trusted source scores good answers as well "
                    "as bad ones"
                )
        return value


class RouteSettings(_FrozenModel):
    """`[routes.NAME]`."""

    models: tuple[str, ...] = Field(min_length=1)
    policy: str = "default"
    certificate: str | None = None
    learning: Literal["off", "shadow", "on"] = "shadow"
    explore_share: float = Field(default=0.02, ge=0, le=0.03)
    implicit_feedback: dict[ImplicitSignal, float] = {}
    audit: AuditSettings | None = None
    objective: object = DEFAULT_OBJECTIVE
    fallbacks: tuple[str, ...] = ()
    fallback_max_usd_per_query: float | None = Field(default=None, gt=0)
    timeouts: TimeoutSettings = TimeoutSettings()
    retries: RetrySettings = RetrySettings()

    @field_validator("implicit_feedback")
    @classmethod
    def _check_implicit(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            if not 0.0 < weight <= 1.0:
                raise ValueError(f"the weight of {name} must be above 0 and at most 1")
        return value

    @field_validator("objective")
    @classmethod
    def _check_objective(cls, value: object) -> object:
        policies.parse_objective(value)
        return value


class Settings(_FrozenModel):
    """What suffice.toml says."""

    server: ServerSettings = ServerSettings()
    store: StoreSettings = StoreSettings()
    providers: dict[str, ProviderSettings] = {}
    models: dict[str, ModelSettings] = {}
    routes: dict[str, RouteSettings] = {}
    source: str = Field(default="settings", exclude=True)
    """The file, or where else the settings come from. Not a key of the file."""
    warnings: tuple[str, ...] = Field(default=(), exclude=True)
    """What the file should be changed in. Not a key of the file."""


# The settings of each table, by the part of a key's path that names the table.
TABLES: dict[str, type[BaseModel]] = {
    "server": ServerSettings,
    "store": StoreSettings,
    "providers": ProviderSettings,
    "models": ModelSettings,
    "routes": RouteSettings,
    "timeouts": TimeoutSettings,
    "retries": RetrySettings,
    "audit": AuditSettings,
}


def is_header_text(text: str) -> bool:
    """Whether HTTP allows this text as the name or the value of a header."""
    return text.isprintable() and text.isascii()
