"""The spine: builds the rooms from Settings and holds the straight line from query to record.

    Query -> features -> candidates -> decision -> attempts -> reply -> record

Everything a request goes through is in `Router.answer`; read that first.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from . import catalog, execution, features, policies, providers
from .errors import (
    BadRequest,
    ConfigError,
    ModelNotFound,
    NoCandidate,
    NotFound,
    PlanExhausted,
    Unprocessable,
    UpstreamError,
)
from .types import (
    Attempt,
    Candidate,
    Decision,
    Excluded,
    Features,
    Feedback,
    Message,
    Model,
    Objective,
    Policy,
    Prediction,
    Query,
    Record,
    Session,
    Steering,
    Step,
    Target,
    Usage,
)

if TYPE_CHECKING:
    from .config import Resolved, Settings

_CACHE_S = 300.0  # how long a provider is assumed to keep a prompt's prefix (5 minutes to an hour)
_SESSION_S = 3600.0  # how long an idle conversation is remembered
_MAX_SESSIONS = 20_000


class Route(msgspec.Struct, frozen=True):
    """A named pool with its policy and objective; `bypass` marks one concrete model."""

    name: str
    models: tuple[Model, ...]
    policy: Policy | None
    objective: Objective
    fallbacks: tuple[Model, ...] = ()
    fallback_max_usd_per_query: float | None = None
    bypass: bool = False


class _Sessions:
    """What is remembered of conversations: bounded in number and in idle time."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[str, int, float, frozenset[str]]] = OrderedDict()

    def get(self, key: str | None, now_s: float) -> Session | None:
        found = self._known.get(key) if key is not None else None
        if found is None or key is None:
            return None
        model, tokens, seen_s, failed = found
        idle_s = now_s - seen_s
        if idle_s > _SESSION_S:
            del self._known[key]
            return None
        return Session(key, model, tokens if idle_s <= _CACHE_S else 0, failed)

    def put(self, key: str | None, reply: execution.Reply, input_tokens: int, now_s: float) -> None:
        if key is None:
            return
        known = self._known
        before = known.get(key)
        failed = before[3] if before else frozenset()
        if len(reply.attempts) > 1:
            failed |= {a.model for a in reply.attempts if a.outcome not in ("ok", "cancelled")}
        known[key] = (reply.model, input_tokens, now_s, failed - {reply.model})
        known.move_to_end(key)
        if len(known) > _MAX_SESSIONS:
            known.popitem(last=False)


class Answer:
    """What `Router.answer` gives back. Exactly one Record comes of it, whatever happens."""

    __slots__ = (
        "_input_tokens",
        "_recorded",
        "_router",
        "_started",
        "_x",
        "decision",
        "overhead_ms",
        "query",
        "reply",
    )

    def __init__(
        self, router: Router, query: Query, x: Features, decision: Decision, started: float
    ) -> None:
        self._router = router
        self._x = x
        self._started = started
        self._recorded = False
        self.query = query
        self.decision = decision
        self.reply: execution.Reply | None = None
        self.overhead_ms = (perf_counter() - started) * 1e3

    @property
    def _reply(self) -> execution.Reply:
        assert self.reply is not None, "the plan has not been run"
        return self.reply

    @property
    def model(self) -> str:
        return self._reply.model

    @property
    def status(self) -> int:
        return self._reply.status

    @property
    def body(self) -> bytes:
        return self._reply.body

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        return tuple(self._reply.attempts)

    @property
    def usage(self) -> Usage | None:
        return self._reply.usage

    @property
    def cost_usd(self) -> float | None:
        return self._reply.cost_usd

    @property
    def explain(self) -> bool:
        return self.query.steering.explain

    @property
    def predicted_usd(self) -> float | None:
        model = self._reply.model
        return next((p.cost_usd for p in self.decision.predictions if p.model == model), None)

    def explanation(self) -> dict[str, Any]:
        return self._router.explain(self.decision)

    async def events(self, *, wants_usage: bool) -> AsyncIterator[bytes]:
        """Bytes of server-sent events, without the terminator; records the request at the end.

        The usage chunk is dropped unless the client asked for it. Raises UpstreamError when the
        upstream fails after the commit point.
        """
        status, error = 499, "the client left"
        try:
            async for event in self._reply.events:
                if event.kind == "usage" and not wants_usage:
                    continue
                if event.kind != "done":
                    yield event.raw
            status, error = 200, None
        except UpstreamError as failed:
            status, error = 502, failed.message
            raise
        finally:
            await self._reply.aclose()
            self.record(status, error)

    async def aclose(self) -> None:
        """Close the upstream; a stream that was never read is recorded as one the client left."""
        await self._reply.aclose()
        self.record(499, "the client left")

    def record(self, status: int, error: str | None = None, *, attempts: Any = None) -> None:
        """Hand the one Record of this request to the store and to telemetry."""
        if self._recorded:
            return
        self._recorded = True
        self._router._record(self, status, error, attempts)


class _Call:
    """Adapts one query to execution's Caller: dialect and transport of whichever model is tried."""

    __slots__ = ("_query", "_router")

    def __init__(self, router: Router, query: Query) -> None:
        self._router = router
        self._query = query

    async def open(self, step_model: str, timeouts: Any) -> Any:
        query = self._query
        target = self._router._targets[step_model]
        dialect = self._router._dialects[target.provider.dialect]
        url, headers, body = dialect.request(query.fields, target, stream=query.stream)
        if query.headers:
            headers = (*headers, *query.headers)
        response = await self._router._transport.send(
            url, headers, body, stream=query.stream, timeouts=timeouts
        )
        return await providers.opened(dialect, response, target, stream=query.stream)


class Router:
    """Evaluates queries, picks models, runs them with failover and records what happened.

    Build it with `Router.from_config(path)` or `Router(settings)`. In-process use needs no server:
    `route` calls nothing, `answer` runs the whole line, `feedback` scores a decision afterwards.
    Close it with `close()` (or `await aclose()`), which flushes the store.
    """

    def __init__(
        self,
        settings: Settings | Resolved,
        *,
        transport: Any = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        from . import config, store, telemetry

        env = os.environ if env is None else env
        resolved = settings if isinstance(settings, config.Resolved) else config.resolve(settings, env)
        self._resolved = resolved
        self.warnings: tuple[str, ...] = resolved.warnings
        self._catalog = catalog.Catalog(resolved.models)
        self._targets = {
            m.name: Target(m, resolved.providers[m.provider]) for m in resolved.models
        }
