"""The learner learns topics from partial feedback, exactly once, and cannot be poisoned by one."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from suffice.errors import ArtifactError
from suffice.learning.label_limits import SourceLimiter, SourceLimits
from suffice.learning.posterior import Posterior, Prior
from suffice.learning.regression import (
    PRIOR_LABELS,
    LabelBatch,
    OnlineRegression,
    design,
    uninformed_prior,
)

SIGNALS, DIMENSIONS = 4, 128
MODELS = ("a", "b")
MEAN, DEVIATION = np.zeros(SIGNALS, np.float32), np.ones(SIGNALS, np.float32)
OPEN = SourceLimits(share=1.0)


class World(NamedTuple):
    """Two topics that the vector distinguishes; model a is good at one, b at the other."""

    signals: NDArray[np.float32]
    vectors: NDArray[np.float32]
    quality: NDArray[np.float64]  # (n, 2)


def world(n: int, seed: int) -> World:
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, 2, n)
    centres = np.random.default_rng(99).normal(size=(2, DIMENSIONS)) * 0.04
    vectors = (
        centres[topic] + rng.normal(size=(n, DIMENSIONS)) * 0.07
    )  # of the shipped table's size
    quality = np.where(topic[:, None] == np.arange(2), 0.9, 0.5)
    signals = rng.normal(size=(n, SIGNALS))
    return World(signals.astype(np.float32), vectors.astype(np.float32), quality)


def rows(w: World, arm: NDArray[np.intp], seed: int, first: int = 0, **more: object) -> LabelBatch:
    n = len(arm)
    scores = np.random.default_rng(seed).random(n) < w.quality[np.arange(n), arm]
    kind = {
        "ids": np.arange(first, first + n),
        "signals": w.signals,
        "vectors": w.vectors,
        "models": [MODELS[j] for j in arm],
        "scores": scores.astype(float),
        "sources": ["user"] * n,
        "times_s": np.zeros(n),
        **more,
    }
    return LabelBatch(**kind)  # type: ignore[arg-type]


def part(r: LabelBatch, at: slice) -> LabelBatch:
    return LabelBatch(
        r.ids[at], r.signals[at], r.vectors[at], r.models[at], r.scores[at], r.sources[at],
        r.times_s[at], None if r.weights is None else r.weights[at],
    )  # fmt: skip


def learner(**kind: object) -> OnlineRegression:
    kind.setdefault("limits", OPEN)
    return OnlineRegression(MODELS, MEAN, DEVIATION, DIMENSIONS, **kind)  # type: ignore[arg-type]


def value(fit: Posterior, w: World) -> float:
    """Mean quality of taking the model that is predicted best."""
    x = design(w.signals, w.vectors, MEAN, DEVIATION)
    at = np.argmax(fit.intercept + x @ fit.weights, axis=1)
    return float(w.quality[np.arange(len(at)), at].mean())


def test_topics_are_learned_from_feedback_on_the_model_taken_alone() -> None:
    rng = np.random.default_rng(101)
    w, fresh = world(1000, 1), world(4000, 2)
    one = learner()
    taken = one.partial_fit(rows(w, rng.integers(0, 2, 1000), 3))
    assert taken.learned == 1000
    fit = one.posterior()
    # A constant reaches 0.70, an oracle 0.90.
    assert value(fit, fresh) > 0.82
    assert fit.labels.sum() == pytest.approx(1000, rel=0.25)
    assert fit.weights.shape == (SIGNALS + DIMENSIONS, 2)


def test_topics_are_learned_by_taking_what_is_believed_best() -> None:
    """The loop itself: nearly all feedback is on the policy's own choices."""
    w, fresh = world(1000, 4), world(4000, 5)
    rng = np.random.default_rng(6)
    one = learner()
    x = design(w.signals, w.vectors, MEAN, DEVIATION)
    for at in range(0, 1000, 50):
        fit = one.posterior()
        piece = slice(at, at + 50)
        best = np.argmax(fit.intercept + x[piece] @ fit.weights, axis=1)
        arm = np.where(rng.random(50) < 0.03, 1 - best, best)
        some = World(w.signals[piece], w.vectors[piece], w.quality[piece])
        one.partial_fit(rows(some, arm, at, first=at))
    assert value(one.posterior(), fresh) > 0.80


def test_without_labels_it_is_the_warm_start_exactly() -> None:
    rng = np.random.default_rng(0)
    p = SIGNALS + DIMENSIONS
    prior = Prior(rng.normal(size=(p, 2)), np.array([0.6, 0.8]), np.full(2, PRIOR_LABELS))
    fit = learner(prior=prior).posterior()
    assert np.array_equal(fit.weights, prior.weights)
    assert np.array_equal(fit.intercept, prior.intercept)


@pytest.mark.parametrize("n", [20, 100, 1000])
def test_a_right_warm_start_is_hardly_lost(n: int) -> None:
    w, fresh = world(2000, 7), world(4000, 8)
    teacher = learner()
    teacher.partial_fit(rows(w, np.arange(2000) % 2, 9))
    good = teacher.posterior()
    prior = Prior(good.weights, good.intercept, np.full(2, PRIOR_LABELS))
    start = value(good, fresh)
    for seed in range(5):
        more = world(n, 100 + seed)
        one = learner(prior=prior)
        one.partial_fit(rows(more, np.random.default_rng(seed).integers(0, 2, n), seed))
        assert value(one.posterior(), fresh) > start - 0.02


def test_labels_of_one_model_do_not_move_it_against_the_others_by_all_they_say() -> None:
    """Everything became harder: with labels of both the order stays, and both are expected less."""
    w = world(600, 10)
    hard = World(w.signals, w.vectors, np.full((600, 2), 0.3))
    one = learner(prior=uninformed_prior(MODELS, [0.8, 0.8], SIGNALS + DIMENSIONS))
    one.partial_fit(rows(hard, np.zeros(600, np.intp), 11))
    fit = one.posterior()
    assert fit.intercept[0] == pytest.approx(0.3, abs=0.08)
    assert fit.intercept[1] < 0.8  # what they share, b has heard of as well


@settings(max_examples=20)
@given(st.lists(st.integers(0, 60), max_size=4), st.booleans())
def test_every_row_counts_once_however_batched_repeated_or_restarted(
    cuts: list[int], restart: bool
) -> None:
    w = world(60, 12)
    rng = np.random.default_rng(13)
    r = rows(
        w, rng.integers(0, 2, 60), 14, weights=rng.random(60),
        sources=[f"s{i % 3}" for i in range(60)], times_s=np.arange(60.0),
    )  # fmt: skip
    limits = SourceLimits(share=0.3, min_labels=5.0)
    whole = learner(limits=limits)
    whole.partial_fit(r)
    pieces = learner(limits=limits)
    for cut in [*sorted(cuts), 60]:
        pieces.partial_fit(
            part(r, slice(0, cut))
        )  # always from the start: what is known is passed over
        if restart:
            pieces = OnlineRegression.from_state(pieces.state())
    assert pieces.cursor == whole.cursor == 59
    assert np.allclose(pieces.labels, whole.labels, rtol=1e-12)
    for a, b in zip(pieces.posterior()[:2], whole.posterior()[:2], strict=True):
        assert np.allclose(a, b, rtol=1e-8, atol=1e-10)
    assert whole.partial_fit(r)[:3] == (0, 60, 0)


def test_wrong_rows_are_refused_and_counted_and_the_rest_is_learned() -> None:
    w = world(6, 15)
    r = rows(w, np.zeros(6, np.intp), 16)
    signals = r.signals.copy()
    signals[2, 0] = np.nan
    bad = LabelBatch(
        r.ids, signals, r.vectors, ["a", "gone", "a", "a", "a", "a"],
        np.array([1.0, 1.0, 1.0, 1.5, np.nan, 0.0]), r.sources, r.times_s,
    )  # fmt: skip
    one = learner()
    taken = one.partial_fit(bad)
    assert (taken.learned, taken.refused) == (2, 4)
    assert taken.counted.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert one.cursor == 5
    with pytest.raises(ValueError, match="vectors"):
        one.partial_fit(
            LabelBatch(r.ids, r.signals, r.signals, r.models, r.scores, r.sources, r.times_s)
        )
    with pytest.raises(ValueError, match="ascending"):
        one.partial_fit(part(r, slice(None, None, -1)))


def test_old_labels_fade() -> None:
    w = world(3000, 17)
    one = learner(forget=0.999)
    one.partial_fit(rows(w, np.zeros(3000, np.intp), 18))
    assert one.labels[0] == pytest.approx(1000, rel=0.06)


@pytest.mark.parametrize(("before", "after"), [(1.0, 0.25), (0.25, 1.0), (1.0, 0.0), (0.5, 0.5)])
def test_a_replaced_score_is_subtracted_with_its_former_weight(before: float, after: float) -> None:
    w, arm = world(40, 51), np.arange(40) % 2
    first = rows(w, arm, 52, weights=np.full(40, before))
    again = rows(
        w, arm, 53, first=40, weights=np.full(40, after),
        replaced=first.scores, replaced_weights=np.full(40, before),
    )  # fmt: skip
    changed, only_last = learner(forget=1.0), learner(forget=1.0)
    changed.partial_fit(first)
    changed.partial_fit(again)
    only_last.partial_fit(rows(w, arm, 53, weights=np.full(40, after)))
    ours, expected = changed.statistics, only_last.statistics
    np.testing.assert_allclose(ours.weight, expected.weight, atol=1e-9)
    np.testing.assert_allclose(ours.moment, expected.moment, atol=1e-9)
    np.testing.assert_allclose(ours.gram, expected.gram, atol=1e-9)


def test_a_source_over_its_limit_removes_nothing_by_replacing_its_scores() -> None:
    w, arm = world(300, 54), np.zeros(300, np.intp)
    one = learner(forget=1.0, limits=SourceLimits(share=0.3, min_labels=20.0))
    one.partial_fit(rows(w, arm, 55, sources=["honest"] * 20 + ["flood"] * 280))
    learned = float(one.labels.sum())
    assert learned < 60.0, "the flood counts for little"
    ones = np.ones(280)
    scores = rows(part_of(w, 20), arm[:280], 56, first=300, sources=["flood"] * 280)
    one.partial_fit(msgspec.structs.replace(scores, replaced=ones, replaced_weights=ones))
    assert one.labels.sum() >= learned - 1e-9


def part_of(w: World, start: int) -> World:
    return World(w.signals[start:], w.vectors[start:], w.quality[start:])


def test_scores_replaced_after_they_had_faded_do_not_stop_a_refit() -> None:
    one = learner(forget=0.95)
    w = world(20, 40)._replace(signals=np.full((20, SIGNALS), 4.0, np.float32))
    arm = np.zeros(20, np.intp)
    one.partial_fit(rows(w, arm, 41))
    one.partial_fit(rows(world(200, 42), np.arange(200) % 2, 43, first=20))
    all_of_it = np.ones(20)
    one.partial_fit(rows(w, arm, 44, first=220, replaced=all_of_it, replaced_weights=all_of_it))
    # More was taken off than was left of them: these are the sums of no set of queries any more.
    assert np.linalg.eigvalsh(one.statistics.gram[0]).min() < -200.0
    fit = one.posterior()
    assert np.isfinite(fit.weights).all()
    assert np.isfinite(fit.intercept).all()
    assert np.isfinite([fit.model_scale, fit.shared_scale, fit.noise]).all()


def test_a_drop_is_learned_again() -> None:
    fresh = world(3000, 21)
    w = world(2000, 22)
    one = learner(forget=0.998)
    arm = np.arange(2000) % 2
    one.partial_fit(rows(w, arm, 23))
    swapped = World(w.signals, w.vectors, w.quality[:, ::-1].copy())
    one.partial_fit(rows(swapped, arm, 24, first=2000))
    now = World(fresh.signals, fresh.vectors, fresh.quality[:, ::-1].copy())
    assert value(one.posterior(), now) > 0.8


def poisoned(limits: SourceLimits) -> float:
    """Five honest clients with 200 labels each, one that floods 5,000 inverted ones."""
    rng = np.random.default_rng(25)
    n = 6000
    w = world(n, 26)
    liar = rng.permutation(n) < 5000
    arm = rng.integers(0, 2, n)
    r = rows(w, arm, 27)
    scores = np.where(liar, 1.0 - r.scores, r.scores)
    sources = [("liar" if bad else f"client{i % 5}") for i, bad in enumerate(liar)]
    one = learner(limits=limits)
    one.partial_fit(
        LabelBatch(r.ids, r.signals, r.vectors, r.models, scores, sources, np.linspace(0, 3600, n))
    )
    return value(one.posterior(), world(4000, 28))


def test_one_client_cannot_poison_the_route() -> None:
    assert poisoned(OPEN) < 0.6  # without a limit the flood wins: the models are swapped
    assert poisoned(SourceLimits(share=0.2, min_labels=50.0)) > 0.8


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(0.0, 1.0), st.floats(0.0, 1e6)), max_size=200
    ),
    st.floats(0.05, 0.9),
    st.floats(0.0, 20.0),
)
def test_no_source_passes_its_share(
    labels: list[tuple[str, float, float]], share: float, least: float
) -> None:
    ration = SourceLimiter(SourceLimits(share=share, min_labels=least, window_s=1e9))
    counted = dict.fromkeys("abc", 0.0)
    for source, weight, now in sorted(labels, key=lambda r: r[2]):
        got = ration.admit(source, weight, now)
        assert 0.0 <= got <= weight
        counted[source] += got
        if got > 0.0:
            others = sum(counted.values()) - counted[source]
            assert counted[source] <= max(least, share / (1 - share) * others) * 1.01 + 1e-9
    assert SourceLimiter.from_state(ration.state()).state() == ration.state()


def test_a_limit_fades_with_time_and_trusted_sources_have_none() -> None:
    ration = SourceLimiter(
        SourceLimits(min_labels=10.0, window_s=100.0, trusted=frozenset({"judge"}))
    )
    assert sum(ration.admit("x", 1.0, 0.0) for _ in range(50)) == 10.0
    assert sum(ration.admit("x", 1.0, 300.0) for _ in range(50)) > 9.0
    assert sum(ration.admit("judge", 1.0, 300.0) for _ in range(500)) == 500.0
    for bad in ({"share": 0.0}, {"min_labels": -1.0}, {"window_s": 0.0}):
        with pytest.raises(ValueError, match="limits"):
            SourceLimits(**bad)


def test_models_come_and_go() -> None:
    w = world(400, 29)
    one = learner()
    one.partial_fit(rows(w, np.arange(400) % 2, 30))
    p = SIGNALS + DIMENSIONS
    two = one.with_models(("b", "new"), uninformed_prior(("b", "new"), [0.75, 0.6], p))
    fit = two.posterior()
    assert two.cursor == one.cursor
    assert two.labels.tolist() == [one.labels[1], 0.0]
    assert fit.intercept[0] == pytest.approx(one.posterior().intercept[1], abs=0.03)
    assert fit.intercept[1] == pytest.approx(0.6, abs=0.1)
    back = two.partial_fit(rows(world(5, 31), np.zeros(5, np.intp), 32, first=400))
    assert back.refused == 5  # "a" is not on the route any more


def test_the_state_round_trips_and_a_changed_one_is_refused() -> None:
    one = learner(limits=SourceLimits(min_labels=30.0))
    one.partial_fit(rows(world(50, 33), np.arange(50) % 2, 34))
    raw = one.state()
    again = OnlineRegression.from_state(raw)
    assert again.state() == raw
    assert np.array_equal(again.posterior().weights, one.posterior().weights)
    rng = np.random.default_rng(0)
    for _ in range(60):
        at = int(rng.integers(len(raw)))
        bad = raw[:at] + bytes([raw[at] ^ int(rng.integers(1, 256))]) + raw[at + 1 :]
        try:
            same = OnlineRegression.from_state(bad)
        except ArtifactError:
            continue
        assert same.state() == raw
    for cut in (0, 10, len(raw) // 2, len(raw) - 1):
        with pytest.raises(ArtifactError):
            OnlineRegression.from_state(raw[:cut])


def test_shapes_are_checked_and_named() -> None:
    with pytest.raises(ValueError, match="models"):
        OnlineRegression(("a", "a"), MEAN, DEVIATION, DIMENSIONS)
    with pytest.raises(ValueError, match=r"prior\.weights"):
        learner(prior=uninformed_prior(MODELS, [0.5, 0.5], 3))
    with pytest.raises(ValueError, match="forget"):
        learner(forget=0.1)
    with pytest.raises(ValueError, match="std"):
        OnlineRegression(MODELS, MEAN, np.zeros(SIGNALS, np.float32), DIMENSIONS)
