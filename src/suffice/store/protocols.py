"""What a store must do, in four parts; `Store` is their sum.

All methods but the `append`s may raise StoreError. Times are unix seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from suffice.types import (
    Feedback,
    FeedbackEvent,
    LearnerState,
    PolicySnapshot,
    Promotion,
    RequestRecord,
    Spend,
    StoreHealth,
)


@runtime_checkable
class DecisionLog(Protocol):
    """Decisions with their attempts, in the order they were made."""

    def append(self, record: RequestRecord) -> None:
        """Take a record. Never blocks, never raises."""
        ...

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Write what is pending. False if that fails within `timeout_s`."""
        ...

    def close(self) -> None:
        """Write what is pending and close the database. Idempotent."""
        ...

    def health(self) -> StoreHealth:
        """Whether the last write succeeded, and what is pending."""
        ...

    def decision(self, decision_id: str) -> dict[str, Any] | None:
        """One decision with its attempts and feedback, or None."""
        ...

    def decisions(
        self, *, since_s: float | None = None, route: str | None = None, limit: int = 100
    ) -> Sequence[dict[str, Any]]:
        """The newest decisions first, without their attempts."""
        ...

    def summary(self, *, since_s: float | None = None) -> dict[str, Any]:
        """Totals of requests, cost, tokens and failures."""
        ...

    def spend(self, route: str, since_s: float, until_s: float | None = None) -> Spend:
        """What the requests of a route cost in a period."""
        ...


@runtime_checkable
class FeedbackLog(Protocol):
    """Scores of decisions; each change of a score is one row."""

    def append_feedback(self, feedback: Sequence[Feedback]) -> None:
        """Take scores of decisions that were appended before. Never blocks, never raises."""
        ...

    def add_feedback(self, feedback: Feedback, *, key_id: str | None = None) -> bool:
        """Store a score.

        Args:
            feedback: replaces an earlier score of the same (decision, source, key).
            key_id: the key whose decisions may be scored; None = all.

        Returns:
            False if there is no such decision.
        """
        ...

    def add_feedback_batch(
        self, batch: Sequence[Feedback], *, key_id: str | None = None
    ) -> Sequence[bool]:
        """`add_feedback` for many scores in one transaction."""
        ...

    def feedback(self, decision_id: str) -> Sequence[dict[str, Any]]:
        """The current scores of a decision, oldest first."""
        ...

    def feedback_since(
        self, seq: int, limit: int = 1000, *, route: str | None = None
    ) -> Sequence[FeedbackEvent]:
        """Changes of scores after `seq`, in the order they were stored."""
        ...


@runtime_checkable
class PolicyRegistry(Protocol):
    """Snapshots of policies, and which of them each route uses."""

    def put_snapshot(self, snapshot: PolicySnapshot) -> bool:
        """Keep a snapshot. False if it is there already."""
        ...

    def get_snapshot(self, version: str) -> PolicySnapshot:
        """A snapshot with its content."""
        ...

    def snapshots(self, route: str | None = None) -> Sequence[dict[str, Any]]:
        """All snapshots without their content, newest first."""
        ...

    def current(self, route: str) -> str | None:
        """The version that a route uses; None = the configured policy."""
        ...

    def promotions(self, route: str, limit: int = 100) -> Sequence[Promotion]:
        """The history of a route, newest first."""
        ...

    def promote(
        self,
        route: str,
        version: str,
        *,
        by: str,
        now_s: float,
        forced: bool = False,
        evidence: Mapping[str, Any] | None = None,
    ) -> Promotion:
        """Make a snapshot the one that a route uses."""
        ...

    def rollback(self, route: str, *, by: str, now_s: float) -> Promotion:
        """Undo the last promotion of a route that is not undone yet."""
        ...

    def generation(self) -> int:
        """A number that changes with every promotion and rollback of any route."""
        ...


@runtime_checkable
class Leases(Protocol):
    """Leases of background jobs, and the state that their holder keeps."""

    def acquire_lease(self, name: str, owner: str, ttl_s: float, now_s: float) -> bool:
        """Take or extend a lease. False if another owner holds it."""
        ...

    def renew_lease(self, name: str, owner: str, ttl_s: float, now_s: float) -> bool:
        """Extend a lease that `owner` holds."""
        ...

    def release_lease(self, name: str, owner: str) -> bool:
        """Give a lease back."""
        ...

    def learner_state(self, route: str, names: Collection[str] | None = None) -> LearnerState:
        """The saved state of a route's learner; names: which of its parts, None = all."""
        ...

    def save_learner_state(
        self,
        route: str,
        states: Mapping[str, bytes],
        cursor: int,
        *,
        expected_cursor: int,
        now_s: float,
    ) -> bool:
        """Save states if the stored cursor is still `expected_cursor`; else False."""
        ...


@runtime_checkable
class Store(DecisionLog, FeedbackLog, PolicyRegistry, Leases, Protocol):
    """Everything that is kept: decisions, feedback, snapshots, leases."""
