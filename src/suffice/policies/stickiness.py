"""Whether a conversation keeps its model."""

from __future__ import annotations

from collections.abc import Sequence

from suffice.policies.prepared_pool import QueryPredictions
from suffice.types import Features, Objective, Session

SWITCH_QUALITY_GAIN = 0.15  # predicted quality that another model must add to replace the incumbent


def find_incumbent(names: Sequence[str], session: Session | None) -> int | None:
    """The index of the model that a conversation is with, unless it failed or is not there."""
    if session is None or session.incumbent is None or session.incumbent in session.failed:
        return None
    return names.index(session.incumbent) if session.incumbent in names else None


def sticky_reason(
    x: Features,
    incumbent: int,
    choice: int,
    predictions: QueryPredictions,
    switching_cost_usd: float,
    objective: Objective,
) -> str:
    """Why a conversation keeps its model, as a sentence; "" if it changes."""
    if x.in_tool_loop:
        return "The conversation keeps its model: it is inside a tool loop."
    gain = predictions.quality[choice] - predictions.quality[incumbent]
    if gain > SWITCH_QUALITY_GAIN and objective.kind != "cheapest":
        return ""
    # The incumbent's cost has the cached discount already. The switching cost is the margin for a
    # later return to it.
    staying_usd, leaving_usd = predictions.cost_usd[incumbent], predictions.cost_usd[choice]
    if (
        staying_usd is not None
        and leaving_usd is not None
        and staying_usd - leaving_usd > switching_cost_usd
    ):
        return ""
    if switching_cost_usd > 0.0:
        return (
            "The conversation keeps its model: leaving its cached prefix costs "
            f"${switching_cost_usd:.6f}, more than the change would gain."
        )
    return "The conversation keeps its model: the change would gain too little."
