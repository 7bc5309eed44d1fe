"""One lazy timer for a whole stream."""

from __future__ import annotations

import asyncio
from typing import Any


class Deadline:
    """Cancels the task that waits for the upstream, once nothing has come for long enough.

    `waiting` is a few plain stores; the timer looks at them when it fires and re-arms itself for
    the rest, so that a stream of a thousand chunks costs a handful of timers. While the task waits
    for its client instead, only the total runs on, and nobody is cancelled.

    limit_s: longest silence; total_s: longest time altogether, from now on.
    """

    __slots__ = (
        "_before",
        "_end_s",
        "_fires_s",
        "_handle",
        "_last_s",
        "_limit_s",
        "_loop",
        "_task",
        "expired",
    )

    def __init__(self, limit_s: float, total_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None
        self._before = 0  # cancellations of the task that are not ours
        self._last_s = self._loop.time()
        self._limit_s = limit_s
        self._end_s = self._last_s + total_s
        self.expired = False
        self._arm()

    @property
    def spent(self) -> bool:
        """The total is over."""
        return self._loop.time() >= self._end_s

    def limit(self, limit_s: float) -> None:
        """From now on this much silence."""
        self._limit_s = limit_s
        self._last_s = self._loop.time()
        if self._last_s + limit_s < self._fires_s:
            self._handle.cancel()
            self._arm()

    def waiting(self, task: asyncio.Task[Any]) -> None:
        """`task` waits for the upstream from now on."""
        self._last_s = self._loop.time()
        self._before = task.cancelling()
        self._task = task

    def resting(self) -> None:
        """Nobody waits for the upstream."""
        self._task = None

    def _arm(self) -> None:
        self._fires_s = min(self._last_s + self._limit_s, self._end_s)
        self._handle = self._loop.call_at(self._fires_s, self._fire)

    def _fire(self) -> None:
        now_s = self._loop.time()
        if now_s < min(self._last_s + self._limit_s, self._end_s):
            self._arm()
        elif self._task is not None:
            self.expired = True
            self._task.cancel()
        elif now_s < self._end_s:
            # The client is the slow one; that is its right.
            self._last_s = now_s
            self._arm()
        # else: the total is over while the client reads; `spent` tells at the next turn.

    def ours(self) -> bool:
        """Whether a CancelledError that just came was this timer's and nobody else's. Takes the
        timer's own cancellation back, so that the task may go on."""
        if not self.expired or self._task is None:
            return False
        task, self._task = self._task, None
        return task.uncancel() <= self._before

    def stop(self) -> None:
        self._handle.cancel()
        if self.expired and self._task is not None:
            self._task.uncancel()  # it ended in another way; the cancellation must not linger
        self._task = None
