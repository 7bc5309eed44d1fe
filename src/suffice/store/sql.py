"""The store over SQLAlchemy Core: SQLite by default, PostgreSQL by URL.

`append` queues a record and returns. One writer thread drains the queue every 50 ms, so a process
that is killed with -9 loses at most the records of its last 100 ms. While the database is down,
records go to a spool file and are written later. Nothing is lost and nothing is counted twice,
because inserts skip an id that exists already.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from suffice.errors import StoreError
from suffice.store import schema
from suffice.store.engine import BUSY_S, Database, driver_message, spool_base
from suffice.store.feedback import SqlFeedback
from suffice.store.leases import SqlLearnerStates, SqlLeases
from suffice.store.protocols import Row
from suffice.store.records import Spend, StoreHealth
from suffice.store.registry import SqlRegistry
from suffice.store.rows import (
    ATTEMPT,
    DECISION,
    Embed,
    RecordRows,
    Shadow,
    attempts_of,
    to_dict,
    to_rows,
)
from suffice.store.spool import Spool, open_spool
from suffice.store.summary import summarize
from suffice.store.writer import RecordWriter
from suffice.types import RequestRecord

INTERVAL_S = 0.05  # between two writes of the queue

_d, _a = schema.decisions, schema.attempts
_SHOWN = [c for c in _d.c if c.name != "embedding"]


class SqlStore:
    """Store over one database.

    Args:
        url: An SQLAlchemy URL of SQLite or PostgreSQL.
        keep_prompts: Store the text of prompts.
        spool: The file for records that the database cannot take now. None: next to the database.
        embed: Makes the embedding of a query, on the writer's thread. None: none are stored.
        shadow: What another policy would have decided, likewise.

    Raises:
        StoreError: The database or the spool cannot be opened.
    """

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
        self._keep_prompts = keep_prompts
        self._embed = embed
        self._shadow = shadow
        self._writer = RecordWriter(database, _open_spool(database, spool), self._to_rows)
        self.feedback = SqlFeedback(database, self._ensure_written)
        self.registry = SqlRegistry(database)
        self.leases = SqlLeases(database)
        self.learner_states = SqlLearnerStates(database)
        self._lock = threading.Lock()  # held while the queue is written
        self._stop = threading.Event()
        self._writer.replay()
        self._thread = threading.Thread(target=self._run, name="suffice-store", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a script that never closes the store keeps its last record

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def append(self, record: RequestRecord) -> None:
        """Queue a record. Never blocks, never raises."""
        self._writer.append(record)

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            if self._writer.has_work or self.feedback.pending:
                with self._lock:
                    self._drain()

    def _drain(self) -> None:
        # Counted before the records are written: these scores are about records queued earlier.
        n_scores = self.feedback.pending
        self._writer.write_queued()
        if n_scores and not self._writer.down:
            self._write_feedback(n_scores)

    def _write_feedback(self, n: int) -> None:
        try:
            if self._writer.spooled:
                raise StoreError("their decisions wait in the spool file")
            self.feedback.write_pending(n)
        except StoreError as error:
            self._writer.mark_down(error)
        else:
            self._writer.mark_up()

    def _to_rows(self, record: RequestRecord) -> RecordRows:
        return to_rows(record, self._keep_prompts, self._embed, self._shadow)

    def _ensure_written(self, decision_ids: set[str]) -> None:
        if self._writer.queues_any(decision_ids):
            self.flush()
        if self._writer.spools_any(decision_ids):
            raise StoreError(
                "The store cannot take feedback now: the decision itself waits to be written.",
                remedy="Send it again later.",
            )

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Write everything that is queued.

        Args:
            timeout_s: How long to wait for a write that is under way.

        Returns:
            False if the write failed, or could not begin in time.
        """
        if not self._lock.acquire(timeout=timeout_s):
            return False
        try:
            self._drain()
        finally:
            self._lock.release()
        return self._writer.error is None

    def close(self) -> None:
        """Write everything that is queued and close the database. Idempotent."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join(2 * BUSY_S)
        self._writer.retry_now()
        self.flush()
        self.database.dispose()
        atexit.unregister(self.close)

    def warm_up(self) -> None:
        """Compile the statements of feedback, so that no client waits for them. Writes nothing."""
        self.feedback.warm_up()

    def health(self) -> StoreHealth:
        """How the last write went, and how many records wait."""
        writer = self._writer
        return StoreHealth(
            ok=writer.error is None,
            pending=writer.queued + self.feedback.pending,
            spooled=writer.spooled,
            lost=writer.lost + self.feedback.lost + writer.corrupt_lines,
            error=writer.error,
        )

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def decision(self, decision_id: str) -> Row | None:
        """One decision with its attempts and current feedback, also before it is written."""
        unwritten = self._unwritten(decision_id)
        if unwritten is not None:
            row = dict(zip(DECISION, unwritten.decision, strict=True))
            attempts = [dict(zip(ATTEMPT, a, strict=True)) for a in unwritten.attempts]
            feedback = []
        else:
            rows = self.database.rows(sa.select(*_SHOWN).where(_d.c.id == decision_id))
            if not rows:
                return None
            row = rows[0]
            query = sa.select(_a).where(_a.c.decision_id == decision_id).order_by(_a.c.number)
            attempts = [] if row["only_attempt"] is not None else self.database.rows(query)
            feedback = self.feedback.current(decision_id)
        return {**to_dict(row), "attempts": attempts_of(row, attempts), "feedback": feedback}

    def _unwritten(self, decision_id: str) -> RecordRows | None:
        # In the order in which a record travels, so that one on its way is not missed.
        record = self._writer.queued_record(decision_id)
        if record is not None:  # only the writer's thread makes embeddings
            return to_rows(record, self._keep_prompts, None, self._shadow)
        return self._writer.spooled_record(decision_id)

    def decisions(
        self, *, since_s: float | None = None, route: str | None = None, limit: int = 100
    ) -> Sequence[Row]:
        """The newest decisions first; `attempts` is their number."""
        self.flush()
        query = sa.select(*_SHOWN).order_by(_d.c.id.desc()).limit(limit)
        if since_s is not None:
            query = query.where(_d.c.created_s >= since_s)
        if route is not None:
            query = query.where(_d.c.route == route)
        return [to_dict(row) for row in self.database.rows(query)]

    def summary(self, *, since_s: float | None = None) -> Row:
        """Totals: requests, cost, tokens, failures, per model, and feedback."""
        self.flush()
        return summarize(self.database, since_s or 0.0)

    def spend(self, route: str, since_s: float, until_s: float | None = None) -> Spend:
        """Cost of a route's requests in [since_s, until_s), unix time."""
        self.flush()
        query = sa.select(
            sa.func.coalesce(sa.func.sum(_d.c.cost_usd), 0.0).label("usd"),
            sa.func.count().label("requests"),
            (sa.func.count() - sa.func.count(_d.c.cost_usd)).label("unknown"),
        ).where(_d.c.route == route, _d.c.created_s >= since_s)
        if until_s is not None:
            query = query.where(_d.c.created_s < until_s)
        return Spend(**self.database.rows(query)[0])


def _open_spool(database: Database, path: Path | None) -> Spool | None:
    base = spool_base(database.url)
    try:
        return Spool(path) if path is not None else open_spool(base) if base is not None else None
    except OSError as error:
        database.dispose()
        raise StoreError(
            f"Records of an earlier run cannot be read: {driver_message(error)}.",
            remedy="Make the spool file readable, or move it away.",
        ) from None
