"""A journal of paid calls that survives a crash: one JSON object per line, appended and synced.

    intent    a call is about to be made, with its maximum cost
    answer    an answer, with tokens, cost and time
    failed    a call that failed, and why; it is made again on the next run
    lost      an intent without an end: the process died meanwhile. Counted at its maximum cost
    sample    which queries were selected, so that another run selects the same
    run       the options of a run

A call is identified by its key, a hash of model, messages and parameters: the same call is never
paid for twice, even if other things change between runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from hashlib import blake2b
from pathlib import Path
from typing import Self

import msgspec

from suffice.errors import JobError, TableError, UsageError
from suffice.types import Usage


class CallStarted(msgspec.Struct, frozen=True, tag_field="kind", tag="intent", omit_defaults=True):
    """A call is about to be made."""

    key: str
    model: str
    worst_usd: float
    at_s: float


class Answer(msgspec.Struct, frozen=True, tag_field="kind", tag="answer", omit_defaults=True):
    """An answer of a model or a judge."""

    key: str
    model: str
    text: str
    charged_usd: float  # what the cap counts
    cost_usd: float | None  # None = unknown price or tokens
    usage: Usage | None
    latency_s: float
    finish_reason: str | None
    at_s: float
    query_id: str = ""
    purpose: str = "answer"  # or "judge-1", the version of the judge's prompt
    verdict: str | None = None  # of a judge, as it was parsed


class Failed(msgspec.Struct, frozen=True, tag_field="kind", tag="failed", omit_defaults=True):
    """A call that failed."""

    key: str
    model: str
    why: str
    error: str
    charged_usd: float  # its maximum cost if the upstream may have charged for it, else 0
    at_s: float
    query_id: str = ""


class CallLost(msgspec.Struct, frozen=True, tag_field="kind", tag="lost"):
    """A call whose process died before its end."""

    key: str
    model: str
    charged_usd: float
    at_s: float


class SamplingRound(msgspec.Struct, frozen=True):
    """Rows of the pool: some selected by design, then some at random from all others."""

    chosen: list[int]
    random: list[int]


class SampleChosen(msgspec.Struct, frozen=True, tag_field="kind", tag="sample"):
    """The selection of `--sample`."""

    pool: str  # hash of the queries selected from
    seed: int
    size: int  # of the sample, as requested
    passes: list[SamplingRound]  # the first selection, and what each larger size added
    at_s: float


class Run(msgspec.Struct, frozen=True, tag_field="kind", tag="run"):
    """The options of a run."""

    version: int
    suffice: str
    queries: str
    models: list[str]
    scorer: str
    judge: str | None
    reference: str | None
    temperature: float | None
    max_output_tokens: int
    seed: int
    at_s: float


JournalEntry = CallStarted | Answer | Failed | CallLost | SampleChosen | Run
VERSION = 1

_decode = msgspec.json.Decoder(JournalEntry).decode
_encode = msgspec.json.encode


def key_of(model: str, messages: bytes, *parameters: object) -> str:
    """The key of a call: the same key means the same call. messages: JSON as it is sent."""
    h = blake2b(digest_size=16)
    for part in (model.encode(), messages, *(repr(p).encode() for p in parameters)):
        h.update(b"%d:" % len(part) + part)
    return h.hexdigest()


class CallJournal:
    """The journal of one table. Only one process at a time can open it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Answer] = {}  # by key
        self.failures: dict[str, Failed] = {}  # by key; dropped once there is an answer
        self.samples: list[SampleChosen] = []
        self.runs: list[Run] = []
        self.charged_usd = 0.0  # by all runs, with what may have been charged for failed calls
        self.uncertain_usd = 0.0  # part of charged_usd: failed and lost calls at their maximum cost
        self.lost = 0  # calls that an earlier run left open
        self._open_calls: dict[str, CallStarted] = {}
        self._fd = -1
        self._size = 0
        self._created_folder = False

    def open(self) -> Self:
        """Read the journal, drop an incomplete last line, and take the lock.

        Returns:
            The journal itself.

        Raises:
            UsageError: If another process has it open, or it cannot be written.
            TableError: If a line is not a journal entry.
        """
        try:
            self._created_folder = not self.path.parent.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise UsageError(f"--out: {self.path} cannot be written: {error.strerror}.") from None
        try:
            self._lock()
            data = self.path.read_bytes()
            self._size = data.rfind(b"\n") + 1
            for number, line in enumerate(data[: self._size].splitlines(), 1):
                self._read_line(line, number)
            if self._size < len(data):
                os.ftruncate(self._fd, self._size)
            self.lost = len(self._open_calls)
            self.close_unfinished()
        except BaseException:
            self.close()
            raise
        return self

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows has no flock; the lock is optional there
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{self.path} is being written by another suffice collect.",
                remedy="Wait for it, or choose another --out.",
            ) from None

    def _read_line(self, line: bytes, number: int) -> None:
        try:
            entry = _decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TableError(
                f"not an entry of this journal: {error}.",
                path=str(self.path),
                row=number,
                remedy="Remove that line, or choose another --out.",
            ) from None
        if isinstance(entry, Run) and entry.version > VERSION:
            raise TableError(
                f"this journal was written by suffice {entry.suffice}, which is newer.",
                path=str(self.path),
                row=number,
                remedy="Update suffice, or choose another --out.",
            )
        self._apply(entry)

    def _apply(self, entry: JournalEntry) -> None:
        if isinstance(entry, CallStarted):
            self._open_calls[entry.key] = entry
            return
        if isinstance(entry, SampleChosen):
            self.samples.append(entry)
            return
        if isinstance(entry, Run):
            self.runs.append(entry)
            return
        self._open_calls.pop(entry.key, None)
        self.charged_usd += entry.charged_usd
        if isinstance(entry, Answer):
            self.answers[entry.key] = entry
            self.failures.pop(entry.key, None)
            self.uncertain_usd += max(0.0, entry.charged_usd - (entry.cost_usd or 0.0))
            return
        self.uncertain_usd += entry.charged_usd
        if isinstance(entry, Failed):
            self.failures[entry.key] = entry

    def append(self, entry: JournalEntry) -> None:
        """Append without waiting for the disk. It survives the process, but not a power failure."""
        self._append(entry)

    async def append_synced(self, entry: JournalEntry) -> None:
        """Append and wait until it is on disk.

        Raises:
            JobError: If it cannot be written.
        """
        self._append(entry)
        try:
            await asyncio.to_thread(os.fsync, self._fd)
        except OSError as error:
            raise self._write_error(error) from None

    def _append(self, entry: JournalEntry) -> None:
        line = _encode(entry) + b"\n"
        try:
            written = os.write(self._fd, line)
            if written < len(line):
                os.ftruncate(self._fd, self._size)  # no incomplete line may precede others
                raise OSError(28, "the disk is full")
        except OSError as error:
            raise self._write_error(error) from None
        self._size += len(line)
        self._apply(entry)

    def _write_error(self, error: OSError) -> JobError:
        return JobError(
            f"{self.path} cannot be written: {error.strerror}.",
            remedy="Earlier entries are safe. Free some space and run the same command again.",
        )

    def close_unfinished(self) -> None:
        """Count calls that were started and will have no end, at their maximum cost."""
        for intent in list(self._open_calls.values()):
            self._append(CallLost(intent.key, intent.model, intent.worst_usd, time.time()))

    def close(self) -> None:
        """Release the lock, and remove an empty journal."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if not os.fstat(fd).st_size:
                self.path.unlink(missing_ok=True)  # nothing was written
                if self._created_folder:
                    with contextlib.suppress(OSError):  # the folder is used by now
                        self.path.parent.rmdir()
            os.close(fd)
