"""TODO."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import FloatArray


class ClusterBootstrap:
    """A bootstrap that redraws whole clusters, at a cost that does not grow with the table.

    clusters: (n,) number of each query's cluster. Up to `buckets` clusters each is redrawn itself;
    beyond, clusters are first put together at random into that many buckets, which estimates the
    same variance (grouped resampling).
    """

    def __init__(
        self, clusters: NDArray[np.intp], draws: int, seed: int, buckets: int = 2000
    ) -> None:
        rng = np.random.default_rng(seed)
        which = np.unique(clusters, return_inverse=True)[1]
        count = int(which.max()) + 1
        self.clusters = count
        if count > buckets:
            which = rng.permutation(np.arange(count) % buckets)[which]
            count = buckets
        self._order = np.argsort(which, kind="stable")
        self._starts = np.searchsorted(which[self._order], np.arange(count))
        self._weights = rng.multinomial(count, np.full(count, 1.0 / count), size=draws).astype(
            float
        )
        self._total = self._weights @ self._sums(np.ones((len(which), 1)))

    def _sums(self, values: FloatArray) -> FloatArray:
        return np.asarray(np.add.reduceat(values[self._order], self._starts, axis=0))

    def means(self, values: FloatArray) -> FloatArray:
        """values (n, t) -> means over queries in each redraw, (draws, t)."""
        return np.asarray(self._weights @ self._sums(values) / self._total)


def basic_interval(
    values: Sequence[float] | FloatArray, estimate: float, level: float = 0.95
) -> tuple[float, float] | None:
    """Basic bootstrap interval, the percentiles reflected at the estimate (Davison and Hinkley
    1997, section 5.2); None where more than one value in a hundred is no number.

    A hull picked anew in each redraw profits from chance as the estimate did; reflecting takes that
    off. On tables of this kind it covers a coin's true gain of 0 in 88 to 100 % of runs, where the
    plain percentiles, even moved onto the estimate, cover it in 70 to 80 %.
    """
    v = np.asarray(values, float)
    known = v[~np.isnan(v)]
    if len(known) < 2 or len(known) < 0.99 * len(v) or not np.isfinite(estimate):
        return None
    found = percentile_interval(known, level)
    assert found is not None
    return 2 * estimate - found[1], 2 * estimate - found[0]


def percentile_interval(
    values: Sequence[float] | FloatArray, level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval of bootstrap values; None where any is not a number."""
    v = np.asarray(values, float)
    if not len(v) or np.isnan(v).any():
        return None
    tail = (1.0 - level) / 2
    low, high = np.quantile(v, [tail, 1.0 - tail])
    return float(low), float(high)


def wilson_interval(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval for a share (Wilson 1927); (0, 1) without trials."""
    if n <= 0:
        return 0.0, 1.0
    p = successes / n
    middle = p + z * z / (2 * n)
    spread = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    bottom = 1 + z * z / n
    return max(0.0, (middle - spread) / bottom), min(1.0, (middle + spread) / bottom)
