"""Where records wait while the database is down: lines of JSON in a file beside it."""

from __future__ import annotations

import base64
import glob
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from suffice.store.rows import BINARY, DECISION, DECISION_0001, Row, sanitize_row

Rows = list[tuple[Row, list[Row]]]

BATCH = 512
_SUFFIX = ".spool.jsonl"


class _Line(msgspec.Struct):
    """One record of the file."""

    decision: list[Any]
    attempts: list[list[Any]]


class Spool:
    """An append-only file of records, and the files taken over from processes that are gone.

    Threads may append while another replays. `count`: records in it; `corrupt_lines`: lines given up
    because the process that wrote them was killed meanwhile.
    """

    def __init__(self, path: Path, *, taken_over: list[Path] | None = None) -> None:
        """Raises OSError where a file that is there cannot be read."""
        self.path = path
        self.corrupt_lines = 0
        self._lock = threading.Lock()
        self._read_to: dict[Path, int] = {}  # bytes of each file that are in the database already
        self._files = [*(taken_over or []), path]  # the order of replay
        self.count = sum(1 for f in self._files for _ in _lines(f))

    def append(self, rows: Rows) -> None:
        """Add records; all of them, or none and OSError."""
        lines = b"".join(_encoded(row, tries) for row, tries in rows)
        with self._lock:
            with self.path.open("ab") as file:
                before = file.tell()
                try:
                    if before and not _ends_a_line(self.path):
                        file.write(b"\n")  # after a torn line
                    file.write(lines)
                    file.flush()
                except OSError:
                    os.ftruncate(file.fileno(), before)  # a disk that filled up half-way
                    raise
            self.count += len(rows)

    def find(self, decision_id: str) -> tuple[Row, list[Row]] | None:
        """The record of that decision, where it waits here."""
        if not self.count:
            return None
        needle = decision_id.encode()
        with self._lock:
            for file in self._files:
                for line in _lines(file):
                    if needle in line:
                        found = _decoded(line)
                        if found is not None and found[0][0] == decision_id:
                            return found
        return None

    def holds_any(self, decision_ids: set[str]) -> bool:
        """Does the record of one of them wait here?"""
        if not self.count:
            return False
        with self._lock:
            found = (_decoded(line) for file in self._files for line in _lines(file))
            return any(f is not None and f[0][0] in decision_ids for f in found)

    def replay(self, write: Callable[[Rows], bool]) -> bool:
        """Hand all records to `write` in batches, oldest first, until it says False.

        Whatever was written is not read again; a file that is through is removed. Raises OSError.
        """
        while True:
            with self._lock:
                batch = self._next_batch()
            if batch is None:
                return True
            path, rows, read_to, read = batch
            if rows and not write(rows):
                return False
            with self._lock:
                self._read_to[path] = read_to
                self.count -= read
                self.corrupt_lines += read - len(rows)

    def _next_batch(self) -> tuple[Path, Rows, int, int] | None:
        """(file, its next records, the position behind them, lines read); None = nothing left."""
        for path in list(self._files):
            rows: Rows = []
            read = 0
            position = self._read_to.get(path, 0)
            for line in _lines(path, position):
                position += len(line)
                read += 1
                found = _decoded(line)
                if found is not None:
                    rows.append(found)
                if len(rows) == BATCH:
                    break
            if read:
                return path, rows, position, read
            path.unlink(missing_ok=True)
            self._read_to.pop(path, None)
            if path != self.path:
                self._files.remove(path)
        return None


def open_spool(base: Path) -> Spool:
    """The spool of this process beside the database `base`.

    Its file carries the process's id, so that workers do not share it; what processes that are gone
    left in theirs is taken over. Raises OSError.
    """
    own = base.with_name(f"{base.name}.{os.getpid()}{_SUFFIX}")
    return Spool(own, taken_over=adopt_orphans(own, base.name))


def adopt_orphans(own: Path, base: str) -> list[Path]:
    """Rename what dead processes left to names of our own: in one step, so that it is never lost,
    and whoever renames first has it."""
    mine = str(os.getpid())
    taken = []
    for other in sorted(own.parent.glob(f"{glob.escape(base)}.*{_SUFFIX}")):
        if other == own:
            continue
        owner = other.name.removeprefix(f"{base}.").removesuffix(_SUFFIX).partition("-")[0]
        if not owner.isdigit() or (owner != mine and alive(int(owner))):
            continue
        n = 1
        while (name := own.with_name(f"{base}.{mine}-{n}{_SUFFIX}")).exists() and name != other:
            n += 1
        try:
            other.rename(name)
        except FileNotFoundError:
            continue
        taken.append(name)
    return taken


def alive(pid: int) -> bool:
    """Whether a process of that number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _encoded(row: Row, tries: list[Row]) -> bytes:
    try:
        return _line(row, tries)
    except (ValueError, TypeError, OverflowError):  # a number or a text that JSON cannot hold
        return _line(sanitize_row(row), [sanitize_row(a) for a in tries])


def _line(row: Row, tries: list[Row]) -> bytes:
    plain = list(row)
    for i in BINARY:
        if plain[i] is not None:
            plain[i] = base64.b64encode(plain[i]).decode()
    return msgspec.json.encode(_Line(plain, [list(a) for a in tries])) + b"\n"


def _decoded(line: bytes) -> tuple[Row, list[Row]] | None:
    try:
        found = msgspec.json.decode(line, type=_Line)
        row = found.decision
        if not len(DECISION_0001) <= len(row) <= len(DECISION):
            return None
        row += [None] * (len(DECISION) - len(row))  # an earlier version wrote it
        for i in BINARY:
            if row[i] is not None:
                row[i] = base64.b64decode(row[i])
    except (ValueError, TypeError):  # msgspec.DecodeError is a ValueError
        return None
    return tuple(row), [tuple(a) for a in found.attempts]


def _lines(path: Path, start: int = 0) -> Iterator[bytes]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(start)
        yield from file


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
