"""Off-policy estimates: what a policy would have scored and cost on decisions that another took.

Pure numpy: arrays in, numbers out. n decisions over k models; scores in [0, 1], NaN = unknown. Only
labelled decisions enter a score: missing feedback is not negative.

    log = Log(action, propensity, reward, propensities, session)
    doubly_robust(log, pi, q)          -> Terms      one row a decision
    estimate(terms, log)               -> Estimate   value, interval, difference to what happened

Every estimator is a ratio of two sums over decisions, so one interval serves all: sessions are
drawn with replacement, since turns of a conversation stand and fall together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import FloatArray

Ints = NDArray[np.intp]

LEVEL = 0.95
RESAMPLES = 1999
MIN_ESS = 100.0  # effective decisions below which nothing is judged
MIN_SUPPORT = 0.95  # share of the policy's choices that the log could have made
MIN_SESSIONS = 20  # below which no interval over sessions can be trusted
_CELLS = 1_000_000  # counts held at a time while resampling, 8 MB
_BORROWED = 5.0  # decisions' worth of the overall ratio of paid to predicted cost, for each model


@dataclass(frozen=True)
class LoggedData:
    """What was done and what came of it.

    action: (n,) column of the model that was chosen. propensity: (n,) probability, in (0, 1], with
    which it was. reward: (n,) score, NaN = unknown. propensities: (n, k) of all models, 0 = could
    not be chosen; None where only the chosen one's is known (then support cannot be told).
    session: (n,) what stands and falls together; None = every decision alone. episode: (n,) a free
    choice and the turns that kept to it; None = the session. Raises ValueError that names the field.
    """

    action: Ints
    propensity: FloatArray
    reward: FloatArray
    propensities: FloatArray | None = None
    session: Ints | None = None
    episode: Ints | None = None

    def __post_init__(self) -> None:
        n = len(self.action)
        for name in ("propensity", "reward", "session", "episode"):
            a = getattr(self, name)
            if a is not None and a.shape != (n,):
                raise ValueError(f"{name}: expected shape ({n},), got {a.shape}")
        p = self.propensity
        if not bool(((p > 0) & (p <= 1 + 1e-9)).all()):
            raise ValueError("propensity: expected above 0 and at most 1 everywhere")
        known = self.reward[~np.isnan(self.reward)]
        if not bool(((known >= 0) & (known <= 1)).all()):
            raise ValueError("reward: expected 0 to 1, or NaN where unknown")
        if self.propensities is not None:
            if self.propensities.ndim != 2 or len(self.propensities) != n:
                raise ValueError(f"propensities: expected ({n}, k), got {self.propensities.shape}")
            taken = self.propensities[np.arange(n), self.action]
            if not np.allclose(taken, p, rtol=1e-6, atol=1e-9):
                raise ValueError("propensities: the chosen model's differ from `propensity`")

    def __len__(self) -> int:
        return len(self.action)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(n,)"""
        return np.asarray(~np.isnan(self.reward))

    @property
    def sessions(self) -> Ints:
        """(n,)"""
        return np.arange(len(self)) if self.session is None else self.session

    @property
    def episodes(self) -> Ints:
        """(n,)"""
        return self.sessions if self.episode is None else self.episode


@dataclass(frozen=True)
class EstimatorTerms:
    """An estimate before it is summed: value = numerator.sum() / denominator.sum(). (n,) each."""

    numerator: FloatArray
    denominator: FloatArray

    @property
    def value(self) -> float:
        """NaN where nothing counts."""
        total = float(self.denominator.sum())
        return float(self.numerator.sum()) / total if total else float("nan")


@dataclass(frozen=True)
class Estimate:
    """value with its interval; difference = value less the mean of what happened, with its own
    interval, in which what both share falls away."""

    value: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float


# ── weights ──────────────────────────────────────────────────────────────────────────────────────


def importance_weights(log: LoggedData, pi: FloatArray) -> FloatArray:
    """(n,) probability of the logged action under the policy, over that under the log. pi: (n, k).

    Raises ValueError where `pi` is no distribution.
    """
    if pi.ndim != 2 or len(pi) != len(log):
        raise ValueError(f"pi: expected ({len(log)}, k), got {pi.shape}")
    if not bool((pi >= -1e-12).all()) or not np.allclose(pi.sum(axis=1), 1.0, atol=1e-6):
        raise ValueError("pi: expected probabilities that sum to 1 in every row")
    return np.asarray(pi[np.arange(len(log)), log.action] / log.propensity)


def effective_sample_size(weight: FloatArray, unit: Ints | None = None) -> float:
    """Effective sample size (sum w)^2 / sum w^2 (Kish 1965) over units: a unit's weight is the sum
    of its decisions'. 0 where all weights are."""
    w = weight if unit is None else _sums(weight[:, None], unit)[:, 0]
    square = float((w * w).sum())
    return float(w.sum()) ** 2 / square if square else 0.0


def support(propensities: FloatArray, pi: FloatArray) -> FloatArray:
    """(n,) share of the policy's choice that the log could have made: the sum of pi over models of
    propensity above 0. What is missing was never seen, and no weight brings it back."""
    return np.asarray(np.where(propensities > 0, pi, 0.0).sum(axis=1))


# ── estimators ───────────────────────────────────────────────────────────────────────────────────


def _known(
    log: LoggedData, numerator: FloatArray, denominator: FloatArray | float = 1.0
) -> EstimatorTerms:
    seen = log.labelled
    return EstimatorTerms(np.where(seen, numerator, 0.0), np.where(seen, denominator, 0.0))


def on_policy_value(log: LoggedData) -> EstimatorTerms:
    """What happened: the mean score of labelled decisions."""
    return _known(log, log.reward)


def ips(log: LoggedData, pi: FloatArray) -> EstimatorTerms:
    """Inverse propensity score (Horvitz and Thompson 1952): mean of w r. Unbiased where the log
    could have made every choice of the policy; noisy where weights are large."""
    return _known(log, importance_weights(log, pi) * log.reward)


def snips(log: LoggedData, pi: FloatArray) -> EstimatorTerms:
    """Self-normalised IPS (Swaminathan and Joachims 2015, "The self-normalized estimator for
    counterfactual learning", equation 8): sum of w r over sum of w."""
    w = importance_weights(log, pi)
    return _known(log, w * log.reward, w)


def doubly_robust(log: LoggedData, pi: FloatArray, q: FloatArray) -> EstimatorTerms:
    """Doubly robust (Dudik, Langford and Li 2011, "Doubly robust policy evaluation and learning",
    equation 3): the reward model's word for the policy, and w times its error on what was taken.

    q: (n, k) predicted scores, which must not have been fitted on the same row's reward.
    """
    n = len(log)
    error = log.reward - q[np.arange(n), log.action]
    return _known(log, expected_under_policy(pi, q) + importance_weights(log, pi) * error)


def direct(log: LoggedData, pi: FloatArray, q: FloatArray) -> EstimatorTerms:
    """The direct method: the reward model's word alone. As wrong as the model is, and its interval
    does not know it."""
    importance_weights(log, pi)  # checks pi
    return _known(log, expected_under_policy(pi, q))


def expected_under_policy(pi: FloatArray, x: FloatArray) -> FloatArray:
    """(n,) mean of x (n, k) under the policy; what it never takes may be unknown."""
    return np.asarray(np.where(pi > 0, pi * x, 0.0).sum(axis=1))


# ── intervals ────────────────────────────────────────────────────────────────────────────────────


def _sums(columns: FloatArray, unit: Ints) -> FloatArray:
    """(n_units, c) sums of (n, c) by unit."""
    _, at = np.unique(unit, return_inverse=True)
    out = np.zeros((int(at.max(initial=-1)) + 1, columns.shape[1]))
    np.add.at(out, at, columns)
    return out


Method = Literal["bootstrap", "asymptotic"]


def estimate_policy_value(
    terms: EstimatorTerms,
    log: LoggedData,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    method: Method = "bootstrap",
) -> Estimate:
    """`estimates` of one."""
    found = estimate_policy_values(
        {"": terms}, log, level=level, resamples=resamples, seed=seed, method=method
    )
    return found[""]


def estimate_policy_values(
    terms: Mapping[str, EstimatorTerms],
    log: LoggedData,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    method: Method = "bootstrap",
) -> dict[str, Estimate]:
    """Each value and its difference to what happened, with intervals over the same draws of
    sessions; NaN where fewer than two sessions count.

    bootstrap: sessions drawn with replacement, each draw's deviation in units of its own standard
    error (bootstrap-t: Efron and Tibshirani 1993, "An introduction to the bootstrap", section
    12.5), which follows the skew that large weights bring. asymptotic: linearised, cluster-robust,
    with Student's quantile. benchmarks/quality/offpolicy.py measures both.
    """
    base = on_policy_value(log)
    columns = [base.numerator, base.denominator]
    for t in terms.values():
        columns += [t.numerator, t.denominator]
    s = _sums(np.stack(columns, axis=1), log.sessions)
    s = s[s[:, 1] > 0]  # sessions with a label
    g, wide = len(s), len(terms)
    values = np.array([t.value for t in terms.values()])
    centres = np.concatenate([values, values - base.value])
    if g < 2:
        bounds = np.full((2, 2 * wide), np.nan)
    else:
        errors = _moments(s, np.ones((1, g)))[1][0]
        if method == "asymptotic":
            t_ = student(1 - (1 - level) / 2, g - 1)
            bounds = centres + np.array([[-t_], [t_]]) * errors
        else:
            bounds = centres + _tails(s, level, resamples, seed) * errors
    out = {}
    for i, name in enumerate(terms):
        j = i + wide
        out[name] = Estimate(
            float(centres[i]), float(bounds[0, i]), float(bounds[1, i]),
            float(centres[j]), float(bounds[0, j]), float(bounds[1, j]),
        )  # fmt: skip
    return out


def _moments(s: FloatArray, counts: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(values then differences, their standard errors), (m, 2 c) each, of m samples in which
    session i counts as often as counts (m, g) says. s: (g, 2 + 2 c) sums of each session: what
    happened, then each estimate, numerator before denominator.

    Everything is a sum over sessions of columns and their products, hence one matrix product.
    """
    g, c = len(s), s.shape[1] // 2 - 1
    r, n, a, b = s[:, :1], s[:, 1:2], s[:, 2::2], s[:, 3::2]
    parts = [r, n, a, b, r * r, r * n, n * n, a * a, a * b, b * b, a * r, a * n, b * r, b * n]
    x = counts @ np.concatenate(parts, axis=1)
    ends = np.cumsum([p.shape[1] for p in parts])[:-1]
    sr, sn, sa, sb, rr, rn, nn, aa, ab, bb, ar, an, br, bn = np.split(x, ends, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        v, h = sa / sb, sr / sn
        # Sums of squares and products of the linearised (a - v b) / sum b and (r - h n) / sum n.
        own = (aa - 2 * v * ab + v * v * bb) / (sb * sb)
        base = (rr - 2 * h * rn + h * h * nn) / (sn * sn)
        both = (ar - h * an - v * br + v * h * bn) / (sb * sn)
        square = np.concatenate([own, own - 2 * both + base], axis=1)
        errors = np.sqrt(np.maximum(square, 0.0) * (g / (g - 1)))
        values = np.concatenate([v, v - h], axis=1)
    assert values.shape == (len(counts), 2 * c)
    return values, errors


def _tails(s: FloatArray, level: float, resamples: int, seed: int) -> FloatArray:
    """How many standard errors below and above the estimates the bounds lie, (2, 2 c)."""
    g = len(s)
    rng = np.random.default_rng(seed)
    rows = max(1, _CELLS // g)
    parts = []
    for at in range(0, resamples, rows):
        m = min(rows, resamples - at)
        drawn = rng.integers(0, g, size=(m, g)) + g * np.arange(m)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=m * g).reshape(m, g).astype(float)
        parts.append(_moments(s, counts))
    centre = _moments(s, np.ones((1, g)))[0]
    shift = np.concatenate([v for v, _ in parts]) - centre
    errors = np.concatenate([e for _, e in parts])
    # Where only rounding is left (a policy that is the log's own) nothing varies; where no session
    # with a weight was drawn there is no estimate (NaN), which says nothing either way.
    still = ~(np.abs(shift) > 1e-12 * np.maximum(1.0, np.abs(centre)))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(still, 0.0, shift / errors)
    tail = (1 - level) / 2
    low, high = np.quantile(t, [tail, 1 - tail], axis=0, method="inverted_cdf")
    most = 10 * student(1 - tail, g - 1)  # a draw of one session alone has no error
    return np.stack([np.maximum(-high, -most), np.minimum(-low, most)])


def student(p: float, df: int) -> float:
    """Quantile of Student's t, to 3e-3 for df >= 5 (Abramowitz and Stegun 1964, 26.7.5)."""
    z = NormalDist().inv_cdf(p)
    out = z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
    return out + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)


def widen(e: Estimate, missing: float) -> Estimate:
    """The estimate where a share `missing` of the policy's choices was never seen: scores lie in
    [0, 1], so it may be off by that share either way (Manski 1990's bounds)."""
    return Estimate(
        e.value,
        e.low - missing,
        e.high + missing,
        e.difference,
        e.difference_low - missing,
        e.difference_high + missing,
    )


# ── cost ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class CostEstimate:
    """Mean USD a decision under the policy, and what was paid; NaN where unknown. ratio: (k,) paid
    over predicted, by which each model's predictions were scaled. counted: decisions whose costs
    are known."""

    value: float
    low: float
    high: float
    paid: float
    difference: float
    difference_low: float
    difference_high: float
    ratio: FloatArray
    counted: int


def estimate_cost(
    log: LoggedData,
    pi: FloatArray,
    predicted: FloatArray,
    paid: FloatArray,
    *,
    level: float = LEVEL,
) -> CostEstimate:
    """Cost by the token model: sum of pi times predicted cost, each model's predictions scaled by
    what was paid over what was predicted where it was taken. Weights never enter.

    predicted: (n, k) USD of each model for each query, NaN = unknown. paid: (n,) USD, NaN =
    unknown. Decisions where either is unknown are left out. A model seldom taken borrows the ratio
    of all (`_BORROWED` decisions' worth). Interval: linearised over sessions, the ratios' own error
    in it.
    """
    n, k = predicted.shape
    rows = np.arange(n)
    usable = ~np.isnan(paid) & ~np.isnan(expected_under_policy(pi, predicted))
    usable &= ~np.isnan(predicted[rows, log.action])
    m = int(usable.sum())
    nothing = float("nan")
    if m == 0:
        return CostEstimate(*(nothing,) * 7, np.full(k, nothing), 0)
    pi, predicted, paid = pi[usable], predicted[usable], paid[usable]
    action, session = log.action[usable], log.sessions[usable]
    rows = np.arange(m)
    guess = predicted[rows, action]
    overall = float(paid.sum() / guess.sum()) if guess.sum() > 0 else 1.0
    known = np.where(np.isnan(predicted), 0.0, predicted)
    lent = _BORROWED * known.sum(axis=0) / np.maximum((~np.isnan(predicted)).sum(axis=0), 1)
    base = np.bincount(action, guess, minlength=k) + lent
    got = np.bincount(action, paid, minlength=k) + overall * lent
    ratio = np.where(base > 0, got / np.where(base > 0, base, 1.0), overall)
    would = np.where(pi > 0, pi * known, 0.0)
    each = would @ ratio
    value, happened = float(each.mean()), float(paid.mean())
    lever = np.where(base > 0, would.sum(axis=0) / np.where(base > 0, base, 1.0), 0.0)
    influence = each - value + lever[action] * (paid - ratio[action] * guess)
    s = _sums(np.stack([influence, influence - (paid - happened)], axis=1), session)
    g = len(s)
    if g < 2:
        e = np.full(2, nothing)
    else:
        e = student(1 - (1 - level) / 2, g - 1) * np.sqrt((s**2).sum(axis=0) * g / (g - 1)) / m
    d = value - happened
    return CostEstimate(
        value, value - float(e[0]), value + float(e[0]),
        happened, d, d - float(e[1]), d + float(e[1]), ratio, m,
    )  # fmt: skip


# ── whether the log can be believed ──────────────────────────────────────────────────────────────


def propensity_z_scores(action: Ints, propensities: FloatArray) -> FloatArray:
    """(k,) how many standard deviations each model was chosen more often than the propensities say.
    Recorded propensities that are not what was drawn from make every weight wrong."""
    k = propensities.shape[1]
    taken = np.bincount(action, minlength=k)
    p = np.clip(propensities, 0.0, 1.0)
    spread = np.sqrt((p * (1 - p)).sum(axis=0))
    off = taken - p.sum(axis=0)
    return np.where(np.abs(off) < 1e-6, 0.0, off / np.maximum(spread, 1e-3))


def labels_missing_not_at_random(action: Ints, labelled: NDArray[np.bool_], k: int) -> bool:
    """Whether models differ in their share of labelled decisions by more than chance: by three
    standard deviations and a twentieth."""
    taken = np.bincount(action, minlength=k).astype(float)
    scored = np.bincount(action[labelled], minlength=k).astype(float)
    p = float(scored.sum() / max(1.0, taken.sum()))
    seen = taken > 0
    off = scored[seen] / taken[seen] - p
    spread = np.sqrt(p * (1 - p) / taken[seen])
    return bool(((np.abs(off) > 3 * spread) & (np.abs(off) > 0.05)).any())
