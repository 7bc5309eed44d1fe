"""Audits and the watch: what is drawn, what it costs, what becomes of a label, and what of an alarm."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.audits import Judge, certificate, router, until, written
from tests.support.common import EASY, PROOF

import suffice
from suffice import config, features, monitoring, policies
from suffice.artifacts import certificate as certificates
from suffice.errors import ConfigError, UnprocessableError
from suffice.monitoring import reading, sampling
from suffice.monitoring import sequential_test as watches
from suffice.monitoring.sequential_test import SequentialTest
from suffice.providers.fake import FakeUpstream
from suffice.routing.policy_loader import certificate_path
from suffice.routing.selector import DecisionIds
from suffice.types import (
    Attempt,
    Decision,
    FeedbackEvent,
    Message,
    Model,
    PlanStep,
    Prediction,
    Query,
    RequestRecord,
    Usage,
)

GOOD, BAD = "one two three four five", "BAD"


@pytest.fixture
def judge() -> Iterator[Judge]:
    with Judge() as made:
        yield made


@pytest.fixture
def path(tmp_path: Path, fake: FakeUpstream, judge: Judge) -> Path:
    return written(tmp_path, fake.base_url, judge.url)


class AuditClient:
    """Requests to a router in this loop, and the rounds of its watch by hand."""

    def __init__(self, r: suffice.Router) -> None:
        self.router = r
        found = r.start_monitoring(thread=False)
        assert found is not None
        self.audit = found
        self.client = suffice.AsyncClient(r, max_retries=0)
        self.now_s = time.time()

    async def ask(self, text: str = EASY, n: int = 1, **more: Any) -> list[Any]:
        message: Any = [{"role": "user", "content": text}]
        create = self.client.chat.completions.with_raw_response.create
        return [await create(model="safe", messages=message, **more) for _ in range(n)]

    async def streamed(self, text: str = EASY) -> None:
        message: Any = [{"role": "user", "content": text}]
        stream = await self.client.chat.completions.create(
            model="safe", messages=message, stream=True
        )
        async for _ in stream:
            pass

    async def settled(self) -> None:
        """Every audit is over and its label stored."""
        async with asyncio.timeout(20):
            while self.audit.waiting:
                await asyncio.sleep(0.01)
        self.router.store.flush()

    def step(self) -> SequentialTest:
        self.now_s += 1.0
        self.audit.step(self.now_s)
        return self.audit._watching.watches["safe"]

    @property
    def outcomes(self) -> dict[str, int]:
        return dict(self.audit.state()["safe"]["audits"])

    def spent(self) -> Any:
        return self.router.store.spend("audit:safe", 0.0)


def talk(path: Path, work: Callable[[AuditClient], Awaitable[None]], share: float = 1.0) -> None:
    async def run() -> None:
        with router(path, share) as r:
            t = AuditClient(r)
            try:
                await work(t)
            finally:
                await t.client.close()

    asyncio.run(run())


# ── what is drawn ────────────────────────────────────────────────────────────────────────────────


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
        counted=lambda route, outcome: None,
        new_id=nothing,
    )
    routes = {"safe": monitoring.AuditedRoute("safe", spec, nothing)}
    told = certificate()
    return sampling.AuditSampler(routes, lambda route: told, calls, seed=1)


def decided(decision_id: str, model: str, **changed: Any) -> Decision:
    names = ("p/weak", "p/strong")
    base: dict[str, Any] = {
        "id": decision_id, "model": model, "plan": (PlanStep(model),), "reason": "",
        "predictions": tuple(Prediction(n, 0.5, 1e-4, 1.0, float(n == model)) for n in names),
        "policy": "default", "policy_version": "v", "route": "safe", "basis": "certified",
        "objective": policies.parse_objective({"max_quality_loss": 0.05}),
    }  # fmt: skip
    return Decision(**{**base, **changed})


QUERY = Query(dialect="openai", model="safe", messages=(Message("user", EASY),), fields={})


@given(st.integers(0, 2**64 - 1), st.floats(0.0, 1.0))
def test_who_serves_has_no_say_in_what_is_sampled(bits: int, share: float) -> None:
    a = auditor(share)
    x = features.extract_text(EASY)
    drawn = {
        model: a.sample(decided(f"dec_{0:011x}{bits:016x}", model), x, QUERY) is not None
        for model in ("p/weak", "p/strong")
    }
    assert drawn["p/weak"] == drawn["p/strong"]
    assert drawn["p/weak"] == (share > 0.0 and monitoring.is_sampled(f"dec_{bits:027x}", share))
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
def test_both_kinds_are_labelled_at_one_rate(path: Path, judge: Judge) -> None:
    async def work(t: AuditClient) -> None:
        ids: dict[str, list[str]] = {EASY: [], PROOF: []}
        for text in (EASY, PROOF):
            for raw in await t.ask(text, 150):
                ids[text].append(raw.headers["x-suffice-decision-id"])
            await t.settled()
        for text, found in ids.items():
            labelled = [i for i in found if t.router.store.feedback.current(i)]
            assert labelled == [i for i in found if monitoring.is_sampled(i, 0.3)]
            assert 20 < len(labelled) < 75, text
        n = sum(monitoring.is_sampled(i, 0.3) for found in ids.values() for i in found)
        assert t.step().labels == n

    talk(path, work, share=0.3)


# ── what becomes of an audit ─────────────────────────────────────────────────────────────────────


def test_an_audit_asks_the_reference_and_the_judge_both_ways_round(
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
        pairs = [a["messages"][1]["content"] for a in judge.asked]
        assert len(pairs) == 2
        assert pairs[0].index(BAD) < pairs[0].index("alpha beta")
        assert pairs[1].index("alpha beta") < pairs[1].index(BAD)
        assert all(EASY in p for p in pairs)
        decision_id = raw.headers["x-suffice-decision-id"]
        (told,) = t.router.store.feedback.current(decision_id)
        assert (told["source"], told["score"], told["kind"]) == ("audit", 0.0, "explicit")
        # Each call is on the books under a route of its own, with what it cost.
        asked = t.router.store.decisions(route="audit:safe")
        assert sorted(d["model"] for d in asked) == ["j/judge", "j/judge", "p/strong"]
        assert all(d["metadata"]["audit_of"] == decision_id for d in asked)
        assert t.spent().usd == pytest.approx(sum(d["cost_usd"] for d in asked))
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
        ("Alpha beta gamma.", (), 0.0),  # the same: nobody is asked
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
    said = iter(verdicts)
    judge.says = lambda a, b: next(said)

    async def work(t: AuditClient) -> None:
        fake.set_model("weak", {"reply": weak})
        (raw,) = await t.ask()
        await t.settled()
        (told,) = t.router.store.feedback.current(raw.headers["x-suffice-decision-id"])
        assert told["score"] == 1.0 - loss
        assert len(judge.asked) == len(verdicts)
        assert t.step().loss == loss

    talk(path, work)


def test_what_the_reference_served_costs_nothing(path: Path, judge: Judge) -> None:
    async def work(t: AuditClient) -> None:
        (raw,) = await t.ask(PROOF)
        await t.settled()
        (told,) = t.router.store.feedback.current(raw.headers["x-suffice-decision-id"])
        assert told["score"] == 1.0
        assert judge.asked == []
        assert t.spent().requests == 0
        watch = t.step()
        assert (watch.labels, watch.loss) == (1, 0.0)

    talk(path, work)


def test_a_stream_is_audited_too(path: Path, fake: FakeUpstream, judge: Judge) -> None:
    async def work(t: AuditClient) -> None:
        fake.set_model("weak", {"reply": "a BAD answer in words"})
        await t.streamed()
        await t.settled()
        assert "a BAD answer in words" in judge.asked[0]["messages"][1]["content"]
        assert t.outcomes == {"labelled": 1}

    talk(path, work)


def test_a_client_that_leaves_breaks_nothing(path: Path, fake: FakeUpstream) -> None:
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


@pytest.mark.parametrize("said", ["I like both.", "VERDICT: C", "", "VERDICT: A\nor B?"])
def test_a_judge_that_talks_nonsense_gives_no_label(
    path: Path, judge: Judge, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    judge.says = lambda a, b: said

    async def work(t: AuditClient) -> None:
        (raw, *_) = await t.ask(n=3)
        await t.settled()
        assert t.outcomes == {"unreadable": 3}
        assert t.router.store.feedback.current(raw.headers["x-suffice-decision-id"]) == []
        assert t.step().labels == 0
        assert t.spent().usd > 0.0  # and is paid for all the same
        assert caplog.text.count("gave no verdict") == 1, "said once, counted always"

    talk(path, work)


def test_free_labels_are_thinned_where_paid_ones_fail(path: Path, judge: Judge) -> None:
    """Else a judge that is down would make the loss look like the reference's: nil."""
    judge.says = lambda a, b: "no idea"

    async def work(t: AuditClient) -> None:
        await t.ask(n=60)
        await t.settled()
        await t.ask(PROOF, n=40)
        await t.settled()
        found = t.outcomes
        assert found["unreadable"] == 60
        assert found["thinned"] > found.get("reference", 0)

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
        assert (refused in judge.asked[-1]) == (outcome == "failed")

    talk(path, work)


def test_calls_that_fail_are_counted_and_recorded(path: Path, fake: FakeUpstream) -> None:
    async def work(t: AuditClient) -> None:
        fake.set_model("strong", {"actions": [{"status": 400, "repeat": True}]})
        await t.ask(n=2)
        await t.settled()
        assert t.outcomes == {"failed": 2}
        asked = t.router.store.decisions(route="audit:safe")
        assert [d["status"] for d in asked] == [502, 502]
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


def test_the_days_cap_is_kept_and_said(tmp_path: Path, fake: FakeUpstream, judge: Judge) -> None:
    # One audit: two verdicts of 400 tokens in and 50 out at $1 and $4, and the reference's answer.
    path = written(tmp_path, fake.base_url, judge.url, cap=0.03)

    async def work(t: AuditClient) -> None:
        await t.ask(n=60)
        await t.settled()
        await t.ask(PROOF, n=3)
        await t.ask(n=3)
        await t.settled()
        found = t.outcomes
        assert 3 <= found["labelled"] < 60
        assert found["capped"] >= 6
        assert "reference" not in found, "free labels wait as well"
        assert t.spent().usd <= 0.03
        assert "max_usd_per_day" in t.router.ready()["watch"]["safe"]["waits"]
        asked = len(judge.asked)
        await t.ask(n=5)
        await t.settled()
        assert len(judge.asked) == asked
        # The day's money is everybody's: another worker finds it spent.
        with router(path) as other:
            second = AuditClient(other)
            await second.ask(n=5)
            await second.settled()
            assert second.outcomes == {"capped": 5}
            await second.client.close()
        # A new day.
        t.audit._sampler._clock = lambda: time.time() + 86400.0
        await t.ask(n=2)
        await t.settled()
        assert t.outcomes["labelled"] == found["labelled"] + 2
        assert t.router.ready()["watch"]["safe"]["waits"] is None

    talk(path, work)


def test_a_judge_that_hangs_delays_nobody_and_what_waits_is_bounded(
    path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "WAITING", 6)
    judge.free.clear()

    async def work(t: AuditClient) -> None:
        async with asyncio.timeout(20):  # the judge would hang for 30 s
            raws = await t.ask(n=40)
        assert all(raw.parse().choices[0].message.content == GOOD for raw in raws)
        assert t.audit.waiting <= 6 + sampling.AT_ONCE
        assert t.outcomes["full"] >= 40 - 6 - sampling.AT_ONCE
        assert "labelled" not in t.outcomes
        await t.ask(PROOF, n=3)
        assert "reference" not in t.outcomes, "free labels wait as well"
        judge.free.set()
        await t.settled()
        assert t.outcomes["labelled"] == 43 - t.outcomes["full"]

    talk(path, work)


def test_stopping_in_the_middle_of_audits_leaves_nothing_behind(path: Path, judge: Judge) -> None:
    judge.free.clear()

    async def work(t: AuditClient) -> None:
        await t.ask(n=3)
        async with asyncio.timeout(20):
            while len(judge.asked) < 3:
                await asyncio.sleep(0.01)
        began = time.monotonic()
        await t.router.aclose()
        assert time.monotonic() - began < 10.0
        judge.free.set()
        assert t.audit.waiting == 0

    talk(path, work)
    with router(path) as r:
        # The calls that were cut off are on the books.
        stopped = [d for d in r.store.decisions(route="audit:safe") if d["status"] == 499]
        assert len(stopped) == 3


# ── the watch ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_an_answer_that_turns_bad_is_seen_and_the_reference_serves_in_every_worker(
    path: Path, fake: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(t: AuditClient) -> None:
        with router(path, seed=2) as other:
            second = AuditClient(other)
            for _ in range(6):
                await t.ask(n=5)
                await second.ask(n=5)
                await t.settled()
                await second.settled()
                assert not t.step().alarmed
                assert not second.step().alarmed
            (raw,) = await t.ask()
            assert raw.headers["x-suffice-model"] == "p/weak"
            assert "certified on 500 queries" in raw.headers["x-suffice-reason"]
            fake.set_model("weak", {"reply": BAD})
            async with asyncio.timeout(60):
                while not t.step().alarmed:
                    await second.ask()  # labels of one worker feed the watch of all
                    await second.settled()
            assert second.step().alarmed
            for worker in (t, second):
                (raw,) = await worker.ask()
                assert raw.headers["x-suffice-model"] == "p/strong"
                assert "the watch raised an alarm: the loss is" in raw.headers["x-suffice-reason"]
                state = worker.router.ready()["watch"]["safe"]
                assert state["alarm"] is True
                assert "more than the certified 0.05" in state["says"]
                metrics = worker.router.metrics().decode()
                assert 'suffice_watch_alarm{route="safe"} 1.0' in metrics
                assert 'suffice_watch_loss{route="safe"}' in metrics
            assert caplog.text.count("raised an alarm") == 2, "once a worker"
            # What was learned of the traffic meanwhile, or a promotion, does not end it.
            t.router.routes["safe"].set_policy(None, None, lambda policy: None)
            t.step()
            (raw,) = await t.ask()
            assert raw.headers["x-suffice-model"] == "p/strong"
            # Another route is none of its business.
            assert t.router.route(EASY, route="auto").model == "p/weak"
            await second.client.close()

    with caplog.at_level(logging.WARNING):
        talk(path, work)


def test_an_alarm_outlives_a_restart_and_ends_with_a_new_certificate(
    path: Path, fake: FakeUpstream
) -> None:
    fake.set_model("weak", {"reply": BAD})

    async def alarm(t: AuditClient) -> None:
        await t.ask(n=12)
        await t.settled()
        assert t.step().alarmed

    talk(path, alarm)

    async def later(t: AuditClient) -> None:
        t.now_s += 100.0
        t.step()
        (raw,) = await t.ask()
        assert raw.headers["x-suffice-model"] == "p/strong"
        # A damaged file changes nothing.
        file = path.parent / "c.json"
        file.write_text(file.read_text().replace("0.05", "0.06"))
        t.step()
        assert "digest" in t.router.ready()["watch"]["safe"]["problem"]
        (raw,) = await t.ask()
        assert raw.headers["x-suffice-model"] == "p/strong"
        # Calibration puts another certificate in its place: no restart is needed.
        certificates.save(certificate(max_loss=0.04, made="2026-11-03"), file)
        fake.set_model("weak", {"reply": GOOD})
        assert t.step().labels == 0
        state = t.router.ready()["watch"]["safe"]
        assert (state["alarm"], state["max_loss"]) == (False, 0.04)
        assert "problem" not in state
        (raw,) = await t.ask()
        assert raw.headers["x-suffice-model"] == "p/weak"
        await t.settled()
        assert t.step().labels == 1

    talk(path, later)


def test_a_conversation_does_not_stay_with_a_model_after_the_alarm(
    path: Path, fake: FakeUpstream
) -> None:
    chat: Any = [
        {"role": "user", "content": EASY},
        {"role": "assistant", "content": "Sunny."},
        {"role": "user", "content": "And tomorrow?"},
    ]

    async def work(t: AuditClient) -> None:
        create = t.client.chat.completions.with_raw_response.create
        await t.ask()
        raw = await create(model="safe", messages=chat)
        assert raw.headers["x-suffice-model"] == "p/weak"
        route = t.router.routes["safe"]
        route.set_certificate(route.serving.certificate, "an alarm")
        raw = await create(model="safe", messages=chat)
        assert raw.headers["x-suffice-model"] == "p/strong"

    talk(path, work)


def test_traffic_learned_of_meanwhile_does_not_undo_an_alarm(path: Path) -> None:
    with router(path) as r:
        route = r.routes["safe"]
        before = route.serving
        assert before.certificate is not None
        route.set_certificate(before.certificate, "an alarm")
        alarmed = route.serving
        d = r.route(EASY, route="safe")
        for _ in range(1000):  # requests that began before the alarm
            route.observe(d, before)
        assert route.serving is alarmed
        for _ in range(1000):  # and after it
            route.observe(d, route.serving)
        assert route.serving.policy is not alarmed.policy
        assert route.serving.alarm == "an alarm"
        assert r.route(EASY, route="safe").model == "p/strong"


# Labels as they are stored, without a call of any model.


IDS = DecisionIds(random.Random())


def recorded(r: suffice.Router, model: str, n: int, **changed: Any) -> list[str]:
    ids = []
    for _ in range(n):
        d = decided(IDS.new(), model, **changed)
        usage = Usage(10, 10)
        r.store.append(
            RequestRecord(
                decision=d,
                attempts=(Attempt(model, 1, "ok", 1.0, 0.1, usage=usage),),
                created_s=time.time(),
                request_id="r",
                status=200,
                model=model,
                usage=usage,
                cost_usd=1e-4,
            )
        )
        ids.append(d.id)
    return ids


def labelled(r: suffice.Router, ids: Sequence[str], loss: float | Sequence[float]) -> None:
    losses = [loss] * len(ids) if isinstance(loss, float) else loss
    file = certificate_path(r.config.routes["safe"], r.source)
    assert file is not None
    key = sampling.label_key(certificates.load(file))
    r.store.feedback.append(
        [
            suffice.types.Feedback(decision_id=i, score=1.0 - x, source="audit", key=key)
            for i, x in zip(ids, losses, strict=True)
        ]
    )
    r.store.flush()


@pytest.mark.slow
def test_no_drift_no_alarm_over_a_long_run(path: Path) -> None:
    draw = random.Random(5)
    with router(path) as r:
        t = r.start_monitoring(thread=False)
        assert t is not None
        for at in range(8):
            ids = {m: recorded(r, m, 250) for m in ("p/weak", "p/strong")}
            losses = {i: float(draw.random() < 0.08) for i in ids["p/weak"]}  # 0.04 of all
            losses |= dict.fromkeys(ids["p/strong"], 0.0)
            mixed = sorted(losses, key=lambda i: i[-16:])
            labelled(r, mixed, [losses[i] for i in mixed])
            t.step(time.time() + at)
        watch = t._watching.watches["safe"]
        assert watch.labels == 4000
        assert not watch.alarmed
        assert 0.03 < watch.loss < 0.05


def test_trusted_feedback_counts_as_loss_and_other_feedback_does_not(
    tmp_path: Path, fake: FakeUpstream, judge: Judge
) -> None:
    more = 'trusted_sources = ["test"]'
    path = written(tmp_path, fake.base_url, judge.url, share=0.0, more=more)
    with router(path, share=0.0) as r:
        t = r.start_monitoring(thread=False)
        assert t is not None
        t.step(time.time() - 1.0)
        weak, strong = recorded(r, "p/weak", 12), recorded(r, "p/strong", 3)
        r.store.flush()
        r.feedback(weak[0], 0.25, source="test")
        r.feedback(weak[1], 0.0, source="user")  # not trusted
        r.feedback(strong[0], 0.0, source="test")  # the reference itself: no loss
        t.step(time.time())
        watch = t._watching.watches["safe"]
        assert (watch.labels, watch.loss) == (2, pytest.approx(0.375))
        # A second word on the same decision is no new evidence, whoever says it.
        r.feedback(weak[0], 1.0, source="test")
        r.feedback(weak[0], 0.0, source="test", key="other")
        t.step(time.time())
        assert t._watching.watches["safe"].labels == 2
        # Nor is what was decided otherwise: explored, by another basis, answered by another model.
        for changed in ({"basis": "trained"}, {"predictions": ()}):
            (other,) = recorded(r, "p/weak", 1, **changed)
            r.store.flush()
            r.feedback(other, 0.0, source="test")
        t.step(time.time())
        assert t._watching.watches["safe"].labels == 2
        for i in weak[2:]:
            r.feedback(i, 0.0, source="test")
        t.step(time.time())
        assert r.ready()["watch"]["safe"]["alarm"] is True


def test_labels_of_another_certificate_are_not_counted(path: Path) -> None:
    with router(path) as r:
        t = r.start_monitoring(thread=False)
        assert t is not None
        old = recorded(r, "p/weak", 4)
        labelled(r, old, 1.0)
        certificates.save(certificate(max_loss=0.04), path.parent / "c.json")
        labelled(r, recorded(r, "p/weak", 2), 0.0)
        t.step(time.time())
        watch = t._watching.watches["safe"]
        assert (watch.labels, watch.loss) == (2, 0.0)


def test_a_watch_that_cannot_be_read_is_said_and_begins_anew(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with router(path) as r:
        at = monitoring.certificate_monitor.place("safe", certificate())
        r.store.learner_states.save(at, {"watch": b"{}"}, 0, expected_cursor=0, now_s=1.0)
        t = r.start_monitoring(thread=False)
        assert t is not None
        labelled(r, recorded(r, "p/weak", 2), 0.0)
        t.step(time.time())
        assert "begins anew" in caplog.text
        assert t._watching.watches["safe"].labels == 2


FEEDER = """
import sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[3]]
from tests.support.audits import router
with router(Path(sys.argv[1])) as r:
    t = r.start_monitoring(thread=False)
    print("up", flush=True)
    while True:
        t.step(time.time() + float(sys.argv[2]))
"""


@pytest.mark.slow
def test_killed_feeders_lose_nothing_and_count_nothing_twice(path: Path) -> None:
    n_killed = 5
    with router(path) as r:
        ids: list[str] = []
        for generation in range(n_killed):
            # Each comes when the lease of the killed one before it has lapsed.
            command = [sys.executable, "-c", FEEDER, str(path), str(20.0 * generation)]
            child = subprocess.Popen(
                [*command, str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
            )
            assert child.stdout is not None
            assert child.stdout.readline() == "up\n"
            for _ in range(8):
                more = recorded(r, "p/weak", 3)
                r.store.flush()
                labelled(r, more[:1], 0.5)
                labelled(r, more[1:], 0.0)
                ids += more
                time.sleep(0.01 * generation)
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            child.stdout.close()
        t = r.start_monitoring(thread=False)
        assert t is not None
        t.step(time.time() + 20.0 * n_killed)
        found = t._watching.watches["safe"]
        expected = watches.begin(0.05)
        for i in range(len(ids)):
            expected = expected.update(0.5 if i % 3 == 0 else 0.0)
        assert found == expected


def test_two_feeders_on_one_store_count_each_label_once(path: Path) -> None:
    with router(path) as r, router(path, seed=2) as s:
        a, b = r.start_monitoring(thread=False), s.start_monitoring(thread=False)
        assert a is not None and b is not None
        now_s = time.time()
        for i in range(6):
            labelled(r, recorded(r, "p/weak", 2), 0.0)
            a._watching._held = dict.fromkeys(a._watching._held, 9e9)  # it does not know it lapsed
            a.step(now_s + 20.0 * i)
            b.step(now_s + 20.0 * i + 11.0)
        a.step(now_s + 200.0)
        b.step(now_s + 201.0)
        assert a._watching.watches["safe"] == b._watching.watches["safe"]
        assert a._watching.watches["safe"].labels == 12


def test_a_feeder_that_was_overtaken_does_not_turn_the_watch_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with router(path) as r, router(path, seed=2) as s:
        a, b = r.start_monitoring(thread=False), s.start_monitoring(thread=False)
        assert a is not None and b is not None
        now_s = time.time()
        a.step(now_s)
        labelled(r, recorded(r, "p/weak", 2), 1.0)
        save = r.store.learner_states.save

        def late(*args: Any, **more: Any) -> bool:
            monkeypatch.undo()
            labelled(s, recorded(s, "p/weak", 4), 1.0)
            b.step(now_s + 60.0)  # the lease of the first lapsed while it was at work
            assert b._watching.watches["safe"].alarmed
            return save(*args, **more)

        monkeypatch.setattr(r.store.learner_states, "save", late)
        a.step(now_s + 1.0)
        assert a._watching.watches["safe"].labels == 6
        assert a.state()["safe"]["alarm"] is True
        at = monitoring.certificate_monitor.place("safe", certificate())
        assert b"alarm_at" in s.store.learner_states.load(at).states["watch"]
        with router(path, seed=3) as third:
            c = third.start_monitoring(thread=False)
            assert c is not None
            c._watching.recall()
            assert c._watching.watches["safe"].labels == 6


@pytest.mark.parametrize(
    ("changed", "loss"),
    [
        ({}, 0.75),
        ({"model": "p/strong", "chosen": "p/strong"}, 0.0),
        ({"source": "audit", "key": certificate().digest[:16]}, 0.75),
        ({"source": "audit", "key": "of another"}, None),
        ({"source": "user"}, None),
        ({"previous_seq": 1}, None),
        ({"basis": "trained"}, None),
        ({"propensity": 0.01}, None),
        ({"status": 499}, None),
        ({"model": "p/strong"}, None),  # failed over
        ({"created_s": 9.0}, None),  # before this watch began
        ({"predictions": ()}, None),
    ],
    ids=str,
)
def test_which_scores_are_labels(changed: dict[str, Any], loss: float | None) -> None:
    base: dict[str, Any] = {
        "seq": 2, "decision_id": "d", "created_s": 11.0, "route": "safe", "chosen": "p/weak",
        "model": "p/weak", "scored_model": "p/weak", "policy": "default", "policy_version": "v",
        "snapshot": None, "basis": "certified", "propensity": 1.0, "difficulty": 0.1,
        "predictions": decided("d", "p/weak").predictions, "cost_usd": 1e-4, "latency_s": 0.1,
        "status": 200, "session": None, "key_id": None, "features_schema": None, "signals": None,
        "embedding": None, "score": 0.25, "weight": 1.0, "source": "test", "kind": "explicit",
        "key": "", "feedback_at_s": 12.0,
    }  # fmt: skip
    x = FeedbackEvent(**{**base, **changed})
    assert (
        monitoring.certificate_monitor.loss_of(x, certificate(), frozenset({"test"}), 10.0) == loss
    )


def test_the_thread_takes_labels_in_and_stops(path: Path) -> None:
    with router(path) as r:
        t = r.start_monitoring()
        assert t is not None
        labelled(r, recorded(r, "p/weak", 3), 0.0)
        until(lambda: r.ready()["watch"]["safe"]["labels"] == 3)
        t.stop()
        at = monitoring.certificate_monitor.place("safe", certificate())
        assert r.store.leases.acquire(at, "another", 10.0, time.time()), "the lease was given back"


# ── what may be configured ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("audit_table", "field", "said"),
    [
        ({"sample_rate": 0.06, "judge": "j/judge"}, "sample_rate", "0.05"),
        ({"sample_rate": 0.01}, "judge", "judge"),
        ({"sample_rat": 0.01}, "sample_rat", "sample_rate"),
        ({"sample_rate": 0.01, "judge": "j/judge", "max_usd_per_day": 0}, "max_usd_per_day", "0"),
        ({"false_alarm_rate": 1.0}, "false_alarm_rate", "1"),
        ({"trusted_sources": ["implicit:schema"]}, "trusted_sources", "the gateway's own"),
        ({"trusted_sources": ["audit"]}, "trusted_sources", "the gateway's own"),
        ({"sample_rate": 0.01, "judge": "j/unpriced"}, "judge", "price of j/unpriced is unknown"),
        ({"sample_rate": 0.01, "judge": "judge"}, "models", "provider/model"),
    ],
    ids=str,
)
def test_a_wrong_setting_names_the_field(
    audit_table: dict[str, Any], field: str, said: str
) -> None:
    plain = {
        "providers": {n: {"dialect": "openai", "base_url": "http://127.0.0.1:9"} for n in "pj"},
        "models": {"j/judge": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 1.0}},
        "routes": {"safe": {"models": ["p/weak", "p/strong"], "audit": audit_table}},
    }
    with pytest.raises(ConfigError, match=said) as error:
        config.resolve(config.parse_settings(plain), {})
    assert field in str(error.value.field)


def test_a_judge_of_the_same_family_is_said_and_one_without_a_key_audits_nothing() -> None:
    plain: dict[str, Any] = {
        "providers": {
            "p": {"dialect": "openai", "base_url": "http://127.0.0.1:9"},
            "j": {"dialect": "openai", "base_url": "http://127.0.0.1:9", "api_key_env": "K"},
        },
        "models": {"j/weak-large": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 1.0}},
        "routes": {
            "safe": {
                "models": ["p/weak", "p/strong"],
                "audit": {"sample_rate": 0.01, "judge": "j/weak-large"},
            }
        },
    }
    found = config.resolve(config.parse_settings(plain), {"K": "k"})
    assert any("same family as p/weak" in w for w in found.warnings)
    found = config.resolve(config.parse_settings(plain), {})
    assert any("nothing is audited" in w for w in found.warnings)
    assert found.routes["safe"].audit is not None
    assert found.routes["safe"].audit.judge is None


def test_clients_may_not_speak_as_the_auditor(path: Path) -> None:
    with router(path) as r:
        (i,) = recorded(r, "p/weak", 1)
        with pytest.raises(UnprocessableError, match="audit"):
            r.feedback(i, 0.0, source="audit")


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def body(message: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"choices": [{"index": 0, "message": message}]})


def test_answers_are_read_with_their_tool_calls() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert reading.whole(body({"content": "hi"})) == "hi"
    assert reading.whole(body({"content": [{"type": "text", "text": "hi"}]})) == "hi"
    assert reading.whole(body({"content": None, "refusal": "no"})) == "no"
    assert reading.whole(body({"content": None, "tool_calls": [call]})) == '[calls f({"a":1})]'
    assert reading.whole(body({"content": None})) == ""
    for broken in (b"", b"{", b'{"choices": []}', b"\xff", b'{"choices": 3}'):
        assert reading.whole(broken) is None

    def event(delta: Any, index: int = 0) -> bytes:
        choice = {"index": index, "delta": delta}
        return b"data: " + msgspec.json.encode({"choices": [choice]}) + b"\n\n"

    part = {"index": 0, "function": {"name": "f", "arguments": '{"a"'}}
    rest = {"index": 0, "function": {"arguments": ":1}"}}
    stream = [
        event({"role": "assistant", "content": ""}) + event({"content": "h\n"}),
        event({"content": "another"}, 1),
        event({"content": "i"}),
        event({"tool_calls": [part]}),
        event({"tool_calls": [rest]}),
        b'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n',
    ]
    assert reading.streamed(stream) == 'h\ni\n[calls f({"a":1})]'
    assert reading.streamed([b"data: {\n\n"]) is None


def test_the_judge_is_shown_what_form_was_asked_for() -> None:
    raw = msgspec.Raw
    fields = {"tools": raw(b'[{"name":"f"}]'), "response_format": raw(b"null")}
    q = msgspec.structs.replace(QUERY, fields=fields)
    assert [(m.role, m.text) for m in reading.request(q)] == [
        ("user", EASY),
        ("tools", '[{"name":"f"}]'),
    ]
