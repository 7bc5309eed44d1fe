"""What each single model would have cost on the same requests, and what that saves.

A router gives models different requests, so what was paid over what was predicted where a model was
taken says little of the others: it was taken for easy ones, say, whose answers are short. Hence two
parts. The request's own: the answer that came was so much dearer than predicted, and another model's
would have been so too. The model's: its answers are longer than others' at the same difficulty, by

    log(paid / predicted) = difficulty + model + noise

fitted by least squares with a normal prior on the models' terms. So

    cost of j = predicted cost of j x paid / predicted of the model i that answered x exp(m_j - m_i)

Intervals: sessions drawn with replacement (bootstrap percentiles: Efron and Tibshirani 1993, "An
introduction to the bootstrap", section 13.3), the fit made anew in each draw with the prior's mean
drawn too, and an allowance for what no traffic shows: how long a model's answers would be on requests
that it never gets. They are about as many requests of traffic like this. benchmarks/quality/savings.py
compares the whole with scaling by model alone and by request alone, where every cost is known, and
measures how often the intervals hold the truth.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from suffice.lab.data.table import FloatArray
from suffice.lab.savings.reading import LEAST_USD
from suffice.lab.savings.traffic import (
    BESIDE_FREE,
    COVERED,
    GUESSED,
    LOG_RATIO,
    LOG_SQUARE,
    PAID,
    RATIOS,
    SPENT,
    TAKEN,
    RouteTotals,
)

RESAMPLES = 999
# Standard deviations of logarithms: of models' lengths of answer at equal difficulty, and of how
# much that differs from one difficulty to another, which no traffic shows where a model never answers.
VERBOSITY_SD = 0.3
INTERACTION_SD = 0.2
_LEVEL = 1e-3  # requests' worth of a difficulty's term at zero
_NOISE, _FEW = 0.3, 10.0  # prior variance of one request's logarithm, and its worth in requests
_CELLS = 4_000_000  # numbers held at a time while resampling, 32 MB


class SingleModelCost(msgspec.Struct, frozen=True, kw_only=True):
    """One model alone, on the `requests` whose cost is known and for which its own was predicted;
    coverage: their share of all requests of known cost. usd: what it would have cost, spent_usd:
    what was spent on them, saved: 1 - spent / usd, saved_usd: usd - spent. None = unknown.
    paid_over_predicted: of the `calibrated_on` requests that it answered at the first attempt."""

    model: str
    requests: int
    coverage: float
    usd: float | None = None
    usd_ci: tuple[float, float] | None = None
    spent_usd: float | None = None
    saved: float | None = None
    saved_ci: tuple[float, float] | None = None
    saved_usd: float | None = None
    saved_usd_ci: tuple[float, float] | None = None
    paid_over_predicted: float | None = None
    calibrated_on: int = 0


def single_model_costs(route: RouteTotals, *, seed: int = 0) -> Mapping[str, SingleModelCost]:
    """Each candidate of the route, the dearest first; those whose cost is unknown last."""
    requests = float(route.requests.sum())
    totals = route.sums.sum(axis=1)
    would, spent = _drawn(route, seed)
    out = []
    for model, j in route.models.items():
        n = int(totals[COVERED, j])
        taken = int(totals[TAKEN, j])
        ratio = totals[PAID, j] / totals[GUESSED, j] if totals[GUESSED, j] > 0 else None
        if n == 0:
            # A fallback from outside the pool has no prediction of its own.
            out.append(SingleModelCost(model=model, requests=0, coverage=0.0))
            continue
        usd, was = would[:, j], spent[:, j]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            saved = np.where(usd >= LEAST_USD, 1.0 - was / usd, np.nan)
        told = not np.isnan(saved[0])  # a free model saves no share of nothing
        out.append(
            SingleModelCost(
                model=model,
                requests=n,
                coverage=n / requests,
                usd=float(usd[0]),
                usd_ci=_interval(usd),
                spent_usd=float(was[0]),
                saved=float(saved[0]) if told else None,
                saved_ci=_interval(saved) if told else None,
                saved_usd=float(usd[0] - was[0]),
                saved_usd_ci=_interval(usd - was),
                paid_over_predicted=None if ratio is None else float(ratio),
                calibrated_on=taken,
            )
        )
    return {s.model: s for s in sorted(out, key=lambda s: (s.usd is None, -(s.usd or 0.0)))}


def _drawn(route: RouteTotals, seed: int) -> tuple[FloatArray, FloatArray]:
    """(USD of each model alone, USD spent beside it), (draws, models): as it is first, then drawn;
    only the first row where there are not two sessions."""
    groups, k = len(route.requests), len(route.models)
    none = np.zeros((1, k))
    parts = [_would(route, np.ones((1, groups)), none, none)]
    used = np.flatnonzero(route.requests)
    if len(used) > 1:
        rng = np.random.default_rng(seed)
        rows = max(1, _CELLS // (groups + k * k))
        for start in range(0, RESAMPLES, rows):
            m = min(rows, RESAMPLES - start)
            counts = np.zeros((m, groups))
            even = np.full(len(used), 1 / len(used))
            counts[:, used] = rng.multinomial(len(used), even, size=m)
            prior = VERBOSITY_SD * rng.standard_normal((m, k))
            parts.append(_would(route, counts, prior, INTERACTION_SD * rng.standard_normal((m, k))))
    would, spent, covered = (np.concatenate(p) for p in zip(*parts, strict=True))
    # Sessions differ in length, but how many requests there were is no matter of chance.
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(covered > 0, covered[:1] / covered, np.nan)
    return would * scale, spent * scale


def _would(
    route: RouteTotals, counts: FloatArray, prior: FloatArray, unseen: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(USD of each model alone, USD spent beside it, requests), (draws, models). counts: (draws,
    groups), how often each counts. prior, unseen: (draws, models), what each model's term is shrunk
    to, and what is added to it on requests that another model answered."""
    g, k = len(route.requests), len(route.models)
    draws = len(counts)
    binned = [(counts @ b.reshape(g, -1)).reshape(draws, -1, k) for b in route.binned]
    level, term = _fitted(binned[RATIOS], binned[LOG_RATIO], binned[LOG_SQUARE], prior)
    scaled = (counts @ route.scaled.reshape(g, -1)).reshape(draws, k, k)
    own = scaled[:, np.arange(k), np.arange(k)]
    other = np.einsum("dij,di->dj", scaled, np.exp(-term)) * np.exp(term) - own
    # Where the model that answered is free, only the difficulty tells how long answers are.
    other += np.einsum("dbj,db->dj", binned[BESIDE_FREE], np.exp(level)) * np.exp(term)
    would = own + other * np.exp(unseen)
    return would, counts @ route.sums[SPENT], counts @ route.sums[COVERED]


def _fitted(
    n: FloatArray, total: FloatArray, square: FloatArray, prior: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """(difficulty (draws, bins), model (draws, models)) terms of log(paid / predicted). n, total,
    square: (draws, bins, models), requests, sum and sum of squares of the logarithms."""
    draws, bins, k = n.shape
    at, to = np.arange(bins), np.arange(bins, bins + k)
    with np.errstate(divide="ignore", invalid="ignore"):
        within = (square - np.where(n > 0, total**2 / n, 0.0)).sum(axis=(1, 2))
    free = np.maximum(n.sum(axis=(1, 2)) - (n > 0).sum(axis=(1, 2)), 0.0)
    # Of one request around its cell; a few pseudo-requests where there are hardly any.
    noise = (within + _FEW * _NOISE) / (free + _FEW)
    shrunk = (noise / VERBOSITY_SD**2)[:, None]
    gram = np.zeros((draws, bins + k, bins + k))
    gram[:, at, at] = n.sum(axis=2) + _LEVEL
    gram[:, to, to] = n.sum(axis=1) + shrunk
    gram[:, :bins, bins:] = n
    gram[:, bins:, :bins] = n.transpose(0, 2, 1)
    moment = np.concatenate([total.sum(axis=2), total.sum(axis=1) + shrunk * prior], axis=1)
    found = np.linalg.solve(gram, moment[:, :, None])[:, :, 0]
    return found[:, :bins], found[:, bins:]


def _interval(draws: FloatArray) -> tuple[float, float] | None:
    """95 %; None where nothing was drawn."""
    known = draws[1:][~np.isnan(draws[1:])]
    if len(known) < 2:
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
