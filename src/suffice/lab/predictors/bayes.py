"""The safe head: Bayesian linear regression whose priors are averaged by their evidence.

With no labels it is exactly the length of the ask; with many it is ridge regression on signals and
embedding; between the two the data decide how much to believe. Two things make it safe. The
posterior means are averaged by marginal likelihood over a grid of prior widths (MacKay 1992,
"Bayesian interpolation", section 3), because the single best width is sometimes far too wide on
fifty labels. And one member of the average says that nothing but length matters, at odds of seven
to one before any label where nothing else is asked for: the labels must first speak against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import FloatArray

# Prior variances of the weights, in units of target per standardised feature.
PRIOR_WIDTHS: tuple[float, ...] = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
# Hyperpriors of log10 width, normal mean and deviation, and the log odds of nothing but length:
# chosen on pairs of models of the training tables (docs/concepts/learned-policies.md).
_SIGNALS_LOG10 = (-4.0, 0.75)
_VECTORS_LOG10 = (-3.75, 0.5)
NULL_LOG_ODDS = 2.0
_LENGTH_VARIANCE = 0.002
PSEUDO_LABELS = 20.0  # what a prior mean counts for


@dataclass
class BayesianModelAveragingRegression:
    """y = mean + slope * length + signals @ a + vectors @ b + noise.

    n_signals: s, signals beside the length. spread: (d,) prior variance of each vector dimension as
    a multiple of the width, 1 where None. nothing_odds: log odds of nothing but length before any
    label, minus infinity = ruled out.

    fit: design (n, 1 + s + d) standardised, the length in column 0; n >= 0. targets (n, h) with NaN
    where unknown. prior_mean (h,): expected targets at the average query, worth `PSEUDO_LABELS`
    labels; prior_slope (h,). noise (h,): guess of the targets' variance, used for the scale of the
    prior and, without labels, alone.
    Learned: `intercept_` (h,), `weights_` (1 + s + d, h), `noise_` (h,) variance of the noise,
    `nothing_` (h,) how probable it is that nothing but length matters.
    """

    n_signals: int
    spread: FloatArray | None = None
    nothing_odds: float = NULL_LOG_ODDS
    widths: tuple[float, ...] = PRIOR_WIDTHS
    intercept_: FloatArray = field(init=False, repr=False)
    weights_: FloatArray = field(init=False, repr=False)
    noise_: FloatArray = field(init=False, repr=False)
    nothing_: FloatArray = field(init=False, repr=False)

    def fit(
        self,
        design: NDArray[np.floating],
        targets: FloatArray,
        prior_mean: FloatArray,
        prior_slope: FloatArray,
        noise: FloatArray,
        sample_weight: FloatArray | None = None,
    ) -> BayesianModelAveragingRegression:
        """sample_weight (n,): what each label counts for, 1 where None (1 / probability of having
        been sampled, or forgetting)."""
        n, p = design.shape
        h = targets.shape[1]
        self.intercept_ = prior_mean.astype(float).copy()
        self.weights_ = np.zeros((p, h))
        self.weights_[0] = prior_slope
        self.noise_ = noise.astype(float).copy()
        self.nothing_ = np.full(h, 1.0 / (1.0 + np.exp(-self.nothing_odds)))
        x = np.concatenate([np.ones((n, 1)), design.astype(float)], axis=1)
        unknown = np.isnan(targets)
        # Heads with the same labelled rows share their matrices: usually all of them.
        patterns, which = np.unique(unknown, axis=1, return_inverse=True)
        for i in range(patterns.shape[1]):
            rows = ~patterns[:, i]
            if rows.any():
                w = None if sample_weight is None else sample_weight[rows]
                self._fit_some(x[rows], targets[rows], np.flatnonzero(which.ravel() == i), w)
        return self

    def _priors(self, p: int, unit: float) -> tuple[FloatArray, FloatArray]:
        """(log prior of each member of the average (c,), prior variance of the weights over that of
        the noise (c, p)), the intercept in column 0; the last member is nothing but length."""
        s = self.n_signals
        d = p - 2 - s
        spread = np.ones(d) if self.spread is None else self.spread
        logs = np.log10(self.widths)
        signals = -0.5 * ((logs - _SIGNALS_LOG10[0]) / _SIGNALS_LOG10[1]) ** 2
        vectors = -0.5 * ((logs - _VECTORS_LOG10[0]) / _VECTORS_LOG10[1]) ** 2
        log_prior = (signals[:, None] + vectors).ravel()
        log_prior -= np.log(np.exp(log_prior).sum())
        t1 = np.repeat(self.widths, len(logs))[:, None]
        t2 = np.tile(self.widths, len(logs))[:, None]
        grid = len(log_prior)
        variance = np.zeros((grid + 1, p))
        variance[:, 0] = unit / PSEUDO_LABELS
        variance[:grid, 1] = _LENGTH_VARIANCE
        variance[:grid, 2 : 2 + s] = t1
        variance[:grid, 2 + s :] = t2 * spread
        return np.append(log_prior, self.nothing_odds), variance / unit

    def _fit_some(
        self, x: FloatArray, targets: FloatArray, heads: NDArray[np.intp], weight: FloatArray | None
    ) -> None:
        n, p = x.shape
        mean = np.zeros((p, len(heads)))  # prior mean of the weights
        mean[0] = self.intercept_[heads]
        mean[1] = self.weights_[0, heads]
        residual = targets[:, heads] - x @ mean
        total = float(n)
        if weight is not None:
            total = float(weight.sum())
            root = np.sqrt(weight)[:, None]
            x, residual = x * root, residual * root
        square = (residual**2).sum(axis=0)
        # Prior variances are absolute; dividing by the targets' scale makes the noise variance
        # drop out of the posterior mean, so that it can be profiled in closed form.
        scale = np.maximum(self.noise_[heads], 1e-6)
        log_prior, variance = self._priors(p, float(np.median(scale)))
        solve = _by_rows(x, residual) if n < p else _by_columns(x, residual)
        evidence = np.empty((len(log_prior), len(heads)))
        noise = np.empty_like(evidence)
        shift = np.empty((len(log_prior), p, len(heads)))
        for c, v in enumerate(variance):
            shift[c], explained, logdet = solve(v)
            # The noise has a prior of PSEUDO_LABELS labels at the guessed scale.
            left = np.maximum(square - explained, 1e-12)
            noise[c] = (left + PSEUDO_LABELS * scale) / (total + PSEUDO_LABELS)
            evidence[c] = (
                log_prior[c] - 0.5 * (total + PSEUDO_LABELS) * np.log(noise[c]) - 0.5 * logdet
            )
        share = np.exp(evidence - evidence.max(axis=0))
        share /= share.sum(axis=0)  # (c, heads)
        best = mean + np.einsum("ch,cph->ph", share, shift)
        self.intercept_[heads] = best[0]
        self.weights_[:, heads] = best[1:]
        self.noise_[heads] = (share * noise).sum(axis=0)
        self.nothing_[heads] = share[-1]

    def predict(self, design: NDArray[np.floating]) -> FloatArray:
        """(n, h)."""
        return self.intercept_ + design @ self.weights_


# Both solve the same regression for one vector v (p,) of prior variances, in units of the noise:
# (posterior shift of the weights (p, h), squares explained (h,), log determinant of the evidence).
# Fewer labels than weights: over labels, as a Gaussian process; else over weights.
Solved = tuple[FloatArray, FloatArray, float]


def _by_rows(x: FloatArray, residual: FloatArray) -> Callable[[FloatArray], Solved]:
    square = (residual**2).sum(axis=0)

    def solve(v: FloatArray) -> Solved:
        a = (x * v) @ x.T
        a[np.diag_indices_from(a)] += 1.0
        dual = np.linalg.solve(a, residual)
        return v[:, None] * (x.T @ dual), square - (residual * dual).sum(axis=0), _logdet(a)

    return solve


def _by_columns(x: FloatArray, residual: FloatArray) -> Callable[[FloatArray], Solved]:
    gram, cross = x.T @ x, x.T @ residual

    def solve(v: FloatArray) -> Solved:
        root = np.sqrt(v)[:, None]
        a = gram * root * root.T
        a[np.diag_indices_from(a)] += 1.0
        shift = root * np.linalg.solve(a, cross * root)
        return shift, (cross * shift).sum(axis=0), _logdet(a)

    return solve


def _logdet(a: NDArray[np.floating]) -> float:
    return 2.0 * float(np.log(np.diag(np.linalg.cholesky(a))).sum())
