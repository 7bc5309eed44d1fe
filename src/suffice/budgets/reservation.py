"""One request's money: which models it may call, what it has reserved, what is settled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isfinite, nan
from typing import Any

import msgspec

from suffice.budgets.cost_bounds import CostBound, RequestSize, bound, dollars
from suffice.budgets.daily_budget import DailyBudget
from suffice.budgets.pacer import PacingDecision
from suffice.errors import NoEligibleModelError
from suffice.policies.base import SWITCH_QUALITY_GAIN
from suffice.policies.priors import cost_usd, output_tokens
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

_ROOM = 2.0  # an answer may turn out as long as this times its prediction

# Failures of a call that was refused before anything was written: certainly not billed.
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
    """budget: the route's for the day; usd_per_query: what a call may cost at most; either may be
    None. Not safe for threads."""

    def __init__(
        self,
        route: str,
        size: RequestSize,
        model_of: Callable[[str], Model],
        budget: DailyBudget | None,
        usd_per_query: float | None,
        x: Features,
    ) -> None:
        self.route = route
        self.budget = budget
        self.usd_per_query = usd_per_query
        self._size = size
        self._model_of = model_of
        self._x = x
        self._bounds: dict[str, CostBound] = {}
        self._usd_left = inf if budget is None else budget.left_usd()
        self._predicted: dict[str, float] = {}
        self._output = 0  # tokens of an answer, where no policy predicts its cost
        self._said = False  # what is left of the day, in the reason
        self._id = ""
        self._calls = 0  # reserved so far; as many attempts were or are made
        self._settled = 0
        self._attempts: Sequence[Attempt] = ()

    def bound(self, model: str) -> CostBound:
        """What a call of this model may cost, and with which limit it must be sent."""
        found = self._bounds.get(model)
        if found is None:
            found = self._bounds[model] = bound(
                self._model_of(model),
                self._size,
                usd_per_query=self.usd_per_query,
                usd_per_day=None if self.budget is None else self.budget.usd_per_day,
                usd_left=self._usd_left,
            )
        return found

    # ── deciding ─────────────────────────────────────────────────────────────────────────────────

    def choose(
        self, decision: Decision, session: Session | None, *, paced: bool, counts: bool
    ) -> Decision:
        """The policy's decision with the model first that the day's budget is best spent on.

        session: of the conversation. paced: the route's own objective decides, not a wish of the
        client. counts: the request will be made; else nothing is changed.
        """
        self._predict(decision)
        budget = self.budget
        told = decision.predictions
        if budget is None:
            return decision
        unknown = any(p.quality is None for p in told)
        if not paced or decision.objective.kind != "usd_per_day" or unknown:
            if counts:
                budget.note()
            return decision
        failed = frozenset() if session is None else session.failed
        bounds = [self.bound(p.model) for p in told]
        worst = [nan if b.why_not else b.worst_usd for b in bounds]
        usable = [isfinite(w) and p.model not in failed for p, w in zip(told, worst, strict=True)]
        if any(usable):  # what failed in this conversation comes last, as the policy had it
            worst = [w if ok else nan for w, ok in zip(worst, usable, strict=True)]
        found = budget.pace(
            [p.model for p in told],
            [p.quality or 0.0 for p in told],
            [nan if p.cost_usd is None else p.cost_usd for p in told],
            worst,
            seed=decision.seed,
            counts=counts,
        )
        if found.action is None:
            return decision
        keeps = self._keeps(decision, session, found, worst)
        return self._reordered(decision, found, keeps, failed)

    def _keeps(
        self, decision: Decision, session: Session | None, found: PacingDecision, worst: list[float]
    ) -> int | None:
        """The place of a conversation's model, where it goes on with it."""
        told = decision.predictions
        names = [p.model for p in told]
        if session is None or session.incumbent not in names:
            return None
        assert self.budget is not None and found.action is not None
        at = names.index(session.incumbent)
        if not isfinite(worst[at]) or not self.budget.fits(worst[at]):
            return None
        if at == found.action or self._x.in_tool_loop:
            return at
        if found.quality_per_usd == inf:
            return None  # only the cheapest is within the pace
        gain = (told[found.action].quality or 0.0) - (told[at].quality or 0.0)
        return None if gain > SWITCH_QUALITY_GAIN else at

    def _reordered(
        self, decision: Decision, found: PacingDecision, keeps: int | None, failed: frozenset[str]
    ) -> Decision:
        told = decision.predictions
        talks = keeps is not None
        top = keeps if keeps is not None else found.action
        assert top is not None
        lam = found.quality_per_usd
        spread = [float(i == top) for i in range(len(told))] if talks else found.propensities

        def merit(i: int) -> tuple[bool, float, float]:
            usd = inf if told[i].cost_usd is None else told[i].cost_usd or 0.0
            quality = told[i].quality or 0.0
            worth = -usd if lam == inf or usd == inf else quality - lam * usd
            return (told[i].model not in failed, worth, -usd)

        place = {p.model: i for i, p in enumerate(told)}
        planned = [place[s.model] for s in decision.plan if s.model in place]
        rest = sorted((i for i in planned if i != top), key=merit, reverse=True)
        plan = [
            PlanStep(told[top].model, "choice"),
            *(PlanStep(told[i].model, "failover") for i in rest),
        ]
        return msgspec.structs.replace(
            decision,
            model=told[top].model,
            plan=tuple(plan),
            predictions=tuple(
                [
                    msgspec.structs.replace(p, propensity=q)
                    for p, q in zip(told, spread, strict=True)
                ]
            ),
            propensity=spread[top],
            reason=self._reason(decision, told[top], talks and top != found.action, found),
        )

    def _reason(
        self, decision: Decision, top: Prediction, stays: bool, found: PacingDecision
    ) -> str:
        cost = "an unknown price" if top.cost_usd is None else dollars(top.cost_usd)
        text = f"{top.model}: predicted quality {top.quality:.2f} ({decision.basis}) at {cost}"
        if stays:
            text += "; the conversation stays on its model"
        elif found.quality_per_usd == inf:
            text += f"; {found.reason or 'more is not left for each request: the cheapest'}"
        elif found.quality_per_usd == 0.0:
            text += "; the budget allows the best"
        self._said = True
        return f"{text}; {self._left()}."

    def _left(self) -> str:
        assert self.budget is not None
        left = dollars(self.budget.left_usd())
        return f"{left} of today's {dollars(self.budget.usd_per_day)} left"

    def _predict(self, decision: Decision) -> None:
        self._id = decision.id
        hard = 0.5 if decision.difficulty is None else decision.difficulty
        self._output = output_tokens(hard, None)
        self._predicted = {
            p.model: p.cost_usd for p in decision.predictions if p.cost_usd is not None
        }

    def predicted_usd(self, model: str) -> float:
        """What a call will probably cost; NaN where that is unknown. A fallback, of which no policy
        says anything, is predicted by its price."""
        found = self._predicted.get(model)
        if found is None:
            usd = cost_usd(self._model_of(model), self._x.input_tokens, self._output)
            found = self._predicted[model] = nan if usd is None else usd
        return found

    # ── the whole plan ───────────────────────────────────────────────────────────────────────────

    def check(self, decision: Decision) -> Decision:
        """The decision, fallbacks included, without what may not be called, and with a model first
        that can be paid now.

        Raises NoCandidate where a limit leaves no model, BudgetExceeded where only the day does.
        """
        out = {s.model: self._why_not(s.model) for s in decision.plan}
        steps = [s for s in decision.plan if out[s.model] is None]
        excluded = tuple([ExcludedModel(m, why) for m, why in out.items() if why is not None])
        if not steps:
            listed = "; ".join(f"{e.model}: {e.reason}" for e in excluded)
            raise NoEligibleModelError(
                f"The money limits of {self.route!r} leave no model for this query. {listed}.",
                reasons={e.model: e.reason for e in excluded},
                permanent=True,
            )
        if self.budget is not None:
            fit = [s for s in steps if self.budget.fits(self.bound(s.model).worst_usd)]
            if not fit:
                raise self._exceeded(steps)
            if fit[0] is not steps[0]:
                steps = [fit[0], *(s for s in steps if s is not fit[0])]
        elif not excluded:
            return decision
        return self._led(decision, steps, excluded)

    def _why_not(self, model: str) -> str | None:
        found = self.bound(model)
        limit = self.usd_per_query
        if found.why_not is not None or limit is None or self._size.limit is not None:
            return found.why_not
        # Nothing but our own limit bounds the answer, which should seldom be cut by it.
        price, likely = self._model_of(model).price, self._size.likely_input
        asked = (price.input_usd_per_mtok or 0.0) / 1e6
        answer = max(0.0, self.predicted_usd(model) - self._x.input_tokens * asked)
        usd = likely * asked + _ROOM * self._size.choices * answer
        if usd > limit:
            return f"a long answer would cost {dollars(usd)}, above {dollars(limit)} a query"
        return None

    def _led(
        self, decision: Decision, steps: list[PlanStep], excluded: tuple[ExcludedModel, ...]
    ) -> Decision:
        """The decision with this plan. A fallback in front has become the choice."""
        top, was = steps[0], decision.model
        plan = tuple(
            s if i == 0 or s.role == "fallback" else PlanStep(s.model, "failover")
            for i, s in enumerate(steps)
        )
        changes: dict[str, Any] = {"plan": plan, "excluded": decision.excluded + excluded}
        if top.model != was:
            told = [msgspec.structs.replace(p, propensity=0.0) for p in decision.predictions]
            mine = next((i for i, p in enumerate(told) if p.model == top.model), None)
            if mine is None:
                usd = self.predicted_usd(top.model)
                quality = self._model_of(top.model).quality
                told.append(
                    Prediction(top.model, quality, usd if isfinite(usd) else None, None, 1.0)
                )
            else:
                told[mine] = msgspec.structs.replace(told[mine], propensity=1.0)
            why = next((e.reason for e in excluded if e.model == was), None)
            if why is None:
                why = f"what it may cost does not fit: {self._left()}"
            changes.update(
                model=top.model,
                predictions=tuple(told),
                propensity=1.0,
                reason=f"{top.model}: instead of {was}, because {why}.",
            )
        elif self.budget is not None and not self._said:
            changes["reason"] = f"{decision.reason.removesuffix('.')}; {self._left()}."
        return msgspec.structs.replace(decision, **changes)

    def _exceeded(self, steps: Sequence[PlanStep]) -> Exception:
        assert self.budget is not None
        return self.budget.exceeded(min(self.bound(s.model).worst_usd for s in steps))

    # ── calling ──────────────────────────────────────────────────────────────────────────────────

    def begin(
        self,
        decision: Decision,
        attempts: Sequence[Attempt],
        also: Callable[[PlanStep], str | None] | None,
    ) -> Decision:
        """Reserve for the first call. attempts: fills as attempts end. also: a further check of a
        step. The decision comes back changed where another worker was faster with the money.

        Raises BudgetExceeded where nothing can be reserved.
        """
        self._attempts = attempts
        steps = list(decision.plan)
        for i, step in enumerate(steps):
            if (also is None or also(step) is None) and self.take(step) is None:
                if i == 0:
                    return decision
                return self._led(decision, [*steps[i:], *steps[:i]], ())
        raise self._exceeded(steps)

    def guard(
        self, also: Callable[[PlanStep], str | None] | None
    ) -> Callable[[PlanStep], str | None] | None:
        """What the engine asks before each further attempt: `also`, then `take`."""
        if self.budget is None or also is None:
            return also if self.budget is None else self.take
        return lambda step: also(step) or self.take(step)

    def take(self, step: PlanStep) -> str | None:
        """Reserve for a call about to be made; None, or why it must not be made. Settles those
        before it, which are over by now."""
        budget = self.budget
        if budget is None:
            return None
        self._settle_to(self._calls)
        worst = self.bound(step.model).worst_usd
        call = f"{self._id}/{self._calls}"
        if not budget.reserve(call, step.model, self.predicted_usd(step.model), worst):
            return f"it may cost {dollars(worst)}, and {self._left()}"
        self._calls += 1
        return None

    def close(self) -> None:
        """Settle whatever is not settled yet. Idempotent."""
        self._settle_to(self._calls)

    def _settle_to(self, n: int) -> None:
        while self._settled < n:
            i = self._settled
            self._settled += 1
            assert self.budget is not None
            cost = billed_usd(self._attempts[i]) if i < len(self._attempts) else None
            self.budget.settle(f"{self._id}/{i}", cost)


def billed_usd(attempt: Attempt) -> float | None:
    """What an attempt that is over has cost, as far as is known; None = anything up to its worst.

    One that was refused before anything was written costs nothing; one that failed later may have
    been billed although nobody counted its tokens. A client that left pays what was recorded.
    """
    if attempt.usage is not None or attempt.outcome in ("ok", "cancelled"):
        return attempt.cost_usd
    return 0.0 if attempt.outcome in UNBILLED else None
