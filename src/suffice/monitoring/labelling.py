"""The calls of an audit: the reference model's answer to the client's query, and the judge's verdicts.

Each call is recorded as a decision of the route `audit:<name>`, so that it counts in spend, metrics and
reports as the cost of auditing, and the daily cap can be checked against the store.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from suffice import judging
from suffice.dialects import openai_message
from suffice.errors import AllAttemptsFailedError
from suffice.execution import Caller, Engine, Reply
from suffice.execution.attempt import CostOf
from suffice.model_client import ModelCall, ModelClient
from suffice.store.protocols import AUDIT_ROUTE_PREFIX
from suffice.store.records import Spend
from suffice.types import (
    Attempt,
    Decision,
    Feedback,
    Message,
    Model,
    Objective,
    PlanStep,
    Prediction,
    Query,
    RequestRecord,
    RetryPolicy,
    Timeouts,
)

if TYPE_CHECKING:
    from suffice.config import AuditSpec  # pydantic: 100 ms

AUDIT_SOURCE = "audit"  # of the feedback; clients must not use it
JUDGE_TOKENS = 1024  # as `suffice collect` gives its judge
_RETRIES = RetryPolicy(per_model=1, max_attempts=2, backoff_base_s=1.0, max_wait_s=10.0)
# Fields, apart from the messages, in which the client asks for the form of an answer.
_FORM = ("tools", "functions", "response_format")
_TOTAL_S = 120.0  # for one call with its retries

Outcome = Literal[
    "labelled",  # the judge compared, or the score was trivial
    "reference",  # the reference had served: loss 0
    "subsampled",  # the reference had served, and too few of the paid audits bring a label
    "unreadable",  # the judge's verdict, or an answer, cannot be read
    "failed",  # a call failed, or the reference's answer is empty
    "unanswered",  # the decided model did not answer, or the client disconnected
    "ineligible",  # media, a very long prompt, or the client's own order
    "capped",  # the daily budget of audits is spent
    "queue_full",  # too many audits wait
    "store",  # today's spend could not be read
    "unknown_price",  # the reference has no price, so the cap could not be kept
]


class MonitorDependencies(NamedTuple):
    """What audits need of the router. None of it raises, except `spend`."""

    engine: Engine
    caller: Callable[[Query], Caller]
    cost_of: CostOf
    spend: Callable[[str, float], Spend]
    """(route, since_s): blocks, and may raise StoreError."""
    record: Callable[[RequestRecord], None]
    label: Callable[[Feedback], None]
    count_outcome: Callable[[str, str], None]
    """(route, outcome): counts an audit."""
    new_id: Callable[[], str]


class AuditedRoute(NamedTuple):
    """A route whose decisions are audited."""

    name: str
    spec: AuditSpec
    timeouts: Timeouts


class AuditFailedError(Exception):  # an outcome of an audit, not a fault
    """An audit that brings no label, with the reason in words."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


class AuditCall(NamedTuple):
    """What a call of an audit is made for."""

    route: AuditedRoute
    decision_id: str
    """Of the audited decision."""
    role: str
    """Of the model that is called, for the record."""


class JudgeClient:
    """Makes the calls of audits.

    Args:
        dependencies: What audits need of the router.
        rng: Seeds the jitter of retries.
        clock: Returns unix seconds.
    """

    def __init__(
        self,
        dependencies: MonitorDependencies,
        rng: random.Random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._dependencies = dependencies
        self._rng = rng
        self._clock = clock
        self._client = ModelClient(
            dependencies.engine, dependencies.caller, dependencies.cost_of, retries=_RETRIES
        )

    async def reference_answer(self, purpose: AuditCall, model: str, query: Query) -> str:
        """Ask the reference model what the client asked.

        Args:
            purpose: What the call is made for.
            model: The reference model.
            query: The client's query.

        Returns:
            The text of the answer.

        Raises:
            AuditFailedError: There is no answer, or none that can be read.
        """
        dropped = ("stream", "stream_options", "n")  # one whole answer is enough
        fields = {k: v for k, v in query.fields.items() if k not in dropped}
        whole = msgspec.structs.replace(query, fields=fields, stream=False, headers=())
        try:
            return await self._complete(purpose, model, whole)
        except AllAttemptsFailedError as error:
            raise AuditFailedError("failed", str(error)) from None

    async def verdict(
        self, purpose: AuditCall, judge: Model, messages: Sequence[Message], a: str, b: str
    ) -> judging.Verdict:
        """Ask the judge for a verdict on two answers.

        Args:
            purpose: What the call is made for.
            judge: The judge.
            messages: The conversation that was answered.
            a: The answer shown as A.
            b: The answer shown as B.

        Returns:
            The verdict.

        Raises:
            AuditFailedError: There is no verdict, or none that can be read.
        """
        chat = judging.compare(messages, a, b)
        call = ModelCall(
            judge,
            msgspec.json.encode(chat),
            tuple([Message(m["role"], m["content"]) for m in chat]),
            JUDGE_TOKENS,
        )
        try:
            text = await self._client.ask(
                call, lambda query: self._complete(purpose, judge.name, query)
            )
        except AllAttemptsFailedError as error:
            raise AuditFailedError("failed", str(error)) from None
        verdict = judging.read_verdict(text)
        if verdict is None:
            end = text.strip()[-80:]
            raise AuditFailedError("unreadable", f"{judge.name} gave no verdict (it ends {end!r})")
        return verdict

    async def _complete(self, purpose: AuditCall, model: str, query: Query) -> str:
        """Make a call and record it. Raises AllAttemptsFailedError, or AuditFailedError if unreadable."""
        timeouts = purpose.route.timeouts
        input_tokens = sum(len(m.text) for m in query.messages) // 4
        attempts: list[Attempt] = []
        reply: Reply | None = None
        status, error = 499, "the gateway stopped"
        started = perf_counter()
        try:
            reply = await self._client.complete(
                model,
                query,
                timeouts=msgspec.structs.replace(
                    timeouts, total_s=min(timeouts.total_s, _TOTAL_S), first_reply_s=None
                ),
                attempts=attempts,
                input_tokens=input_tokens,
                seed=self._rng.getrandbits(32),
            )
            status, error = 200, ""
        except AllAttemptsFailedError as failed:
            status, error = 502, str(failed)
            raise
        finally:
            text = None if reply is None else openai_message.text_of_completion(reply.body)
            usage, cost_usd = self._client.estimate_cost(
                model,
                reply,
                attempts,
                input_tokens=input_tokens,
                output_tokens=len(text or "") // 4,
            )
            self._dependencies.record(
                RequestRecord(
                    decision=_internal_decision(self._dependencies.new_id(), purpose, model),
                    attempts=tuple(attempts),
                    created_s=self._clock(),
                    request_id=f"{AUDIT_SOURCE}-{purpose.decision_id}",
                    status=status,
                    model=None if reply is None else reply.model,
                    usage=usage,
                    cost_usd=cost_usd,
                    latency_s=perf_counter() - started,
                    error=error or None,
                    metadata={"audit_of": purpose.decision_id, "as": purpose.role},
                )
            )
        if text is None:
            raise AuditFailedError("unreadable", f"the answer of {model} cannot be read")
        return text


def judged_messages(query: Query) -> tuple[Message, ...]:
    """The conversation as a judge gets it: its texts, then the tools and the format asked for."""
    form = [
        Message(name, bytes(query.fields[name]).decode("utf-8", "replace"))
        for name in _FORM
        if name in query.fields and bytes(query.fields[name]) != b"null"
    ]
    return (*query.messages, *form)


def _internal_decision(decision_id: str, purpose: AuditCall, model: str) -> Decision:
    """The decision that a call of an audit is recorded as."""
    return Decision(
        id=decision_id,
        model=model,
        plan=(PlanStep(model),),
        predictions=(Prediction(model, None, None, None, 1.0),),
        reason=f"{model} was called by the audit of {purpose.decision_id} ({purpose.role}).",
        policy=AUDIT_SOURCE,
        policy_version="audit-1",
        objective=Objective(kind="best"),
        basis="bypass",
        route=AUDIT_ROUTE_PREFIX + purpose.route.name,
    )
