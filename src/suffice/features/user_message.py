"""Finds the last user message of a conversation and separates what a harness wrapped around it.

An agent sends 50,000 tokens of tool results and reminders around a request of ten words. Only the ten
words say how hard the request is; the material around them is counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from suffice.types import Message

_HEAD = (
    512  # characters of each end of a long message that are scored; more does not improve routing
)
_SCAN = 8_192  # characters of each end of one message that are searched for wrappers

_LONG = 4 * _HEAD  # characters from which folding by bytes is faster
_SPACES = bytes(32 if chr(i).isspace() else i for i in range(128)) + bytes(range(128, 256))

# Tags that agent harnesses put around text that no person typed in this turn. It is neither part of the
# message nor material for it.
_HARNESS = re.compile(
    r"<(system-reminder|system_reminder|environment_details|environment_context|tool_result"
    r"|function_results|local-command-stdout|command-output|user_info|open_files)\b[^<>]{0,200}>"
    r".{0,16384}?</\1\s*>",
    re.DOTALL | re.IGNORECASE,
)
# Tags around material that the message is about.
_WRAPPER = re.compile(
    r"<(attached_files|document|documents|context|file_content|search_results|instructions)\b"
    r"[^<>]{0,200}>.{0,16384}?</\1\s*>",
    re.DOTALL | re.IGNORECASE,
)
# Marks of prompt templates (ChatML, Llama, Alpaca) with the role they name. The text between them
# stays, because each occurs only a few times in a template. Every alternative begins with a plain
# character, which the regex engine searches for several times faster. The lookbehind means a line's
# first "#".
_TEMPLATE = re.compile(
    r"<\|(?i:im_start|start_header_id)\|>\s*\w{0,12}(?:<\|(?i:end_header_id)\|>)?"
    r"|<\|(?i:im_end|eot_id|begin_of_text|end_of_text|endoftext|user|assistant|system|end)\|>"
    r"|\[/?(?i:INST)\]|<</?(?i:SYS)>>|</?(?i:s)>"
    r"|#(?<![^\n]#)#{1,3}\s*"
    r"(?i:instruction|response|input|human|user|assistant|question|answer)(?i:s?)\s*:?\s*$",
    re.MULTILINE,
)
_LABEL_AT_END = re.compile(r"(?:\s+(?:answer|response|assistant|a|output)\s*:)+$", re.IGNORECASE)
# A fenced block of at least 400 characters is pasted material, not part of the message.
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


class UserMessage(msgspec.Struct, frozen=True):
    """The part of a message that a person typed.

    Attributes:
        text: white space folded, at most 2 x 512 characters.
        chars: the length of the folded text before it was cut.
        lines: paragraphs and list items.
        attached: characters of pasted material in the same message.
        code: whether it came with a code block.
        chunks: the parts of `text` between white space.
    """

    text: str
    chars: int
    lines: int
    attached: int
    code: bool
    chunks: list[str]


def _ends(text: str, each: int) -> str:
    return text if len(text) <= 2 * each else text[:each] + "\n" + text[-each:]


def clean(raw: str) -> UserMessage:
    """Separate what a person typed from what a harness added, with work that is bounded."""
    text = _ends(raw, _SCAN)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    # One character first: searching for it is several times faster than for two or more.
    code = "`" in text and "```" in text
    tags = "<" in text
    if (
        (tags and ("<|" in text or "<s>" in text))
        or ("#" in text and "##" in text)
        or ("[" in text and "[INST]" in text)
    ):
        text = _TEMPLATE.sub(" ", text)
    attached = 0
    if tags and "</" in text:
        text = _HARNESS.sub(" ", text)
        unwrapped = _WRAPPER.sub(" ", text)
        attached += len(text) - len(unwrapped)
        text = unwrapped
    if code:
        prose = _FENCE.sub(" ", text)
        attached += len(text) - len(prose)
        text = prose
    text = _strip_labels(text)
    lines = 0
    if "\n" in text:
        # Wrapped lines are one paragraph; a blank line or a list item is structure.
        lines = text.count("\n\n") + text.count("\n- ") + text.count("\n* ") + text.count("\n1. ")
    chunks: list[str] = []
    if len(text) > _LONG and text.isascii():
        text = _fold_ascii(text)
    else:
        chunks = text.split()
        text = " ".join(chunks)
    chars = len(text)
    if chars > 2 * _HEAD or not chunks:
        text = _ends(text, _HEAD)
        chunks = text.split()
    if len(raw) > 2 * _SCAN:
        chars += len(raw) - 2 * _SCAN
    return UserMessage(text, chars, lines, attached, code, chunks)


def _fold_ascii(text: str) -> str:
    """Fold white space without making a list of words: several times faster for long texts."""
    folded = text.encode("ascii").translate(_SPACES)
    while b"  " in folded:
        folded = folded.replace(b"  ", b" ")
    return folded.decode("ascii").strip()


def _strip_labels(text: str) -> str:
    """Remove a prompt template's labels ("Question:", "Answer:") at both ends."""
    text = text.strip()
    # Before the lines are counted: the blank line between a label and the question is the label's.
    if text and text[0] in "QqUuHhPp":
        text = _LABEL.sub("", text)
    if text.endswith(":"):
        # In the last characters only: the search costs by the length.
        text = text[:-80] + _LABEL_AT_END.sub("", text[-80:])
    return text.strip()


def messages_to_score(messages: Sequence[Message], limit: int = 4) -> list[UserMessage]:
    """Select the last user message and, if it only makes sense with them, those before it.

    Returns:
        At most `limit` messages that hold text, newest first; empty if there is none.
    """
    scored: list[UserMessage] = []
    for m in reversed(messages):
        if m.role == "user" and not m.is_tool_result:
            message = clean(m.text)
            if message.text:
                scored.append(message)
                if len(scored) == limit or not is_follow_up(message):
                    break
    return scored


def is_follow_up(message: UserMessage) -> bool:
    """Whether a message only makes sense with those before it: "yes, go ahead", "and in French?"."""
    if message.chars > 80 or message.code or message.attached:
        return False
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", message.text.lower())
    if not words:
        return True
    if len(words) <= 2 and message.chars <= 24:
        return True
    if words[0] in _FOLLOW and len(words) <= 10:
        return True
    if len(words) <= 10 and not _POINTS_BACK.isdisjoint(words):
        return True
    return any(w in message.text for w in _FOLLOW_CJK)
