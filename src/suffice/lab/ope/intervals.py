"""Intervals of off-policy estimates over sessions, and the predicted cost of a policy.

Turns of one conversation are not independent, so sessions are the units that are resampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from suffice.lab.data.table import FloatArray
from suffice.lab.ope.estimators import (
    EstimatorTerms,
    IntArray,
    LoggedData,
    expected_under_policy,
    on_policy_value,
    sum_by_unit,
)

LEVEL = 0.95
RESAMPLES = 1999
_BATCH_NUMBERS = 1_000_000  # numbers held at once while resampling, 8 MB
_PRIOR_DECISIONS = 5.0  # weight, in decisions, of the overall paid / predicted ratio for each model

Method = Literal["bootstrap", "asymptotic"]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, and its difference to the on-policy value with its own interval.

    The interval of the difference excludes the variation that both values share.
    """

    value: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float


def estimate_policy_value(
    terms: EstimatorTerms,
    log: LoggedData,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    method: Method = "bootstrap",
) -> Estimate:
    """Return `estimate_policy_values` of one estimator."""
    return estimate_policy_values(
        {"": terms}, log, level=level, resamples=resamples, seed=seed, method=method
    )[""]


def estimate_policy_values(
    terms: Mapping[str, EstimatorTerms],
    log: LoggedData,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    method: Method = "bootstrap",
) -> dict[str, Estimate]:
    """Estimate each value and its difference to the on-policy value, with intervals over sessions.

    All estimators share the same resamples. benchmarks/quality/offpolicy.py measures both methods.

    Args:
        terms: Estimator name -> its terms over the n decisions of `log`.
        log: The decisions.
        level: Confidence level of the intervals.
        resamples: Number of bootstrap samples.
        seed: Of the bootstrap.
        method: "bootstrap" resamples sessions and studentises each sample's shift by its own
            standard error (bootstrap-t: Efron and Tibshirani 1993, "An introduction to the
            bootstrap", section 12.5), which follows the skew that large weights cause.
            "asymptotic" linearises the ratio, with cluster-robust errors and Student's quantile.

    Returns:
        Estimator name -> estimate. Bounds are NaN if fewer than two sessions have a label.
    """
    on_policy, c = on_policy_value(log), len(terms)
    sums = _session_sums([on_policy, *terms.values()], log)
    values = np.array([t.value for t in terms.values()])
    centres = np.concatenate([values, values - on_policy.value])
    if len(sums) < 2:
        bounds = np.full((2, 2 * c), np.nan)
    elif method == "asymptotic":
        t_quantile = float(stdtrit(len(sums) - 1, 1 - (1 - level) / 2))
        bounds = centres + np.array([[-t_quantile], [t_quantile]]) * _errors(sums)
    else:
        bounds = centres + _bootstrap_t(sums, level, resamples, seed) * _errors(sums)
    low, high = bounds.tolist()
    return {
        name: Estimate(
            float(values[i]), low[i], high[i], float(centres[i + c]), low[i + c], high[i + c]
        )
        for i, name in enumerate(terms)
    }


def _session_sums(terms: Sequence[EstimatorTerms], log: LoggedData) -> FloatArray:
    """Return (g, 2 c) numerators and denominators of c estimators, summed by session with a label."""
    columns = [column for t in terms for column in (t.numerator, t.denominator)]
    sums = sum_by_unit(np.stack(columns, axis=1), log.sessions)
    return sums[sums[:, 1] > 0]


def _errors(sums: FloatArray) -> FloatArray:
    """Return the (2 c,) standard errors of all values and differences."""
    return np.asarray(_values_and_errors(sums, np.ones((1, len(sums))))[1][0])


def _values_and_errors(sums: FloatArray, counts: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return values and differences of samples, and their standard errors.

    Everything is a sum over sessions of columns and their products, hence one matrix product.

    Args:
        sums: (g, 2 + 2 c) sums of each session: the on-policy numerator and denominator, then each
            estimator's.
        counts: (m, g) how often each session occurs in each sample.

    Returns:
        (m, 2 c) values then differences, and their linearised standard errors.
    """
    g, c = len(sums), sums.shape[1] // 2 - 1
    r, n, a, b = sums[:, :1], sums[:, 1:2], sums[:, 2::2], sums[:, 3::2]
    parts = [r, n, a, b, r * r, r * n, n * n, a * a, a * b, b * b, a * r, a * n, b * r, b * n]
    x = counts @ np.concatenate(parts, axis=1)
    ends = np.cumsum([p.shape[1] for p in parts])[:-1]
    sr, sn, sa, sb, rr, rn, nn, aa, ab, bb, ar, an, br, bn = np.split(x, ends, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        v, h = sa / sb, sr / sn
        # Sums of squares and products of the linearised (a - v b) / sum b and (r - h n) / sum n.
        var_value = (aa - 2 * v * ab + v * v * bb) / (sb * sb)
        var_base = (rr - 2 * h * rn + h * h * nn) / (sn * sn)
        covariance = (ar - h * an - v * br + v * h * bn) / (sb * sn)
        square = np.concatenate([var_value, var_value - 2 * covariance + var_base], axis=1)
        errors = np.sqrt(np.maximum(square, 0.0) * (g / (g - 1)))
        values = np.concatenate([v, v - h], axis=1)
    assert values.shape == (len(counts), 2 * c)
    return values, errors


def _bootstrap_t(sums: FloatArray, level: float, resamples: int, seed: int) -> FloatArray:
    """Return (2, 2 c) signed numbers of standard errors from the estimates to their bounds."""
    g = len(sums)
    rng = np.random.default_rng(seed)
    batch = max(1, _BATCH_NUMBERS // g)
    samples = []
    for start in range(0, resamples, batch):
        m = min(batch, resamples - start)
        draws = rng.integers(0, g, size=(m, g)) + g * np.arange(m)[:, None]
        counts = np.bincount(draws.ravel(), minlength=m * g).reshape(m, g).astype(float)
        samples.append(_values_and_errors(sums, counts))
    centre = _values_and_errors(sums, np.ones((1, g)))[0]
    shift = np.concatenate([values for values, _ in samples]) - centre
    errors = np.concatenate([e for _, e in samples])
    # A shift of rounding size (the policy is the logging policy) is no variation. A NaN (no session
    # with a weight was drawn) has no estimate and counts for neither side.
    unchanged = ~(np.abs(shift) > 1e-12 * np.maximum(1.0, np.abs(centre)))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(unchanged, 0.0, shift / errors)
    tail = (1 - level) / 2
    low, high = np.quantile(t, [tail, 1 - tail], axis=0, method="inverted_cdf")
    limit = 10 * stdtrit(g - 1, 1 - tail)  # a sample of one session alone has no error
    return np.stack([np.maximum(-high, -limit), np.minimum(-low, limit)])


def widen(estimate: Estimate, missing: float) -> Estimate:
    """Return the estimate with bounds for a share `missing` of choices that the log never made.

    Scores are in [0, 1], so the value may be off by that share in either direction (the worst-case
    bounds of Manski 1990, "Nonparametric bounds on treatment effects").
    """
    return replace(
        estimate,
        low=estimate.low - missing,
        high=estimate.high + missing,
        difference_low=estimate.difference_low - missing,
        difference_high=estimate.difference_high + missing,
    )


# ── cost ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class CostEstimate:
    """Mean USD per decision under the policy, and what was paid; NaN if unknown.

    Attributes:
        value, low, high: Under the policy, with its interval.
        paid: Mean USD paid.
        difference, difference_low, difference_high: value - paid, with its interval.
        ratio: (k,) paid / predicted, by which each model's predictions were scaled.
        decisions: Number of decisions of known cost.
    """

    value: float
    low: float
    high: float
    paid: float
    difference: float
    difference_low: float
    difference_high: float
    ratio: FloatArray
    decisions: int


def estimate_cost(
    log: LoggedData,
    action_dist: FloatArray,
    predicted_usd: FloatArray,
    paid_usd: FloatArray,
    *,
    level: float = LEVEL,
) -> CostEstimate:
    """Return the policy's cost by the token model, without importance weights.

    The estimate is the mean predicted cost under the policy, with each model's predictions scaled by
    paid / predicted over the decisions that chose it. A model that was seldom chosen is shrunk to the
    overall ratio (`_PRIOR_DECISIONS`). The interval is linearised over sessions and includes the
    error of the ratios. Decisions with an unknown cost are left out.

    Args:
        log: n decisions.
        action_dist: (n, k) probabilities of the evaluation policy.
        predicted_usd: (n, k) predicted USD of each model for each query; NaN if unknown.
        paid_usd: (n,) USD paid; NaN if unknown.
        level: Confidence level of the intervals.
    """
    n, k = predicted_usd.shape
    usable = ~np.isnan(paid_usd) & ~np.isnan(expected_under_policy(action_dist, predicted_usd))
    usable &= ~np.isnan(predicted_usd[np.arange(n), log.action])
    m = int(usable.sum())
    nan = float("nan")
    if m == 0:
        return CostEstimate(*(nan,) * 7, np.full(k, nan), 0)
    action_dist, predicted, paid = action_dist[usable], predicted_usd[usable], paid_usd[usable]
    action = log.action[usable]
    predicted_chosen = predicted[np.arange(m), action]
    ratio, weight = _paid_over_predicted(predicted, action, paid)
    under_policy = np.where(action_dist > 0, action_dist * np.nan_to_num(predicted), 0.0)
    per_decision = under_policy @ ratio
    value, mean_paid = float(per_decision.mean()), float(paid.mean())
    # The derivative of the total by each model's ratio, times the ratio's influence function.
    influence = per_decision - value
    leverage = under_policy.sum(axis=0) * weight
    influence += leverage[action] * (paid - ratio[action] * predicted_chosen)
    both = np.stack([influence, influence - (paid - mean_paid)], axis=1)
    margin, margin_difference = _margins(sum_by_unit(both, log.sessions[usable]), level, m)
    difference = value - mean_paid
    return CostEstimate(
        value, value - margin, value + margin, mean_paid,
        difference, difference - margin_difference, difference + margin_difference, ratio, m,
    )  # fmt: skip


def _paid_over_predicted(
    predicted: FloatArray, action: IntArray, paid: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return each model's paid / predicted, shrunk to the overall ratio, and 1 / its denominator.

    The denominator is the predicted USD of the m decisions that chose it, and of the prior; its
    inverse is 0 if nothing was predicted. (k,) each.
    """
    k = predicted.shape[1]
    chosen = predicted[np.arange(len(paid)), action]
    overall = float(paid.sum() / chosen.sum()) if chosen.sum() > 0 else 1.0
    known = np.nan_to_num(predicted)
    mean_predicted = known.sum(axis=0) / np.maximum((~np.isnan(predicted)).sum(axis=0), 1)
    prior = _PRIOR_DECISIONS * mean_predicted
    denominator = np.bincount(action, chosen, minlength=k) + prior
    paid_sum = np.bincount(action, paid, minlength=k) + overall * prior
    weight = np.divide(1.0, denominator, out=np.zeros(k), where=denominator > 0)
    return np.where(denominator > 0, paid_sum * weight, overall), weight


def _margins(influence: FloatArray, level: float, m: int) -> tuple[float, float]:
    """Return half-widths of the intervals of two means over m decisions, from (g, 2) session sums."""
    g = len(influence)
    if g < 2:
        return float("nan"), float("nan")
    errors = np.sqrt((influence**2).sum(axis=0) * g / (g - 1)) / m
    first, second = (float(stdtrit(g - 1, 1 - (1 - level) / 2)) * errors).tolist()
    return first, second
