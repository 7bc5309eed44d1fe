"""The learning worker: labels are learned once, snapshots are stored and served by all workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.feedback import CODE, PROSE, decided, router, teach

from suffice import Router
from suffice.artifacts import artifact as artifacts
from suffice.artifacts.artifact import Artifact
from suffice.learning.route_learner import RouteLearner
from suffice.learning.worker import LearningWorker
from suffice.store.snapshot import make_snapshot


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Router]:
    r = router(tmp_path)
    yield r
    r.close()


def learned(learning: LearningWorker) -> RouteLearner:
    return learning.learners["auto"]


def test_topics_are_learned_from_feedback_alone_and_served(made: Router) -> None:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 400)
    learning.step(1010.0)
    code = made.route(CODE.format("config"))
    prose = made.route(PROSE.format("fox"))
    assert (code.model, prose.model) == ("p/coder", "p/writer")
    assert code.basis == "trained"
    assert code.snapshot == made.store.registry.current("auto")
    assert code.snapshot is not None
    card = made.store.registry.get(code.snapshot).card
    assert card["figures"]["through_seq"] >= 400 - 50


def test_shadow_changes_no_decision_and_records_its_own(tmp_path: Path) -> None:
    r = router(tmp_path, learning="shadow")
    try:
        learning = r.start_learning(thread=False)
        before = [r.route(t.format("x")).model for t in (CODE, PROSE)]
        teach(r, 300)
        learning.step(1000.0)
        assert [r.route(t.format("x")).model for t in (CODE, PROSE)] == before
        assert r.store.registry.current("auto") is None
        assert len(r.store.registry.snapshots("auto")) >= 1
        d = decided(r, CODE.format("shadowed"))
        found = r.decision(d.id)
        assert found is not None
        assert found["shadow"]["model"] == "p/coder"
        assert found["shadow"]["policy_version"].startswith("linear-")
    finally:
        r.close()


def test_off_learns_nothing(tmp_path: Path) -> None:
    r = router(tmp_path, learning="off")
    try:
        learning = r.start_learning(thread=False)
        teach(r, 100)
        learning.step(1000.0)
        assert r.store.registry.snapshots("auto") == []
    finally:
        r.close()


def test_another_worker_takes_over_after_the_lease_and_counts_nothing_twice(tmp_path: Path) -> None:
    a, b = router(tmp_path), router(tmp_path)
    try:
        one, two = a.start_learning(thread=False), b.start_learning(thread=False)
        one.step(1000.0)
        teach(a, 100)
        two.step(1001.0)  # the lease is the other's
        assert two.learners == {}
        one.step(1002.0)
        labels = one.learners["auto"].regression.labels.sum()
        assert labels == pytest.approx(100, rel=0.05)
        teach(a, 60, start=100)
        two.step(1100.0)  # it has lapsed
        assert two.learners["auto"].regression.labels.sum() == pytest.approx(160, rel=0.06)
        # The first, whose clock stood still, believes that it holds the lease. It saves nothing.
        one.step(1003.0)
        one.step(1004.0)
        three = router(tmp_path)
        try:
            c = three.start_learning(thread=False)
            c.step(2000.0)
            assert c.learners["auto"].regression.labels.sum() == pytest.approx(160, rel=0.06)
        finally:
            three.close()
    finally:
        a.close()
        b.close()


@pytest.mark.slow
def test_workers_swap_without_a_restart_and_back_after_a_rollback(tmp_path: Path) -> None:
    a, b = router(tmp_path), router(tmp_path)
    try:
        one, two = a.start_learning(thread=False), b.start_learning(thread=False)
        one.step(1000.0)
        teach(a, 200)
        one.step(1010.0)
        version = a.store.registry.current("auto")
        assert version is not None
        assert b.route("hi there").snapshot is None
        two.step(1011.0)
        assert b.route("hi there").snapshot == version
        first = version
        while a.store.registry.current("auto") is not None:
            a.store.registry.rollback("auto", by="me", now_s=1012.0)
        one.step(1013.0)
        two.step(1013.0)
        assert a.route("hi there").snapshot is None
        assert b.route("hi there").snapshot is None
        # What an operator undid, the learner does not do again.
        teach(a, 200, start=200)
        one.step(1020.0)
        assert a.store.registry.current("auto") is None
        assert a.store.registry.snapshots("auto")[0]["version"] != first
    finally:
        a.close()
        b.close()


def test_decisions_go_on_during_a_refit(made: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refit never ends in its thread: decisions go on."""
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 100)
    began, release = threading.Event(), threading.Event()
    build = RouteLearner.build_artifact

    def slow(self: RouteLearner, *args: Any) -> Artifact:
        began.set()
        release.wait(60)
        return build(self, *args)

    monkeypatch.setattr(RouteLearner, "build_artifact", slow)
    thread = threading.Thread(target=learning.step, args=(1010.0,))
    thread.start()
    assert began.wait(60)
    assert made.route("hi").model
    d = decided(made, "meanwhile")
    made.feedback(d.id, 1.0)
    release.set()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.slow
def test_a_busy_route_is_refitted_at_intervals(made: Router) -> None:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 60)
    learning.step(1010.0)
    teach(made, 60)
    learning.step(1010.0 + 86_400.0)
    teach(made, 60)
    learning.step(1100.0 + 86_400.0)
    assert len(made.store.registry.snapshots("auto")) == 2, (
        "one in ten minutes, a day from the beginning"
    )
    learning.step(1700.0 + 86_400.0)
    assert len(made.store.registry.snapshots("auto")) == 3


def test_a_snapshot_promoted_by_an_operator_is_the_new_warm_start(tmp_path: Path) -> None:
    r = router(tmp_path)
    try:
        learning = r.start_learning(thread=False)
        learning.step(1000.0)
        teach(r, 60)
        learning.step(1010.0)
        mine = learned(learning)
        assert mine.base is None
        # A trained policy, made elsewhere: here what was learned, with its levels moved.
        found = mine.build_artifact(1011.0)
        e = msgspec.structs.replace(found.estimator, intercept=found.estimator.intercept - 0.01)
        raw = artifacts.pack(msgspec.structs.replace(found, estimator=e))
        promoted = make_snapshot(
            route="auto", kind="policy", content=raw, created_s=1011.0, created_by="cli",
            card=msgspec.to_builtins(artifacts.unpack(raw).card),
        )  # fmt: skip
        r.store.registry.put(promoted)
        r.store.registry.promote("auto", promoted.version, by="someone", now_s=1012.0)
        learning.step(1013.0)
        base = learned(learning).base
        assert base is not None
        assert base.card.digest == artifacts.unpack(raw).card.digest
        assert learned(learning).regression.labels.sum() == pytest.approx(60, rel=0.05)
        teach(r, 80)
        learning.step(1100.0)  # the learner's own stands on it
        assert r.store.registry.current("auto") != promoted.version
        learning.stop()
        other = router(tmp_path)
        again = other.start_learning(thread=False)
        again.step(1200.0)
        restarted = learned(again).base
        other.close()
        assert restarted is not None
        assert restarted.card.digest == base.card.digest
    finally:
        r.close()
