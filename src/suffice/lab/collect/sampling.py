"""Which queries are worth a label, and what each then stands for.

A part is chosen on purpose: spread over difficulty and meaning, and once there are labels, where
models are expected to differ. A part is drawn at random from all the rest, with known probability,
so that means over the whole pool stay estimable: mean = sum(w * y) / sum(w) with the weights below.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from suffice.lab.collect.journal import SamplingRound
from suffice.lab.data.table import FloatArray
from suffice.lab.predictors.base import Batch

RANDOM_SHARE = 0.3
_STRATA = 5  # of difficulty, equally many queries each
_SHORTLIST = 3  # times as many as are wanted, by expected disagreement, to spread over
MIN_LABELS = 30  # labelled queries below which nothing is expected of them

Rows = NDArray[np.intp]


def choose(
    x: Batch,
    size: int,
    passes: Sequence[SamplingRound],
    seed: int,
    interest: FloatArray | None = None,
) -> SamplingRound:
    """One further pass, so that all passes together have `size` rows of the n of `x`.

    interest: (n,) expected disagreement of the models; None: not known. Deterministic by seed and
    by what was chosen before.
    """
    n = len(x)
    before = selected(passes)
    rng = np.random.default_rng([seed, len(before)])
    free = np.setdiff1d(np.arange(n), before)
    wanted = min(size - len(before), len(free))
    at_random = max(1, round(RANDOM_SHARE * wanted))
    on_purpose = wanted - at_random
    if interest is None:
        chosen = _stratified(x, free, on_purpose, before, rng)
    else:
        ranked = rng.permutation(free)
        ranked = ranked[np.argsort(-interest[ranked], kind="stable")]
        chosen = spread(x.vectors, ranked[: _SHORTLIST * on_purpose], on_purpose, before, rng)
    rest = np.setdiff1d(free, chosen)
    drawn = rng.choice(rest, size=at_random, replace=False)
    return SamplingRound(sorted(map(int, chosen)), sorted(map(int, drawn)))


def selected(passes: Sequence[SamplingRound]) -> Rows:
    """Rows of all passes, sorted."""
    return np.array(sorted(i for p in passes for i in (*p.chosen, *p.random)), dtype=np.intp)


def _stratified(x: Batch, free: Rows, wanted: int, before: Rows, rng: np.random.Generator) -> Rows:
    """Equally many from each fifth of the pool by length, each fifth spread over meaning."""
    length = x.signals[:, 0]
    rank = np.empty(len(length), np.intp)
    rank[np.lexsort((np.arange(len(length)), length))] = np.arange(len(length))
    stratum = rank * _STRATA // len(length)
    out: list[Rows] = []
    left = wanted
    # Small strata first: what they cannot give, the larger ones do.
    groups = sorted((free[stratum[free] == s] for s in range(_STRATA)), key=len)
    for done, group in enumerate(groups):
        take = min(len(group), round(left / (_STRATA - done)))
        out.append(spread(x.vectors, group, take, before, rng))
        left -= take
    return np.concatenate(out)


def spread(
    vectors: NDArray[np.float32],
    candidates: Rows,
    wanted: int,
    centres: Rows,
    rng: np.random.Generator,
) -> Rows:
    """`wanted` of the candidates, far from each other and from `centres`: drawn one by one with a
    probability proportional to the squared distance to the nearest (Arthur and Vassilvitskii 2007,
    "k-means++", section 2.2). Unlike the very farthest points these are not all oddities."""
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
        at = int(rng.choice(len(candidates), p=p))
        chosen.append(int(candidates[at]))
        free[at] = False
        near = np.minimum(near, ((v - v[at]) ** 2).sum(axis=1))
    return np.array(chosen, dtype=np.intp)


def weights(passes: Sequence[SamplingRound], n: int) -> dict[int, float]:
    """row -> how many of the pool's n queries it stands for. They sum to n.

    After pass j, with everything chosen so far known, its r_j random rows stand for the M_j that
    were not chosen, M_j / r_j each, and all rows before for themselves: an unbiased total. The
    passes' totals are averaged in proportion to r_j, which keeps it unbiased.
    """
    known: list[int] = []
    out: dict[int, float] = {}
    draws = sum(len(p.random) for p in passes)
    for p in passes:
        known += p.chosen
        share = len(p.random) / draws
        rest = n - len(known)
        for i in known:
            out[i] = out.get(i, 0.0) + share
        for i in p.random:
            out[i] = out.get(i, 0.0) + share * rest / len(p.random)
        known += p.random
    return out


def thinned(weight: dict[int, float], kept: Sequence[int]) -> dict[int, float]:
    """Weights of the rows that were really asked, where money ended before all were. Rows are asked
    in random order, so those of equal weight stand for each other; what no row is left to stand
    for is shared by all."""
    classes: dict[float, list[int]] = {}
    for i, w in weight.items():
        classes.setdefault(round(w, 9), []).append(i)
    here = set(kept)
    out: dict[int, float] = {}
    for w, members in classes.items():
        stayed = [i for i in members if i in here]
        out.update({i: w * len(members) / len(stayed) for i in stayed})
    total = sum(out.values())
    scale = sum(weight.values()) / total if total else 1.0
    return {i: w * scale for i, w in out.items()}


def disagreement(x: Batch, score: FloatArray) -> FloatArray | None:
    """(n,) how far apart models are expected to score on each query, learned from those that are
    labelled; None below MIN_LABELS of them, or where they tell nothing.

    score: (n, k) with NaN where unknown. The regression is the brain's own safe head, which stays
    near the mean until labels say otherwise.
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
