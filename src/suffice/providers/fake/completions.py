"""What a simulated model answers: chat completions, whole or as the events of a stream. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from suffice.providers.fake.script import FakeModel, is_sufficient

Json = dict[str, object]

DONE = b"data: [DONE]\n\n"
ERROR_EVENT = b'data: {"error": {"message": "simulated failure", "code": 500}}\n\n'

_encode = msgspec.json.encode


class Function(msgspec.Struct):
    """A function that the request offers."""

    name: str = "f"
    parameters: object = None


class Tool(msgspec.Struct):
    """A tool that the request offers."""

    function: Function = msgspec.field(default_factory=Function)


class JsonSchema(msgspec.Struct):
    """The form of a structured reply."""

    schema: object = None


class ResponseFormat(msgspec.Struct):
    """The `response_format` of a request."""

    type: str | None = None
    json_schema: JsonSchema | None = None


class StreamOptions(msgspec.Struct):
    """The `stream_options` of a request."""

    include_usage: bool | None = None


class ChatRequest(msgspec.Struct):
    """What the simulation reads of a request."""

    model: str = ""
    messages: list[Json] = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[Tool] | None = None
    response_format: ResponseFormat | None = None
    metadata: dict[str, object] | None = None


decode_request = msgspec.json.Decoder(ChatRequest).decode


class Completion:
    """The answer of a simulated model to one request.

    Args:
        request: the request, decoded.
        model: the model that answers.
        seed: of the simulated verdicts.
        created_s: unix seconds.

    Attributes:
        output_tokens: the length of the answer.
    """

    def __init__(self, request: ChatRequest, model: FakeModel, seed: int, created_s: float) -> None:
        self._request = request
        self._model = model
        self._created_s = int(created_s)
        metadata = request.metadata or {}
        self._tool_calls = _tool_calls(request)
        self._text = _structured_text(request) or model.reply
        self._verdict = _verdict(metadata, request.model, model, seed)
        self._prompt_tokens = max(1, len(_encode(request.messages)) // 4)
        output_tokens = metadata.get("output_tokens", model.output_tokens)
        if output_tokens is None:
            output_tokens = max(1, len(model.reply) // 4)
        self.output_tokens = int(str(output_tokens))

    def body(self) -> bytes:
        """The whole reply."""
        message: Json = {"role": "assistant", "content": self._text}
        if self._tool_calls:
            message |= {"content": None, "tool_calls": self._tool_calls}
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        reply = self._envelope("chat.completion") | {"choices": [choice]}
        if self._model.usage:
            cached = min(self._model.cached_tokens, self._prompt_tokens)
            reply["usage"] = self._usage() | {"prompt_tokens_details": {"cached_tokens": cached}}
        return _encode(reply | self._verdict)

    def first_event(self) -> bytes:
        """The event that only names the role."""
        return self._event({"role": "assistant", "content": ""})

    def content_events(self) -> list[bytes]:
        """The events that carry the answer, a word each."""
        if self._tool_calls:
            calls = [{"index": 0, **call} for call in self._tool_calls]
            return [self._event({"tool_calls": calls})]
        first, *others = self._text.split(" ")
        return [
            self._event({"content": word}) for word in (first, *(f" {word}" for word in others))
        ]

    def last_events(self) -> list[bytes]:
        """The events after the answer: its end, the usage if it was asked for, the terminator."""
        events = [self._event({}, self._finish_reason, self._verdict)]
        options = self._request.stream_options
        if self._model.usage and options is not None and options.include_usage:
            usage = {"choices": [], "usage": self._usage()}
            events.append(_sse(self._envelope("chat.completion.chunk") | usage))
        return [*events, DONE]

    @property
    def _finish_reason(self) -> str:
        return "tool_calls" if self._tool_calls else "stop"

    def _usage(self) -> Json:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self._prompt_tokens + self.output_tokens,
        }

    def _envelope(self, kind: str) -> Json:
        return {
            "id": "chatcmpl-sim",
            "object": kind,
            "created": self._created_s,
            "model": self._request.model,
        }

    def _event(
        self, delta: Json, finish_reason: str | None = None, extra: Mapping[str, object] = {}
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return _sse({**self._envelope("chat.completion.chunk"), "choices": [choice], **extra})


def _sse(value: Json) -> bytes:
    return b"data: " + _encode(value) + b"\n\n"


def _tool_calls(request: ChatRequest) -> list[Json]:
    """A call of the first tool offered, unless the last message answers one."""
    last_role = request.messages[-1].get("role") if request.messages else None
    if not request.tools or last_role == "tool":
        return []
    function = request.tools[0].function
    arguments = _encode(_example(function.parameters)).decode()
    call = {"name": function.name, "arguments": arguments}
    return [{"id": "call_sim", "type": "function", "function": call}]


def _structured_text(request: ChatRequest) -> str | None:
    """A value of the schema asked for, as JSON; None if none was asked for."""
    form = request.response_format
    if form is None or form.type != "json_schema" or form.json_schema is None:
        return None
    return _encode(_example(form.json_schema.schema)).decode()


def _verdict(metadata: Mapping[str, object], name: str, model: FakeModel, seed: int) -> Json:
    """Whether the simulated answer suffices, if the metadata name a difficulty."""
    if "difficulty" not in metadata:
        return {}
    query_id, difficulty = str(metadata.get("id", "")), float(str(metadata["difficulty"]))
    sufficient = is_sufficient(seed, name, query_id, model.skill, difficulty)
    return {"simulated": {"sufficient": sufficient}}


def _example(schema: object) -> object:
    """A small value of a JSON schema, for simulated tool calls and structured replies."""
    if not isinstance(schema, dict):
        return {}
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties") or {}
        return {name: _example(part) for name, part in properties.items()}
    if kind == "array":
        return [_example(schema.get("items"))]
    return {"string": "simulated", "integer": 1, "number": 1.5, "boolean": True}.get(str(kind))
