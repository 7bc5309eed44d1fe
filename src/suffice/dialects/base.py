"""What a wire dialect must do, and the records it gives back. One file per dialect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal, Protocol

import msgspec

from suffice.errors import UpstreamError
from suffice.types import Deployment, Response, Usage

EventKind = Literal["preamble", "content", "usage", "done", "error"]


class Event(msgspec.Struct):
    """One or more whole server-sent events, ready to forward.

    preamble: nothing a reader would see yet (a role, a comment). usage: the chunk that only carries
    usage. error: the upstream's own error event; its message is in `StreamParser.error`.
    """

    raw: bytes
    kind: EventKind
    chunks: int = 1  # how many events of the upstream are joined in raw


class ParsedReply(msgspec.Struct):
    """What we read out of a whole reply. `body` has the answering model's catalog name in it."""

    body: bytes
    usage: Usage | None
    finish_reason: str | None


class StreamParser(Protocol):
    """Incremental: `feed` bytes as they come, split at any place; gives whole events."""

    usage: Usage | None
    finish_reason: str | None
    error: UpstreamError | None

    def feed(self, data: bytes) -> list[Event]: ...
    @property
    def finished(self) -> bool: ...


class Dialect(Protocol):
    """A wire format. All methods are pure."""

    name: str

    def build_request(
        self, fields: dict[str, msgspec.Raw], target: Deployment, *, stream: bool
    ) -> tuple[str, Sequence[tuple[str, str]], bytes]: ...

    def with_max_tokens(
        self, fields: dict[str, msgspec.Raw], target: Deployment, output_tokens: int
    ) -> dict[str, msgspec.Raw]:
        """The fields with a limit of output tokens for a body that has none."""
        ...

    def parse_reply(self, body: bytes, target: Deployment) -> ParsedReply: ...

    def classify_error(
        self, status: int, header: Callable[[str], str | None], body: bytes, target: Deployment
    ) -> UpstreamError: ...

    def stream_parser(self, target: Deployment) -> StreamParser: ...


class UpstreamResponse:
    """An upstream that answered 200. `events` only for streams; usage is known at their end."""

    __slots__ = ("_parser", "_response", "_target", "body", "finish_reason", "status", "usage")

    def __init__(
        self,
        response: Response,
        target: Deployment,
        *,
        facts: ParsedReply | None = None,
        parser: StreamParser | None = None,
    ) -> None:
        self.status = response.status
        self.body = facts.body if facts else b""
        self.usage = facts.usage if facts else None
        self.finish_reason = facts.finish_reason if facts else None
        self._response = response
        self._target = target
        self._parser = parser

    async def batches(self) -> AsyncIterator[list[Event]]:
        """Lists of events, one list for each piece of the body as it arrived.

        Raises UpstreamError: `cut` where the stream ends before its terminator, or what the
        upstream's own error event says.
        """
        parser = self._parser
        assert parser is not None, "not a stream"
        while data := await self._response.read_chunk():
            events = parser.feed(data)
            self.usage, self.finish_reason = parser.usage, parser.finish_reason
            if events:
                yield events
            if parser.error is not None:
                raise parser.error
            if parser.finished:
                return
        events = parser.feed(b"\n\n")  # a last event without its blank line
        self.usage, self.finish_reason = parser.usage, parser.finish_reason
        if events:
            yield events
        if not parser.finished:
            raise UpstreamError(
                f"{self._target.model.name}: the stream ended before its terminator.",
                kind="cut",
                status=self.status,
                provider=self._target.provider.name,
                model=self._target.model.name,
            )

    async def aclose(self) -> None:
        if self._parser is not None:
            await self._response.aclose()


_ERROR_LIMIT = 64 * 1024


async def open_response(
    dialect: Dialect, response: Response, target: Deployment, *, stream: bool
) -> UpstreamResponse:
    """Turn an HTTP response into an Opened, or into the UpstreamError that it means."""
    if response.status >= 300:
        try:
            body = await response.read(_ERROR_LIMIT)
        finally:
            await response.aclose()
        raise dialect.classify_error(response.status, response.header, body, target)
    if not stream:
        return UpstreamResponse(
            response, target, facts=dialect.parse_reply(await response.read(), target)
        )
    kind = response.header("content-type") or ""
    if "event-stream" not in kind:
        await response.aclose()
        raise UpstreamError(
            f"{target.model.name}: asked for a stream, got {kind or 'no content type'!r}.",
            kind="malformed",
            status=response.status,
            provider=target.provider.name,
            model=target.model.name,
        )
    return UpstreamResponse(response, target, parser=dialect.stream_parser(target))
