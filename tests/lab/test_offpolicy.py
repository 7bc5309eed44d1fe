"""Off-policy estimators against their definitions, against exact expectation, and their refusals."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.lab.ope import estimators, intervals
from suffice.lab.ope.estimators import LoggedData


def random_log(
    seed: int, n: int = 60, k: int = 3, unlabelled: float = 0.2
) -> tuple[LoggedData, Any, Any]:
    """(log, pi, q): n decisions over k models, some unlabelled, in sessions of random size."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(k, 0.7), n) * 0.9 + 0.1 / k
    action = (rng.random(n)[:, None] > p.cumsum(axis=1)).sum(axis=1).clip(0, k - 1)
    reward = np.where(rng.random(n) < unlabelled, np.nan, rng.random(n))
    reward[:2] = 0.5
    session = rng.integers(0, max(2, n // 3), n)
    log = LoggedData(action, p[np.arange(n), action], reward, p, session)
    return log, rng.dirichlet(np.ones(k), n), rng.random((n, k))


def by_definition(log: LoggedData, pi: Any, q: Any) -> dict[str, float]:
    """The definitions, one decision after another."""
    ips = snips = dr = dm = total = 0.0
    m = 0
    for i in range(len(log)):
        r = float(log.reward[i])
        if r != r:
            continue
        m += 1
        a = int(log.action[i])
        w = float(pi[i, a]) / float(log.propensity[i])
        expected = sum(float(pi[i, j]) * float(q[i, j]) for j in range(pi.shape[1]))
        ips += w * r
        snips += w * r
        total += w
        dm += expected
        dr += expected + w * (r - float(q[i, a]))
    return {"ips": ips / m, "snips": snips / total, "dr": dr / m, "dm": dm / m}


@given(seed=st.integers(0, 10_000), n=st.integers(3, 80), k=st.integers(2, 6))
def test_the_estimators_are_their_definitions(seed: int, n: int, k: int) -> None:
    log, pi, q = random_log(seed, n, k)
    want = by_definition(log, pi, q)
    got = {
        "ips": estimators.ips(log, pi).value,
        "snips": estimators.snips(log, pi).value,
        "dr": estimators.doubly_robust(log, pi, q).value,
        "dm": estimators.direct(log, pi, q).value,
    }
    assert got == pytest.approx(want, abs=1e-9)


def test_estimators_are_unbiased_by_exact_enumeration() -> None:
    """Three decisions, every possible log weighed by its probability: IPS and doubly robust are
    right on average even with a reward model that is wrong, the direct method is not."""
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.25, 0.25, 0.5]])
    pi = np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [0.2, 0.3, 0.5]])
    truth = np.array([[0.1, 0.9, 0.4], [0.8, 0.2, 0.3], [0.6, 0.5, 0.7]])
    q = np.full((3, 3), 0.95)
    at = np.arange(3)
    mean = {"ips": 0.0, "dr": 0.0, "dm": 0.0}
    for actions in product(range(3), repeat=3):
        a = np.array(actions)
        chance = float(p[at, a].prod())
        log = LoggedData(a, p[at, a], truth[at, a], p)
        mean["ips"] += chance * estimators.ips(log, pi).value
        mean["dr"] += chance * estimators.doubly_robust(log, pi, q).value
        mean["dm"] += chance * estimators.direct(log, pi, q).value
    value = float((pi * truth).sum(axis=1).mean())
    assert mean["ips"] == pytest.approx(value, abs=1e-12)
    assert mean["dr"] == pytest.approx(value, abs=1e-12)
    assert mean["dm"] == pytest.approx(0.95, abs=1e-12)


def test_the_logging_policy_is_worth_what_was_observed() -> None:
    log, _, q = random_log(3)
    assert log.propensities is not None
    base = estimators.on_policy_value(log).value
    assert estimators.ips(log, log.propensities).value == pytest.approx(base, abs=1e-12)
    assert estimators.snips(log, log.propensities).value == pytest.approx(base, abs=1e-12)
    for terms in (estimators.ips, estimators.snips):
        estimate = intervals.estimate_policy_value(terms(log, log.propensities), log)
        width = estimate.difference_high - estimate.difference_low
        assert abs(estimate.difference) < 1e-9 and width < 1e-6, (
            "the difference of paired values does not vary"
        )
    perfect = np.where(np.isnan(log.reward), 0.0, log.reward)[:, None] * np.ones(3)
    estimate = intervals.estimate_policy_value(
        estimators.doubly_robust(log, log.propensities, perfect), log
    )
    assert estimate.value == pytest.approx(base, abs=1e-12)
    assert q.shape == perfect.shape


def test_missing_feedback_is_not_negative() -> None:
    log, pi, q = random_log(5, n=200, unlabelled=0.5)
    seen = log.labelled
    assert log.propensities is not None and log.session is not None
    only = LoggedData(
        log.action[seen], log.propensity[seen], log.reward[seen], log.propensities[seen],
        log.session[seen],
    )  # fmt: skip
    a = intervals.estimate_policy_value(estimators.doubly_robust(log, pi, q), log)
    b = intervals.estimate_policy_value(estimators.doubly_robust(only, pi[seen], q[seen]), only)
    assert a.value == pytest.approx(b.value, abs=1e-12)
    assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=0.02)
    nothing = LoggedData(log.action, log.propensity, np.full(200, np.nan), log.propensities)
    assert np.isnan(estimators.ips(nothing, pi).value)
    assert np.isnan(intervals.estimate_policy_value(estimators.snips(nothing, pi), nothing).low)


def test_effective_sample_size_counts_units() -> None:
    w = np.array([1.0, 1.0, 1.0, 1.0])
    assert estimators.effective_sample_size(w) == pytest.approx(4.0)
    assert estimators.effective_sample_size(w, np.array([0, 0, 1, 1])) == pytest.approx(2.0)
    assert estimators.effective_sample_size(np.array([40.0, 0, 0, 0])) == pytest.approx(1.0)
    assert estimators.effective_sample_size(np.zeros(4)) == 0.0


def test_support_is_the_mass_on_models_with_propensity() -> None:
    p = np.array([[1.0, 0.0], [0.5, 0.5]])
    pi = np.array([[0.25, 0.75], [0.0, 1.0]])
    assert estimators.support(p, pi) == pytest.approx([0.25, 1.0])


def sticky(
    rng: np.random.Generator, sessions: int, turns: int
) -> tuple[LoggedData, np.ndarray, np.ndarray]:
    """Conversations that keep the model of their first turn, of one difficulty each."""
    hard = np.repeat(rng.random(sessions), turns)
    first = rng.integers(0, 2, sessions)
    action = np.repeat(first, turns)
    n = sessions * turns
    score = np.stack([1 - hard, 1 - 0.5 * hard], axis=1)
    reward = (rng.random(n) < score[np.arange(n), action]).astype(float)
    log = LoggedData(
        action, np.full(n, 0.5), reward, np.full((n, 2), 0.5), np.repeat(np.arange(sessions), turns)
    )
    return log, np.tile([0.0, 1.0], (n, 1)), score


def test_intervals_are_wider_for_turns_of_one_session() -> None:
    log, pi, _ = sticky(np.random.default_rng(0), 150, 10)
    alone = LoggedData(log.action, log.propensity, log.reward, log.propensities)
    for method in ("bootstrap", "asymptotic"):
        wide = intervals.estimate_policy_value(estimators.ips(log, pi), log, method=method)
        narrow = intervals.estimate_policy_value(estimators.ips(alone, pi), alone, method=method)
        assert wide.value == narrow.value
        assert wide.high - wide.low > 1.8 * (narrow.high - narrow.low)


@pytest.mark.parametrize("method", ["bootstrap", "asymptotic"])
def test_clustered_intervals_cover_if_simple_ones_do_not(method: Any) -> None:
    inside = {"clustered": 0, "simple": 0}
    runs = 150
    for run in range(runs):
        log, pi, _ = sticky(np.random.default_rng(run), 80, 8)
        alone = LoggedData(log.action, log.propensity, log.reward, log.propensities)
        for name, data in (("clustered", log), ("simple", alone)):
            e = intervals.estimate_policy_value(
                estimators.ips(data, pi), data, method=method, resamples=300, seed=run
            )
            inside[name] += e.low <= 0.75 <= e.high  # 1 - 0.5 x mean difficulty
    assert inside["clustered"] >= 0.88 * runs
    assert inside["simple"] < 0.8 * runs


def test_the_seed_determines_the_interval() -> None:
    log, pi, _ = random_log(9, n=120)
    terms = estimators.snips(log, pi)
    assert intervals.estimate_policy_value(terms, log, seed=4) == intervals.estimate_policy_value(
        terms, log, seed=4
    )
    assert intervals.estimate_policy_value(terms, log, seed=4) != intervals.estimate_policy_value(
        terms, log, seed=5
    )


def test_missing_support_widens_intervals() -> None:
    e = intervals.Estimate(0.5, 0.4, 0.6, 0.1, 0.05, 0.15)
    wide = intervals.widen(e, 0.03)
    assert (wide.low, wide.high) == pytest.approx((0.37, 0.63))
    assert (wide.difference_low, wide.difference_high) == pytest.approx((0.02, 0.18))
    assert intervals.widen(e, 0.0) == e


@pytest.mark.parametrize(("sessions", "quantile"), [(2, 12.706), (3, 4.303), (6, 2.571)])
def test_intervals_of_few_sessions_use_the_exact_t_quantile(sessions: int, quantile: float) -> None:
    reward = np.linspace(0.0, 1.0, sessions)
    p = np.ones((sessions, 1))
    log = LoggedData(np.zeros(sessions, np.intp), p[:, 0], reward, p)
    error = reward.std(ddof=1) / np.sqrt(sessions)
    score = intervals.estimate_policy_value(
        estimators.on_policy_value(log), log, method="asymptotic"
    )
    assert score.high - score.value == pytest.approx(quantile * error, rel=1e-3)
    # One model predicts 1 USD for each query and costs 1 USD or more: the ratio has that error.
    other = LoggedData(np.zeros(sessions, np.intp), p[:, 0], reward, p)
    cost = intervals.estimate_cost(other, p, np.ones((sessions, 1)), 1.0 + reward)
    shrunk = sessions / (sessions + 5)  # of the ratio, by its prior
    assert cost.high - cost.value == pytest.approx(shrunk * quantile * error, rel=1e-3)


# ── cost ─────────────────────────────────────────────────────────────────────────────────────────


def test_cost_is_the_predicted_cost_scaled_by_paid_over_predicted() -> None:
    rng = np.random.default_rng(1)
    n = 4000
    predicted = np.stack([np.full(n, 0.001), np.full(n, 0.01)], axis=1) * rng.uniform(
        0.5, 2, (n, 1)
    )
    # The cheap model's answers are twice as long as predicted, the expensive one's half as long.
    real = predicted * np.array([2.0, 0.5])
    action = (rng.random(n) < 0.3).astype(np.intp)
    p = np.tile([0.7, 0.3], (n, 1))
    paid = real[np.arange(n), action] * rng.lognormal(-0.02, 0.2, n)
    paid[:50] = np.nan
    log = LoggedData(action, p[np.arange(n), action], np.full(n, np.nan), p)
    pi = np.tile([0.0, 1.0], (n, 1))
    estimate = intervals.estimate_cost(log, pi, predicted, paid)
    assert estimate.decisions == n - 50
    assert estimate.low < real[:, 1].mean() < estimate.high
    assert estimate.ratio == pytest.approx([2.0, 0.5], rel=0.05)
    assert estimate.paid == pytest.approx(np.nanmean(paid))
    assert estimate.difference == pytest.approx(estimate.value - estimate.paid)
    # Importance weights do not enter: propensities are irrelevant.
    other = LoggedData(action, np.full(n, 0.01), log.reward)
    assert intervals.estimate_cost(other, pi, predicted, paid).value == estimate.value


def test_unknown_costs_are_left_out_and_never_zero() -> None:
    p = np.tile([0.5, 0.5], (4, 1))
    log = LoggedData(np.array([0, 1, 0, 1]), np.full(4, 0.5), np.full(4, np.nan), p)
    predicted = np.array([[1.0, np.nan]] * 4)
    paid = np.array([1.0, 2.0, 1.0, np.nan])
    first = intervals.estimate_cost(log, np.tile([1.0, 0.0], (4, 1)), predicted, paid)
    assert (first.value, first.decisions) == (pytest.approx(1.0), 2)
    second = intervals.estimate_cost(log, np.tile([0.0, 1.0], (4, 1)), predicted, paid)
    assert np.isnan(second.value) and second.decisions == 0


# ── whether the log can be believed ──────────────────────────────────────────────────────────────


def test_wrong_propensities_have_large_z_scores() -> None:
    rng = np.random.default_rng(0)
    p = np.tile([0.9, 0.1], (2000, 1))
    honest = (rng.random(2000) > 0.9).astype(np.intp)
    assert np.abs(estimators.propensity_z_scores(honest, p)).max() < 4
    liar = (rng.random(2000) > 0.7).astype(np.intp)
    assert np.abs(estimators.propensity_z_scores(liar, p)).max() > 10
    certain = np.tile([1.0, 0.0], (5, 1))
    assert estimators.propensity_z_scores(np.zeros(5, np.intp), certain) == pytest.approx(
        [0.0, 0.0]
    )
    assert np.abs(estimators.propensity_z_scores(np.array([0, 1, 0, 0, 0]), certain)).min() > 10


def test_labels_that_depend_on_the_model_are_detected() -> None:
    rng = np.random.default_rng(0)
    action = rng.integers(0, 2, 1000)
    assert not estimators.labels_missing_not_at_random(action, rng.random(1000) < 0.5, 2)
    assert estimators.labels_missing_not_at_random(
        action, rng.random(1000) < np.where(action == 0, 0.3, 0.7), 2
    )
    assert not estimators.labels_missing_not_at_random(action, np.zeros(1000, bool), 2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"propensity": np.array([0.0, 0.5])}, "propensity"),
        ({"propensity": np.array([0.5, np.nan])}, "propensity"),
        ({"propensity": np.array([0.5])}, "propensity"),
        ({"reward": np.array([0.5, 1.5])}, "reward"),
        ({"session": np.array([0])}, "session"),
        ({"propensities": np.array([[0.5, 0.5]])}, "propensities"),
        ({"propensities": np.array([[0.9, 0.1], [0.5, 0.5]])}, "propensities"),
    ],
)
def test_bad_input_names_its_field(change: dict[str, Any], named: str) -> None:
    fields = {
        "action": np.array([0, 1]),
        "propensity": np.array([0.5, 0.5]),
        "reward": np.array([0.5, np.nan]),
    }
    with pytest.raises(ValueError, match=f"^{named}"):
        LoggedData(**{**fields, **change})


@pytest.mark.parametrize(
    "pi", [np.ones((2, 2)), np.array([[1.5, -0.5], [1.0, 0.0]]), np.array([[1.0, 0.0]])]
)
def test_an_action_dist_that_is_not_a_distribution_is_refused(pi: Any) -> None:
    log = LoggedData(np.array([0, 1]), np.array([0.5, 0.5]), np.array([0.5, 1.0]))
    with pytest.raises(ValueError, match=r"^action_dist"):
        estimators.ips(log, pi)


def test_the_docs_page_shows_the_committed_results() -> None:
    root = Path(__file__).parents[2]
    runner = root / "benchmarks/quality/offpolicy.py"
    page = root / "docs/concepts/off-policy-evaluation.md"
    done = subprocess.run(
        [sys.executable, runner, "--out", runner.parent / "results", "--page", page, "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
