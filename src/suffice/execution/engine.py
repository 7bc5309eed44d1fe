"""Runs a plan: the only place with a clock. Attempts, timeouts, failover, one commit point.

Whole replies cost no extra task and no timer here: their deadline lies with the transport. Streams
have one lazily re-armed timer each.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import msgspec

from ..errors import PlanExhausted, UpstreamError, UpstreamKind
from ..types import Attempt, Excluded, Retries, Step, Timeouts, Usage
from .breaker import Breaker
from .flow import Call, Flow, GiveUp, Wait
from .health import Health


class StreamEvent(Protocol):
    """Whole server-sent events. kind: preamble | content | usage | done | error."""

    @property
    def raw(self) -> bytes: ...
    @property
    def kind(self) -> str: ...
    @property
    def chunks(self) -> int: ...


class OpenedReply(Protocol):
    """An upstream that answered 200."""

    status: int
    body: bytes
    usage: Usage | None
    finish_reason: str | None

    def batches(self) -> AsyncIterator[list[Any]]: ...
    async def aclose(self) -> None: ...


class Caller(Protocol):
    """Calls one model for the query at hand. Raises UpstreamError, already classified. A reply that
    is not streamed has been read whole when `open` returns."""

    async def open(self, step_model: str, timeouts: Timeouts) -> OpenedReply: ...


class _Deadline:
    """Cancels the task that waits, once nothing has happened for long enough.

    `touch` is a plain store; the timer looks at it when it fires and re-arms itself for the rest,
    so that a stream of a thousand chunks costs a handful of timers.
    """

    __slots__ = ("_handle", "_last_s", "_limit_s", "_loop", "_task", "expired")

    def __init__(self, limit_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None
        self._last_s = self._loop.time()
        self._limit_s = limit_s
        self.expired = False
        self._handle = self._loop.call_later(limit_s, self._fire)

    def touch(self) -> None:
        self._last_s = self._loop.time()

    def limit(self, limit_s: float) -> None:
        """From now on this long."""
        self._limit_s = limit_s
        self._last_s = self._loop.time()
        self._handle.cancel()
        self._handle = self._loop.call_later(limit_s, self._fire)

    def waiting(self, task: asyncio.Task[Any] | None) -> None:
        """Which task waits for the upstream now; None while it waits for the client instead."""
        self._task = task

    def _fire(self) -> None:
        left_s = self._last_s + self._limit_s - self._loop.time()
        if left_s > 0:
            self._handle = self._loop.call_later(left_s, self._fire)
        elif self._task is None:
            # The client is the slow one; that is its right.
            self._last_s = self._loop.time()
            self._handle = self._loop.call_later(self._limit_s, self._fire)
        else:
            self.expired = True
            self._task.cancel()

    def stop(self) -> None:
        self._handle.cancel()


class Reply:
    """What came of a plan. For a stream, `attempts`, `usage` and `cost_usd` are complete once
    `events` is exhausted or `aclose` was called."""

    __slots__ = (
        "_finish",
        "_stream",
        "attempts",
        "body",
        "cost_usd",
        "finish_reason",
        "first_chunk_s",
        "model",
        "skipped",
        "status",
        "usage",
    )

    def __init__(self, model: str, status: int, attempts: list[Attempt]) -> None:
        self.model = model
        self.status = status
        self.attempts = attempts
        self.body = b""
        self.usage: Usage | None = None
        self.cost_usd: float | None = None
        self.finish_reason: str | None = None
        self.first_chunk_s: float | None = None
        self.skipped: tuple[Excluded, ...] = ()
        self._stream: _StreamRun | None = None

    @property
    def events(self) -> AsyncIterator[Any]:
        assert self._stream is not None, "not a stream"
        return self._stream.events()

    async def aclose(self) -> None:
        """Drop the upstream now, wherever the stream is."""
        if self._stream is not None:
            await self._stream.close("cancelled", "the client left")


CostOf = Callable[[str, Usage | None], float | None]
_CHUNK_TOKENS = 1  # a chunk of a stream carries about one token, where no usage came


class Engine:
    """Runs plans for one router.

    clock: monotonic seconds; wall: unix seconds; sleep: awaitable pause. Arguments, so that tests
    need not wait.
    """

    def __init__(
        self,
        breaker: Breaker,
        health: Health,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self.breaker = breaker
        self.health = health
        self._clock = clock
        self._wall = wall
        self._sleep = sleep

    async def run(
        self,
        plan: tuple[Step, ...],
        caller: Caller,
        *,
        stream: bool,
        timeouts: Timeouts,
        retries: Retries,
        cost_of: CostOf,
        seed: int = 0,
        input_tokens: int = 0,
        fits: Callable[[str, str], bool] | None = None,
        affordable: Callable[[Step], str | None] | None = None,
    ) -> Reply:
        """Walk the plan until a model answers.

        cost_of(model, usage): USD or None. affordable(step): None, or why a step is skipped.
        Raises PlanExhausted with every attempt in it; CancelledError when the caller's task is
        cancelled, after the upstream was closed.
        """
        began_s = self._clock()
        skipped: tuple[Excluded, ...] = ()
        if affordable is not None:
            verdicts = [(s, affordable(s)) for s in plan[1:]]
            skipped = tuple(Excluded(s.model, why) for s, why in verdicts if why is not None)
            plan = (plan[0], *(s for s, why in verdicts if why is None))
        attempts: list[Attempt] = []
        flow = Flow(plan, retries, total_s=timeouts.total_s, seed=seed, fits=fits)
        while True:
            action = flow.next()
            if isinstance(action, Call):
                left_s = timeouts.total_s - (self._clock() - began_s)
                run = _Run(self, action, attempts, cost_of, input_tokens)
                try:
                    reply = await run.go(caller, stream, timeouts, max(0.001, left_s))
                except UpstreamError as error:
                    flow.failed(error, self._clock() - began_s)
                    continue
                reply.skipped = skipped
                return reply
            if isinstance(action, Wait):
                await self._sleep(action.seconds)
                flow.waited(max(self._clock() - began_s, flow._elapsed_s + action.seconds))
                continue
            assert isinstance(action, GiveUp)
            raise _exhausted(action.error, attempts)


def _exhausted(last: UpstreamError, attempts: list[Attempt]) -> PlanExhausted:
    tried = list(dict.fromkeys(a.model for a in attempts))
    if len(attempts) == 1:
        message = last.message
    else:
        calls = f"{len(attempts)} attempts at {len(tried)} model{'s' if len(tried) > 1 else ''}"
        message = f"{calls} failed ({', '.join(tried)}); the most telling: {last.message}"
    return PlanExhausted(message, last=last, attempts=tuple(attempts))


class _Run:
    """One attempt."""

    __slots__ = (
        "_attempts",
        "_cost_of",
        "_engine",
        "_input_tokens",
        "_model",
        "_number",
        "_started_s",
        "_wall_s",
    )

    def __init__(
        self,
        engine: Engine,
        call: Call,
        attempts: list[Attempt],
        cost_of: CostOf,
        input_tokens: int,
    ) -> None:
        self._engine = engine
        self._attempts = attempts
        self._cost_of = cost_of
        self._input_tokens = input_tokens
        self._model = call.step.model
        self._number = call.number
        self._started_s = engine._clock()
        self._wall_s = engine._wall()

    async def go(self, caller: Caller, stream: bool, timeouts: Timeouts, left_s: float) -> Reply:
        self._engine.breaker.calling(self._model)
        if not stream and timeouts.first_reply_s is not None:
            left_s = min(left_s, timeouts.first_reply_s)
        if left_s < timeouts.total_s * 0.999:
            timeouts = msgspec.structs.replace(timeouts, total_s=left_s)
        if not stream:
            try:
                opened = await caller.open(self._model, timeouts)
            except UpstreamError as error:
                self.failed(error)
                raise
            except asyncio.CancelledError:
                self.left(None)
                raise
            return self._whole(opened)
        return await _StreamRun(self, timeouts).open(caller)

    def _whole(self, opened: OpenedReply) -> Reply:
        reply = Reply(self._model, opened.status, self._attempts)
        reply.body = opened.body
        self.done(reply, opened, None)
        return reply

    # How an attempt can end. Each ends in exactly one Attempt.

    def done(self, reply: Reply, opened: OpenedReply, first_chunk_s: float | None) -> None:
        engine, model, usage = self._engine, self._model, opened.usage
        latency_s = engine._clock() - self._started_s
        reply.usage = usage
        reply.finish_reason = opened.finish_reason
        reply.first_chunk_s = first_chunk_s
        cost = self._cost_of(model, usage)
        self._attempts.append(
            Attempt(
                model=model,
                number=self._number,
                outcome="ok",
                started_s=self._wall_s,
                latency_s=latency_s,
                first_chunk_s=first_chunk_s,
                status=opened.status,
                usage=usage,
                cost_usd=cost,
                finish_reason=opened.finish_reason,
            )
        )
        reply.cost_usd = total_usd(self._attempts)
        engine.breaker.succeeded(model)
        engine.health.observe(
            model, first_chunk_s, latency_s, usage.output_tokens if usage else None
        )

    def failed(
        self,
        error: UpstreamError,
        *,
        first_chunk_s: float | None = None,
        usage: Usage | None = None,
    ) -> None:
        error.model = error.model or self._model
        self._append(error.kind, error.message, first_chunk_s, usage, error.status)
        self._engine.breaker.failed(self._model, error)

    def left(self, usage: Usage | None, first_chunk_s: float | None = None) -> None:
        self._append("cancelled", "the client left", first_chunk_s, usage, None)
        self._engine.breaker.left(self._model)

    def _append(
        self,
        outcome: str,
        message: str,
        first_chunk_s: float | None,
        usage: Usage | None,
        status: int | None,
    ) -> None:
        self._attempts.append(
            Attempt(
                model=self._model,
                number=self._number,
                outcome=outcome,
                started_s=self._wall_s,
                latency_s=self._engine._clock() - self._started_s,
                first_chunk_s=first_chunk_s,
                status=status,
                error=message,
                usage=usage,
                cost_usd=self._cost_of(self._model, usage) if usage else 0.0,
            )
        )


def total_usd(attempts: Sequence[Attempt]) -> float | None:
    """Sum over attempts; None where one of them has an unknown price."""
    if len(attempts) == 1:
        return attempts[0].cost_usd
    costs = [a.cost_usd for a in attempts]
    return None if None in costs else sum(c for c in costs if c is not None)


class _StreamRun:
    """One streamed attempt: opened up to its commit point, then handed to the client."""

    __slots__ = (
        "_batches",
        "_chunks",
        "_closed",
        "_deadline",
        "_first_s",
        "_head",
        "_opened",
        "_reply",
        "_run",
        "_timeouts",
    )

    def __init__(self, run: _Run, timeouts: Timeouts) -> None:
        self._run = run
        self._timeouts = timeouts
        self._deadline = _Deadline(min(timeouts.first_chunk_s, timeouts.total_s))
        self._opened: OpenedReply | None = None
        self._batches: AsyncIterator[list[Any]] | None = None
        self._head: list[Any] = []
        self._reply: Reply | None = None
        self._first_s: float | None = None
        self._chunks = 0
        self._closed = False

    async def open(self, caller: Caller) -> Reply:
        """Up to the first content. Until here a failure is invisible to the client."""
        run = self._run
        task = asyncio.current_task()
        self._deadline.waiting(task)
        try:
            self._opened = await caller.open(run._model, self._timeouts)
            self._batches = self._opened.batches()
            while await self._pull():
                if any(e.kind == "content" or e.kind == "done" for e in self._head):
                    break
        except UpstreamError as error:
            await self._end()
            run.failed(error, usage=self._opened.usage if self._opened else None)
            raise
        except asyncio.CancelledError:
            await self._end()
            if not self._deadline.expired:
                run.left(self._usage())
                raise
            _uncancel(task)
            late = self._late("timeout_first_chunk", self._timeouts.first_chunk_s)
            run.failed(late)
            raise late from None
        except BaseException:
            await self._end()
            raise
        self._first_s = run._engine._clock() - run._started_s
        self._deadline.waiting(None)
        self._deadline.limit(self._timeouts.idle_s)
        reply = self._reply = Reply(run._model, self._opened.status, run._attempts)
        reply._stream = self
        reply.first_chunk_s = self._first_s
        return reply

    async def _pull(self) -> bool:
        """The next batch of events into `_head`; False at the end of the stream."""
        assert self._batches is not None
        try:
            batch = await self._batches.__anext__()
        except StopAsyncIteration:
            return False
        self._head += batch
        return True

    async def events(self) -> AsyncIterator[Any]:
        """The stream from its beginning. Raises UpstreamError when it breaks after the commit."""
        run, deadline = self._run, self._deadline
        task = asyncio.current_task()
        began_s, total_s = run._started_s, self._timeouts.total_s
        clock = run._engine._clock
        try:
            while True:
                head, self._head = self._head, []
                for event in head:
                    if event.kind == "content":
                        self._chunks += event.chunks
                    if event.kind != "error":
                        yield event
                if clock() - began_s > total_s:
                    raise self._late("timeout_total", total_s)
                deadline.touch()
                deadline.waiting(task)
                more = await self._pull()
                deadline.waiting(None)
                if not more:
                    break
        except UpstreamError as error:
            await self.close(error.kind, error.message, error)
            raise
        except asyncio.CancelledError:
            if deadline.expired and not self._closed:
                _uncancel(task)
                late = self._late("timeout_idle", self._timeouts.idle_s)
                await self.close("timeout_idle", late.message, late)
                raise late from None
            await self.close("cancelled", "the client left")
            raise
        except GeneratorExit:
            await self.close("cancelled", "the client left")
            raise
        assert self._reply is not None and self._opened is not None
        if not self._closed:
            self._closed = True
            await self._end()
            run.done(self._reply, self._opened, self._first_s)

    async def close(self, outcome: str, message: str, error: UpstreamError | None = None) -> None:
        """End the attempt early, once: upstream dropped, what was produced priced."""
        if self._closed:
            return
        self._closed = True
        await self._end()
        usage = self._usage()
        if error is not None:
            self._run.failed(error, first_chunk_s=self._first_s, usage=usage)
        else:
            self._run.left(usage, self._first_s)
        if self._reply is not None:
            self._reply.usage = usage
            self._reply.cost_usd = total_usd(self._run._attempts)

    def _usage(self) -> Usage | None:
        """The upstream's count, else an estimate of ours from the chunks that came."""
        if self._opened is None:
            return None
        if self._opened.usage is not None:
            return self._opened.usage
        return Usage(
            input_tokens=self._run._input_tokens,
            output_tokens=self._chunks * _CHUNK_TOKENS,
            estimated=True,
        )

    def _late(self, kind: UpstreamKind, limit_s: float) -> UpstreamError:
        what = {
            "timeout_first_chunk": "no first chunk",
            "timeout_idle": "no further chunk",
            "timeout_total": "not finished",
        }[kind]
        model = self._run._model
        return UpstreamError(f"{model}: {what} within {limit_s:g} s.", kind=kind, model=model)

    async def _end(self) -> None:
        self._deadline.stop()
        if self._opened is not None:
            await self._opened.aclose()


def _uncancel(task: asyncio.Task[Any] | None) -> None:
    """Our own deadline cancelled the task; from here on it is an ordinary failure."""
    if task is not None:
        task.uncancel()
