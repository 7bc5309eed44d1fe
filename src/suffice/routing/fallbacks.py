"""The operator's price ceiling for fallbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from suffice.policies.priors import cost_usd, output_tokens
from suffice.types import Model, PlanStep, Query

if TYPE_CHECKING:
    from suffice.budgets import StepCheck
    from suffice.routing.routes import Route
    from suffice.routing.selector import Selection

_UNKNOWN_DIFFICULTY = 0.5


def fallback_cost_check(
    route: Route,
    selection: Selection,
    query: Query,
    model_of: Callable[[str], Model],
) -> StepCheck | None:
    """Check the predicted cost of fallbacks against the ceiling that the operator configured.

    Args:
        route: of the query.
        selection: its difficulty predicts the length of the answer, as in the policies.
        query: its own limit bounds the answer.
        model_of: a model by its name.

    Returns:
        Why a step must not be tried, or None if it may be; None instead of a check if there is no
        ceiling: then every fallback that the operator lists is used.
    """
    ceiling_usd = route.fallback_max_usd_per_query
    if ceiling_usd is None or not route.has_fallbacks:
        return None
    limit_usd = ceiling_usd
    difficulty, x = selection.decision.difficulty, selection.features
    if difficulty is None:
        difficulty = _UNKNOWN_DIFFICULTY
    tokens = output_tokens(difficulty, query.max_output_tokens)

    def check(step: PlanStep) -> str | None:
        if step.role != "fallback":
            return None
        usd = cost_usd(model_of(step.model), x.input_tokens, tokens)
        if usd is None:
            return "its price is unknown, and fallback_max_usd_per_query limits fallbacks"
        if usd > limit_usd:
            return f"a fallback at ${usd:.6f} is above the ceiling of ${limit_usd:.6f}"
        return None

    return check
