"""What was paid for, kept so that no crash loses it: one JSON object a line, appended, synced.

    intent    a call is about to be made; what it costs at most
    answer    what came back, with tokens, money and time
    failed    what did not come back, and why; asked again on the next run
    lost      an intent without an end: the process died meanwhile. Counted at its worst case
    sample    which queries were chosen, so that another run chooses the same

Whether a call was already answered is told by its key, a hash of model, messages and parameters:
the same question is never paid for twice, whatever else changes between runs.
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
    key: str
    model: str
    worst_usd: float
    at_s: float


class Answer(msgspec.Struct, frozen=True, tag_field="kind", tag="answer", omit_defaults=True):
    """charged_usd: what the cap counts, cost_usd where that is known; None = unknown price or
    tokens. verdict: what a judge said, as it was read."""

    key: str
    model: str
    text: str
    charged_usd: float
    cost_usd: float | None
    usage: Usage | None
    latency_s: float
    finish_reason: str | None
    at_s: float
    query_id: str = ""
    purpose: str = "answer"  # or "judge-1", the version of the judge's prompt
    verdict: str | None = None


class Failed(msgspec.Struct, frozen=True, tag_field="kind", tag="failed", omit_defaults=True):
    """charged_usd: the worst case where the upstream may have charged for it, else 0."""

    key: str
    model: str
    why: str
    error: str
    charged_usd: float
    at_s: float
    query_id: str = ""


class CallLost(msgspec.Struct, frozen=True, tag_field="kind", tag="lost"):
    key: str
    model: str
    charged_usd: float
    at_s: float


class SamplingRound(msgspec.Struct, frozen=True):
    """Rows of the pool: some chosen on purpose, then some at random of all that were left."""

    chosen: list[int]
    random: list[int]


class Sampled(msgspec.Struct, frozen=True, tag_field="kind", tag="sample"):
    """What `--sample` chose. pool: hash of the queries chosen from. size: how many were wanted.
    passes: the first choice, and what each wish for more added."""

    pool: str
    seed: int
    size: int
    passes: list[SamplingRound]
    at_s: float


class Run(msgspec.Struct, frozen=True, tag_field="kind", tag="run"):
    """A run began, and as what."""

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


Record = CallStarted | Answer | Failed | CallLost | Sampled | Run
VERSION = 1

_decode = msgspec.json.Decoder(Record).decode
_encode = msgspec.json.encode


def key_of(model: str, messages: bytes, *parameters: object) -> str:
    """What makes two calls the same. messages: JSON as it is sent."""
    h = blake2b(digest_size=16)
    for part in (model.encode(), messages, *(repr(p).encode() for p in parameters)):
        h.update(b"%d:" % len(part) + part)
    return h.hexdigest()


class Ledger:
    """The ledger of one table. Only one process at a time may have it open.

    answers, failures: by key; a failure is dropped once there is an answer. charged_usd: all money
    of all runs, what may have been charged for failed and lost calls included. lost: how many calls
    an earlier run left open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Answer] = {}
        self.failures: dict[str, Failed] = {}
        self.samples: list[Sampled] = []
        self.runs: list[Run] = []
        self.charged_usd = 0.0
        self.uncertain_usd = 0.0  # of charged_usd: failed and lost calls at their worst case
        self.lost = 0
        self._intents: dict[str, CallStarted] = {}
        self._fd = -1
        self._size = 0
        self._made = False

    def open(self) -> Self:
        """Reads what is there, drops a torn last line, and takes the lock.

        Raises UsageError where another process has it, TableError for a line that is no record.
        """
        try:
            self._made = not self.path.parent.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise UsageError(f"--out: {self.path} cannot be written: {error.strerror}.") from None
        try:
            self._lock()
            data = self.path.read_bytes()
            self._size = data.rfind(b"\n") + 1
            for number, line in enumerate(data[: self._size].splitlines(), 1):
                self._take(line, number)
            if self._size < len(data):
                os.ftruncate(self._fd, self._size)
            self.lost = len(self._intents)
            self.write_off()
        except BaseException:
            self.close()
            raise
        return self

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: the lock is a courtesy there is no call for
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{self.path} is being written by another suffice collect.",
                remedy="Wait for it, or choose another --out.",
            ) from None

    def _take(self, line: bytes, number: int) -> None:
        try:
            record = _decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TableError(
                f"not a record of this ledger: {error}.",
                path=str(self.path),
                row=number,
                remedy="Remove that line, or choose another --out.",
            ) from None
        if isinstance(record, Run) and record.version > VERSION:
            raise TableError(
                f"this ledger was written by suffice {record.suffice}, which is newer.",
                path=str(self.path),
                row=number,
                remedy="Update suffice, or choose another --out.",
            )
        self._note(record)

    def _note(self, record: Record) -> None:
        if isinstance(record, CallStarted):
            self._intents[record.key] = record
            return
        if isinstance(record, Sampled):
            self.samples.append(record)
            return
        if isinstance(record, Run):
            self.runs.append(record)
            return
        self._intents.pop(record.key, None)
        self.charged_usd += record.charged_usd
        if isinstance(record, Answer):
            self.answers[record.key] = record
            self.failures.pop(record.key, None)
            self.uncertain_usd += max(0.0, record.charged_usd - (record.cost_usd or 0.0))
            return
        self.uncertain_usd += record.charged_usd
        if isinstance(record, Failed):
            self.failures[record.key] = record

    def note(self, record: Record) -> None:
        """Append without waiting for the disk: survives the end of this process, not of the power."""
        self._append(record)

    async def keep(self, record: Record) -> None:
        """Append and wait until the disk has it. Raises JobError where it cannot be written."""
        self._append(record)
        try:
            await asyncio.to_thread(os.fsync, self._fd)
        except OSError as error:
            raise self._full(error) from None

    def _append(self, record: Record) -> None:
        line = _encode(record) + b"\n"
        try:
            written = os.write(self._fd, line)
            if written < len(line):
                os.ftruncate(self._fd, self._size)  # no half line may stand before others
                raise OSError(28, "the disk is full")
        except OSError as error:
            raise self._full(error) from None
        self._size += len(line)
        self._note(record)

    def _full(self, error: OSError) -> JobError:
        return JobError(
            f"{self.path} cannot be written: {error.strerror}.",
            remedy="What was written stays; make room and run the same command again.",
        )

    def write_off(self) -> None:
        """Count calls that were begun and will have no end at their worst case."""
        for intent in list(self._intents.values()):
            self._append(CallLost(intent.key, intent.model, intent.worst_usd, time.time()))

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if not os.fstat(fd).st_size:
                self.path.unlink(missing_ok=True)  # nothing came of it
                if self._made:
                    with contextlib.suppress(OSError):  # somebody else uses the folder by now
                        self.path.parent.rmdir()
            os.close(fd)
