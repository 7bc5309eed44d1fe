"""Which decisions are audited, and what is read of their answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.audit_client import (
    QUERY,
    AuditClient,
    decided,
    talk,
)
from tests.support.audits import Judge, certificate
from tests.support.common import EASY, PROOF

from suffice import config, features, monitoring
from suffice.dialects import openai_message
from suffice.monitoring import labelling, sampling
from suffice.types import (
    Message,
    Model,
)


def auditor(share: float) -> sampling.AuditSampler:
    spec = config.AuditSpec(
        sample_rate=share,
        judge=Model("j/judge", "j", "judge"),
        max_usd_per_day=1.0,
        false_alarm_rate=0.05,
        trusted_sources=frozenset(),
    )
    nothing: Any = None
    calls = monitoring.MonitorDependencies(
        engine=nothing,
        caller=nothing,
        cost_of=lambda model, usage: 1e-4,
        spend=nothing,
        record=nothing,
        label=nothing,
        count_outcome=lambda route, outcome: None,
        new_id=nothing,
    )
    routes = {"safe": monitoring.AuditedRoute("safe", spec, nothing)}
    served = certificate()
    return sampling.AuditSampler(routes, lambda route: served, calls, seed=1)


@given(st.integers(0, 2**64 - 1), st.floats(0.0, 1.0))
def test_the_sample_does_not_depend_on_the_model(bits: int, share: float) -> None:
    a = auditor(share)
    x = features.extract_text(EASY)
    sampled = {
        model: a.sample(decided(f"dec_{0:011x}{bits:016x}", model), x, QUERY) is not None
        for model in ("p/weak", "p/strong")
    }
    assert sampled["p/weak"] == sampled["p/strong"]
    assert sampled["p/weak"] == (share > 0.0 and monitoring.is_sampled(f"dec_{bits:027x}", share))
    assert monitoring.is_sampled(f"dec_{bits:027x}", 1.0)
    assert not monitoring.is_sampled(f"dec_{bits:027x}", 0.0)


@pytest.mark.parametrize(
    ("changed", "query"),
    [
        ({"basis": "prior"}, {}),
        ({"explored": True}, {}),
        ({"route": "other"}, {}),
        ({}, {"messages": (Message("user", "look", images=1),)}),
    ],
    ids=str,
)
def test_what_the_certificate_did_not_decide_is_not_audited(
    changed: dict[str, Any], query: dict[str, Any]
) -> None:
    a = auditor(1.0)
    x = features.extract_text(EASY)
    q = msgspec.structs.replace(QUERY, **query)
    assert a.sample(decided(f"dec_{0:027x}", "p/weak"), x, QUERY) is not None
    assert a.sample(decided(f"dec_{0:027x}", "p/weak", **changed), x, q) is None


@pytest.mark.slow
def test_both_kinds_of_decisions_are_labelled_at_the_same_rate(path: Path, judge: Judge) -> None:
    async def work(t: AuditClient) -> None:
        ids: dict[str, list[str]] = {EASY: [], PROOF: []}
        for text in (EASY, PROOF):
            for raw in await t.ask(text, 150):
                ids[text].append(raw.headers["x-suffice-decision-id"])
            await t.settled()
        for text, decisions in ids.items():
            labelled = [i for i in decisions if t.router.store.feedback.current(i)]
            assert labelled == [i for i in decisions if monitoring.is_sampled(i, 0.3)]
            assert 20 < len(labelled) < 75, text
        n = sum(monitoring.is_sampled(i, 0.3) for decisions in ids.values() for i in decisions)
        assert t.step().labels == n

    talk(path, work, share=0.3)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def body(message: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"choices": [{"index": 0, "message": message}]})


def test_answers_are_read_with_their_tool_calls() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert openai_message.text_of_completion(body({"content": "hi"})) == "hi"
    assert (
        openai_message.text_of_completion(body({"content": [{"type": "text", "text": "hi"}]}))
        == "hi"
    )
    assert openai_message.text_of_completion(body({"content": None, "refusal": "no"})) == "no"
    assert (
        openai_message.text_of_completion(body({"content": None, "tool_calls": [call]}))
        == '[calls f({"a":1})]'
    )
    assert openai_message.text_of_completion(body({"content": None})) == ""
    for broken in (b"", b"{", b'{"choices": []}', b"\xff", b'{"choices": 3}'):
        assert openai_message.text_of_completion(broken) is None

    def event(delta: Any, index: int = 0) -> bytes:
        choice = {"index": index, "delta": delta}
        return b"data: " + msgspec.json.encode({"choices": [choice]}) + b"\n\n"

    first = {"index": 0, "function": {"name": "f", "arguments": '{"a"'}}
    second = {"index": 0, "function": {"arguments": ":1}"}}
    stream = [
        event({"role": "assistant", "content": ""}) + event({"content": "h\n"}),
        event({"content": "another"}, 1),
        event({"content": "i"}),
        event({"tool_calls": [first]}),
        event({"tool_calls": [second]}),
        b'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n',
    ]
    assert openai_message.text_of_stream(stream) == 'h\ni\n[calls f({"a":1})]'
    assert openai_message.text_of_stream([b"data: {\n\n"]) is None


def test_the_judge_sees_the_requested_form() -> None:
    raw = msgspec.Raw
    fields = {"tools": raw(b'[{"name":"f"}]'), "response_format": raw(b"null")}
    q = msgspec.structs.replace(QUERY, fields=fields)
    assert [(m.role, m.text) for m in labelling.judged_messages(q)] == [
        ("user", EASY),
        ("tools", '[{"name":"f"}]'),
    ]
