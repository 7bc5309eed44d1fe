"""The money of one request: which models it may call, what it has reserved, what is settled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, nan
from typing import Self

import msgspec

from suffice.budgets.cost_bounds import RequestSize, format_usd
from suffice.budgets.daily_budget import DailyBudget
from suffice.budgets.query_costs import QueryCosts
from suffice.budgets.reranking import pacing_reason, reorder, sticky_index
from suffice.budgets.unlimited import NoReservation, StepCheck
from suffice.errors import BudgetExceededError, NoEligibleModelError
from suffice.store.protocols import DecisionLog
from suffice.types import (
    Attempt,
    Decision,
    ExcludedModel,
    Features,
    Model,
    PlanStep,
    Prediction,
    Session,
)

# Failures of a call that was refused before anything was generated: not billed.
UNBILLED = frozenset(
    {
        "connect",
        "timeout_connect",
        "rate_limit",
        "auth",
        "not_found",
        "bad_request",
        "context_length",
    }
)


class Reservation:
    """The money that one request may spend under a daily budget, a limit per query, or both.

    Methods are called in this order: `rerank`, `filter_plan`, `reserve_first`, then the guard before
    each further attempt. As an async context manager it settles every attempt exactly once, however
    the block ends; `keep_open` defers that to `settle_all`. Not safe for threads.
    """

    is_limited = True

    def __init__(
        self,
        route: str,
        size: RequestSize,
        model_of: Callable[[str], Model],
        budget: DailyBudget | None,
        usd_per_query: float | None,
        features: Features,
    ) -> None:
        self._route = route
        self._budget = budget
        self._in_tool_loop = features.in_tool_loop
        self._costs = QueryCosts(
            size,
            features,
            model_of,
            usd_per_query=usd_per_query,
            usd_per_day=None if budget is None else budget.usd_per_day,
            remaining_usd=inf if budget is None else budget.remaining_usd(),
        )
        self._reason_has_remaining = False
        self._id = ""
        self._calls = 0  # reserved so far; as many attempts were made or are under way
        self._settled = 0
        self._attempts: Sequence[Attempt] = ()
        self._deferred = False

    def restore(self, store: DecisionLog) -> None:
        """Load today's spend, unless that was done. Raises StoreError."""
        if self._budget is not None:
            self._budget.restore(store)

    def output_limit(self, model: str) -> int | None:
        """Output tokens that a call of this model must be limited to; `None` = the client's limit."""
        return self._costs.bound(model).output_limit

    # ── deciding ─────────────────────────────────────────────────────────────────────────────────

    def rerank(
        self, decision: Decision, session: Session | None, *, paced: bool, commit: bool
    ) -> Decision:
        """Put the model first that the day's budget is best spent on.

        Args:
            decision: The policy's decision.
            session: The conversation that the query belongs to.
            paced: Whether the route's own objective applies, not one that the client asked for.
            commit: Whether the request will be made. If not, no state changes.

        Returns:
            The decision, unchanged if the route has no daily budget.
        """
        self._id = decision.id
        self._costs.set_predictions(decision)
        budget = self._budget
        predictions = decision.predictions
        if budget is None:
            return decision
        unknown = any(p.quality is None for p in predictions)
        if not paced or decision.objective.kind != "usd_per_day" or unknown:
            if commit:
                budget.count_external()
            return decision
        failed = frozenset() if session is None else session.failed
        max_cost = self._costs.max_costs(predictions, failed)
        pacing = budget.decide(
            [p.model for p in predictions],
            [p.quality or 0.0 for p in predictions],
            [nan if p.cost_usd is None else p.cost_usd for p in predictions],
            max_cost,
            seed=decision.seed,
            commit=commit,
        )
        if pacing.action is None:
            return decision
        sticky = sticky_index(predictions, session, pacing, self._in_tool_loop)
        if sticky is not None and not budget.fits(max_cost[sticky]):
            sticky = None
        top = pacing.action if sticky is None else sticky
        reason = pacing_reason(decision, predictions[top], pacing, sticky=top != pacing.action)
        self._reason_has_remaining = True
        return msgspec.structs.replace(
            reorder(decision, top, pacing, failed, deterministic=sticky is not None),
            reason=f"{reason}; {self._remaining_text()}.",
        )

    def _remaining_text(self) -> str:
        if self._budget is None:
            return ""
        remaining = format_usd(self._budget.remaining_usd())
        return f"{remaining} of today's {format_usd(self._budget.usd_per_day)} left"

    # ── the whole plan ───────────────────────────────────────────────────────────────────────────

    def filter_plan(self, decision: Decision) -> Decision:
        """Remove the steps that the limits forbid, and put an affordable step first.

        Args:
            decision: The decision with its whole plan, fallbacks included.

        Returns:
            The decision with the steps that may be made.

        Raises:
            NoEligibleModelError: The limit per query leaves no model.
            BudgetExceededError: Only the daily budget is in the way.
        """
        refusals = {s.model: self._costs.refusal(s.model) for s in decision.plan}
        steps = [s for s in decision.plan if refusals[s.model] is None]
        excluded = tuple(
            [ExcludedModel(m, reason) for m, reason in refusals.items() if reason is not None]
        )
        if not steps:
            error = _no_model_left(self._route, excluded)
            raise error
        if self._budget is not None:
            first = next(
                (s for s in steps if self._budget.fits(self._costs.max_usd(s.model))), None
            )
            if first is None:
                raise self._exceeded(self._budget, steps)
            if first is not steps[0]:
                steps = [first, *(s for s in steps if s is not first)]
        elif not excluded:
            return decision
        return self._with_plan(decision, steps, excluded)

    def _with_plan(
        self, decision: Decision, steps: list[PlanStep], excluded: tuple[ExcludedModel, ...]
    ) -> Decision:
        """The decision with this plan. A fallback in front becomes the choice."""
        first, before = steps[0].model, decision.model
        plan = tuple(
            s if i == 0 or s.role == "fallback" else PlanStep(s.model, "failover")
            for i, s in enumerate(steps)
        )
        excluded = decision.excluded + excluded
        reason = decision.reason
        if first == before:
            if self._budget is not None and not self._reason_has_remaining:
                reason = f"{reason.removesuffix('.')}; {self._remaining_text()}."
            return msgspec.structs.replace(decision, plan=plan, excluded=excluded, reason=reason)
        cause = next((e.reason for e in excluded if e.model == before), None)
        if cause is None:
            cause = f"its maximum cost does not fit: {self._remaining_text()}"
        return msgspec.structs.replace(
            decision,
            plan=plan,
            excluded=excluded,
            model=first,
            predictions=self._with_certainty(decision.predictions, first),
            propensity=1.0,
            reason=f"{first}: instead of {before}, because {cause}.",
        )

    def _with_certainty(
        self, predictions: tuple[Prediction, ...], model: str
    ) -> tuple[Prediction, ...]:
        """The predictions with all probability on `model`, which is added if it is a fallback."""
        rows = [msgspec.structs.replace(p, propensity=float(p.model == model)) for p in predictions]
        if all(p.model != model for p in predictions):
            rows.append(self._costs.prediction(model))
        return tuple(rows)

    def _exceeded(self, budget: DailyBudget, steps: Sequence[PlanStep]) -> BudgetExceededError:
        return budget.exceeded(min(self._costs.max_usd(s.model) for s in steps))

    # ── calling ──────────────────────────────────────────────────────────────────────────────────

    def reserve_first(
        self, decision: Decision, attempts: Sequence[Attempt], check: StepCheck | None
    ) -> Decision:
        """Reserve for the first call.

        Args:
            decision: The decision as `filter_plan` returned it.
            attempts: The request's attempts. The engine appends each one when it ends.
            check: A further condition for a step.

        Returns:
            The decision, with another step first if another worker spent the money meanwhile.

        Raises:
            BudgetExceededError: Nothing can be reserved for any step.
        """
        self._attempts = attempts
        steps = list(decision.plan)
        for i, step in enumerate(steps):
            if (check is None or check(step) is None) and self.reserve(step) is None:
                if i == 0:
                    return decision
                return self._with_plan(decision, [*steps[i:], *steps[:i]], ())
        if self._budget is None:
            return decision
        raise self._exceeded(self._budget, steps)

    def attempt_guard(self, check: StepCheck | None) -> StepCheck | None:
        """The check that the engine makes before each further attempt: `check`, then `reserve`."""
        if self._budget is None or check is None:
            return check if self._budget is None else self.reserve
        return lambda step: check(step) or self.reserve(step)

    def reserve(self, step: PlanStep) -> str | None:
        """Reserve for a call that is about to be made, and settle the calls before it.

        Returns:
            `None`, or why the call must not be made.
        """
        budget = self._budget
        if budget is None:
            return None
        self.settle_all()
        max_cost_usd = self._costs.max_usd(step.model)
        call = f"{self._id}/{self._calls}"
        if not budget.reserve(call, step.model, self._costs.expected_usd(step.model), max_cost_usd):
            return f"it may cost {format_usd(max_cost_usd)}, and {self._remaining_text()}"
        self._calls += 1
        return None

    # ── settling ─────────────────────────────────────────────────────────────────────────────────

    def keep_open(self) -> None:
        """Do not settle at the end of the block: the reply is a stream that is still to be read."""
        self._deferred = True

    def settle_all(self) -> None:
        """Settle every reserved call that is not settled yet. Idempotent."""
        while self._settled < self._calls:
            i = self._settled
            self._settled += 1
            cost = billed_usd(self._attempts[i]) if i < len(self._attempts) else None
            if self._budget is not None:
                self._budget.settle(f"{self._id}/{i}", cost)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None or not self._deferred:
            self.settle_all()


AnyReservation = Reservation | NoReservation


def billed_usd(attempt: Attempt) -> float | None:
    """What an attempt that is over has cost.

    An attempt that was refused before anything was generated costs nothing. One that failed later may
    have been billed although its tokens were not counted. A client that disconnected pays what was
    recorded.

    Returns:
        USD; `None` if it is unknown, so anything up to the bound.
    """
    if attempt.usage is not None or attempt.outcome in ("ok", "cancelled"):
        return attempt.cost_usd
    return 0.0 if attempt.outcome in UNBILLED else None


def _no_model_left(route: str, excluded: tuple[ExcludedModel, ...]) -> NoEligibleModelError:
    listed = "; ".join(f"{e.model}: {e.reason}" for e in excluded)
    return NoEligibleModelError(
        f"The money limits of {route!r} leave no model for this query. {listed}.",
        reasons={e.model: e.reason for e in excluded},
        permanent=True,
    )
