"""Fixed-sequence testing of thresholds: how many queries a cheap model may answer.

The cheap model answers if the score of a query (the predicted quality gap to the reference model) is
at most a threshold t. The *gross loss* over all traffic is bounded:
R(t) = E[max(0, score of reference - score of cheap) if gap <= t, else 0], in [0, 1].

Thresholds are tested from the lowest upward, and the first whose loss is not shown to be below the
bound ends the sequence. Fixed-sequence testing needs no correction for many thresholds (Angelopoulos,
Bates, Candes, Jordan and Lei 2021, "Learn then Test", section 2).

The thresholds are quantiles of the scores of training queries. Without training queries every
distinct score of the calibration rows is tested, from the lowest upward. A threshold is then a
function of the scores alone; the error is counted at the first threshold whose true loss is too high,
and that threshold passes with probability at most 1 - confidence. No label selects a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, e, exp, floor, log
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import FloatArray
from suffice.lab.stats import binomial_cdf, clopper_pearson

Kind = Literal["binary", "graded"]
Method = Literal["clopper-pearson", "betting"]
STEPS = 50  # thresholds taken from quantiles
MAX_LABELS = 100_000_000  # larger numbers of labels are not reported as needed


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────


def max_allowed_losses(n: int, max_loss: float, delta: float) -> int:
    """Largest number of losses in `n` whose Clopper-Pearson bound is at most `max_loss`.

    Returns:
        The number, or -1 if even no loss is too many.
    """
    low, high = -1, floor(n * max_loss)
    while low < high:
        middle = (low + high + 1) // 2
        if binomial_cdf(middle, n, max_loss) <= delta:
            low = middle
        else:
            high = middle - 1
    return low


def hoeffding_bentkus_p_value(mean: float, n: int, max_loss: float) -> float:
    """p-value of "the expectation is above `max_loss`" for n values in [0, 1] with this mean."""
    # Bates, Angelopoulos, Lei, Malik and Jordan 2021, "Distribution-free, risk-controlling prediction
    # sets", section 3.1.
    a = min(mean, max_loss)
    entropy = (a * log(a / max_loss) if a > 0 else 0.0) + (
        (1 - a) * log((1 - a) / (1 - max_loss)) if a < 1 else 0.0
    )
    # Without the small offset, rounding could lift n * mean by a whole unit.
    bentkus = e * binomial_cdf(ceil(n * mean - 1e-9), n, max_loss)
    return min(1.0, exp(-n * entropy), bentkus)


def betting_p_value(values: FloatArray, max_loss: float, delta: float) -> float:
    """p-value of "the expectation is above `max_loss`" for values (n,) in [0, 1], in random order.

    It is 1 / (largest wealth reached by betting against that claim) with the predictable plug-in
    bets sqrt(2 log(1 / delta) / (n variance)) (Waudby-Smith and Ramdas 2024, "Estimating means of
    bounded random variables by betting", section 4 and eq. 26, one-sided). Bets are at most 1, so
    that wealth remains positive and increases with `max_loss`.

    Returns:
        The p-value.
    """
    n = len(values)
    if not n:
        return 1.0
    count = np.arange(1.0, n + 1)
    mean = (0.5 + values.cumsum()) / (1.0 + count)
    variance = (0.25 + ((values - mean) ** 2).cumsum()) / (1.0 + count)
    previous = np.concatenate([[0.25], variance[:-1]])
    bets = np.minimum(np.sqrt(2.0 * log(1.0 / delta) / (n * previous)), 1.0)
    log_wealth = np.log1p(bets * (max_loss - values)).cumsum().max()
    return float(np.exp(-max(log_wealth, 0.0)))


def betting_bound(values: FloatArray, delta: float) -> float:
    """Upper confidence bound of the expectation by `betting_p_value`; 1 if no bound is shown."""
    if betting_p_value(values, 1.0, delta) > delta:
        return 1.0
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if betting_p_value(values, middle, delta) > delta:
            low = middle
        else:
            high = middle
    return high


# ── the test ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class RiskControlResult:
    """Outcome of the sequence of tests. Without a threshold the figures are those of the first one."""

    threshold: float | None
    """The cheap model answers if the score is at most this. None: no threshold can be certified."""
    method: Method
    kind: Kind
    n: int
    """Units that the bound rests on: groups if there are any, else queries."""
    losses: float
    """Summed loss of the units at the threshold."""
    upper_bound: float
    """Upper confidence bound of the loss at the threshold."""
    cheap_share: float
    """Share of the units' queries that the cheap model answers; each group counts once."""
    reason: str = ""
    """Why no threshold is certified."""
    labels_needed: int | None = None
    """About how many labels would certify one, if more labels help."""


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
    """Find the largest threshold whose gross loss is at most `max_loss` with this confidence.

    Args:
        loss: (n,) in [0, 1], what is lost if the cheap model answers.
        score: (n,); the cheap model answers queries of low score.
        max_loss: Bound of the expected loss, between 0 and 1.
        confidence: Probability that the bound holds, between 0 and 1.
        kind: "binary" if every loss is known to be 0 or 1. Then the bound is Clopper-Pearson, else the
            betting bound, which certifies more than Hoeffding-Bentkus on nearly all graded tables
            tried (docs/concepts/certified-thresholds.md).
        groups: (n,) numbers of what is not independent. The mean of a group is then one value of the
            betting bound, since groups are exchangeable, and the loss is that of a random query of a
            random group.
        thresholds: Ascending, chosen without any calibration row (`quantile_thresholds`). None: every
            distinct score of the rows.
        seed: Of the order in which bets are placed.

    Returns:
        The threshold with its bound, or the reason why there is none.

    Raises:
        ValueError: If losses are out of range or arrays differ in length.
    """
    _validate(loss, score, max_loss, confidence)
    units = _Units.of_rows(loss, groups, seed)
    method: Method = "clopper-pearson" if kind == "binary" and not units.grouped else "betting"
    test = _LossTest(method, units.n, max_loss, 1.0 - confidence)
    order = np.argsort(score, kind="stable")
    thresholds, ends = _rows_below(score[order], thresholds)
    losses = np.zeros(units.n)
    passed: tuple[float, FloatArray, int] | None = None
    first: tuple[FloatArray, int] = (losses, 0)
    start = 0
    for i, (threshold, end) in enumerate(zip(thresholds, ends, strict=True)):
        if i == 0 and not test.passes(losses):
            break
        rows, start = order[start:end], int(end)
        added = bool(units.weighted_loss[rows].any())
        if added:
            losses = units.add_losses(losses, rows)
        if i == 0:
            first = losses, start
        if added and not test.passes(losses):
            break
        passed = float(threshold), losses, start
    if passed is None or passed[2] == 0:
        reason, needed = test.shortfall(first[0])
        if passed is not None:
            reason, needed = "no calibration query scores below any of the thresholds", None
        losses, end = first
        return RiskControlResult(
            None, method, kind, units.n, float(losses.sum()), test.bound(losses),
            units.share_of(order[:end]), reason, needed,
        )  # fmt: skip
    threshold, losses, end = passed
    return RiskControlResult(
        threshold, method, kind, units.n, float(losses.sum()), test.bound(losses),
        units.share_of(order[:end]),
    )  # fmt: skip


@dataclass(frozen=True)
class _Units:
    """Independent units: groups, or single queries, in the random order in which bets see them."""

    n: int
    of_row: NDArray[np.intp]  # (rows,)
    size: NDArray[np.intp]  # (n,) rows of each unit
    weighted_loss: FloatArray  # (rows,) loss / size of the row's unit

    @classmethod
    def of_rows(cls, loss: FloatArray, groups: NDArray[np.intp] | None, seed: int) -> _Units:
        unit = np.arange(len(loss)) if groups is None else np.unique(groups, return_inverse=True)[1]
        n = int(unit.max()) + 1 if len(unit) else 0
        unit = np.random.default_rng(seed).permutation(n)[unit]
        size = np.bincount(unit, minlength=n)
        return cls(n, unit, size, loss / size[unit] if len(loss) else loss)

    @property
    def grouped(self) -> bool:
        return bool((self.size > 1).any())

    def add_losses(self, losses: FloatArray, rows: NDArray[np.intp]) -> FloatArray:
        """Losses of the units (n,) plus those of more rows."""
        added = np.bincount(self.of_row[rows], self.weighted_loss[rows], minlength=self.n)
        return np.asarray(losses + added)

    def share_of(self, rows: NDArray[np.intp]) -> float:
        """Share of queries that `rows` are, each unit counted once."""
        return float((1.0 / self.size[self.of_row[rows]]).sum() / self.n) if self.n else 0.0


class _LossTest:
    """Tests whether the losses of n units show an expectation of at most `max_loss`."""

    def __init__(self, method: Method, n: int, max_loss: float, delta: float) -> None:
        self.method = method
        self.n = n
        self.max_loss = max_loss
        self.delta = delta
        self.max_losses = max_allowed_losses(n, max_loss, delta) if n else -1

    def passes(self, losses: FloatArray) -> bool:
        if self.method == "clopper-pearson":
            return round(float(losses.sum())) <= self.max_losses
        return betting_p_value(losses, self.max_loss, self.delta) <= self.delta

    def bound(self, losses: FloatArray) -> float:
        if not self.n:
            return 1.0
        if self.method == "clopper-pearson":
            return clopper_pearson(round(float(losses.sum())), self.n, self.delta)
        return betting_bound(losses, self.delta)

    def shortfall(self, losses: FloatArray) -> tuple[str, int | None]:
        """Why these losses do not pass, and about how many units would."""
        unit = "labels" if self.method == "clopper-pearson" else "labelled queries or groups"
        mean = float(losses.mean()) if self.n else 0.0
        goal = f"a loss of at most {self.max_loss:g} at confidence {1 - self.delta:g}"
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
            f"{self.n} {unit} are too few: with {seen} at the easiest step, {goal} takes about "
            f"{needed}",
            needed,
        )


def labels_needed(mean: float, max_loss: float, delta: float, method: Method) -> int | None:
    """About how many labels show that a loss of this mean is at most `max_loss`.

    The number is exact for Clopper-Pearson. For the betting bound it is what Hoeffding-Bentkus would
    take, which is a little more.

    Returns:
        The number, or None if it is beyond any practical number.
    """

    def suffices(n: int) -> bool:
        if method == "clopper-pearson":
            return ceil(mean * n - 1e-9) <= max_allowed_losses(n, max_loss, delta)
        return hoeffding_bentkus_p_value(mean, n, max_loss) <= delta

    if mean >= max_loss:
        return None
    high = 1
    while not suffices(high):
        high *= 2
        if high > MAX_LABELS or (high > 1_000_000 and mean > 0.0):
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def quantile_thresholds(score: FloatArray, count: int = STEPS) -> FloatArray:
    """Ascending thresholds from the scores (n,) of training or unlabelled queries.

    Each is a quantile moved half-way to the next score, so that rounding moves no query across it.

    Returns:
        (m,) with m at most `count`.
    """
    distinct, midpoints = _midpoints(np.sort(score))
    quantiles = np.quantile(score, np.arange(1, count + 1) / count, method="inverted_cdf")
    return midpoints[np.unique(np.searchsorted(distinct, quantiles))]


def _rows_below(
    ascending: FloatArray, thresholds: FloatArray | None
) -> tuple[FloatArray, NDArray[np.intp]]:
    """Thresholds, and how many rows are at or below each; None: between the rows' own scores."""
    if thresholds is None:
        thresholds = _midpoints(ascending)[1]
    return thresholds, np.searchsorted(ascending, thresholds, side="right")


def _midpoints(ascending: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Distinct values, and the middle between each and the next (just above for the last one)."""
    if not len(ascending):
        return ascending, ascending
    distinct = ascending[np.append(np.diff(ascending) > 0, True)]
    last = float(distinct[-1])
    following = np.append(distinct[1:], last + 4e-6 * max(1.0, abs(last)))
    return distinct, (distinct + following) / 2


def _validate(loss: FloatArray, score: FloatArray, max_loss: float, confidence: float) -> None:
    if loss.shape != score.shape or loss.ndim != 1:
        raise ValueError(f"loss {loss.shape} and score {score.shape}: expected (n,) of both")
    if not (np.isfinite(score).all() and ((loss >= 0) & (loss <= 1)).all()):
        raise ValueError("expected finite scores and losses in [0, 1]")
    if not 0.0 < max_loss < 1.0:
        raise ValueError(f"max_loss: expected above 0 and below 1, got {max_loss!r}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence: expected above 0 and below 1, got {confidence!r}")
