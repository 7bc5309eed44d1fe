"""One streamed attempt: opened up to its commit point, then handed to the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from suffice.errors import UpstreamError
from suffice.execution.attempt import AttemptRecorder, Reply
from suffice.execution.caller import Caller, UpstreamReply
from suffice.execution.deadline import Deadline
from suffice.types import Timeouts, Usage

_CHUNK_TOKENS = 1  # a chunk of a stream carries about one token, where no usage came
_MAX_PREAMBLE = 1 << 20  # bytes held back before the first content


class StreamingAttempt:
    """open() -> Reply, whose `events` and `aclose` are this one's `events` and `close`."""

    __slots__ = (
        "_batches",
        "_chunks",
        "_deadline",
        "_ended",
        "_first_s",
        "_head",
        "_opened",
        "_reply",
        "_run",
        "_task",
        "_timeouts",
    )

    def __init__(self, run: AttemptRecorder, timeouts: Timeouts) -> None:
        self._run = run
        self._timeouts = timeouts
        self._deadline = Deadline(timeouts.first_chunk_s, timeouts.total_s)
        self._task: asyncio.Task[Any] | None = None
        self._opened: UpstreamReply | None = None
        self._batches: AsyncIterator[list[Any]] | None = None
        self._head: list[Any] = []
        self._reply: Reply | None = None
        self._first_s: float | None = None
        self._chunks = 0
        self._ended = False

    async def open(self, caller: Caller) -> Reply:
        """Up to the first content. Until here a failure is invisible to the client.

        Raises UpstreamError, or CancelledError when the client left.
        """
        run, deadline = self._run, self._deadline
        self._task = task = asyncio.current_task()
        assert task is not None
        deadline.waiting(task)
        try:
            opened = self._opened = await caller.open(run.model, self._timeouts)
            self._batches = opened.batches()
            held = 0
            while batch := await self._pull():
                self._head += batch
                if any(e.kind == "content" or e.kind == "done" for e in batch):
                    break
                held += sum(len(e.raw) for e in batch)
                if held > _MAX_PREAMBLE:
                    raise self._error("malformed", "no content in the first MiB of its stream")
        except UpstreamError as error:
            await self._fail(error)
            raise
        except asyncio.CancelledError:
            if deadline.ours():
                late = self._late("timeout_first_chunk")
                await self._fail(late)
                raise late from None
            await self.close()
            raise
        except BaseException as error:
            await self._break(error)
            raise
        self._first_s = run.elapsed_s()
        deadline.resting()
        deadline.limit(self._timeouts.idle_s)
        reply = self._reply = run.reply(opened.status)
        reply._stream = self
        reply.first_chunk_s = self._first_s
        return reply

    async def _pull(self) -> list[Any]:
        """The next events, at least one; none at the end of the stream."""
        assert self._batches is not None
        try:
            while True:
                batch = await self._batches.__anext__()
                if self._deadline.expired:  # somebody below took our cancellation for its own
                    raise asyncio.CancelledError
                if batch:
                    return batch
        except StopAsyncIteration:
            return []

    async def events(self) -> AsyncIterator[Any]:
        """The stream from its beginning. Raises UpstreamError when it breaks after the commit."""
        deadline = self._deadline
        task = asyncio.current_task()
        assert task is not None
        batch, self._head = self._head, []
        try:
            while batch:
                for event in batch:
                    if event.kind == "content":
                        self._chunks += event.chunks
                    if event.kind != "error":
                        yield event
                if self._ended:
                    return
                if deadline.spent:
                    raise self._late("timeout_idle")
                deadline.waiting(task)
                batch = await self._pull()
                deadline.resting()
        except UpstreamError as error:
            await self._fail(error)
            raise
        except asyncio.CancelledError:
            if deadline.ours():
                late = self._late("timeout_idle")
                await self._fail(late)
                raise late from None
            await self.close()
            raise
        except GeneratorExit:
            await self.close()
            raise
        except BaseException as error:
            await self._break(error)
            raise
        await self._finish()

    # How a stream can end. The record comes first, so that no second cancellation can lose it.

    async def _finish(self) -> None:
        if not self._ended:
            self._ended = True
            assert self._reply is not None and self._opened is not None
            self._run.succeed(self._reply, self._opened, self._usage(), self._first_s)
            await self._drop()

    async def close(self) -> None:
        """The client left: upstream dropped, what was produced priced."""
        if not self._ended:
            self._ended = True
            usage = self._usage() if self._opened is not None else None
            self._run.abandon(usage, self._first_s)
            self._settle(usage)
            await self._drop()

    async def _fail(self, error: UpstreamError) -> None:
        if not self._ended:
            self._ended = True
            # Before the first content nothing was produced but what the upstream itself counted.
            opened = self._opened
            usage = self._usage() if self._reply is not None else opened.usage if opened else None
            self._run.fail(error, first_chunk_s=self._first_s, usage=usage)
            self._settle(usage)
            await self._drop()

    async def _break(self, error: BaseException) -> None:
        """A fault of our own, or of the process: says nothing about the model."""
        if not self._ended:
            self._ended = True
            what = f"{type(error).__name__}: {error}"
            self._run.abandon(outcome="malformed", message=what, first_chunk_s=self._first_s)
            self._settle(None)
            await self._drop()

    def _settle(self, usage: Usage | None) -> None:
        if self._reply is not None:
            self._run.settle(self._reply, usage)

    async def _drop(self) -> None:
        self._deadline.stop()
        if self._opened is not None:
            await self._opened.aclose()

    def _usage(self) -> Usage:
        """The upstream's count, else an estimate of ours from the chunks that came."""
        if self._opened is not None and self._opened.usage is not None:
            return self._opened.usage
        return Usage(
            input_tokens=self._run.input_tokens,
            output_tokens=self._chunks * _CHUNK_TOKENS,
            estimated=True,
        )

    def _late(self, kind: str) -> UpstreamError:
        if self._deadline.spent:
            limit_s = self._timeouts.total_s
            return self._error("timeout_total", f"not finished within {limit_s:g} s")
        if kind == "timeout_idle":
            limit_s = self._timeouts.idle_s
            return self._error("timeout_idle", f"no further chunk within {limit_s:g} s")
        limit_s = self._timeouts.first_chunk_s
        return self._error("timeout_first_chunk", f"no first chunk within {limit_s:g} s")

    def _error(self, kind: Any, what: str) -> UpstreamError:
        model = self._run.model
        return UpstreamError(f"{model}: {what}.", kind=kind, model=model)
