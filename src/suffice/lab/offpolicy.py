"""Off-policy estimates: what a policy would have scored and cost on decisions that another took.

Pure numpy: arrays in, numbers out. n decisions over k models; scores in [0, 1], NaN = unknown. Only
labelled decisions enter a score: missing feedback is not negative.

    log = Log(action, propensity, reward, propensities, session)
    doubly_robust(log, pi, q)          -> Terms      one row a decision
    estimate(Terms, log)               -> Estimate   value, interval, difference to what happened

Every estimator is a ratio of two sums over decisions, so one interval serves all: sessions are
drawn with replacement, since turns of a conversation stand and fall together.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .table import Floats

Ints = NDArray[np.intp]

LEVEL = 0.95
RESAMPLES = 1999
MIN_ESS = 100.0  # effective decisions below which nothing is judged
MIN_SUPPORT = 0.95  # share of the policy's choices that the log could have made
MIN_SESSIONS = 20  # below which no interval over sessions can be trusted
_CELLS = 1_000_000  # counts held at a time while resampling, 8 MB
_BORROWED = 5.0  # decisions' worth of the overall ratio of paid to predicted cost, for each model


@dataclass(frozen=True)
class Log:
    """What was done and what came of it.

    action: (n,) column of the model that was chosen. propensity: (n,) probability, in (0, 1], with
    which it was. reward: (n,) score, NaN = unknown. propensities: (n, k) of all models, 0 = could
    not be chosen; None where only the chosen one's is known (then support cannot be told).
    session: (n,) what stands and falls together; None = every decision alone. episode: (n,) a free
    choice and the turns that kept to it; None = the session. Raises ValueError that names the field.
    """

    action: Ints
    propensity: Floats
    reward: Floats
    propensities: Floats | None = None
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
class Terms:
    """An estimate before it is summed: value = numerator.sum() / denominator.sum(). (n,) each."""

    numerator: Floats
    denominator: Floats

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


def weights(log: Log, pi: Floats) -> Floats:
    """(n,) probability of the logged action under the policy, over that under the log. pi: (n, k).

    Raises ValueError where `pi` is no distribution.
    """
    if pi.ndim != 2 or len(pi) != len(log):
        raise ValueError(f"pi: expected ({len(log)}, k), got {pi.shape}")
    if not bool((pi >= -1e-12).all()) or not np.allclose(pi.sum(axis=1), 1.0, atol=1e-6):
        raise ValueError("pi: expected probabilities that sum to 1 in every row")
    return np.asarray(pi[np.arange(len(log)), log.action] / log.propensity)


def effective(weight: Floats, unit: Ints | None = None) -> float:
    """Effective sample size (sum w)^2 / sum w^2 (Kish 1965) over units: a unit's weight is the sum
    of its decisions'. 0 where all weights are."""
    w = weight if unit is None else _sums(weight[:, None], unit)[:, 0]
    square = float((w * w).sum())
    return float(w.sum()) ** 2 / square if square else 0.0


def support(propensities: Floats, pi: Floats) -> Floats:
    """(n,) share of the policy's choice that the log could have made: the sum of pi over models of
    propensity above 0. What is missing was never seen, and no weight brings it back."""
    return np.asarray(np.where(propensities > 0, pi, 0.0).sum(axis=1))


# ── estimators ───────────────────────────────────────────────────────────────────────────────────


def _known(log: Log, numerator: Floats, denominator: Floats | float = 1.0) -> Terms:
    seen = log.labelled
    return Terms(np.where(seen, numerator, 0.0), np.where(seen, denominator, 0.0))


def observed(log: Log) -> Terms:
    """What happened: the mean score of labelled decisions."""
    return _known(log, log.reward)


def ips(log: Log, pi: Floats) -> Terms:
    """Inverse propensity score (Horvitz and Thompson 1952): mean of w r. Unbiased where the log
    could have made every choice of the policy; noisy where weights are large."""
    return _known(log, weights(log, pi) * log.reward)


def snips(log: Log, pi: Floats) -> Terms:
    """Self-normalised IPS (Swaminathan and Joachims 2015, "The self-normalized estimator for
    counterfactual learning", equation 8): sum of w r over sum of w."""
    w = weights(log, pi)
    return _known(log, w * log.reward, w)


def doubly_robust(log: Log, pi: Floats, q: Floats) -> Terms:
    """Doubly robust (Dudik, Langford and Li 2011, "Doubly robust policy evaluation and learning",
    equation 3): the reward model's word for the policy, and w times its error on what was taken.

    q: (n, k) predicted scores, which must not have been fitted on the same row's reward.
    """
    n = len(log)
    error = log.reward - q[np.arange(n), log.action]
    return _known(log, _under(pi, q) + weights(log, pi) * error)


def direct(log: Log, pi: Floats, q: Floats) -> Terms:
    """The direct method: the reward model's word alone. As wrong as the model is, and its interval
    does not know it."""
    weights(log, pi)  # checks pi
    return _known(log, _under(pi, q))


def _under(pi: Floats, x: Floats) -> Floats:
    """(n,) mean of x (n, k) under the policy; what it never takes may be unknown."""
    return np.asarray(np.where(pi > 0, pi * x, 0.0).sum(axis=1))


# ── intervals ────────────────────────────────────────────────────────────────────────────────────


def _sums(columns: Floats, unit: Ints) -> Floats:
    """(n_units, c) sums of (n, c) by unit."""
    _, at = np.unique(unit, return_inverse=True)
    out = np.zeros((int(at.max(initial=-1)) + 1, columns.shape[1]))
    np.add.at(out, at, columns)
    return out


def estimate(
    terms: Terms,
    log: Log,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    method: Literal["bootstrap", "asymptotic"] = "bootstrap",
) -> Estimate:
    """The value of `terms` and its difference to what happened, with intervals over sessions; NaN
    where fewer than two sessions count.

    bootstrap: sessions drawn with replacement, each draw's deviation in units of its own standard
    error (bootstrap-t: Efron and Tibshirani 1993, "An introduction to the bootstrap", section
    12.5), which follows the skew that large weights bring. asymptotic: linearised, cluster-robust,
    with Student's quantile. benchmarks/quality/offpolicy.py measures both.
    """
    base = observed(log)
    columns = np.stack([terms.numerator, terms.denominator, base.numerator, base.denominator], 1)
    s = _sums(columns, log.sessions)
    s = s[(s != 0).any(axis=1)]
    value, difference = terms.value, terms.value - base.value
    if len(s) < 2 or np.isnan(difference):
        nothing = float("nan")
        return Estimate(value, nothing, nothing, difference, nothing, nothing)
    if method == "asymptotic":
        t = student(1 - (1 - level) / 2, len(s) - 1)
        tails = [(-t, t), (-t, t)]
    else:
        tails = _tails(s, level, resamples, seed)
    errors = _moments(s, np.ones((1, len(s))))[2:]
    (low, high), (d_low, d_high) = (
        (v + a * float(e[0]), v + b * float(e[0]))
        for v, e, (a, b) in zip((value, difference), errors, tails, strict=True)
    )
    return Estimate(value, low, high, difference, d_low, d_high)


_PAIRS = [(i, j) for i in range(4) for j in range(i, 4)]


def _moments(s: Floats, counts: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """(value, difference, standard error of each), (m,), of m samples in which session i of s
    (g, 4) counts as often as counts (m, g) says. All are sums over sessions of its four columns and
    their products, hence one matrix product."""
    g = len(s)
    products = np.stack([s[:, i] * s[:, j] for i, j in _PAIRS], axis=1)
    x = counts @ np.concatenate([s, products], axis=1)
    a, b, r, n = x[:, :4].T
    with np.errstate(divide="ignore", invalid="ignore"):
        value, happened = a / b, r / n
        # Influence of a session on value, then less its influence on what happened.
        part = np.stack([g / b, -value * g / b, -g / n, happened * g / n], axis=1)

        def error(columns: int) -> Floats:
            total = np.zeros(len(x))
            for at, (i, j) in enumerate(_PAIRS):
                if j < columns:
                    total += (1 if i == j else 2) * part[:, i] * part[:, j] * x[:, 4 + at]
            return np.asarray(np.sqrt(np.maximum(total, 0.0) / (g * (g - 1))))

        return value, value - happened, error(2), error(4)


def _tails(s: Floats, level: float, resamples: int, seed: int) -> list[tuple[float, float]]:
    """Where value and difference lie, in standard errors from the estimate: (low, high) of each."""
    g = len(s)
    rng = np.random.default_rng(seed)
    rows = max(1, _CELLS // g)
    parts = []
    for at in range(0, resamples, rows):
        m = min(rows, resamples - at)
        drawn = rng.integers(0, g, size=(m, g)) + g * np.arange(m)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=m * g).reshape(m, g).astype(float)
        parts.append(np.stack(_moments(s, counts)))
    drawn_values = np.concatenate(parts, axis=1)
    centre = _moments(s, np.ones((1, g)))
    tail = (1 - level) / 2
    out = []
    for i in (0, 1):
        shift, error = drawn_values[i] - centre[i], drawn_values[i + 2]
        # Where sampling noise alone is left (a policy that is the log's own) both are zero.
        noise = 1e-12 * max(1.0, abs(float(centre[i][0])))
        still = ~(np.abs(shift) > noise)  # also NaN: nothing drawn had a weight
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(still, 0.0, shift / error)
        low, high = np.quantile(t, [tail, 1 - tail], method="inverted_cdf")
        widest = 10 * student(1 - tail, g - 1)  # a draw of one session alone has no error
        out.append((max(-float(high), -widest), min(-float(low), widest)))
    return out


def student(p: float, df: int) -> float:
    """Quantile of Student's t, to 3e-3 for df >= 5 (Abramowitz and Stegun 1964, 26.7.5)."""
    z = NormalDist().inv_cdf(p)
    out = z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
    return out + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)


def widened(e: Estimate, missing: float) -> Estimate:
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
class Cost:
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
    ratio: Floats
    counted: int


def cost(log: Log, pi: Floats, predicted: Floats, paid: Floats, *, level: float = LEVEL) -> Cost:
    """Cost by the token model: sum of pi times predicted cost, each model's predictions scaled by
    what was paid over what was predicted where it was taken. Weights never enter.

    predicted: (n, k) USD of each model for each query, NaN = unknown. paid: (n,) USD, NaN =
    unknown. Decisions where either is unknown are left out. A model seldom taken borrows the ratio
    of all (`_BORROWED` decisions' worth). Interval: linearised over sessions, the ratios' own error
    in it.
    """
    n, k = predicted.shape
    rows = np.arange(n)
    usable = ~np.isnan(paid) & ~np.isnan(_under(pi, predicted))
    usable &= ~np.isnan(predicted[rows, log.action])
    m = int(usable.sum())
    nothing = float("nan")
    if m == 0:
        return Cost(*(nothing,) * 7, np.full(k, nothing), 0)
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
    return Cost(
        value, value - float(e[0]), value + float(e[0]),
        happened, d, d - float(e[1]), d + float(e[1]), ratio, m,
    )  # fmt: skip


# ── whether the log can be believed ──────────────────────────────────────────────────────────────


def misfit(action: Ints, propensities: Floats) -> Floats:
    """(k,) how many standard deviations each model was chosen more often than the propensities say.
    Recorded propensities that are not what was drawn from make every weight wrong."""
    k = propensities.shape[1]
    taken = np.bincount(action, minlength=k)
    p = np.clip(propensities, 0.0, 1.0)
    spread = np.sqrt((p * (1 - p)).sum(axis=0))
    off = taken - p.sum(axis=0)
    return np.where(np.abs(off) < 1e-6, 0.0, off / np.maximum(spread, 1e-3))


def uneven(action: Ints, labelled: NDArray[np.bool_], k: int) -> bool:
    """Whether models differ in their share of labelled decisions by more than chance: by three
    standard deviations and a twentieth."""
    taken = np.bincount(action, minlength=k).astype(float)
    scored = np.bincount(action[labelled], minlength=k).astype(float)
    p = float(scored.sum() / max(1.0, taken.sum()))
    seen = taken > 0
    off = scored[seen] / taken[seen] - p
    spread = np.sqrt(p * (1 - p) / taken[seen])
    return bool(((np.abs(off) > 3 * spread) & (np.abs(off) > 0.05)).any())
