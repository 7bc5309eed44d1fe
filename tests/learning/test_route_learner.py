"""What a route learns: replaced scores, limits of clients, costs of replies, a pool that changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support.feedback import CODE, PROSE, decided, record, router, settings, teach

from suffice import Router, features
from suffice.config import parse_settings
from suffice.learning.label_limits import SourceLimiter, limits_for_clients
from suffice.learning.route_learner import RouteLearner
from suffice.learning.worker import LearningWorker


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Router]:
    r = router(tmp_path)
    yield r
    r.close()


def learned(learning: LearningWorker) -> RouteLearner:
    return learning.learners["auto"]


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
    mine = learning.learners["auto"].regression
    assert mine.labels[0] == pytest.approx(30, rel=0.05)
    assert mine.statistics.moment[0, 0] == pytest.approx(30, rel=0.05)  # the sum of scores


def test_a_gateway_without_keys_learns_from_all_feedback(
    made: Router,
) -> None:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 400)  # all of "user": with a limit a source, a hundred a day would count
    learning.step(1010.0)
    assert learned(learning).regression.labels.sum() == pytest.approx(400, rel=0.1)


def test_one_of_many_clients_cannot_teach_alone(
    tmp_path: Path,
) -> None:
    made = router(tmp_path, env={"SUFFICE_API_KEYS": "a,b,c,d,e"})
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 500, key="key-of-one", source="user{}")
    learning.step(1010.0)
    assert learned(learning).regression.labels.sum() <= 300
    teach(made, 60, key="key-of-another")
    learning.step(1020.0)
    assert learned(learning).regression.limiter.weight_of("key-of-another") == pytest.approx(60)
    made.close()


def test_few_clients_do_not_block_each_other() -> None:
    assert limits_for_clients(0) == limits_for_clients(1)
    for clients in (1, 2, 3, 5, 8, 20):
        limiter = SourceLimiter(limits_for_clients(clients))
        counted = [limiter.admit(f"c{i % clients}", 1.0, 0.0) for i in range(clients * 2000)]
        assert sum(counted) == len(counted)


def test_costs_are_predicted_from_the_costs_of_replies(made: Router) -> None:
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


def test_a_cost_below_that_of_the_prompt_is_ignored(made: Router) -> None:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 60, tokens=-400)  # a cost below that of the prompt: a discount we know nothing of
    learning.step(1010.0)
    mine = learned(learning)
    assert mine.reply_lengths.totals == {}
    assert mine.reply_lengths.means(mine.names) == pytest.approx([430.0, 430.0])


def test_a_model_that_moves_to_another_provider_keeps_its_labels(
    tmp_path: Path,
) -> None:
    r = router(tmp_path)
    learning = r.start_learning(thread=False)
    learning.step(1000.0)
    teach(r, 200)
    learning.step(1010.0)
    before = learned(learning).regression.labels
    tokens = learned(learning).reply_lengths.totals["p/coder"]
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
        assert mine.regression.labels[0] == pytest.approx(before[0] + 1, rel=0.01)
        assert mine.regression.labels[1] == pytest.approx(before[1])
        assert mine.reply_lengths.totals["q/coder"][0] == pytest.approx(tokens[0] + 1, rel=0.01)
        assert r.route(CODE.format("config")).model == "q/coder"
    finally:
        r.close()


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
        assert set(learning.learners["auto"].names) == {"p/coder", "p/new"}
    finally:
        r.close()
