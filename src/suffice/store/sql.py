"""The store over SQLAlchemy Core: SQLite by default, PostgreSQL by URL.

`append` puts a record into memory and returns; one writer thread drains it every 50 ms. Killed with
-9, a gateway loses at most the records of its last 100 ms. While the database is unreachable,
records go to a spool file beside it and are written when it is back: nothing is lost, nothing
counted twice (inserts ignore an id that is there already).

The rooms beside it: `scores` (feedback), `snapshots` (what was learned), `learner` (its state).
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError, SQLAlchemyError

from suffice.errors import StoreError
from suffice.store import schema
from suffice.store.engine import (
    BUSY_S,
    Database,
    database_file,
    driver_message,
    insert_sql,
    migrate,
    spool_base,
)
from suffice.store.feedback import SqlFeedback
from suffice.store.leases import SqlLearnerStates, SqlLeases
from suffice.store.registry import SqlRegistry
from suffice.store.rows import ATTEMPT, DECISION, Embed, Row, Shadow, sanitize_row, to_dict, to_rows
from suffice.store.spool import BATCH, Rows, Spool, open_spool
from suffice.store.summary import summarize
from suffice.types import RequestRecord, Spend, StoreHealth

EVERY_S = 0.05
IN_MEMORY = 100_000  # records; past it the oldest go to the spool file
_RETRY_S = 2.0

# The database is well and will never take this record: a number or a text it cannot hold.
_REFUSED = (IntegrityError, DataError, ArithmeticError, ValueError, TypeError)

_log = logging.getLogger("suffice.store")


# Every column but the embedding, which nobody looks at.
_SHOWN = [c for c in schema.decisions.c if c.name != "embedding"]


class SqlStore:
    """Store over one database. Reading and feedback use separate connections."""

    def __init__(
        self,
        url: str,
        *,
        keep_prompts: bool = False,
        spool: Path | None = None,
        embed: Embed | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        self.database = database = Database(url)
        self.feedback = SqlFeedback(database, self._ensure_written)
        self.registry = SqlRegistry(database)
        self.leases = SqlLeases(database)
        self.learner_states = SqlLearnerStates(database)
        self._keep_prompts = keep_prompts
        self._embed = embed
        self._shadow = shadow
        self._file = database_file(url)
        self._inode = _inode(self._file)
        base = spool_base(url)
        try:
            self._spool = Spool(spool) if spool else open_spool(base) if base else None
        except OSError as error:
            self.database.engine.dispose()
            raise StoreError(
                f"Records of an earlier run cannot be read: {driver_message(error)}.",
                remedy="Make the spool file readable, or move it away.",
            ) from None
        self._pending: deque[RequestRecord] = deque()
        self._recent: dict[str, RequestRecord] = {}  # not yet written, by decision id
        self._lock = threading.Lock()  # one batch at a time: the writer's, or a flush
        self._wake = threading.Event()
        self._closing = False
        self._error: str | None = None
        self._lost = 0
        self._retry_at_s = 0.0
        # SQLite calls a value of a type it does not know a ProgrammingError, PostgreSQL a table.
        sqlite = self.database.engine.dialect.name == "sqlite"
        self._refused = (*_REFUSED, ProgrammingError) if sqlite else _REFUSED
        self._insert = insert_sql(self.database.engine, "decisions", DECISION)
        self._insert_attempts = insert_sql(self.database.engine, "attempts", ATTEMPT)
        self._replay()
        self._thread = threading.Thread(
            target=self._write_forever, name="suffice-store", daemon=True
        )
        self._thread.start()
        atexit.register(self.close)  # a script that never closes keeps its last call

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def append(self, record: RequestRecord) -> None:
        """Take a record. Never blocks, never raises."""
        self._recent[record.decision.id] = record
        self._pending.append(record)
        if len(self._pending) > IN_MEMORY:
            self._spill_oldest()

    def _write_forever(self) -> None:
        while not self._closing:
            self._wake.wait(EVERY_S)
            if self._pending or self.feedback.pending or self._waiting():
                with self._lock:
                    self._drain()

    def _waiting(self) -> bool:
        """Are there spooled records, and is it time to try them again?"""
        return bool(self._spool and self._spool.count) and time.monotonic() >= self._retry_at_s

    def _drain(self) -> None:
        n_scores = self.feedback.pending  # before the records: theirs are among those taken now
        while batch := self._pop_batch():
            rows = self._rows_of(batch)
            # While the database is down each batch goes straight to the file, which is tried again
            # every two seconds.
            down = self._error is not None and time.monotonic() < self._retry_at_s
            if down or not self._try_write(rows):
                self._to_spool(rows)
            self._forget(batch)
        if self._waiting():
            self._replay()
        if n_scores and time.monotonic() >= self._retry_at_s:
            self._write_feedback(n_scores)

    def _write_feedback(self, n: int) -> None:
        if self._spool is not None and self._spool.count:
            self._mark_down(StoreError("their decisions wait in the spool file"))
            return
        try:
            self.feedback.write_pending(n)
            self._error = None
        except StoreError as error:
            self._mark_down(error)

    def _pop_batch(self) -> list[RequestRecord]:
        batch: list[RequestRecord] = []
        try:
            while len(batch) < BATCH:
                batch.append(self._pending.popleft())
        except IndexError:  # another thread may take some too, so the length says nothing
            pass
        return batch

    def _forget(self, batch: list[RequestRecord]) -> None:
        for r in batch:
            self._recent.pop(r.decision.id, None)

    def _spill_oldest(self) -> None:
        """The database hangs and memory is full: the oldest batch goes to the file."""
        batch = self._pop_batch()
        self._to_spool(self._rows_of(batch))
        self._forget(batch)

    def _rows_of(self, batch: list[RequestRecord]) -> Rows:
        rows = []
        for r in batch:
            try:
                rows.append(to_rows(r, self._keep_prompts, self._embed, self._shadow))
            except _REFUSED as error:
                self._drop_record(r.decision.id, error)
        return rows

    def _drop_record(self, decision_id: str, error: Exception) -> None:
        self._lost += 1
        _log.error("record %s cannot be stored: %s", decision_id, driver_message(error))

    def _try_write(self, rows: Rows) -> bool:
        """False: the database is down. Records that it will never take are repaired or given up,
        so that one of them cannot hold up the others."""
        try:
            self._write(rows)
        except self._refused as error:
            if len(rows) > 1:
                return all(self._try_write([one]) for one in rows)
            mended = [sanitize_row(row) for row in (rows[0][0], *rows[0][1])]
            try:
                self._write([(mended[0], mended[1:])])
            except self._refused:
                self._drop_record(rows[0][0][0], error)
            except (SQLAlchemyError, OSError) as down:
                return self._mark_down(down)
        except (SQLAlchemyError, OSError, StoreError) as error:
            return self._mark_down(error)
        self._error = None
        return True

    def _mark_down(self, error: Exception) -> bool:
        self._error = driver_message(error)
        self._retry_at_s = time.monotonic() + _RETRY_S
        return False

    def _write(self, rows: Rows) -> None:
        if self._file is not None and _inode(self._file) != self._inode:
            self._reopen()
        with self.database.begin() as connection:
            connection.exec_driver_sql(self._insert, [row for row, _ in rows])
            tries = [a for _, attempts in rows for a in attempts]
            if tries:
                connection.exec_driver_sql(self._insert_attempts, tries)

    def _reopen(self) -> None:
        """The file was deleted or replaced under us: an open SQLite would go on writing to the one
        that nobody can see any more."""
        _log.warning("the database %s was deleted or replaced: opening it anew", self._file)
        self.database.engine.dispose()
        migrate(self.database.engine)
        self._inode = _inode(self._file)

    def _to_spool(self, rows: Rows) -> None:
        if not rows:
            return
        try:
            if self._spool is None:
                raise OSError("there is no spool file")
            self._spool.append(rows)
        except (OSError, ValueError) as error:  # a full disk, or a text that is no UTF-8
            self._lost += len(rows)
            before = f"{self._error}; and " if self._error else ""
            self._error = f"{before}the spool file: {driver_message(error)}"

    def _replay(self) -> None:
        """Write what was spooled, as far as the database takes it."""
        if self._spool is None:
            return
        try:
            self._spool.replay(self._try_write)
        except OSError as error:
            self._mark_down(error)

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
        self._thread.join(2 * BUSY_S)
        self._retry_at_s = 0.0  # a last try, however lately the database refused
        self.flush()
        self.database.engine.dispose()
        atexit.unregister(self.close)

    def warm_up(self) -> None:
        """Compile the statements of feedback, so that no client waits for them. Writes nothing."""
        self.feedback.warm_up()

    def health(self) -> StoreHealth:
        """How the last write went, and what waits."""
        return StoreHealth(
            ok=self._error is None,
            pending=len(self._pending) + self.feedback.pending,
            spooled=self._spool.count if self._spool else 0,
            lost=self._lost
            + self.feedback.lost
            + (self._spool.corrupt_lines if self._spool else 0),
            error=self._error,
        )

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def decision(self, decision_id: str) -> dict[str, Any] | None:
        """One decision with its attempts and feedback, also when it is not yet written."""
        unwritten = self._unwritten(decision_id)
        if unwritten is not None:
            row, tries = unwritten
            found = dict(zip(DECISION, row, strict=True))
            attempts = [dict(zip(ATTEMPT, a, strict=True)) for a in tries]
        else:
            rows = self.database.rows(
                sa.select(*_SHOWN).where(schema.decisions.c.id == decision_id)
            )
            if not rows:
                return None
            found = rows[0]
            t = schema.attempts
            attempts = self.database.rows(
                sa.select(t).where(t.c.decision_id == decision_id).order_by(t.c.number)
            )
        found["features_blob"] = found.pop("features")
        for a in attempts:
            a.pop("decision_id")
        out = to_dict(found, attempts)
        out["feedback"] = self.feedback.current(decision_id) if unwritten is None else []
        return out

    def _unwritten(self, decision_id: str) -> tuple[Row, list[Row]] | None:
        # In the order in which a record travels, so that one on its way is not missed.
        waiting = self._recent.get(decision_id)
        if waiting is not None:
            return to_rows(waiting, self._keep_prompts, None, self._shadow)
        return self._spool.find(decision_id) if self._spool else None

    def decisions(
        self, *, since_s: float | None = None, route: str | None = None, limit: int = 100
    ) -> Sequence[dict[str, Any]]:
        """The newest decisions first, without attempts."""
        self.flush()
        t = schema.decisions
        query = sa.select(*_SHOWN).order_by(t.c.id.desc()).limit(limit)
        if since_s is not None:
            query = query.where(t.c.created_s >= since_s)
        if route is not None:
            query = query.where(t.c.route == route)
        out = []
        for row in self.database.rows(query):
            row["features_blob"] = row.pop("features")
            n = row["attempts"]
            out.append({**to_dict(row, []), "attempts": n})
        return out

    def _ensure_written(self, decision_ids: set[str]) -> None:
        if any(i in self._recent for i in decision_ids):
            self.flush()
        if self._spool is not None and self._spool.holds_any(decision_ids):
            raise StoreError(
                "The store cannot take feedback now: the decision itself waits to be written.",
                remedy="Send it again later.",
            )

    def summary(self, *, since_s: float | None = None) -> dict[str, Any]:
        """Totals: requests, cost (and how many costs are unknown), tokens, shares, failures."""
        self.flush()
        return summarize(self.database, since_s or 0.0)

    def spend(self, route: str, since_s: float, until_s: float | None = None) -> Spend:
        """What a route's requests from `since_s` on (and before `until_s`), unix time, have cost."""
        self.flush()
        d = schema.decisions
        query = sa.select(
            sa.func.coalesce(sa.func.sum(d.c.cost_usd), 0.0).label("usd"),
            sa.func.count().label("requests"),
            (sa.func.count() - sa.func.count(d.c.cost_usd)).label("unknown"),
        ).where(d.c.route == route, d.c.created_s >= since_s)
        if until_s is not None:
            query = query.where(d.c.created_s < until_s)
        return Spend(**self.database.rows(query)[0])


def _inode(path: Path | None) -> tuple[int, int] | None:
    """Which file stands at `path` now; None = none."""
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
