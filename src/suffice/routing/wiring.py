"""Builds the parts of a router and connects them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from suffice import budgets, execution, telemetry
from suffice.catalog import Catalog
from suffice.errors import ConfigError
from suffice.routing.feedback import FeedbackService
from suffice.routing.recorder import ImplicitFeedback, Recorder, ResponseObserver
from suffice.routing.routes import RouteTable
from suffice.routing.selector import Selector
from suffice.routing.services import Services
from suffice.routing.sessions import SessionStore
from suffice.routing.shadow import ShadowDecider
from suffice.routing.upstreams import Upstreams
from suffice.transport import Transport

if TYPE_CHECKING:
    from suffice.config import ResolvedConfig, Settings
    from suffice.store.protocols import Store

EXAMPLE_POOL = "an example pool (no config, no keys)"


class Parts(NamedTuple):
    """What a router is made of."""

    catalog: Catalog
    routes: RouteTable
    budgets: budgets.Budgets
    selector: Selector
    engine: execution.Engine
    upstreams: Upstreams
    recorder: Recorder
    feedback: FeedbackService
    services: Services
    metrics: telemetry.Metrics


def build_parts(
    config: ResolvedConfig,
    env: Mapping[str, str],
    seed: int | None,
    clock: Callable[[], float],
    transport: Transport | None,
    store: Store | None,
) -> Parts:
    """Build the parts of a router, as `Router.__init__` describes; nothing is opened or called."""
    source = config.settings.source
    catalog = Catalog(config.models)
    routes = RouteTable(config.routes.values(), catalog, source)
    engine = _build_engine()
    metrics = telemetry.Metrics()
    hooks = telemetry.Telemetry([metrics])
    shadow = ShadowDecider(config.routes.values(), catalog, engine.latency)
    services = Services(
        config, routes, catalog, engine, hooks, metrics, shadow, transport=transport, store=store
    )
    upstreams = Upstreams(config.models, config.providers, lambda: services.transport)
    limits = _build_budgets(config, env, upstreams, clock)
    sessions = SessionStore()
    selector = Selector(
        routes,
        catalog,
        engine,
        sessions,
        limits,
        random.Random(seed),
        posterior=services.posterior,
        store=lambda: services.store,
    )
    return Parts(
        catalog,
        routes,
        limits,
        selector,
        engine,
        upstreams,
        Recorder(
            (sessions.observe, services.append, hooks.emit),
            _response_observers(routes, services, hooks),
            keep_prompts=config.settings.store.keep_prompts,
        ),
        FeedbackService(services, hooks),
        services,
        metrics,
    )


def _build_budgets(
    config: ResolvedConfig,
    env: Mapping[str, str],
    upstreams: Upstreams,
    clock: Callable[[], float],
) -> budgets.Budgets:
    return budgets.Budgets(
        {name: spec.objective for name, spec in config.routes.items()},
        upstreams.model,
        clock,
        ledger=env.get(budgets.LEDGER_ENV),
        source=config.settings.source,
    )


def _build_engine() -> execution.Engine:
    breaker = execution.CircuitBreaker(execution.CircuitBreakerSettings(), time.monotonic)
    return execution.Engine(breaker, execution.LatencyTracker(time.monotonic))


def _response_observers(
    routes: RouteTable, services: Services, hooks: telemetry.Telemetry
) -> tuple[ResponseObserver, ...]:
    """What needs the query or the reply of a finished response; nothing that no route enables."""
    if any(route.implicit_feedback for route in routes):
        implicit = ImplicitFeedback(routes, services, hooks)
        return (implicit.observe, services.submit_for_audit)
    return (services.submit_for_audit,)


def resolve_config(settings: Settings | ResolvedConfig, env: Mapping[str, str]) -> ResolvedConfig:
    """The settings with every name in them resolved."""
    from suffice import config

    return (
        settings if isinstance(settings, config.ResolvedConfig) else config.resolve(settings, env)
    )


def load_config(
    path: str | Path | None,
    env: Mapping[str, str],
    *,
    host: str | None,
    port: int | None,
    store_url: str | None,
) -> ResolvedConfig:
    """Read and resolve a configuration; None overrides nothing.

    Args:
        path: a suffice.toml; None = ./suffice.toml, else what the environment offers.
        env: the environment.
        host: overrides `server.host`.
        port: overrides `server.port`.
        store_url: overrides `store.url`.

    Returns:
        The resolved configuration.
    """
    from suffice import config

    settings = config.load_settings(path, env)
    server = {k: v for k, v in (("host", host), ("port", port)) if v is not None}
    update: dict[str, object] = {"server": settings.server.model_copy(update=server)}
    if store_url is not None:
        update["store"] = settings.store.model_copy(update={"url": store_url})
    settings = settings.model_copy(update=update)
    resolved = config.resolve(settings, env)
    config.check_bind(settings.server.host, resolved.api_keys, settings.server.api_keys_env)
    return resolved


def load_config_for_dry_run(path: str | Path | None, env: Mapping[str, str]) -> ResolvedConfig:
    """Read and resolve a configuration without asking for keys.

    Args:
        path: a suffice.toml; None = ./suffice.toml, else what the environment offers, else an
            example pool of catalog models.
        env: the environment.

    Returns:
        The resolved configuration.

    Raises:
        ConfigError: a setting is wrong.
    """
    from suffice import config

    try:
        settings = config.load_settings(path, env)
    except ConfigError:
        if path is not None or Path(config.DEFAULT_FILE).exists():
            raise
        names = ("openai/gpt-6-luna", "openai/gpt-6.1-terra", "openai/gpt-6.1-sol")
        route = config.RouteSettings(models=names, objective={"keep_quality": 0.95})
        settings = config.Settings(routes={"auto": route}, source=EXAMPLE_POOL)
    return config.resolve(settings, env, need_keys=False)
