"""An event loop with a virtual clock, and upstreams that follow a script in memory."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from suffice.errors import UpstreamError
from suffice.execution import CircuitBreaker, CircuitBreakerSettings, Engine, LatencyTracker, Reply
from suffice.types import Attempt, PlanStep, RetryPolicy, Timeouts, Usage

T = TypeVar("T")


class _Jump(selectors.DefaultSelector):  # type: ignore[valid-type, misc]
    """Advances the clock to the next timer instead of waiting for it."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise AssertionError("everything waits and no timer is set: a hang")
        self.now_s += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

        self.timers: list[asyncio.TimerHandle] = []  # set and not yet due

    def time(self) -> float:
        return self._jump.now_s

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        self.timers = [timer for timer in self.timers if timer.when() > self.time()]
        timer = super().call_at(when, callback, *args, context=context)
        self.timers.append(timer)
        return timer


def run_virtual(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function on a virtual clock. A hang is an error, and so is a task or a timer that
    is left behind."""
    loop = VirtualLoop()
    try:
        result = loop.run_until_complete(main())
        assert not asyncio.all_tasks(loop), "a task was left behind"
        timers = [t for t in loop.timers if not t.cancelled() and t.when() > loop.time()]
        assert not timers, f"a timer was left behind: {timers}"
        return result
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class Event(msgspec.Struct):
    raw: bytes
    kind: str
    chunks: int = 1


def content(*words: str) -> list[Event]:
    return [Event(w.encode(), "content") for w in words]


HELLO = Event(b"role", "preamble")
DONE = Event(b"[DONE]", "done")


@dataclass
class Script:
    """What one call does. body: what a whole reply is. stream: batches of events, seconds to sleep,
    or an error to raise, in order."""

    error: BaseException | None = None
    delay_s: float = 0.0
    body: bytes = b"{}"
    usage: Usage | None = field(default_factory=lambda: Usage(10, 5))
    stream: list[Any] = field(default_factory=list)


class Opened:
    def __init__(self, script: Script) -> None:
        self.status = 200
        self.body = script.body
        self.finish_reason: str | None = "stop"
        self.closed = 0
        self._script = script
        self._items = iter(script.stream)
        self.usage = None if script.stream else script.usage

    async def next_events(self) -> list[Event]:
        for item in self._items:
            if isinstance(item, BaseException):
                raise item
            if not isinstance(item, int | float):
                return item
            await asyncio.sleep(item)
        self.usage = self._script.usage
        return []

    async def aclose(self) -> None:
        self.closed += 1


class Upstreams:
    """A Caller. Each model has a list of scripts, one a call; the last one repeats."""

    def __init__(self, **scripts: Script | list[Script]) -> None:
        self.scripts = {m: s if isinstance(s, list) else [s] for m, s in scripts.items()}
        self.calls: list[str] = []
        self.timeouts: list[Timeouts] = []
        self.opened: list[Opened] = []
        self.cancelled = 0

    def has_larger_window(self, model: str, than: str) -> bool:
        return True

    async def open(self, step_model: str, timeouts: Timeouts) -> Opened:
        self.calls.append(step_model)
        self.timeouts.append(timeouts)
        left = self.scripts[step_model]
        script = left.pop(0) if len(left) > 1 else left[0]
        try:
            await asyncio.sleep(script.delay_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if script.error is not None:
            raise script.error
        self.opened.append(Opened(script))
        return self.opened[-1]


class EngineHarness:
    """An engine on the loop's own clock, with prices of one dollar a token."""

    def __init__(self) -> None:
        def clock() -> float:
            return asyncio.get_running_loop().time()

        self.breaker = CircuitBreaker(CircuitBreakerSettings(), clock)
        self.latency = LatencyTracker(clock)
        self.engine = Engine(self.breaker, self.latency, clock=clock, wall=lambda: 5.0)
        self.attempts: list[Attempt] = []

    async def run(self, plan: str, caller: Any, *, stream: bool = False, **more: Any) -> Reply:
        options: dict[str, Any] = {
            "timeouts": Timeouts(first_chunk_s=3.0, idle_s=2.0, total_s=60.0),
            "retries": RetryPolicy(),
            "cost_of": lambda m, u: None if u is None else float(u.input_tokens + u.output_tokens),
            "input_tokens": 10,
            "attempts": self.attempts,
        }
        plan_ = tuple(PlanStep(m) for m in plan)
        return await self.engine.run(plan_, caller, stream=stream, **(options | more))


def upstream_error(kind: Any, **more: Any) -> UpstreamError:
    return UpstreamError(f"it was {kind}", kind=kind, **more)


async def read_events(reply: Reply) -> AsyncIterator[Any]:
    while events := await reply.next_events():
        for event in events:
            yield event


async def drain(reply: Reply) -> list[str]:
    return [e.raw.decode() async for e in read_events(reply)]
