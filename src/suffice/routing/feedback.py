"""Feedback from clients: validated, stored, observed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, cast

from suffice.errors import NotFoundError
from suffice.feedback import validation
from suffice.types import Feedback

if TYPE_CHECKING:
    from suffice.routing.services import Services
    from suffice.telemetry import Telemetry


class FeedbackDetails(TypedDict, total=False):
    """What may be said of a score."""

    verdict: str | None  # "good" (1) or "bad" (0) instead of a score
    source: str  # who scores; "user" if left out
    comment: str | None
    key: str | None  # tells scores of one source apart
    created_s: float | str | None  # when it was scored, unix time or ISO 8601; None = now


class FeedbackResult(TypedDict, total=False):
    """What became of one item of a batch."""

    decision_id: str
    status: str  # "stored", "not_found" or "invalid"
    message: str  # why it was not stored
    param: str  # the field at fault


class FeedbackService:
    """Takes scores of decisions."""

    def __init__(self, services: Services, telemetry: Telemetry) -> None:
        self._services = services
        self._telemetry = telemetry

    def add(
        self,
        decision_id: str,
        score: float | None,
        details: FeedbackDetails,
        key_id: str | None,
    ) -> Feedback:
        """Store one score.

        Args:
            decision_id: what is scored.
            score: in [0, 1]; None if `details` has a verdict.
            details: more about the score.
            key_id: the client's key, which may score its own decisions only; None = any.

        Returns:
            The score as it is stored.

        Raises:
            NotFoundError: there is no such decision.
            BadRequestError: a field is missing or has the wrong type.
            UnprocessableError: a field is out of range.
            StoreError: the score cannot be stored now.
        """
        fields = {"decision_id": decision_id, "score": score, **details}
        fields["created"] = fields.pop("created_s", None)
        feedback = validation.validate_feedback(fields, time.time())
        if not self._services.store.feedback.add(feedback, key_id=key_id):
            raise NotFoundError(_unknown(feedback.decision_id), param="decision_id")
        self._telemetry.feedback(feedback)
        return feedback

    def add_batch(
        self, batch: Sequence[Mapping[str, object]], key_id: str | None
    ) -> list[FeedbackResult]:
        """Store up to 1,000 scores in one transaction; one result per item, in order."""
        items = validation.validate_batch(batch, time.time())
        scores = [item for item in items if isinstance(item, Feedback)]
        stored = iter(self._services.store.feedback.add_batch(scores, key_id=key_id))
        results: list[FeedbackResult] = []
        for item in items:
            if not isinstance(item, Feedback):
                results.append(cast(FeedbackResult, item))  # what validation says of it
            elif next(stored):
                self._telemetry.feedback(item)
                results.append({"decision_id": item.decision_id, "status": "stored"})
            else:
                results.append(
                    {
                        "decision_id": item.decision_id,
                        "status": "not_found",
                        "message": _unknown(item.decision_id),
                        "param": "decision_id",
                    }
                )
        return results


def _unknown(decision_id: str) -> str:
    return f"There is no decision {decision_id!r}."
