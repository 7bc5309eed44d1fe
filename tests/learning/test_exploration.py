"""Exploration stays inside its three bounds, learns what it should, and can be snapshotted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.errors import ArtifactError
from suffice.learning.exploration import ThompsonSampler

MODELS = ("cheap", "middle", "dear")
PREDICTED = (0.7, 0.75, 0.8)
COST = (0.001, 0.002, 0.003)


def taught(seed: int = 0, n: int = 50) -> ThompsonSampler:
    rng = np.random.default_rng(seed)
    e = ThompsonSampler(("cheap", "middle"))
    for _ in range(n):
        j = int(rng.integers(3))
        e.update(MODELS[j], PREDICTED[j], float(rng.random()), float(rng.random()))
    return e


@st.composite
def questions(draw: st.DrawFn) -> dict[str, Any]:
    k = draw(st.integers(1, 6))
    number = st.floats(0.0, 1.0)
    money = st.one_of(st.floats(1e-7, 10.0), st.just(0.0), st.just(float("nan")))
    return {
        "models": [f"m{i}" for i in range(k)],
        "predicted_quality": draw(st.lists(number, min_size=k, max_size=k)),
        "cost_usd": draw(st.lists(money, min_size=k, max_size=k)),
        "chosen": draw(st.integers(0, k - 1)),
        "seed": draw(st.integers(0, 2**32)),
        "quality_per_usd": draw(st.sampled_from([0.0, 1.0, 100.0])),
        "spend_usd": draw(st.sampled_from([None, 0.0, 1e-4, 0.5])),
    }


@given(questions(), st.integers(0, 20), st.sampled_from([0.0, 0.01, 0.03]))
def test_bounds_hold_on_any_question(q: dict[str, Any], labels: int, share: float) -> None:
    e = ThompsonSampler(("m0", "m1"), explore_share=share, max_quality_gap=1.0, bound=3.0)
    for i in range(labels):
        e.update(f"m{i % 3}", 0.5, float(i % 2))
    draw = e.posterior().sample(**q)
    p = np.array(draw.propensities)
    other = np.arange(len(p)) != q["chosen"]
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert (p >= 0.0).all()
    assert p[draw.action] > 0.0
    assert draw.explored == (draw.action != q["chosen"])
    assert p[other].sum() <= share + 1e-12
    cost = np.array(q["cost_usd"])
    spend = cost[q["chosen"]] if q["spend_usd"] is None else q["spend_usd"]
    explored = float((p * np.where(p > 0.0, np.nan_to_num(cost), 0.0))[other].sum())
    assert explored <= 0.01 * np.nan_to_num(spend) + 1e-12
    assert not p[other & np.isnan(cost)].any()


def test_an_expensive_model_has_a_lower_floor_and_each_model_has_one() -> None:
    e = ThompsonSampler(MODELS, max_quality_gap=1.0)
    for _ in range(400):  # the choice is better for sure, so only floors are left
        e.update("cheap", 0.7, 1.0)
        e.update("middle", 0.75, 0.2)
        e.update("dear", 0.8, 0.2)
    p = e.posterior().sample(MODELS, PREDICTED, (0.001, 0.01, 1.0), 0, seed=1).propensities
    assert 0.0 < p[2] < p[1] < 0.01
    assert p[1] * 0.01 == pytest.approx(p[2] * 1.0)


def test_a_model_that_is_known_to_be_worse_is_not_explored() -> None:
    e = ThompsonSampler(MODELS, max_quality_gap=0.02)
    assert e.posterior().sample(MODELS, (0.8, 0.8, 0.8), COST, 1, seed=0).propensities[0] > 0.0
    for _ in range(200):
        e.update("cheap", 0.8, 0.3)
        e.update("middle", 0.8, 0.8)
    assert e.posterior().sample(MODELS, (0.8, 0.8, 0.8), COST, 1, seed=0).propensities[0] == 0.0


def test_the_draws_follow_the_propensities() -> None:
    e = ThompsonSampler(explore_share=0.03, max_quality_gap=1.0)
    n = 6000
    p = np.zeros(3)
    taken = np.zeros(3)
    for seed in range(n):
        draw = e.posterior().sample(MODELS, (0.7, 0.8, 0.8), (0.001, 0.001, 0.001), 1, seed=seed)
        p += draw.propensities
        taken[draw.action] += 1
    assert abs(taken - p).max() < 4.0 * np.sqrt(p[0] + p[2])


def test_same_seed_same_draw_and_drawing_changes_nothing() -> None:
    e = taught()
    before = e.state()
    first = [e.posterior().sample(MODELS, PREDICTED, COST, 0, seed=s) for s in range(50)]
    assert [
        taught().posterior().sample(MODELS, PREDICTED, COST, 0, seed=s) for s in range(50)
    ] == first
    assert e.state() == before
    assert len({d.propensities for d in first}) == 1, "a seed says which is taken, not how likely"
    assert {
        e.posterior().sample(MODELS, PREDICTED, COST, 0, seed=s).action for s in range(5000)
    } == {0, 1, 2}


def test_a_posterior_does_not_change_while_the_sampler_learns() -> None:
    e = taught()
    posterior = e.posterior()
    before = [posterior.sample(MODELS, PREDICTED, COST, 0, seed=s) for s in range(50)]
    for _ in range(100):
        e.update("dear", 0.8, 0.0)
    assert [posterior.sample(MODELS, PREDICTED, COST, 0, seed=s) for s in range(50)] == before
    assert e.posterior() is e.posterior()
    assert e.posterior() is not posterior
    assert e.posterior().sample(MODELS, PREDICTED, COST, 0, seed=1) != before[1]


def test_the_share_won_is_the_probability_of_being_best() -> None:
    e = ThompsonSampler(MODELS, explore_share=0.03, max_quality_gap=1.0)
    rng = np.random.default_rng(1)
    for i in range(90):
        e.update(MODELS[i % 3], PREDICTED[i % 3], float(rng.random() < 0.75))
    mean, deviation = e.posterior().quality(MODELS, PREDICTED)
    best = np.bincount((mean + deviation * rng.standard_normal((100_000, 3))).argmax(1)) / 100_000
    p = e.posterior().sample(MODELS, PREDICTED, COST, 1, seed=0, spend_usd=1.0).propensities
    for i in (0, 2):  # half of the share is floors
        assert p[i] == pytest.approx(0.015 * (0.5 + best[i]), abs=0.015 * 0.1)


def test_a_price_change_counts_at_once() -> None:
    e = ThompsonSampler()
    kind = {"seed": 3, "quality_per_usd": 50.0, "spend_usd": 0.1}
    expensive = (
        e.posterior()
        .sample(MODELS, (0.7, 0.7, 0.75), (0.001, 0.001, 0.05), 0, **kind)
        .propensities[2]
    )
    cheap = (
        e.posterior()
        .sample(MODELS, (0.7, 0.7, 0.75), (0.001, 0.001, 0.001), 0, **kind)
        .propensities[2]
    )
    assert cheap > 1.5 * expensive > 0.0


def test_a_new_model_is_explored_until_it_is_found_useful_or_not() -> None:
    for truth, useful in ((0.95, True), (0.4, False)):
        rng = np.random.default_rng(5)
        e = ThompsonSampler(("old",), explore_share=0.03)
        names, predicted, cost = ("old", "new"), (0.8, 0.75), (0.01, 0.001)
        taken = 0
        for seed in range(4000):
            quality, _ = e.posterior().quality(names, predicted)
            chosen = int(np.argmax(quality))
            j = e.posterior().sample(names, predicted, cost, chosen, seed=seed).action
            e.update(names[j], predicted[j], float(rng.random() < (0.8, truth)[j]))
            taken += j if seed >= 3000 else 0
        assert (taken > 900) if useful else (taken < 30)


def test_a_removed_model_is_forgotten() -> None:
    e = taught()
    e.retain(["cheap", "dear"])
    assert e.models == ("cheap", "dear")
    assert e.labels("middle") == 0.0
    quality, deviation = e.posterior().quality(["middle"], [0.75])
    assert quality[0] == 0.75
    assert deviation[0] == pytest.approx(0.2)


def test_forgetting_follows_a_drop_and_keeps_a_bounded_past() -> None:
    e = ThompsonSampler(("m",))
    for _ in range(3000):
        e.update("m", 0.9, 0.9)
    assert e.labels("m") == pytest.approx(1.0 / 0.003, rel=0.01)
    for _ in range(500):
        e.update("m", 0.9, 0.6)
    lasting = ThompsonSampler(("m",), forget=1.0)
    for y, n in ((0.9, 3000), (0.6, 500)):
        for _ in range(n):
            lasting.update("m", 0.9, y)
    assert (
        e.posterior().quality(["m"], [0.9])[0][0]
        < 0.70
        < 0.8
        < lasting.posterior().quality(["m"], [0.9])[0][0]
    )


def test_a_model_not_taken_for_long_becomes_uncertain_again() -> None:
    e = ThompsonSampler()
    for i in range(100):
        e.update("a", 0.8, 0.3 + 0.4 * (i % 2))
    mean, deviation = e.posterior().quality(["a"], [0.8])
    for i in range(3000):
        e.update("b", 0.8, 0.6 + 0.4 * (i % 2))
    later, wider = e.posterior().quality(["a"], [0.8])
    assert wider[0] > 1.3 * deviation[0]
    assert later[0] == mean[0]  # time alone is no evidence
    for _ in range(10):
        e.update("a", 0.8, 0.9)
    assert e.posterior().quality(["a"], [0.8])[0][0] > 0.75


def test_a_model_that_was_bad_for_a_while_comes_back() -> None:
    rng = np.random.default_rng(11)
    e = ThompsonSampler(("a", "b"), explore_share=0.03)
    cost, predicted = (0.001, 0.001), (0.9, 0.85)
    taken = []
    for i in range(6000):
        quality, _ = e.posterior().quality(("a", "b"), predicted)
        j = (
            e.posterior()
            .sample(("a", "b"), predicted, cost, int(np.argmax(quality)), seed=i)
            .action
        )
        truth = 0.6 if j == 0 and 1000 <= i < 2000 else (0.9, 0.85)[j]
        e.update("ab"[j], predicted[j], float(rng.random() < truth))
        taken.append(j)
    assert np.mean(taken[1500:2000]) > 0.9
    assert np.mean(taken[5000:]) < 0.1


def test_a_few_unlucky_labels_do_not_shut_out_a_model_that_was_learned() -> None:
    e = ThompsonSampler(("known",))
    for y in (0.5, 0.4, 0.9, 0.3, 0.9):
        e.update("known", 0.92, y)
        e.update("new", 0.92, y)
    mean, deviation = e.posterior().quality(("known", "new"), (0.92, 0.92))
    assert mean[1] < 0.8 < 0.88 < mean[0] < 0.92
    assert deviation[0] < 0.7 * deviation[1]


def test_it_is_the_bayesian_regression_it_says_without_forgetting() -> None:
    rng = np.random.default_rng(3)
    s, y = rng.random(40), rng.random(40)
    e = ThompsonSampler(forget=1.0)
    for a, b in zip(s, y, strict=True):
        e.update("m", a, b)
    # Prior: level N(0, 0.04) at the first score, slope N(1, 0.01); the noise is as first guessed.
    x = np.stack([np.ones(40), s - s[0]], axis=1)
    precision = np.diag([0.06 / 0.04, 0.06 / 0.01]) + x.T @ x
    beta = np.linalg.solve(precision, x.T @ (y - s))
    for q in (0.1, 0.5, 0.9):
        at = np.array([1.0, q - s[0]])
        mean, deviation = e.posterior().quality(["m"], [q])
        assert mean[0] == pytest.approx(q + at @ beta, rel=1e-9)
        noise = deviation[0] ** 2 / float(at @ np.linalg.solve(precision, at))
        assert 0.04 < noise < 0.25  # profiled, the same for every q
    w = ThompsonSampler(forget=1.0)
    for a, b in zip(s[::-1], y[::-1], strict=True):
        w.update("m", a, b)
    assert w.posterior().quality(["m"], [0.5])[0][0] == pytest.approx(
        e.posterior().quality(["m"], [0.5])[0][0], abs=0.05
    )


def test_weights_count_and_nothing_out_of_range_is_learned() -> None:
    half, whole = ThompsonSampler(("m",)), ThompsonSampler(("m",))
    for _ in range(20):
        half.update("m", 0.8, 0.2, 0.5)
        whole.update("m", 0.8, 0.2, 1.0)
    assert (
        whole.posterior().quality(["m"], [0.8])[0][0]
        < half.posterior().quality(["m"], [0.8])[0][0]
        < 0.8
    )
    before = half.state()
    half.update("m", 0.8, 0.0, 0.0)
    for bad in (
        (0.8, 1.5, 1.0),
        (0.8, float("nan"), 1.0),
        (float("inf"), 0.5, 1.0),
        (0.8, 0.5, 2.0),
    ):
        with pytest.raises(ValueError, match="expected"):
            half.update("m", *bad)
    assert half.state() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("explore_share", 0.2), ("max_cost_share", 0.5), ("draws", 4), ("forget", 0.0)],
)
def test_arguments_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        ThompsonSampler(**{name: value})
    with pytest.raises(ValueError, match="chosen"):
        ThompsonSampler().posterior().sample(MODELS, PREDICTED, COST, 3, seed=0)


def test_the_state_round_trips_and_goes_on_alike() -> None:
    e = taught()
    again = ThompsonSampler.from_state(e.state())
    assert again.state() == e.state()
    for one in (e, again):
        one.update("dear", 0.8, 0.1)
    assert again.posterior().sample(MODELS, PREDICTED, COST, 0, seed=9) == e.posterior().sample(
        MODELS, PREDICTED, COST, 0, seed=9
    )
    assert again.state() == e.state()


@given(st.data())
def test_a_changed_or_cut_state_is_refused(data: st.DataObject) -> None:
    raw = taught().state()
    if data.draw(st.booleans()):
        bad = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        at = data.draw(st.integers(0, len(raw) - 1))
        bad = raw[:at] + bytes([raw[at] ^ data.draw(st.integers(1, 255))]) + raw[at + 1 :]
    try:
        same = ThompsonSampler.from_state(bad)
    except ArtifactError:
        return
    # An unused bit of the archive's directory may differ; what was learned may not.
    assert same.state() == raw


def test_another_schema_is_named() -> None:
    from suffice.learning.regression import OnlineRegression

    one = np.ones(2, np.float32)
    state = OnlineRegression(("m",), one, one, 2).state()
    with pytest.raises(ArtifactError, match="schema 'learner-1'"):
        ThompsonSampler.from_state(state)
