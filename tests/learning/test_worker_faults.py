"""The learning worker when a snapshot, a state, the store or the code fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.feedback import router, teach

from suffice import Router
from suffice.errors import ArtifactError, StoreError
from suffice.learning.route_learner import RouteLearner
from suffice.learning.worker import LEASE_S, LearningWorker


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Router]:
    r = router(tmp_path)
    yield r
    r.close()


def learned(learning: LearningWorker) -> RouteLearner:
    return learning.learners["auto"]


def test_a_damaged_snapshot_is_refused_and_the_old_policy_serves(
    made: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 200)
    learning.step(1010.0)
    serving = made.route("hi there").snapshot
    get = made.store.registry.get

    def bent(version: str) -> Any:
        found = get(version)
        if version == serving:
            return found
        raise ArtifactError(f"Snapshot {version}: its bytes have another digest.")

    monkeypatch.setattr(made.store.registry, "promote", lambda *a, **k: None)
    teach(made, 200, start=200)
    learning.step(1020.0)
    monkeypatch.undo()
    newest = made.store.registry.snapshots("auto")[0]["version"]
    assert newest != serving
    made.store.registry.promote("auto", newest, by="me", now_s=1021.0)
    monkeypatch.setattr(made.store.registry, "get", bent)
    learning.step(1022.0)
    assert made.route("hi there").snapshot == serving
    assert "digest" in learning.problems["auto"]
    assert "digest" in str(made.ready()["learning"])


def test_a_state_of_another_version_is_logged_and_learning_starts_again(
    made: Router, caplog: pytest.LogCaptureFixture
) -> None:
    states = {"learner": b"old", "explorer": b"old", "sample": b"old"}
    made.store.learner_states.save("auto", states, 0, expected_cursor=0, now_s=1.0)
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 60)
    learning.step(1010.0)
    assert "cannot be used" in caplog.text
    assert made.store.registry.current("auto") is not None


def test_a_few_labels_are_not_written_and_not_lost(tmp_path: Path) -> None:
    a, b = router(tmp_path), router(tmp_path)
    try:
        one = a.start_learning(thread=False)
        one.step(1000.0)
        teach(a, 20)
        one.step(1001.0)
        assert learned(one).regression.labels.sum() == pytest.approx(20, rel=0.02)
        assert a.store.learner_states.load("auto").states == {}
        two = b.start_learning(thread=False)
        two.step(1001.0 + LEASE_S)
        assert learned(two).regression.labels.sum() == pytest.approx(20, rel=0.02)
        two.step(1400.0)  # without further labels they are saved in the end
        assert b.store.learner_states.load("auto").cursor > 0
    finally:
        a.close()
        b.close()


@pytest.mark.parametrize(
    ("part", "method"),
    [
        ("feedback", "events_since"),
        ("learner_states", "save"),
        ("registry", "put"),
        ("registry", "promote"),
    ],
)
@pytest.mark.parametrize("done", [False, True])
def test_a_store_that_fails_for_a_moment_costs_neither_labels_nor_the_refit(
    made: Router, monkeypatch: pytest.MonkeyPatch, part: str, method: str, done: bool
) -> None:
    """done: it was written, and only the answer was lost."""
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 80)
    owner = getattr(made.store, part)
    real = getattr(owner, method)

    def away(*args: Any, **options: Any) -> Any:
        if done:
            real(*args, **options)
        raise StoreError("The store is away.")

    monkeypatch.setattr(owner, method, away)
    with pytest.raises(StoreError):
        learning.step(1010.0)
    monkeypatch.undo()
    learning.step(1011.0)
    learning.step(1012.0)
    assert learned(learning).regression.labels.sum() == pytest.approx(80, rel=0.05)
    assert made.store.registry.current("auto") is not None
    assert made.route("hi there").snapshot == made.store.registry.current("auto")
    assert len(made.store.registry.snapshots("auto")) == 1


def test_a_state_that_cannot_be_used_is_learned_again_from_all_feedback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    r = router(tmp_path)
    learning = r.start_learning(thread=False)
    learning.step(1000.0)
    teach(r, 120)
    learning.step(1010.0)
    r.close()
    r = router(tmp_path)
    try:
        cursor = r.store.learner_states.load("auto").cursor
        assert cursor >= 120
        r.store.learner_states.save(
            "auto", {"learner": b"of another version"}, cursor, expected_cursor=cursor, now_s=1.0
        )
        learning = r.start_learning(thread=False)
        learning.step(2000.0)
        assert "cannot be used" in caplog.text
        assert learned(learning).regression.labels.sum() == pytest.approx(120, rel=0.05)
        assert r.store.learner_states.load("auto").cursor >= cursor
    finally:
        r.close()


def test_a_failure_of_one_route_is_logged_once_and_stops_nothing(
    made: Router, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 30)
    take = RouteLearner.ingest

    def broken(*_: Any) -> int:
        raise ZeroDivisionError("an unexpected number")

    monkeypatch.setattr(RouteLearner, "ingest", broken)
    with caplog.at_level(logging.ERROR, "suffice.learning"):
        learning.step(1001.0)
        learning.step(1002.0)
    assert len([x for x in caplog.records if "unexpected number" in x.getMessage()]) == 1
    assert "unexpected number" in str(made.ready()["learning"])
    assert made.route("hi there").model
    monkeypatch.setattr(RouteLearner, "ingest", take)
    learning.step(1003.0)
    assert made.ready()["learning"] == {}
    assert learned(learning).regression.labels.sum() == pytest.approx(30, rel=0.05)
