"""What learning does when things are not as usual: many clients, moved models, a store that is away,
a failure of its own, an operator who knows better."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.feedback import CODE, record, router, teach

from suffice import Router, features
from suffice.artifacts import artifact as artifacts
from suffice.errors import StoreError
from suffice.learning import LEASE_S, LearningWorker, RouteLearner, limits_of
from suffice.store.snapshot import make_snapshot


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Router]:
    r = router(tmp_path)
    yield r
    r.close()


def learned(learning: LearningWorker) -> RouteLearner:
    return learning._learners["auto"]


# ── who may teach ────────────────────────────────────────────────────────────────────────────────


def test_a_gateway_without_keys_learns_from_all_feedback_whoever_it_says_it_is(
    made: Router,
) -> None:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 400)  # all of "user": with a limit a source, a hundred a day would count
    learning.step(1010.0)
    assert learned(learning).learner.labels.sum() == pytest.approx(400, rel=0.1)


def test_of_many_clients_one_cannot_teach_alone_whatever_it_calls_its_sources(
    made: Router,
) -> None:
    learning = made.start_learning(thread=False)
    learning._limits = limits_of(5)
    learning.step(1000.0)
    teach(made, 500, key="key-of-one", source="user{}")
    learning.step(1010.0)
    assert learned(learning).learner.labels.sum() <= 300
    teach(made, 60, key="key-of-another")
    learning.step(1020.0)
    assert learned(learning).learner.ration._by["key-of-another"] == pytest.approx(60)


def test_few_clients_alike_do_not_hold_each_other_up() -> None:
    from suffice.learning.label_limits import SourceLimiter

    assert limits_of(0) == limits_of(1)
    for clients in (1, 2, 3, 5, 8, 20):
        ration = SourceLimiter(limits_of(clients))
        counted = [ration.admit(f"c{i % clients}", 1.0, 0.0) for i in range(clients * 2000)]
        assert sum(counted) == len(counted)


# ── what an answer costs ─────────────────────────────────────────────────────────────────────────


def test_costs_are_predicted_from_what_answers_have_cost(made: Router) -> None:
    """Without it a policy would guess the length from the quality."""
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 300, tokens=900)
    learning.step(1010.0)
    d = made.route(CODE.format("config"))
    assert d.basis == "trained"
    asked = features.extract_text(CODE.format("config")).input_tokens
    for p in d.predictions:
        assert p.cost_usd == pytest.approx((asked + 900 * 4.0) / 1e6, rel=0.1)


def test_models_without_a_price_and_odd_costs_are_no_lengths(made: Router) -> None:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 60, tokens=-400)  # a cost below that of the prompt: a discount we know nothing of
    learning.step(1010.0)
    mine = learned(learning)
    assert mine._tokens == {}
    assert mine.tokens() == pytest.approx([430.0, 430.0])


# ── the pool changes ─────────────────────────────────────────────────────────────────────────────


def test_a_model_that_moves_to_another_provider_keeps_what_was_learned_of_it(
    tmp_path: Path,
) -> None:
    r = router(tmp_path)
    learning = r.start_learning(thread=False)
    learning.step(1000.0)
    teach(r, 200)
    learning.step(1010.0)
    before = learned(learning).learner.labels
    tokens = learned(learning)._tokens["p/coder"]
    late = r.route(CODE.format("late"))
    record(r, msgspec.structs.replace(late, model="p/coder"), CODE.format("late"))
    r.close()
    r = router(tmp_path, ("q/coder", "p/writer"))
    try:
        learning = r.start_learning(thread=False)
        r.feedback(late.id, 1.0)  # of a decision under the old name
        learning.step(2000.0)
        mine = learned(learning)
        assert mine.names == ("q/coder", "p/writer")
        assert mine.learner.labels[0] == pytest.approx(before[0] + 1, rel=0.01)
        assert mine.learner.labels[1] == pytest.approx(before[1])
        assert mine._tokens["q/coder"][0] == pytest.approx(tokens[0] + 1, rel=0.01)
        assert r.route(CODE.format("config")).model == "q/coder"
    finally:
        r.close()


# ── when it is written, and what if it cannot be ─────────────────────────────────────────────────


def test_a_few_labels_are_not_written_and_not_lost(tmp_path: Path) -> None:
    a, b = router(tmp_path), router(tmp_path)
    try:
        one = a.start_learning(thread=False)
        one.step(1000.0)
        teach(a, 20)
        one.step(1001.0)
        assert learned(one).learner.labels.sum() == pytest.approx(20, rel=0.02)
        assert a.store.learner_states.load("auto").states == {}
        two = b.start_learning(thread=False)
        two.step(1001.0 + LEASE_S)
        assert learned(two).learner.labels.sum() == pytest.approx(20, rel=0.02)
        two.step(1400.0)  # nobody adds any: in the end they are written
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
def test_a_store_that_is_away_for_a_moment_costs_neither_labels_nor_the_refit(
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
    assert learned(learning).learner.labels.sum() == pytest.approx(80, rel=0.05)
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
        assert learned(learning).learner.labels.sum() == pytest.approx(120, rel=0.05)
        assert r.store.learner_states.load("auto").cursor >= cursor
    finally:
        r.close()


def test_a_failure_of_one_route_is_said_once_and_stops_nothing(
    made: Router, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 30)
    take = RouteLearner.take

    def broken(*_: Any) -> int:
        raise ZeroDivisionError("a number that nobody thought of")

    monkeypatch.setattr(RouteLearner, "take", broken)
    with caplog.at_level(logging.ERROR, "suffice.learning"):
        learning.step(1001.0)
        learning.step(1002.0)
    assert len([x for x in caplog.records if "nobody thought of" in x.getMessage()]) == 1
    assert "nobody thought of" in str(made.ready()["learning"])
    assert made.route("hi there").model
    monkeypatch.setattr(RouteLearner, "take", take)
    learning.step(1003.0)
    assert made.ready()["learning"] == {}
    assert learned(learning).learner.labels.sum() == pytest.approx(30, rel=0.05)


@pytest.mark.slow
def test_a_busy_route_is_not_refitted_all_the_time(made: Router) -> None:
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


# ── the operator ─────────────────────────────────────────────────────────────────────────────────


def test_what_an_operator_promotes_is_the_warm_start_from_then_on(tmp_path: Path) -> None:
    r = router(tmp_path)
    try:
        learning = r.start_learning(thread=False)
        learning.step(1000.0)
        teach(r, 60)
        learning.step(1010.0)
        mine = learned(learning)
        assert mine.base is None
        # A trained policy, made elsewhere: here what was learned, with its levels moved.
        found = mine.refit(1011.0)
        e = msgspec.structs.replace(found.estimator, intercept=found.estimator.intercept - 0.01)
        raw = artifacts.pack(msgspec.structs.replace(found, estimator=e))
        told = make_snapshot(
            route="auto", kind="brain", content=raw, created_s=1011.0, created_by="cli",
            card=msgspec.to_builtins(artifacts.unpack(raw).card),
        )  # fmt: skip
        r.store.registry.put(told)
        r.store.registry.promote("auto", told.version, by="someone", now_s=1012.0)
        learning.step(1013.0)
        base = learned(learning).base
        assert base is not None
        assert base.card.digest == artifacts.unpack(raw).card.digest
        assert learned(learning).learner.labels.sum() == pytest.approx(60, rel=0.05)
        teach(r, 80)
        learning.step(1100.0)  # the learner's own stands on it
        assert r.store.registry.current("auto") != told.version
        again = learning._base(learning._routes["auto"])
        assert again is not None
        assert again.card.digest == base.card.digest
    finally:
        r.close()
