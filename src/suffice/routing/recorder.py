"""What happens after a response: one record, and everything that observes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

from suffice.dialects.openai_message import parse_message
from suffice.execution import sum_cost_usd
from suffice.feedback import implicit
from suffice.types import RequestRecord

if TYPE_CHECKING:
    from suffice.routing.response import RoutedResponse
    from suffice.routing.routes import RouteTable
    from suffice.routing.services import Services
    from suffice.telemetry import Telemetry

# Observers neither block nor raise.
RecordObserver = Callable[[RequestRecord], None]
ResponseObserver = Callable[["RoutedResponse", RequestRecord], None]


class Recorder:
    """Makes the record of each response and hands it to the observers in order."""

    def __init__(
        self,
        on_record: tuple[RecordObserver, ...],
        on_response: tuple[ResponseObserver, ...],
        *,
        keep_prompts: bool,
    ) -> None:
        """Keep the observers.

        Args:
            on_record: need the record only.
            on_response: come after them and need the query or the reply too.
            keep_prompts: the record holds the messages.
        """
        self._on_record = on_record
        self._on_response = on_response
        self._keep_prompts = keep_prompts

    def finish(self, response: RoutedResponse, status: int, error: str | None) -> None:
        """Make the record of a response that is over.

        Args:
            response: as it ended.
            status: the HTTP status that the client got.
            error: what failed.
        """
        query, reply = response.query, response.reply
        attempts = tuple(response.attempts)
        record = RequestRecord(
            decision=response.decision,
            attempts=attempts,
            created_s=time.time(),
            request_id=query.request_id,
            status=status,
            model=None if reply is None else reply.model,
            usage=None if reply is None else reply.usage,
            cost_usd=sum_cost_usd(attempts) if reply is None else reply.cost_usd,
            latency_s=perf_counter() - response.started,
            first_chunk_s=None if reply is None else reply.first_chunk_s,
            overhead_ms=response.overhead_ms,
            dialect=query.dialect,
            stream=query.stream,
            session=query.session,
            key_id=query.key_id,
            features=response.features,
            prompt=bytes(query.fields["messages"]) if self._keep_prompts else None,
            error=error,
            metadata=query.options.metadata,
        )
        for observe_record in self._on_record:
            observe_record(record)
        for observe_response in self._on_response:
            observe_response(response, record)


class ImplicitFeedback:
    """Scores decisions by what their replies reveal: a broken schema, a refusal, a regeneration."""

    def __init__(self, routes: RouteTable, services: Services, telemetry: Telemetry) -> None:
        self._routes = routes
        self._services = services
        self._telemetry = telemetry
        self._regenerations = implicit.RegenerationDetector()

    def observe(self, response: RoutedResponse, record: RequestRecord) -> None:
        """Store the scores of a reply, if its route has implicit signals enabled."""
        route = self._routes.get(record.decision.route)
        if route is None or not route.implicit_feedback:
            return
        query, reply, enabled = response.query, response.reply, route.implicit_feedback
        regenerated = None
        if "retried" in enabled and record.status < 400:
            regenerated = self._regenerations.observe(
                record.decision.id,
                query,
                received_s=record.created_s - record.latency_s,
                completed_s=record.created_s,
            )
        scores = implicit.detect_implicit_feedback(
            record.decision,
            query.fields,
            record.attempts,
            None if reply is None or query.stream else parse_message(reply.body),
            enabled=enabled,
            now_s=record.created_s,
            max_output_tokens=query.max_output_tokens,
            regenerated_id=regenerated,
        )
        if scores:
            self._services.store.feedback.append(scores)
            for score in scores:
                self._telemetry.feedback(score)
