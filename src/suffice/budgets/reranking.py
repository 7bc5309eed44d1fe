"""A decision's plan in the order in which the daily budget is best spent."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import msgspec

from suffice.budgets.cost_bounds import format_usd
from suffice.budgets.pacer import PacingDecision
from suffice.policies.stickiness import SWITCH_QUALITY_GAIN
from suffice.types import Decision, PlanStep, Prediction, Session


def sticky_index(
    predictions: Sequence[Prediction],
    session: Session | None,
    pacing: PacingDecision,
    in_tool_loop: bool,
) -> int | None:
    """Find the candidate that a conversation should keep.

    Args:
        predictions: Of the candidates.
        session: The conversation.
        pacing: The pacer's decision.
        in_tool_loop: Whether the query answers a tool call, so that a switch would lose its context.

    Returns:
        The index of the conversation's model; `None` if the pacer's choice should serve.
    """
    names = [p.model for p in predictions]
    if session is None or session.incumbent not in names or pacing.action is None:
        return None
    index = names.index(session.incumbent)
    if index == pacing.action or in_tool_loop:
        return index
    if pacing.quality_per_usd == inf:
        return None  # only the cheapest is within the pace
    gain = (predictions[pacing.action].quality or 0.0) - (predictions[index].quality or 0.0)
    return None if gain > SWITCH_QUALITY_GAIN else index


def pacing_reason(
    decision: Decision, top: Prediction, pacing: PacingDecision, *, sticky: bool
) -> str:
    """The reason for the candidate that comes first; `sticky` = the conversation keeps its model."""
    cost = "an unknown price" if top.cost_usd is None else format_usd(top.cost_usd)
    text = f"{top.model}: predicted quality {top.quality:.2f} ({decision.basis}) at {cost}"
    if sticky:
        return f"{text}; the conversation stays on its model"
    if pacing.quality_per_usd == inf:
        return (
            f"{text}; {pacing.reason or 'the budget left per request pays for the cheapest only'}"
        )
    return f"{text}; the budget allows the best" if pacing.quality_per_usd == 0.0 else text


def reorder(
    decision: Decision,
    top: int,
    pacing: PacingDecision,
    failed: frozenset[str],
    *,
    deterministic: bool,
) -> Decision:
    """Put candidate `top` first, and the others by their worth at the pacer's multiplier.

    Args:
        decision: The policy's decision.
        top: Index of the candidate.
        pacing: The pacer's decision.
        failed: Models that failed in this conversation; they come last.
        deterministic: Whether `top` was certain to come first, not drawn by the pacer.

    Returns:
        The decision with its plan and propensities.
    """
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
