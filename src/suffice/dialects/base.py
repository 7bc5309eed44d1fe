"""What a wire dialect must do, and the records it returns. One file per dialect and direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec

from suffice.errors import UpstreamError
from suffice.transport import Response
from suffice.types import Deployment, Usage

EventKind = Literal["preamble", "content", "usage", "done", "error"]

_MAX_ERROR_BYTES = 64 * 1024


class Event(msgspec.Struct):
    """One or more whole server-sent events, ready to forward.

    Attributes:
        raw: the events as bytes.
        kind: `preamble`: nothing that a reader would see yet (a role). `usage`: the chunk that only
            carries usage. `error`: the upstream's own error event, see `StreamParser.error`.
        chunks: how many events of the upstream are joined in `raw`.
    """

    raw: bytes
    kind: EventKind
    chunks: int = 1


class ParsedReply(msgspec.Struct):
    """What is read of a whole reply; `body` names the answering model as the catalog does."""

    body: bytes
    usage: Usage | None
    finish_reason: str | None


class StreamParser(Protocol):
    """Incremental: takes bytes as they come, split at any place, and returns whole events."""

    usage: Usage | None
    finish_reason: str | None
    error: UpstreamError | None
    finished: bool

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes, in order."""
        ...


class Dialect(Protocol):
    """A wire format. All methods are pure."""

    name: str

    def build_request(
        self, fields: dict[str, msgspec.Raw], target: Deployment, *, stream: bool
    ) -> tuple[str, Sequence[tuple[str, str]], bytes]:
        """URL, headers and body of the query for `target`."""
        ...

    def with_max_tokens(
        self, fields: dict[str, msgspec.Raw], target: Deployment, output_tokens: int
    ) -> dict[str, msgspec.Raw]:
        """The fields with a limit of output tokens, for a body that has none."""
        ...

    def parse_reply(self, body: bytes, target: Deployment) -> ParsedReply:
        """Read a whole reply. Raises UpstreamError of kind malformed."""
        ...

    def classify_error(
        self, status: int, header: Callable[[str], str | None], body: bytes, target: Deployment
    ) -> UpstreamError:
        """The error that a status of 300 or more means."""
        ...

    def stream_parser(self, target: Deployment) -> StreamParser:
        """A parser for one stream of `target`."""
        ...


class WholeReply:
    """An upstream's whole reply with status 200. See `execution.UpstreamReply`."""

    __slots__ = ("body", "finish_reason", "status", "usage")

    def __init__(self, status: int, reply: ParsedReply) -> None:
        self.status = status
        self.body = reply.body
        self.usage = reply.usage
        self.finish_reason = reply.finish_reason

    async def next_events(self) -> list[Event]:
        """No events: the reply is not a stream."""
        return []

    async def aclose(self) -> None:
        """Nothing to close: the body was read."""


class StreamedReply:
    """An upstream's stream with status 200. See `execution.UpstreamReply`."""

    __slots__ = ("_failure", "_parser", "_response", "_target", "body", "status")

    def __init__(self, response: Response, target: Deployment, parser: StreamParser) -> None:
        self.status = response.status
        self.body = b""
        self._response = response
        self._target = target
        self._parser = parser
        self._failure: UpstreamError | None = None

    @property
    def usage(self) -> Usage | None:
        """The upstream's token counts, once they came."""
        return self._parser.usage

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended, once it did."""
        return self._parser.finish_reason

    async def next_events(self) -> list[Event]:
        """Parse what arrived since the last call.

        Returns:
            Whole events, at least one; none at the end of the stream.

        Raises:
            UpstreamError: cut if the stream ends before its terminator, or what the upstream's own
                error event says.
        """
        parser = self._parser
        while self._failure is None and not parser.finished:
            data = await self._response.read_chunk()
            events = parser.feed(data or b"\n\n")  # the end of a body ends its last event, too
            if parser.error is not None:
                self._failure = parser.error
            elif not data and not parser.finished:
                self._failure = self._cut()
            if events:
                return events
        if self._failure is not None:
            raise self._failure
        return []

    async def aclose(self) -> None:
        """Drop the connection, unless the terminator came and the body is about to end."""
        if self._parser.finished and self._failure is None:
            self._response.drain()
        else:
            await self._response.aclose()

    def _cut(self) -> UpstreamError:
        return UpstreamError(
            f"{self._target.model.name}: the stream ended before its terminator.",
            kind="cut",
            status=self.status,
            provider=self._target.provider.name,
            model=self._target.model.name,
        )


async def open_response(
    dialect: Dialect, response: Response, target: Deployment, *, stream: bool
) -> WholeReply | StreamedReply:
    """Turn an HTTP response into a reply. Raises the UpstreamError that it means."""
    if response.status >= 300:
        try:
            body = await response.read(_MAX_ERROR_BYTES)
        finally:
            await response.aclose()
        raise dialect.classify_error(response.status, response.header, body, target)
    if not stream:
        reply = dialect.parse_reply(await response.read(), target)
        return WholeReply(response.status, reply)
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
    return StreamedReply(response, target, dialect.stream_parser(target))
