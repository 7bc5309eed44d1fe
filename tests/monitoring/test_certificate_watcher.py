"""Each label counts once, whichever worker ingests it, and only labels of the certificate count."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.audit_client import (
    decided,
    labelled,
    recorded,
)
from tests.support.audits import Judge, certificate, router, until, written

from suffice.artifacts import certificate as certificates
from suffice.monitoring import certificate_watcher, sequential_test
from suffice.providers.fake import FakeUpstream
from suffice.store.records import FeedbackEvent


@pytest.mark.slow
def test_no_alarm_without_drift_over_a_long_run(path: Path) -> None:
    draw = random.Random(5)
    with router(path) as r:
        t = r.start_monitoring(thread=False)
        assert t is not None
        for second in range(8):
            ids = {m: recorded(r, m, 250) for m in ("p/weak", "p/strong")}
            losses = {i: float(draw.random() < 0.08) for i in ids["p/weak"]}  # 0.04 of all
            losses |= dict.fromkeys(ids["p/strong"], 0.0)
            mixed = sorted(losses, key=lambda i: i[-16:])
            labelled(r, mixed, [losses[i] for i in mixed])
            t.step(time.time() + second)
        watch = t.tests["safe"]
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
        watch = t.tests["safe"]
        assert (watch.labels, watch.loss) == (2, pytest.approx(0.375))
        # A second score of the same decision, from any source, is not new evidence.
        r.feedback(weak[0], 1.0, source="test")
        r.feedback(weak[0], 0.0, source="test", key="other")
        t.step(time.time())
        assert t.tests["safe"].labels == 2
        # Nor is what was decided otherwise: explored, by another basis, answered by another model.
        for changed in ({"basis": "trained"}, {"predictions": ()}):
            (other,) = recorded(r, "p/weak", 1, **changed)
            r.store.flush()
            r.feedback(other, 0.0, source="test")
        t.step(time.time())
        assert t.tests["safe"].labels == 2
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
        watch = t.tests["safe"]
        assert (watch.labels, watch.loss) == (2, 0.0)


def test_an_unreadable_state_is_logged_and_the_test_starts_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with router(path) as r:
        key = certificate_watcher.state_key("safe", certificate())
        r.store.learner_states.save(key, {"watch": b"{}"}, 0, expected_cursor=0, now_s=1.0)
        t = r.start_monitoring(thread=False)
        assert t is not None
        labelled(r, recorded(r, "p/weak", 2), 0.0)
        t.step(time.time())
        assert "starts again" in caplog.text
        assert t.tests["safe"].labels == 2


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
def test_each_label_counts_once_after_sigkill(path: Path) -> None:
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
        test = t.tests["safe"]
        expected = sequential_test.start(0.05)
        for i in range(len(ids)):
            expected = expected.update(0.5 if i % 3 == 0 else 0.0)
        assert test == expected


def test_each_label_counts_once_with_two_workers(path: Path) -> None:
    with router(path) as r, router(path, seed=2) as s:
        a, b = r.start_monitoring(thread=False), s.start_monitoring(thread=False)
        assert a is not None and b is not None
        now_s = time.time()
        for i in range(6):
            labelled(r, recorded(r, "p/weak", 1), 0.0)
            a.step(now_s + 40.0 * i)
            labelled(r, recorded(r, "p/weak", 1), 0.0)
            b.step(now_s + 40.0 * i + 11.0)
            a.step(now_s + 40.0 * i + 4.0)  # its clock is slow: it does not know its lease lapsed
        a.step(now_s + 400.0)
        b.step(now_s + 401.0)
        assert a.tests["safe"] == b.tests["safe"]
        assert a.tests["safe"].labels == 12


def test_a_worker_that_lost_its_lease_does_not_overwrite_the_test(
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
            assert b.tests["safe"].alarmed
            return save(*args, **more)

        monkeypatch.setattr(r.store.learner_states, "save", late)
        a.step(now_s + 1.0)
        assert a.tests["safe"].labels == 6
        assert a.state()["safe"]["alarm"] is True
        key = certificate_watcher.state_key("safe", certificate())
        assert b"alarm_at" in s.store.learner_states.load(key).states["watch"]
        with router(path, seed=3) as third:
            c = third.start_monitoring()
            assert c is not None
            assert until(lambda: c.state()["safe"]["labels"]) == 6


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
    assert certificate_watcher.loss_of(x, certificate(), frozenset({"test"}), 10.0) == loss


def test_the_thread_ingests_labels_and_stops(path: Path) -> None:
    with router(path) as r:
        t = r.start_monitoring()
        assert t is not None
        labelled(r, recorded(r, "p/weak", 3), 0.0)
        until(lambda: r.ready()["watch"]["safe"]["labels"] == 3)
        t.stop()
        key = certificate_watcher.state_key("safe", certificate())
        assert r.store.leases.acquire(key, "another", 10.0, time.time()), "the lease was given back"
