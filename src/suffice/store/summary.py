"""Totals over stored requests, for the command line, reports and the dashboard."""

from __future__ import annotations

import sqlalchemy as sa

from suffice.store import schema
from suffice.store.engine import Database
from suffice.store.protocols import AUDIT_ROUTE_PREFIX, Row

_d, _a, _f = schema.decisions, schema.attempts, schema.feedback


def summarize(database: Database, since_s: float) -> Row:
    """Totals over the requests of clients from `since_s` (unix time) on, without calls of audits.

    Returns:
        Totals by name. `cost_usd` leaves out the `cost_unknown` requests whose cost is unknown; it
        is None if none is known. `models`, `errors` and `feedback` hold further totals.
    """
    requests = sa.and_(_d.c.created_s >= since_s, _d.c.route.not_like(AUDIT_ROUTE_PREFIX + "%"))
    total = database.rows(
        sa.select(
            sa.func.count().label("requests"),
            sa.func.sum(_d.c.cost_usd).label("cost_usd"),
            _count(_d.c.cost_usd.is_(None)).label("cost_unknown"),
            _sum(_d.c.input_tokens).label("input_tokens"),
            _sum(_d.c.output_tokens).label("output_tokens"),
            _sum(_d.c.attempts).label("attempts"),
            _count(_d.c.status >= 400).label("failed"),
            _count(_d.c.model != _d.c.chosen).label("failovers"),
            sa.func.avg(_d.c.overhead_ms).label("overhead_ms"),
            sa.func.avg(_d.c.latency_s).label("latency_s"),
        ).where(requests)
    )[0]
    models = database.rows(
        sa.select(
            _d.c.model,
            sa.func.count().label("requests"),
            sa.func.sum(_d.c.cost_usd).label("cost_usd"),
        )
        .where(requests, _d.c.model.is_not(None))
        .group_by(_d.c.model)
        .order_by(sa.func.count().desc())
    )
    errors = database.rows(
        sa.select(_a.c.model, _a.c.outcome, sa.func.count().label("count"))
        .join_from(_a, _d, _a.c.decision_id == _d.c.id)
        .where(requests, _a.c.outcome != "ok")
        .group_by(_a.c.model, _a.c.outcome)
    )
    scored = database.rows(
        sa.select(
            sa.func.count(sa.distinct(_f.c.decision_id)).label("decisions"),
            sa.func.avg(_f.c.score).label("mean"),
        ).where(_f.c.created_s >= since_s, _f.c.replaced_by.is_(None), _f.c.kind == "explicit")
    )[0]
    return {**total, "models": models, "errors": errors, "feedback": scored}


def _sum(column: sa.ColumnElement[int | None]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(column), 0)  # the sum over no rows is null


def _count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return _sum(sa.case((condition, 1), else_=0))
