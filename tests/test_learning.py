"""The loop: what was labelled is learned once, kept, and served; whoever is killed loses nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from suffice import Router, features
from suffice.config import parse_settings
from suffice.errors import ArtifactError
from suffice.learning import Learning
from suffice.types import Attempt, Decision, Record, Usage

CODE = "write a python function that parses the {} file and returns a list"
PROSE = "tell me a story about the {} that went to the market"


def settings(tmp_path: Path, mode: str = "on") -> dict[str, Any]:
    return {
        "store": {"url": f"sqlite:///{(tmp_path / 's.db').as_posix()}"},
        "providers": {"p": {"dialect": "openai", "base_url": "http://127.0.0.1:9/v1"}},
        "models": {
            "p/coder": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 4.0, "quality": 0.7},
            "p/writer": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 4.0, "quality": 0.7},
        },
        "routes": {
            "auto": {
                "models": ["p/coder", "p/writer"],
                "objective": "best",
                "learning": mode,
            }
        },
    }


def router(tmp_path: Path, mode: str = "on") -> Router:
    return Router(parse_settings(settings(tmp_path, mode)), env={}, seed=1)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Router]:
    r = router(tmp_path)
    yield r
    r.close()


def decided(r: Router, text: str, model: str | None = None) -> Decision:
    """A decision, as it is recorded once the model has answered. model: who did, whatever was
    decided (as if explored)."""
    d = r.route(text)
    if model is not None:
        d = msgspec.structs.replace(d, model=model)
    usage = Usage(20, 30)
    r.store.append(
        Record(
            decision=d,
            attempts=(Attempt(d.model, 1, "ok", 1.0, 0.1, usage=usage),),
            created_s=1000.0,
            request_id="r",
            status=200,
            model=d.model,
            usage=usage,
            cost_usd=1e-4,
            features=features.extract_text(text),
        )
    )
    return d


def teach(r: Router, n: int, start: int = 0) -> None:
    """Each model is good at one topic and bad at the other."""
    for i in range(start, start + n):
        topic, good = ((CODE, "p/coder"), (PROSE, "p/writer"))[i % 2]
        model = ("p/coder", "p/writer")[(i // 2) % 2]
        d = decided(r, topic.format(f"thing{i}"), model)
        r.feedback(d.id, 1.0 if model == good else 0.0, source=f"user{i % 40}")


def test_topics_are_learned_from_feedback_alone_and_served(made: Router) -> None:
    learning = made.learn(start=False)
    learning.step(1000.0)
    teach(made, 400)
    learning.step(1010.0)
    code = made.route(CODE.format("config"))
    prose = made.route(PROSE.format("fox"))
    assert (code.model, prose.model) == ("p/coder", "p/writer")
    assert code.basis == "trained"
    assert code.snapshot == made.store.current("auto")
    assert code.snapshot is not None
    card = made.store.get_snapshot(code.snapshot).card
    assert card["figures"]["through_seq"] >= 400 - 50


def test_shadow_changes_no_decision_and_logs_what_it_would_have_been(tmp_path: Path) -> None:
    r = router(tmp_path, "shadow")
    try:
        learning = r.learn(start=False)
        before = [r.route(t.format("x")).model for t in (CODE, PROSE)]
        teach(r, 300)
        learning.step(1000.0)
        assert [r.route(t.format("x")).model for t in (CODE, PROSE)] == before
        assert r.store.current("auto") is None
        assert len(r.store.snapshots("auto")) >= 1
        d = decided(r, CODE.format("shadowed"))
        found = r.decision(d.id)
        assert found is not None
        assert found["shadow"]["model"] == "p/coder"
        assert found["shadow"]["policy_version"].startswith("linear-")
    finally:
        r.close()


def test_off_learns_nothing(tmp_path: Path) -> None:
    r = router(tmp_path, "off")
    try:
        learning = r.learn(start=False)
        teach(r, 100)
        learning.step(1000.0)
        assert r.store.snapshots("auto") == []
    finally:
        r.close()


def test_another_worker_takes_over_after_the_lease_and_counts_nothing_twice(tmp_path: Path) -> None:
    a, b = router(tmp_path), router(tmp_path)
    try:
        one, two = a.learn(start=False), b.learn(start=False)
        one.step(1000.0)
        teach(a, 100)
        two.step(1001.0)  # the lease is the other's
        assert two._learners == {}
        one.step(1002.0)
        labels = one._learners["auto"].learner.labels.sum()
        assert labels == pytest.approx(100, rel=0.05)
        teach(a, 60, start=100)
        two.step(1100.0)  # it has lapsed
        assert two._learners["auto"].learner.labels.sum() == pytest.approx(160, rel=0.06)
        # The first, which does not know, may not write over it.
        one._held["auto"] = 9e9
        one.step(1101.0)
        one.step(1102.0)
        three = router(tmp_path)
        try:
            c = three.learn(start=False)
            c.step(2000.0)
            assert c._learners["auto"].learner.labels.sum() == pytest.approx(160, rel=0.06)
        finally:
            three.close()
    finally:
        a.close()
        b.close()


def test_workers_swap_without_a_restart_and_back_after_a_rollback(tmp_path: Path) -> None:
    a, b = router(tmp_path), router(tmp_path)
    try:
        one, two = a.learn(start=False), b.learn(start=False)
        one.step(1000.0)
        teach(a, 200)
        one.step(1010.0)
        version = a.store.current("auto")
        assert version is not None
        assert b.route("hi there").snapshot is None
        two.step(1011.0)
        assert b.route("hi there").snapshot == version
        first = version
        while a.store.current("auto") is not None:
            a.store.rollback("auto", by="me", now_s=1012.0)
        one.step(1013.0)
        two.step(1013.0)
        assert a.route("hi there").snapshot is None
        assert b.route("hi there").snapshot is None
        # What an operator undid, the learner does not do again.
        teach(a, 200, start=200)
        one.step(1020.0)
        assert a.store.current("auto") is None
        assert a.store.snapshots("auto")[0]["version"] != first
    finally:
        a.close()
        b.close()


def test_a_damaged_snapshot_is_refused_and_the_old_policy_serves(
    made: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning = made.learn(start=False)
    learning.step(1000.0)
    teach(made, 200)
    learning.step(1010.0)
    serving = made.route("hi there").snapshot
    get = made.store.get_snapshot

    def bent(version: str) -> Any:
        found = get(version)
        if version == serving:
            return found
        raise ArtifactError(f"Snapshot {version}: its bytes have another digest.")

    monkeypatch.setattr(made.store, "promote", lambda *a, **k: None)
    teach(made, 200, start=200)
    learning.step(1020.0)
    monkeypatch.undo()
    newest = made.store.snapshots("auto")[0]["version"]
    assert newest != serving
    made.store.promote("auto", newest, by="me", now_s=1021.0)
    monkeypatch.setattr(made.store, "get_snapshot", bent)
    learning.step(1022.0)
    assert made.route("hi there").snapshot == serving
    assert "digest" in learning.problems["auto"]
    assert "digest" in str(made.ready()["learning"])


def test_a_replaced_score_counts_once(made: Router) -> None:
    learning = made.learn(start=False)
    learning.step(1000.0)
    d = [decided(made, CODE.format(i), "p/coder") for i in range(30)]
    for x in d:
        made.feedback(x.id, 0.0, source="user")
    learning.step(1010.0)
    for x in d:
        made.feedback(x.id, 1.0, source="user")
    learning.step(1020.0)
    mine = learning._learners["auto"].learner
    assert mine.labels[0] == pytest.approx(30, rel=0.05)
    assert mine._moment[0, 0] == pytest.approx(30, rel=0.05)  # the sum of scores


def test_exploring_is_narrow_says_so_and_logs_its_probability(made: Router) -> None:
    learning = made.learn(start=False)
    learning.step(1000.0)
    teach(made, 60)
    learning.step(1010.0)
    explored = [d for d in (made.route(f"hello {i}") for i in range(4000)) if d.explored]
    assert 1 <= len(explored) <= 4000 * 0.03
    for d in explored:
        assert 0.0 < d.propensity < 0.03
        assert "explored" in d.reason
        assert sum(p.propensity for p in d.predictions) == pytest.approx(1.0)
    talk = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "tell me more about the weather in Norway"},
    ]
    assert not any(made.route(talk).explored for _ in range(500))


def test_a_model_added_later_is_learned_and_a_removed_one_is_gone(tmp_path: Path) -> None:
    r = router(tmp_path)
    learning = r.learn(start=False)
    learning.step(1000.0)
    teach(r, 200)
    learning.step(1010.0)
    r.close()
    plain = settings(tmp_path)
    plain["models"]["p/new"] = {
        "input_usd_per_mtok": 0.1,
        "output_usd_per_mtok": 0.4,
        "quality": 0.6,
    }
    plain["routes"]["auto"]["models"] = ["p/coder", "p/new"]
    r = Router(parse_settings(plain), env={}, seed=2)
    try:
        learning = r.learn(start=False)
        learning.step(2000.0)
        d = r.route(CODE.format("x"))
        assert {p.model for p in d.predictions} == {"p/coder", "p/new"}
        for i in range(200):
            x = decided(r, PROSE.format(f"again{i}"), "p/new")
            r.feedback(x.id, 1.0, source=f"user{i % 30}")
        learning.step(2010.0)
        assert r.route(PROSE.format("fox")).model == "p/new"
        assert set(learning._learners["auto"].names) == {"p/coder", "p/new"}
    finally:
        r.close()


def test_learning_does_not_hold_up_a_decision(
    made: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refit that takes for ever in its thread: decisions go on."""
    learning = made.learn(start=False)
    learning.step(1000.0)
    teach(made, 100)
    began, release = threading.Event(), threading.Event()
    refitted = Learning._refitted

    def slow(self: Learning, *args: Any) -> bytes:
        began.set()
        release.wait(20)
        return refitted(self, *args)

    monkeypatch.setattr(Learning, "_refitted", slow)
    thread = threading.Thread(target=learning.step, args=(1010.0,))
    thread.start()
    assert began.wait(20)
    assert made.route("hi").model
    d = decided(made, "meanwhile")
    made.feedback(d.id, 1.0)
    release.set()
    thread.join(20)
    assert not thread.is_alive()


def test_a_state_of_another_version_is_said_and_learning_starts_anew(
    made: Router, caplog: pytest.LogCaptureFixture
) -> None:
    states = {"learner": b"old", "explorer": b"old", "sample": b"old"}
    made.store.save_learner_state("auto", states, 0, expected_cursor=0, now_s=1.0)
    learning = made.learn(start=False)
    learning.step(1000.0)
    teach(made, 60)
    learning.step(1010.0)
    assert "cannot be used" in caplog.text
    assert made.store.current("auto") is not None
