"""One routed request from its selection to its one record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from suffice import features as feature_extraction
from suffice.errors import AllAttemptsFailedError, UpstreamError
from suffice.execution.attempt import CLIENT_DISCONNECTED
from suffice.types import Attempt, Decision, Features, Query, Usage

if TYPE_CHECKING:
    from suffice.budgets import StepCheck
    from suffice.execution import Reply
    from suffice.monitoring import AuditSample
    from suffice.routing.selector import Selection

CLIENT_CLOSED_REQUEST = 499
_STATUS_OF_KIND = {"rate_limit": 429, "overloaded": 503, "bad_request": 400}


class RoutedResponse:
    """What `Router.answer` returns: a whole reply, or a stream to read with `events`.

    It finishes exactly once, however it ends: reservations are settled and one record is made.

    Attributes:
        query: what the client asked.
        features: the query as numbers.
        decision: which models were to be tried.
        attempts: the calls that were made; complete when the response has finished.
        audit_sample: collects the answer for an audit; None = the decision is not audited.
        started: `perf_counter()` when the request came in.
        overhead_ms: our own time before the first attempt.
        reply: of the model that answered; None = none yet.
    """

    __slots__ = (
        "_finished",
        "_on_finish",
        "_reservation",
        "attempts",
        "audit_sample",
        "decision",
        "features",
        "overhead_ms",
        "query",
        "reply",
        "started",
    )

    def __init__(
        self,
        query: Query,
        selection: Selection,
        started: float,
        on_finish: Callable[[RoutedResponse, int, str | None], None],
    ) -> None:
        self.query = query
        self.features = selection.features
        self.decision = selection.decision
        self.attempts: list[Attempt] = []
        self.audit_sample: AuditSample | None = None
        self.started = started
        self.overhead_ms = 0.0
        self.reply: Reply | None = None
        self._reservation = selection.reservation
        self._on_finish = on_finish
        self._finished = False

    def reserve(self, check: StepCheck | None) -> Decision:
        """Reserve the money for the first attempt.

        Args:
            check: a further condition for a step.

        Returns:
            The decision that is carried out. It begins with another step than the selection's if
            another worker took the money meanwhile.
        """
        self.decision = self._reservation.reserve_first(self.decision, self.attempts, check)
        self.overhead_ms = (perf_counter() - self.started) * 1e3
        return self.decision

    # ── what was answered ────────────────────────────────────────────────────────────────────────

    @property
    def answered(self) -> Reply:
        """The reply. Fails if no model has answered."""
        assert self.reply is not None, "no model has answered"
        return self.reply

    @property
    def model(self) -> str:
        """The model that answered."""
        return self.answered.model

    @property
    def status(self) -> int:
        """The HTTP status of the reply."""
        return self.answered.status

    @property
    def body(self) -> bytes:
        """A whole reply; empty for a stream."""
        return self.answered.body

    @property
    def usage(self) -> Usage | None:
        """Tokens of the reply; of a stream, known at its end."""
        return self.answered.usage

    @property
    def cost_usd(self) -> float | None:
        """USD of all attempts; None = some price is unknown."""
        return self.answered.cost_usd

    @property
    def predicted_usd(self) -> float | None:
        """What the policy predicted for the model that answered."""
        model = self.answered.model
        return next((p.cost_usd for p in self.decision.predictions if p.model == model), None)

    def explanation(self) -> dict[str, object]:
        """The decision as plain data, with the signals that mattered."""
        return explain(explained(self.decision, self.features))

    async def events(self, *, include_usage: bool) -> AsyncIterator[bytes]:
        """Server-sent events as bytes, without the terminator. Finishes the response at their end.

        Args:
            include_usage: pass on the chunk that only carries usage.

        Yields:
            One or more whole events.

        Raises:
            UpstreamError: the upstream failed after the first content.
        """
        status, error = CLIENT_CLOSED_REQUEST, CLIENT_DISCONNECTED
        sample = self.audit_sample
        reply = self.answered
        try:
            while events := await reply.next_events():
                data = b""
                for event in events:
                    if sample is not None:
                        sample.append_event(event.raw)
                    kind = event.kind
                    if kind != "done" and (include_usage or kind != "usage"):
                        data += event.raw
                if data:
                    yield data
            status, error = 200, ""
        except UpstreamError as failure:
            status, error = 502, failure.message
            raise
        finally:
            await reply.aclose()
            self.finish(status, error or None)

    async def aclose(self) -> None:
        """Close the upstream. A stream that was not read to its end counts as left by the client."""
        await self.answered.aclose()
        self.finish(CLIENT_CLOSED_REQUEST, CLIENT_DISCONNECTED)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    def finish(self, status: int, error: str | None = None) -> None:
        """Settle the money and make the record, if that has not happened yet.

        Args:
            status: the HTTP status that the client got.
            error: what failed.
        """
        if not self._finished:
            self._finished = True
            self._reservation.settle_all()
            self._on_finish(self, status, error)

    def complete(self) -> None:
        """Finish a whole reply; leave a stream and its reservation open for its reader."""
        if self.query.stream:
            self._reservation.keep_open()
        else:
            self.finish(self.status)

    def __enter__(self) -> Self:
        """Finish the response if the block fails or is cancelled."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, AllAttemptsFailedError):
            error.decision, error.overhead_ms = self.decision, self.overhead_ms
            self.finish(_STATUS_OF_KIND.get(error.last.kind, 502), str(error))
        elif isinstance(error, asyncio.CancelledError):
            self.finish(CLIENT_CLOSED_REQUEST, CLIENT_DISCONNECTED)


def explained(decision: Decision, features: Features) -> Decision:
    """The decision with the signals that mattered, strongest first."""
    return msgspec.structs.replace(decision, features=feature_extraction.explain(features))


def explain(decision: Decision) -> dict[str, object]:
    """A decision as plain data, ready for JSON."""
    return {"object": "decision", **msgspec.to_builtins(decision)}
