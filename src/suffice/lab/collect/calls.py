"""Calls of models for the lab: through the router, one model at a time, paid for once.

`Router` brings dialects, transport, deadlines, breakers and prices; execution's `FailoverFlow` says what is
worth a retry. What is added here is patience of a bulk job, a cap on money, and the ledger.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from suffice import catalog, config
from suffice.errors import (
    AllAttemptsFailedError,
    ConfigError,
    NoEligibleModelError,
    UpstreamError,
    nearest,
)
from suffice.execution.retry import Call, Exhausted, FailoverFlow, Wait
from suffice.lab.collect.budget import Budget, Hold, worst_usd
from suffice.lab.collect.journal import Answer, CallStarted, Failed, Ledger
from suffice.providers import PROVIDERS
from suffice.router import Router
from suffice.store.protocols import Store
from suffice.types import Message, Model, PlanStep, Query, RetryPolicy

# A bulk job has time: it waits out a rate limit that an interactive request would not.
PATIENT = RetryPolicy(per_model=3, max_attempts=4, backoff_base_s=1.0, max_wait_s=60.0)
_TOTAL_S = 1800.0  # for one call with all its retries
GIVE_UP_AFTER = 8  # failed calls of a model in a row
# Failures that every further call of the model would repeat.
_HOPELESS = frozenset({"auth", "not_found"})
_NO_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
# Failures after which the upstream may charge all the same.
_MAY_CHARGE = frozenset(
    {"timeout_first_chunk", "timeout_idle", "timeout_total", "cut", "malformed", "content_filter"}
)
_PICTURE_BYTES = 40_000  # a token bound for a picture or recording, which is sent by its address
_NEW_NAME = frozenset({"openai", "azure"})  # providers that call the limit max_completion_tokens


class NullStore:
    """A store for calls that leave no decision: labels are not traffic."""

    def append(self, record: object) -> None:
        """Drop the record."""

    def close(self) -> None:
        """Do nothing."""


# ── which models ─────────────────────────────────────────────────────────────────────────────────


def make_router(
    path: str | None, names: Sequence[str], env: Mapping[str, str]
) -> tuple[Router, tuple[Model, ...]]:
    """A router over exactly these models, and the models in the order of `names`.

    Raises ConfigError for a model that is not known, with the nearest names, or that has no key.
    """
    settings = config.load_settings(path, env)
    full = [_full_name(name, settings) for name in names]
    first = next(iter(settings.routes.values()), None)
    route = config.RouteSettings(
        models=tuple(dict.fromkeys(full)),
        timeouts=first.timeouts if first else config.TimeoutSettings(),
        retries=config.RetrySettings(per_model=0, max_attempts=1),  # retries are this file's
    )
    own = settings.model_copy(update={"routes": {"collect": route}})
    resolved = config.resolve(own, env)
    usable = {m.name: m for m in resolved.models}
    for name in full:
        if name not in usable:
            key = resolved.providers[name.partition("/")[0]].api_key_env
            raise ConfigError(
                f"{name} cannot be called: there is no key in the environment variable {key}.",
                field="--models",
                remedy=f"Set {key}.",
            )
    return Router(resolved, env=env, store=cast(Store, NullStore())), tuple(usable[n] for n in full)


def _full_name(name: str, settings: config.Settings) -> str:
    routes = settings.routes.values()
    own = dict.fromkeys([*settings.models, *(n for r in routes for n in (*r.models, *r.fallbacks))])
    if name in own:
        return name
    builtin = [m.name for m in catalog.builtin_models()]
    for known in (own, builtin):
        bare = [n for n in known if n.partition("/")[2] == name]
        if len(bare) == 1:
            return bare[0]
    provider, _, upstream = name.partition("/")
    row = PROVIDERS.get(provider)
    if name in builtin or (row is not None and (row.local or catalog.lookup(provider, upstream))):
        return name
    close = nearest(name, [*own, *builtin])
    where = settings.source
    raise ConfigError(
        f"There is no model named {name!r}.",
        field="--models",
        remedy=(f"Nearest known: {', '.join(close)}. " if close else "")
        + f'One that the catalog does not know is named in {where} first: [models."{name}"].',
    )


# ── one call ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Ask:
    """One call to make. messages: JSON as it is sent; canonical: the same for the router.
    read: what a judge's reply says, where it is one."""

    key: str
    query_id: str
    model: Model
    messages: bytes
    canonical: tuple[Message, ...]
    needs: frozenset[str]
    temperature: float | None
    max_output_tokens: int
    purpose: str = "answer"
    read: Callable[[str], object] | None = None

    @property
    def limit_tokens(self) -> int:
        return min(self.max_output_tokens, self.model.max_output_tokens or self.max_output_tokens)

    @property
    def worst_usd(self) -> float:
        marks = (b'"type":"image_url"', b'"type":"input_audio"')
        media = sum(self.messages.count(mark) for mark in marks)
        size = len(self.messages) + media * _PICTURE_BYTES
        return worst_usd(self.model, size, len(self.canonical), self.limit_tokens)


@dataclass
class CallStats:
    """Of one model in one run. first: the first failure's words."""

    answered: int = 0
    failed: int = 0
    first: str | None = None
    in_a_row: int = 0
    given_up: str | None = None


@dataclass
class _Manners:
    """How a model wants its parameters, learned from what it refuses."""

    limit: str
    temperature: bool = True


@dataclass
class Asker:
    """Makes calls: at most `concurrency` at once, never one that the ledger has an answer to, never
    beyond the budget. `stop`: calls that have not begun do not begin."""

    router: Router
    ledger: Ledger
    budget: Budget
    concurrency: int
    stop: asyncio.Event
    retries: RetryPolicy = PATIENT
    seed: int = 0
    tallies: dict[str, CallStats] = field(default_factory=dict)
    capped: int = 0  # calls that the cap did not cover although their query had begun
    _manners: dict[str, _Manners] = field(default_factory=dict)
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.concurrency)

    def tally(self, model: str) -> CallStats:
        return self.tallies.setdefault(model, CallStats())

    async def ask(self, ask: Ask, hold: Hold) -> Answer | None:
        """The answer, from the ledger or from the model; None where there is none, which the tally
        explains. Raises JobError where the ledger cannot be written."""
        async with self._locks.setdefault(
            ask.key, asyncio.Lock()
        ):  # the same query twice in a table
            found = self.ledger.answers.get(ask.key)
            if found is not None:
                return found
            if self.tally(ask.model.name).given_up is not None:
                return None
            return await self._tried(ask, hold)

    async def _tried(self, ask: Ask, hold: Hold) -> Answer | None:
        flow = FailoverFlow(
            (PlanStep(ask.model.name),), self.retries, total_s=_TOTAL_S, seed=self.seed
        )
        began_s = time.monotonic()
        while True:
            action = flow.next()
            if isinstance(action, Call):
                if self.stop.is_set():
                    return None
                worst = ask.worst_usd
                if not hold.take(worst):
                    self.capped += 1
                    return None
                try:
                    return await self._once(ask, worst)
                except UpstreamError as error:
                    flow.record_failure(error, time.monotonic() - began_s)
                except NoEligibleModelError as error:
                    await self._close(ask, "no_candidate", str(error), 0.0)
                    self._count(ask.model.name, str(error))
                    return None
                finally:
                    await hold.settle(worst)
            elif isinstance(action, Wait):
                if await _stopped_within(self.stop, action.seconds):
                    return None
                flow.record_wait(time.monotonic() - began_s)
            else:
                assert isinstance(action, Exhausted)
                self._gave_up(ask.model.name, action.error)
                return None

    async def _once(self, ask: Ask, worst: float) -> Answer:
        """One attempt. Raises UpstreamError, or NoCandidate where the query does not fit."""
        async with self._slots:
            self.ledger.note(CallStarted(ask.key, ask.model.name, worst, time.time()))
            try:
                answer = await self._sent(ask)
            except AllAttemptsFailedError as error:
                last = error.last
                # What it may have cost is spent, whatever a retry brings.
                charged = worst if last.kind in _MAY_CHARGE else 0.0
                await self._close(ask, last.kind, last.message, charged)
                raise last from None
        text = _text_of(answer.body)
        verdict = None if ask.read is None else ask.read(text)
        record = Answer(
            key=ask.key,
            model=ask.model.name,
            text=text,
            charged_usd=_charged(ask, answer.cost_usd, text, worst),
            cost_usd=answer.cost_usd,
            usage=answer.usage,
            latency_s=answer.attempts[-1].latency_s,
            finish_reason=answer.attempts[-1].finish_reason,
            at_s=time.time(),
            query_id=ask.query_id,
            purpose=ask.purpose,
            verdict=None if verdict is None else str(verdict),
        )
        await self.ledger.keep(record)
        tally = self.tally(ask.model.name)
        tally.answered += 1
        tally.in_a_row = 0
        return record

    async def _sent(self, ask: Ask) -> Any:
        """The router's Answer, with a parameter that the model refuses left out or renamed."""
        name = ask.model.name
        new = ask.model.provider in _NEW_NAME
        manners = self._manners.setdefault(
            name, _Manners("max_completion_tokens" if new else "max_tokens")
        )
        while True:
            limit, warm = manners.limit, manners.temperature
            try:
                return await self.router.answer(_query(ask, limit, warm))
            except AllAttemptsFailedError as error:
                if error.last.kind != "bad_request":
                    raise
                said = f"{error.last.message} {error.last.param}".lower()
                if "max_completion_tokens" in said and limit == "max_tokens":
                    manners.limit = "max_completion_tokens"
                elif "temperature" in said and warm and ask.temperature is not None:
                    manners.temperature = False
                else:
                    raise

    def untempered(self) -> list[str]:
        """Models that refused the temperature and were asked at their own."""
        return [name for name, m in self._manners.items() if not m.temperature]

    def _gave_up(self, name: str, error: UpstreamError) -> None:
        self._count(name, error.message)
        tally = self.tally(name)
        hopeless = error.kind in _HOPELESS or error.code in _NO_MONEY
        if hopeless or tally.in_a_row >= GIVE_UP_AFTER:
            tally.given_up = error.message

    def _count(self, name: str, message: str) -> None:
        tally = self.tally(name)
        tally.failed += 1
        tally.in_a_row += 1
        tally.first = tally.first or message

    async def _close(self, ask: Ask, why: str, message: str, charged_usd: float) -> None:
        """The end of an attempt that brought no answer."""
        record = Failed(
            ask.key, ask.model.name, why, message, charged_usd, time.time(), ask.query_id
        )
        if charged_usd:
            await self.ledger.keep(record)
        else:
            self.ledger.note(record)


async def _stopped_within(stop: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True


def _query(ask: Ask, limit: str, warm: bool) -> Query:
    raw = msgspec.Raw
    fields = {
        "model": raw(b'""'),
        "messages": raw(ask.messages),
        limit: raw(b"%d" % ask.limit_tokens),
    }
    if warm and ask.temperature is not None:
        fields["temperature"] = raw(msgspec.json.encode(ask.temperature))
    return Query(
        dialect="openai",
        model=ask.model.name,
        messages=ask.canonical,
        fields=fields,
        required_capabilities=ask.needs,
        max_output_tokens=ask.limit_tokens,
    )


def _charged(ask: Ask, cost_usd: float | None, text: str, worst: float) -> float:
    """What the cap counts for an answer: its cost; where the upstream did not say how many tokens
    it was, what its bytes can come to at most."""
    if cost_usd is not None:
        return cost_usd
    if not worst:
        return 0.0  # an unknown price, which the operator allowed
    size = len(text.encode("utf-8", "surrogatepass"))
    return min(worst, worst_usd(ask.model, len(ask.messages), len(ask.canonical), size))


class _Message(msgspec.Struct, frozen=True):
    content: Any = None
    refusal: Any = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Message = _Message()


class _Reply(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []


_decode_reply = msgspec.json.Decoder(_Reply).decode


def _text_of(body: bytes) -> str:
    """The text of a chat completion's first choice; '' where it holds none."""
    choices = _decode_reply(body).choices
    if not choices:
        return ""
    content = choices[0].message.content or choices[0].message.refusal or ""
    if isinstance(content, list):
        return "".join(str(p.get("text") or "") for p in content if isinstance(p, dict))
    return str(content)
