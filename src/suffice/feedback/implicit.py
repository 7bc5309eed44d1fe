"""What a reply says of itself: signals that it did not suffice, without asking anybody.

Each is a source of its own, `implicit:<name>`, with a weight of its own, and none is on by default.
They say only that something went wrong: a reply without a signal is not thereby good.

It lives with execution because it judges replies, as the acceptance of a cascade's step does, and
asks nothing of other rooms. Pure: no clock, no I/O.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from suffice.feedback.json_schema import first_violation
from suffice.types import Attempt, Decision, Feedback, Query

# How much each counts beside a person's word (1). Chosen by what else may cause it, not measured.
WEIGHTS: dict[str, float] = {
    "schema": 0.8,  # a structured answer that is no JSON, or breaks its schema
    "tool_call": 0.8,  # a call whose arguments are no JSON object, or of a tool not offered
    "empty": 0.7,  # neither text nor a call
    "refusal": 0.3,  # may be right to
    "retried": 0.3,  # the same conversation again, soon: regenerated, or a sample wanted
    "truncated": 0.2,  # stopped by the length limit, which may be the client's
    "upstream_error": 0.2,  # the chosen model failed and did not answer: says little of quality
}

_FAILED = frozenset(
    "connect timeout_connect timeout_first_chunk timeout_idle timeout_total rate_limit overloaded"
    " server malformed cut".split()
)
_SHORT_TOKENS = 64  # who asks for fewer wants a label or a beginning, and gets cut on purpose
_REFUSAL_CHARS = 600  # a refusal is short; a long answer that begins with an excuse is an answer

_APOSTROPHE = "['’]"
_REFUSES = re.compile(
    rf"""(?:i{_APOSTROPHE}m|i\ am)\ (?:very\ )?(?:sorry|afraid)[^.\n]{{0,40}}
            \b(?:can(?:{_APOSTROPHE}t|not)|unable|not\ able)
       | (?:sorry|i\ apologi[sz]e)\b[^.\n]{{0,40}}\b(?:can(?:{_APOSTROPHE}t|not)|unable|not\ able)
       | i(?:{_APOSTROPHE}m|\ am)\ (?:unable|not\ able)\ to\ (?:help|assist|comply|provide|answer)
       | i\ (?:can(?:{_APOSTROPHE}t|not)|won{_APOSTROPHE}t)\ (?:help|assist|comply|provide|answer)
       | as\ an\ ai\b[^.\n]{{0,40}}\bi\ (?:can(?:{_APOSTROPHE}t|not)|am\ unable)
       | (?:es\ )?tut\ mir\ leid[^.\n]{{0,60}}\bkann\ (?:ich|dir|ihnen)
       | je\ suis\ désolée?[^.\n]{{0,40}}\bje\ ne\ (?:peux|suis\ pas)
       | lo\ siento[^.\n]{{0,40}}\bno\ puedo
       | mi\ dispiace[^.\n]{{0,40}}\bnon\ posso
       | (?:desculpe|sinto\ muito)[^.\n]{{0,40}}\bnão\ posso""",
    re.IGNORECASE | re.VERBOSE,
)


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: Any = None


class _Call(msgspec.Struct):
    function: _Function | None = None


class _Part(msgspec.Struct):
    text: str | None = None


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None
    audio: Any = None


class _Choice(msgspec.Struct):
    message: _Message | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice]


_decode_body = msgspec.json.Decoder(_Body).decode
_decode = msgspec.json.Decoder().decode
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def detect_implicit_feedback(
    decision: Decision,
    fields: Mapping[str, msgspec.Raw],
    attempts: Sequence[Attempt],
    body: bytes,
    *,
    enabled: Mapping[str, float],
    now_s: float,
    max_output_tokens: int | None = None,
    repeats: str | None = None,
) -> list[Feedback]:
    """Scores of 0 for a decision whose reply went wrong, at most one of each kind.

    fields: the request's, as raw JSON. body: a whole reply in OpenAI's shape; empty for a stream,
    of which only what its last attempt knows is judged. enabled: names of WEIGHTS and how much each
    counts. max_output_tokens: the client's own limit. repeats: the earlier decision whose reply
    this query threw away (see `RegenerationDetector`), which is the one that gets that score.
    """

    def zero(name: str, why: str, of: str = decision.id) -> Feedback:
        return Feedback(
            decision_id=of,
            score=0.0,
            source=f"implicit:{name}",
            comment=why,
            created_s=now_s,
            weight=enabled[name],
            kind="implicit",
        )

    found = []
    if repeats is not None and "retried" in enabled:
        found.append(zero("retried", "asked again", repeats))
    if "upstream_error" in enabled:
        why = _never_answered(decision.model, attempts)
        if why is not None:
            found.append(zero("upstream_error", why))
    last = attempts[-1] if attempts else None
    if last is None or last.outcome != "ok":
        return found
    said = _message(body) if body else None
    for name, why in _of_answer(fields, last, said, max_output_tokens):
        if name in enabled:
            found.append(zero(name, why))
    return found


def _never_answered(chosen: str, attempts: Sequence[Attempt]) -> str | None:
    """How the chosen model failed, where it was the first tried and another or nobody answered."""
    if not attempts or attempts[0].model != chosen:
        return None
    if any(a.model == chosen and a.outcome in ("ok", "cancelled") for a in attempts):
        return None
    return next((a.outcome for a in attempts if a.model == chosen and a.outcome in _FAILED), None)


def _of_answer(
    fields: Mapping[str, msgspec.Raw],
    last: Attempt,
    said: _Message | None,
    max_output_tokens: int | None,
) -> Iterator[tuple[str, str]]:
    """(name, why) of what is wrong with the answer itself."""
    cut = last.finish_reason == "length"
    if cut and (max_output_tokens is None or max_output_tokens >= _SHORT_TOKENS):
        yield "truncated", "stopped by the length limit"
    if last.finish_reason in ("content_filter", "refusal"):
        yield "refusal", f"finish_reason {last.finish_reason}"
    if said is None:
        u = last.usage
        if u is not None and u.output_tokens - u.reasoning_tokens <= 0:
            yield "empty", "no output tokens"
        return
    text = _text(said)
    calls = [c.function for c in said.tool_calls or () if c.function is not None]
    if said.function_call is not None:
        calls.append(said.function_call)
    if not text.strip() and not said.tool_calls and not calls and not said.refusal:
        if said.audio is None:
            yield "empty", "neither text nor a call"
        return
    if said.refusal or (
        not calls and len(text) <= _REFUSAL_CHARS and _REFUSES.match(text.lstrip())
    ):
        if last.finish_reason not in ("content_filter", "refusal"):
            yield "refusal", "refusal field" if said.refusal else "worded as one"
        return
    if cut:
        return  # what is cut off is broken JSON of necessity
    why = _broken_call(fields, calls)
    if why is not None:
        yield "tool_call", why
    if text.strip() and not said.tool_calls and not calls:
        why = _broken_structure(fields, text)
        if why is not None:
            yield "schema", why


def _message(body: bytes) -> _Message | None:
    try:
        choices = _decode_body(body).choices
    except _BROKEN:
        return None  # not in the shape we know: nothing certain can be said
    return choices[0].message if choices else None


def _text(said: _Message) -> str:
    content = said.content
    if isinstance(content, list):
        return "\n".join(p.text for p in content if p.text)
    return content or ""


def _broken_structure(fields: Mapping[str, msgspec.Raw], text: str) -> str | None:
    asked = _field(fields, "response_format")
    kind = asked.get("type") if isinstance(asked, dict) else None
    if not isinstance(asked, dict) or kind not in ("json_object", "json_schema"):
        return None
    try:
        value = _decode(text)
    except _BROKEN:
        return "is no JSON"
    if kind == "json_object":
        return None if isinstance(value, dict) else "is no JSON object"
    form = asked.get("json_schema")
    return first_violation(value, form.get("schema")) if isinstance(form, dict) else None


def _broken_call(fields: Mapping[str, msgspec.Raw], calls: Sequence[_Function]) -> str | None:
    if not calls:
        return None
    offered = _offered(fields)
    for call in calls:
        if offered is not None and call.name not in offered:
            return "calls a tool that was not offered"
        given = call.arguments
        if given in (None, ""):
            continue  # how some say that there are none
        if not isinstance(given, str):
            return "arguments are no text"
        try:
            value = _decode(given)
        except _BROKEN:
            return "arguments are no JSON"
        if not isinstance(value, dict):
            return "arguments are no JSON object"
    return None


def _offered(fields: Mapping[str, msgspec.Raw]) -> set[str] | None:
    """Names of the functions offered; None where not all tools are functions."""
    names: set[str] = set()
    tools = [t for name in ("tools", "functions") for t in _list(_field(fields, name))]
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str):
            return None
        names.add(name)
    return names


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _field(fields: Mapping[str, msgspec.Raw], name: str) -> Any:
    raw = fields.get(name)
    return None if raw is None else _decode(raw)


class RegenerationDetector:
    """Which decision's reply a client threw away by asking the same again.

    The same key, session and messages, begun within `window_s` seconds after the earlier reply was
    there. A conversation without a reply in it counts only where the client names its session: two
    people may open with the same words. Remembers at most `limit` conversations.
    """

    def __init__(self, window_s: float = 120.0, limit: int = 20_000) -> None:
        self.window_s = window_s
        self.limit = limit
        self._known: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def observe(
        self, decision_id: str, query: Query, *, asked_s: float, answered_s: float
    ) -> str | None:
        """Remember an answered query; the id of the earlier decision that it repeats, or None.

        asked_s, answered_s: when it came in and when its reply was complete, on one clock.
        """
        session, messages = query.session, query.fields.get("messages")
        if session is None or messages is None:
            return None
        if session.startswith("h-") and not any(m.role == "assistant" for m in query.messages):
            return None  # a hash of how it began, not a name
        h = blake2b(f"{query.key_id}\0{session}\0".encode("utf-8", "surrogatepass"), digest_size=16)
        h.update(messages)
        key = h.digest()
        before = self._known.pop(key, None)
        self._known[key] = (decision_id, answered_s)
        if len(self._known) > self.limit:
            self._known.popitem(last=False)
        # One that was begun before the other was answered is a second sample, not a retry.
        if before is not None and 0.0 <= asked_s - before[1] <= self.window_s:
            return before[0]
        return None
