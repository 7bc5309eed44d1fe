"""What was asked and what was answered, as the texts that a judge compares. OpenAI's shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from suffice.types import Message, Query


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int = 0
    function: _Function | None = None


class _Said(msgspec.Struct):
    content: Any = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    message: _Said | None = None
    delta: _Said | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice] | None = None


_decode = msgspec.json.Decoder(_Body).decode
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# What the client asks of the form of an answer stands in these, not in its messages.
_FORM = ("tools", "functions", "response_format")


def judged_messages(query: Query) -> tuple[Message, ...]:
    """The conversation as a judge gets it: its texts, then the tools and the format asked for."""
    form = [
        Message(name, bytes(query.fields[name]).decode("utf-8", "replace"))
        for name in _FORM
        if name in query.fields and bytes(query.fields[name]) != b"null"
    ]
    return (*query.messages, *form)


def text_of_completion(body: bytes) -> str | None:
    """The first answer of a chat completion; None where this is none."""
    try:
        choices = _decode(body).choices
    except _BROKEN:
        return None
    said = choices[0].message if choices else None
    if said is None:
        return None
    calls = [(c.function.name or "", c.function.arguments or "") for c in _calls(said)]
    return _join_text(_text(said), calls)


def text_of_stream(events: Sequence[bytes]) -> str | None:
    """The first answer of a stream, from its events as they were passed on; None where one of them
    cannot be read."""
    text: list[str] = []
    calls: dict[int, tuple[str, str]] = {}
    for line in b"".join(events).split(b"\n"):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            continue
        try:
            choices = _decode(data).choices
        except _BROKEN:
            return None
        for choice in choices or ():
            if choice.index != 0 or choice.delta is None:
                continue
            text.append(_text(choice.delta))
            for call in _calls(choice.delta):
                name, given = calls.get(call.index, ("", ""))
                assert call.function is not None
                calls[call.index] = (
                    name + (call.function.name or ""),
                    given + (call.function.arguments or ""),
                )
    return _join_text("".join(text), [calls[i] for i in sorted(calls)])


def _calls(said: _Said) -> list[Any]:
    return [c for c in said.tool_calls or () if c.function is not None]


def _text(said: _Said) -> str:
    content = said.content if said.content is not None else said.refusal
    if isinstance(content, list):
        return "".join(str(p.get("text") or "") for p in content if isinstance(p, dict))
    return content if isinstance(content, str) else ""


def _join_text(text: str, calls: Sequence[tuple[str, str]]) -> str:
    return "\n".join([text] * bool(text) + [f"[calls {name}({given})]" for name, given in calls])
