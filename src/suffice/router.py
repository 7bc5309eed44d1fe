"""The router: leads a query from its route to its record.

    Query -> Route -> Selection -> attempts -> RoutedResponse -> RequestRecord -> observers

Read `Router.answer` first.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Unpack

import msgspec

from suffice import features
from suffice.routing import response as responses
from suffice.routing import wiring
from suffice.routing.fallbacks import fallback_cost_check
from suffice.routing.feedback import FeedbackDetails, FeedbackResult
from suffice.routing.response import RoutedResponse
from suffice.routing.routes import Route
from suffice.routing.wiring import EXAMPLE_POOL
from suffice.transport import Transport
from suffice.types import Decision, Feedback, Model, Query

if TYPE_CHECKING:
    from suffice.config import ResolvedConfig, Settings
    from suffice.learning.worker import LearningWorker
    from suffice.monitoring import CertificateMonitor
    from suffice.store.protocols import Store

__all__ = ["EXAMPLE_POOL", "Router"]


class Router:
    """Evaluates queries, selects models, runs them with failover and records what happened.

    `route` calls nothing, `answer` carries a query out, `feedback` scores a decision afterwards; no
    server is needed. Close it with `close()` or `await aclose()`, which flush the store.

    Attributes:
        config: the resolved configuration.
        routes: the configured routes by name.
        budgets: the money limits of all routes.
        warnings: what the configuration leaves out, for people.
        api_keys: of clients; empty = everybody on this host may call.
        source: the file of the configuration, or a description of where it came from.
        host, port, workers, max_body_bytes: of the gateway.
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
        env = os.environ if env is None else env
        config = wiring.resolve_config(settings, env)
        server = config.settings.server
        parts = wiring.build_parts(config, env, seed, clock, transport, store)
        self.routes: Mapping[str, Route] = parts.routes.by_name
        self.budgets = parts.budgets
        self.warnings: tuple[str, ...] = config.warnings
        self.api_keys: tuple[str, ...] = config.api_keys
        self.source = str(config.settings.source)
        self.host, self.port, self.workers = server.host, server.port, server.workers
        self.max_body_bytes = server.max_body_bytes
        self.config = config
        self._parts = parts
        self._routes, self._selector = parts.routes, parts.selector
        self._upstreams, self._services = parts.upstreams, parts.services
        self._record = parts.recorder.finish
        self._run_plan = functools.partial(
            parts.engine.run,
            cost_of=self._upstreams.cost_of,
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
        """Build a router from a file; None = ./suffice.toml, else what the environment offers."""
        env = os.environ if env is None else env
        config = wiring.load_config(path, env, host=host, port=port, store_url=store_url)
        return cls(config, env=env)

    @classmethod
    def for_dry_run(
        cls, path: str | Path | None = None, *, env: Mapping[str, str] | None = None
    ) -> Router:
        """Build a router that decides without keys; with no configuration, over an example pool."""
        return cls(
            wiring.load_config_for_dry_run(path, os.environ if env is None else env), env=env
        )

    for_explaining = for_dry_run  # the former name, kept for one release

    async def answer(self, query: Query, started: float | None = None) -> RoutedResponse:
        """Route one query, call models until one answers, and record what happened."""
        started = perf_counter() if started is None else started  # when the query came in
        route = self._routes.resolve(query.model)
        selection = self._selector.select(query, route, commit=True)
        response = RoutedResponse(query, selection, started, self._record)
        check = fallback_cost_check(route, selection, query, self._upstreams.model)
        async with selection.reservation as reservation:
            decision = response.reserve(check)
            response.audit_sample = self._services.sample_for_audit(response)
            with response:
                response.reply = await self._run_plan(
                    decision.plan,
                    self._upstreams.caller(query, reservation),
                    stream=query.stream,
                    timeouts=route.timeouts,
                    retries=route.retries,
                    seed=decision.seed,
                    input_tokens=selection.features.input_tokens,
                    guard=reservation.attempt_guard(check),
                    attempts=response.attempts,
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
            max_tokens: as in a chat completion.
            session: the conversation that the query belongs to.

        Returns:
            The Decision.
        """
        from suffice.dialects.openai_request import parse_chat

        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        options = {"objective": objective, "models": models, "session": session}
        body = {
            "model": route,
            "messages": messages,
            "tools": tools,
            "response_format": response_format,
            "max_tokens": max_tokens,
            "suffice": {k: v for k, v in options.items() if v is not None} or None,
        }
        fields = {k: v for k, v in body.items() if v is not None}
        return self.decide(parse_chat(msgspec.json.encode(fields), {}))

    def explain(self, decision: Decision) -> dict[str, object]:
        """A decision as plain data, ready for JSON."""
        return responses.explain(decision)

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
        key_id: str | None = None,
        **details: Unpack[FeedbackDetails],
    ) -> Feedback:
        """Score a decision in [0, 1]. The same (decision, source, key) again replaces the score.

        Args:
            decision_id: what is scored.
            score: None if `details` has a verdict.
            key_id: the client's key, which may score its own decisions only; None = any.
            **details: more about the score.

        Returns:
            The score as it is stored.
        """
        return self._parts.feedback.add(decision_id, score, details, key_id)

    def feedback_batch(
        self, batch: Sequence[Mapping[str, object]], *, key_id: str | None = None
    ) -> list[FeedbackResult]:
        """`feedback` for up to 1,000 decisions at once; one result per item, in order."""
        return self._parts.feedback.add_batch(batch, key_id)

    @property
    def store(self) -> Store:
        """The store; opened at its first use."""
        return self._services.store

    @property
    def transport(self) -> Transport:
        """What sends the upstream requests; made at its first use."""
        return self._services.transport

    def resolve(self, name: str) -> Route:
        """A route by name, or one model as a pinned route. Raises ModelNotFoundError."""
        return self._routes.resolve(name)

    def models(self) -> tuple[Model, ...]:
        """The catalog in use."""
        return self._parts.catalog.models()

    def ready(self) -> dict[str, object]:
        """The state of the process, as `/readyz` shows it; its `status` is ok, degraded or unready."""
        return {**self._services.state(), "budgets": self.budgets.totals()}

    def metrics(self) -> bytes:
        """Prometheus text."""
        return self._parts.metrics.render()

    def warm_up(self) -> None:
        """Open store and transport and decide once, so that no client waits for it."""
        self._services.warm_up()
        self.budgets.restore(self.store)

    def start_learning(self, *, thread: bool = True) -> LearningWorker:
        """Start learning in this process. Without a thread the caller calls `step`."""
        return self._services.start_learning(thread=thread)

    def start_monitoring(self, *, thread: bool = True) -> CertificateMonitor | None:
        """Start monitoring certificates; None if no route is monitored. See `start_learning`."""
        return self._services.start_monitoring(
            self._upstreams, self._selector.new_id, self._selector.new_seed(), thread=thread
        )

    def close(self) -> None:
        """Flush and close the store. The upstream connections need `aclose`."""
        self._services.close()
        self.budgets.close()

    async def aclose(self) -> None:
        """Close the upstream connections, then flush and close the store."""
        await self._services.aclose()
        self.budgets.close()
