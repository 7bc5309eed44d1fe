"""What each compared model adds to the recommended pool."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from suffice.lab.assess.comparison import Comparison, hull_models
from suffice.lab.assess.pools import significance, value_gain
from suffice.lab.assess.results import ModelSummary


def add_contributions(
    summaries: dict[str, ModelSummary], comparison: Comparison, pool: Sequence[int]
) -> None:
    """Fill in the fields of each compared model that depend on the pool.

    Args:
        summaries: By model name; the entries of compared models are replaced.
        comparison: The comparison.
        pool: Columns of the recommended pool.
    """
    import msgspec

    priced = comparison.price is not None
    hull = hull_models(comparison.mean_score, comparison.price)
    times_on_hull = np.zeros(len(comparison.models))
    if comparison.price_draws is not None:
        draws = zip(comparison.mean_score_draws, comparison.price_draws, strict=True)
        for mean_score, price in draws:
            times_on_hull[list(hull_models(mean_score, price))] += 1
    hull_share = times_on_hull / len(comparison.mean_score_draws)
    for j, name in enumerate(comparison.models):
        others = tuple(x for x in pool if x != j)
        adds = None
        if j in pool and others:
            adds = value_gain(comparison, pool, others)
        elif j not in pool and (comparison.predicted is not None or priced):
            adds = value_gain(comparison, (*pool, j), pool)
        summaries[name] = msgspec.structs.replace(
            summaries[name],
            compared=True,
            on_hull=j in hull if priced else None,
            hull_share=float(hull_share[j]) if priced else None,
            adds=adds,
            verdict="in the pool" if j in pool else significance(adds),
        )
