"""The store, read once from old to new in bounded memory, as sums that a report is made of.

Sessions stand and fall together, so sums are kept by session; past `GROUPS` of them several share
one, which leaves an interval over groups as valid and memory bounded.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite, log
from typing import Any
from zlib import crc32

import msgspec
import numpy as np

from ... import features
from ...errors import StoreError
from ...types import Prediction
from ..keeping import demand

GROUPS = 2048
BINS = 9  # of difficulty: eight equal parts, and one where it is unknown
QUALITY_ROWS = 50_000  # labelled decisions that an estimate looks at, the newest
_PAGE = 5000
_SESSION_S = 3600.0  # as the router: how long an idle conversation is remembered
LEAST_USD = 1e-9  # a smaller prediction is that of a free model
_LEAST_SHARE = 1e-9  # a smaller propensity is none: its weight would drown all others
_CERTAIN = 1.0 - 1e-9
_SHOWN = 20  # rows that cannot be read, named one by one
_SUMS = 7
# Rows of Route.sums: of each candidate on requests whose cost is known: how many, what was spent,
COVERED, SPENT = 0, 1
# of the model that answered at once: how many, what was predicted, what was paid,
TAKEN, GUESSED, PAID = 2, 3, 4
SCORED, SCORE = 5, 6  # and of the model that answered, on labelled ones.
# Rows of Route.binned, by difficulty: requests and sum of log(paid / predicted) of the model that
# answered at once, and each candidate's predicted cost where the one that answered is free.
RATIOS, LOG_RATIO, BESIDE_FREE = range(3)


class _Detail(msgspec.Struct):
    predictions: tuple[Prediction, ...]


_decode = msgspec.json.Decoder(_Detail).decode


@dataclass
class Labelled:
    """One decision with explicit feedback, as an off-policy estimate needs it. shares: propensities
    of the free choice that was in force. signals, embedding: bytes as stored."""

    chosen: str
    shares: dict[str, float]
    score: float
    session: int
    episode: int
    signals: bytes | None
    embedding: bytes | None


@dataclass
class Expected:
    """Of one candidate, over all decisions of a route. quality, beside: sums of its predicted
    quality and, on the same requests, of that of the model that answered. drawable: decisions that
    could have gone to it, and inverse: sum of 1 / propensity over those."""

    known: int = 0
    quality: float = 0.0
    beside: float = 0.0
    drawable: int = 0
    inverse: float = 0.0


class Route:
    """What one route's policy decided. sums: (7, groups, models) and binned: (3, groups, bins,
    models), rows as named above; scaled: (groups, models, models), by the model that answered, what
    each candidate would have cost if the answer were as much longer than predicted as the one that
    came; requests: (groups,) of known cost."""

    def __init__(self) -> None:
        self.models: dict[str, int] = {}
        self.sums = np.zeros((_SUMS, 64, 4))
        self.binned = np.zeros((3, 64, BINS, 4))
        self.scaled = np.zeros((64, 4, 4))
        self.requests = np.zeros(64)
        self.decisions = 0
        self.answered = 0
        self.labelled = 0
        self.free = 0  # free choices, of which
        self.drawn = 0  # these had more than one possible outcome
        self.weighable = 0  # turns with valid propensities: what Expected.drawable is a share of
        self.spent_usd = 0.0
        self.cost_unknown = 0
        self.by_model: Counter[str] = Counter()
        self.basis: Counter[str] = Counter()
        self.expected: dict[str, Expected] = {}
        self.quality: deque[Labelled] = deque(maxlen=QUALITY_ROWS)
        self.policies: Counter[str] = Counter()
        self._groups: dict[str, int] = {}
        self._episodes = 0
        self._last: dict[str, tuple[float, str | None, dict[str, float], int]] = {}

    def group(self, key: str) -> int:
        """The row of sums that a session belongs to."""
        found = self._groups.get(key)
        if found is None:
            n = len(self._groups)
            if n >= GROUPS:
                return crc32(key.encode("utf-8", "replace")) % GROUPS
            found = self._groups[key] = n
        return found

    @property
    def groups(self) -> int:
        return len(self._groups)

    def column(self, model: str) -> int:
        return self.models.setdefault(model, len(self.models))

    def room(self) -> None:
        """Room for the groups and models met so far."""
        _, g, k = self.sums.shape
        g = max(0, len(self._groups) - g) and max(g, len(self._groups) - g)
        k = max(0, len(self.models) - k) and max(k, len(self.models) - k)
        if g or k:
            self.sums = np.pad(self.sums, ((0, 0), (0, g), (0, k)))
            self.binned = np.pad(self.binned, ((0, 0), (0, g), (0, 0), (0, k)))
            self.scaled = np.pad(self.scaled, ((0, g), (0, k), (0, k)))
            self.requests = np.pad(self.requests, (0, g))

    def trim(self) -> None:
        """Away with the room that was never used: at least one group stays."""
        self.room()
        g, k = max(1, self.groups), len(self.models)
        self.sums = self.sums[:, :g, :k]
        self.binned = self.binned[:, :g, :, :k]
        self.scaled = self.scaled[:g, :k, :k]
        self.requests = self.requests[:g]

    def choice(
        self, row: Mapping[str, Any], shares: dict[str, float]
    ) -> tuple[dict[str, float], int]:
        """(propensities, free choice) that this turn stands on: its own, or those of the turn whose
        model it only kept to."""
        key, chosen, at = row["session"], row["chosen"], float(row["created_s"])
        before = self._last.get(key) if key is not None else None
        if before is not None and at - before[0] > _SESSION_S:
            before = None
        kept = (
            before is not None
            and chosen == before[1]
            and shares.get(chosen, 0.0) >= _CERTAIN
            and before[2].get(chosen, 0.0) > 0.0
        )
        if kept and before is not None:
            shares, episode = before[2], before[3]
        else:
            episode = self._episodes
            self._episodes += 1
            self.free += 1
            self.drawn += shares.get(chosen, 0.0) < _CERTAIN
        if key is not None:
            incumbent = row["model"] if row["model"] is not None and row["status"] < 400 else None
            if incumbent is None and before is not None:
                incumbent = before[1]
            self._last[key] = (at, incumbent, shares, episode)
            if len(self._last) > 100_000:
                self._last = {k: v for k, v in self._last.items() if at - v[0] <= _SESSION_S}
        return shares, episode


@dataclass
class Source:
    """Feedback of one source as it stands now."""

    kind: str
    decisions: int = 0
    scores: int = 0
    total: float = 0.0


@dataclass
class Traffic:
    """All that was read. buckets: start of an interval of `bucket_s` -> model -> requests, and
    spent, failed beside it. attempts: model -> outcome -> (calls, USD of the known costs, of how many
    calls)."""

    requests: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    bucket_s: float = 60.0
    spent_usd: float = 0.0
    cost_unknown: int = 0
    bypass: int = 0
    bypass_usd: float = 0.0
    overruled: int = 0
    routes: dict[str, Route] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    failed: int = 0
    client_left: int = 0
    failovers: int = 0
    retried: int = 0
    overhead_ms: array[float] = field(default_factory=lambda: array("f"))
    latency_s: dict[str, array[float]] = field(default_factory=dict)
    first_chunk_s: dict[str, array[float]] = field(default_factory=dict)
    mix: dict[float, Counter[str]] = field(default_factory=dict)
    spent: Counter[float] = field(default_factory=Counter)
    failures: Counter[float] = field(default_factory=Counter)
    sources: dict[str, Source] = field(default_factory=dict)
    attempts: dict[str, dict[str, tuple[int, float, int]]] = field(default_factory=dict)
    n_skipped: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def skip(self, decision_id: object, why: str) -> None:
        self.n_skipped += 1
        if len(self.skipped) < _SHOWN:
            self.skipped.append((str(decision_id), why))


def read(url: str, *, since_s: float | None = None, route: str | None = None) -> Traffic:
    """Everything recorded since `since_s` (unix time), of one route or of all. Writes nothing.
    Raises StoreError."""
    import sqlalchemy as sa
    from sqlalchemy.exc import SQLAlchemyError

    from ...store import schema
    from ...store.opening import first_line, open_engine, shown

    demand(url)
    engine = open_engine(url)
    found = Traffic()
    d = schema.decisions.c
    try:
        with engine.connect() as connection:
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
    except SQLAlchemyError as error:
        raise StoreError(
            f"The store cannot be read: {first_line(error)}.", remedy=f"Check {shown(url)}."
        ) from None
    finally:
        engine.dispose()
    return found


_WIDTHS_S = (1, 5, 10, 60, 300, 900, 3600, 3 * 3600, 6 * 3600, 86400, 7 * 86400, 28 * 86400)


def _width(span_s: float) -> float:
    """Of an interval of the picture over time: at most some sixty."""
    return float(next((w for w in _WIDTHS_S if span_s / w <= 60), 364 * 86400))


def _within(query: Any, since_s: float | None, route: str | None) -> Any:
    from ...store import schema

    t = schema.decisions.c
    if since_s is not None:
        query = query.where(t.created_s >= since_s)
    return query if route is None else query.where(t.route == route)


def _pages(
    connection: Any, since_s: float | None, route: str | None, found: Traffic
) -> Iterator[tuple[list[Any], dict[str, float]]]:
    """Pages of decisions, oldest first, each with the scores of those that have explicit ones."""
    import sqlalchemy as sa

    from ...store import schema

    t = schema.decisions.c
    detail: Any = t.detail
    if connection.dialect.name == "sqlite":
        # As bytes: a text that is no UTF-8 would end the whole reading, not only its row.
        detail = sa.cast(t.detail, sa.LargeBinary).label("detail")
    query = sa.select(
        t.id, t.created_s, t.route, t.chosen, t.model, t.policy, t.policy_version, t.basis,
        t.difficulty, t.status, t.attempts, t.session, t.cost_usd,
        t.latency_s, t.first_chunk_s, t.overhead_ms,
        t.stream, t.features, t.features_schema, t.embedding, detail,
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

    from ...store import schema

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
    found.requests += 1
    usd = row["cost_usd"]
    if usd is not None and not (isfinite(usd) and usd >= 0):
        found.skip(row["id"], f"its cost is {usd!r}")
        usd = None
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
    route = found.routes.setdefault(row["route"], Route())
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
    route: Route,
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
        _costs(row, predictions, usd, group, route)
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
            e = route.expected.setdefault(m, Expected())
            e.drawable += 1
            e.inverse += 1.0 / share
    if score is not None:
        fits = row["features_schema"] == features.SCHEMA
        signals = row["features"] if fits else None
        route.quality.append(
            Labelled(chosen, shares, score, group, episode, signals, row["embedding"])
        )


def _costs(
    row: Mapping[str, Any],
    predictions: tuple[Prediction, ...],
    usd: float,
    group: int,
    route: Route,
) -> None:
    """What the request says of the cost of each candidate. usd: paid, known."""
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
            route.binned[LOG_RATIO, group, part, at] += log(usd / guess)
    for m, other in guesses.items():
        j = route.models[m]
        sums[COVERED, group, j] += 1
        sums[SPENT, group, j] += usd
        if guess >= LEAST_USD:
            route.scaled[group, at, j] += usd * other / guess
        else:
            route.binned[BESIDE_FREE, group, part, j] += other


def _expect(predictions: tuple[Prediction, ...], model: str | None, route: Route) -> None:
    said = next((p.quality for p in predictions if p.model == model), None)
    if said is None:
        return
    for p in predictions:
        if p.quality is not None:
            e = route.expected.setdefault(p.model, Expected())
            e.known += 1
            e.quality += p.quality
            e.beside += said


def _attempts(connection: Any, since_s: float | None, route: str | None, found: Traffic) -> None:
    import sqlalchemy as sa

    from ...store import schema

    a, d = schema.attempts.c, schema.decisions.c
    cost = (sa.func.sum(a.cost_usd), sa.func.count(a.cost_usd))
    query = sa.select(a.model, a.outcome, sa.func.count(), *cost)
    query = query.group_by(a.model, a.outcome)
    if since_s is not None or route is not None:
        query = query.join_from(schema.attempts, schema.decisions, a.decision_id == d.id)
        query = _within(query, since_s, route)
    for model, outcome, n, usd, known in connection.execute(query):
        found.attempts.setdefault(model, {})[outcome] = (int(n), float(usd or 0.0), int(known))
