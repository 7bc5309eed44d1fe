"""Certified thresholds: bounds against their definitions, coverage by simulation, and the walk."""

from __future__ import annotations

from math import ceil, e, exp, log, log1p, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from suffice.lab.calibrate import risk_control as c
from suffice.lab.calibrate.risk_control import Kind, RiskControlResult, fixed_sequence_test
from suffice.lab.stats import binomial_cdf, clopper_pearson

DELTA = 0.1
SIMULATIONS = 400
# Three deviations above the promised rate: what is broken is far above, what is right is below.
BROKEN = DELTA + 3 * sqrt(DELTA * (1 - DELTA) / SIMULATIONS)


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("n", [1, 7, 200, 5000])
@pytest.mark.parametrize("rate", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("delta", [0.1, 0.01])
def test_clopper_pearson_is_the_quantile_of_a_beta(n: int, rate: float, delta: float) -> None:
    k = round(n * rate)
    want = 1.0 if k == n else beta.ppf(1 - delta, k + 1, n - k)
    assert clopper_pearson(k, n, delta) == pytest.approx(want, abs=1e-9)


@given(st.integers(0, 400), st.integers(1, 400), st.floats(0, 1))
def test_binomial_cdf_is_zero_below_and_one_above_the_range(k: int, n: int, p: float) -> None:
    assert binomial_cdf(k, n, p) == pytest.approx(float(binom.cdf(k, n, p)), abs=1e-9)


@given(st.integers(1, 3000), st.floats(0.005, 0.5), st.sampled_from([0.01, 0.05, 0.2]))
def test_max_allowed_losses_is_the_last_number_whose_bound_is_low_enough(
    n: int, max_loss: float, delta: float
) -> None:
    most = c.max_allowed_losses(n, max_loss, delta)
    if most >= 0:
        assert clopper_pearson(most, n, delta) <= max_loss + 1e-9
    assert clopper_pearson(most + 1, n, delta) > max_loss - 1e-9


@pytest.mark.parametrize("mean", [0.0, 0.003, 0.02, 0.049, 0.2])
@pytest.mark.parametrize("n", [50, 700])
def test_hoeffding_bentkus_equals_its_definition(mean: float, n: int) -> None:
    bound = 0.05

    def h1(a: float, b: float) -> float:
        return (a * log(a / b) if a else 0.0) + (1 - a) * log((1 - a) / (1 - b))

    want = min(1.0, exp(-n * h1(min(mean, bound), bound)), e * binom.cdf(ceil(n * mean), n, bound))
    assert c.hoeffding_bentkus_p_value(mean, n, bound) == pytest.approx(want)


@pytest.mark.parametrize("mean", [0.01, 0.04, 0.3])
def test_betting_equals_its_definition_step_by_step(mean: float) -> None:
    values = np.random.default_rng(1).beta(1, 1 / mean - 1, 300)
    bound, n = 0.05, len(values)
    wealth = most = squares = total = 0.0
    variance = 0.25
    for t, x in enumerate(values.tolist(), 1):
        bet = min(sqrt(2 * log(1 / DELTA) / (n * variance)), 1.0)
        wealth += log1p(bet * (bound - x))
        most = max(most, wealth)
        total += x
        squares += (x - (0.5 + total) / (t + 1)) ** 2
        variance = (0.25 + squares) / (t + 1)
    assert c.betting_p_value(values, bound, DELTA) == pytest.approx(exp(-most))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=80))
def test_the_betting_bound_is_the_largest_value_not_rejected(values: list[float]) -> None:
    v = np.array(values)
    bound = c.betting_bound(v, DELTA)
    if bound < 1:
        assert c.betting_p_value(v, min(1.0, bound + 1e-6), DELTA) <= DELTA
    if bound > 1e-6:
        assert c.betting_p_value(v, bound - 1e-6, DELTA) > DELTA


# ── coverage ─────────────────────────────────────────────────────────────────────────────────────


def population(kind: Kind, rng: np.random.Generator, size: int = 20_000) -> tuple[np.ndarray, ...]:
    """(loss, score) in which the loss grows with the score, with jumps in both."""
    score = np.round(rng.random(size), 2)
    chance = 0.4 * score**2
    loss = (rng.random(size) < chance).astype(float)
    if kind == "graded":
        loss *= rng.choice([0.1, 0.5, 1.0], size)
    return loss, score


def violated(loss: np.ndarray, score: np.ndarray, v: RiskControlResult, max_loss: float) -> bool:
    return (
        v.threshold is not None and float(loss[score <= v.threshold].sum()) / len(loss) > max_loss
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "graded"])
@pytest.mark.parametrize("own", [True, False])
def test_the_loss_is_rarely_above_what_is_certified(kind: Kind, own: bool) -> None:
    rng = np.random.default_rng(7)
    loss, score = population(kind, rng)
    thresholds = None if own else c.quantile_thresholds(population(kind, rng, 1000)[1])
    bad = naive = 0
    shares = []
    for _ in range(SIMULATIONS):
        at = rng.integers(0, len(loss), 300)
        v = fixed_sequence_test(
            loss[at], score[at], max_loss=0.05, confidence=1 - DELTA, kind=kind,
            thresholds=thresholds,
        )  # fmt: skip
        bad += violated(loss, score, v, 0.05)
        shares.append(v.cheap_share)
        steps = np.unique(score)
        empirical = [loss[at][score[at] <= s].sum() / len(at) for s in steps]
        best = steps[np.array(empirical) <= 0.05].max()
        naive += float(loss[score <= best].sum()) / len(loss) > 0.05
    assert bad / SIMULATIONS <= BROKEN
    assert naive / SIMULATIONS > BROKEN, "the check tells a broken rule from a right one"
    allowed = np.mean(
        score <= max(s for s in np.unique(score) if loss[score <= s].sum() <= 0.05 * len(loss))
    )
    assert np.mean(shares) > 0.6 * allowed, "and it is not bought with doing nothing"


@pytest.mark.slow
def test_groups_are_the_independent_units() -> None:
    """Ten rows with one common outcome are one piece of evidence: taking them for ten breaks the
    promise, counting groups keeps it."""
    rng = np.random.default_rng(8)
    loss, score = population("binary", rng)
    bad = blind = 0
    for _ in range(SIMULATIONS):
        at = np.repeat(rng.integers(0, len(loss), 80), 10)
        groups = np.repeat(np.arange(80), 10)
        for g in (groups, None):
            v = fixed_sequence_test(
                loss[at], score[at], max_loss=0.1, confidence=0.9, kind="binary", groups=g
            )
            if g is None:
                blind += violated(loss, score, v, 0.1)
            else:
                bad += violated(loss, score, v, 0.1)
                assert v.n == 80 and v.method == "betting"
    assert bad / SIMULATIONS <= BROKEN < blind / SIMULATIONS


# ── the walk ─────────────────────────────────────────────────────────────────────────────────────

ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0]), st.floats(-3, 3).map(lambda x: round(x, 1))),
    min_size=1,
    max_size=300,
)


def of(rows: list[tuple[float, float]], **more: object) -> RiskControlResult:
    loss, score = (np.array(x, float) for x in zip(*rows, strict=True))
    given_: dict[str, object] = {"max_loss": 0.1, "confidence": 0.9, "kind": "binary", **more}
    return fixed_sequence_test(loss, score, **given_)  # type: ignore[arg-type]


@pytest.mark.slow
@given(ROWS, st.sampled_from(["binary", "graded"]))
def test_certified_losses_are_below_the_bound(rows: list[tuple[float, float]], kind: str) -> None:
    v = of(rows * 3, kind=kind)
    lost = [x for x, s in rows * 3 if v.threshold is not None and s <= v.threshold]
    assert v.n == 3 * len(rows)
    if v.threshold is None:
        assert v.reason
        return
    assert v.losses == pytest.approx(sum(lost))
    assert v.upper_bound <= 0.1 + 1e-6
    if kind == "binary":  # the betting bound depends on the order and may be below the sample mean
        assert sum(lost) / v.n <= v.upper_bound
    assert v.cheap_share == pytest.approx(len(lost) / v.n)


@pytest.mark.slow
@given(ROWS)
def test_a_larger_loss_or_less_confidence_never_certifies_less(
    rows: list[tuple[float, float]],
) -> None:
    rows = rows * 2
    shares = [of(rows, max_loss=x).cheap_share * (of(rows, max_loss=x).threshold is not None)
              for x in (0.05, 0.1, 0.3)]  # fmt: skip
    assert shares == sorted(shares)
    sure = [of(rows, confidence=x).cheap_share * (of(rows, confidence=x).threshold is not None)
            for x in (0.99, 0.9, 0.6)]  # fmt: skip
    assert sure == sorted(sure)


@given(ROWS)
def test_rounding_moves_no_query_across_the_threshold(rows: list[tuple[float, float]]) -> None:
    v = of(rows)
    if v.threshold is not None:
        shaken = [s + 1e-7 for _, s in rows] + [s - 1e-7 for _, s in rows]
        plain = [s <= v.threshold for _, s in rows]
        assert [s <= v.threshold for s in shaken] == plain * 2


@settings(max_examples=30)
@given(ROWS, st.integers(0, 5))
def test_the_sequence_ends_at_the_first_threshold_that_fails(
    rows: list[tuple[float, float]], seed: int
) -> None:
    """Against the definition: every distinct score in turn, the bound of the rows below it."""
    v = of(rows, kind="binary", seed=seed)
    passed = None
    if clopper_pearson(0, len(rows), 0.1) <= 0.1:
        for s in sorted({s for _, s in rows}):
            k = int(sum(x for x, t in rows if t <= s))
            if clopper_pearson(k, len(rows), 0.1) > 0.1:
                break
            passed = s
    assert (v.threshold is None) == (passed is None)
    if passed is not None and v.threshold is not None:
        assert v.cheap_share == sum(t <= passed for _, t in rows) / len(rows)


def test_thresholds_are_quantiles_between_scores() -> None:
    found = c.quantile_thresholds(np.repeat(np.arange(10.0), 7))
    assert found[:-1] == pytest.approx(np.arange(9) + 0.5)
    assert found[-1] == pytest.approx(9.0, abs=1e-4) and found[-1] > 9.0
    assert len(c.quantile_thresholds(np.random.default_rng(0).random(1000))) == 50
    assert len(c.quantile_thresholds(np.full(100, 0.3))) == 1


def test_one_score_for_all_is_certified_as_a_whole_or_not_at_all() -> None:
    good = of([(0.0, 0.3)] * 100)
    assert good.threshold is not None and good.threshold >= 0.3 and good.cheap_share == 1.0
    assert of([(1.0, 0.3)] * 100).threshold is None


# ── saying no ────────────────────────────────────────────────────────────────────────────────────


def test_the_reported_number_of_labels_is_enough() -> None:
    v = of([(0.0, float(i)) for i in range(20)], max_loss=0.05)
    assert v.threshold is None and v.labels_needed is not None
    assert f"takes about {v.labels_needed}" in v.reason and "20 labels are too few" in v.reason
    clean = [(0.0, float(i)) for i in range(v.labels_needed)]
    assert of(clean, max_loss=0.05).threshold is not None
    assert of(clean[1:], max_loss=0.05).threshold is None


def test_a_loss_above_the_bound_is_reported_with_the_difference() -> None:
    v = of([(1.0, 0.0)] * 30 + [(0.0, 1.0)] * 70)
    assert v.threshold is None and v.labels_needed is None
    assert "loses 0.3, 0.2 more than the 0.1" in v.reason


def test_no_row_below_any_threshold_is_reported() -> None:
    v = of([(0.0, 5.0)] * 100, thresholds=np.array([1.0, 2.0]))
    assert v.threshold is None and "below any of the thresholds" in v.reason


def test_graded_labels_needed_are_enough_on_such_labels() -> None:
    needed = c.labels_needed(0.02, 0.05, 0.1, "betting")
    assert needed is not None
    assert c.hoeffding_bentkus_p_value(0.02, needed, 0.05) <= 0.1
    assert c.labels_needed(0.05, 0.05, 0.1, "betting") is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"loss": np.array([2.0])}, "losses in"),
        ({"score": np.array([np.nan])}, "finite"),
        ({"score": np.zeros(2)}, "expected \\(n,\\)"),
        ({"max_loss": 0.0}, "max_loss"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_invalid_arguments_are_refused(changed: dict[str, object], said: str) -> None:
    base: dict[str, object] = {
        "loss": np.zeros(1), "score": np.zeros(1), "max_loss": 0.1, "confidence": 0.9,
        "kind": "binary", **changed,
    }  # fmt: skip
    with pytest.raises(ValueError, match=said):
        fixed_sequence_test(**base)  # type: ignore[arg-type]


def test_no_rows_certify_nothing() -> None:
    v = fixed_sequence_test(np.zeros(0), np.zeros(0), max_loss=0.1, confidence=0.9, kind="binary")
    assert v.threshold is None and v.n == 0 and v.labels_needed == 22
