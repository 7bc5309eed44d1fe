"""Audits a sample of certified decisions: what each lost against the reference model.

    decision made    -> sampled by its id alone, before anything is known of the answer
    answer delivered -> the reference served: loss 0, at no cost
                        a cheaper model served: the reference gets the same query, a judge compares
    loss             -> feedback of source "audit" on the decision: score 1 - loss

No audit is on the path of a request. It begins once the client has its answer, in a separate task, a few
at a time. The queue is bounded; what does not fit is dropped and counted.
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
from suffice.dialects import openai_message
from suffice.monitoring.audit_budget import AuditBudget
from suffice.monitoring.labelling import (
    AUDIT_SOURCE,
    JUDGE_TOKENS,
    AuditCall,
    AuditedRoute,
    AuditFailedError,
    JudgeClient,
    MonitorDependencies,
    Outcome,
    judged_messages,
)
from suffice.types import Decision, Features, Feedback, Model, Query, RequestRecord, Usage

MAX_CONCURRENT = 4
MAX_QUEUED = 64
MAX_QUERY_TOKENS = 32_000  # a longer query is not audited, whichever model answered it
_MAX_STREAM_BYTES = 1 << 20  # of a stream that is kept for the judge
_ANSWER_TOKENS = 700  # assumed for the reference's answer if the policy predicted no cost
_DELAY_S = 0.05  # so that the answer is on its way before the audit starts
_YIELD_WEIGHT = 0.05  # of an audit in the moving share of paid audits that bring a label

_log = logging.getLogger("suffice.monitoring")


class AuditSample:
    """A sampled decision. It keeps the events of a stream as they pass."""

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
        self.reference = reference  # the reference model's name on this route
        self.tokens = tokens  # of the query
        # The reference's own answer is not compared with anything.
        keep = query.stream and decision.model != reference
        self.events: list[bytes] | None = [] if keep else None
        self._bytes = 0

    def append_event(self, raw: bytes) -> None:
        """Keep an event that was passed on to the client."""
        if self.events is not None:
            self._bytes += len(raw)
            if self._bytes > _MAX_STREAM_BYTES:
                self.events = None
            else:
                self.events.append(raw)


class _Job(NamedTuple):
    sample: AuditSample
    body: bytes

    def answer_text(self) -> str | None:
        events = self.sample.events
        if not self.sample.query.stream:
            return openai_message.text_of_completion(self.body)
        return None if events is None else openai_message.text_of_stream(events)


def is_sampled(decision_id: str, rate: float) -> bool:
    """Whether a decision is among the audited share, by the 64 random bits at the end of its id."""
    # The bits do not depend on query or choice, and the sample can be verified later.
    return int(decision_id[-16:], 16) < rate * 2.0**64


def unix_time_s() -> float:
    """Unix seconds."""
    return time.time()


def label_key(certificate: Certificate) -> str:
    """The key of the feedback that belongs to this certificate."""
    return certificate.digest[:16]


class AuditSampler:
    """The audits of one process. Belongs to one event loop; `aclose` ends what is under way.

    Args:
        routes: The audited routes.
        certificate: Returns the certificate that a route is served under.
        dependencies: What audits need of the router.
        seed: Seeds the subsampling of free labels and the jitter of retries.
        delay_s: Pause before an audit starts.
        clock: Returns unix seconds.
    """

    def __init__(
        self,
        routes: Mapping[str, AuditedRoute],
        certificate: Callable[[str], Certificate | None],
        dependencies: MonitorDependencies,
        *,
        seed: int,
        delay_s: float = _DELAY_S,
        clock: Callable[[], float] = unix_time_s,
    ) -> None:
        self._routes = {
            n: r for n, r in routes.items() if r.spec.sample_rate > 0.0 and r.spec.judge is not None
        }
        self._certificate = certificate
        self._dependencies = dependencies
        self._delay_s = delay_s
        self._clock = clock
        self._rng = random.Random(seed)
        self._judge = JudgeClient(dependencies, self._rng, clock)
        self._queue: deque[_Job] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._budgets = {
            n: AuditBudget(n, r.spec.max_usd_per_day, dependencies.spend, clock)
            for n, r in self._routes.items()
        }
        self._label_yield: dict[str, float] = {}  # route -> share of paid audits that bring a label
        self._warned: set[str] = set()
        self._closed = False
        self.outcomes: dict[str, Counter[str]] = {n: Counter() for n in self._routes}

    # ── called on the path of a request: cheap, and never raises ─────────────────────────────────

    def sample(self, decision: Decision, x: Features, query: Query) -> AuditSample | None:
        """The decision if it is to be audited. Does not depend on which model was chosen."""
        route = self._routes.get(decision.route)
        if route is None or decision.basis != "certified":
            return None
        if self._closed or not is_sampled(decision.id, route.spec.sample_rate):
            return None
        certificate = self._certificate(route.name)
        names = [p.model for p in decision.predictions]
        index = None if certificate is None else certificate.find_reference(names)
        if certificate is None or index is None:
            return None
        outcome = self._skip_outcome(route, decision, x, query, names[index])
        if outcome is not None:
            self._count(route.name, outcome)
            return None
        return AuditSample(decision, query, certificate, names[index], x.input_tokens)

    def _skip_outcome(
        self, route: AuditedRoute, decision: Decision, x: Features, query: Query, reference: str
    ) -> Outcome | None:
        """Why a sampled decision is not audited."""
        if (
            decision.explored
            or query.dialect != "openai"
            or query.options.order
            or x.input_tokens > MAX_QUERY_TOKENS
            or any(m.images or m.audio for m in query.messages)
        ):
            return "ineligible"
        if self.pause_reason(route.name) is not None:
            return "capped"
        if len(self._queue) >= MAX_QUEUED:
            return "queue_full"
        if self._dependencies.cost_of(reference, Usage(1, 1)) is None:
            return "unknown_price"
        return None

    def submit(self, sample: AuditSample, record: RequestRecord, body: bytes) -> None:
        """Take over a sampled decision whose answer was recorded. Call it from the event loop.

        Args:
            sample: The decision.
            record: Its record.
            body: The body of a whole reply; empty for a stream.
        """
        name = sample.decision.route
        if record.status != 200 or record.model != sample.decision.model:
            self._count(name, "unanswered")
        elif record.model == sample.reference:
            # If paid audits fail, as many free labels are dropped, or the loss would look smaller.
            if self._rng.random() < self._label_yield.get(name, 1.0):
                self._label(sample, 0.0, "the reference served")
                self._count(name, "reference")
            else:
                self._count(name, "subsampled")
        elif self._closed or len(self._queue) >= MAX_QUEUED:
            self._count(name, "queue_full")
            self._update_yield(name, 0.0)
        else:
            self._queue.append(_Job(sample, body))
            self._start_next()

    def pause_reason(self, route: str) -> str | None:
        """Why a route is not audited now."""
        budget = self._budgets.get(route)
        return None if budget is None else budget.pause_reason()

    @property
    def pending(self) -> int:
        """Audits that are under way or wait."""
        return len(self._queue) + len(self._tasks)

    # ── in separate tasks ────────────────────────────────────────────────────────────────────────

    def _start_next(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue and len(self._tasks) < MAX_CONCURRENT and not self._closed:
            task = loop.create_task(self._run(self._queue.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("an audit failed", exc_info=task.exception())
        if not self._closed:
            self._start_next()

    async def aclose(self) -> None:
        """Cancel audits under way and drop the queue, as if they had not been sampled."""
        self._closed = True
        self._queue.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, job: _Job) -> None:
        name = job.sample.decision.route
        await asyncio.sleep(self._delay_s)
        try:
            result = await self._score_with_judge(job, self._routes[name])
        except AuditFailedError as failure:
            self._count(name, failure.outcome)
            if failure.outcome != "capped":
                self._update_yield(name, 0.0)
                self._warn_once(name, failure)
            return
        loss = 1.0 - (result.score or 0.0)
        self._label(job.sample, loss, "verdicts: " + (", ".join(result.verdicts) or "plain"))
        self._count(name, "labelled")
        self._update_yield(name, 1.0)

    def _update_yield(self, name: str, label: float) -> None:
        before = self._label_yield.get(name, 1.0)
        self._label_yield[name] = before + (label - before) * _YIELD_WEIGHT

    def _warn_once(self, name: str, failure: AuditFailedError) -> None:
        """Log each kind of failure once per route. All are counted."""
        kind = f"{name}/{failure.outcome}"
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning("route %s: an audit brought no label: %s", name, failure)

    async def _score_with_judge(self, job: _Job, route: AuditedRoute) -> judging.PairwiseScore:
        """Compare a cheaper model's answer with the reference's. Raises AuditFailedError."""
        sample, judge = job.sample, route.spec.judge
        answer = job.answer_text()
        if answer is None or judge is None:
            raise AuditFailedError(
                "unreadable", "the answer cannot be read, or is too long to keep"
            )
        usd = self._expected_usd(sample, judge, answer)
        if usd is None:
            raise AuditFailedError("unknown_price", f"the price of {sample.reference} is unknown")
        async with self._budgets[route.name].reserve(usd):
            score = await self._compare(sample, judge, answer, route)
        if score.score is None:
            raise AuditFailedError("failed", score.reason or "the score is unknown")
        return score

    async def _compare(
        self, sample: AuditSample, judge: Model, answer: str, route: AuditedRoute
    ) -> judging.PairwiseScore:
        purpose = AuditCall(route, sample.decision.id, "reference")
        other = await self._judge.reference_answer(purpose, sample.reference, sample.query)
        score = judging.trivial_score(answer, other)
        if score is not None:
            return score
        messages = judged_messages(sample.query)
        as_a = await self._judge.verdict(
            purpose._replace(role="judge, A"), judge, messages, answer, other
        )
        as_b = await self._judge.verdict(
            purpose._replace(role="judge, B"), judge, messages, other, answer
        )
        return judging.score_verdicts(as_a, as_b)

    def _expected_usd(self, sample: AuditSample, judge: Model, answer: str) -> float | None:
        """The predicted cost of the reference's answer, and of two verdicts at their longest."""
        cost_of = self._dependencies.cost_of
        predictions = {p.model: p.cost_usd for p in sample.decision.predictions}
        reference = predictions.get(sample.reference)
        if reference is None:
            reference = cost_of(sample.reference, Usage(sample.tokens, _ANSWER_TOKENS))
        prompt = sample.tokens + len(answer) // 4 + _ANSWER_TOKENS + len(judging.PAIR_PROMPT) // 4
        verdict = cost_of(judge.name, Usage(prompt, JUDGE_TOKENS))
        return None if reference is None or verdict is None else reference + 2.0 * verdict

    # ── results ──────────────────────────────────────────────────────────────────────────────────

    def _label(self, sample: AuditSample, loss: float, comment: str) -> None:
        self._dependencies.label(
            Feedback(
                decision_id=sample.decision.id,
                score=1.0 - loss,
                source=AUDIT_SOURCE,
                comment=comment,
                created_s=self._clock(),
                key=label_key(sample.certificate),
            )
        )

    def _count(self, route: str, outcome: Outcome) -> None:
        self.outcomes[route][outcome] += 1
        self._dependencies.count_outcome(route, outcome)
