"""Implicit feedback: signals in a reply that it did not suffice, found without asking anybody.

Each signal has its own source, `implicit:<name>`, and its own weight; none is on by default. A
signal says only that something went wrong: a reply without one is not thereby good. Pure: no clock,
no I/O.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from suffice.feedback.json_schema import first_violation
from suffice.types import Attempt, Decision, Feedback, Query

if TYPE_CHECKING:
    from suffice.dialects.openai_message import CompletionMessage, FunctionCall

# Weights relative to a person's verdict (1). Chosen by what else may cause the signal, not measured.
WEIGHTS: dict[str, float] = {
    "schema": 0.8,  # a structured answer that is not JSON, or breaks its schema
    "tool_call": 0.8,  # a call whose arguments are not a JSON object, or of a tool not offered
    "empty": 0.7,  # neither text nor a call
    "refusal": 0.3,  # may be right to
    "retried": 0.3,  # the same conversation again, soon: regenerated, or another sample wanted
    "truncated": 0.2,  # stopped by the length limit, which may be the client's
    "upstream_error": 0.2,  # the chosen model failed and did not answer: says little of quality
}

_FAILED = frozenset(
    "connect timeout_connect timeout_first_chunk timeout_idle timeout_total rate_limit overloaded"
    " server malformed cut".split()
)
_MIN_INTENDED_TOKENS = 64  # a smaller limit asks for a label or a beginning, cut on purpose
_MAX_REFUSAL_CHARS = 600  # a long answer that begins with an excuse is an answer

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


_decode = msgspec.json.Decoder().decode
_BROKEN_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def detect_implicit_feedback(
    decision: Decision,
    fields: Mapping[str, msgspec.Raw],
    attempts: Sequence[Attempt],
    message: CompletionMessage | None,
    *,
    enabled: Mapping[str, float],
    now_s: float,
    max_output_tokens: int | None = None,
    regenerated_id: str | None = None,
) -> list[Feedback]:
    """Find what went wrong with a reply.

    Args:
        decision: the decision that is scored.
        fields: the request's, as raw JSON.
        attempts: all calls of the request.
        message: a whole reply's; None for a stream, of which only the last attempt is judged.
        enabled: names of WEIGHTS, and how much each counts.
        now_s: unix seconds.
        max_output_tokens: the client's own limit.
        regenerated_id: the earlier decision whose reply this query discarded (see
            `RegenerationDetector`), which is the one that gets that score.

    Returns:
        Scores of 0, at most one per signal.
    """
    signals: list[tuple[str, str, str]] = []  # name, reason, decision
    if regenerated_id is not None:
        signals.append(("retried", "asked again", regenerated_id))
    failure = _upstream_failure(decision.model, attempts)
    if failure is not None:
        signals.append(("upstream_error", failure, decision.id))
    if attempts and attempts[-1].outcome == "ok":
        signals += [
            (name, reason, decision.id)
            for name, reason in _answer_signals(fields, attempts[-1], message, max_output_tokens)
        ]
    return [
        Feedback(
            decision_id=decision_id,
            score=0.0,
            source=f"implicit:{name}",
            comment=reason,
            created_s=now_s,
            weight=enabled[name],
            kind="implicit",
        )
        for name, reason, decision_id in signals
        if name in enabled
    ]


def _upstream_failure(chosen: str, attempts: Sequence[Attempt]) -> str | None:
    """How the chosen model failed, if it was tried first and did not answer."""
    if not attempts or attempts[0].model != chosen:
        return None
    outcomes = [attempt.outcome for attempt in attempts if attempt.model == chosen]
    if "ok" in outcomes or "cancelled" in outcomes:
        return None
    return next((outcome for outcome in outcomes if outcome in _FAILED), None)


def _answer_signals(
    fields: Mapping[str, msgspec.Raw],
    last: Attempt,
    message: CompletionMessage | None,
    max_output_tokens: int | None,
) -> Iterator[tuple[str, str]]:
    """(signal, reason) of what is wrong with the answer itself."""
    truncated = last.finish_reason == "length"
    filtered = last.finish_reason in ("content_filter", "refusal")
    if truncated and (max_output_tokens is None or max_output_tokens >= _MIN_INTENDED_TOKENS):
        yield "truncated", "stopped by the length limit"
    if filtered:
        yield "refusal", f"finish_reason {last.finish_reason}"
    if message is None:
        usage = last.usage
        if usage is not None and usage.output_tokens - usage.reasoning_tokens <= 0:
            yield "empty", "no output tokens"
        return
    text, calls = message.text, message.calls
    if not text.strip() and not message.tool_calls and not calls and not message.refusal:
        if message.audio is None:
            yield "empty", "neither text nor a call"
        return
    if message.refusal or (not calls and _is_refusal(text)):
        if not filtered:
            yield "refusal", "refusal field" if message.refusal else "worded as one"
        return
    if truncated:
        return  # JSON that is cut off is broken for that reason
    reason = _broken_call(fields, calls)
    if reason is not None:
        yield "tool_call", reason
    if text.strip() and not message.tool_calls and not calls:
        reason = _broken_structure(fields, text)
        if reason is not None:
            yield "schema", reason


def _is_refusal(text: str) -> bool:
    return len(text) <= _MAX_REFUSAL_CHARS and _REFUSES.match(text.lstrip()) is not None


def _broken_structure(fields: Mapping[str, msgspec.Raw], text: str) -> str | None:
    response_format = _field(fields, "response_format")
    if not isinstance(response_format, dict):
        return None
    kind = response_format.get("type")
    if kind not in ("json_object", "json_schema"):
        return None
    try:
        value = _decode(text)
    except _BROKEN_JSON:
        return "is not JSON"
    if kind == "json_object":
        return None if isinstance(value, dict) else "is not a JSON object"
    json_schema = response_format.get("json_schema")
    if not isinstance(json_schema, dict):
        return None
    return first_violation(value, json_schema.get("schema"))


def _broken_call(fields: Mapping[str, msgspec.Raw], calls: Sequence[FunctionCall]) -> str | None:
    if not calls:
        return None
    offered = _offered_functions(fields)
    for call in calls:
        if offered is not None and call.name not in offered:
            return "calls a tool that was not offered"
        arguments = call.arguments
        if arguments in (None, ""):
            continue  # some models send these for a call without arguments
        if not isinstance(arguments, str):
            return "arguments are not text"
        try:
            value = _decode(arguments)
        except _BROKEN_JSON:
            return "arguments are not JSON"
        if not isinstance(value, dict):
            return "arguments are not a JSON object"
    return None


def _offered_functions(fields: Mapping[str, msgspec.Raw]) -> set[str] | None:
    """Names of the functions offered; None if some tool is not a function."""
    names: set[str] = set()
    for field in ("tools", "functions"):
        tools = _field(fields, field)
        for tool in tools if isinstance(tools, list) else ():
            function = tool.get("function", tool) if isinstance(tool, dict) else None
            name = function.get("name") if isinstance(function, dict) else None
            if not isinstance(name, str):
                return None
            names.add(name)
    return names


def _field(fields: Mapping[str, msgspec.Raw], name: str) -> object:
    raw = fields.get(name)
    return None if raw is None else _decode(raw)


class RegenerationDetector:
    """Finds decisions whose reply a client discarded by sending the same conversation again.

    A regeneration has the same key, session and messages, and begins within `window_s` seconds
    after the earlier reply was complete. A conversation without a reply in it counts only if the
    client names its session: two people may open with the same words.

    Args:
        window_s: seconds.
        limit: how many conversations are remembered.
    """

    def __init__(self, window_s: float = 120.0, limit: int = 20_000) -> None:
        self.window_s = window_s
        self.limit = limit
        self._answered: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def observe(
        self, decision_id: str, query: Query, *, received_s: float, completed_s: float
    ) -> str | None:
        """Remember an answered query.

        Args:
            decision_id: of the query.
            query: what was asked.
            received_s: when it came in.
            completed_s: when its reply was complete, on the same clock.

        Returns:
            The id of the earlier decision that it repeats, or None.
        """
        session, messages = query.session, query.fields.get("messages")
        if session is None or messages is None:
            return None
        if session.startswith("h-") and not any(m.role == "assistant" for m in query.messages):
            return None  # a hash of the first messages, not a name
        digest = blake2b(
            f"{query.key_id}\0{session}\0".encode("utf-8", "surrogatepass"), digest_size=16
        )
        digest.update(messages)
        key = digest.digest()
        previous = self._answered.pop(key, None)
        self._answered[key] = (decision_id, completed_s)
        if len(self._answered) > self.limit:
            self._answered.popitem(last=False)
        # A query that began before the earlier reply was complete is a second sample, not a retry.
        if previous is not None and 0.0 <= received_s - previous[1] <= self.window_s:
            return previous[0]
        return None
