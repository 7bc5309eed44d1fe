"""The spool: a file of JSON lines next to the database, for records that it cannot take now."""

from __future__ import annotations

import base64
import glob
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from suffice.store.rows import BINARY, DECISION, DECISION_0001, RecordRows, sanitize_row

BATCH = 512  # records per transaction
_SUFFIX = ".spool.jsonl"


class _Line(msgspec.Struct):
    """One line of the file: one record."""

    decision: list[Any]
    attempts: list[list[Any]]


class _Page(NamedTuple):
    """The next records of a file."""

    file: Path
    records: list[RecordRows]
    end: int  # position behind them, bytes
    lines: int  # lines read, corrupt ones included


class Spool:
    """An append-only file of records, and the files adopted from processes that are gone.

    Threads may append while another one replays.

    Attributes:
        count: Records in the files.
        corrupt_lines: Lines that were skipped, because the process that wrote them was killed.
    """

    def __init__(self, path: Path, *, adopted: list[Path] | None = None) -> None:
        """Open the spool.

        Args:
            path: The file of this process.
            adopted: Files of processes that are gone. They are replayed first.

        Raises:
            OSError: An existing file cannot be read.
        """
        self.path = path
        self.corrupt_lines = 0
        self._lock = threading.Lock()
        self._replayed: dict[Path, int] = {}  # bytes of each file that are in the database already
        self._files = [*(adopted or []), path]  # in the order of replay
        self.count = sum(1 for file in self._files for _ in _lines(file))

    def append(self, records: list[RecordRows]) -> None:
        """Append all records, or none.

        Raises:
            OSError: The file cannot be written.
        """
        lines = b"".join(map(_encode, records))
        with self._lock:
            with self.path.open("ab") as file:
                before = file.tell()
                try:
                    if before and not _ends_with_newline(self.path):
                        file.write(b"\n")  # after a torn line
                    file.write(lines)
                    file.flush()
                except OSError:
                    os.ftruncate(file.fileno(), before)  # the disk filled up half-way
                    raise
            self.count += len(records)

    def find(self, decision_id: str) -> RecordRows | None:
        """The record of a decision, if it is spooled."""
        if not self.count:
            return None
        needle = decision_id.encode()
        with self._lock:
            for line in (line for file in self._files for line in _lines(file)):
                if needle in line:
                    record = _decode(line)
                    if record is not None and record.decision[0] == decision_id:
                        return record
        return None

    def holds_any(self, decision_ids: set[str]) -> bool:
        """Whether the record of one of the decisions is spooled."""
        if not self.count:
            return False
        with self._lock:
            records = (_decode(line) for file in self._files for line in _lines(file))
            return any(r is not None and r.decision[0] in decision_ids for r in records)

    def replay(self, write: Callable[[list[RecordRows]], bool]) -> bool:
        """Pass all records to `write` in batches, oldest first, until it returns False.

        A batch that was written is not read again. A file that was read to its end is deleted.

        Returns:
            Whether all records were written.

        Raises:
            OSError: A file cannot be read.
        """
        while True:
            with self._lock:
                page = self._next_page()
            if page is None:
                return True
            if page.records and not write(page.records):
                return False
            with self._lock:
                self._replayed[page.file] = page.end
                self.count -= page.lines
                self.corrupt_lines += page.lines - len(page.records)

    def _next_page(self) -> _Page | None:
        for path in list(self._files):
            records: list[RecordRows] = []
            read = 0
            position = self._replayed.get(path, 0)
            for line in _lines(path, position):
                position += len(line)
                read += 1
                record = _decode(line)
                if record is not None:
                    records.append(record)
                if len(records) == BATCH:
                    break
            if read:
                return _Page(path, records, position, read)
            path.unlink(missing_ok=True)
            self._replayed.pop(path, None)
            if path != self.path:
                self._files.remove(path)
        return None


def open_spool(base: Path) -> Spool:
    """The spool of this process for the database `base`.

    The file's name contains the process id, so that workers do not share a file. Files of processes
    that are gone are adopted.

    Returns:
        The spool, with the records that it found.

    Raises:
        OSError: A file cannot be read.
    """
    path = base.with_name(f"{base.name}.{os.getpid()}{_SUFFIX}")
    return Spool(path, adopted=_adopt_orphans(path, base.name))


def _adopt_orphans(path: Path, base: str) -> list[Path]:
    """Rename the files of processes that are gone to names of this process.

    A rename is atomic: a file is never lost, and one of several processes gets it.

    Returns:
        The new names.
    """
    pid = str(os.getpid())
    adopted = []
    for orphan in sorted(path.parent.glob(f"{glob.escape(base)}.*{_SUFFIX}")):
        if orphan == path:
            continue
        owner = orphan.name.removeprefix(f"{base}.").removesuffix(_SUFFIX).partition("-")[0]
        if not owner.isdigit() or (owner != pid and alive(int(owner))):
            continue
        n = 1
        while (name := path.with_name(f"{base}.{pid}-{n}{_SUFFIX}")).exists() and name != orphan:
            n += 1
        try:
            orphan.rename(name)
        except FileNotFoundError:
            continue
        adopted.append(name)
    return adopted


def alive(pid: int) -> bool:
    """Whether a process of that number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _encode(record: RecordRows) -> bytes:
    try:
        return _line(record)
    except (ValueError, TypeError, OverflowError):  # a number or a text that JSON cannot hold
        attempts = [sanitize_row(a) for a in record.attempts]
        return _line(RecordRows(sanitize_row(record.decision), attempts))


def _line(record: RecordRows) -> bytes:
    row = list(record.decision)
    for column in BINARY:
        if row[column] is not None:
            row[column] = base64.b64encode(row[column]).decode()
    return msgspec.json.encode(_Line(row, [list(a) for a in record.attempts])) + b"\n"


def _decode(line: bytes) -> RecordRows | None:
    """The record of a line. None: the line is corrupt."""
    try:
        decoded = msgspec.json.decode(line, type=_Line)
        row = decoded.decision
        if not len(DECISION_0001) <= len(row) <= len(DECISION):
            return None
        row += [None] * (len(DECISION) - len(row))  # an earlier version wrote it
        for column in BINARY:
            if row[column] is not None:
                row[column] = base64.b64decode(row[column])
    except (ValueError, TypeError):  # msgspec.DecodeError is a ValueError
        return None
    return RecordRows(tuple(row), [tuple(a) for a in decoded.attempts])


def _lines(path: Path, start: int = 0) -> Iterator[bytes]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(start)
        yield from file


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
