"""The posterior of a hierarchical Bayesian linear regression, from sufficient statistics.

A score of model j on design row x is modelled as

    y = warm start of j on x + s(x) + a_j(x) + noise

with a term s that all models share and one term a_j per model. Prior widths of both are averaged by
their evidence (MacKay 1992, "Bayesian interpolation", section 3). Without evidence the weights stay
those of the warm start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Prior variances of the weights for scores of variance _UNIT, and hyperpriors of their log10 as
# (mean, standard deviation). Chosen on mmlu_pro and on synthetic topics.
_MODEL_SCALES = (1e-5, 1e-4, 5e-4, 2e-3, 1e-2)
_SHARED_SCALES = (1e-5, 1e-4, 1e-3, 1e-2)
_MODEL_LOG10 = (-3.5, 0.5)
_SHARED_LOG10 = (-4.0, 0.7)
_SIGNALS_SCALE = 10.0**-0.5  # variance of the signals' weights relative to that of the vectors'
_UNIT = 0.3
_SHARED_INTERCEPT_VARIANCE = 0.02
_PSEUDO_LABELS = 20.0  # what the prior of a variance counts for
_SCORE_VARIANCE = 0.1  # of scores, before there are any


class Prior(msgspec.Struct, frozen=True):
    """The warm start."""

    weights: FloatArray  # (p, k) over the design
    intercept: FloatArray  # (k,)
    labels: FloatArray  # (k,) number of labels that each intercept counts for


class Posterior(NamedTuple):
    """The posterior mean, averaged over the prior widths."""

    weights: FloatArray  # (p, k) over the design
    intercept: FloatArray  # (k,)
    labels: FloatArray  # (k,) weight of each model's labels, after forgetting
    model_scale: float  # log10 of the width of the models' terms, averaged by evidence
    shared_scale: float  # log10 of the width of the shared term
    noise: float  # variance


class Statistics(msgspec.Struct):
    """Sufficient statistics of weighted labels: O(k p^2) for any number of labels.

    The first column of the design is the intercept.
    """

    gram: FloatArray  # (k, p + 1, p + 1) sum of w x x'
    moment: FloatArray  # (k, p + 1) sum of w x y
    square: FloatArray  # (k,) sum of w y^2
    weight: FloatArray  # (k,) sum of w

    @classmethod
    def zeros(cls, k: int, p: int) -> Statistics:
        """Of no labels of k models over a design of p columns."""
        n = p + 1
        return cls(np.zeros((k, n, n)), np.zeros((k, n)), np.zeros(k), np.zeros(k))


class _Cell(NamedTuple):
    """One combination of prior widths."""

    evidence: float  # log, up to a constant
    model_scale: float  # log10
    shared_scale: float  # log10
    noise: float
    mean: FloatArray  # (k, p + 1)


class _Problem(NamedTuple):
    """Residuals against the warm start, scaled to scores of variance _UNIT."""

    gram: FloatArray
    moment: FloatArray
    square: float
    weight: float  # of all labels
    base: FloatArray  # (p + 1,) relative prior variances
    intercept_labels: FloatArray  # (k,) prior precision of the intercepts
    spectra: list[_Spectrum]


class _Spectrum:
    """A symmetric matrix (p + 1, p + 1) plus a diagonal prior of (first, c / base), for any c.

    One eigendecomposition serves all widths. The first row, the intercept, has a prior that no
    width changes, so it is eliminated first. `eigh` releases the GIL; `slogdet` and `solve` of one
    system do not (NumPy 2.4, matrices of this size).
    """

    def __init__(self, matrix: FloatArray, first: float, base: FloatArray) -> None:
        self._first = first
        self._pivot = float(matrix[0, 0]) + first
        self._row = matrix[0, 1:]
        scale = np.sqrt(base[1:])
        schur = matrix[1:, 1:] - np.outer(self._row, self._row / self._pivot)
        self._values, vectors = np.linalg.eigh(scale[:, None] * schur * scale)
        self._vectors = scale[:, None] * vectors

    def logdet(self, c: float) -> float:
        """Log determinant of the sum, relative to that of the prior."""
        schur = np.log(np.abs(self._values / c + 1.0)).sum()
        return float(np.log(abs(self._pivot / self._first)) + schur)

    def solve(self, c: float, y: FloatArray) -> FloatArray:
        """The solution (p + 1,) for the right-hand side y."""
        v = self._vectors
        tail = v @ ((y[1:] - self._row * (y[0] / self._pivot)) @ v / (self._values + c))
        return np.append((y[0] - self._row @ tail) / self._pivot, tail)

    def inverse(self, c: float) -> FloatArray:
        """(p + 1, p + 1)."""
        v = self._vectors
        result = np.empty((len(v) + 1, len(v) + 1))
        result[1:, 1:] = (v / (self._values + c)) @ v.T
        result[0, 1:] = result[1:, 0] = result[1:, 1:] @ self._row / -self._pivot
        result[0, 0] = (1.0 - self._row @ result[0, 1:]) / self._pivot
        return result


def fit_posterior(statistics: Statistics, prior: Prior, n_signals: int) -> Posterior:
    """The posterior mean given the statistics, averaged by evidence over the prior widths.

    It takes about k + 5 eigendecompositions of (p, p) matrices.

    Args:
        statistics: Of the labels.
        prior: The warm start.
        n_signals: Number of leading design columns that are signals.

    Returns:
        The posterior; exactly the warm start if there are no labels.
    """
    start = np.concatenate([prior.intercept[None], prior.weights]).T  # (k, p + 1)
    labels = statistics.weight.copy()
    if float(labels.sum()) <= 0.0:
        return Posterior(
            prior.weights.copy(), prior.intercept.copy(), labels,
            _MODEL_LOG10[0], _SHARED_LOG10[0], _SCORE_VARIANCE,
        )  # fmt: skip
    unit = _score_scale(statistics)
    problem = _residual_problem(statistics, prior, start, n_signals, unit)
    cells = [cell for scale in _MODEL_SCALES for cell in _cells(problem, scale)]
    evidence = np.array([cell.evidence for cell in cells])
    share = np.exp(evidence - evidence.max())
    share /= share.sum()
    mean = start + unit * np.einsum("c,ckp->kp", share, np.stack([cell.mean for cell in cells]))
    hyper = [(cell.model_scale, cell.shared_scale, cell.noise) for cell in cells]
    model_scale, shared_scale, noise = share @ np.array(hyper)
    return Posterior(
        np.ascontiguousarray(mean[:, 1:].T), mean[:, 0].copy(), labels,
        float(model_scale), float(shared_scale), float(noise) * unit**2,
    )  # fmt: skip


def _score_scale(statistics: Statistics) -> float:
    """What scores are divided by, so that their variance is _UNIT."""
    total = float(statistics.weight.sum())
    sums = float(statistics.moment[:, 0].sum())
    spread = float(statistics.square.sum()) - sums**2 / total
    variance = (spread + _PSEUDO_LABELS * _SCORE_VARIANCE) / (total + _PSEUDO_LABELS)
    return float(np.sqrt(max(variance, 1e-4) / _UNIT))


def _residual_problem(
    statistics: Statistics, prior: Prior, start: FloatArray, n_signals: int, unit: float
) -> _Problem:
    shift = np.einsum("kpq,kq->kp", statistics.gram, start)
    explained = -2.0 * (start * statistics.moment).sum(1) + (start * shift).sum(1)
    base = np.ones(start.shape[1])
    base[1 : 1 + n_signals] = _SIGNALS_SCALE
    spectra = [
        _Spectrum(gram, float(n), base)
        for gram, n in zip(statistics.gram, prior.labels, strict=True)
    ]
    return _Problem(
        gram=statistics.gram,
        moment=(statistics.moment - shift) / unit,
        square=float((statistics.square + explained).sum()) / unit**2,
        weight=float(statistics.weight.sum()),
        base=base,
        intercept_labels=prior.labels,
        spectra=spectra,
    )


def _cells(problem: _Problem, model_scale: float) -> list[_Cell]:
    """The cells of one width of the models' terms and of each width of the shared term.

    Given s the models are independent. So s is solved for with each a_j integrated out: with
    C = (G + P)^-1, model j adds G - G C G = P - P C P to the precision of s.

    Returns:
        One cell per width of the shared term.
    """
    moment, spectra = problem.moment, problem.spectra
    c = _UNIT / model_scale
    q = moment.shape[1]
    precision, pull = np.zeros((q, q)), np.zeros(q)
    fitted, logdet = 0.0, 0.0
    prior = _UNIT / (problem.base * model_scale)
    for j, spectrum in enumerate(spectra):
        prior[0] = problem.intercept_labels[j]
        logdet += spectrum.logdet(c)
        gain = spectrum.solve(c, moment[j])
        fitted += float(moment[j] @ gain)
        pull += prior * gain  # m - G C m
        precision -= prior[:, None] * spectrum.inverse(c) * prior
        precision[np.diag_indices(q)] += prior
    common = _Spectrum(precision, _UNIT / _SHARED_INTERCEPT_VARIANCE, problem.base)
    cells = []
    for shared_scale in _SHARED_SCALES:
        s = common.solve(_UNIT / shared_scale, pull)
        residual = max(problem.square - fitted - float(pull @ s), 1e-9)
        # The noise has a prior of _PSEUDO_LABELS labels at the scale of the scores.
        noise = (residual + _PSEUDO_LABELS * _UNIT) / (problem.weight + _PSEUDO_LABELS)
        log10 = np.log10([model_scale, shared_scale])
        evidence = (
            -0.5 * (problem.weight + _PSEUDO_LABELS) * np.log(noise)
            - 0.5 * (logdet + common.logdet(_UNIT / shared_scale))
            - 0.5 * ((log10[0] - _MODEL_LOG10[0]) / _MODEL_LOG10[1]) ** 2
            - 0.5 * ((log10[1] - _SHARED_LOG10[0]) / _SHARED_LOG10[1]) ** 2
        )
        mean = s + _model_terms(spectra, c, moment - problem.gram @ s)
        cells.append(_Cell(float(evidence), float(log10[0]), float(log10[1]), float(noise), mean))
    return cells


def _model_terms(spectra: Sequence[_Spectrum], c: float, moment: FloatArray) -> FloatArray:
    """(k, p + 1), the terms a_j given s."""
    return np.stack([x.solve(c, y) for x, y in zip(spectra, moment, strict=True)])
