"""Intervals and quantiles: cluster bootstrap, binomial intervals, Student's t. Needs SciPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import FloatArray

BUCKETS = 2000  # clusters that are resampled one by one; more are first grouped into this many


class ClusterBootstrap:
    """Bootstrap that resamples whole clusters.

    Up to `BUCKETS` clusters are resampled one by one. More clusters are first assigned at random to
    that many buckets, which estimates the same variance (grouped resampling) at a cost that does not
    grow with the table.

    Attributes:
        n_clusters: Number of distinct clusters.
    """

    def __init__(
        self,
        clusters: NDArray[np.intp],
        draws: int,
        seed: int,
        weight: FloatArray | None = None,
    ) -> None:
        """Draw the resamples.

        Args:
            clusters: (n,) number of the cluster of each row.
            draws: Number of resamples.
            seed: Of the resamples.
            weight: (n,) how many queries of the population each row represents. None: all equal.
        """
        rng = np.random.default_rng(seed)
        bucket = np.unique(clusters, return_inverse=True)[1]
        count = int(bucket.max()) + 1
        self.n_clusters = count
        if count > BUCKETS:
            bucket = rng.permutation(np.arange(count) % BUCKETS)[bucket]
            count = BUCKETS
        self._order = np.argsort(bucket, kind="stable")
        self._starts = np.searchsorted(bucket[self._order], np.arange(count))
        times = rng.multinomial(count, np.full(count, 1.0 / count), size=draws)
        self._times = times.astype(float)
        self._row_weight = None if weight is None else np.asarray(weight, float)[:, None]
        self._totals = self._times @ self._sums(np.ones((len(bucket), 1)))

    def _sums(self, values: FloatArray) -> FloatArray:
        if self._row_weight is not None:
            values = values * self._row_weight
        return np.asarray(np.add.reduceat(values[self._order], self._starts, axis=0))

    def means(self, values: FloatArray) -> FloatArray:
        """Mean over the rows of each resample, weighted if the rows have weights.

        Args:
            values: (n, t).

        Returns:
            (draws, t).
        """
        return np.asarray(self._times @ self._sums(values) / self._totals)


def weighted_mean(values: FloatArray, weight: FloatArray | None) -> FloatArray:
    """Mean over the rows of `values` (n, ...), weighted by `weight` (n,) if it is given."""
    if weight is None:
        return np.asarray(values.mean(axis=0))
    return np.asarray(np.average(values, axis=0, weights=weight))


def effective_weights(weight: FloatArray | None) -> FloatArray | None:
    """Scale weights (n,) so that they sum to the effective sample size.

    The effective sample size is sum(w)^2 / sum(w^2) (Kish 1965, "Survey Sampling", section 11.7):
    a fit then trusts unequal weights less than the same number of equal ones.

    Returns:
        (n,) scaled weights, or None without weights.
    """
    if weight is None or not weight.any():
        return None
    return np.asarray(weight * weight.sum() / (weight**2).sum())


def basic_interval(
    values: Sequence[float] | FloatArray, estimate: float, level: float = 0.95
) -> tuple[float, float] | None:
    """Basic bootstrap interval: the percentiles reflected at the estimate.

    Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 5.2. A hull picked
    again in each resample profits from chance as the estimate does; the reflection subtracts that.
    On tables of this kind the interval covers the true gain of 0 of random mixing in 88 to 100 % of
    runs; plain percentiles, even moved onto the estimate, cover it in 70 to 80 %.

    Args:
        values: The statistic in each resample.
        estimate: The statistic on the table.
        level: Coverage.

    Returns:
        (low, high), or None if more than 1 % of the values are NaN.
    """
    array = np.asarray(values, float)
    known = array[~np.isnan(array)]
    if len(known) < 2 or len(known) < 0.99 * len(array) or not np.isfinite(estimate):
        return None
    low, high = _percentiles(known, level)
    return 2 * estimate - high, 2 * estimate - low


def percentile_interval(
    values: Sequence[float] | FloatArray, level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval of bootstrap values, or None if any value is NaN."""
    array = np.asarray(values, float)
    if not len(array) or np.isnan(array).any():
        return None
    return _percentiles(array, level)


def _percentiles(values: FloatArray, level: float) -> tuple[float, float]:
    tail = (1.0 - level) / 2
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), or (0, 1) without trials."""
    from scipy.stats import binomtest

    if trials <= 0:
        return 0.0, 1.0
    interval = binomtest(round(successes), trials).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def binomial_cdf(successes: int, trials: int, probability: float) -> float:
    """Probability of at most `successes` of `trials`, each with `probability`."""
    from scipy.special import bdtr

    return float(bdtr(min(successes, trials), trials, probability)) if successes >= 0 else 0.0


def clopper_pearson(successes: int, trials: int, delta: float) -> float:
    """Upper confidence bound of a probability (Clopper and Pearson 1934).

    Returns:
        The probability at which at most `successes` of `trials` has probability `delta`.

    Raises:
        ValueError: If `successes` is not in 0 to `trials`, or `trials` is 0.
    """
    from scipy.special import betainccinv

    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} of {trials}: expected 0 <= successes <= trials, trials >= 1")
    if successes == trials:
        return 1.0
    return float(betainccinv(successes + 1, trials - successes, delta))


def student_t_quantile(probability: float, degrees_of_freedom: int) -> float:
    """Quantile of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, probability))
