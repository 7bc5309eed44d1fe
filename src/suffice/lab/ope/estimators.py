"""Off-policy estimators: the mean score of a policy on decisions that another policy made.

Pure NumPy. Shapes use n decisions and k models. Scores are in [0, 1]; NaN means unlabelled. Only
labelled decisions enter an estimate: missing feedback is not negative feedback.

    log = LoggedData(action, propensity, reward, propensities, session)
    terms = doubly_robust(log, action_dist, q_hat)          # EstimatorTerms, one row per decision
    estimate_policy_value(terms, log)                       # Estimate: value, interval, difference

Names follow zr-obp: `action_dist` is the evaluation policy's distribution over models, `q_hat` the
reward model's predictions. Every estimator is a ratio of two sums over decisions, so
`intervals.estimate_policy_values` serves all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import FloatArray

IntArray = NDArray[np.intp]


@dataclass(frozen=True)
class LoggedData:
    """Decisions of the logging policy and the scores they received.

    Attributes:
        action: (n,) column of the chosen model.
        propensity: (n,) probability, in (0, 1], with which it was chosen.
        reward: (n,) score in [0, 1]; NaN if unlabelled.
        propensities: (n, k) probability of every model, 0 if it could not be chosen; `None` if
            only the chosen model's is known, in which case the support is unknown.
        session: (n,) number of the session; `None` if every decision is independent.
        episode: (n,) number of the free choice that was in force; `None` if it is the session.
    """

    action: IntArray
    propensity: FloatArray
    reward: FloatArray
    propensities: FloatArray | None = None
    session: IntArray | None = None
    episode: IntArray | None = None

    def __post_init__(self) -> None:
        n = len(self.action)
        columns = {
            "propensity": self.propensity,
            "reward": self.reward,
            "session": self.session,
            "episode": self.episode,
        }
        for name, column in columns.items():
            if column is not None and column.shape != (n,):
                raise ValueError(f"{name}: expected shape ({n},), got {column.shape}")
        p = self.propensity
        if not bool(((p > 0) & (p <= 1 + 1e-9)).all()):
            raise ValueError("propensity: expected above 0 and at most 1 everywhere")
        scores = self.reward[~np.isnan(self.reward)]
        if not bool(((scores >= 0) & (scores <= 1)).all()):
            raise ValueError("reward: expected 0 to 1, or NaN where unknown")
        if self.propensities is not None:
            if self.propensities.ndim != 2 or len(self.propensities) != n:
                raise ValueError(f"propensities: expected ({n}, k), got {self.propensities.shape}")
            chosen = self.propensities[np.arange(n), self.action]
            if not np.allclose(chosen, p, rtol=1e-6, atol=1e-9):
                raise ValueError("propensities: the chosen model's differ from `propensity`")

    def __len__(self) -> int:
        return len(self.action)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(n,) whether each decision has a score."""
        return np.asarray(~np.isnan(self.reward))

    @property
    def sessions(self) -> IntArray:
        """(n,) number of each decision's session."""
        return np.arange(len(self)) if self.session is None else self.session

    @property
    def episodes(self) -> IntArray:
        """(n,) number of the free choice that each decision follows."""
        return self.sessions if self.episode is None else self.episode


@dataclass(frozen=True)
class EstimatorTerms:
    """The summands of an estimate: value = numerator.sum() / denominator.sum(). (n,) each."""

    numerator: FloatArray
    denominator: FloatArray

    @property
    def value(self) -> float:
        """The estimate; NaN if the denominator sums to 0."""
        total = float(self.denominator.sum())
        return float(self.numerator.sum()) / total if total else float("nan")


# ── weights ──────────────────────────────────────────────────────────────────────────────────────


def importance_weights(log: LoggedData, action_dist: FloatArray) -> FloatArray:
    """Return each logged action's probability under the policy over its logged propensity.

    Args:
        log: n decisions.
        action_dist: (n, k) probabilities of the evaluation policy.

    Returns:
        (n,) weights.

    Raises:
        ValueError: If a row of `action_dist` is not a distribution.
    """
    if action_dist.ndim != 2 or len(action_dist) != len(log):
        raise ValueError(f"action_dist: expected ({len(log)}, k), got {action_dist.shape}")
    is_distribution = np.allclose(action_dist.sum(axis=1), 1.0, atol=1e-6)
    if not is_distribution or not bool((action_dist >= -1e-12).all()):
        raise ValueError("action_dist: expected probabilities that sum to 1 in every row")
    return np.asarray(action_dist[np.arange(len(log)), log.action] / log.propensity)


def effective_sample_size(weight: FloatArray, unit: IntArray | None = None) -> float:
    """Return (sum w)^2 / sum w^2 (Kish 1965, "Survey sampling"), 0 if all weights are 0.

    Args:
        weight: (n,) importance weights.
        unit: (n,) unit of each decision; the weight of a unit is the sum over its decisions.
    """
    w = weight if unit is None else sum_by_unit(weight[:, None], unit)[:, 0]
    square = float((w * w).sum())
    return float(w.sum()) ** 2 / square if square else 0.0


def support(propensities: FloatArray, action_dist: FloatArray) -> FloatArray:
    """Return the policy's probability mass on models that the log could have chosen.

    Mass on models of propensity 0 was never observed, and no weight can correct for it.

    Args:
        propensities: (n, k) of the logging policy.
        action_dist: (n, k) of the evaluation policy.

    Returns:
        (n,) shares in [0, 1].
    """
    return np.asarray(np.where(propensities > 0, action_dist, 0.0).sum(axis=1))


def expected_under_policy(action_dist: FloatArray, values: FloatArray) -> FloatArray:
    """Return the (n,) mean of `values` (n, k) under the policy.

    A model that the policy never chooses may have an unknown value (NaN).
    """
    return np.asarray(np.where(action_dist > 0, action_dist * values, 0.0).sum(axis=1))


def sum_by_unit(columns: FloatArray, unit: IntArray) -> FloatArray:
    """Return (n_units, c) sums of the rows of (n, c) `columns` that share a unit."""
    _, index = np.unique(unit, return_inverse=True)
    sums = np.zeros((int(index.max(initial=-1)) + 1, columns.shape[1]))
    np.add.at(sums, index, columns)
    return sums


# ── estimators ───────────────────────────────────────────────────────────────────────────────────


def _labelled_terms(
    log: LoggedData, numerator: FloatArray, denominator: FloatArray | float = 1.0
) -> EstimatorTerms:
    labelled = log.labelled
    return EstimatorTerms(np.where(labelled, numerator, 0.0), np.where(labelled, denominator, 0.0))


def on_policy_value(log: LoggedData) -> EstimatorTerms:
    """Return the terms of the logging policy's mean score over labelled decisions."""
    return _labelled_terms(log, log.reward)


def ips(log: LoggedData, action_dist: FloatArray) -> EstimatorTerms:
    """Return the terms of inverse propensity scoring: the mean of w r.

    Horvitz and Thompson 1952. Unbiased if the log could have made every choice of the policy; noisy
    if weights are large.
    """
    return _labelled_terms(log, importance_weights(log, action_dist) * log.reward)


def snips(log: LoggedData, action_dist: FloatArray) -> EstimatorTerms:
    """Return the terms of self-normalised IPS: the sum of w r over the sum of w.

    Swaminathan and Joachims 2015, "The self-normalized estimator for counterfactual learning",
    equation 8.
    """
    w = importance_weights(log, action_dist)
    return _labelled_terms(log, w * log.reward, w)


def doubly_robust(log: LoggedData, action_dist: FloatArray, q_hat: FloatArray) -> EstimatorTerms:
    """Return the doubly robust terms: the reward model's value plus w times its error on the log.

    Dudik, Langford and Li 2011, "Doubly robust policy evaluation and learning", equation 3.

    Args:
        log: n decisions.
        action_dist: (n, k) probabilities of the evaluation policy.
        q_hat: (n, k) predicted scores, each fitted without the reward of the same row.
    """
    error = log.reward - q_hat[np.arange(len(log)), log.action]
    correction = importance_weights(log, action_dist) * error
    return _labelled_terms(log, expected_under_policy(action_dist, q_hat) + correction)


def direct(log: LoggedData, action_dist: FloatArray, q_hat: FloatArray) -> EstimatorTerms:
    """Return the terms of the direct method: the reward model's value of the policy alone.

    It is as wrong as the reward model, and its interval does not include that error.
    """
    importance_weights(log, action_dist)  # validates action_dist
    return _labelled_terms(log, expected_under_policy(action_dist, q_hat))


# ── diagnostics of the log ───────────────────────────────────────────────────────────────────────


def propensity_z_scores(action: IntArray, propensities: FloatArray) -> FloatArray:
    """Return how many standard deviations each model's count exceeds its propensities' sum.

    A large value means that choices were not drawn from the recorded propensities, which makes
    every weight wrong.

    Args:
        action: (n,) chosen columns.
        propensities: (n, k).

    Returns:
        (k,) z-scores.
    """
    count = np.bincount(action, minlength=propensities.shape[1])
    p = np.clip(propensities, 0.0, 1.0)
    std = np.sqrt((p * (1 - p)).sum(axis=0))
    excess = count - p.sum(axis=0)
    return np.where(np.abs(excess) < 1e-6, 0.0, excess / np.maximum(std, 1e-3))


def labels_missing_not_at_random(action: IntArray, labelled: NDArray[np.bool_], k: int) -> bool:
    """Return whether the share of labelled decisions differs between models by more than chance.

    More than chance means more than three standard deviations and more than 0.05.

    Args:
        action: (n,) chosen columns.
        labelled: (n,) whether each decision has a score.
        k: Number of models.
    """
    count = np.bincount(action, minlength=k).astype(float)
    n_labelled = np.bincount(action[labelled], minlength=k).astype(float)
    share = float(n_labelled.sum() / max(1.0, count.sum()))
    chosen = count > 0
    excess = np.abs(n_labelled[chosen] / count[chosen] - share)
    std = np.sqrt(share * (1 - share) / count[chosen])
    return bool(((excess > 3 * std) & (excess > 0.05)).any())
