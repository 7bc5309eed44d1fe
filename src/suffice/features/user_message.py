"""Finds the last human ask in a conversation, and sets apart what a harness wrapped around it.

An agent sends 50,000 tokens of tool results and reminders around a ten-word request: only the ten
words say how hard it is. What is set apart is counted, never forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from suffice.types import Message

_HEAD = 512  # characters kept of each end of a long ask (ROUTING: no quality lost)
_SCAN = 8_192  # characters of each end of one message that are searched for wrappers
_LONG_FENCE = 400  # a longer fenced block is pasted material, not part of the ask

# Tags that agent harnesses put around what no human typed for this turn: not part of the ask, and
# no material for it either.
_HARNESS = re.compile(
    r"<(system-reminder|system_reminder|environment_details|environment_context|tool_result"
    r"|function_results|local-command-stdout|command-output|user_info|open_files)\b[^<>]{0,200}>"
    r".{0,16384}?</\1\s*>",
    re.DOTALL | re.IGNORECASE,
)
# Tags around material that the ask is about.
_WRAPPER = re.compile(
    r"<(attached_files|document|documents|context|file_content|search_results|instructions)\b"
    r"[^<>]{0,200}>.{0,16384}?</\1\s*>",
    re.DOTALL | re.IGNORECASE,
)
# Marks of prompt templates, with the role they name: ChatML, Llama, Alpaca. Each occurs a few times
# at most where it is a template, so whatever stands between them is left as it is.
_TEMPLATE = re.compile(
    r"<\|(?:im_start|start_header_id)\|>\s*\w{0,12}(?:<\|end_header_id\|>)?"
    r"|<\|(?:im_end|eot_id|begin_of_text|end_of_text|endoftext|user|assistant|system|end)\|>"
    r"|\[/?INST\]|<</?SYS>>|</?s>"
    r"|^#{2,4}\s*(?:instruction|response|input|human|user|assistant|question|answer)s?\s*:?\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_TAIL = re.compile(r"(?:\s+(?:answer|response|assistant|a|output)\s*:)+$", re.IGNORECASE)
_FENCE = re.compile(r"```[^\n]{0,40}\n(.{400,16384}?)```", re.DOTALL)
_LABEL = re.compile(r"^(?:(?:question|user|human|prompt|q)\s*:\s*)+", re.IGNORECASE)

_FOLLOW = frozenset(
    (
        "yes yeah yep yup ok okay sure no nope please thanks thank great good perfect continue "
        "go do proceed next again more now and also then try fix same retry redo shorter longer "
        "why ja nein weiter bitte danke jetzt nochmal und oui non continue vas d'accord encore "
        "maintenant et si sí no vale continúa sigue ahora otra y sì continua adesso ancora e "
        "sim não agora да нет давай продолжай дальше ещё теперь и हाँ हां नहीं ठीक आगे نعم لا "
        "أكمل استمر الآن 네 예 아니요 계속 좋아 evet hayır devam tak nie dalej "
    ).split()
)
_FOLLOW_CJK = ("继续", "好的", "是的", "可以", "続け", "はい", "お願い", "次", "再", "ください")
_POINTS_BACK = frozenset(
    (
        "it that this these those them one ones second first last previous above same instead "
        "again das dies es cela ça eso esto lo questo isso это это̀ тот "
    ).split()
)


class Ask(msgspec.Struct, frozen=True):
    """text: the ask, white space folded, at most 2 x 512 characters. chars: its full length.
    pasted: characters of pasted material in the same message. code: it came with a code block."""

    text: str
    chars: int
    lines: int
    pasted: int
    code: bool


def _ends(text: str, each: int) -> str:
    return text if len(text) <= 2 * each else text[:each] + "\n" + text[-each:]


def clean(raw: str) -> Ask:
    """One human message as an Ask. Bounded work whatever the length of `raw`."""
    text = _ends(raw, _SCAN)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    pasted = 0
    code = "```" in text
    if "<|" in text or "[INST]" in text or "##" in text or "<s>" in text:
        text = _TEMPLATE.sub(" ", text)
    if "<" in text and "</" in text:
        text = _HARNESS.sub(" ", text)
        bare = _WRAPPER.sub(" ", text)
        if bare is not text:
            pasted += len(text) - len(bare)
            text = bare
    if code:
        bare = _FENCE.sub(" ", text)
        if bare is not text:
            pasted += len(text) - len(bare)
            text = bare
    # Wrapped lines are one paragraph; a blank line or a list item is structure.
    text = text.strip()
    # Labels of a template go first: the blank line between them and the ask is theirs.
    if text and text[0] in "QqUuHhPp":
        text = _LABEL.sub("", text)
    if text.endswith(":"):
        text = text[:-80] + _TAIL.sub("", text[-80:])  # the end alone: a search costs by the length
    text = text.strip()
    lines = text.count("\n\n") + text.count("\n- ") + text.count("\n* ") + text.count("\n1. ")
    text = " ".join(text.split())
    chars = len(text)
    if len(raw) > 2 * _SCAN:
        chars += len(raw) - 2 * _SCAN
    return Ask(_ends(text, _HEAD), chars, lines, pasted, code)


def human_asks(messages: Sequence[Message], most: int = 4) -> list[Ask]:
    """The last `most` human asks that hold any text, newest first."""
    asks: list[Ask] = []
    for m in reversed(messages):
        if m.role == "user" and not m.is_tool_result:
            ask = clean(m.text)
            if ask.text:
                asks.append(ask)
                if len(asks) == most:
                    break
    return asks


def is_follow_up(ask: Ask) -> bool:
    """Whether an ask only makes sense with what was said before: "yes, go ahead", "and in French?".
    To be asked only of a conversation that has an earlier ask."""
    if ask.chars > 80 or ask.code or ask.pasted:
        return False
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", ask.text.lower())
    if not words:
        return True
    if len(words) <= 2 and ask.chars <= 24:
        return True
    if words[0] in _FOLLOW and len(words) <= 10:
        return True
    if len(words) <= 10 and not _POINTS_BACK.isdisjoint(words):
        return True
    return any(w in ask.text for w in _FOLLOW_CJK)
