"""Evidence-averaged linear head: Bayesian linear regression averaged over its priors.

Without labels it predicts from the length of the query alone; with many labels it is ridge regression
on signals and embedding; in between the data decide. Two properties make it safe. The posterior means
are averaged by marginal likelihood over a grid of prior widths (MacKay 1992, "Bayesian interpolation",
section 3), because the single best width is sometimes far too wide on fifty labels. And one member of
the average, the null model, says that only length matters, at prior odds of e^2 (about seven to one)
unless another value is given: the labels must first speak against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import FloatArray

# Prior variances of the weights, in units of target per standardised feature.
PRIOR_WIDTHS: tuple[float, ...] = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
# Hyperpriors of log10 width (normal mean and standard deviation) and log odds of the null model:
# chosen on pairs of models of the training tables (docs/concepts/learned-policies.md).
_SIGNALS_LOG10 = (-4.0, 0.75)
_VECTORS_LOG10 = (-3.75, 0.5)
NULL_LOG_ODDS = 2.0
_LENGTH_VARIANCE = 0.002
PSEUDO_LABELS = 20.0  # labels that a prior mean counts as


@dataclass
class BayesianModelAveragingRegression:
    """y = mean + slope * length + signals @ a + vectors @ b + noise.

    Attributes:
        n_signals: s, number of signals without the length.
        vector_spectrum: (d,) prior variance of each vector dimension as a multiple of the width; None:
            all 1.
        null_log_odds: Prior log odds that only length matters; minus infinity rules it out.
        widths: Prior variances to average over.
        intercept_: (h,).
        weights_: (1 + s + d, h).
        noise_: (h,) variance of the noise.
        null_probability_: (h,) posterior probability that only length matters.
    """

    n_signals: int
    vector_spectrum: FloatArray | None = None
    null_log_odds: float = NULL_LOG_ODDS
    widths: tuple[float, ...] = PRIOR_WIDTHS
    intercept_: FloatArray = field(init=False, repr=False)
    weights_: FloatArray = field(init=False, repr=False)
    noise_: FloatArray = field(init=False, repr=False)
    null_probability_: FloatArray = field(init=False, repr=False)

    def fit(
        self,
        design: NDArray[np.floating],
        targets: FloatArray,
        prior_mean: FloatArray,
        prior_slope: FloatArray,
        noise: FloatArray,
        sample_weight: FloatArray | None = None,
    ) -> BayesianModelAveragingRegression:
        """Fit h targets.

        Args:
            design: (n, 1 + s + d) standardised, the length in column 0; n >= 0.
            targets: (n, h), NaN if unknown.
            prior_mean: (h,) expected targets at the average query, worth `PSEUDO_LABELS` labels.
            prior_slope: (h,) on the length.
            noise: (h,) guess of the targets' variance, for the scale of the prior; without labels it
                is the only source.
            sample_weight: (n,) how many labels each row counts as; None: one each.

        Returns:
            Itself.
        """
        n, p = design.shape
        h = targets.shape[1]
        self.intercept_ = prior_mean.astype(float).copy()
        self.weights_ = np.zeros((p, h))
        self.weights_[0] = prior_slope
        self.noise_ = noise.astype(float).copy()
        self.null_probability_ = np.full(h, 1.0 / (1.0 + np.exp(-self.null_log_odds)))
        x = np.concatenate([np.ones((n, 1)), design.astype(float)], axis=1)
        unknown = np.isnan(targets)
        # Heads with the same labelled rows share their matrices: usually all of them.
        patterns, pattern_of = np.unique(unknown, axis=1, return_inverse=True)
        for i in range(patterns.shape[1]):
            rows = ~patterns[:, i]
            if rows.any():
                weight = None if sample_weight is None else sample_weight[rows]
                heads = np.flatnonzero(pattern_of.ravel() == i)
                self._fit_heads(x[rows], targets[rows], heads, weight)
        return self

    def _priors(self, p: int, unit: float) -> tuple[FloatArray, FloatArray]:
        """Priors of the c members of the average; the last one is the null model.

        Returns:
            Log prior of each member (c,), and prior variance of the weights over that of the noise
            (c, p), the intercept in column 0.
        """
        s = self.n_signals
        d = p - 2 - s
        spectrum = np.ones(d) if self.vector_spectrum is None else self.vector_spectrum
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
        variance[:grid, 2 + s :] = t2 * spectrum
        return np.append(log_prior, self.null_log_odds), variance / unit

    def _fit_heads(
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
        solve = solve_over_labels(x, residual) if n < p else solve_over_weights(x, residual)
        evidence = np.empty((len(log_prior), len(heads)))
        noise = np.empty_like(evidence)
        shift = np.empty((len(log_prior), p, len(heads)))
        for c, v in enumerate(variance):
            shift[c], explained, logdet = solve(v)
            # The noise has a prior of PSEUDO_LABELS labels at the guessed scale.
            unexplained = np.maximum(square - explained, 1e-12)
            noise[c] = (unexplained + PSEUDO_LABELS * scale) / (total + PSEUDO_LABELS)
            evidence[c] = (
                log_prior[c] - 0.5 * (total + PSEUDO_LABELS) * np.log(noise[c]) - 0.5 * logdet
            )
        share = np.exp(evidence - evidence.max(axis=0))
        share /= share.sum(axis=0)  # (c, heads)
        best = mean + np.einsum("ch,cph->ph", share, shift)
        self.intercept_[heads] = best[0]
        self.weights_[:, heads] = best[1:]
        self.noise_[heads] = (share * noise).sum(axis=0)
        self.null_probability_[heads] = share[-1]

    def predict(self, design: NDArray[np.floating]) -> FloatArray:
        """(n, h) predicted targets for a design (n, 1 + s + d)."""
        return self.intercept_ + design @ self.weights_


# Both functions solve the same regression for one vector (p,) of prior variances in units of the noise.
# With fewer labels than weights over labels, as a Gaussian process; else over weights. A solution is
# (posterior shift of the weights (p, h), squares explained (h,), log determinant of the evidence).
Solution = tuple[FloatArray, FloatArray, float]


def solve_over_labels(x: FloatArray, residual: FloatArray) -> Callable[[FloatArray], Solution]:
    """A solver for given rows (n, p) and residuals (n, h), for n < p."""
    square = (residual**2).sum(axis=0)

    def solve(v: FloatArray) -> Solution:
        a = (x * v) @ x.T
        a[np.diag_indices_from(a)] += 1.0
        dual = np.linalg.solve(a, residual)
        return v[:, None] * (x.T @ dual), square - (residual * dual).sum(axis=0), _logdet(a)

    return solve


def solve_over_weights(x: FloatArray, residual: FloatArray) -> Callable[[FloatArray], Solution]:
    """A solver for given rows (n, p) and residuals (n, h), for n >= p."""
    gram, cross = x.T @ x, x.T @ residual

    def solve(v: FloatArray) -> Solution:
        root = np.sqrt(v)[:, None]
        a = gram * root * root.T
        a[np.diag_indices_from(a)] += 1.0
        shift = root * np.linalg.solve(a, cross * root)
        return shift, (cross * shift).sum(axis=0), _logdet(a)

    return solve


def _logdet(a: NDArray[np.floating]) -> float:
    return 2.0 * float(np.log(np.diag(np.linalg.cholesky(a))).sum())
