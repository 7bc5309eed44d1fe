"""What an audit calls, what label comes of it, and which limits hold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.audit_client import (
    BAD,
    GOOD,
    AuditClient,
    recorded,
    talk,
)
from tests.support.audits import Judge, router, written
from tests.support.common import EASY, PROOF

from suffice.errors import UnprocessableError
from suffice.monitoring import sampling
from suffice.providers.fake import FakeUpstream


def test_an_audit_calls_the_reference_and_the_judge_in_both_orders(
    path: Path, fake: FakeUpstream, judge: Judge
) -> None:
    async def work(t: AuditClient) -> None:
        fake.set_model("weak", {"reply": BAD})
        (raw,) = await t.ask(temperature=0.3)
        await t.settled()
        assert [s.model for s in fake.requests] == ["weak", "strong"]
        sent = [msgspec.json.decode(s.body) for s in fake.requests]
        assert sent[0]["messages"] == sent[1]["messages"]
        assert sent[1]["temperature"] == 0.3
        pairs = [a["messages"][1]["content"] for a in judge.requests]
        assert len(pairs) == 2
        assert pairs[0].index(BAD) < pairs[0].index("alpha beta")
        assert pairs[1].index("alpha beta") < pairs[1].index(BAD)
        assert all(EASY in p for p in pairs)
        decision_id = raw.headers["x-suffice-decision-id"]
        (label,) = t.router.store.feedback.current(decision_id)
        assert (label["source"], label["score"], label["kind"]) == ("audit", 0.0, "explicit")
        # Each call is recorded under the audit route, with its cost.
        calls = t.router.store.decisions(route="audit:safe")
        assert sorted(d["model"] for d in calls) == ["j/judge", "j/judge", "p/strong"]
        assert all(d["metadata"]["audit_of"] == decision_id for d in calls)
        assert t.spent().usd == pytest.approx(sum(d["cost_usd"] for d in calls))
        assert t.spent().unknown == 0
        assert t.router.store.spend("safe", 0.0).requests == 1
        metrics = t.router.metrics().decode()
        assert 'suffice_audits_total{outcome="labelled",route="safe"} 1.0' in metrics
        assert (
            'suffice_requests_total{model="j/judge",route="audit:safe",status="200"} 2.0' in metrics
        )
        assert "suffice_request_duration_seconds_count 1.0" in metrics
        assert 'suffice_feedback_total{kind="explicit",source="audit"} 1.0' in metrics

    talk(path, work)


@pytest.mark.parametrize(
    ("weak", "verdicts", "loss"),
    [
        (BAD, ("VERDICT: B", "VERDICT: A"), 1.0),
        (BAD, ("VERDICT: A", "VERDICT: A"), 0.5),  # whichever stands first
        (BAD, ("VERDICT: TIE", "VERDICT: A"), 0.5),
        (BAD, ("VERDICT: A", "VERDICT: B"), 0.0),  # cheap is the better one: no credit for that
        ("Alpha beta gamma.", (), 0.0),  # the same: no judge is called
        (" ", (), 1.0),  # empty
    ],
    ids=str,
)
def test_the_loss_of_an_answer(
    path: Path,
    fake: FakeUpstream,
    judge: Judge,
    weak: str,
    verdicts: Sequence[str],
    loss: float,
) -> None:
    replies = iter(verdicts)
    judge.says = lambda a, b: next(replies)

    async def work(t: AuditClient) -> None:
        fake.set_model("weak", {"reply": weak})
        (raw,) = await t.ask()
        await t.settled()
        (label,) = t.router.store.feedback.current(raw.headers["x-suffice-decision-id"])
        assert label["score"] == 1.0 - loss
        assert len(judge.requests) == len(verdicts)
        assert t.step().loss == loss

    talk(path, work)


def test_a_decision_that_the_reference_served_costs_nothing(path: Path, judge: Judge) -> None:
    async def work(t: AuditClient) -> None:
        (raw,) = await t.ask(PROOF)
        await t.settled()
        (label,) = t.router.store.feedback.current(raw.headers["x-suffice-decision-id"])
        assert label["score"] == 1.0
        assert judge.requests == []
        assert t.spent().requests == 0
        watch = t.step()
        assert (watch.labels, watch.loss) == (1, 0.0)

    talk(path, work)


def test_a_stream_is_audited_too(path: Path, fake: FakeUpstream, judge: Judge) -> None:
    async def work(t: AuditClient) -> None:
        fake.set_model("weak", {"reply": "a BAD answer in words"})
        await t.streamed()
        await t.settled()
        assert "a BAD answer in words" in judge.requests[0]["messages"][1]["content"]
        assert t.outcomes == {"labelled": 1}

    talk(path, work)


def test_a_disconnected_client_leaves_audits_working(path: Path, fake: FakeUpstream) -> None:
    async def work(t: AuditClient) -> None:
        fake.set_model("weak", {"reply": "many words " * 50, "tokens_per_s": 200})
        message: Any = [{"role": "user", "content": EASY}]
        stream = await t.client.chat.completions.create(model="safe", messages=message, stream=True)
        await anext(aiter(stream))
        await stream.close()
        async with asyncio.timeout(10):
            while not t.outcomes:
                await asyncio.sleep(0.01)
        assert t.outcomes == {"unanswered": 1}
        fake.set_model("weak", {"reply": GOOD})
        await t.ask()
        await t.settled()
        assert t.outcomes == {"unanswered": 1, "labelled": 1}

    talk(path, work)


@pytest.mark.parametrize("verdict", ["I like both.", "VERDICT: C", "", "VERDICT: A\nor B?"])
def test_an_unreadable_verdict_gives_no_label(
    path: Path, judge: Judge, verdict: str, caplog: pytest.LogCaptureFixture
) -> None:
    judge.says = lambda a, b: verdict

    async def work(t: AuditClient) -> None:
        (raw, *_) = await t.ask(n=3)
        await t.settled()
        assert t.outcomes == {"unreadable": 3}
        assert t.router.store.feedback.current(raw.headers["x-suffice-decision-id"]) == []
        assert t.step().labels == 0
        assert t.spent().usd > 0.0  # and is paid for all the same
        assert caplog.text.count("gave no verdict") == 1, "logged once, counted always"

    talk(path, work)


def test_free_labels_are_subsampled_as_paid_ones_fail(path: Path, judge: Judge) -> None:
    """Else a judge that is down would make the loss look like the reference's: nil."""
    judge.says = lambda a, b: "no idea"

    async def work(t: AuditClient) -> None:
        await t.ask(n=60)
        await t.settled()
        await t.ask(PROOF, n=40)
        await t.settled()
        outcomes = t.outcomes
        assert outcomes["unreadable"] == 60
        assert outcomes["subsampled"] > outcomes.get("reference", 0)

    talk(path, work)


@pytest.mark.parametrize(
    ("refused", "outcome"),
    [("temperature", "labelled"), ("max_tokens", "labelled"), ("messages", "failed")],
)
def test_a_parameter_that_the_judge_refuses_is_left_out_or_renamed(
    path: Path, judge: Judge, refused: str, outcome: str
) -> None:
    judge.refuses = refused

    async def work(t: AuditClient) -> None:
        await t.ask(n=4)
        await t.settled()
        assert t.outcomes == {outcome: 4}
        assert (refused in judge.requests[-1]) == (outcome == "failed")

    talk(path, work)


def test_calls_that_fail_are_counted_and_recorded(path: Path, fake: FakeUpstream) -> None:
    async def work(t: AuditClient) -> None:
        fake.set_model("strong", {"actions": [{"status": 400, "repeat": True}]})
        await t.ask(n=2)
        await t.settled()
        assert t.outcomes == {"failed": 2}
        calls = t.router.store.decisions(route="audit:safe")
        assert [d["status"] for d in calls] == [502, 502]
        assert t.step().labels == 0

    talk(path, work)


def test_an_upstream_that_counts_no_tokens_still_costs(path: Path, judge: Judge) -> None:
    judge.usage = False

    async def work(t: AuditClient) -> None:
        await t.ask()
        await t.settled()
        spent = t.spent()
        assert spent.unknown == 0
        assert all(d["cost_usd"] > 0.0 for d in t.router.store.decisions(route="audit:safe"))

    talk(path, work)


# ── limits ───────────────────────────────────────────────────────────────────────────────────────


def test_the_daily_cap_holds_and_is_reported(
    tmp_path: Path, fake: FakeUpstream, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One audit: two verdicts of 400 tokens in and 50 out at $1 and $4, and the reference's answer.
    path = written(tmp_path, fake.base_url, judge.url, cap=0.03)

    async def work(t: AuditClient) -> None:
        await t.ask(n=60)
        await t.settled()
        await t.ask(PROOF, n=3)
        await t.ask(n=3)
        await t.settled()
        outcomes = t.outcomes
        assert 3 <= outcomes["labelled"] < 60
        assert outcomes["capped"] >= 6
        assert "reference" not in outcomes, "free labels wait as well"
        assert t.spent().usd <= 0.03
        assert "max_usd_per_day" in t.router.ready()["watch"]["safe"]["waits"]
        before = len(judge.requests)
        await t.ask(n=5)
        await t.settled()
        assert len(judge.requests) == before
        # The day's money is shared: another worker finds it spent.
        with router(path) as other:
            second = AuditClient(other)
            await second.ask(n=5)
            await second.settled()
            assert second.outcomes == {"capped": 5}
            await second.client.close()
        # A new day.
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 86400.0)
        await t.ask(n=2)
        await t.settled()
        assert t.outcomes["labelled"] == outcomes["labelled"] + 2
        assert t.router.ready()["watch"]["safe"]["waits"] is None

    talk(path, work)


def test_a_hanging_judge_delays_no_request_and_the_queue_is_bounded(
    path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MAX_QUEUED", 6)
    judge.free.clear()

    async def work(t: AuditClient) -> None:
        async with asyncio.timeout(20):  # the judge would hang for 30 s
            raws = await t.ask(n=40)
        assert all(raw.parse().choices[0].message.content == GOOD for raw in raws)
        assert t.audit.pending <= 6 + sampling.MAX_CONCURRENT
        assert t.outcomes["queue_full"] >= 40 - 6 - sampling.MAX_CONCURRENT
        assert "labelled" not in t.outcomes
        await t.ask(PROOF, n=3)
        assert "reference" not in t.outcomes, "free labels wait as well"
        judge.free.set()
        await t.settled()
        assert t.outcomes["labelled"] == 43 - t.outcomes["queue_full"]

    talk(path, work)


def test_closing_ends_audits_under_way_and_records_their_calls(path: Path, judge: Judge) -> None:
    judge.free.clear()

    async def work(t: AuditClient) -> None:
        await t.ask(n=3)
        async with asyncio.timeout(20):
            while len(judge.requests) < 3:
                await asyncio.sleep(0.01)
        began = time.monotonic()
        await t.router.aclose()
        assert time.monotonic() - began < 10.0
        judge.free.set()
        assert t.audit.pending == 0

    talk(path, work)
    with router(path) as r:
        # The calls that were cut off are recorded.
        stopped = [d for d in r.store.decisions(route="audit:safe") if d["status"] == 499]
        assert len(stopped) == 3


def test_clients_cannot_use_the_source_of_audits(path: Path) -> None:
    with router(path) as r:
        (i,) = recorded(r, "p/weak", 1)
        with pytest.raises(UnprocessableError, match="audit"):
            r.feedback(i, 0.0, source="audit")
