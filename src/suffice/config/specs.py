"""What the settings resolve to: plain records for the router, with nothing left to look up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from suffice.types import Model, Objective, Provider, RetryPolicy, Timeouts

if TYPE_CHECKING:
    from suffice.config.settings import Settings


class AuditSpec(msgspec.Struct, frozen=True):
    """How the certificate of a route is monitored."""

    sample_rate: float
    """Share of the certified decisions that are audited."""
    judge: Model | None
    """`None` if it cannot be called; then nothing is audited."""
    max_usd_per_day: float
    false_alarm_rate: float
    """Probability of a false alarm over the whole life of a certificate."""
    trusted_sources: frozenset[str]
    """Sources of feedback whose scores count as labels."""


class RouteSpec(msgspec.Struct, frozen=True):
    """A route with every name in it resolved."""

    name: str
    models: tuple[Model, ...]
    policy: str
    certificate: str | None
    learning: Literal["off", "shadow", "on"]
    explore_share: float
    implicit_feedback: dict[str, float]
    """Signal -> weight."""
    audit: AuditSpec | None
    objective: Objective
    fallbacks: tuple[Model, ...]
    fallback_max_usd_per_query: float | None
    timeouts: Timeouts
    retries: RetryPolicy


class ResolvedConfig(msgspec.Struct, frozen=True):
    """What the router is built from."""

    settings: Settings
    models: tuple[Model, ...]
    providers: dict[str, Provider]
    routes: dict[str, RouteSpec]
    api_keys: tuple[str, ...] = ()
    """The clients' keys."""
    warnings: tuple[str, ...] = ()
