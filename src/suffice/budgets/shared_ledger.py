"""What today's calls have cost and have reserved, by route, for all workers of one gateway.

A small file of integers that every worker maps into its memory, under one lock of the operating
system (some microseconds): a reservation sees all others, so the ceiling holds however the
connections fall on the workers. A worker that is killed leaves what it had reserved behind, which
counts as spent from then on; the lock of a killed process is let go by the system.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Self

from suffice.errors import ConfigError
from suffice.store.spool import alive

LEDGER_ENV = "SUFFICE_LEDGER"  # the file's path; or, where there are no such files, the workers

SLOTS = 128  # processes at a time; a gateway has at most 64 workers
ROWS = 256  # routes with a budget

# A row in words of 64 bits: key (2), day, spent, requests, then (day, reserved) of each slot.
_DAY, _SPENT, _REQUESTS, _HEAD = 2, 3, 4, 5
_WIDTH = _HEAD + 2 * SLOTS
_WORDS = SLOTS + ROWS * _WIDTH  # before the rows the process of each slot


@contextmanager
def shared_ledger(workers: int) -> Iterator[str]:
    """What `LEDGER_ENV` must hold for the workers of one gateway while they run."""
    try:
        import fcntl  # noqa: F401
    except ImportError:  # no locks between processes here: each worker gets an equal part
        yield str(workers)
        return
    handle, path = tempfile.mkstemp(prefix="suffice-ledger-")
    try:
        os.ftruncate(handle, _WORDS * 8)
        os.close(handle)
        yield path
    finally:
        os.unlink(path)


class Ledger:
    """path: of the shared file, None = this process alone.

    Raises ConfigError where the file cannot be opened or all slots are taken.
    """

    def __init__(self, path: str | None = None) -> None:
        self._mutex = threading.Lock()
        self.closed = False
        self._file: int | None = None
        if path is None:
            self._words = memoryview(bytearray(_WORDS * 8)).cast("q")
            self._slot = 0
            return
        try:
            self._file = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            mapped = mmap.mmap(self._file, _WORDS * 8)
        except (OSError, ValueError) as error:
            if self._file is not None:
                os.close(self._file)
            raise ConfigError(
                f"The workers' ledger {path!r} cannot be used: {error}.",
                field=LEDGER_ENV,
                remedy="Unset it; the gateway sets it for its own workers.",
            ) from None
        self._words = memoryview(mapped).cast("q")
        with self:
            self._slot = self._claim_slot()

    def __enter__(self) -> Self:
        self._mutex.acquire()
        if self._file is not None:
            import fcntl

            fcntl.flock(self._file, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            import fcntl

            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._mutex.release()

    def _claim_slot(self) -> int:
        """A slot of our own. What a process that is no more had reserved may have been billed."""
        words = self._words
        for slot in range(SLOTS):
            if words[slot] and not alive(words[slot]):
                self._release_slot(slot)
        for slot in range(SLOTS):
            if not words[slot]:
                words[slot] = os.getpid()
                return slot
        raise ConfigError(f"More than {SLOTS} processes share one budget.", field="server.workers")

    def _release_slot(self, slot: int) -> None:
        words = self._words
        for base in range(SLOTS, _WORDS, _WIDTH):
            at = base + _HEAD + 2 * slot
            if words[at + 1]:
                if words[at] == words[base + _DAY]:
                    words[base + _SPENT] += words[at + 1]
                words[at + 1] = 0
        words[slot] = 0

    def row(self, route: str) -> LedgerRow:
        """The row of a route, made where there is none."""
        digest = blake2b(route.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        key = (
            int.from_bytes(digest[:8], "big", signed=True) or 1,
            int.from_bytes(digest[8:], "big", signed=True),
        )
        words = self._words
        with self:
            for base in range(SLOTS, _WORDS, _WIDTH):
                if not words[base]:
                    words[base], words[base + 1] = key
                if (words[base], words[base + 1]) == key:
                    return LedgerRow(self, words, base, self._slot)
        raise ConfigError(f"More than {ROWS} routes have a budget.", field="routes")

    def close(self) -> None:
        """Give the slot back; what is still reserved counts as spent. Idempotent. The numbers can be
        read on, but must not be written any more: the slot may be another's by then."""
        if self._file is None:
            return
        with self:
            self._release_slot(self._slot)
            self.closed = True
        # Unlocked first: the mapping has a descriptor of its own, which would keep the lock.
        file, self._file = self._file, None
        os.close(file)


class LedgerRow:
    """One route's numbers, in nano-dollars. To be read and written inside `with row:`, which no
    other worker can be in at the same time."""

    __slots__ = ("_at", "_base", "_ledger", "_words")

    def __init__(self, ledger: Ledger, words: Any, base: int, slot: int) -> None:
        self._ledger = ledger
        self._words = words
        self._base = base
        self._at = base + _HEAD + 2 * slot

    def __enter__(self) -> Self:
        self._ledger.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._ledger.__exit__(*error)

    @property
    def closed(self) -> bool:
        """Nothing must be written any more."""
        return self._ledger.closed

    @property
    def day(self) -> int:
        """Days since 1970 in UTC; 0: nobody has begun."""
        return int(self._words[self._base + _DAY])

    def start_day(self, day: int, spent: int = 0, requests: int = 0) -> None:
        """A day's row, from here on."""
        words, base = self._words, self._base
        words[base + _SPENT], words[base + _REQUESTS] = spent, requests
        words[base + _DAY] = day  # last: whoever dies before this has begun nothing

    @property
    def spent(self) -> int:
        return int(self._words[self._base + _SPENT])

    @spent.setter
    def spent(self, nano: int) -> None:
        self._words[self._base + _SPENT] = nano

    @property
    def requests(self) -> int:
        """Decided today, by all workers."""
        return int(self._words[self._base + _REQUESTS])

    @requests.setter
    def requests(self, n: int) -> None:
        self._words[self._base + _REQUESTS] = n

    @property
    def reserved_here(self) -> int:
        """Reserved by calls of this worker."""
        words, at = self._words, self._at
        return int(words[at + 1]) if words[at] == self.day else 0

    @reserved_here.setter
    def reserved_here(self, nano: int) -> None:
        self._words[self._at + 1] = nano
        self._words[self._at] = self.day

    @property
    def reserved(self) -> int:
        """Reserved by calls of all workers."""
        words, first, day = self._words, self._base + _HEAD, self.day
        slots = range(first, first + 2 * SLOTS, 2)
        return sum(int(words[at + 1]) for at in slots if words[at + 1] and words[at] == day)
