"""The alternative of each query, and how much quality is worth one USD in that choice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import FloatArray

EXCHANGE_RATES = 40  # exchange rates that are tried


def quality_gaps(
    quality: FloatArray, cost: FloatArray, rate: float
) -> tuple[NDArray[np.intp], FloatArray]:
    """Choose the alternative of each query as `Certificate.choose_alternative` does.

    Args:
        quality: (n, 1 + cheap) predicted, the reference first.
        cost: (1 + cheap,).
        rate: Quality worth one USD.

    Returns:
        (n,) place of the alternative among the cheap models, and (n,) predicted gap to it.
    """
    penalty = 0.0 if rate == 0.0 else rate * cost[1:]
    alternative = np.argmax(quality[:, 1:] - penalty, axis=1)
    return alternative, quality[:, 0] - quality[np.arange(len(quality)), alternative + 1]


def choose_exchange_rate(quality: FloatArray, cost: FloatArray, max_loss: float) -> float:
    """Find the quality worth one USD at which the alternatives are predicted to save most.

    A query is predicted to lose p (1 - q), as if the reference being right (p) and the alternative
    being right (q) were independent.

    Args:
        quality: (m, 1 + cheap) predicted, of training queries, the reference first.
        cost: (1 + cheap,).
        max_loss: Of the mean predicted loss.

    Returns:
        The rate; 0 if there is one alternative.
    """
    if quality.shape[1] <= 2:
        return 0.0
    differences = np.abs(np.subtract.outer(cost[1:], cost[1:]))
    differences = differences[differences > 0]
    if not len(differences):
        return 0.0
    lowest, highest = 1e-3 / differences.max(), 1e2 / differences.min()
    p = np.clip(quality, 0.0, 1.0)
    best_rate, most_saved = 0.0, -np.inf
    for rate in (0.0, *np.geomspace(lowest, highest, EXCHANGE_RATES)):
        alternative, score = quality_gaps(quality, cost, rate)
        lost = p[:, 0] * (1.0 - p[np.arange(len(p)), alternative + 1])
        order = np.argsort(score, kind="stable")
        within = np.cumsum(lost[order]) / len(p) <= max_loss
        saved = float((cost[0] - cost[alternative[order] + 1])[within].sum())
        if saved > most_saved * (1 + 1e-9) + 1e-12:
            best_rate, most_saved = float(rate), saved
    return best_rate
