"""The store, read once from old to new, a page at a time, into sums that a report is made of."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from math import isfinite, log
from typing import Any

import msgspec

from suffice import features
from suffice.lab.savings.traffic import (
    BESIDE_FREE,
    BINS,
    COVERED,
    GUESSED,
    LOG_RATIO,
    LOG_SQUARE,
    PAID,
    RATIOS,
    SCORE,
    SCORED,
    SPENT,
    TAKEN,
    CandidateTotals,
    Labelled,
    RouteTotals,
    Source,
    Traffic,
)
from suffice.store import reader
from suffice.store.protocols import AUDIT_ROUTE_PREFIX as AUDITS
from suffice.types import Prediction

LEAST_USD = 1e-9  # a smaller prediction is that of a free model
_LEAST_SHARE = 1e-9  # a smaller propensity is none: its weight would drown all others
_PAGE = 5000


class _Detail(msgspec.Struct):
    predictions: tuple[Prediction, ...]


_decode = msgspec.json.Decoder(_Detail).decode


def read(url: str, *, since_s: float | None = None, route: str | None = None) -> Traffic:
    """Everything recorded since `since_s` (unix time), of one route or of all. Writes nothing.
    Raises StoreError."""
    import sqlalchemy as sa

    from suffice.store import schema

    found = Traffic()
    d = schema.decisions.c
    with reader.connect_readonly(url) as connection:
        span = _within(
            sa.select(sa.func.count(), sa.func.min(d.created_s), sa.func.max(d.created_s)),
            since_s,
            route,
        )
        n, first, last = connection.execute(span).one()
        if n:
            found.first_s, found.last_s = float(first), float(last)
            found.bucket_s = _width(found.last_s - found.first_s)
        for page, scores in _pages(connection, since_s, route, found):
            for row in page:
                _take(row, scores.get(row["id"]), found)
        for one in found.routes.values():
            one.trim()
        _attempts(connection, since_s, route, found)
    return found


_WIDTHS_S = (
    1,
    5,
    10,
    60,
    300,
    900,
    3600,
    3 * 3600,
    6 * 3600,
    12 * 3600,
    86400,
    7 * 86400,
    28 * 86400,
)


def _width(span_s: float) -> float:
    """Of an interval of the picture over time: at most some sixty."""
    return float(next((w for w in _WIDTHS_S if span_s / w <= 60), 364 * 86400))


def _within(query: Any, since_s: float | None, route: str | None) -> Any:
    from suffice.store import schema

    t = schema.decisions.c
    if since_s is not None:
        query = query.where(t.created_s >= since_s)
    return query if route is None else query.where(t.route.in_((route, AUDITS + route)))


def _pages(
    connection: Any, since_s: float | None, route: str | None, found: Traffic
) -> Iterator[tuple[list[Any], dict[str, float]]]:
    """Pages of decisions, oldest first, each with the scores of those that have explicit ones."""
    import sqlalchemy as sa

    from suffice.store import schema

    t = schema.decisions.c
    query = sa.select(
        t.id, t.created_s, t.route, t.chosen, t.model, t.policy, t.policy_version, t.basis,
        t.difficulty, t.status, t.attempts, t.session, t.cost_usd,
        t.latency_s, t.first_chunk_s, t.overhead_ms,
        t.stream, t.features, t.features_schema, t.embedding, reader.detail_as_bytes(connection),
    ).order_by(t.id).limit(_PAGE)  # fmt: skip
    query = _within(query, since_s, route)
    last = None
    while True:
        page = connection.execute(query if last is None else query.where(t.id > last))
        rows = page.mappings().all()
        if rows:
            yield (
                rows,
                _scores(connection, rows[0]["id"], rows[-1]["id"], {r["id"] for r in rows}, found),
            )
            last = rows[-1]["id"]
        if len(rows) < _PAGE:
            return


def _scores(
    connection: Any, first: str, last: str, ids: set[str], found: Traffic
) -> dict[str, float]:
    """Decision -> weighted mean of its explicit feedback as it stands now; every source is counted
    on the way."""
    import sqlalchemy as sa

    from suffice.store import schema

    f = schema.feedback.c
    query = sa.select(f.decision_id, f.source, f.kind, f.score, f.weight).where(
        f.decision_id >= first, f.decision_id <= last, f.replaced_by.is_(None)
    )
    total: dict[str, tuple[float, float]] = {}
    seen: set[tuple[str, str]] = set()
    for decision_id, source, kind, score, weight in connection.execute(query):
        if decision_id not in ids:
            continue
        fine = isinstance(score, float | int) and 0.0 <= score <= 1.0
        if not fine or not isinstance(weight, float | int) or not isfinite(weight):
            found.skip(decision_id, f"feedback of {source}: score {score!r}, weight {weight!r}")
            continue
        told = found.sources.setdefault(source, Source(kind))
        told.scores += 1
        told.total += score
        if (decision_id, source) not in seen:
            seen.add((decision_id, source))
            told.decisions += 1
        # Implicit signals mostly tell of what went wrong: a mean over them would lean.
        if kind == "explicit" and weight > 0:
            a, b = total.get(decision_id, (0.0, 0.0))
            total[decision_id] = (a + weight * score, b + weight)
    return {i: a / b for i, (a, b) in total.items()}


def _take(row: Mapping[str, Any], score: float | None, found: Traffic) -> None:
    """Add one decision to everything it belongs to."""
    usd = row["cost_usd"]
    if usd is not None and not (isfinite(usd) and usd >= 0):
        found.skip(row["id"], f"its cost is {usd!r}")
        usd = None
    if row["route"].startswith(AUDITS):  # no request: a call that looked after some
        found.audits += 1
        found.audits_usd += usd or 0.0
        return
    found.requests += 1
    found.spent_usd += usd or 0.0
    found.cost_unknown += usd is None
    status, model = row["status"], row["model"]
    at = found.first_s + (row["created_s"] - found.first_s) // found.bucket_s * found.bucket_s
    found.spent[at] += usd or 0.0  # type: ignore[assignment]
    answered = model is not None and status < 400
    if answered:
        found.mix.setdefault(at, Counter())[model] += 1
        found.latency_s.setdefault(model, array("f")).append(row["latency_s"])
        if row["stream"] and row["first_chunk_s"] is not None:
            found.first_chunk_s.setdefault(model, array("f")).append(row["first_chunk_s"])
        found.failovers += model != row["chosen"]
    elif status == 499:
        found.client_left += 1
    else:
        found.failed += 1
        found.failures[at] += 1
    found.statuses[status] += 1
    found.retried += row["attempts"] > 1
    found.overhead_ms.append(row["overhead_ms"])
    if row["basis"] == "bypass":
        found.bypass += 1
        found.bypass_usd += usd or 0.0
        return
    route = found.routes.setdefault(row["route"], RouteTotals())
    route.decisions += 1
    route.answered += answered
    route.spent_usd += usd or 0.0
    route.cost_unknown += usd is None
    route.basis[row["basis"]] += 1
    route.policies[f"{row['policy']} {row['policy_version']}"] += 1
    if answered:
        route.by_model[model] += 1
    try:
        predictions = _decode(row["detail"]).predictions
    except (ValueError, TypeError) as error:  # msgspec's errors are ValueErrors
        found.skip(row["id"], str(error).splitlines()[0])
        return
    _add(row, predictions, usd if answered else None, score, route, found)


def _add(
    row: Mapping[str, Any],
    predictions: tuple[Prediction, ...],
    usd: float | None,
    score: float | None,
    route: RouteTotals,
    found: Traffic,
) -> None:
    """The part of a route that needs what was predicted. usd: None = unknown, or nobody answered."""
    chosen, model = row["chosen"], row["model"]
    session = row["session"]
    group = route.group(row["id"] if session is None else session)
    for p in predictions:
        route.column(p.model)
    at = None if model is None else route.column(model)
    if group >= len(route.requests) or len(route.models) > route.sums.shape[2]:
        route.room()
    if usd is not None:
        add_costs(row, predictions, usd, group, route)
    if score is not None:
        route.labelled += 1
        if at is not None:
            route.sums[SCORED, group, at] += 1
            route.sums[SCORE, group, at] += score
    _expect(predictions, model, route)
    shares = {p.model: float(p.propensity) for p in predictions}
    if (
        len(shares) < len(predictions)
        or not all(0.0 <= s <= 1.0 + 1e-9 for s in shares.values())
        or abs(sum(shares.values()) - 1.0) > 1e-6
    ):
        found.skip(row["id"], f"its propensities {list(shares.values())} are no distribution")
        return
    shares = {m: s if s >= _LEAST_SHARE else 0.0 for m, s in shares.items()}
    if shares.get(chosen, 0.0) == 0.0:
        # The client's own order of providers, or a cooling model, put another in front.
        found.overruled += 1
        return
    shares, episode = route.choice(row, shares)
    route.weighable += 1
    for m, share in shares.items():
        if share > 0.0:
            e = route.expected.setdefault(m, CandidateTotals())
            e.drawable += 1
            e.inverse += 1.0 / share
    if score is not None:
        fits = row["features_schema"] == features.SCHEMA
        signals = row["features"] if fits else None
        route.quality.append(
            Labelled(chosen, shares, score, group, episode, signals, row["embedding"])
        )


def add_costs(
    row: Mapping[str, Any],
    predictions: tuple[Prediction, ...],
    usd: float,
    group: int,
    route: RouteTotals,
) -> None:
    """Add what a request says of the cost of each candidate, whose columns the route has. row: model
    (who answered), difficulty, attempts. usd: paid, known. group: of its session."""
    route.requests[group] += 1
    guesses = {
        p.model: p.cost_usd
        for p in predictions
        if p.cost_usd is not None and isfinite(p.cost_usd) and p.cost_usd >= 0
    }
    model = row["model"]
    guess = guesses.get(model)
    if guess is None:  # a fallback from outside the pool, or a model of unknown price
        return
    u = row["difficulty"]
    part = BINS - 1 if u is None else min(BINS - 2, max(0, int(u * (BINS - 1))))
    at = route.models[model]
    sums = route.sums
    if row["attempts"] == 1:
        sums[TAKEN, group, at] += 1
        if guess >= LEAST_USD:
            sums[GUESSED, group, at] += guess
            sums[PAID, group, at] += usd
        if guess >= LEAST_USD and usd > 0:
            route.binned[RATIOS, group, part, at] += 1
            off = log(usd / guess)
            route.binned[LOG_RATIO, group, part, at] += off
            route.binned[LOG_SQUARE, group, part, at] += off * off
    for m, other in guesses.items():
        j = route.models[m]
        sums[COVERED, group, j] += 1
        sums[SPENT, group, j] += usd
        if guess >= LEAST_USD:
            route.scaled[group, at, j] += usd * other / guess
        else:
            route.binned[BESIDE_FREE, group, part, j] += other


def _expect(predictions: tuple[Prediction, ...], model: str | None, route: RouteTotals) -> None:
    said = next((p.quality for p in predictions if p.model == model), None)
    if said is None:
        return
    for p in predictions:
        if p.quality is not None:
            e = route.expected.setdefault(p.model, CandidateTotals())
            e.known += 1
            e.quality += p.quality
            e.beside += said


def _attempts(connection: Any, since_s: float | None, route: str | None, found: Traffic) -> None:
    totals = reader.StoreReader(connection).attempts(since_s=since_s, route=route, audits=True)
    for t in totals:
        found.attempts.setdefault(t.model, {})[t.outcome] = (t.attempts, t.cost_usd, t.cost_known)
