"""How far a cheap model may serve so that the loss of quality stays below a bound, with confidence.

Cheap serves where the score g of a query (the quality that the reference model is predicted to be
better by) is at most a threshold t. What is bounded is the *gross loss* over all traffic,
R(t) = E[max(0, score of reference - score of cheap) where g <= t, else 0], in [0, 1]. The walk goes
from the lowest threshold upward and stops at the first whose loss is not shown to be below the
bound: fixed-sequence testing needs no correction for many thresholds (Angelopoulos, Bates, Candes,
Jordan & Lei 2021, "Learn then Test", section 2).

The thresholds are quantiles of the scores of training queries where there are any. A policy that
was never trained has none, and the walk visits every distinct score of the calibration rows
instead. That costs no validity, since R only grows with t. Let t* be where R first exceeds the
bound. A rule that ends at or above t* has passed the largest calibration score below t*, and there
the rows' losses are the very losses at t*: so it has passed a valid test of a true hypothesis,
which happens with probability at most 1 - confidence. No label ever chooses a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, e, exp, floor, log
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import FloatArray

Kind = Literal["binary", "graded"]
Method = Literal["clopper-pearson", "betting"]
STEPS = 50  # of a walk over quantiles
MAX_LABELS = 100_000_000  # labels beyond which nobody asks how many more


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(at most k of n), each with probability p."""
    if k < 0:
        return 0.0
    if k >= n or p <= 0.0:
        return 1.0
    if p >= 1.0:
        return 0.0
    i = np.arange(k + 1, dtype=float)
    # log C(n, i) as a running sum of log((n - i + 1) / i): no lgamma in NumPy, and none needed.
    choose = np.concatenate([[0.0], np.cumsum(np.log((n - i[1:] + 1.0) / i[1:]))])
    terms = choose + i * log(p) + (n - i) * np.log1p(-p)
    top = float(terms.max())
    return min(1.0, float(exp(top) * np.exp(terms - top).sum()))


def clopper_pearson(k: int, n: int, delta: float) -> float:
    """The upper bound of a probability after k of n: Beta^-1(1 - delta; k + 1, n - k), which is the
    p at which at most k of n has probability delta (Clopper & Pearson 1934)."""
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"k = {k} of n = {n}: expected 0 <= k <= n and n >= 1")
    if k == n:
        return 1.0
    low, high = k / n, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_cdf(k, n, middle) > delta else (low, middle)
    return high


def max_allowed_losses(n: int, max_loss: float, delta: float) -> int:
    """The largest k of n whose Clopper-Pearson bound is at most `max_loss`; -1 where not even 0 is
    enough."""
    low, high = -1, floor(n * max_loss)
    while low < high:
        middle = (low + high + 1) // 2
        if binomial_cdf(middle, n, max_loss) <= delta:
            low = middle
        else:
            high = middle - 1
    return low


def hoeffding_bentkus_p_value(mean: float, n: int, max_loss: float) -> float:
    """p-value of 'the expectation is above max_loss' for n values in [0, 1] with this mean (Bates,
    Angelopoulos, Lei, Malik & Jordan 2021, "Distribution-free, risk-controlling prediction sets",
    section 3.1)."""
    a = min(mean, max_loss)
    entropy = (a * log(a / max_loss) if a > 0 else 0.0) + (
        (1 - a) * log((1 - a) / (1 - max_loss)) if a < 1 else 0.0
    )
    # The small step back keeps n x mean from being lifted a whole unit by rounding.
    bentkus = e * binomial_cdf(ceil(n * mean - 1e-9), n, max_loss)
    return min(1.0, exp(-n * entropy), bentkus)


def betting_p_value(values: FloatArray, max_loss: float, delta: float) -> float:
    """p-value of 'the expectation is above max_loss' for values (n,) in [0, 1], in random order.

    One over the most wealth reached by betting against it with the predictable plug-in bets
    sqrt(2 log(1 / delta) / (n variance)) (Waudby-Smith & Ramdas 2024, "Estimating means of bounded
    random variables by betting", section 4 and eq. 26, one-sided). Bets are at most 1, which keeps
    wealth positive, and growing with `max_loss`.
    """
    return float(np.exp(-_wealth(values[None], np.array([max_loss]), delta))[0])


def _wealth(values: FloatArray, bound: FloatArray, delta: float) -> FloatArray:
    """(m,) log of the most wealth reached on values (m, n) or (1, n) against bounds (m,) or (1,)."""
    n = values.shape[1]
    if not n:
        return np.zeros(max(len(values), len(bound)))
    t = np.arange(1.0, n + 1)
    mean = (0.5 + values.cumsum(axis=1)) / (1.0 + t)
    variance = (0.25 + ((values - mean) ** 2).cumsum(axis=1)) / (1.0 + t)
    before = np.concatenate([np.full((len(values), 1), 0.25), variance[:, :-1]], axis=1)
    bets = np.minimum(np.sqrt(2.0 * log(1.0 / delta) / (n * before)), 1.0)
    steps = np.log1p(bets * (bound[:, None] - values))
    return np.asarray(np.maximum(steps.cumsum(axis=1).max(axis=1), 0.0))


def betting_bound(values: FloatArray, delta: float) -> float:
    """The upper bound of the expectation that belongs to `betting`; 1 where nothing is shown."""
    if betting_p_value(values, 1.0, delta) > delta:
        return 1.0
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (
            (middle, high) if betting_p_value(values, middle, delta) > delta else (low, middle)
        )
    return high


# ── the walk ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class RiskControlResult:
    """threshold: cheap serves where the score is at most this; None = nothing can be certified, and
    then `why` says so in words, with `needed` labels where more of them would help.

    n: units the bound rests on (queries, or groups where there are any); losses: their summed loss
    at the threshold; upper_bound of the loss there; share: of the units' queries that go cheap,
    each group counting once. Without a threshold the figures are those of the first step.
    """

    threshold: float | None
    method: Method
    kind: Kind
    n: int
    losses: float
    upper_bound: float
    share: float
    why: str = ""
    needed: int | None = None


def fixed_sequence_test(
    loss: FloatArray,
    score: FloatArray,
    *,
    max_loss: float,
    confidence: float,
    kind: Kind,
    groups: NDArray[np.intp] | None = None,
    thresholds: FloatArray | None = None,
    seed: int = 0,
) -> RiskControlResult:
    """The largest threshold whose gross loss is at most `max_loss` with probability `confidence`.

    loss: (n,) in [0, 1], what would be lost if cheap served. score: (n,), low goes cheap. kind:
    whether every loss is known to be 0 or 1; then the bound is Clopper-Pearson, else it is the
    betting bound, which certifies more than Hoeffding-Bentkus on nearly all graded tables tried
    (docs/concepts/certified-thresholds.md). groups: (n,) numbers of what is not independent: then
    a group's mean is one value of the betting bound, since groups are what is exchangeable, and the
    loss is that of a random query of a random group. thresholds: ascending, chosen without any
    calibration row (`quantile_thresholds`); None = every distinct score of the rows. seed: of the
    order in which bets are placed.
    Raises ValueError for losses out of range or arrays of different lengths.
    """
    _check(loss, score, max_loss, confidence)
    delta = 1.0 - confidence
    unit = np.arange(len(loss)) if groups is None else np.unique(groups, return_inverse=True)[1]
    size = np.bincount(unit, minlength=0)
    grouped = bool((size > 1).any())
    method: Method = "clopper-pearson" if kind == "binary" and not grouped else "betting"
    # Bets see the units in random order, whatever the table is sorted by.
    unit = np.random.default_rng(seed).permutation(len(size))[unit]
    size = np.bincount(unit, minlength=len(size))
    test = _Test(method, len(size), max_loss, delta)
    order = np.argsort(score, kind="stable")
    sorted_score, at = score[order], 0
    steps, ends = _steps(sorted_score, thresholds)
    held = np.zeros(len(size))
    weight = loss / size[unit] if len(loss) else loss
    best: tuple[float, FloatArray, int] | None = None
    first: tuple[FloatArray, int] = (held, 0)
    if test.passes(held):
        for i, (step, end) in enumerate(zip(steps, ends, strict=True)):
            rows = order[at:end]
            new = weight[rows]
            if new.any():
                held = held.copy()
                np.add.at(held, unit[rows], new)
            at = int(end)
            if i == 0:
                first = held, at
            if new.any() and not test.passes(held):
                break
            best = float(step), held, at
    cheap = 1.0 / size[unit] if len(loss) else loss

    def share(end: int) -> float:
        return float(cheap[order[:end]].sum() / len(size)) if len(size) else 0.0

    if best is None or best[2] == 0:
        why, needed = test.shortfall(first[0])
        if best is not None:
            why, needed = "no calibration query scores below any of the thresholds", None
        held, end = first
        return RiskControlResult(
            None, method, kind, len(size), float(held.sum()), test.bound(held), share(end), why,
            needed,
        )  # fmt: skip
    step, held, end = best
    return RiskControlResult(
        step, method, kind, len(size), float(held.sum()), test.bound(held), share(end)
    )  # fmt: skip


class _Test:
    """Whether n units with these losses show an expectation of at most `max_loss`."""

    def __init__(self, method: Method, n: int, max_loss: float, delta: float) -> None:
        self.method = method
        self.n = n
        self.max_loss = max_loss
        self.delta = delta
        self.most = max_allowed_losses(n, max_loss, delta) if n else -1

    def passes(self, losses: FloatArray) -> bool:
        if self.method == "clopper-pearson":
            return round(float(losses.sum())) <= self.most
        return betting_p_value(losses, self.max_loss, self.delta) <= self.delta

    def bound(self, losses: FloatArray) -> float:
        if not self.n:
            return 1.0
        if self.method == "clopper-pearson":
            return clopper_pearson(round(float(losses.sum())), self.n, self.delta)
        return betting_bound(losses, self.delta)

    def shortfall(self, losses: FloatArray) -> tuple[str, int | None]:
        """Why these do not pass, in words, and about how many units would."""
        unit = "labels" if self.method == "clopper-pearson" else "labelled queries or groups"
        mean = float(losses.mean()) if self.n else 0.0
        asked = f"a loss of at most {self.max_loss:g} at confidence {1 - self.delta:g}"
        if self.n and mean >= self.max_loss:
            return (
                f"even the easiest step loses {mean:.3g}, {mean - self.max_loss:.3g} more than the "
                f"{self.max_loss:g} that is allowed",
                None,
            )
        needed = labels_needed(mean, self.max_loss, self.delta, self.method)
        if needed is None:
            return f"the loss of {mean:.3g} is too close to {self.max_loss:g} to tell apart", None
        seen = "no loss" if mean == 0.0 else f"a loss of {mean:.3g}"
        return (
            f"{self.n} {unit} are too few: with {seen} at the easiest step, {asked} takes about "
            f"{needed}",
            needed,
        )


def labels_needed(mean: float, max_loss: float, delta: float, method: Method) -> int | None:
    """About how many labels show that a loss of this mean is at most `max_loss`: exact for
    Clopper-Pearson, for the betting bound what Hoeffding-Bentkus would take (a little more). None:
    more than anybody has."""

    def enough(n: int) -> bool:
        if method == "clopper-pearson":
            return ceil(mean * n - 1e-9) <= max_allowed_losses(n, max_loss, delta)
        return hoeffding_bentkus_p_value(mean, n, max_loss) <= delta

    if mean >= max_loss:
        return None
    high = 1
    while not enough(high):
        high *= 2
        if high > MAX_LABELS or (high > 1_000_000 and mean > 0.0):
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def quantile_thresholds(score: FloatArray, count: int = STEPS) -> FloatArray:
    """`count` thresholds at most, ascending: quantiles of the scores (n,) of training or unlabelled
    queries, each moved half-way to the next score, so that rounding turns no query over."""
    distinct, between = _between(np.sort(score))
    at = np.searchsorted(
        distinct, np.quantile(score, np.arange(1, count + 1) / count, method="inverted_cdf")
    )
    return between[np.unique(at)]


def _steps(
    ascending: FloatArray, thresholds: FloatArray | None
) -> tuple[FloatArray, NDArray[np.intp]]:
    """(thresholds, number of rows at or below each): as given, or between the rows' own scores,
    where the rows' losses are what they are at the lower of the two."""
    if thresholds is None:
        thresholds = _between(ascending)[1]
    return thresholds, np.searchsorted(ascending, thresholds, side="right")


def _between(ascending: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(distinct values, the middle between each and the next, a little above for the last)."""
    if not len(ascending):
        return ascending, ascending
    distinct = ascending[np.append(np.diff(ascending) > 0, True)]
    last = float(distinct[-1])
    after = np.append(distinct[1:], last + 4e-6 * max(1.0, abs(last)))
    return distinct, (distinct + after) / 2


def _check(loss: FloatArray, score: FloatArray, max_loss: float, confidence: float) -> None:
    if loss.shape != score.shape or loss.ndim != 1:
        raise ValueError(f"loss {loss.shape} and score {score.shape}: expected (n,) of both")
    if not (np.isfinite(score).all() and ((loss >= 0) & (loss <= 1)).all()):
        raise ValueError("expected finite scores and losses in [0, 1]")
    if not 0.0 < max_loss < 1.0:
        raise ValueError(f"max_loss: expected above 0 and below 1, got {max_loss!r}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence: expected above 0 and below 1, got {confidence!r}")
