"""The text and the tool calls of an OpenAI chat completion, whole or streamed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from suffice.dialects.openai_errors import BROKEN_JSON


class ContentPart(msgspec.Struct):
    """One part of a content that is a list."""

    text: str | None = None


class FunctionCall(msgspec.Struct):
    """A function that the model calls; `arguments` should be JSON in a string."""

    name: str | None = None
    arguments: object = None


class ToolCall(msgspec.Struct):
    """One tool call, or in a stream a part of the call `index`."""

    index: int = 0
    function: FunctionCall | None = None


class CompletionMessage(msgspec.Struct):
    """An assistant's message, or in a stream what a chunk adds to it."""

    content: str | list[ContentPart] | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None
    audio: object = None

    @property
    def text(self) -> str:
        """The text of all parts of the content."""
        if isinstance(self.content, list):
            return "".join([part.text for part in self.content if part.text])
        return self.content or ""

    @property
    def calls(self) -> list[FunctionCall]:
        """The functions called, by the new field and by the deprecated one."""
        calls = [call.function for call in self.tool_calls or () if call.function is not None]
        if self.function_call is not None:
            calls.append(self.function_call)
        return calls


class _Choice(msgspec.Struct):
    index: int = 0
    message: CompletionMessage | None = None
    delta: CompletionMessage | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice] | None = None


_decode = msgspec.json.Decoder(_Body).decode


def parse_message(body: bytes) -> CompletionMessage | None:
    """The message of a completion's first choice; None if there is none or it has another shape."""
    try:
        choices = _decode(body).choices
    except BROKEN_JSON:
        return None
    return choices[0].message if choices else None


def text_of_completion(body: bytes, *, tool_calls: bool = True) -> str | None:
    """The first answer of a completion as one text.

    Args:
        body: of the reply.
        tool_calls: whether calls are written out after the text.

    Returns:
        The text, or None if the body cannot be read.
    """
    message = parse_message(body)
    if message is None:
        return None
    calls = [(call.name or "", _arguments(call)) for call in message.calls] if tool_calls else ()
    return _join_text(message.text or message.refusal or "", calls)


def text_of_stream(events: Iterable[bytes]) -> str | None:
    """The first answer of a stream as one text, calls included.

    Args:
        events: whole server-sent events, as they were forwarded.

    Returns:
        The text, or None if an event cannot be read.
    """
    text: list[str] = []
    calls: dict[int, tuple[str, str]] = {}
    for line in b"".join(events).split(b"\n"):
        payload = line[5:].strip() if line.startswith(b"data:") else b"[DONE]"
        if payload == b"[DONE]":
            continue
        try:
            choices = _decode(payload).choices
        except BROKEN_JSON:
            return None
        for choice in choices or ():
            if choice.index != 0 or choice.delta is None:
                continue
            text.append(choice.delta.text or choice.delta.refusal or "")
            for call in choice.delta.tool_calls or ():
                if call.function is not None:
                    name, arguments = calls.get(call.index, ("", ""))
                    calls[call.index] = (
                        name + (call.function.name or ""),
                        arguments + _arguments(call.function),
                    )
    return _join_text("".join(text), [calls[index] for index in sorted(calls)])


def _arguments(call: FunctionCall) -> str:
    if isinstance(call.arguments, str):
        return call.arguments
    return "" if call.arguments is None else msgspec.json.encode(call.arguments).decode()


def _join_text(text: str, calls: Sequence[tuple[str, str]]) -> str:
    return "\n".join([text] * bool(text) + [f"[calls {name}({args})]" for name, args in calls])
