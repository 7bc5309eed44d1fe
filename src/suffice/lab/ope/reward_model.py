"""The reward model of the doubly robust estimator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import FloatArray
from suffice.lab.ope.estimators import LoggedData
from suffice.lab.ope.logged_choices import Turn
from suffice.lab.predictors.bayes import BayesianModelAveragingRegression

_FOLDS = 5
_DIMENSIONS = 32  # leading dimensions of the embedding that are used
_VARIANCE = 0.3  # of right/wrong scores, for which the regression's priors are stated
_PRIOR_LABELS = 20  # weight of the overall mean in each model's mean


def predict_scores(turns: Sequence[Turn], log: LoggedData) -> FloatArray:
    """Return `cross_fit_q_hat` of n turns, with embeddings if all turns have one."""
    embeddings = [t.embedding for t in turns if t.embedding is not None]
    vectors = np.stack(embeddings).astype(float) if len(embeddings) == len(turns) else None
    return cross_fit_q_hat(log, np.stack([t.signals for t in turns]), vectors)


def cross_fit_q_hat(
    log: LoggedData, signals: NDArray[np.floating], vectors: FloatArray | None
) -> FloatArray:
    """Predict every model's score on every query, each from other sessions than its own.

    The regression is fitted on the labelled decisions of each model in `_FOLDS` folds of sessions.
    The doubly robust estimate is unbiased for any quality of these predictions; better ones
    make its interval narrower.

    Args:
        log: n decisions over k models.
        signals: (n, s) features.
        vectors: (n, d) embeddings; `None` if some are unknown.

    Returns:
        (n, k) scores in [0, 1].
    """
    n = len(log)
    k = log.propensities.shape[1] if log.propensities is not None else int(log.action.max()) + 1
    x = signals.astype(float)
    std = x.std(axis=0)
    x = np.clip((x - x.mean(axis=0)) / np.where(std > 1e-6, std, 1.0), -4.0, 4.0)
    n_signals = x.shape[1]
    if vectors is not None:
        x = np.concatenate([x, 4.0 * vectors[:, :_DIMENSIONS]], axis=1)
    _, unit = np.unique(log.sessions, return_inverse=True)
    # Sessions are permuted because neighbours in time must not all be in one fold.
    fold = np.random.default_rng(0).permutation(int(unit.max(initial=-1)) + 1)[unit] % _FOLDS
    q_hat = np.zeros((n, k))
    for f in range(_FOLDS):
        train = (fold != f) & log.labelled
        reward = log.reward[train]
        target = np.full((len(reward), k), np.nan)
        target[np.arange(len(target)), log.action[train]] = reward
        mean = float(reward.mean()) if len(reward) else 0.5
        variance = float(reward.var()) if len(reward) else 0.0
        scale = float(np.sqrt(max(variance, 1e-4) / _VARIANCE))
        known = ~np.isnan(target)
        total = np.where(known, target, 0.0).sum(axis=0)
        level = (total + _PRIOR_LABELS * mean) / (known.sum(axis=0) + _PRIOR_LABELS)
        regression = BayesianModelAveragingRegression(n_signals - 1).fit(
            x[train], target / scale, level / scale, np.zeros(k), np.full(k, _VARIANCE)
        )
        q_hat[fold == f] = regression.predict(x[fold == f]) * scale
    return np.clip(q_hat, 0.0, 1.0)
