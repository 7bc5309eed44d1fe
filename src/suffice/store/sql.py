"""The store over SQLAlchemy Core: SQLite by default, PostgreSQL by URL.

`append` puts a record into memory and returns; one writer thread drains it every 50 ms. Killed with
-9, a gateway loses at most the records of its last 100 ms. While the database is unreachable,
records go to a spool file beside it and are written when it is back: nothing is lost, nothing
counted twice (inserts ignore an id that is there already).
"""

from __future__ import annotations

import base64
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from ..errors import StoreError
from ..types import Feedback, Record, StoreHealth
from . import schema
from .rows import ATTEMPT, DECISION, Row, to_dict, to_rows

EVERY_S = 0.05
BATCH = 512
IN_MEMORY = 100_000  # records; past it the oldest go to the spool file
_RETRY_S = 2.0


class _Spooled(msgspec.Struct):
    """One record as a line of the spool file."""

    decision: list[Any]
    attempts: list[list[Any]]


_AT_FEATURES = DECISION.index("features")


class SqlStore:
    """types.Store over one database. Reading and feedback use connections of their own."""

    def __init__(self, url: str, *, keep_prompts: bool = False, spool: Path | None = None) -> None:
        self.url = url
        self._keep_prompts = keep_prompts
        self._engine = _open(url)
        self._spool = spool
        self._pending: deque[Record] = deque()
        self._recent: dict[str, Record] = {}  # not yet written, by decision id
        self._lock = threading.Lock()  # one batch at a time: the writer's, or a flush
        self._wake = threading.Event()
        self._closing = False
        self._error: str | None = None
        self._spooled = _lines(spool)
        self._lost = 0
        self._retry_at_s = 0.0
        self._insert = _insert(self._engine, "decisions", DECISION)
        self._insert_attempts = _insert(self._engine, "attempts", ATTEMPT)
        if self._spooled:
            self._replay()
        self._thread = threading.Thread(
            target=self._write_forever, name="suffice-store", daemon=True
        )
        self._thread.start()

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def append(self, record: Record) -> None:
        """Take a record. Never blocks, never raises."""
        self._recent[record.decision.id] = record
        self._pending.append(record)

    def _write_forever(self) -> None:
        while not self._closing:
            self._wake.wait(EVERY_S)
            if self._pending or (self._spooled and time.monotonic() >= self._retry_at_s):
                with self._lock:
                    self._drain()

    def _drain(self) -> None:
        while self._pending:
            batch = [self._pending.popleft() for _ in range(min(BATCH, len(self._pending)))]
            rows = [to_rows(r, self._keep_prompts) for r in batch]
            # While the database is down each batch goes straight to the file; it is tried again
            # every few seconds, and what was spooled is written first, in order.
            down = self._error is not None and time.monotonic() < self._retry_at_s
            if down or not self._try_write(rows):
                self._to_spool(rows)
            for r in batch:
                self._recent.pop(r.decision.id, None)
        if self._spooled and time.monotonic() >= self._retry_at_s:
            self._replay()

    def _try_write(self, rows: list[tuple[Row, list[Row]]]) -> bool:
        try:
            self._write(rows)
        except (SQLAlchemyError, OSError) as error:
            self._error = _first_line(error)
            self._retry_at_s = time.monotonic() + _RETRY_S
            return False
        self._error = None
        return True

    def _write(self, rows: list[tuple[Row, list[Row]]]) -> None:
        with self._engine.begin() as connection:
            connection.exec_driver_sql(self._insert, [row for row, _ in rows])
            tries = [a for _, attempts in rows for a in attempts]
            if tries:
                connection.exec_driver_sql(self._insert_attempts, tries)

    def _to_spool(self, rows: list[tuple[Row, list[Row]]]) -> None:
        if self._spool is None:
            self._lost += len(rows)
            return
        lines = bytearray()
        for row, tries in rows:
            plain = list(row)
            if plain[_AT_FEATURES] is not None:
                plain[_AT_FEATURES] = base64.b64encode(plain[_AT_FEATURES]).decode()
            lines += msgspec.json.encode(_Spooled(plain, [list(a) for a in tries])) + b"\n"
        try:
            with self._spool.open("ab") as file:
                file.write(lines)
        except OSError as error:
            self._lost += len(rows)
            self._error = f"{self._error}; and the spool file: {_first_line(error)}"
            return
        self._spooled += len(rows)

    def _replay(self) -> None:
        """Write what was spooled. A torn last line (killed while writing) is skipped."""
        assert self._spool is not None
        rows: list[tuple[Row, list[Row]]] = []
        for line in _read_lines(self._spool):
            try:
                found = msgspec.json.decode(line, type=_Spooled)
            except msgspec.DecodeError:
                self._lost += 1
                continue
            if found.decision[_AT_FEATURES] is not None:
                found.decision[_AT_FEATURES] = base64.b64decode(found.decision[_AT_FEATURES])
            rows.append((tuple(found.decision), [tuple(a) for a in found.attempts]))
        for start in range(0, len(rows), BATCH):
            if not self._try_write(rows[start : start + BATCH]):
                return
        self._spool.unlink(missing_ok=True)
        self._spooled = 0

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Write everything pending now. False where it could not be taken up within `timeout_s`."""
        if not self._lock.acquire(timeout=timeout_s):
            return False
        try:
            self._drain()
        finally:
            self._lock.release()
        return self._error is None

    def close(self) -> None:
        """Write what is pending and let go of the database. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._wake.set()
        self._thread.join(10.0)
        self._retry_at_s = 0.0  # a last try, however lately the database refused
        self.flush()
        self._engine.dispose()

    def health(self) -> StoreHealth:
        return StoreHealth(
            ok=self._error is None,
            pending=len(self._pending),
            spooled=self._spooled,
            lost=self._lost,
            error=self._error,
        )

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def _rows(self, query: Any) -> list[dict[str, Any]]:
        try:
            with self._engine.connect() as connection:
                return [dict(r) for r in connection.execute(query).mappings()]
        except SQLAlchemyError as error:
            raise StoreError(
                f"The store cannot be read: {_first_line(error)}.",
                remedy=f"Check {_shown(self.url)}.",
            ) from None

    def decision(self, decision_id: str) -> dict[str, Any] | None:
        """One decision with its attempts and feedback, also when it is not yet written."""
        waiting = self._recent.get(decision_id)
        if waiting is not None:
            row, tries = to_rows(waiting, self._keep_prompts)
            found = dict(zip(DECISION, row, strict=True))
            attempts = [dict(zip(ATTEMPT, a, strict=True)) for a in tries]
        else:
            rows = self._rows(
                sa.select(schema.decisions).where(schema.decisions.c.id == decision_id)
            )
            if not rows:
                return None
            found = rows[0]
            t = schema.attempts
            attempts = self._rows(
                sa.select(t).where(t.c.decision_id == decision_id).order_by(t.c.number)
            )
        found["features_blob"] = found.pop("features")
        for a in attempts:
            a.pop("decision_id")
        out = to_dict(found, attempts)
        out["feedback"] = list(self.feedback(decision_id)) if waiting is None else []
        return out

    def decisions(
        self, *, since_s: float | None = None, route: str | None = None, limit: int = 100
    ) -> Sequence[dict[str, Any]]:
        """The newest decisions first, without attempts."""
        self.flush()
        t = schema.decisions
        query = sa.select(t).order_by(t.c.id.desc()).limit(limit)
        if since_s is not None:
            query = query.where(t.c.created_s >= since_s)
        if route is not None:
            query = query.where(t.c.route == route)
        out = []
        for row in self._rows(query):
            row["features_blob"] = row.pop("features")
            n = row["attempts"]
            out.append({**to_dict(row, []), "attempts": n})
        return out

    def training_rows(
        self, *, since_s: float | None = None, route: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Scored decisions: id, model, propensity, cost, score, source and the feature vector as
        bytes (float32), oldest first."""
        self.flush()
        d, f = schema.decisions, schema.feedback
        query = (
            sa.select(
                d.c.id,
                d.c.created_s,
                d.c.route,
                d.c.model,
                d.c.propensity,
                d.c.cost_usd,
                d.c.session,
                d.c.features,
                d.c.features_schema,
                f.c.score,
                f.c.source,
            )
            .join(f, f.c.decision_id == d.c.id)
            .order_by(d.c.id)
        )
        if since_s is not None:
            query = query.where(d.c.created_s >= since_s)
        if route is not None:
            query = query.where(d.c.route == route)
        yield from self._rows(query)

    # ── feedback ─────────────────────────────────────────────────────────────────────────────────

    def add_feedback(self, feedback: Feedback) -> bool:
        """Store a score; the same (decision, source, key) again replaces it. False: no such
        decision. Raises StoreError where the store is down: feedback is never taken and dropped."""
        if feedback.decision_id in self._recent:
            self.flush()
        d, f = schema.decisions, schema.feedback
        key = feedback.key or ""
        try:
            with self._engine.begin() as connection:
                known = connection.execute(
                    sa.select(d.c.id).where(d.c.id == feedback.decision_id)
                ).first()
                if known is None:
                    return False
                where = sa.and_(
                    f.c.decision_id == feedback.decision_id,
                    f.c.source == feedback.source,
                    f.c.key == key,
                )
                values = {
                    "score": feedback.score,
                    "comment": feedback.comment,
                    "created_s": feedback.created_s or time.time(),
                }
                changed = connection.execute(f.update().where(where).values(**values))
                if changed.rowcount == 0:
                    connection.execute(
                        f.insert().values(
                            decision_id=feedback.decision_id,
                            source=feedback.source,
                            key=key,
                            **values,
                        )
                    )
        except SQLAlchemyError as error:
            raise StoreError(
                f"The store cannot take feedback now: {_first_line(error)}.",
                remedy="Send it again later.",
            ) from None
        return True

    def feedback(self, decision_id: str) -> Sequence[dict[str, Any]]:
        f = schema.feedback
        return self._rows(
            sa.select(f.c.score, f.c.source, f.c.comment, f.c.created_s, f.c.key)
            .where(f.c.decision_id == decision_id)
            .order_by(f.c.created_s)
        )

    def summary(self, *, since_s: float | None = None) -> dict[str, Any]:
        """Totals: requests, cost (and how many costs are unknown), tokens, shares, failures."""
        self.flush()
        d, a, f = schema.decisions, schema.attempts, schema.feedback
        since = since_s or 0.0
        total = self._rows(
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
            ).where(d.c.created_s >= since)
        )[0]
        models = self._rows(
            sa.select(
                d.c.model,
                sa.func.count().label("requests"),
                sa.func.sum(d.c.cost_usd).label("cost_usd"),
            )
            .where(d.c.created_s >= since, d.c.model.is_not(None))
            .group_by(d.c.model)
            .order_by(sa.func.count().desc())
        )
        errors = self._rows(
            sa.select(a.c.model, a.c.outcome, sa.func.count().label("count"))
            .where(a.c.started_s >= since, a.c.outcome != "ok")
            .group_by(a.c.model, a.c.outcome)
        )
        scored = self._rows(
            sa.select(
                sa.func.count(sa.distinct(f.c.decision_id)).label("decisions"),
                sa.func.avg(f.c.score).label("mean"),
            ).where(f.c.created_s >= since)
        )[0]
        return {**total, "models": models, "errors": errors, "feedback": scored}


# ── opening ──────────────────────────────────────────────────────────────────────────────────────


def _open(url: str) -> sa.Engine:
    try:
        engine = _engine(url)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise StoreError(
            f"store.url {_shown(url)!r} cannot be used: {_first_line(error)}.",
            remedy="Give sqlite:///path.db or postgresql://user@host/database.",
        ) from None
    try:
        _migrate(engine)
    except (SQLAlchemyError, OSError) as error:
        engine.dispose()
        raise StoreError(
            f"The store {_shown(url)!r} cannot be opened: {_first_line(error)}.",
            remedy="Check that the path exists and can be written, or change store.url.",
        ) from None
    except StoreError:
        engine.dispose()
        raise
    return engine


def _engine(url: str) -> sa.Engine:
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_pre_ping=True)
    engine = sa.create_engine(url, connect_args={"timeout": 5.0})

    @sa.event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA busy_timeout=5000")
        cursor.close()

    return engine


def _migrate(engine: sa.Engine) -> None:
    """Bring the database to this version's schema. Alembic is imported only where there is work."""
    with engine.connect() as connection:
        version = _version(connection)
    if version == schema.HEAD:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    known = {s.revision for s in ScriptDirectory.from_config(config).walk_revisions()}
    if version is not None and version not in known:
        raise StoreError(
            f"The store has schema {version}, which this version of suffice does not know.",
            remedy="It was written by a newer one: upgrade suffice, or use another store.url.",
        )
    for attempt in range(20):
        try:
            with engine.begin() as connection:
                if engine.dialect.name == "sqlite":
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                if _version(connection) != schema.HEAD:
                    config.attributes["connection"] = connection
                    command.upgrade(config, "head")
            return
        except SQLAlchemyError:
            # Another worker is migrating at this moment: look again.
            if attempt == 19:
                raise
            time.sleep(0.1)
            with engine.connect() as connection:
                if _version(connection) == schema.HEAD:
                    return


def _version(connection: Any) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    row = connection.exec_driver_sql("SELECT version_num FROM alembic_version").first()
    return None if row is None else str(row[0])


def _insert(engine: sa.Engine, table: str, columns: Sequence[str]) -> str:
    marks = {"qmark": "?", "format": "%s", "pyformat": "%s"}
    mark = marks.get(engine.dialect.paramstyle, "%s")
    names = ", ".join(columns)
    values = ", ".join([mark] * len(columns))
    return f"INSERT INTO {table} ({names}) VALUES ({values}) ON CONFLICT DO NOTHING"


def _lines(path: Path | None) -> int:
    return sum(1 for _ in _read_lines(path)) if path is not None else 0


def _read_lines(path: Path) -> Iterator[bytes]:
    if not path.exists():
        return
    with path.open("rb") as file:
        yield from file


def _first_line(error: BaseException) -> str:
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _shown(url: str) -> str:
    """A URL without its password."""
    try:
        return str(sa.make_url(url))
    except SQLAlchemyError:
        return url


def default_spool(url: str) -> Path:
    """Beside the database where it is a file, else in the working directory; one per process."""
    path = url.partition("///")[2] if url.startswith("sqlite") else ""
    base = Path(path) if path and path != ":memory:" else Path("suffice.db")
    return base.with_name(f"{base.name}.{os.getpid()}.spool.jsonl")


def adopt(spool: Path) -> None:
    """Take over what processes that are gone left in their spool files beside `spool`."""
    name = spool.name.removesuffix(f".{os.getpid()}.spool.jsonl")
    for other in spool.parent.glob(f"{name}.*.spool.jsonl"):
        pid = other.name.removesuffix(".spool.jsonl").rpartition(".")[2]
        if other == spool or not pid.isdigit() or _alive(int(pid)):
            continue
        taken = other.with_suffix(f".{os.getpid()}.taken")
        try:
            other.rename(taken)  # whoever renames it first has it
        except FileNotFoundError:
            continue
        with spool.open("ab") as file:
            file.write(taken.read_bytes())
        taken.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
