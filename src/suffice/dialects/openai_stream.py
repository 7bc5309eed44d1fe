"""Server-sent events of an OpenAI chat stream: bytes in, whole events out."""

from __future__ import annotations

import msgspec

from suffice.dialects.base import Event
from suffice.dialects.openai_errors import BROKEN_JSON, malformed_error, stream_error
from suffice.dialects.openai_schema import decode_chunk, to_usage
from suffice.errors import UpstreamError
from suffice.types import Deployment, Usage

_MODEL_KEY = b'"model":'


class OpenAIStream:
    """Splits a stream into whole events, however its bytes are split.

    After the first content most events are forwarded without being decoded: a chunk is decoded only
    if its bytes may carry usage, a finish reason or an error.

    Attributes:
        usage: the upstream's token counts, once they came.
        finish_reason: once it came.
        error: the upstream's own error event.
        finished: whether the terminator or an error came.
    """

    __slots__ = (
        "_committed",
        "_model_field",
        "_model_field_upstream",
        "_pending",
        "_target",
        "error",
        "finish_reason",
        "finished",
        "usage",
    )

    def __init__(self, target: Deployment) -> None:
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.error: UpstreamError | None = None
        self.finished = False
        self._target = target
        self._pending = b""  # the start of an event whose end has not arrived
        self._committed = False  # whether content came
        self._model_field = _MODEL_KEY + msgspec.json.encode(target.model.name)
        self._model_field_upstream: bytes | None = None

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes, in order."""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        if b"\r" in data:
            # A lone CR at the end may be half of a CRLF: wait for the other half.
            if data.endswith(b"\r"):
                self._pending = b"\r"
                data = data[:-1]
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = data.rfind(b"\n\n") + 2
        if end < 2:
            self._pending = data + self._pending
            return []
        if end < len(data):
            self._pending = data[end:] + self._pending
            data = data[:end]
        if end == 2:  # only a blank line
            return []
        if self._committed and _is_plain_content(data):
            return [Event(self._with_our_name(data), "content", data.count(b"\n\n"))]
        events: list[Event] = []
        for block in data.split(b"\n\n"):
            if block and not self.finished:
                self._parse_event(block, events)
        return events

    def _parse_event(self, block: bytes, events: list[Event]) -> None:
        block = block.lstrip(b"\xef\xbb\xbf\n")
        lines = [
            line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")
        ]
        if not lines:
            return  # a comment or a bare event name: nothing to forward
        payload = lines[0] if len(lines) == 1 else b"\n".join(lines)
        if payload.strip() == b"[DONE]":
            self.finished = True
            events.append(Event(b"data: [DONE]\n\n", "done"))
            return
        try:
            chunk = decode_chunk(payload)
        except BROKEN_JSON as error:
            reason = f"a chunk cannot be read ({error})"
            self._fail(malformed_error(self._target, reason, payload), events)
            return
        if chunk.error is not None:
            self._fail(stream_error(chunk.error, payload, self._target), events)
            return
        usage = to_usage(chunk.usage)
        if usage is not None:
            self.usage = usage
        raw = self._with_our_name(b"data: " + payload.replace(b"\n", b"") + b"\n\n")
        if not chunk.choices:
            events.append(Event(raw, "usage" if usage is not None else "preamble"))
            return
        for choice in chunk.choices:
            if choice.finish_reason is not None:
                self.finish_reason = choice.finish_reason
                self._committed = True
            elif choice.delta is not None and choice.delta.has_content():
                self._committed = True
        events.append(Event(raw, "content" if self._committed else "preamble"))

    def _fail(self, error: UpstreamError, events: list[Event]) -> None:
        self.error = error
        self.finished = True
        events.append(Event(b"", "error"))

    def _with_our_name(self, data: bytes) -> bytes:
        """`data` with the catalog's name of the model instead of the upstream's."""
        # The bytes `"model":"` cannot be in a JSON string, where the quotes would be escaped.
        field = self._model_field_upstream
        if field is None:
            start = data.find(_MODEL_KEY)
            if start < 0:
                return data
            value = start + len(_MODEL_KEY)
            quote = data.find(b'"', value)
            end = data.find(b'"', quote + 1)
            if quote < 0 or end < 0 or data[value:quote].strip():
                return data
            field = self._model_field_upstream = data[start : end + 1]
        return data.replace(field, self._model_field)


def _is_plain_content(data: bytes) -> bool:
    """Whether no event in `data` can carry usage, a finish reason, an error or the terminator."""
    return (
        b'"usage":{' not in data
        and b'"usage": {' not in data
        and b'"finish_reason":"' not in data
        and b'"finish_reason": "' not in data
        and b"[DONE]" not in data
        and b'"error"' not in data
    )
