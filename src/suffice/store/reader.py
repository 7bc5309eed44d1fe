"""Reads a store beside a running gateway: decisions with their current scores, and the registry.

Nothing here writes records, takes over spool files of other processes, or creates a database where
there is none. `open_reader` gives the one reader of stored decisions:

    with open_reader(url) as store:
        for row, scores in store.decisions(("id", "chosen", "detail"), route="auto"):
            predictions = decode_detail(row["detail"]).predictions
            score = mean_score(scores)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from suffice.errors import StoreError
from suffice.store.protocols import AUDIT_ROUTE_PREFIX
from suffice.types import Objective, PlanStep, Prediction

if TYPE_CHECKING:
    import sqlalchemy as sa

    from suffice.store.protocols import PolicyRegistry

PAGE = 5000  # decisions per query

OnInvalid = Callable[[str, str], None]  # (decision id, reason): a row that cannot be read


class Score(NamedTuple):
    """A score of a decision that counts now."""

    source: str
    kind: str  # "explicit" | "implicit"
    score: float  # in [0, 1]
    weight: float
    key: str
    created_s: float  # unix time


class StoredDecision(NamedTuple):
    """A decision and its scores, oldest first."""

    row: sa.RowMapping  # by column of the table `decisions`; `detail` is JSON as bytes
    scores: list[Score]


class AttemptTotals(NamedTuple):
    """Attempts of one model with one outcome."""

    model: str
    outcome: str  # "ok" or an errors.UpstreamKind
    attempts: int
    cost_usd: float  # sum of the known costs
    cost_known: int  # attempts of known cost


class Span(NamedTuple):
    """How many decisions there are, and when the first and the last were made."""

    decisions: int
    first_s: float  # unix time; 0 if there are none
    last_s: float


class DecisionDetail(msgspec.Struct, frozen=True):
    """The part of the column `detail` that offline evaluation needs."""

    predictions: tuple[Prediction, ...]
    plan: tuple[PlanStep, ...]
    objective: Objective


# Raises msgspec.DecodeError or msgspec.ValidationError, which are ValueErrors.
decode_detail = msgspec.json.Decoder(DecisionDetail).decode


def mean_score(
    scores: Iterable[Score], *, sources: Collection[str] | None = None, explicit: bool = False
) -> float | None:
    """The mean of the scores by their weights.

    Args:
        scores: Of one decision.
        sources: Only scores of these sources. None: of all.
        explicit: Only explicit scores.

    Returns:
        None if no such score has a weight above 0.
    """
    total = weights = 0.0
    for s in scores:
        if s.weight <= 0.0 or (explicit and s.kind != "explicit"):
            continue
        if sources is None or s.source in sources:
            total += s.weight * s.score
            weights += s.weight
    return total / weights if weights > 0.0 else None


class StoreReader:
    """Reads the tables of a store over one connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection

    def span(
        self, *, since_s: float | None = None, route: str | None = None, audits: bool = False
    ) -> Span:
        """Number and time of the decisions that `decisions` would read."""
        import sqlalchemy as sa

        from suffice.store import schema

        created_s = schema.decisions.c.created_s
        query = sa.select(sa.func.count(), sa.func.min(created_s), sa.func.max(created_s))
        query = query.where(*_conditions(since_s, route, audits))
        n, first, last = self.connection.execute(query).one()
        return Span(int(n), float(first or 0.0), float(last or 0.0))

    def decisions(
        self,
        columns: Collection[str],
        *,
        since_s: float | None = None,
        route: str | None = None,
        audits: bool = False,
        newest_first: bool = False,
        limit: int | None = None,
        on_invalid: OnInvalid | None = None,
    ) -> Iterator[StoredDecision]:
        """Decisions with the scores that count now, page by page in the order of their ids.

        Args:
            columns: Columns of the table `decisions` to read; `id` is always read.
            since_s: Only decisions since then, unix time.
            route: Only decisions of this route.
            audits: Also calls of audits, which are recorded under `audit:<route>`.
            newest_first: From the newest to the oldest.
            limit: At most this many decisions.
            on_invalid: Called for each score that is out of range; it is skipped.

        Yields:
            One decision after the other.
        """
        import sqlalchemy as sa

        from suffice.store import schema

        table = schema.decisions.c
        selected = [
            _detail_as_bytes(self.connection) if name == "detail" else table[name]
            for name in dict.fromkeys(("id", *columns))
        ]
        query = sa.select(*selected).where(*_conditions(since_s, route, audits))
        query = query.order_by(table.id.desc() if newest_first else table.id)
        remaining = limit
        last_id: str | None = None
        while remaining is None or remaining > 0:
            size = PAGE if remaining is None else min(PAGE, remaining)
            page = query.limit(size)
            if last_id is not None:
                page = page.where(table.id < last_id if newest_first else table.id > last_id)
            rows = self.connection.execute(page).mappings().all()
            if rows:
                last_id = rows[-1]["id"]
                scores = self._scores({row["id"] for row in rows}, on_invalid)
                for row in rows:
                    yield StoredDecision(row, scores.get(row["id"], []))
            if len(rows) < size:
                return
            remaining = None if remaining is None else remaining - size

    def _scores(self, ids: set[str], on_invalid: OnInvalid | None) -> dict[str, list[Score]]:
        """The current scores of these decisions, which are consecutive but for the filters."""
        import sqlalchemy as sa

        from suffice.store import schema

        f = schema.feedback.c
        query = (
            sa.select(f.decision_id, f.source, f.kind, f.score, f.weight, f.key, f.created_s)
            .where(f.decision_id >= min(ids), f.decision_id <= max(ids), f.replaced_by.is_(None))
            .order_by(f.seq)
        )
        scores: dict[str, list[Score]] = {}
        for decision_id, source, kind, score, weight, key, created_s in self.connection.execute(
            query
        ):
            if decision_id not in ids:  # of a route or a time that is filtered out
                continue
            if not _is_number(score) or not 0.0 <= score <= 1.0 or not _is_number(weight):
                if on_invalid is not None:
                    reason = f"feedback of {source}: score {score!r}, weight {weight!r}"
                    on_invalid(decision_id, reason)
                continue
            scores.setdefault(decision_id, []).append(
                Score(source, kind, score, weight, key, created_s)
            )
        return scores

    def attempts(
        self, *, since_s: float | None = None, route: str | None = None, audits: bool = False
    ) -> list[AttemptTotals]:
        """Totals of the attempts of those decisions, by model and outcome."""
        import sqlalchemy as sa

        from suffice.store import schema

        a, d = schema.attempts.c, schema.decisions.c
        conditions = _conditions(since_s, route, audits)
        in_rows = sa.select(
            d.model, sa.literal("ok").label("outcome"), sa.func.count().label("n"),
            sa.func.sum(d.cost_usd).label("usd"), sa.func.count(d.cost_usd).label("known"),
        ).where(*conditions, d.only_attempt.is_not(None)).group_by(d.model)  # fmt: skip
        in_table = (
            sa.select(
                a.model, a.outcome, sa.func.count(), sa.func.sum(a.cost_usd),
                sa.func.count(a.cost_usd),
            )
            .join_from(schema.attempts, schema.decisions, a.decision_id == d.id)
            .where(*conditions)
            .group_by(a.model, a.outcome)
        )  # fmt: skip
        both = sa.union_all(in_rows, in_table).subquery().c
        query = sa.select(
            both.model, both.outcome, sa.func.sum(both.n), sa.func.sum(both.usd),
            sa.func.sum(both.known),
        ).group_by(both.model, both.outcome)  # fmt: skip
        return [
            AttemptTotals(model, outcome, int(n), float(usd or 0.0), int(known))
            for model, outcome, n, usd, known in self.connection.execute(query)
        ]


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and isfinite(value)


def _conditions(
    since_s: float | None, route: str | None, audits: bool
) -> list[sa.ColumnElement[bool]]:
    from suffice.store import schema

    d = schema.decisions.c
    conditions: list[sa.ColumnElement[bool]] = []
    if since_s is not None:
        conditions.append(d.created_s >= since_s)
    if route is not None:
        conditions.append(d.route.in_((route, AUDIT_ROUTE_PREFIX + route) if audits else (route,)))
    elif not audits:
        conditions.append(d.route.not_like(AUDIT_ROUTE_PREFIX + "%"))
    return conditions


def exists(url: str) -> bool:
    """False if `url` names a file that does not exist: opening it would create it."""
    from sqlalchemy.exc import SQLAlchemyError

    from suffice.store.engine import database_file

    try:
        file = database_file(url)
    except SQLAlchemyError:  # opening it will report what is wrong with the URL
        return True
    return file is None or file.exists()


def _require_store(url: str) -> None:
    """Raise StoreError if there is no store at `url`."""
    from suffice.store.engine import redact_url

    if not exists(url):
        raise StoreError(
            f"There is no store at {redact_url(url)}: nothing has been recorded.",
            remedy="Run suffice serve first, or give the --config that it ran with.",
        )


@contextmanager
def open_reader(url: str) -> Iterator[StoreReader]:
    """Open an existing store for reading.

    Yields:
        The reader.

    Raises:
        StoreError: There is no store, or it cannot be read.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from suffice.store.engine import open_engine, read_problem

    _require_store(url)
    engine = open_engine(url)
    try:
        with engine.connect() as connection:
            yield StoreReader(connection)
    except SQLAlchemyError as error:
        message, remedy = read_problem(url, error)
        raise StoreError(message, remedy=remedy) from None
    finally:
        engine.dispose()


def _detail_as_bytes(connection: sa.Connection) -> sa.ColumnElement[Any]:
    """The column `decisions.detail` as bytes.

    SQLite fails the whole query at a text that is not valid UTF-8; as bytes only its row fails.

    Returns:
        A column named `detail`; text on PostgreSQL, which stores valid UTF-8 only.
    """
    import sqlalchemy as sa

    from suffice.store import schema

    detail = schema.decisions.c.detail
    if connection.dialect.name == "sqlite":
        return sa.cast(detail, sa.LargeBinary).label("detail")
    return detail


@contextmanager
def open_registry(url: str, *, create: bool = False) -> Iterator[PolicyRegistry]:
    """Open the policy registry of a store.

    Args:
        url: Of the store.
        create: Create the database if there is none.

    Yields:
        The registry.

    Raises:
        StoreError: There is no store, or it cannot be opened.
    """
    from suffice.store.engine import Database
    from suffice.store.registry import SqlRegistry

    if not create:
        _require_store(url)
    database = Database(url)
    try:
        yield SqlRegistry(database)
    finally:
        database.dispose()
