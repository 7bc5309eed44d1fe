"""One streamed attempt: opened up to its first content, then handed to the client."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from suffice.errors import UpstreamError, UpstreamKind
from suffice.execution.attempt import AttemptRecorder, sum_cost_usd
from suffice.execution.caller import Caller, StreamEvent, UpstreamReply
from suffice.execution.deadline import Deadline
from suffice.execution.reply import Reply
from suffice.types import Timeouts, Usage

_TOKENS_PER_CHUNK = 1  # assumed if the upstream sends no usage
_MAX_PREAMBLE = 1 << 20  # bytes held back before the first content


class StreamingAttempt:
    """A stream from its call to its end.

    `open` returns a Reply whose `next_events` and `aclose` are this object's.
    """

    __slots__ = (
        "_buffered_events",
        "_chunks",
        "_deadline",
        "_ended",
        "_first_chunk_s",
        "_recorder",
        "_reply",
        "_timeouts",
        "_upstream",
    )

    def __init__(self, recorder: AttemptRecorder, timeouts: Timeouts) -> None:
        self._recorder = recorder
        self._timeouts = timeouts
        self._deadline = Deadline(timeouts.first_chunk_s, timeouts.total_s)
        self._upstream: UpstreamReply | None = None
        self._reply: Reply | None = None
        self._buffered_events: list[StreamEvent] = []
        self._first_chunk_s: float | None = None
        self._chunks = 0
        self._ended = False

    async def open(self, caller: Caller) -> Reply:
        """Call the model and read up to the first content; a failure is invisible to the client.

        Returns:
            The stream, from its beginning.

        Raises:
            UpstreamError: the model failed before its first content.
            CancelledError: the client disconnected.
        """
        recorder, deadline = self._recorder, self._deadline
        deadline.start(_current_task())
        try:
            upstream = self._upstream = await caller.open(recorder.model, self._timeouts)
            await self._read_preamble(upstream)
        except BaseException as error:
            failure = await self._end_with(error, "timeout_first_chunk")
            if failure is error:
                raise
            raise failure from None
        self._first_chunk_s = recorder.elapsed_s()
        deadline.pause()
        deadline.limit(self._timeouts.idle_s)
        reply = self._reply = Reply(
            recorder.model,
            upstream.status,
            recorder.attempts,
            next_events=self.next_events,
            aclose=self.close,
        )
        reply.first_chunk_s = self._first_chunk_s
        return reply

    async def _read_preamble(self, upstream: UpstreamReply) -> None:
        size = 0
        while events := await upstream.next_events():
            self._check_deadline()
            self._buffered_events += events
            size += sum(len(event.raw) for event in events)
            if any(event.kind in ("content", "done") for event in events):
                return
            if size > _MAX_PREAMBLE:
                raise self._error("malformed", "no content in the first MiB of its stream")

    async def next_events(self) -> Sequence[StreamEvent]:
        """Read on.

        Returns:
            The next events, at least one; none at the end of the stream.

        Raises:
            UpstreamError: the stream broke after its first content.
            CancelledError: the client disconnected.
        """
        events: Sequence[StreamEvent] = self._buffered_events
        if events:
            self._buffered_events = []
        elif self._ended:
            return events
        else:
            events = await self._read()
        for event in events:
            kind = event.kind
            if kind == "content":
                self._chunks += event.chunks
            elif kind == "error":  # what it says is raised by the next read
                return [e for e in events if e.kind != "error"] or await self.next_events()
        return events

    async def _read(self) -> Sequence[StreamEvent]:
        deadline, upstream = self._deadline, self._upstream
        assert upstream is not None, "not open"
        try:
            if not deadline.start(_current_task()):
                raise self._timeout_error("timeout_idle")
            events = await upstream.next_events()
            if deadline.expired:
                self._check_deadline()
        except BaseException as error:
            failure = await self._end_with(error, "timeout_idle")
            if failure is error:
                raise
            raise failure from None
        deadline.pause()
        if not events:
            await self._finish()
        return events

    def _check_deadline(self) -> None:
        """Raise the timer's cancellation again if a callee took it for its own."""
        if self._deadline.expired:
            raise asyncio.CancelledError

    # The ways to end. The record comes first, so that a second cancellation cannot lose it.

    async def _finish(self) -> None:
        if not self._ended:
            self._ended = True
            assert self._reply is not None and self._upstream is not None
            self._recorder.succeed(
                self._reply, self._upstream, self._measured_usage(), self._first_chunk_s
            )
            await self._close_upstream()

    async def close(self) -> None:
        """The client disconnected: drop the upstream and price what was produced."""
        if not self._ended:
            self._ended = True
            usage = self._measured_usage() if self._upstream is not None else None
            self._recorder.abandon(usage, self._first_chunk_s)
            self._settle(usage)
            await self._close_upstream()

    async def _end_with(self, error: BaseException, timeout: UpstreamKind) -> BaseException:
        """End the attempt because of `error`.

        Args:
            error: what was raised.
            timeout: the kind of error if the deadline raised it.

        Returns:
            What to raise.
        """
        if isinstance(error, asyncio.CancelledError):
            if not self._deadline.caused_cancellation():
                await self.close()
                return error
            error = self._timeout_error(timeout)
        if not isinstance(error, UpstreamError):
            await self._fail_internal(error)
        elif not self._ended:
            self._ended = True
            # Before the first content nothing counts but what the upstream itself counted.
            usage = self._upstream.usage if self._upstream is not None else None
            if self._reply is not None:
                usage = self._measured_usage()
            self._recorder.fail(error, first_chunk_s=self._first_chunk_s, usage=usage)
            self._settle(usage)
            await self._close_upstream()
        return error

    async def _fail_internal(self, error: BaseException) -> None:
        """An error in our code or of the process says nothing about the model."""
        if not self._ended:
            self._ended = True
            self._recorder.abandon(
                outcome="malformed",
                message=f"{type(error).__name__}: {error}",
                first_chunk_s=self._first_chunk_s,
            )
            self._settle(None)
            await self._close_upstream()

    def _settle(self, usage: Usage | None) -> None:
        if self._reply is not None:
            self._reply.usage = usage
            self._reply.cost_usd = sum_cost_usd(self._recorder.attempts)

    async def _close_upstream(self) -> None:
        self._deadline.stop()
        if self._upstream is not None:
            await self._upstream.aclose()

    def _measured_usage(self) -> Usage:
        """The upstream's count, else an estimate from the chunks that came."""
        if self._upstream is not None and self._upstream.usage is not None:
            return self._upstream.usage
        return Usage(
            input_tokens=self._recorder.input_tokens,
            output_tokens=self._chunks * _TOKENS_PER_CHUNK,
            estimated=True,
        )

    def _timeout_error(self, kind: UpstreamKind) -> UpstreamError:
        timeouts = self._timeouts
        if self._deadline.total_expired:
            return self._error("timeout_total", f"not finished within {timeouts.total_s:g} s")
        if kind == "timeout_idle":
            return self._error(kind, f"no further chunk within {timeouts.idle_s:g} s")
        return self._error(kind, f"no first chunk within {timeouts.first_chunk_s:g} s")

    def _error(self, kind: UpstreamKind, reason: str) -> UpstreamError:
        model = self._recorder.model
        return UpstreamError(f"{model}: {reason}.", kind=kind, model=model)


def _current_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None, "not in a task"
    return task
