"""Implicit signals: each failure is found, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.dialects.openai_message import parse_message
from suffice.feedback.implicit import WEIGHTS, RegenerationDetector, detect_implicit_feedback
from suffice.feedback.json_schema import first_violation
from suffice.types import Attempt, Decision, Feedback, Message, Objective, PlanStep, Query, Usage

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "array", "items": {"$ref": "#/$defs/day"}, "minItems": 1},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"day": {"type": "object", "required": ["high"], "properties": {"high": {"type": "number"}}}},
}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


def judged(
    message: dict[str, Any] | None = None,
    *,
    fields: dict[str, Any] | None = None,
    finish: str = "stop",
    attempts: tuple[Attempt, ...] | None = None,
    enabled: dict[str, float] | None = None,
    usage: Usage | None = None,
    **more: Any,
) -> list[Feedback]:
    decision = Decision(
        id="dec_1",
        model="p/a",
        plan=(PlanStep("p/a"), PlanStep("p/b", "failover")),
        predictions=(),
        reason="",
        policy="default",
        policy_version="1",
        objective=Objective(kind="best"),
        basis="prior",
    )
    body = b""
    if message is not None:
        body = json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode()
    done = Attempt("p/a", 1, "ok", 1.0, 0.1, finish_reason=finish, usage=usage)
    raw = {k: msgspec.Raw(json.dumps(v).encode()) for k, v in (fields or {}).items()}
    return detect_implicit_feedback(
        decision,
        raw,
        (done,) if attempts is None else attempts,
        parse_message(body) if body else None,
        enabled=WEIGHTS if enabled is None else enabled,
        now_s=7.0,
        **more,
    )


def names(found: list[Feedback]) -> list[str]:
    return [f.source.removeprefix("implicit:") for f in found]


def text(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def call(arguments: Any, name: str = "weather") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"content": None, "tool_calls": [{"id": "c", "type": "function", "function": function}]}


def structured(schema: Any) -> dict[str, Any]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    }


def test_a_good_answer_gives_no_signal() -> None:
    assert judged(text("It is sunny.")) == []
    assert (
        judged(text('{"city": "Bern", "days": [{"high": 21.5}]}'), fields=structured(SCHEMA)) == []
    )
    assert judged(call('{"city": "Bern"}'), fields={"tools": TOOLS}) == []
    assert judged(call(""), fields={"tools": TOOLS}) == [], "how some say: no arguments"
    assert judged(None, usage=Usage(10, 5)) == [], "a stream with tokens"


def test_each_signal_is_a_source_with_its_own_weight() -> None:
    (found,) = judged(text(""), enabled={"empty": 0.25})
    assert found == Feedback(
        decision_id="dec_1",
        score=0.0,
        source="implicit:empty",
        comment="neither text nor a call",
        created_s=7.0,
        weight=0.25,
        kind="implicit",
    )
    assert judged(text(""), enabled={}) == []
    assert judged(text(""), enabled={"schema": 1.0}) == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("It is sunny in Bern.", "is not JSON"),
        ('{"city": "Bern"}', '$: lacks "days"'),
        ('{"city": "Bern", "days": []}', "$.days: is shorter than 1"),
        ('{"city": "Bern", "days": [{"high": 1}, {"high": "hot"}]}', "$.days[1].high: is not a number"),
        ('{"city": "Bern", "days": [{"high": 1}], "secret": 1}', "$.*: is not allowed"),
    ],
)  # fmt: skip
def test_an_answer_that_violates_its_schema_is_a_signal(content: str, why: str) -> None:
    (found,) = judged(text(content), fields=structured(SCHEMA))
    assert (found.source, found.comment) == ("implicit:schema", why)


def test_json_mode_expects_an_object() -> None:
    fields = {"response_format": {"type": "json_object"}}
    assert judged(text('{"a": 1}'), fields=fields) == []
    assert names(judged(text("[1]"), fields=fields)) == ["schema"]
    assert judged(text("[1]"), fields={"response_format": {"type": "text"}}) == []


@pytest.mark.parametrize("arguments", ['{"city": ', "Bern", "[1]", '"x"', {"city": "Bern"}])
def test_a_tool_call_that_does_not_parse_is_a_signal(arguments: Any) -> None:
    assert names(judged(call(arguments), fields={"tools": TOOLS})) == ["tool_call"]


def test_a_call_of_a_tool_that_was_not_offered_is_a_signal() -> None:
    assert names(judged(call("{}", "launch"), fields={"tools": TOOLS})) == ["tool_call"]
    built_in = [*TOOLS, {"type": "web_search"}]
    assert judged(call("{}", "launch"), fields={"tools": built_in}) == [], "nothing is certain"
    older = {"content": None, "function_call": {"name": "weather", "arguments": "{"}}
    functions = {"functions": [{"name": "weather"}]}
    assert names(judged(older, fields=functions)) == ["tool_call"]


@pytest.mark.parametrize(
    "said",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I can’t assist with that request.",
        "Sorry, I am unable to answer this.",
        "I cannot provide instructions for that.",
        "As an AI language model, I cannot do this.",
        "Es tut mir leid, dabei kann ich nicht helfen.",
        "Je suis désolé, mais je ne peux pas vous aider.",
        "Lo siento, pero no puedo ayudarte con eso.",
    ],
)
def test_refusals(said: str) -> None:
    assert names(judged(text(said))) == ["refusal"]
    assert names(judged(text(said), fields=structured(SCHEMA))) == ["refusal"], "and not as JSON"


@pytest.mark.parametrize(
    "said",
    [
        "I'm sorry to hear that. Here is what you can do.",
        "The function can't help you if the list is empty.",
        "Sorry for the confusion! The answer is 4.",
        "I'm sorry, but I can't open the link itself. " + "From the excerpt, though: " * 40,
        "Leider kann man das nicht sagen.",
        "I can explain why you cannot provide two keys.",
    ],
)
def test_answers_that_only_sound_like_refusals(said: str) -> None:
    assert judged(text(said)) == []


def test_refusals_that_are_marked_as_such() -> None:
    assert names(judged({"content": None, "refusal": "No."})) == ["refusal"]
    assert names(judged(text("..."), finish="content_filter")) == ["refusal"]
    assert names(judged(text("I'm sorry, I can't."), finish="content_filter")) == ["refusal"]
    assert names(judged(None, finish="refusal", usage=Usage(1, 5))) == ["refusal"]


def test_broken_json_of_a_truncated_answer_is_no_schema_signal() -> None:
    fields = {**structured(SCHEMA), "tools": TOOLS}
    assert names(judged(text('{"city": "Be'), fields=fields, finish="length")) == ["truncated"]
    assert names(judged(call('{"city": "Be'), fields=fields, finish="length")) == ["truncated"]
    # Who asks for a few tokens gets a few.
    assert judged(text("yes"), finish="length", max_output_tokens=1) == []
    assert names(judged(text("a"), finish="length", max_output_tokens=500)) == ["truncated"]
    # All of it thought, none of it said.
    assert names(judged(text(""), finish="length")) == ["truncated", "empty"]


def test_empty_answers() -> None:
    assert names(judged(text(" \n"))) == ["empty"]
    assert names(judged({"content": None})) == ["empty"]
    assert names(judged({"content": [{"type": "text", "text": ""}]})) == ["empty"]
    assert judged({"content": None, "audio": {"id": "a"}}) == []
    stream = Usage(10, output_tokens=5, reasoning_tokens=5)
    assert names(judged(None, usage=stream)) == ["empty"]
    assert judged(None) == [], "of a stream without usage nothing is known"


def test_a_body_in_another_shape_is_not_judged() -> None:
    assert judged({"content": 5}) == []
    body = b'{"choices": []}'
    decision_attempt = Attempt("p/a", 1, "ok", 1.0, 0.1)
    assert judged(attempts=(decision_attempt,)) == []
    for odd in (b"{", b"[]", body, b'{"choices": [{}]}'):
        assert (
            detect_implicit_feedback(
                Decision(
                    id="d", model="p/a", plan=(), predictions=(), reason="", policy="",
                    policy_version="", objective=Objective(kind="best"), basis="prior",
                ),
                {}, (decision_attempt,), parse_message(odd), enabled=WEIGHTS, now_s=1.0,
            )
            == []
        )  # fmt: skip


def attempt(model: str, outcome: str) -> Attempt:
    return Attempt(model, 1, outcome, 1.0, 0.1, finish_reason="stop")


@pytest.mark.parametrize(
    ("tries", "expected"),
    [
        ([("p/a", "overloaded"), ("p/b", "ok")], ["upstream_error"]),
        ([("p/a", "server"), ("p/a", "timeout_total")], ["upstream_error"]),
        ([("p/a", "cut")], ["upstream_error"]),
        ([("p/a", "overloaded"), ("p/a", "ok")], []),  # it answered in the end
        ([("p/a", "bad_request")], []),  # the request is at fault
        ([("p/a", "auth"), ("p/b", "ok")], []),  # the operator is
        ([("p/a", "overloaded"), ("p/a", "cancelled")], []),  # the client left
        ([("p/b", "server"), ("p/a", "ok")], []),  # not the one that was chosen
        ([], []),
    ],
)
def test_upstream_errors_of_the_chosen_model(
    tries: list[tuple[str, str]], expected: list[str]
) -> None:
    assert names(judged(attempts=tuple(attempt(*t) for t in tries))) == expected


def query(said: str, session: str | None = "s", key_id: str | None = None, turns: int = 1) -> Query:
    roles = ["user", "assistant", "user"][:turns]
    messages = tuple(Message(role, said) for role in roles)
    raw = msgspec.Raw(json.dumps([{"role": r, "content": said} for r in roles]).encode())
    return Query("openai", "auto", messages, {"messages": raw}, session=session, key_id=key_id)


def test_the_same_query_again_soon_is_a_regeneration() -> None:
    repeats = RegenerationDetector(window_s=60.0)
    assert repeats.observe("dec_1", query("x"), received_s=0.0, completed_s=10.0) is None
    assert repeats.observe("dec_2", query("x"), received_s=12.0, completed_s=20.0) == "dec_1"
    assert repeats.observe("dec_3", query("x"), received_s=80.0, completed_s=81.0) == "dec_2"
    assert repeats.observe("dec_4", query("x"), received_s=141.1, completed_s=150.0) is None, (
        "too late"
    )
    (found,) = judged(text("fine"), regenerated_id="dec_3")
    assert (found.decision_id, found.source) == ("dec_3", "implicit:retried")


def test_similar_queries_that_are_not_regenerations() -> None:
    repeats = RegenerationDetector()
    for n, q in enumerate(
        [
            query("x"),
            query("y"),
            query("x", session="other"),
            query("x", key_id="key_b"),
            query("x", session="h-0123"),
            query("x", session="h-0123"),  # two people who open with the same words
            query("x", session=None),
        ]
    ):
        assert repeats.observe(f"dec_{n}", q, received_s=n + 0.5, completed_s=n + 0.6) is None
    talk = query("x", session="h-0123", turns=3)
    assert repeats.observe("dec_a", talk, received_s=20.0, completed_s=21.0) is None
    assert repeats.observe("dec_b", talk, received_s=22.0, completed_s=23.0) == "dec_a"
    # Several samples wanted at once.
    assert repeats.observe("dec_c", query("z"), received_s=30.0, completed_s=35.0) is None
    assert repeats.observe("dec_d", query("z"), received_s=31.0, completed_s=36.0) is None


def test_the_detector_remembers_a_bounded_number_of_queries() -> None:
    repeats = RegenerationDetector(limit=3)
    for n in range(4):
        repeats.observe(f"dec_{n}", query(str(n)), received_s=n, completed_s=n)
    assert repeats.observe("dec_x", query("0"), received_s=5.0, completed_s=5.0) is None
    assert repeats.observe("dec_y", query("3"), received_s=5.0, completed_s=5.0) == "dec_3"


# ── the schema check ─────────────────────────────────────────────────────────────────────────────

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def schema_of(value: Any) -> Any:
    """The tightest schema that `value` meets."""
    if isinstance(value, dict):
        return {
            "type": "object",
            "properties": {k: schema_of(v) for k, v in value.items()},
            "required": list(value),
            "additionalProperties": False,
        }
    if isinstance(value, list):
        return {
            "type": "array",
            "prefixItems": [schema_of(v) for v in value],
            "minItems": len(value),
            "maxItems": len(value),
        }
    return {"const": value}


@given(values)
def test_a_value_satisfies_its_own_schema(value: Any) -> None:
    assert first_violation(value, schema_of(value)) is None
    assert first_violation(value, {"anyOf": [{"const": object()}, schema_of(value)]}) is None
    assert first_violation(value, {"$ref": "#/$defs/it", "$defs": {"it": schema_of(value)}}) is None


@given(values, values)
def test_another_value_violates_the_schema(value: Any, other: Any) -> None:
    same = json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)
    broken = first_violation(other, schema_of(value))
    if type(value) is type(other) and not isinstance(value, (float, int, list, dict)):
        assert (broken is None) == same
    elif same:
        assert broken is None
    elif {type(value), type(other)} & {dict, list, str}:
        assert broken is not None or _numbers_equal(value, other)


def _numbers_equal(a: Any, b: Any) -> bool:
    """1 and 1.0 are one number in JSON Schema."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_numbers_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_numbers_equal(a[k], b[k]) for k in a)
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return bool(a == b)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"items": {"anyOf": [{"items": {"type": "string"}}] * 30}},
        {"type": 5, "enum": 3, "required": "x", "properties": [], "items": 7, "minItems": "many"},
        {"pattern": "(a+)+$"},
        {"$ref": "https://somewhere/else.json"},
        "no schema",
        None,
    ],
)
def test_schemas_that_cannot_be_followed_report_nothing(schema: Any) -> None:
    assert first_violation([["a"] * 50] * 200, schema) is None
