"""What a policy gains over the zero router, with the uncertainty of a finite table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from suffice.lab.data.table import FloatArray
from suffice.lab.evaluate import metrics
from suffice.lab.evaluate.frontier import by_price_of_quality


class Gain(NamedTuple):
    """gain: area over the zero router's; draws: the same in each redraw of the queries."""

    gain: float
    draws: FloatArray

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        return metrics.basic(self.draws, self.gain, level)

    def lower(self, confidence: float) -> float:
        """One-sided lower bound; minus infinity where there is none."""
        found = metrics.basic(self.draws, self.gain, 2 * confidence - 1)
        return -np.inf if found is None else found[0]


def area_gain(
    quality: FloatArray,
    cost: FloatArray,
    score: FloatArray,
    paid: FloatArray,
    redraws: metrics.ClusterBootstrap | None,
) -> Gain:
    """quality, cost: (n, k) as predicted; score, paid: (n, k) as they were. The hulls of the policy
    and of the single models are picked anew in each redraw; no draws without redraws."""
    at, k = np.arange(len(score)), score.shape[1]
    choices = by_price_of_quality(quality, cost)
    costs, scores = paid[at, choices].T, score[at, choices].T  # (n, t)
    singles = np.stack([paid.mean(axis=0), score.mean(axis=0)], axis=1)
    points = np.stack([costs.mean(axis=0), scores.mean(axis=0)], axis=1)
    gain = metrics.area(points, singles) - metrics.area(singles, singles)
    if redraws is None:
        return Gain(gain, np.empty(0))
    means = redraws.means(np.concatenate([costs, scores, paid, score], axis=1))
    m = costs.shape[1]
    draws = np.empty(len(means))
    for i, row in enumerate(means):
        drawn = np.stack([row[:m], row[m : 2 * m]], axis=1)
        single = np.stack([row[2 * m : 2 * m + k], row[2 * m + k :]], axis=1)
        draws[i] = metrics.area(drawn, single) - metrics.area(single, single)
    return Gain(gain, draws)
