"""The default policy: it needs no labels and serves every objective.

Difficulty is a quantile of traffic. A model's predicted quality falls with it around the model's
prior. The objective is solved over that predicted distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from suffice.policies import priors
from suffice.policies.base import PredictivePolicy
from suffice.policies.prepared_pool import PreparedPool, QueryPredictions, Ranking, best_index
from suffice.policies.priors import GRID
from suffice.policies.traffic import (
    ScoreWindow,
    default_quantiles,
    min_cost_for_quality,
    quantile_rank,
)
from suffice.pool import Pool
from suffice.types import Candidate, Features, Objective

_TYPICAL_TOKENS = (
    600,
    400,
)  # input and output of a typical query: weighs models before any is known


class QuantileSolution(NamedTuple):
    """What the default policy computes per pool.

    Attributes:
        curves: (n_models, GRID + 1) predicted quality over difficulty.
        typical_usd: (n_models,) cost of a typical query; an unknown price is above every known one.
        multiplier: quality per USD at the solution of `keep_quality`.
        assignment: (GRID + 1,) the model of each difficulty quantile; None for other objectives.
    """

    curves: tuple[tuple[float, ...], ...]
    typical_usd: tuple[float, ...]
    multiplier: float = 0.0
    assignment: tuple[int, ...] | None = None


@lru_cache(maxsize=1024)
def assign_quantiles(
    curves: tuple[tuple[float, ...], ...], costs: tuple[float, ...], keep: float, reference: int
) -> tuple[float, tuple[int, ...]]:
    """Assign models to difficulty quantiles at least cost.

    The mean predicted quality is at least `keep` x that of the reference. If the Lagrangian
    solution mixes two assignments, the one above the target is taken, and the quality above the target
    is spent on single quantiles, the best saving per lost quality first. Nothing is random.

    Args:
        curves: (n_models, GRID + 1) predicted quality.
        costs: (n_models,) USD.
        keep: share of the reference's quality.
        reference: the index of the reference.

    Returns:
        The multiplier, and the model of each quantile, (GRID + 1,).
    """
    # Costs that differ in the tenth digit are equal: no multiplier tells them apart.
    costs = tuple(float(f"{c:.9g}") for c in costs)
    quality = np.array(curves).T
    multiplier = min_cost_for_quality(
        quality, np.broadcast_to(costs, quality.shape), keep, reference
    ).low
    models = range(len(costs))
    cheapest_first = sorted(models, key=costs.__getitem__)  # argmax takes the first of equals
    utility = quality[:, cheapest_first] - multiplier * np.array(costs)[cheapest_first]
    chosen = [cheapest_first[i] for i in np.argmax(utility, axis=1).tolist()]
    spare = sum(curves[i][g] for g, i in enumerate(chosen)) - keep * sum(curves[reference])
    moves = sorted(
        ((curves[i][g] - curves[m][g]) / (costs[i] - costs[m]), g, m)
        for g, i in enumerate(chosen)
        for m in models
        if costs[m] < costs[i]
    )
    for _, g, m in moves:
        lost = curves[chosen[g]][g] - curves[m][g]
        if costs[m] < costs[chosen[g]] and lost <= spare:
            spare -= lost
            chosen[g] = m
    return multiplier, tuple(chosen)


class DefaultPolicy(PredictivePolicy[QuantileSolution]):
    """Routing without labels by difficulty quantile and model priors. Pure and deterministic.

    Args:
        signal_names: the order of `Features.signals`.
        quantiles: ascending score table of the route's traffic; None = the shipped one.
        objective: overrides the route's, for a named policy; None = the route's.
        name: of the policy.
    """

    def __init__(
        self,
        signal_names: Sequence[str],
        quantiles: Sequence[float] | None = None,
        objective: Objective | None = None,
        name: str = "default",
    ) -> None:
        self.name = name
        self.signal_names = signal_names
        self.quantiles = quantiles
        self.objective = objective
        self._score = priors.DifficultyScorer(signal_names)
        self._table = tuple(default_quantiles() if quantiles is None else quantiles)
        hash_input = f"{self.name}/5/{self._table}/{objective}/{priors.ADJUSTMENTS}/{GRID}"
        digest = blake2b(hash_input.encode(), digest_size=4).hexdigest()
        super().__init__(f"{self.name}-{digest}")

    def traffic_window(self) -> ScoreWindow:
        """A new, empty window of traffic for this policy."""
        return ScoreWindow()

    def with_traffic(self, window: ScoreWindow) -> DefaultPolicy:
        """Copy the policy with the quantiles of a window of traffic."""
        return self.with_quantiles(window.quantiles())

    def with_quantiles(self, quantiles: Sequence[float]) -> DefaultPolicy:
        """Copy the policy with other quantiles of traffic."""
        fresh = type(self)(self.signal_names, quantiles, self.objective, self.name)
        return fresh.with_certificate(self.certificate, self.alarm)

    def score(self, x: Features) -> float:
        """The difficulty score before it becomes a quantile; unbounded."""
        return self._score(x)

    def difficulty(self, x: Features) -> float:
        """The share of traffic that is easier, in [0, 1]."""
        return quantile_rank(self._table, self._score(x))

    def prepare_pool(self, pool: Pool, objective: Objective) -> PreparedPool[QuantileSolution]:
        """Compute the quality curves of a pool, and the solution of `keep_quality`."""
        quality = priors.quality_priors(pool.models)
        curves = priors.quality_curves(quality)
        costs = [priors.cost_usd(m, *_TYPICAL_TOKENS) for m in pool.models]
        above = max((c for c in costs if c is not None), default=1e-6) * 1.01
        typical_usd = tuple([above if c is None else c for c in costs])
        reference = best_index(quality)
        solution = QuantileSolution(curves, typical_usd)
        if objective.kind == "keep_quality":
            target = objective.value or 0.0
            solution = QuantileSolution(
                curves, typical_usd, *assign_quantiles(curves, typical_usd, target, reference)
            )
        mean_quality = [sum(curve) / (GRID + 1) for curve in curves]
        return PreparedPool(pool, objective, mean_quality, reference, solution)

    def predict(
        self,
        pool: PreparedPool[QuantileSolution],
        candidates: tuple[Candidate, ...],
        x: Features,
        max_output_tokens: int | None,
        incumbent: int | None,
        cached_tokens: int,
    ) -> QueryPredictions:
        """Predict from the priors and the query's difficulty."""
        score = self._score(x)
        difficulty = quantile_rank(self._table, score)
        output = priors.output_tokens(difficulty, max_output_tokens)
        quantile = int(difficulty * GRID + 0.5)
        n = x.input_tokens
        cost = [None if p is None else (n * p[0] + output * p[1]) / 1e6 for p in pool.prices]
        if incumbent is not None:
            model = candidates[incumbent].model
            cost[incumbent] = priors.cost_usd(model, n, output, cached_tokens)
        return QueryPredictions(
            [curve[quantile] for curve in pool.solution.curves],
            cost,
            [priors.latency_s(c, output) for c in candidates],
            difficulty,
            score,
            "prior",
        )

    def rank(
        self, pool: PreparedPool[QuantileSolution], predictions: QueryPredictions, seed: int
    ) -> Ranking:
        """Rank by the objective; `keep_quality` by the model assigned to the query's quantile."""
        solution = pool.solution
        if solution.assignment is None:
            return super().rank(pool, predictions, seed)
        utility = [
            q - solution.multiplier * usd
            for q, usd in zip(predictions.quality, solution.typical_usd, strict=True)
        ]
        order = sorted(range(len(utility)), key=utility.__getitem__, reverse=True)
        best = solution.assignment[int(predictions.difficulty * GRID + 0.5)]
        order.remove(best)
        order.insert(0, best)
        return Ranking(order)
