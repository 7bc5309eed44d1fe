"""The texts that a judge compares: what was asked and what was answered, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from suffice.types import Message, Query


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    function: _Function | None = None


class _Part(msgspec.Struct):
    text: str | None = None


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    message: _Message | None = None
    delta: _Message | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice] | None = None


_decode = msgspec.json.Decoder(_Body).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# Fields, apart from the messages, in which the client asks for the form of an answer.
_FORM = ("tools", "functions", "response_format")


def judged_messages(query: Query) -> tuple[Message, ...]:
    """The conversation as a judge gets it: its texts, then the tools and the format asked for."""
    form = [
        Message(name, bytes(query.fields[name]).decode("utf-8", "replace"))
        for name in _FORM
        if name in query.fields and bytes(query.fields[name]) != b"null"
    ]
    return (*query.messages, *form)


def text_of_completion(body: bytes, *, tool_calls: bool = True) -> str | None:
    """The first answer of a chat completion.

    Args:
        body: The body of the reply.
        tool_calls: Whether tool calls are written out after the text.

    Returns:
        `None` if the body is not a chat completion.
    """
    try:
        choices = _decode(body).choices
    except _UNREADABLE:
        return None
    message = choices[0].message if choices else None
    if message is None:
        return None
    calls = [(f.name or "", f.arguments or "") for _, f in _functions(message)]
    return _join_text(_text(message), calls if tool_calls else ())


def text_of_stream(events: Iterable[bytes]) -> str | None:
    """The first answer of a stream.

    Args:
        events: The server-sent events, as they were passed on.

    Returns:
        `None` if an event cannot be read.
    """
    text: list[str] = []
    calls: dict[int, tuple[str, str]] = {}
    for line in b"".join(events).split(b"\n"):
        data = line[5:].strip() if line.startswith(b"data:") else b"[DONE]"
        if data == b"[DONE]":
            continue
        try:
            choices = _decode(data).choices
        except _UNREADABLE:
            return None
        for choice in choices or ():
            if choice.index != 0 or choice.delta is None:
                continue
            text.append(_text(choice.delta))
            for index, function in _functions(choice.delta):
                name, arguments = calls.get(index, ("", ""))
                calls[index] = (
                    name + (function.name or ""),
                    arguments + (function.arguments or ""),
                )
    return _join_text("".join(text), [calls[i] for i in sorted(calls)])


def _functions(message: _Message) -> list[tuple[int, _Function]]:
    calls = message.tool_calls or ()
    return [(call.index, call.function) for call in calls if call.function is not None]


def _text(message: _Message) -> str:
    content = message.content
    if isinstance(content, list):
        return "".join(part.text or "" for part in content)
    return content or message.refusal or ""


def _join_text(text: str, calls: Sequence[tuple[str, str]]) -> str:
    lines = [text] if text else []
    return "\n".join([*lines, *(f"[calls {name}({arguments})]" for name, arguments in calls)])
