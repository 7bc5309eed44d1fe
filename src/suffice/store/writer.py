"""Writes queued records in batches; spools them while the database is down."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError, SQLAlchemyError

from suffice.errors import StoreError
from suffice.store.engine import Database, database_file, driver_message, insert_sql, migrate
from suffice.store.rows import ATTEMPT, DECISION, RecordRows, sanitize_row
from suffice.store.spool import BATCH, Spool
from suffice.types import RequestRecord

MAX_QUEUED = 100_000  # records in memory; when there are more, the oldest go to the spool
RETRY_S = 2.0  # pause before a database that is down is tried again

# The database is up and will never take this record: a number or a text that it cannot hold.
_REFUSALS = (IntegrityError, DataError, ArithmeticError, ValueError, TypeError)

_log = logging.getLogger("suffice.store")


class RecordWriter:
    """A queue of records, and the database and spool that it is written to.

    `append` may be called by any thread. All other methods write; one thread at a time calls them.

    Args:
        database: Where records are written.
        spool: Where they wait while the database is down. None: a record is then lost.
        to_rows: The rows of a record.

    Attributes:
        error: Why the last write failed. None: it succeeded.
        lost: Records that were given up.
    """

    def __init__(
        self,
        database: Database,
        spool: Spool | None,
        to_rows: Callable[[RequestRecord], RecordRows],
    ) -> None:
        self.error: str | None = None
        self.lost = 0
        self._database = database
        self._spool = spool
        self._to_rows = to_rows
        self._file = database_file(database.url)
        self._file_id = _file_id(self._file)
        self._queue: deque[RequestRecord] = deque()
        self._unwritten: dict[str, RequestRecord] = {}  # by decision id: queued or being written
        self._retry_at_s = 0.0
        # SQLite reports a value of an unknown type as ProgrammingError, PostgreSQL a missing table.
        sqlite = database.engine.dialect.name == "sqlite"
        self._refusals = (*_REFUSALS, ProgrammingError) if sqlite else _REFUSALS
        self._insert_decision = insert_sql(database.engine, "decisions", DECISION)
        self._insert_attempt = insert_sql(database.engine, "attempts", ATTEMPT)

    def append(self, record: RequestRecord) -> None:
        """Queue a record. Never blocks, never raises."""
        self._unwritten[record.decision.id] = record
        self._queue.append(record)
        if len(self._queue) > MAX_QUEUED:
            self._spill_oldest()

    @property
    def queued(self) -> int:
        """Records in memory."""
        return len(self._queue)

    @property
    def spooled(self) -> int:
        """Records in the spool."""
        return self._spool.count if self._spool is not None else 0

    @property
    def corrupt_lines(self) -> int:
        """Spooled records that could not be read."""
        return self._spool.corrupt_lines if self._spool is not None else 0

    @property
    def down(self) -> bool:
        """Whether the database failed less than `RETRY_S` ago."""
        return time.monotonic() < self._retry_at_s

    def retry_now(self) -> None:
        """Try the database again at the next write, however lately it failed."""
        self._retry_at_s = 0.0

    @property
    def has_work(self) -> bool:
        """Whether there is a record to write now."""
        return bool(self._queue) or (self.spooled > 0 and not self.down)

    def queued_record(self, decision_id: str) -> RequestRecord | None:
        """The record of a decision, if it is in memory."""
        return self._unwritten.get(decision_id)

    def spooled_record(self, decision_id: str) -> RecordRows | None:
        """The rows of a decision, if it is in the spool."""
        return self._spool.find(decision_id) if self._spool is not None else None

    def queues_any(self, decision_ids: set[str]) -> bool:
        """Whether one of the decisions is in memory."""
        return any(i in self._unwritten for i in decision_ids)

    def spools_any(self, decision_ids: set[str]) -> bool:
        """Whether one of the decisions is in the spool."""
        return self._spool is not None and self._spool.holds_any(decision_ids)

    def write_queued(self) -> None:
        """Write all queued records, then those of the spool."""
        while batch := self._pop_batch():
            rows = self._rows_of(batch)
            # While the database is down batches go straight to the spool.
            if (self.error is not None and self.down) or not self._try_write(rows):
                self._to_spool(rows)
            self._forget(batch)
        if self.spooled and not self.down:
            self.replay()

    def replay(self) -> None:
        """Write what was spooled, as far as the database takes it."""
        if self._spool is None:
            return
        try:
            self._spool.replay(self._try_write)
        except OSError as error:
            self.mark_down(error)

    def mark_down(self, error: Exception) -> None:
        """Note a failed write. The database is tried again after `RETRY_S`."""
        self.error = driver_message(error)
        self._retry_at_s = time.monotonic() + RETRY_S

    def mark_up(self) -> None:
        """Note a successful write."""
        self.error = None

    def _pop_batch(self) -> list[RequestRecord]:
        batch: list[RequestRecord] = []
        try:
            while len(batch) < BATCH:
                batch.append(self._queue.popleft())
        except IndexError:  # another thread pops too, so the length is no condition
            pass
        return batch

    def _forget(self, batch: list[RequestRecord]) -> None:
        for record in batch:
            self._unwritten.pop(record.decision.id, None)

    def _spill_oldest(self) -> None:
        """Move the oldest batch to the spool: the database hangs and memory is full."""
        batch = self._pop_batch()
        self._to_spool(self._rows_of(batch))
        self._forget(batch)

    def _rows_of(self, batch: list[RequestRecord]) -> list[RecordRows]:
        rows = []
        for record in batch:
            try:
                rows.append(self._to_rows(record))
            except _REFUSALS as error:
                self._drop(record.decision.id, error)
        return rows

    def _drop(self, decision_id: str, error: Exception) -> None:
        self.lost += 1
        _log.error("record %s cannot be stored: %s", decision_id, driver_message(error))

    def _try_write(self, rows: list[RecordRows]) -> bool:
        """Write rows.

        Records that the database will never take are sanitized or dropped one by one, so that one
        of them does not block the others.

        Returns:
            False if the database is down.
        """
        try:
            self._write(rows)
        except self._refusals as error:
            if len(rows) > 1:
                return all(self._try_write([one]) for one in rows)
            return self._write_sanitized(rows[0], error)
        except (SQLAlchemyError, OSError, StoreError) as error:
            self.mark_down(error)
            return False
        self.mark_up()
        return True

    def _write_sanitized(self, record: RecordRows, error: Exception) -> bool:
        attempts = [sanitize_row(a) for a in record.attempts]
        try:
            self._write([RecordRows(sanitize_row(record.decision), attempts)])
        except self._refusals:
            self._drop(record.decision[0], error)
        except (SQLAlchemyError, OSError) as down:
            self.mark_down(down)
            return False
        self.mark_up()
        return True

    def _write(self, rows: list[RecordRows]) -> None:
        if self._file is not None and _file_id(self._file) != self._file_id:
            self._reopen()
        with self._database.begin() as connection:
            connection.exec_driver_sql(self._insert_decision, [r.decision for r in rows])
            attempts = [a for r in rows for a in r.attempts]
            if attempts:
                connection.exec_driver_sql(self._insert_attempt, attempts)

    def _reopen(self) -> None:
        """Open the database again, because its file was deleted or replaced.

        An open SQLite connection would go on writing to the deleted file.
        """
        _log.warning("the database %s was deleted or replaced: it is opened again", self._file)
        self._database.dispose()
        migrate(self._database.engine)
        self._file_id = _file_id(self._file)

    def _to_spool(self, rows: list[RecordRows]) -> None:
        if not rows:
            return
        try:
            if self._spool is None:
                raise OSError("there is no spool file")
            self._spool.append(rows)
        except (OSError, ValueError) as error:  # a full disk, or a text that is not valid UTF-8
            self.lost += len(rows)
            before = f"{self.error}; and " if self.error else ""
            self.error = f"{before}the spool file: {driver_message(error)}"


def _file_id(path: Path | None) -> tuple[int, int] | None:
    """Device and inode of the file at `path` now. None: there is none."""
    if path is None:
        return None
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino
