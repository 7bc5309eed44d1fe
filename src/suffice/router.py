"""The router: builds the packages from a configuration and leads a query through them.

    Query -> Route -> Selection -> attempts -> RoutedResponse -> RequestRecord -> observers

Read `Router.answer` first.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from suffice import budgets, execution, features, telemetry
from suffice.catalog import Catalog
from suffice.errors import ConfigError
from suffice.routing import response as responses
from suffice.routing.fallbacks import fallback_cost_check
from suffice.routing.feedback import FeedbackResult, FeedbackService
from suffice.routing.recorder import ImplicitFeedback, Recorder
from suffice.routing.response import RoutedResponse
from suffice.routing.routes import Route, RouteTable
from suffice.routing.selector import Selector
from suffice.routing.services import Services
from suffice.routing.sessions import SessionStore
from suffice.routing.shadow import ShadowDecider
from suffice.routing.upstreams import Upstreams
from suffice.types import Attempt, Decision, Feedback, Model, Query, Transport

if TYPE_CHECKING:
    from suffice.config import ResolvedConfig, RouteSpec, Settings
    from suffice.learning import LearningWorker
    from suffice.monitoring import CertificateMonitor
    from suffice.store.protocols import Store

EXAMPLE_POOL = "an example pool (no config, no keys)"


class Router:
    """Evaluates queries, selects models, runs them with failover and records what happened.

    Build it with `Router.from_config(path)` or `Router(settings)`. No server is needed: `route` calls
    nothing, `answer` carries a query out, `feedback` scores a decision afterwards. Close it with
    `close()` or `await aclose()`, which flush the store.
    """

    def __init__(
        self,
        settings: Settings | ResolvedConfig,
        *,
        env: Mapping[str, str] | None = None,
        seed: int | None = None,
        clock: Callable[[], float] = time.time,
        transport: Transport | None = None,
        store: Store | None = None,
    ) -> None:
        """Build the router; nothing is opened or called yet.

        Args:
            settings: a parsed or a resolved configuration.
            env: the environment that keys are read from; None = the process's own.
            seed: of exploration and retries; None = random.
            clock: unix seconds, for daily budgets.
            transport: sends the upstream requests; None = HTTP.
            store: keeps the decisions; None = the one that the settings name.

        Raises:
            ConfigError: a setting is wrong.
            ArtifactError: a trained policy or a certificate cannot be used.
        """
        from suffice import config as configs

        env = os.environ if env is None else env
        if isinstance(settings, configs.ResolvedConfig):
            config = settings
        else:
            config = configs.resolve(settings, env)
        server = config.settings.server
        self.warnings: tuple[str, ...] = config.warnings
        self.api_keys: tuple[str, ...] = config.api_keys
        self.host, self.port, self.workers = server.host, server.port, server.workers
        self.max_body_bytes = server.max_body_bytes
        self._config = config
        self._random = random.Random(os.urandom(16) if seed is None else seed)
        self._catalog = Catalog(config.models)
        self._routes = RouteTable(config.routes.values(), self._catalog, config.settings.source)
        self._breaker = execution.CircuitBreaker(execution.CircuitBreakerSettings(), time.monotonic)
        self._engine = execution.Engine(self._breaker, execution.LatencyTracker(time.monotonic))
        self._metrics = telemetry.Metrics()
        self._telemetry = telemetry.Telemetry([self._metrics])
        shadow = ShadowDecider(config.routes.values(), self._catalog, self._engine.latency)
        self._services = Services(
            config,
            self._routes,
            self._catalog,
            self._engine,
            self._telemetry,
            self._metrics,
            shadow,
            transport=transport,
            store=store,
        )
        self._upstreams = Upstreams(
            config.models, config.providers, lambda: self._services.transport
        )
        self._budgets = budgets.Budgets(
            {name: spec.objective for name, spec in config.routes.items()},
            self._upstreams.model,
            clock,
            ledger=env.get(budgets.LEDGER_ENV),
            source=config.settings.source,
        )
        sessions = SessionStore()
        self._selector = Selector(
            self._routes,
            self._catalog,
            self._breaker,
            self._engine.latency,
            sessions,
            self._budgets,
            self._random,
            posterior=self._services.posterior,
            store=lambda: self._services.store,
        )
        self._feedback = FeedbackService(self._services, self._telemetry)
        self._recorder = Recorder(
            (
                lambda response, record: sessions.observe(record),
                lambda response, record: self._services.store.append(record),
                lambda response, record: self._telemetry.emit(record),
                ImplicitFeedback(self._routes, self._services, self._telemetry).observe,
                self._services.submit_for_audit,
            ),
            keep_prompts=config.settings.store.keep_prompts,
        )

    @classmethod
    def from_config(
        cls,
        path: str | Path | None = None,
        *,
        env: Mapping[str, str] | None = None,
        host: str | None = None,
        port: int | None = None,
        store_url: str | None = None,
    ) -> Router:
        """Build a router from a file.

        Args:
            path: a suffice.toml; None = ./suffice.toml, else what the environment offers.
            env: the environment; None = the process's own.
            host: overrides the file.
            port: overrides the file.
            store_url: overrides the file.

        Raises:
            ConfigError: a setting is wrong.
        """
        from suffice import config as configs

        env = os.environ if env is None else env
        settings = configs.load_settings(path, env)
        server = {k: v for k, v in (("host", host), ("port", port)) if v is not None}
        update: dict[str, object] = {"server": settings.server.model_copy(update=server)}
        if store_url is not None:
            update["store"] = settings.store.model_copy(update={"url": store_url})
        settings = settings.model_copy(update=update)
        router = cls(configs.resolve(settings, env), env=env)
        configs.check_bind(router.host, router.api_keys, settings.server.api_keys_env)
        return router

    @classmethod
    def for_dry_run(
        cls, path: str | Path | None = None, *, env: Mapping[str, str] | None = None
    ) -> Router:
        """Build a router that decides but needs no keys, since it calls nothing.

        Args:
            path: a suffice.toml. With None, no ./suffice.toml and nothing in the environment, the
                router decides over an example pool of catalog models.
            env: the environment; None = the process's own.

        Raises:
            ConfigError: a setting is wrong.
        """
        from suffice import config as configs

        env = os.environ if env is None else env
        try:
            settings = configs.load_settings(path, env)
        except ConfigError:
            if path is not None or Path(configs.DEFAULT_FILE).exists():
                raise
            names = ("openai/gpt-6-luna", "openai/gpt-6.1-terra", "openai/gpt-6.1-sol")
            route = configs.RouteSettings(models=names, objective={"keep_quality": 0.95})
            settings = configs.Settings(routes={"auto": route}, source=EXAMPLE_POOL)
        return cls(configs.resolve(settings, env, need_keys=False), env=env)

    for_explaining = for_dry_run  # the former name, kept for one release

    # ── a request ────────────────────────────────────────────────────────────────────────────────

    async def answer(self, query: Query, started: float | None = None) -> RoutedResponse:
        """Route one query, call models until one answers, and record what happened.

        `started` is the `perf_counter()` at which the query came in. Raises RequestError,
        NoEligibleModelError, or AllAttemptsFailedError when every attempt failed.
        """
        started = perf_counter() if started is None else started
        route = self._routes.resolve(query.model)
        selection = self._selector.select(query, route, commit=True)
        upstreams, x = self._upstreams, selection.features
        attempts: list[Attempt] = []
        check = fallback_cost_check(route, selection.decision, x, query, upstreams.model)
        async with selection.reservation as reservation:
            decision = reservation.reserve_first(selection.decision, attempts, check)
            response = RoutedResponse(
                query, x, decision, attempts, reservation, started, self._recorder.finish
            )
            response.audit_sample = self._services.sample_for_audit(decision, x, query)
            with response:
                response.reply = await self._engine.run(
                    decision.plan,
                    upstreams.caller(query, reservation),
                    stream=query.stream,
                    timeouts=route.timeouts,
                    retries=route.retries,
                    cost_of=upstreams.cost_of,
                    seed=decision.seed,
                    input_tokens=x.input_tokens,
                    has_larger_window=upstreams.has_larger_window,
                    guard=reservation.attempt_guard(check),
                    attempts=attempts,
                )
            response.complete()
        return response

    def decide(self, query: Query) -> Decision:
        """The Decision for a parsed query. Calls and stores nothing."""
        selection = self._selector.select(query, self._routes.resolve(query.model))
        return responses.explained(selection.decision, selection.features)

    def route(
        self,
        messages: str | Sequence[Mapping[str, object]],
        *,
        route: str = "auto",
        objective: object = None,
        models: Sequence[str] | None = None,
        tools: Sequence[object] | None = None,
        response_format: object = None,
        max_tokens: int | None = None,
        session: str | None = None,
    ) -> Decision:
        """Evaluate and select without calling anything: needs no keys and no network.

        Args:
            messages: a prompt, or messages in OpenAI's shape.
            route: a route's name or a model's.
            objective: instead of the route's, in any form that the configuration takes.
            models: choose among these instead of the route's.
            tools: as in a chat completion.
            response_format: as in a chat completion.
            max_tokens: the longest answer.
            session: the conversation that the query belongs to.

        Raises:
            BadRequestError: an argument is not valid.
            ModelNotFoundError: the route or a model is unknown.
            NoEligibleModelError: no model can take the query.
        """
        from suffice.dialects.openai_request import parse_chat

        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        own = {"objective": objective, "models": models, "session": session}
        body = {
            "model": route,
            "messages": messages,
            "tools": tools,
            "response_format": response_format,
            "max_tokens": max_tokens,
            "suffice": {k: v for k, v in own.items() if v is not None},
        }
        given = {k: v for k, v in body.items() if v is not None}
        return self.decide(parse_chat(msgspec.json.encode(given), {}))

    def explain(self, decision: Decision) -> dict[str, Any]:
        """A decision as plain data, ready for JSON."""
        return responses.explain(decision)

    # ── afterwards ───────────────────────────────────────────────────────────────────────────────

    def decision(self, decision_id: str) -> dict[str, Any] | None:
        """A recorded decision with its attempts and feedback, or None."""
        row = self.store.decision(decision_id)
        if row is not None and row.get("feature_vector") is not None:
            # Stored as numbers only; what stood out is computed when it is asked for.
            row["features"] = features.explain_vector(row["feature_vector"])
        return row

    def feedback(
        self,
        decision_id: str,
        score: float | None = None,
        *,
        verdict: str | None = None,
        source: str = "user",
        comment: str | None = None,
        key: str | None = None,
        created_s: float | str | None = None,
        key_id: str | None = None,
    ) -> Feedback:
        """Score a decision. The same (decision, source, key) again replaces the score.

        Args:
            decision_id: what is scored.
            score: in [0, 1].
            verdict: "good" (1) or "bad" (0) instead of a score.
            source: who scores.
            comment: any text.
            key: tells scores of one source apart.
            created_s: when it was scored, unix time or ISO 8601; None = now.
            key_id: the client's key, which may score its own decisions only; None = any.

        Raises:
            BadRequestError: a field is missing or has the wrong type.
            UnprocessableError: a field is out of range.
            NotFoundError: there is no such decision.
            StoreError: the score cannot be stored now.
        """
        fields = {
            "decision_id": decision_id,
            "score": score,
            "verdict": verdict,
            "source": source,
            "comment": comment,
            "key": key,
            "created": created_s,
        }
        return self._feedback.add(fields, key_id)

    def feedback_batch(
        self, batch: Sequence[Mapping[str, Any]], *, key_id: str | None = None
    ) -> list[FeedbackResult]:
        """`feedback` for up to 1,000 decisions at once; one result per item, in order.

        Args:
            batch: each item has decision_id, score or verdict, and optional source, comment, key,
                created.
            key_id: as in `feedback`.

        Raises:
            UnprocessableError: the batch is empty or too long.
            StoreError: nothing can be stored now.
        """
        return self._feedback.add_batch(batch, key_id)

    # ── state ────────────────────────────────────────────────────────────────────────────────────

    @property
    def routes(self) -> Mapping[str, Route]:
        """Routes by name."""
        return self._routes.by_name

    @property
    def version(self) -> str:
        """The version of the package."""
        from importlib.metadata import version

        return version("suffice")

    @property
    def source(self) -> str:
        """Where the settings came from: the path of a file, or a description."""
        return str(self._config.settings.source)

    @property
    def store(self) -> Store:
        """The store; opened at its first use."""
        return self._services.store

    @property
    def transport(self) -> Transport:
        """What sends the upstream requests; made at its first use."""
        return self._services.transport

    @property
    def budgets(self) -> budgets.Budgets:
        """The money limits of all routes."""
        return self._budgets

    def resolve(self, name: str) -> Route:
        """A route by name, or one model as a pinned route. Raises ModelNotFoundError."""
        return self._routes.resolve(name)

    def route_specs(self) -> tuple[RouteSpec, ...]:
        """The routes as the configuration gives them, every name in them resolved."""
        return tuple(self._config.routes.values())

    def models(self) -> tuple[Model, ...]:
        """The catalog in use."""
        return self._catalog.models()

    def ready(self) -> dict[str, Any]:
        """The state of the process, as `/readyz` shows it.

        Its `status` is "unready" if every model of every route is cooling down, "degraded" if the
        store is down and records are spooled, else "ok".
        """
        health = self.store.health()
        cooling_down = self._breaker.open_models()
        learning, monitor = self._services.learning, self._services.monitor
        callable_ = any(
            name not in cooling_down for r in self._routes for name in r.reachable.names
        )
        return {
            "status": "unready" if not callable_ else "ok" if health.ok else "degraded",
            "store": msgspec.to_builtins(health),
            "cooling_down": cooling_down,
            "learning": {} if learning is None else dict(learning.problems),
            "watch": {} if monitor is None else monitor.state(),
            "budgets": self._budgets.totals(),
            "warnings": list(self.warnings),
        }

    def metrics(self) -> bytes:
        """Prometheus text."""
        return self._metrics.render()

    # ── start and end ────────────────────────────────────────────────────────────────────────────

    def warm_up(self) -> None:
        """Open store and transport and decide once, so that no client waits for it."""
        self._services.warm_up()
        self._budgets.restore(self.store)

    def start_learning(self, *, thread: bool = True) -> LearningWorker:
        """Start the learning worker of this process.

        Args:
            thread: False = no thread; the caller calls `step`.
        """
        return self._services.start_learning(thread=thread)

    def start_monitoring(self, *, thread: bool = True) -> CertificateMonitor | None:
        """Start the certificate monitor of this process; None if no route is monitored.

        Args:
            thread: False = no thread; the caller calls `step`.
        """
        return self._services.start_monitoring(
            self._upstreams, self._selector.new_id, self._random.getrandbits(32), thread=thread
        )

    def close(self) -> None:
        """Flush and close the store. The upstream connections need `aclose`."""
        self._services.close()
        self._budgets.close()

    async def aclose(self) -> None:
        """Close the upstream connections, then flush and close the store."""
        await self._services.aclose()
        self._budgets.close()
