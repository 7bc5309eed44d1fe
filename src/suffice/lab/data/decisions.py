"""Recorded decisions as replay needs them, straight from the store's tables.

One row that cannot be read (a detail that is no JSON, a vector of another schema, propensities that
are none) is named, skipped and counted; it never stops the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice import features
from suffice.store import reader
from suffice.types import Objective, PlanStep, Prediction

MAX_DECISIONS = 500_000  # decisions read at a time, the newest
_SHOWN = 20  # skipped rows that are named one by one
_SIGNALS = len(features.SIGNAL_NAMES)


class _Detail(msgspec.Struct):
    """What replay needs of a decision's JSON."""

    predictions: tuple[Prediction, ...]
    plan: tuple[PlanStep, ...]
    objective: Objective


_decode = msgspec.json.Decoder(_Detail).decode


class LoggedDecision(msgspec.Struct, frozen=True, kw_only=True):
    """One decision as it was made. propensities: of each candidate, in the order of predictions.
    signals: float32 (n_signals,). embedding: float32 (n_dimensions,), None = not recorded.
    score: weighted mean of its feedback, NaN = none."""

    id: str
    created_s: float
    route: str
    chosen: str
    model: str | None  # who answered
    status: int
    session: str | None
    cost_usd: float | None
    predictions: tuple[Prediction, ...]
    plan: tuple[str, ...]
    objective: Objective
    policy: str
    policy_version: str
    signals: NDArray[np.float32]
    embedding: NDArray[np.float32] | None
    score: float


@dataclass
class DecisionLog:
    """rows: oldest first. skipped: (decision id, why), the first few; n_skipped: all of them.
    left_out: why -> how many decisions that can be read but that no policy made. sources: source
    of feedback -> decisions that have some. cut: whether there were more than `MOST`."""

    rows: list[LoggedDecision] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    n_skipped: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    cut: bool = False

    def skip(self, decision_id: object, why: str) -> None:
        self.n_skipped += 1
        if len(self.skipped) < _SHOWN:
            self.skipped.append((str(decision_id), why))


def read_decisions(
    url: str,
    *,
    since_s: float | None = None,
    route: str | None = None,
    sources: frozenset[str] | None = None,
) -> DecisionLog:
    """Decisions recorded since `since_s` (unix time), of one route or of all, with their feedback,
    of some `sources` or of all. Raises StoreError."""
    found = DecisionLog()
    with reader.connect_readonly(url) as connection:
        scores = _scores(connection, since_s, route, sources, found)
        for n, row in enumerate(_rows(connection, since_s, route)):
            if n == MAX_DECISIONS:
                found.cut = True
                break
            _take(row, scores, found)
    found.rows.reverse()
    return found


def _rows(connection: Any, since_s: float | None, route: str | None) -> Iterator[Mapping[str, Any]]:
    """The decisions, newest first, as they lie in the table."""
    import sqlalchemy as sa

    from suffice.store import schema

    t = schema.decisions.c
    query = sa.select(
        t.id, t.created_s, t.route, t.chosen, t.model, t.policy, t.policy_version, t.basis,
        t.propensity, t.status, t.session, t.cost_usd, t.features, t.features_schema, t.embedding,
        reader.detail_as_bytes(connection),
    ).order_by(t.id.desc())  # fmt: skip
    query = _within(query, since_s, route).limit(MAX_DECISIONS + 1)
    yield from connection.execution_options(yield_per=1000).execute(query).mappings()


def _within(query: Any, since_s: float | None, route: str | None) -> Any:
    from suffice.store import schema

    t = schema.decisions.c
    if since_s is not None:
        query = query.where(t.created_s >= since_s)
    return query if route is None else query.where(t.route == route)


def _scores(
    connection: Any,
    since_s: float | None,
    route: str | None,
    sources: frozenset[str] | None,
    found: DecisionLog,
) -> dict[str, float]:
    """Decision -> weighted mean of its feedback as it stands now."""
    import sqlalchemy as sa

    from suffice.store import schema

    d, f = schema.decisions.c, schema.feedback.c
    query = (
        sa.select(f.decision_id, f.source, f.score, f.weight)
        .join_from(schema.feedback, schema.decisions, f.decision_id == d.id)
        .where(f.replaced_by.is_(None))
    )
    total: dict[str, tuple[float, float]] = {}
    seen: dict[str, set[str]] = {}
    query = _within(query, since_s, route)
    for decision_id, source, score, weight in connection.execute(query):
        if sources is not None and source not in sources:
            continue
        fine = isinstance(score, float | int) and 0.0 <= score <= 1.0
        if not fine or not isinstance(weight, float | int) or not isfinite(weight):
            found.skip(decision_id, f"feedback of {source}: score {score!r}, weight {weight!r}")
            continue
        if weight <= 0:
            continue
        a, b = total.get(decision_id, (0.0, 0.0))
        total[decision_id] = (a + weight * score, b + weight)
        seen.setdefault(source, set()).add(decision_id)
    found.sources = {source: len(ids) for source, ids in sorted(seen.items())}
    return {i: a / b for i, (a, b) in total.items()}


def _take(row: Mapping[str, Any], scores: Mapping[str, float], found: DecisionLog) -> None:
    """Add one row of the table to what was found, wherever it belongs."""
    if row["basis"] == "bypass":
        _leave(found, "asked for by name, so no policy decided")
        return
    try:
        detail = _decode(row["detail"])
        signals = _vector(row["features"], "<f4", _SIGNALS, "feature vector")
        if signals is None:
            raise ValueError("no feature vector was recorded")
        if row["features_schema"] != features.SCHEMA:
            raise ValueError(
                f"its feature vector is of schema {row['features_schema']!r}; this version makes "
                f"{features.SCHEMA!r}"
            )
        logged = LoggedDecision(
            id=str(row["id"]),
            created_s=float(row["created_s"]),
            route=str(row["route"]),
            chosen=str(row["chosen"]),
            model=row["model"],
            status=int(row["status"]),
            session=row["session"],
            cost_usd=_usd(row["cost_usd"]),
            predictions=detail.predictions,
            plan=tuple(s.model for s in detail.plan),
            objective=detail.objective,
            policy=str(row["policy"]),
            policy_version=str(row["policy_version"]),
            signals=signals,
            embedding=_vector(row["embedding"], "<f2", features.DIMENSIONS, "embedding"),
            score=scores.get(str(row["id"]), float("nan")),
        )
        p = _propensity(logged)
    except (ValueError, TypeError) as error:  # msgspec's errors are ValueErrors
        found.skip(row["id"], str(error).splitlines()[0])
        return
    if p == 0.0:
        # The client's own order of providers, or a cooling model, put another in front.
        _leave(found, "another model was put in front of the policy's choice")
        return
    found.rows.append(logged)


def _leave(found: DecisionLog, why: str) -> None:
    found.left_out[why] = found.left_out.get(why, 0) + 1


def _vector(blob: bytes | None, kind: str, n: int, what: str) -> NDArray[np.float32] | None:
    if blob is None:
        return None
    if not isinstance(blob, bytes) or len(blob) != n * np.dtype(kind).itemsize:
        size = len(blob) if isinstance(blob, bytes) else type(blob).__name__
        raise ValueError(f"its {what} should hold {n} numbers, not {size} bytes")
    v = np.frombuffer(blob, kind).astype(np.float32)
    if not np.isfinite(v).all():
        raise ValueError(f"its {what} holds what is no number")
    return v


def _usd(value: Any) -> float | None:
    if value is None:
        return None
    usd = float(value)
    if not isfinite(usd) or usd < 0:
        raise ValueError(f"its cost is {value!r}")
    return usd


def _propensity(logged: LoggedDecision) -> float:
    """Of the model chosen. Raises ValueError where the candidates' are no distribution."""
    names = [p.model for p in logged.predictions]
    if logged.chosen not in names:
        raise ValueError(f"its choice {logged.chosen!r} is not among its candidates")
    if len(set(names)) < len(names):
        raise ValueError("a candidate is recorded twice")
    shares = [p.propensity for p in logged.predictions]
    if not all(0.0 <= s <= 1.0 + 1e-9 for s in shares) or abs(sum(shares) - 1.0) > 1e-6:
        raise ValueError(f"its propensities {shares} are no distribution")
    return shares[names.index(logged.chosen)]
