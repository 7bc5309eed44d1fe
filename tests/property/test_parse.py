"""No body, whatever it holds, is answered with a 500."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.dialects.openai_request import parse_chat
from suffice.errors import BadRequestError, SufficeError
from suffice.gateway.render import to_error_response
from suffice.router import Router

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    "model messages stream stream_options tools response_format max_tokens suffice models provider "
    "session_id prompt_cache_key max_completion_tokens temperature".split()
)
BODIES = st.dictionaries(FIELDS, JSON, max_size=8)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "system", "assistant", "tool"]),
        "content": st.text(max_size=300),
    }
)
ROUTER = Router.for_dry_run()


@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    try:
        parse_chat(body, {})
    except BadRequestError as error:
        assert to_error_response(error).status == 400
        assert str(error)


@given(BODIES)
def test_any_json(body: dict[str, Any]) -> None:
    try:
        parse_chat(json.dumps(body).encode(), {})
    except BadRequestError as error:
        assert str(error)


@pytest.mark.slow
@given(BODIES, st.lists(MESSAGE, min_size=1, max_size=5))
@settings(max_examples=300)
def test_any_well_formed_conversation_is_decided_or_refused(
    extra: dict[str, Any], messages: list[dict[str, Any]]
) -> None:
    body = {**extra, "model": "auto", "messages": messages}
    try:
        decision = ROUTER.decide(parse_chat(json.dumps(body).encode(), {}))
    except SufficeError as error:
        assert to_error_response(error).status in (400, 404, 503)
    else:
        assert decision.plan[0].model == decision.model


@given(st.dictionaries(st.text(min_size=1, max_size=10), JSON, max_size=5))
def test_unknown_fields_survive_byte_for_byte(extra: dict[str, Any]) -> None:
    known = set(msgspec.structs.fields(type("S", (msgspec.Struct,), {}))) | {
        "model", "messages", "suffice", "models", "provider", "session_id",
    }  # fmt: skip
    extra = {f"x_{k}": v for k, v in extra.items() if k not in known}
    body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], **extra}
    raw = msgspec.json.encode(body)
    fields = parse_chat(raw, {}).fields
    for key, value in extra.items():
        assert bytes(fields[key]) == msgspec.json.encode(value)


def test_a_byte_order_mark_is_ignored() -> None:
    body = b'{"model":"auto","messages":[{"role":"user","content":"x"}]}'
    assert parse_chat(b"\xef\xbb\xbf" + body, {}) == parse_chat(body, {})


def test_deep_nesting_is_refused_not_fatal() -> None:
    with pytest.raises(BadRequestError):
        parse_chat(b'{"model":' + b"[" * 100_000, {})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"messages":[{"role":"user","content":"x"}]}', "model"),
        (b'{"model":"a"}', "messages"),
        (b'{"model":"a","messages":[]}', "messages"),
        (b'{"model":"a","messages":[{"content":"x"}]}', "messages[0].role"),
        (b'{"model":"a","messages":[{"role":"user","content":3}]}', "messages[0].content"),
        (b'{"model":"a","messages":[{"role":"user"}],"max_tokens":0}', "max_tokens"),
        (
            b'{"model":"a","messages":[{"role":"user"}],"suffice":{"objectve":1}}',
            "suffice.objectve",
        ),
        (b'{"model":"a","messages":[{"role":"user"}],"provider":{"sort":"luck"}}', "provider.sort"),
    ],
)
def test_the_field_at_fault_is_named(body: bytes, param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_chat(body, {})
    assert caught.value.param == param
    assert param in str(caught.value)


def test_our_own_fields_never_go_upstream() -> None:
    body = b"""{"model":"auto","messages":[{"role":"user","content":"x"}],"suffice":{"session":"s"},
    "models":["a"],"provider":{"order":["p"]},"session_id":"t","seed":7}"""
    query = parse_chat(body, {})
    assert set(query.fields) == {"model", "messages", "seed"}
    assert query.session == "s"
    assert query.options.models == ("a",)
    assert query.options.order == ("p",)


def test_router_reads_and_event_loop_are_free_of_each_other() -> None:
    async def inside() -> str:
        return ROUTER.route("hi").model

    assert asyncio.run(inside()) == ROUTER.route("hi").model
