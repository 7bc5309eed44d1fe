"""What a store offers, one Protocol per subject. `SqlStore` implements all of them.

A store is a `DecisionLog` that carries the other four as attributes: `feedback`, `registry`,
`leases` and `learner_states`. Code that needs only one of them asks for that one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from suffice.store.records import (
    FeedbackEvent,
    LearnerState,
    PolicySnapshot,
    Promotion,
    Spend,
    StoreHealth,
)
from suffice.types import Feedback, RequestRecord

Row = dict[str, Any]  # one row as plain data, by column
AUDIT_ROUTE_PREFIX = (
    "audit:"  # before a route's name: the route that calls of its audits are recorded under
)


class DecisionLog(Protocol):
    """Records of requests. `append` never blocks and never raises; all else may raise StoreError."""

    def append(self, record: RequestRecord) -> None:
        """Queue a record for writing."""

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Write everything that is queued. Returns False if that fails or takes too long."""

    def close(self) -> None:
        """Write everything that is queued and close the database. Idempotent."""

    def health(self) -> StoreHealth:
        """How the last write went, and how many records wait."""

    def warm_up(self) -> None:
        """Compile the statements of the request path, so that no client waits for them."""

    def decision(self, decision_id: str) -> Row | None:
        """One decision with its attempts and current feedback. None: unknown id."""

    def decisions(
        self, *, since_s: float | None = None, route: str | None = None, limit: int = 100
    ) -> Sequence[Row]:
        """The newest decisions first, without attempts and feedback."""

    def summary(self, *, since_s: float | None = None) -> Row:
        """Totals over the requests since `since_s` (unix time)."""

    def spend(self, route: str, since_s: float, until_s: float | None = None) -> Spend:
        """Cost of a route's requests in [since_s, until_s), unix time."""


class FeedbackLog(Protocol):
    """Every change of a decision's score, in the order in which the changes were stored."""

    def append(self, feedback: Sequence[Feedback]) -> None:
        """Queue scores of decisions that were appended before. Never blocks, never raises."""

    def add(self, feedback: Feedback, *, key_id: str | None = None) -> bool:
        """Store one score now. Returns False if the key may not score such a decision."""

    def add_batch(self, batch: Sequence[Feedback], *, key_id: str | None = None) -> Sequence[bool]:
        """`add` for many scores in one transaction."""

    def current(self, decision_id: str) -> Sequence[Row]:
        """The scores that count now for a decision, oldest first."""

    def events_since(
        self, seq: int, limit: int = 1000, *, route: str | None = None
    ) -> Sequence[FeedbackEvent]:
        """Changes after `seq`, at most `limit`, in the order in which they were stored."""


class PolicyRegistry(Protocol):
    """Immutable policy snapshots, and which of them each route serves."""

    def put(self, snapshot: PolicySnapshot) -> bool:
        """Store a snapshot. Returns False if it was there already."""

    def get(self, version: str) -> PolicySnapshot:
        """The snapshot of that version, verified."""

    def snapshots(self, route: str | None = None) -> Sequence[Row]:
        """All snapshots without their content, newest first."""

    def current(self, route: str) -> str | None:
        """The version that the route serves. None: the configured policy."""

    def promotions(self, route: str, limit: int = 100) -> Sequence[Promotion]:
        """The route's history, newest first."""

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
        """Make a snapshot the one that the route serves."""

    def rollback(self, route: str, *, by: str, now_s: float) -> Promotion:
        """Undo the route's last promotion that is not undone yet."""

    def generation(self) -> int:
        """A number that rises with every promotion and rollback of any route."""


class Leases(Protocol):
    """Which process may do the work of a name. A lease that is not renewed expires."""

    def acquire(self, name: str, owner: str, ttl_s: float, now_s: float) -> bool:
        """Take or extend a lease for `ttl_s` seconds. Returns False if another owner holds it."""

    def release(self, name: str, owner: str) -> bool:
        """Give a lease back. Returns False if the owner did not hold it."""


class LearnerStates(Protocol):
    """States of learners, each with its cursor into the feedback log."""

    def load(self, name: str, keys: Collection[str] | None = None) -> LearnerState:
        """The state saved last under `name`. keys: the parts to read; None = all."""

    def save(
        self,
        name: str,
        states: Mapping[str, bytes],
        cursor: int,
        *,
        expected_cursor: int,
        now_s: float,
    ) -> bool:
        """Compare and set. Returns False, and changes nothing, if the cursor was moved meanwhile."""


@runtime_checkable
class Store(DecisionLog, Protocol):
    """The decision log and everything else that a store keeps."""

    @property
    def feedback(self) -> FeedbackLog:
        """Scores of decisions."""

    @property
    def registry(self) -> PolicyRegistry:
        """Policy snapshots and promotions."""

    @property
    def leases(self) -> Leases:
        """Leases of background work."""

    @property
    def learner_states(self) -> LearnerStates:
        """States of learners."""
