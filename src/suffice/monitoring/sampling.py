"""Audits: of a sampled share of certified decisions, what they lost against the reference model.

    decision made    -> drawn by its id, whoever it chose, before anything is known of the answer
    answer delivered -> the reference served: loss 0, at no cost
                        cheap served: the reference is asked the same, a judge compares both ways
    loss             -> feedback of source "audit" on the decision: score 1 - loss

Nothing here is on a request's path: it begins when the client has its answer, in tasks of its own,
at most a few at once. What waits is bounded; what does not fit is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from suffice import judging
from suffice.artifacts.certificate import Certificate
from suffice.errors import StoreError
from suffice.monitoring import reading
from suffice.monitoring.labelling import (
    JUDGE_TOKENS,
    ROUTE,
    SOURCE,
    Asker,
    AuditedRoute,
    AuditFailed,
    MonitorDependencies,
    Outcome,
)
from suffice.types import Decision, Features, Feedback, Model, Query, RequestRecord, Usage

DAY_S = 86400.0
AT_ONCE = 4
WAITING = 64
LONGEST_TOKENS = 32_000  # of a query; a longer one is not audited, whoever served it
_LONGEST_STREAM = 1 << 20  # bytes of a stream that are kept for the judge
_ANSWER_TOKENS = 700  # taken for the reference's answer where the policy predicted no cost
_AFTER_S = 0.05  # so that the answer is on its way before anything of the audit runs
_AGAIN_S = 0.1
_MEMORY = 0.05  # how fast the share of paid audits that bring a label follows the last ones

_log = logging.getLogger("suffice.audit")


class AuditSample:
    """A decision that was drawn. A stream's events are kept for it as they pass."""

    __slots__ = ("_bytes", "certificate", "decision", "events", "query", "reference", "tokens")

    def __init__(
        self,
        decision: Decision,
        query: Query,
        certificate: Certificate,
        reference: str,
        tokens: int,
    ) -> None:
        self.decision = decision
        self.query = query
        self.certificate = certificate
        self.reference = reference  # as it is served here
        self.tokens = tokens
        # Nobody compares what the reference itself said.
        keep = query.stream and decision.model != reference
        self.events: list[bytes] | None = [] if keep else None
        self._bytes = 0

    def append_event(self, raw: bytes) -> None:
        """An event of the stream has been passed on."""
        if self.events is not None:
            self._bytes += len(raw)
            if self._bytes > _LONGEST_STREAM:
                self.events = None
            else:
                self.events.append(raw)


class _Job(NamedTuple):
    drawn: AuditSample
    body: bytes

    def answer(self) -> str | None:
        events = self.drawn.events
        if not self.drawn.query.stream:
            return reading.whole(self.body)
        return None if events is None else reading.streamed(events)


def is_sampled(decision_id: str, share: float) -> bool:
    """Whether a decision is among the audited share: by the 64 random bits that its id ends with,
    which have nothing to do with query or choice, so that anybody can check the draw later."""
    return int(decision_id[-16:], 16) < share * 2.0**64


def label_key(certificate: Certificate) -> str:
    """The key of the feedback by which a watch knows labels of its own certificate."""
    return certificate.digest[:16]


class AuditSampler:
    """The audits of one process. Belongs to one event loop; `aclose` ends what is under way."""

    def __init__(
        self,
        routes: Mapping[str, AuditedRoute],
        certificate: Callable[[str], Certificate | None],
        calls: MonitorDependencies,
        *,
        seed: int,
        after_s: float = _AFTER_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._routes = {
            n: r for n, r in routes.items() if r.spec.sample_rate > 0.0 and r.spec.judge is not None
        }
        self._certificate = certificate
        self._calls = calls
        self._after_s = after_s
        self._clock = clock
        self._random = random.Random(seed)
        self._asker = Asker(calls, self._random, clock)
        self._waiting: deque[_Job] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._held_usd: dict[str, float] = dict.fromkeys(self._routes, 0.0)
        self._capped: dict[str, tuple[float, str]] = {}  # route -> the day it is, and why
        self._brings: dict[str, float] = {}  # route -> share of paid audits that bring a label
        self._told: set[str] = set()
        self._closed = False
        self.outcomes: dict[str, Counter[str]] = {n: Counter() for n in self._routes}

    # ── from the request's path: cheap, and never raises ─────────────────────────────────────────

    def sample(self, decision: Decision, x: Features, query: Query) -> AuditSample | None:
        """The decision, where it is one to audit. Nothing here looks at which model was chosen."""
        route = self._routes.get(decision.route)
        if route is None or decision.basis != "certified":
            return None
        if self._closed or not is_sampled(decision.id, route.spec.sample_rate):
            return None
        told = self._certificate(route.name)
        names = [p.model for p in decision.predictions]
        reference = None if told is None else told.find_reference(names)
        if told is None or reference is None:
            return None
        outcome = self._not_now(route, decision, x, query, names[reference])
        if outcome is not None:
            self._count(route.name, outcome)
            return None
        return AuditSample(decision, query, told, names[reference], x.input_tokens)

    def _not_now(
        self, route: AuditedRoute, decision: Decision, x: Features, query: Query, reference: str
    ) -> Outcome | None:
        if (
            decision.explored
            or query.dialect != "openai"
            or query.options.order
            or x.input_tokens > LONGEST_TOKENS
            or any(m.images or m.audio for m in query.messages)
        ):
            return "unfit"
        if self.waits(route.name) is not None:
            return "capped"
        if len(self._waiting) >= WAITING:
            return "full"
        if self._calls.cost_of(reference, Usage(1, 1)) is None:
            return "unpriced"
        return None

    def submit(self, drawn: AuditSample, record: RequestRecord, body: bytes) -> None:
        """The answer to a drawn decision has been recorded. body: of a whole reply. Call it from the
        event loop."""
        name = drawn.decision.route
        if record.status != 200 or record.model != drawn.decision.model:
            self._count(name, "unanswered")
        elif record.model == drawn.reference:
            # Where paid audits fail, as many free labels must go, or the loss would look smaller.
            if self._random.random() < self._brings.get(name, 1.0):
                self._label(drawn, 0.0, "the reference served")
                self._count(name, "reference")
            else:
                self._count(name, "thinned")
        elif self._closed or len(self._waiting) >= WAITING:
            self._count(name, "full")
            self._brought(name, 0.0)
        else:
            self._waiting.append(_Job(drawn, body))
            self._next()

    def waits(self, route: str) -> str | None:
        """Why nothing is audited now, in words."""
        found = self._capped.get(route)
        if found is None or self._clock() // DAY_S > found[0]:
            return None
        return found[1]

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._tasks)

    # ── in tasks of their own ────────────────────────────────────────────────────────────────────

    def _next(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._tasks) < AT_ONCE and not self._closed:
            task = loop.create_task(self._run(self._waiting.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("an audit broke off", exc_info=task.exception())
        if not self._closed:
            self._next()

    async def aclose(self) -> None:
        """End audits under way and drop those that wait: they are as if never drawn."""
        self._closed = True
        self._waiting.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, job: _Job) -> None:
        name = job.drawn.decision.route
        await asyncio.sleep(self._after_s)
        try:
            found = await self._paid(job, self._routes[name])
        except AuditFailed as why:
            self._count(name, why.outcome)
            if why.outcome != "capped":
                self._brought(name, 0.0)
                self._tell(name, why)
            return
        loss = 1.0 - (found.score or 0.0)
        self._label(job.drawn, loss, "verdicts: " + (", ".join(found.verdicts) or "plain"))
        self._count(name, "labelled")
        self._brought(name, 1.0)

    def _brought(self, name: str, label: float) -> None:
        before = self._brings.get(name, 1.0)
        self._brings[name] = before + (label - before) * _MEMORY

    def _tell(self, name: str, why: AuditFailed) -> None:
        """Each kind of failure of a route is said once; all are counted."""
        if f"{name}/{why.outcome}" not in self._told:
            self._told.add(f"{name}/{why.outcome}")
            _log.warning("route %s: an audit brought no label: %s", name, why)

    async def _paid(self, job: _Job, route: AuditedRoute) -> judging.PairwiseScore:
        """The loss of a cheap answer, as a score of the judge's kind. Raises Unusable."""
        drawn = job.drawn
        judge = route.spec.judge
        assert judge is not None
        answer = job.answer()
        if answer is None:
            raise AuditFailed("unreadable", "the answer cannot be read, or is too long to keep")
        usd = self._expected_usd(drawn, judge, answer)
        if usd is None:
            raise AuditFailed("unpriced", f"the price of {drawn.reference} is unknown")
        await self._afford(route, usd)
        try:
            ask, of = self._asker, drawn.decision.id
            other = await ask.reference(route, of, drawn.reference, drawn.query)
            known = judging.trivial_score(answer, other)
            if known is None:
                asked = reading.request(drawn.query)
                as_a = await ask.verdict(route, of, judge, asked, answer, other, "judge, A")
                as_b = await ask.verdict(route, of, judge, asked, other, answer, "judge, B")
                known = judging.score_verdicts(as_a, as_b)
        finally:
            self._held_usd[route.name] -= usd
        if known.score is None:
            raise AuditFailed("failed", known.reason or "nothing can be said")
        return known

    async def _afford(self, route: AuditedRoute, usd: float) -> None:
        """Hold `usd` of the day's money, once it is there. Raises Unusable where it will not be."""
        cap = route.spec.max_usd_per_day
        while self.waits(route.name) is None:
            day = self._clock() // DAY_S
            try:
                spent = await asyncio.to_thread(self._calls.spend, ROUTE + route.name, day * DAY_S)
            except StoreError as error:
                raise AuditFailed("store", str(error)) from None
            if spent.usd + usd > cap:
                why = f"max_usd_per_day = {cap:g} of its audits is reached (${spent.usd:.4f} spent)"
                self._capped[route.name] = (day, why)
                _log.info("route %s: %s: it goes on after midnight UTC", route.name, why)
                break
            if spent.usd + self._held_usd[route.name] + usd <= cap:
                self._held_usd[route.name] += usd
                return
            await asyncio.sleep(_AGAIN_S)  # what others hold is mostly more than they will need
        raise AuditFailed("capped", "the day's money is spent")

    def _expected_usd(self, drawn: AuditSample, judge: Model, answer: str) -> float | None:
        """Of the reference's answer as it was predicted, and of two verdicts at their longest."""
        told = {p.model: p.cost_usd for p in drawn.decision.predictions}
        reference = told.get(drawn.reference)
        if reference is None:
            usage = Usage(drawn.tokens, _ANSWER_TOKENS)
            reference = self._calls.cost_of(drawn.reference, usage)
        read = drawn.tokens + len(answer) // 4 + _ANSWER_TOKENS + len(judging.PAIR_PROMPT) // 4
        verdict = self._calls.cost_of(judge.name, Usage(read, JUDGE_TOKENS))
        return None if reference is None or verdict is None else reference + 2.0 * verdict

    # ── what comes of it ─────────────────────────────────────────────────────────────────────────

    def _label(self, drawn: AuditSample, loss: float, why: str) -> None:
        self._calls.label(
            Feedback(
                decision_id=drawn.decision.id,
                score=1.0 - loss,
                source=SOURCE,
                comment=why,
                created_s=self._clock(),
                key=label_key(drawn.certificate),
            )
        )

    def _count(self, route: str, outcome: Outcome) -> None:
        self.outcomes[route][outcome] += 1
        self._calls.counted(route, outcome)
