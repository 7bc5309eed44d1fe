"""Notices clients that disconnect, and cancels the work that is done for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any

AsgiMessage = MutableMapping[str, Any]  # ASGI's own shape
Scope = MutableMapping[str, Any]
AsgiReceive = Callable[[], Awaitable[AsgiMessage]]
AsgiSend = Callable[[AsgiMessage], Awaitable[None]]

# A task that waits for the server's word costs 15 us. Most requests to a light model are over before
# it would matter, so it starts late.
_WATCH_AFTER_S = 0.05


class ClientDisconnectedError(Exception):
    """The client closed its connection while its body was still being read."""


class DisconnectWatcher:
    """Cancels the task that serves a request once its client has disconnected.

    It is made for each request, so it does nothing until `DisconnectMonitor` starts it.
    """

    __slots__ = ("_receive", "_task", "_watcher", "disconnected", "since_s")

    def __init__(self, receive: AsgiReceive, now_s: float) -> None:
        self.disconnected = False
        self.since_s = now_s
        self._receive = receive
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for the server's word in a task. Idempotent."""
        if self._watcher is None:
            self._watcher = loop.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.disconnected = True
        if self._task is not None:
            self._task.cancel()

    def stop(self) -> None:
        """Stop waiting. Idempotent."""
        if self._watcher is not None:
            self._watcher.cancel()


class DisconnectMonitor:
    """Starts the watchers of requests that last a while: one timer for all requests of an app."""

    def __init__(self) -> None:
        self._watchers: set[DisconnectWatcher] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, watcher: DisconnectWatcher) -> None:
        """Start this watcher if its request lasts a while."""
        self._watchers.add(watcher)
        if self._timer is None:
            self._schedule(asyncio.get_running_loop())

    def discard(self, watcher: DisconnectWatcher) -> None:
        """Stop this watcher: its request is over. Idempotent."""
        self._watchers.discard(watcher)
        watcher.stop()

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(_WATCH_AFTER_S, self._start_due, loop)

    def _start_due(self, loop: asyncio.AbstractEventLoop) -> None:
        due_s = perf_counter() - _WATCH_AFTER_S * 0.8
        for watcher in self._watchers:
            if watcher.since_s <= due_s:
                watcher.start(loop)
        self._timer = None
        if self._watchers:
            self._schedule(loop)
