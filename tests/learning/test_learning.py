"""The loop: what was labelled is learned once, kept, and served; whoever is killed loses nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.feedback import CODE, PROSE, decided, router, settings, teach

from suffice import Router
from suffice.config import parse_settings
from suffice.errors import ArtifactError
from suffice.learning import LearningWorker, refit_process
from suffice.learning.exploration import ThompsonSampler
from suffice.learning.regression import Fit, OnlineRegression


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Router]:
    r = router(tmp_path)
    yield r
    r.close()


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


def test_shadow_changes_no_decision_and_logs_what_it_would_have_been(tmp_path: Path) -> None:
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
            c = three.start_learning(thread=False)
            c.step(2000.0)
            assert c._learners["auto"].learner.labels.sum() == pytest.approx(160, rel=0.06)
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


def test_a_replaced_score_counts_once(made: Router) -> None:
    learning = made.start_learning(thread=False)
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
    learning = made.start_learning(thread=False)
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


def test_each_client_wish_and_each_running_conversation_is_decided_for_sure(made: Router) -> None:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 60)
    learning.step(1010.0)
    assert made.route("hello").propensity < 1.0
    called = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    asked = {"role": "user", "content": "hello"}
    loop = [
        asked,
        {"role": "assistant", "content": None, "tool_calls": called},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ]
    sure = [
        made.route(loop),
        made.route("hello", models=["p/writer", "p/coder"]),
        made.route("hello", objective="cheapest"),
        made.route("hello", route="p/coder"),
        made.decide(_asked({"provider": {"order": ["p"]}})),
    ]
    for d in sure:
        assert d.propensity == 1.0
        assert sorted(p.propensity for p in d.predictions)[-1] == 1.0
    assert made.decide(_asked({})).propensity < 1.0


def _asked(more: dict[str, Any]) -> Any:
    from suffice.dialects.openai_request import parse_chat

    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], **more}
    return parse_chat(msgspec.json.encode(body), {})


def test_a_route_says_how_much_is_explored(tmp_path: Path) -> None:
    told = {}
    for share in (0.004, 0.03):
        folder = tmp_path / str(share)
        folder.mkdir()
        r = router(folder, explore_share=share)
        learning = r.start_learning(thread=False)
        learning.step(1000.0)
        teach(r, 60)
        learning.step(1010.0)
        told[share] = 1.0 - max(p.propensity for p in r.route("hello").predictions)
        r.close()
        again = router(folder, explore_share=0.01)  # what was saved does not outlive the setting
        learning = again.start_learning(thread=False)
        learning.step(2000.0)
        assert 1.0 - max(p.propensity for p in again.route("hello").predictions) <= 0.01
        again.close()
    assert 0.0 < told[0.004] <= 0.004 < told[0.03] <= 0.03


def test_exploring_is_paid_for_by_what_the_route_spends(made: Router) -> None:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    route = made.resolve("auto")
    plain = made.route("hello")
    usd = plain.predictions[0].cost_usd
    assert usd is not None
    route.mean_cost_usd = usd / 1000.0
    poor = made.route("hello")
    assert 0.0 < 1.0 - poor.propensity < 0.1 * (1.0 - plain.propensity)
    for _ in range(2000):
        route.update_mean_cost(made.route("hi"))
    assert route.mean_cost_usd == pytest.approx(usd, rel=0.1)


def test_what_was_explored_can_be_drawn_again(made: Router) -> None:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 30)  # too few for a refit
    learning.step(1010.0)
    saved = learning._learners["auto"].explorer.state()
    decided = [made.route(f"hello {i}") for i in range(300)]
    belief = ThompsonSampler.from_state(saved).posterior()
    for d in decided:
        told = d.predictions
        names = [p.model for p in told]
        chosen = max(range(len(told)), key=lambda i: told[i].propensity)
        again = belief.sample(
            names,
            [p.quality or 0.0 for p in told],
            [p.cost_usd or 0.0 for p in told],
            chosen,
            seed=d.seed,
        )
        assert again.propensities == tuple(p.propensity for p in told)
        assert names[again.action] == d.model


def never() -> bool:
    return False


@pytest.fixture
def learner(made: Router) -> OnlineRegression:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 30)
    learning.step(1010.0)
    return learning._learners["auto"].learner


def same(one: Fit | None, other: Fit) -> bool:
    assert one is not None
    arrays = all((a == b).all() for a, b in zip(one[:3], other[:3], strict=True))
    return arrays and one[3:] == other[3:]


def test_a_refit_in_its_own_process_is_the_same_whatever_lies_about(
    learner: OnlineRegression,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("numpy", "msgspec", "subprocess"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not me')")
    monkeypatch.chdir(tmp_path)
    here = learner.refit()
    monkeypatch.setattr(OnlineRegression, "refit", lambda _: pytest.fail("made in this process"))
    assert same(refit_process.refit(learner, learner.state(), never), here)
    assert same(refit_process.unpacked(refit_process.packed(here)), here)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("child", "said"),
    [
        ("raise SystemExit('no')", "failed in its own process: no"),
        ("print('no fit')", "failed in its own process: fit state"),
        ("import time; time.sleep(60)", "got no CPU time in 0.2 s"),
        (None, "in the gateway's own process: "),
    ],
    ids=str,
)
def test_without_a_child_that_does_it_a_refit_is_made_here_unless_all_ends(
    learner: OnlineRegression,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    child: str | None,
    said: str,
) -> None:
    if child is None:
        monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    else:
        monkeypatch.setattr(refit_process, "_CHILD", child)
    monkeypatch.setattr(refit_process, "TIMEOUT_S", 0.2 if "sleep" in str(child) else 20.0)
    with caplog.at_level("INFO", "suffice.learning"):
        assert same(refit_process.refit(learner, learner.state(), never), learner.refit())
    assert said in caplog.text
    if child is not None:
        monkeypatch.setattr(OnlineRegression, "refit", lambda _: pytest.fail("nobody waits for it"))
        assert refit_process.refit(learner, learner.state(), lambda: True) is None


@pytest.mark.slow
def test_a_model_added_later_is_learned_and_a_removed_one_is_gone(tmp_path: Path) -> None:
    r = router(tmp_path)
    learning = r.start_learning(thread=False)
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
        learning = r.start_learning(thread=False)
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
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 100)
    began, release = threading.Event(), threading.Event()
    refitted = LearningWorker._refitted

    def slow(self: LearningWorker, *args: Any) -> bytes:
        began.set()
        release.wait(20)
        return refitted(self, *args)

    monkeypatch.setattr(LearningWorker, "_refitted", slow)
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
    made.store.learner_states.save("auto", states, 0, expected_cursor=0, now_s=1.0)
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 60)
    learning.step(1010.0)
    assert "cannot be used" in caplog.text
    assert made.store.registry.current("auto") is not None
