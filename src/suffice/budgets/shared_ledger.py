"""What today's calls have cost and have reserved, per route, for all workers of one gateway.

A small file of integers that every worker maps into memory, under one lock of the operating system (some
microseconds). A reservation sees all others, so the ceiling holds however the connections are spread over
the workers. What a killed worker had reserved counts as spent from then on; the system releases its lock.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Self

from suffice.errors import ConfigError
from suffice.store.spool import alive

LEDGER_ENV = "SUFFICE_LEDGER"  # the file's path; without file locks, the number of workers

SLOTS = 128  # processes at a time; a gateway has at most 64 workers
ROWS = 256  # routes with a budget

# A row in words of 64 bits: key (2), day, spent, requests, then (day, reserved) of each slot.
_DAY, _SPENT, _REQUESTS, _HEAD = 2, 3, 4, 5
_WIDTH = _HEAD + 2 * SLOTS
_WORDS = SLOTS + ROWS * _WIDTH  # the process of each slot, then the rows


@contextmanager
def shared_ledger(workers: int) -> Iterator[str]:
    """Make the ledger of one gateway for as long as its workers run.

    Args:
        workers: Their number.

    Yields:
        The value of `LEDGER_ENV` for the workers.
    """
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
        Path(path).unlink()


class Ledger:
    """The ledger as one process sees it. As a context manager it holds the lock.

    Args:
        path: The shared file; `None` = only this process spends.

    Raises:
        ConfigError: The file cannot be opened, or all slots are taken.
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
                remedy="Unset it; the gateway sets it for its workers.",
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
        """Take a free slot, after releasing those of processes that have ended."""
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
        """Free a slot. What its process had reserved may have been billed, so it counts as spent."""
        words = self._words
        for base in range(SLOTS, _WORDS, _WIDTH):
            index = base + _HEAD + 2 * slot
            if words[index + 1]:
                if words[index] == words[base + _DAY]:
                    words[base + _SPENT] += words[index + 1]
                words[index + 1] = 0
        words[slot] = 0

    def row(self, route: str) -> LedgerRow:
        """The row of a route, made if there is none. Raises ConfigError if all rows are taken."""
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
        """Release the slot; what is still reserved counts as spent. Idempotent.

        The numbers can still be read, but must not be written: another process may take the slot.
        """
        if self._file is None:
            return
        with self:
            self._release_slot(self._slot)
            self.closed = True
        # Closed after unlocking: the mapping holds a second descriptor, which would keep the lock.
        file, self._file = self._file, None
        os.close(file)


class LedgerRow:
    """The numbers of one route, in nano-dollars.

    Read and write them inside `with row:`, which excludes all other workers.
    """

    __slots__ = ("_base", "_index", "_ledger", "_words")

    def __init__(self, ledger: Ledger, words: memoryview[int], base: int, slot: int) -> None:
        self._ledger = ledger
        self._words = words
        self._base = base
        self._index = base + _HEAD + 2 * slot

    def __enter__(self) -> Self:
        self._ledger.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._ledger.__exit__(*error)

    @property
    def closed(self) -> bool:
        """Whether nothing must be written any more."""
        return self._ledger.closed

    @property
    def day(self) -> int:
        """Days since 1970 in UTC; 0 = no day has begun."""
        return self._words[self._base + _DAY]

    def start_day(self, day: int, spent: int = 0, requests: int = 0) -> None:
        """Start the numbers of a day."""
        words, base = self._words, self._base
        words[base + _SPENT], words[base + _REQUESTS] = spent, requests
        words[base + _DAY] = day  # last: a process that dies before this has started nothing

    @property
    def spent(self) -> int:
        """Settled today, by all workers."""
        return self._words[self._base + _SPENT]

    @spent.setter
    def spent(self, nano_usd: int) -> None:
        self._words[self._base + _SPENT] = nano_usd

    @property
    def requests(self) -> int:
        """Requests decided today, by all workers."""
        return self._words[self._base + _REQUESTS]

    @requests.setter
    def requests(self, n: int) -> None:
        self._words[self._base + _REQUESTS] = n

    @property
    def reserved_here(self) -> int:
        """Reserved by calls of this worker."""
        words, index = self._words, self._index
        return words[index + 1] if words[index] == self.day else 0

    @reserved_here.setter
    def reserved_here(self, nano_usd: int) -> None:
        self._words[self._index + 1] = nano_usd
        self._words[self._index] = self.day

    @property
    def reserved(self) -> int:
        """Reserved by calls of all workers."""
        words, first, day = self._words, self._base + _HEAD, self.day
        slots = range(first, first + 2 * SLOTS, 2)
        return sum(words[i + 1] for i in slots if words[i + 1] and words[i] == day)
