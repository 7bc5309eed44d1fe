"""What an alarm changes, in every worker, after a restart, and in a conversation."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from tests.support.audit_client import (
    BAD,
    GOOD,
    AuditClient,
    talk,
)
from tests.support.audits import certificate, router
from tests.support.common import EASY

from suffice.artifacts import certificate as certificates
from suffice.providers.fake import FakeUpstream


@pytest.mark.slow
def test_after_an_alarm_the_reference_serves_in_every_worker(
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


def test_observed_traffic_does_not_end_an_alarm(path: Path) -> None:
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
