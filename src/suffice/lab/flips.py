"""The same question in other words or other white space, to see whether a decision changes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

import msgspec

from ..types import Message


def _wrapped(text: str) -> str:
    lines = text.split("\n")
    return "\n".join(textwrap.fill(x, 60) if len(x) > 60 else x for x in lines)


def _other_case(text: str) -> str:
    return text[:1].swapcase() + text[1:]


def _please(text: str) -> str:
    return f"Please {text[:1].lower()}{text[1:]}"


WHITE_SPACE: dict[str, Callable[[str], str]] = {
    "trailing space": lambda t: t + " \n\n",
    "wrapped at 60 columns": _wrapped,
}
REWORDING: dict[str, Callable[[str], str]] = {
    "first letter's case": _other_case,
    "'Question:' in front": lambda t: f"Question: {t}",
    "'Please' in front": _please,
    "'Thanks!' at the end": lambda t: f"{t} Thanks!",
}


def reworded(conversation: Sequence[Message], change: Callable[[str], str]) -> tuple[Message, ...]:
    """The conversation with its last user message changed."""
    out = list(conversation)
    for i in range(len(out) - 1, -1, -1):
        if out[i].role == "user" and not out[i].is_tool_result:
            out[i] = msgspec.structs.replace(out[i], text=change(out[i].text))
            break
    return tuple(out)
