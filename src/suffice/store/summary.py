"""What the store adds up to: for the command line, reports and the dashboard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from suffice.store import schema


def summarise(rows: Callable[[Any], list[dict[str, Any]]], since_s: float) -> dict[str, Any]:
    """Totals over what was recorded from `since_s` (unix time) on. `rows` runs a query.

    `cost_usd` leaves out the `cost_unknown` requests whose cost is unknown; it is None where none
    is known.
    """
    d, a, f = schema.decisions, schema.attempts, schema.feedback
    total = rows(
        sa.select(
            sa.func.count().label("requests"),
            sa.func.sum(d.c.cost_usd).label("cost_usd"),
            sa.func.sum(sa.case((d.c.cost_usd.is_(None), 1), else_=0)).label("cost_unknown"),
            sa.func.sum(d.c.input_tokens).label("input_tokens"),
            sa.func.sum(d.c.output_tokens).label("output_tokens"),
            sa.func.sum(d.c.attempts).label("attempts"),
            sa.func.sum(sa.case((d.c.status >= 400, 1), else_=0)).label("failed"),
            sa.func.sum(sa.case((d.c.model != d.c.chosen, 1), else_=0)).label("failovers"),
            sa.func.avg(d.c.overhead_ms).label("overhead_ms"),
            sa.func.avg(d.c.latency_s).label("latency_s"),
        ).where(d.c.created_s >= since_s)
    )[0]
    models = rows(
        sa.select(
            d.c.model,
            sa.func.count().label("requests"),
            sa.func.sum(d.c.cost_usd).label("cost_usd"),
        )
        .where(d.c.created_s >= since_s, d.c.model.is_not(None))
        .group_by(d.c.model)
        .order_by(sa.func.count().desc())
    )
    errors = rows(
        sa.select(a.c.model, a.c.outcome, sa.func.count().label("count"))
        .where(a.c.started_s >= since_s, a.c.outcome != "ok")
        .group_by(a.c.model, a.c.outcome)
    )
    scored = rows(
        sa.select(
            sa.func.count(sa.distinct(f.c.decision_id)).label("decisions"),
            sa.func.avg(f.c.score).label("mean"),
        ).where(f.c.created_s >= since_s, f.c.replaced_by.is_(None), f.c.kind == "explicit")
    )[0]
    for name in (
        "cost_unknown",
        "input_tokens",
        "output_tokens",
        "attempts",
        "failed",
        "failovers",
    ):
        total[name] = total[name] or 0  # the sum over no rows is null
    return {**total, "models": models, "errors": errors, "feedback": scored}
