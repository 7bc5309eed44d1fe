"""Estimates what each single model would have cost on the same requests, and what routing saves.

A router gives models different requests, so the ratio of paid to predicted cost on the requests that
one model answered is biased for the others: it may have answered only easy requests with short
answers. Hence the ratio has two parts. One belongs to the request: if its answer was longer than
predicted, another model's answer would have been longer too. The other belongs to the model: its
answers are longer than those of others at the same difficulty, by

    log(paid / predicted) = difficulty + model + noise

fitted by least squares with a normal prior on the models' terms. So

    cost of j = predicted cost of j * paid / predicted of the model i that answered * exp(m_j - m_i)

Intervals are bootstrap percentiles over sessions (Efron and Tibshirani 1993, "An introduction to the
bootstrap", section 13.3). Each sample is refitted with its own draw of the prior's mean, and includes
an allowance for what no traffic shows: how long a model's answers are on requests that it never gets.
The intervals are about as many requests of similar traffic. benchmarks/quality/savings.py measures
the error and the coverage where every cost is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import FloatArray
from suffice.lab.savings.requests import RequestArrays

MIN_USD = 1e-9  # a smaller predicted cost is that of a free model
RESAMPLES = 999
# Standard deviations of logarithms: of the models' answer lengths at equal difficulty, and of how
# much these differ between difficulties, which no traffic shows for a model that never answers.
VERBOSITY_SD = 0.3
INTERACTION_SD = 0.2
_BINS = 9  # of difficulty: eight equal parts, and one for unknown
_DIFFICULTY_PRIOR = 1e-3  # weight, in requests, of a difficulty's term at 0
_NOISE_VARIANCE, _NOISE_PRIOR = 0.3, 10.0  # of one request's logarithm, and its weight in requests
_BATCH_NUMBERS = 4_000_000  # numbers held at once while resampling, 32 MB

Interval = tuple[float, float]


class SingleModelCost(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of one model alone, on the requests of known cost for which its own was predicted.

    Attributes:
        model: Name of the model.
        requests, coverage: Number of those requests, and their share of all of known cost.
        usd, usd_ci: What it would have cost; `None` if unknown.
        spent_usd: What was spent on those requests.
        saved, saved_ci: 1 - spent_usd / usd.
        saved_usd, saved_usd_ci: usd - spent_usd.
        paid_over_predicted: On the `calibrated_on` requests that it answered at the first attempt.
    """

    model: str
    requests: int
    coverage: float
    usd: float | None = None
    usd_ci: Interval | None = None
    spent_usd: float | None = None
    saved: float | None = None
    saved_ci: Interval | None = None
    saved_usd: float | None = None
    saved_usd_ci: Interval | None = None
    paid_over_predicted: float | None = None
    calibrated_on: int = 0

    @property
    def covers_all(self) -> bool:
        """Whether the model could have taken practically all requests."""
        return self.coverage > 0.9995

    @property
    def spent_over_cost(self) -> float | None:
        """What was spent over what the model would have cost; `None` if unknown or free."""
        if self.spent_usd is None or self.saved is None or not self.usd:
            return None
        return self.spent_usd / self.usd


@dataclass(frozen=True)
class _SessionSums:
    """Sums over the requests of each of g sessions, for k models.

    Attributes:
        requests: (g,) requests of known cost.
        covered, spent: (g, k) requests that each model could have taken, and what was spent on them.
        scaled: (g, k, k) by model that answered, each model's predicted cost times the answer's
            paid / predicted.
        unscaled: (g, bins, k) each model's predicted cost where the model that answered is free.
        count, total, square: (g, bins, k) number, sum and sum of squares of log(paid / predicted)
            of the model that answered at the first attempt.
        ratio: (k,) paid / predicted at the first attempt; NaN if nothing was predicted.
        calibrated_on: (k,) requests answered at the first attempt.
    """

    requests: FloatArray
    covered: FloatArray
    spent: FloatArray
    scaled: FloatArray
    unscaled: FloatArray
    count: FloatArray
    total: FloatArray
    square: FloatArray
    ratio: FloatArray
    calibrated_on: NDArray[np.intp]


def single_model_costs(
    requests: RequestArrays, models: Mapping[str, int], *, seed: int = 0
) -> dict[str, SingleModelCost]:
    """Estimate the cost of each model alone.

    Args:
        requests: Of one route.
        models: Model -> column.
        seed: Of the bootstrap.

    Returns:
        Model -> cost, the most expensive first and those of unknown cost last.
    """
    sums = _sum_by_session(requests, len(models))
    usd, spent = _bootstrap(sums, seed)
    n_requests = float(sums.requests.sum())
    costs = []
    for model, j in models.items():
        covered = int(sums.covered[:, j].sum())
        if covered == 0:  # a fallback from outside the pool has no prediction
            costs.append(SingleModelCost(model=model, requests=0, coverage=0.0))
            continue
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            saved = np.where(usd[:, j] >= MIN_USD, 1.0 - spent[:, j] / usd[:, j], np.nan)
        is_free = bool(np.isnan(saved[0]))  # no share of nothing can be saved
        ratio = float(sums.ratio[j])
        costs.append(
            SingleModelCost(
                model=model,
                requests=covered,
                coverage=covered / n_requests,
                usd=float(usd[0, j]),
                usd_ci=_interval(usd[:, j]),
                spent_usd=float(spent[0, j]),
                saved=None if is_free else float(saved[0]),
                saved_ci=None if is_free else _interval(saved),
                saved_usd=float(usd[0, j] - spent[0, j]),
                saved_usd_ci=_interval(usd[:, j] - spent[:, j]),
                paid_over_predicted=None if np.isnan(ratio) else ratio,
                calibrated_on=int(sums.calibrated_on[j]),
            )
        )
    return {c.model: c for c in sorted(costs, key=lambda c: (c.usd is None, -(c.usd or 0.0)))}


def _sum_by_session(r: RequestArrays, k: int) -> _SessionSums:
    g = int(r.group.max(initial=0)) + 1
    known = ~np.isnan(r.paid_usd)
    requests = np.bincount(r.group[known], minlength=g).astype(float)
    predicted = r.of_answering_model(r.predicted_usd)
    usable = known & ~np.isnan(predicted)
    difficulty = np.nan_to_num(r.difficulty * (_BINS - 1)).astype(np.intp).clip(0, _BINS - 2)
    bins = np.where(np.isnan(r.difficulty), _BINS - 1, difficulty)

    first = usable & r.first_attempt
    priced = first & (predicted >= MIN_USD)
    predicted_sum = np.bincount(r.answered[priced], predicted[priced], minlength=k)
    paid_sum = np.bincount(r.answered[priced], r.paid_usd[priced], minlength=k)
    fitted = priced & (r.paid_usd > 0)
    deviation = np.log(r.paid_usd[fitted] / predicted[fitted])
    cell = (r.group[fitted], bins[fitted], r.answered[fitted])
    count, total, square = (np.zeros((g, _BINS, k)) for _ in range(3))
    np.add.at(count, cell, 1.0)
    np.add.at(total, cell, deviation)
    np.add.at(square, cell, deviation * deviation)

    pair = usable[r.request] & ~np.isnan(r.predicted_usd)
    row, model, usd = r.request[pair], r.model[pair], r.predicted_usd[pair]
    covered, spent = np.zeros((g, k)), np.zeros((g, k))
    np.add.at(covered, (r.group[row], model), 1.0)
    np.add.at(spent, (r.group[row], model), r.paid_usd[row])
    paid_for = predicted[row] >= MIN_USD
    row_paid = row[paid_for]
    scaled, unscaled = np.zeros((g, k, k)), np.zeros((g, _BINS, k))
    cost = r.paid_usd[row_paid] * usd[paid_for] / predicted[row_paid]
    np.add.at(scaled, (r.group[row_paid], r.answered[row_paid], model[paid_for]), cost)
    free = row[~paid_for]
    np.add.at(unscaled, (r.group[free], bins[free], model[~paid_for]), usd[~paid_for])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(predicted_sum > 0, paid_sum / predicted_sum, np.nan)
    calibrated_on = np.bincount(r.answered[first], minlength=k)
    return _SessionSums(
        requests, covered, spent, scaled, unscaled, count, total, square, ratio, calibrated_on
    )


def _bootstrap(sums: _SessionSums, seed: int) -> tuple[FloatArray, FloatArray]:
    """Return (USD of each model alone, USD spent on its requests), (1 + draws, k).

    The first row is the estimate. There are no draws if fewer than two sessions count.
    """
    g, k = sums.covered.shape
    zeros = np.zeros((1, k))
    parts = [_estimate(sums, np.ones((1, g)), zeros, zeros)]
    used = np.flatnonzero(sums.requests)
    if len(used) > 1:
        rng = np.random.default_rng(seed)
        batch = max(1, _BATCH_NUMBERS // (g + k * k))
        for start in range(0, RESAMPLES, batch):
            m = min(batch, RESAMPLES - start)
            counts = np.zeros((m, g))
            counts[:, used] = rng.multinomial(len(used), np.full(len(used), 1 / len(used)), size=m)
            prior = VERBOSITY_SD * rng.standard_normal((m, k))
            interaction = INTERACTION_SD * rng.standard_normal((m, k))
            parts.append(_estimate(sums, counts, prior, interaction))
    usd, spent, covered = (np.concatenate(p) for p in zip(*parts, strict=True))
    # Sessions differ in length, but the number of requests is not random.
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(covered > 0, covered[:1] / covered, np.nan)
    return usd * scale, spent * scale


def _estimate(
    sums: _SessionSums, counts: FloatArray, prior: FloatArray, interaction: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (USD of each model alone, USD spent on its requests, its requests), (draws, k).

    Args:
        sums: Of g sessions.
        counts: (draws, g) how often each session counts.
        prior: (draws, k) to which each model's term is shrunk.
        interaction: (draws, k) added to it on requests that another model answered.
    """
    draws, k = len(counts), sums.covered.shape[1]

    def total(values: FloatArray) -> FloatArray:
        flat = counts @ values.reshape(len(values), -1)
        return np.asarray(flat.reshape(draws, *values.shape[1:]))

    level, term = _fit(total(sums.count), total(sums.total), total(sums.square), prior)
    scaled = total(sums.scaled)
    answered = scaled[:, np.arange(k), np.arange(k)]
    others = np.einsum("dij,di->dj", scaled, np.exp(-term)) * np.exp(term) - answered
    # If the model that answered is free, only the difficulty shows how long answers are.
    others += np.einsum("dbj,db->dj", total(sums.unscaled), np.exp(level)) * np.exp(term)
    return answered + others * np.exp(interaction), total(sums.spent), total(sums.covered)


def _fit(
    count: FloatArray, total: FloatArray, square: FloatArray, prior: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Fit the terms of log(paid / predicted).

    Args:
        count: (draws, bins, k) number of logarithms.
        total: (draws, bins, k) their sum.
        square: (draws, bins, k) the sum of their squares.
        prior: (draws, k) mean of the prior of the models' terms.

    Returns:
        The terms of the difficulties (draws, bins) and of the models (draws, k).
    """
    draws, bins, k = count.shape
    level, term = np.arange(bins), np.arange(bins, bins + k)
    with np.errstate(divide="ignore", invalid="ignore"):
        within = (square - np.where(count > 0, total**2 / count, 0.0)).sum(axis=(1, 2))
    freedom = np.maximum(count.sum(axis=(1, 2)) - (count > 0).sum(axis=(1, 2)), 0.0)
    noise = (within + _NOISE_PRIOR * _NOISE_VARIANCE) / (freedom + _NOISE_PRIOR)
    shrinkage = (noise / VERBOSITY_SD**2)[:, None]
    gram = np.zeros((draws, bins + k, bins + k))
    gram[:, level, level] = count.sum(axis=2) + _DIFFICULTY_PRIOR
    gram[:, term, term] = count.sum(axis=1) + shrinkage
    gram[:, :bins, bins:] = count
    gram[:, bins:, :bins] = count.transpose(0, 2, 1)
    target = np.concatenate([total.sum(axis=2), total.sum(axis=1) + shrinkage * prior], axis=1)
    terms = np.linalg.solve(gram, target[:, :, None])[:, :, 0]
    return terms[:, :bins], terms[:, bins:]


def _interval(values: FloatArray) -> Interval | None:
    """Return the 95 % percentiles of the draws after the first row; `None` if there are none."""
    draws = values[1:][~np.isnan(values[1:])]
    if len(draws) < 2:
        return None
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
