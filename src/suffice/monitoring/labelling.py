"""The calls of an audit: the reference model asked what the client asked, and the judge's verdicts.

Each call is recorded as a decision of the route `audit:<name>`, whatever becomes of it, so that it
stands in spend, metrics and reports as the cost of auditing, and the day's cap can be read there.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from suffice import judging
from suffice.errors import AllAttemptsFailedError
from suffice.execution import Caller, Engine, Reply, sum_cost_usd
from suffice.execution.attempt import CostOf
from suffice.monitoring import reading
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
    Spend,
    Timeouts,
    Usage,
)

if TYPE_CHECKING:
    from suffice.config import AuditSpec  # pydantic: 100 ms

SOURCE = "audit"  # of the feedback; clients may not use it
ROUTE = "audit:"  # before a route's name: the route that the calls of its audits are recorded under
JUDGE_TOKENS = 1024  # as `suffice collect` gives its judge
_RETRIES = RetryPolicy(per_model=1, max_attempts=2, backoff_base_s=1.0, max_wait_s=10.0)
_TOTAL_S = 120.0  # for one call
_NEW_NAME = frozenset({"openai", "azure"})  # providers that call the limit max_completion_tokens
# Failures after which the upstream may charge for the prompt all the same.
_MAY_CHARGE = frozenset(
    {"timeout_first_chunk", "timeout_idle", "timeout_total", "cut", "malformed", "content_filter"}
)

Outcome = Literal[
    "labelled",  # a judge compared, or the verdict was plain
    "reference",  # the reference had served: loss 0
    "thinned",  # the reference had served, and too few of the paid audits bring a label
    "unreadable",  # the judge's verdict, or an answer, cannot be read
    "failed",  # a call failed, or the reference said nothing
    "unanswered",  # the decided model did not answer, or the client left
    "unfit",  # pictures, recordings, a very long prompt, a client's own order
    "capped",  # the day's money is spent
    "full",  # too many wait
    "store",  # what was spent today could not be read
    "unpriced",  # the price of the reference is unknown, so the cap could not be kept
]


class MonitorDependencies(NamedTuple):
    """What audits need of the router. spend(route, since_s) blocks and may raise StoreError; the
    rest neither blocks nor raises."""

    engine: Engine
    caller: Callable[[Query], Caller]
    cost_of: CostOf
    spend: Callable[[str, float], Spend]
    record: Callable[[RequestRecord], None]
    label: Callable[[Feedback], None]
    counted: Callable[[str, str], None]  # route, outcome
    new_id: Callable[[], str]


class AuditedRoute(NamedTuple):
    """A route that is audited."""

    name: str
    spec: AuditSpec
    timeouts: Timeouts


class AuditFailed(Exception):
    """An audit that brings no label; its outcome, and why in words."""

    def __init__(self, outcome: Outcome, why: str) -> None:
        super().__init__(why)
        self.outcome = outcome


class RequestRejected(AuditFailed):
    """The upstream found fault with the request."""


class _Manners(NamedTuple):
    """How a judge wants its parameters, learned from what it refuses."""

    limit: str
    cold: bool = True  # temperature 0

    def after(self, refusal: str) -> _Manners | None:
        """Another way to ask; None where there is none."""
        said = refusal.lower()
        if "max_completion_tokens" in said and self.limit == "max_tokens":
            return self._replace(limit="max_completion_tokens")
        if "temperature" in said and self.cold:
            return self._replace(cold=False)
        return None


class Asker:
    """Makes calls for audits."""

    def __init__(
        self,
        calls: MonitorDependencies,
        draw: random.Random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._calls = calls
        self._random = draw
        self._clock = clock
        self._manners: dict[str, _Manners] = {}

    async def reference(self, route: AuditedRoute, of: str, model: str, query: Query) -> str:
        """The reference model's answer to a client's query. Raises Unusable."""
        left = ("stream", "stream_options", "n")  # it is asked once, and whole
        fields = {k: v for k, v in query.fields.items() if k not in left}
        plain = msgspec.structs.replace(query, fields=fields, stream=False, headers=())
        return await self._ask(route, of, model, plain, "reference")

    async def verdict(
        self,
        route: AuditedRoute,
        of: str,
        judge: Model,
        asked: Sequence[Message],
        a: str,
        b: str,
        role: str,
    ) -> judging.Verdict:
        """The judge's word on two answers. Raises Unusable."""
        chat = judging.compare(asked, a, b)
        limit = "max_completion_tokens" if judge.provider in _NEW_NAME else "max_tokens"
        while True:
            manners = self._manners.setdefault(judge.name, _Manners(limit))
            query = _judge_query(judge, chat, manners)
            try:
                said = await self._ask(route, of, judge.name, query, role)
            except RequestRejected as refused:
                if self._manners[judge.name] == manners:  # else another audit has learned it
                    other = manners.after(str(refused))
                    if other is None:
                        raise
                    self._manners[judge.name] = other
                continue
            verdict = judging.read_verdict(said)
            if verdict is None:
                shown = said.strip()[-80:]
                raise AuditFailed("unreadable", f"{judge.name} gave no verdict (it ends {shown!r})")
            return verdict

    async def _ask(self, route: AuditedRoute, of: str, model: str, query: Query, role: str) -> str:
        decision = _aside(self._calls.new_id(), route.name, model, role, of)
        tokens = sum(len(m.text) for m in query.messages) // 4
        own = route.timeouts
        tried: list[Attempt] = []
        reply: Reply | None = None
        status, error = 499, "the gateway stopped"
        started = perf_counter()
        try:
            reply = await self._calls.engine.run(
                decision.plan,
                self._calls.caller(query),
                stream=False,
                timeouts=msgspec.structs.replace(
                    own, total_s=min(own.total_s, _TOTAL_S), first_reply_s=None
                ),
                retries=_RETRIES,
                cost_of=self._calls.cost_of,
                seed=self._random.getrandbits(32),
                input_tokens=tokens,
                attempts=tried,
            )
            status, error = 200, ""
        except AllAttemptsFailedError as failed:
            status, error = 502, str(failed)
            kind = RequestRejected if failed.last.kind == "bad_request" else AuditFailed
            raise kind("failed", error) from None
        finally:
            text = None if reply is None else reading.whole(reply.body)
            usage, cost_usd = self._priced(model, reply, tried, tokens, len(text or "") // 4)
            self._calls.record(
                RequestRecord(
                    decision=decision,
                    attempts=tuple(tried),
                    created_s=self._clock(),
                    request_id=f"{SOURCE}-{of}",
                    status=status,
                    model=None if reply is None else reply.model,
                    usage=usage,
                    cost_usd=cost_usd,
                    latency_s=perf_counter() - started,
                    error=error or None,
                    metadata={"audit_of": of, "as": role},
                )
            )
        if text is None:
            raise AuditFailed("unreadable", f"the answer of {model} cannot be read")
        return text

    def _priced(
        self, model: str, reply: Reply | None, tried: list[Attempt], sent: int, said: int
    ) -> tuple[Usage | None, float | None]:
        """(usage, USD) of a call with its retries, so that a cap can rely on it: what the upstream
        did not count is estimated, and a call that broke off is taken to cost its prompt."""
        broken = sum(a.outcome in _MAY_CHARGE for a in tried)
        prompt = self._calls.cost_of(model, Usage(sent, 0))
        usd = sum_cost_usd([a for a in tried if a.outcome != "ok"])
        usage = None
        if reply is not None:
            usage = reply.usage or Usage(sent, said, estimated=True)
            last = self._calls.cost_of(model, usage)
            usd = None if usd is None or last is None else usd + last
        return usage, None if usd is None or prompt is None else usd + broken * prompt


def _judge_query(judge: Model, chat: judging.Chat, manners: _Manners) -> Query:
    tokens = min(JUDGE_TOKENS, judge.max_output_tokens or JUDGE_TOKENS)
    fields = {
        "model": msgspec.Raw(b'""'),
        "messages": msgspec.Raw(msgspec.json.encode(chat)),
        manners.limit: msgspec.Raw(b"%d" % tokens),
    }
    if manners.cold:
        fields["temperature"] = msgspec.Raw(b"0")
    return Query(
        dialect="openai",
        model=judge.name,
        messages=tuple([Message(m["role"], m["content"]) for m in chat]),
        fields=fields,
        max_output_tokens=tokens,
    )


def _aside(decision_id: str, route: str, model: str, role: str, of: str) -> Decision:
    """The decision that a call of an audit is recorded as."""
    return Decision(
        id=decision_id,
        model=model,
        plan=(PlanStep(model),),
        predictions=(Prediction(model, None, None, None, 1.0),),
        reason=f"{model} was asked by the audit of {of} ({role}).",
        policy=SOURCE,
        policy_version="audit-1",
        objective=Objective(kind="best"),
        basis="bypass",
        route=ROUTE + route,
    )
