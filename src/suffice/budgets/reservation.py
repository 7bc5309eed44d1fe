"""The money of one request: which models it may call, what it has reserved, what is settled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isfinite, nan
from typing import Self

import msgspec

from suffice.budgets.cost_bounds import CostBound, RequestSize, cost_bound, format_usd
from suffice.budgets.daily_budget import DailyBudget
from suffice.budgets.pacer import PacingDecision
from suffice.errors import BudgetExceededError, NoEligibleModelError
from suffice.policies.priors import cost_usd, output_tokens
from suffice.policies.stickiness import SWITCH_QUALITY_GAIN
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

# Why a step must not be attempted; None if it may be.
StepCheck = Callable[[PlanStep], str | None]

# An answer may be this many times as long as predicted before a limit per query cuts it.
_LENGTH_MARGIN = 2.0

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
        self._usd_per_query = usd_per_query
        self._size = size
        self._model_of = model_of
        self._features = features
        self._bounds: dict[str, CostBound] = {}
        self._remaining_usd = inf if budget is None else budget.remaining_usd()
        self._predicted_usd: dict[str, float] = {}
        self._output_tokens = 0  # expected, for models whose cost no policy predicts
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

    def bound(self, model: str) -> CostBound:
        """What a call of this model may cost, and with which output limit it must be sent."""
        bound = self._bounds.get(model)
        if bound is None:
            bound = self._bounds[model] = cost_bound(
                self._model_of(model),
                self._size,
                usd_per_query=self._usd_per_query,
                usd_per_day=None if self._budget is None else self._budget.usd_per_day,
                remaining_usd=self._remaining_usd,
            )
        return bound

    def output_limit(self, model: str) -> int | None:
        """Output tokens that a call of this model must be limited to; `None` = the client's limit."""
        return self.bound(model).output_limit

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
        self._note_predictions(decision)
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
        max_cost = self._max_costs(predictions, failed)
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
        sticky = self._sticky_index(predictions, session, pacing.action, pacing, max_cost)
        top = pacing.action if sticky is None else sticky
        self._reason_has_remaining = True
        return msgspec.structs.replace(
            _reorder(decision, top, pacing, failed, deterministic=sticky is not None),
            reason=self._reason(decision, predictions[top], pacing, top != pacing.action),
        )

    def _max_costs(
        self, predictions: tuple[Prediction, ...], failed: frozenset[str]
    ) -> list[float]:
        """The most that each candidate may cost; NaN for those that must not be called first."""
        bounds = [self.bound(p.model) for p in predictions]
        costs = [nan if b.refusal else b.max_cost_usd for b in bounds]
        usable = [
            isfinite(cost) and p.model not in failed
            for p, cost in zip(predictions, costs, strict=True)
        ]
        if not any(usable):
            return costs
        return [cost if ok else nan for cost, ok in zip(costs, usable, strict=True)]

    def _sticky_index(
        self,
        predictions: tuple[Prediction, ...],
        session: Session | None,
        action: int,
        pacing: PacingDecision,
        max_cost: list[float],
    ) -> int | None:
        """The index of the conversation's model if the conversation keeps it."""
        names = [p.model for p in predictions]
        if self._budget is None or session is None or session.incumbent not in names:
            return None
        index = names.index(session.incumbent)
        if not isfinite(max_cost[index]) or not self._budget.fits(max_cost[index]):
            return None
        if index == action or self._features.in_tool_loop:
            return index
        if pacing.quality_per_usd == inf:
            return None  # only the cheapest is within the pace
        gain = (predictions[action].quality or 0.0) - (predictions[index].quality or 0.0)
        return None if gain > SWITCH_QUALITY_GAIN else index

    def _reason(
        self, decision: Decision, top: Prediction, pacing: PacingDecision, keeps_model: bool
    ) -> str:
        cost = "an unknown price" if top.cost_usd is None else format_usd(top.cost_usd)
        text = f"{top.model}: predicted quality {top.quality:.2f} ({decision.basis}) at {cost}"
        if keeps_model:
            text += "; the conversation stays on its model"
        elif pacing.quality_per_usd == inf:
            text += f"; {pacing.reason or 'the budget left per request pays for the cheapest only'}"
        elif pacing.quality_per_usd == 0.0:
            text += "; the budget allows the best"
        return f"{text}; {self._remaining_text()}."

    def _remaining_text(self) -> str:
        if self._budget is None:
            return ""
        remaining = format_usd(self._budget.remaining_usd())
        return f"{remaining} of today's {format_usd(self._budget.usd_per_day)} left"

    def _note_predictions(self, decision: Decision) -> None:
        self._id = decision.id
        difficulty = 0.5 if decision.difficulty is None else decision.difficulty
        self._output_tokens = output_tokens(difficulty, None)
        self._predicted_usd = {
            p.model: p.cost_usd for p in decision.predictions if p.cost_usd is not None
        }

    def predicted_usd(self, model: str) -> float:
        """The expected cost of a call; NaN if unknown. Fallbacks are estimated from their price."""
        usd = self._predicted_usd.get(model)
        if usd is None:
            estimate = cost_usd(
                self._model_of(model), self._features.input_tokens, self._output_tokens
            )
            usd = self._predicted_usd[model] = nan if estimate is None else estimate
        return usd

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
        refusals = {s.model: self._refusal(s.model) for s in decision.plan}
        steps = [s for s in decision.plan if refusals[s.model] is None]
        excluded = tuple(
            [ExcludedModel(m, reason) for m, reason in refusals.items() if reason is not None]
        )
        if not steps:
            listed = "; ".join(f"{e.model}: {e.reason}" for e in excluded)
            raise NoEligibleModelError(
                f"The money limits of {self._route!r} leave no model for this query. {listed}.",
                reasons={e.model: e.reason for e in excluded},
                permanent=True,
            )
        if self._budget is not None:
            first = next(
                (s for s in steps if self._budget.fits(self.bound(s.model).max_cost_usd)), None
            )
            if first is None:
                raise self._exceeded(self._budget, steps)
            if first is not steps[0]:
                steps = [first, *(s for s in steps if s is not first)]
        elif not excluded:
            return decision
        return self._with_plan(decision, steps, excluded)

    def _refusal(self, model: str) -> str | None:
        """Why this model must not be called at all."""
        bound = self.bound(model)
        limit = self._usd_per_query
        if bound.refusal is not None or limit is None or self._size.output_limit is not None:
            return bound.refusal
        # Only our own limit bounds the answer. It should seldom cut one.
        input_price = (self._model_of(model).price.input_usd_per_mtok or 0.0) / 1e6
        answer_usd = max(0.0, self.predicted_usd(model) - self._features.input_tokens * input_price)
        long_usd = (
            self._size.likely_input * input_price + _LENGTH_MARGIN * self._size.choices * answer_usd
        )
        if long_usd > limit:
            return (
                f"a long answer would cost {format_usd(long_usd)}, above {format_usd(limit)} "
                "per query"
            )
        return None

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
            predictions=self._predictions_for(decision.predictions, first),
            propensity=1.0,
            reason=f"{first}: instead of {before}, because {cause}.",
        )

    def _predictions_for(
        self, predictions: tuple[Prediction, ...], model: str
    ) -> tuple[Prediction, ...]:
        """The predictions with all probability on `model`, which is added if it is a fallback."""
        rows = [msgspec.structs.replace(p, propensity=float(p.model == model)) for p in predictions]
        if all(p.model != model for p in predictions):
            usd = self.predicted_usd(model)
            quality = self._model_of(model).quality
            rows.append(Prediction(model, quality, usd if isfinite(usd) else None, None, 1.0))
        return tuple(rows)

    def _exceeded(self, budget: DailyBudget, steps: Sequence[PlanStep]) -> BudgetExceededError:
        return budget.exceeded(min(self.bound(s.model).max_cost_usd for s in steps))

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
        max_cost_usd = self.bound(step.model).max_cost_usd
        call = f"{self._id}/{self._calls}"
        if not budget.reserve(call, step.model, self.predicted_usd(step.model), max_cost_usd):
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


def _reorder(
    decision: Decision,
    top: int,
    pacing: PacingDecision,
    failed: frozenset[str],
    *,
    deterministic: bool,
) -> Decision:
    """The decision with candidate `top` first and the others by worth at the pacer's multiplier."""
    predictions = decision.predictions
    multiplier = pacing.quality_per_usd

    def worth(i: int) -> tuple[bool, float, float]:
        p = predictions[i]
        usd = inf if p.cost_usd is None else p.cost_usd
        value = -usd if inf in (multiplier, usd) else (p.quality or 0.0) - multiplier * usd
        return (p.model not in failed, value, -usd)

    index_of = {p.model: i for i, p in enumerate(predictions)}
    planned = [index_of[s.model] for s in decision.plan if s.model in index_of]
    others = sorted((i for i in planned if i != top), key=worth, reverse=True)
    plan = [PlanStep(predictions[top].model, "choice")]
    plan += [PlanStep(predictions[i].model, "failover") for i in others]
    propensities = (
        [float(i == top) for i in range(len(predictions))] if deterministic else pacing.propensities
    )
    return msgspec.structs.replace(
        decision,
        model=predictions[top].model,
        plan=tuple(plan),
        predictions=tuple(
            [
                msgspec.structs.replace(p, propensity=share)
                for p, share in zip(predictions, propensities, strict=True)
            ]
        ),
        propensity=propensities[top],
    )
