"""The safe head: Bayesian linear regression whose prior widths are averaged by their evidence.

With no labels it is exactly the length of the ask; with many it is ridge regression on signals and
embedding; between the two the data decide how much to believe. Averaging the posterior means over a
grid of prior widths by marginal likelihood (MacKay 1992, "Bayesian interpolation", section 3) is
what makes it safe: the single best width is sometimes far too wide on fifty labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .table import Floats

# Prior variances of the weights, in units of target per standardised feature.
WIDTHS: tuple[float, ...] = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
# Hyperpriors of log10 width, normal mean and deviation, chosen on pairs of models of the training
# tables so that 50 labels never cost more than they bring (docs/concepts/brain.md).
_SIGNALS_LOG10 = (-4.5, 0.5)
_VECTORS_LOG10 = (-4.0, 0.5)
LENGTH_SLOPE = 0.1  # prior mean of the slope on standardised log length
_LENGTH_VARIANCE = 0.002
PSEUDO_LABELS = 20.0  # what a prior mean counts for


@dataclass
class EvidenceHead:
    """y = mean + slope * length + signals @ a + vectors @ b + noise.

    fit: design (n, 1 + s + d) standardised, the length in column 0; n >= 0. targets (n, h) with NaN
    where unknown. prior_mean (h,): expected targets at the average query, worth `PSEUDO_LABELS`
    labels; prior_slope (h,). noise (h,): guess of the targets' variance, used for the scale of the
    prior and, without labels, alone.
    Learned: `intercept_` (h,), `weights_` (1 + s + d, h), `noise_` (h,) variance of the noise,
    `width_` (h, 2) evidence-weighted log10 of the widths of signals and vectors.
    """

    n_signals: int
    widths: tuple[float, ...] = WIDTHS
    intercept_: Floats = field(init=False, repr=False)
    weights_: Floats = field(init=False, repr=False)
    noise_: Floats = field(init=False, repr=False)
    width_: Floats = field(init=False, repr=False)

    def fit(
        self,
        design: NDArray[np.floating],
        targets: Floats,
        prior_mean: Floats,
        prior_slope: Floats,
        noise: Floats,
        sample_weight: Floats | None = None,
    ) -> EvidenceHead:
        """sample_weight (n,): what each label counts for, 1 where None (1 / probability of having
        been sampled, or forgetting)."""
        n, p = design.shape
        h = targets.shape[1]
        self.intercept_ = prior_mean.astype(float).copy()
        self.weights_ = np.zeros((p, h))
        self.weights_[0] = prior_slope
        self.noise_ = noise.astype(float).copy()
        self.width_ = np.zeros((h, 2))
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

    def _fit_some(
        self, x: Floats, targets: Floats, heads: NDArray[np.intp], weight: Floats | None
    ) -> None:
        n, p = x.shape
        s = self.n_signals
        mean = np.zeros((p, len(heads)))  # prior mean of the weights
        mean[0] = self.intercept_[heads]
        mean[1] = self.weights_[0, heads]
        w = np.ones(n) if weight is None else weight
        total = float(w.sum())
        residual = targets[:, heads] - x @ mean
        xw = x * w[:, None]
        gram = xw.T @ x
        cross = xw.T @ residual
        square = (w[:, None] * residual**2).sum(axis=0)
        # Prior variances are absolute; dividing by the targets' scale makes the noise variance
        # drop out of the posterior mean, so that it can be profiled in closed form.
        scale = np.maximum(self.noise_[heads], 1e-6)
        unit = float(np.median(scale))
        # The largest width fixes a basis in which every other is a small update, but p is a few
        # hundred: a Cholesky per cell is 5 ms, and plain.
        logs = np.log10(self.widths)
        hyper_signals = -0.5 * ((logs - _SIGNALS_LOG10[0]) / _SIGNALS_LOG10[1]) ** 2
        hyper_vectors = -0.5 * ((logs - _VECTORS_LOG10[0]) / _VECTORS_LOG10[1]) ** 2
        cells, means = [], []
        for a, t1 in enumerate(self.widths):
            for b, t2 in enumerate(self.widths):
                d = np.empty(p)
                d[0] = unit / PSEUDO_LABELS
                d[1] = _LENGTH_VARIANCE
                d[2 : 1 + s] = t1
                d[1 + s :] = t2
                d /= unit
                factor = np.linalg.cholesky(gram + np.diag(1.0 / d))
                half = np.linalg.solve(factor, cross)
                shift = np.linalg.solve(factor.T, half)
                logdet = 2.0 * np.log(np.diag(factor)).sum() + np.log(d).sum()
                left = np.maximum(square - (half**2).sum(axis=0), 1e-12)
                # The noise has a prior of PSEUDO_LABELS labels at the guessed scale.
                noise = (left + PSEUDO_LABELS * scale) / (total + PSEUDO_LABELS)
                evidence = -0.5 * (total + PSEUDO_LABELS) * np.log(noise) - 0.5 * logdet
                cells.append(
                    (evidence + hyper_signals[a] + hyper_vectors[b], noise, logs[a], logs[b])
                )
                means.append(shift)
        evidence = np.stack([c[0] for c in cells])
        share = np.exp(evidence - evidence.max(axis=0))
        share /= share.sum(axis=0)  # (cells, heads)
        best = mean + np.einsum("ch,cph->ph", share, np.stack(means))
        self.intercept_[heads] = best[0]
        self.weights_[:, heads] = best[1:]
        self.noise_[heads] = (share * np.stack([c[1] for c in cells])).sum(axis=0)
        self.width_[heads, 0] = share.T @ np.array([c[2] for c in cells])
        self.width_[heads, 1] = share.T @ np.array([c[3] for c in cells])

    def predict(self, design: NDArray[np.floating]) -> Floats:
        """(n, h)."""
        return self.intercept_ + design @ self.weights_
