"""The reservation of a request that has no money limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from suffice.store.protocols import DecisionLog
from suffice.types import Attempt, Decision, PlanStep, Session

# Why a step must not be attempted; None if it may be.
StepCheck = Callable[[PlanStep], str | None]


class NoReservation:
    """The reservation of a request without any limit: every method returns its argument."""

    __slots__ = ()

    is_limited = False

    def restore(self, store: DecisionLog) -> None:
        """Do nothing."""

    def rerank(
        self, decision: Decision, session: Session | None, *, paced: bool, commit: bool
    ) -> Decision:
        """Return the decision."""
        return decision

    def filter_plan(self, decision: Decision) -> Decision:
        """Return the decision."""
        return decision

    def reserve_first(
        self, decision: Decision, attempts: Sequence[Attempt], check: StepCheck | None
    ) -> Decision:
        """Return the decision."""
        return decision

    def attempt_guard(self, check: StepCheck | None) -> StepCheck | None:
        """Return the check."""
        return check

    def output_limit(self, model: str) -> int | None:
        """Return `None`: calls are sent with the client's own limit."""
        return None

    def keep_open(self) -> None:
        """Do nothing."""

    def settle_all(self) -> None:
        """Do nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


UNLIMITED = NoReservation()
