"""The outputs of a linear estimator's heads for single queries."""

from __future__ import annotations

from math import exp
from typing import NamedTuple

import numpy as np

from suffice import features
from suffice.artifacts.estimators import LinearEstimator
from suffice.types import Features


class HeadOutputs(NamedTuple):
    """What the artifact predicts for one query.

    Attributes:
        quality: (k,).
        log_length: standardised log length of the message; 0 if the artifact does not use it.
        cost_usd: (k,) at the training table's prices; None = not learned.
        output_tokens: (k,); None = not learned. They go before the cost, since prices change.
    """

    quality: list[float]
    log_length: float
    cost_usd: list[float] | None
    output_tokens: list[float] | None


class LinearHeads:
    """The heads of a linear estimator, folded for single queries.

    Everything linear in the embedding is one row per token (`features.compile_heads`): a query is one
    gather and one sum over its tokens.

    Args:
        estimator: what was learned.
    """

    def __init__(self, estimator: LinearEstimator) -> None:
        k = len(estimator.models)
        self._k = k
        self._has_tokens = estimator.has_tokens
        self._has_cost = estimator.has_cost
        self._cost = None if np.isnan(estimator.cost).any() else estimator.cost.tolist()
        # Qualities, then what the cost is made from: tokens if learned, else dollars.
        heads = np.r_[:k, -k:0] if estimator.has_tokens or estimator.has_cost else np.r_[:k]
        self._dense = estimator.vectors[:, heads].astype(np.float32)
        self._signals = estimator.signals[:, heads].astype(np.float32)
        self._intercept = estimator.intercept[heads]
        self._mean = estimator.mean
        self._inverse_std = (1.0 / estimator.std).astype(np.float32)
        self._clip = np.float32(estimator.clip)
        self._folded = features.compile_heads(self._dense)

    def __call__(self, x: Features) -> HeadOutputs:
        """Evaluate the heads for a query."""
        # The standard deviation is not folded into the weights: the standardised signal is clipped.
        z = (x.signals - self._mean) * self._inverse_std
        np.minimum(z, self._clip, out=z)
        np.maximum(z, -self._clip, out=z)
        y = z @ self._signals
        if x.embedding is not None or x.token_ids is None:
            y += features.embed(x) @ self._dense
        elif len(x.token_ids):
            total = np.add.reduce(self._folded.take(x.token_ids, axis=0), axis=0)
            if total[-1] > 0.0:
                y += total[:-1] / total[-1]
        outputs: list[float] = (y + self._intercept).tolist()
        k = self._k
        cost, tokens = self._cost, None
        if self._has_tokens:
            cost, tokens = None, [exp(v) for v in outputs[k:]]
        elif self._has_cost:
            cost = [exp(v) for v in outputs[k:]]
        return HeadOutputs(outputs[:k], z.item(0), cost, tokens)
