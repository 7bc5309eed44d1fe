"""Calls of models for the lab: one model at a time, paid for once.

`ModelClient` makes the calls; `FailoverFlow` decides what is worth a retry. This module adds the
patience of a bulk job, a cap on money, and the journal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from suffice import catalog, config, features
from suffice.budgets import UNLIMITED
from suffice.catalog import Catalog
from suffice.dialects import openai_message
from suffice.errors import AllAttemptsFailedError, ConfigError, UpstreamError, nearest
from suffice.execution import CircuitBreaker, CircuitBreakerSettings, Engine, LatencyTracker, Reply
from suffice.execution.retry import Call, Exhausted, FailoverFlow, Wait
from suffice.lab.collect.budget import Budget, QueryReservation, max_cost_usd
from suffice.lab.collect.journal import Answer, CallJournal, CallStarted, Failed
from suffice.model_client import MAY_CHARGE, ModelCall, ModelClient
from suffice.providers import PROVIDERS
from suffice.providers.transport import HTTPTransport
from suffice.routing.upstreams import Upstreams
from suffice.types import Attempt, Message, Model, PlanStep, Query, RetryPolicy, Timeouts

# A bulk job has time: it waits out a rate limit that an interactive request would not.
BATCH_RETRIES = RetryPolicy(per_model=3, max_attempts=4, backoff_base_s=1.0, max_wait_s=60.0)
_NO_RETRIES = RetryPolicy(per_model=0, max_attempts=1)  # of the client: this module retries
_TOTAL_S = 1800.0  # for one call with all its retries
GIVE_UP_AFTER = 8  # consecutive failed calls of a model
# Failures that every further call of the model would repeat.
_FATAL_KINDS = frozenset({"auth", "not_found"})
_NO_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_MEDIA_BYTES = 40_000  # a token bound for an image or audio part, which is sent by its address


# ── which models ─────────────────────────────────────────────────────────────────────────────────


class ModelConnection:
    """The models of one run. The transport opens at the first call; close it with `aclose`."""

    def __init__(self, resolved: config.ResolvedConfig, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        self._transport: HTTPTransport | None = None
        self._catalog = Catalog(resolved.models)
        upstreams = Upstreams(resolved.models, resolved.providers, self._open)
        engine = Engine(
            CircuitBreaker(CircuitBreakerSettings(), time.monotonic),
            LatencyTracker(time.monotonic),
        )
        self.client = ModelClient(
            engine,
            lambda query: upstreams.caller(query, UNLIMITED),
            upstreams.cost_of,
            retries=_NO_RETRIES,
        )

    def _open(self) -> HTTPTransport:
        if self._transport is None:
            self._transport = HTTPTransport()
        return self._transport

    def exclusion_reason(self, call: ModelCall) -> str | None:
        """Why the model cannot take this call at all."""
        eligible, excluded = self._catalog.eligible(
            self._catalog.pool((call.model,)),
            required_capabilities=call.required_capabilities,
            input_tokens=features.extract(call.canonical).input_tokens,
            max_output_tokens=call.output_limit,
        )
        return None if eligible.models else "; ".join(e.reason for e in excluded)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._transport is not None:
            await self._transport.aclose()


def connect(
    path: str | None, names: Sequence[str], env: Mapping[str, str]
) -> tuple[ModelConnection, tuple[Model, ...]]:
    """Connect to models by name.

    Args:
        path: The config file.
        names: The models' names.
        env: The environment, which holds the keys.

    Returns:
        The connection, and the models in the order of `names`.

    Raises:
        ConfigError: A model is unknown, with the nearest names, or has no key.
    """
    settings = config.load_settings(path, env)
    full = [_full_name(name, settings) for name in names]
    first = next(iter(settings.routes.values()), None)
    route = config.RouteSettings(
        models=tuple(dict.fromkeys(full)),
        timeouts=first.timeouts if first else config.TimeoutSettings(),
    )
    resolved = config.resolve(settings.model_copy(update={"routes": {"collect": route}}), env)
    usable = {m.name: m for m in resolved.models}
    for name in full:
        if name not in usable:
            key = resolved.providers[name.partition("/")[0]].api_key_env
            raise ConfigError(
                f"{name} cannot be called: there is no key in the environment variable {key}.",
                field="--models",
                remedy=f"Set {key}.",
            )
    connection = ModelConnection(resolved, resolved.routes["collect"].timeouts)
    return connection, tuple(usable[n] for n in full)


def _full_name(name: str, settings: config.Settings) -> str:
    routes = settings.routes.values()
    configured = dict.fromkeys(
        [*settings.models, *(n for r in routes for n in (*r.models, *r.fallbacks))]
    )
    if name in configured:
        return name
    builtin = [m.name for m in catalog.builtin_models()]
    for known in (configured, builtin):
        bare = [n for n in known if n.partition("/")[2] == name]
        if len(bare) == 1:
            return bare[0]
    provider, _, upstream = name.partition("/")
    row = PROVIDERS.get(provider)
    if name in builtin or (row is not None and (row.local or catalog.lookup(provider, upstream))):
        return name
    close = nearest(name, [*configured, *builtin])
    where = settings.source
    raise ConfigError(
        f"There is no model named {name!r}.",
        field="--models",
        remedy=(f"Nearest known: {', '.join(close)}. " if close else "")
        + f'One that the catalog does not know is named in {where} first: [models."{name}"].',
    )


# ── one call ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class PlannedCall:
    """One call to make, and what it is for."""

    key: str
    query_id: str
    model: Model
    messages: bytes
    """JSON, as it is sent."""
    canonical: tuple[Message, ...]
    """The same messages in our configured form."""
    required_capabilities: frozenset[str]
    temperature: float | None
    max_output_tokens: int
    purpose: str = "answer"
    read: Callable[[str], object] | None = None
    """Reads a judge's reply."""

    @property
    def call(self) -> ModelCall:
        """The call as the client makes it."""
        return ModelCall(
            self.model,
            self.messages,
            self.canonical,
            self.max_output_tokens,
            self.temperature,
            self.required_capabilities,
        )

    @property
    def max_cost_usd(self) -> float:
        """The most that one attempt can cost."""
        markers = (b'"type":"image_url"', b'"type":"input_audio"')
        media = sum(self.messages.count(marker) for marker in markers)
        size = len(self.messages) + media * _MEDIA_BYTES
        return max_cost_usd(self.model, size, len(self.canonical), self.call.output_limit)


@dataclass
class CallStats:
    """The calls of one model in one run."""

    answered: int = 0
    failed: int = 0
    first: str | None = None
    """The message of the first failure."""
    consecutive_failures: int = 0
    given_up: str | None = None
    """Why the model is not called any more."""


@dataclass
class BatchCaller:
    """Makes calls, each answered and paid for once.

    At most `concurrency` run at once, none that the journal has an answer to, none beyond the budget. Once
    `stop` is set, no further call begins.
    """

    connection: ModelConnection
    journal: CallJournal
    budget: Budget
    concurrency: int
    stop: asyncio.Event
    retries: RetryPolicy = BATCH_RETRIES
    seed: int = 0
    tallies: dict[str, CallStats] = field(default_factory=dict)
    capped: int = 0
    """Calls that the cap did not cover although their query had begun."""
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Create the semaphore that limits concurrency."""
        self._slots = asyncio.Semaphore(self.concurrency)

    def tally(self, model: str) -> CallStats:
        """The statistics of a model."""
        return self.tallies.setdefault(model, CallStats())

    async def ask(self, planned: PlannedCall, reservation: QueryReservation) -> Answer | None:
        """Get an answer from the journal or from the model.

        Args:
            planned: The call.
            reservation: The money that was reserved for its query.

        Returns:
            The answer; `None` if there is none, which the tally explains.

        Raises:
            JobError: The journal cannot be written.
        """
        # The same query may be in a table twice.
        async with self._locks.setdefault(planned.key, asyncio.Lock()):
            known = self.journal.answers.get(planned.key)
            if known is not None:
                return known
            if self.tally(planned.model.name).given_up is not None:
                return None
            reason = self.connection.exclusion_reason(planned.call)
            if reason is not None:
                message = f"{planned.model.name} cannot take this query: {reason}."
                await self._close(planned, "no_candidate", message, 0.0)
                self._count_failure(planned.model.name, message)
                return None
            return await self._with_retries(planned, reservation)

    async def _with_retries(
        self, planned: PlannedCall, reservation: QueryReservation
    ) -> Answer | None:
        flow = FailoverFlow(
            (PlanStep(planned.model.name),), self.retries, total_s=_TOTAL_S, seed=self.seed
        )
        began_s = time.monotonic()
        while True:
            action = flow.next()
            if isinstance(action, Call):
                if self.stop.is_set():
                    return None
                max_usd = planned.max_cost_usd
                if not reservation.draw(max_usd):
                    self.capped += 1
                    return None
                try:
                    return await self._attempt(planned, max_usd)
                except UpstreamError as error:
                    flow.record_failure(error, time.monotonic() - began_s)
                finally:
                    await reservation.settle(max_usd)
            elif isinstance(action, Wait):
                if await _stopped_within(self.stop, action.seconds):
                    return None
                flow.record_wait(time.monotonic() - began_s)
            else:
                self._give_up(planned.model.name, action)
                return None

    async def _attempt(self, planned: PlannedCall, max_usd: float) -> Answer:
        """Make one attempt. Raises UpstreamError."""
        async with self._slots:
            self.journal.append(CallStarted(planned.key, planned.model.name, max_usd, time.time()))
            try:
                reply = await self.connection.client.ask(planned.call, self._send)
            except AllAttemptsFailedError as error:
                last = error.last
                # What it may have cost is spent, even if a retry succeeds.
                charged = max_usd if last.kind in MAY_CHARGE else 0.0
                await self._close(planned, last.kind, last.message, charged)
                raise last from None
        text = openai_message.text_of_completion(reply.body, tool_calls=False) or ""
        verdict = None if planned.read is None else planned.read(text)
        record = Answer(
            key=planned.key,
            model=planned.model.name,
            text=text,
            charged_usd=_charged_usd(planned, reply.cost_usd, text, max_usd),
            cost_usd=reply.cost_usd,
            usage=reply.usage,
            latency_s=reply.attempts[-1].latency_s,
            finish_reason=reply.attempts[-1].finish_reason,
            at_s=time.time(),
            query_id=planned.query_id,
            purpose=planned.purpose,
            verdict=None if verdict is None else str(verdict),
        )
        await self.journal.append_synced(record)
        tally = self.tally(planned.model.name)
        tally.answered += 1
        tally.consecutive_failures = 0
        return record

    async def _send(self, query: Query) -> Reply:
        attempts: list[Attempt] = []
        return await self.connection.client.complete(
            query.model, query, timeouts=self.connection.timeouts, attempts=attempts
        )

    def _give_up(self, name: str, exhausted: Exhausted) -> None:
        error = exhausted.error
        self._count_failure(name, error.message)
        tally = self.tally(name)
        fatal = error.kind in _FATAL_KINDS or error.code in _NO_MONEY
        if fatal or tally.consecutive_failures >= GIVE_UP_AFTER:
            tally.given_up = error.message

    def _count_failure(self, name: str, message: str) -> None:
        tally = self.tally(name)
        tally.failed += 1
        tally.consecutive_failures += 1
        tally.first = tally.first or message

    async def _close(
        self, planned: PlannedCall, reason: str, message: str, charged_usd: float
    ) -> None:
        """Record the end of an attempt that brought no answer."""
        record = Failed(
            planned.key,
            planned.model.name,
            reason,
            message,
            charged_usd,
            time.time(),
            planned.query_id,
        )
        if charged_usd:
            await self.journal.append_synced(record)
        else:
            self.journal.append(record)


async def _stopped_within(stop: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True


def _charged_usd(planned: PlannedCall, cost_usd: float | None, text: str, max_usd: float) -> float:
    """What an answer counts against the cap: its cost, or a bound if no tokens were counted."""
    if cost_usd is not None:
        return cost_usd
    if not max_usd:
        return 0.0  # an unknown price, which the operator allowed
    size = len(text.encode("utf-8", "surrogatepass"))
    return min(
        max_usd, max_cost_usd(planned.model, len(planned.messages), len(planned.canonical), size)
    )
