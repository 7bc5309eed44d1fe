"""Selection of the queries to label, and their sampling weights.

One part is selected by design: it covers length and meaning, and once there are labels, queries on
which models are expected to differ. The other part is drawn at random from all other queries with
known probability, so that means over the whole pool can be estimated:
mean = sum(w * y) / sum(w) with the weights below.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from suffice.lab.collect.journal import SamplingRound
from suffice.lab.data.table import FloatArray
from suffice.lab.predictors.base import Batch

RANDOM_SHARE = 0.3
_STRATA = 5  # of length, with equally many queries each
_SHORTLIST = 3  # times the wanted number, by expected disagreement, to select from
MIN_LABELS = 30  # labelled queries from which disagreement is predicted

Rows = NDArray[np.intp]


def choose_round(
    x: Batch,
    size: int,
    passes: Sequence[SamplingRound],
    seed: int,
    interest: FloatArray | None = None,
) -> SamplingRound:
    """Select one further round, so that all rounds together have `size` of the n rows of `x`.

    The result depends only on the seed and on the earlier rounds.

    Args:
        x: Features of the n queries.
        size: Number of rows of all rounds together.
        passes: The earlier rounds.
        seed: The seed.
        interest: (n,) expected disagreement of the models; None = unknown.

    Returns:
        The further round.
    """
    n = len(x)
    before = selected_rows(passes)
    rng = np.random.default_rng([seed, len(before)])
    free = np.setdiff1d(np.arange(n), before)
    wanted = min(size - len(before), len(free))
    n_random = max(1, round(RANDOM_SHARE * wanted))
    n_designed = wanted - n_random
    if interest is None:
        chosen = _stratified(x, free, n_designed, before, rng)
    else:
        ranked = rng.permutation(free)
        ranked = ranked[np.argsort(-interest[ranked], kind="stable")]
        chosen = k_means_pp(x.vectors, ranked[: _SHORTLIST * n_designed], n_designed, before, rng)
    others = np.setdiff1d(free, chosen)
    sampled = rng.choice(others, size=n_random, replace=False)
    return SamplingRound(sorted(map(int, chosen)), sorted(map(int, sampled)))


def selected_rows(passes: Sequence[SamplingRound]) -> Rows:
    """Rows of all rounds, sorted."""
    return np.array(sorted(i for p in passes for i in (*p.chosen, *p.random)), dtype=np.intp)


def _stratified(x: Batch, free: Rows, wanted: int, before: Rows, rng: np.random.Generator) -> Rows:
    """Select equally many from each fifth of the pool by length, with diverse meaning within each."""
    length = x.signals[:, 0]
    rank = np.empty(len(length), np.intp)
    rank[np.lexsort((np.arange(len(length)), length))] = np.arange(len(length))
    stratum = rank * _STRATA // len(length)
    selected: list[Rows] = []
    remaining = wanted
    # Small strata first: what they lack is taken from larger ones.
    groups = sorted((free[stratum[free] == s] for s in range(_STRATA)), key=len)
    for done, group in enumerate(groups):
        number = min(len(group), round(remaining / (_STRATA - done)))
        selected.append(k_means_pp(x.vectors, group, number, before, rng))
        remaining -= number
    return np.concatenate(selected)


def k_means_pp(
    vectors: NDArray[np.float32],
    candidates: Rows,
    wanted: int,
    centres: Rows,
    rng: np.random.Generator,
) -> Rows:
    """Draw candidates that are far from each other and from `centres`.

    They are drawn one by one with a probability proportional to the squared distance to the nearest
    (Arthur and Vassilvitskii 2007, "k-means++", section 2.2). Unlike the farthest points, these are
    not all outliers.

    Args:
        vectors: (n, n_dimensions).
        candidates: Rows to draw from.
        wanted: How many to draw.
        centres: Rows drawn earlier.
        rng: The random generator.

    Returns:
        The drawn rows.
    """
    chosen: list[int] = []
    v = vectors[candidates].astype(float)
    near = np.full(len(candidates), np.inf)
    for c in centres:
        near = np.minimum(near, ((v - vectors[c]) ** 2).sum(axis=1))
    free = np.ones(len(candidates), bool)
    for _ in range(min(wanted, len(candidates))):
        weight = np.where(free, near if np.isfinite(near).all() else 1.0, 0.0)
        total = weight.sum()
        p = weight / total if total > 0 else free / free.sum()
        index = int(rng.choice(len(candidates), p=p))
        chosen.append(int(candidates[index]))
        free[index] = False
        near = np.minimum(near, ((v - v[index]) ** 2).sum(axis=1))
    return np.array(chosen, dtype=np.intp)


def sampling_weights(passes: Sequence[SamplingRound], n: int) -> dict[int, float]:
    """How many of the pool's n queries each selected row represents; the weights sum to n.

    After round j, given all earlier selections, its r_j random rows represent the M_j rows that were
    not selected by design, M_j / r_j each, and all earlier rows represent themselves. That total is
    unbiased. The totals of the rounds are averaged in proportion to r_j, which keeps it unbiased.

    Args:
        passes: The rounds.
        n: Size of the pool.

    Returns:
        Weight by row.
    """
    known: list[int] = []
    weights: dict[int, float] = {}
    draws = sum(len(p.random) for p in passes)
    for p in passes:
        known += p.chosen
        share = len(p.random) / draws
        others = n - len(known)
        for i in known:
            weights[i] = weights.get(i, 0.0) + share
        for i in p.random:
            weights[i] = weights.get(i, 0.0) + share * others / len(p.random)
        known += p.random
    return weights


def reweight_incomplete(weight: dict[int, float], asked_rows: Sequence[int]) -> dict[int, float]:
    """Weights of the rows that were asked_rows, if the money ended before all were.

    Rows are asked_rows in random order, so rows of equal weight represent each other. The weight of a
    group of which no row was asked_rows is shared by all.

    Args:
        weight: Weight by row of the whole sample.
        asked_rows: The rows that were asked_rows.

    Returns:
        Weight by asked_rows row, with the same sum.
    """
    classes: dict[float, list[int]] = {}
    for i, w in weight.items():
        classes.setdefault(round(w, 9), []).append(i)
    present_rows = set(asked_rows)
    weights: dict[int, float] = {}
    for w, members in classes.items():
        present = [i for i in members if i in present_rows]
        weights.update({i: w * len(members) / len(present) for i in present})
    total = sum(weights.values())
    scale = sum(weight.values()) / total if total else 1.0
    return {i: w * scale for i, w in weights.items()}


def expected_disagreement(x: Batch, score: FloatArray) -> FloatArray | None:
    """Predict how far apart the models score on each query, from the labelled queries.

    The regression is the evidence-averaged head of `suffice train`, which predicts close to the mean
    until labels show more.

    Args:
        x: Features of the n queries.
        score: (n, k), NaN = unknown.

    Returns:
        (n,) predicted difference; None with fewer than MIN_LABELS labelled queries, or if their
        differences are all the same.
    """
    from suffice.lab.predictors.base import design_matrix
    from suffice.lab.predictors.bayes import BayesianModelAveragingRegression

    known = ~np.isnan(score)
    rows = np.flatnonzero(known.sum(axis=1) >= 2)
    if len(rows) < MIN_LABELS:
        return None
    gap = np.nanmax(score[rows], axis=1) - np.nanmin(score[rows], axis=1)
    if gap.std() < 1e-9:
        return None
    d = design_matrix(x)
    head = BayesianModelAveragingRegression(x.signals.shape[1] - 1).fit(
        d[rows], gap[:, None], np.array([gap.mean()]), np.zeros(1), np.array([gap.var()])
    )
    return np.asarray((head.intercept_ + d @ head.weights_)[:, 0])
