"""One timer for a whole stream."""

from __future__ import annotations

import asyncio


class Deadline:
    """Cancels the task that waits for the upstream when nothing has come for too long.

    `start` and `pause` only store values; the timer reads them when it fires and re-arms itself for
    the remaining time, so a stream of a thousand chunks costs a handful of timers. While the task
    waits for its client, only the total runs on, and nothing is cancelled.

    Args:
        limit_s: the longest silence.
        total_s: the longest time altogether, from now on.
    """

    __slots__ = (
        "_cancellations_before",
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
        self._task: asyncio.Task[object] | None = None
        self._cancellations_before = 0
        self._last_s = self._loop.time()
        self._limit_s = limit_s
        self._end_s = self._last_s + total_s
        self.expired = False
        self._arm()

    @property
    def total_expired(self) -> bool:
        """Whether the total is over."""
        return self._loop.time() >= self._end_s

    def limit(self, limit_s: float) -> None:
        """Allow this much silence from now on."""
        self._limit_s = limit_s
        self._last_s = self._loop.time()
        if self._last_s + limit_s < self._fires_s:
            self._handle.cancel()
            self._arm()

    def start(self, task: asyncio.Task[object]) -> bool:
        """`task` waits for the upstream from now on. False if the total is over already."""
        self._last_s = self._loop.time()
        self._cancellations_before = task.cancelling()
        self._task = task
        return self._last_s < self._end_s

    def pause(self) -> None:
        """No task waits for the upstream."""
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
            # The client is the slow one, which is allowed.
            self._last_s = now_s
            self._arm()
        # else: the total is over while the client reads; the next `start` returns False.

    def caused_cancellation(self) -> bool:
        """Whether a CancelledError that was just raised is this timer's; withdraws it if so."""
        if not self.expired or self._task is None:
            return False
        task, self._task = self._task, None
        return task.uncancel() <= self._cancellations_before

    def stop(self) -> None:
        """Cancel the timer."""
        self._handle.cancel()
        if self.expired and self._task is not None:
            self._task.uncancel()  # the stream ended in another way
        self._task = None
