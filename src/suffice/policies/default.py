"""The default policy: no labels, every objective.

Difficulty is a quantile of traffic; a model's predicted quality falls with it around the model's
prior; the objective is then solved over that predicted distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffice.policies import priors
from suffice.policies.base import PredictivePolicy, PreparedPool, QueryPredictions, Ranking
from suffice.policies.priors import GRID
from suffice.policies.traffic import ScoreWindow, default_quantiles, quantile_rank
from suffice.types import Candidate, Features, Objective


class _Prior:
    """A pool's part that only this policy needs. curves: (n_candidates, GRID + 1) predicted quality
    over difficulty; typical: (n_candidates,) USD of a typical query; lam, choice: the solution of
    `keep_quality`."""

    __slots__ = ("choice", "curves", "lam", "typical")

    def __init__(
        self, curves: list[tuple[float, ...]], typical: list[float], objective: Objective, best: int
    ) -> None:
        self.curves = curves
        self.typical = typical
        self.lam = 0.0
        self.choice: tuple[int, ...] | None = None
        if objective.kind == "keep_quality":
            self.lam, self.choice = min_cost_for_quality(
                tuple(curves), tuple(typical), objective.value or 0.0, best
            )


@lru_cache(maxsize=1024)
def min_cost_for_quality(
    curves: tuple[tuple[float, ...], ...], costs: tuple[float, ...], keep: float, best: int
) -> tuple[float, tuple[int, ...]]:
    """The cheapest assignment of models to difficulty quantiles whose mean predicted quality is at
    least `keep` x that of model `best`.

    curves: (n_models, GRID + 1) predicted quality; costs: (n_models,) USD. Returns the multiplier
    lambda and the chosen model at each quantile, (GRID + 1,). For a given lambda the argmax of
    quality - lambda * cost is optimal at its own quality (Everett 1963); lambda is bisected to the
    largest that keeps the target, then what slack the last breakpoint leaves is spent on single
    quantiles, the best saving per lost quality first.
    """
    # Costs that differ in the tenth digit are equal: no multiplier tells them apart.
    costs = tuple(float(f"{x:.9g}") for x in costs)
    q = np.asarray(curves)
    c = np.asarray(costs)[:, None]
    n, steps = q.shape
    columns = np.arange(steps)
    target = keep * float(q[best].mean())

    def assign(lam: float) -> NDArray[np.intp]:
        merit = q - lam * c
        # Ties go to the cheaper model.
        return np.asarray(np.argmax(merit - 1e-15 * c / c.max(initial=1e-12), axis=0))

    def mean(chosen: NDArray[np.intp]) -> float:
        return float(q[chosen, columns].mean())

    positive = [x for x in costs if x > 0]
    low, high = 0.0, 1e3 / min(positive, default=1.0)
    if mean(assign(low)) < target:  # only where `best` is not the best everywhere
        return 0.0, (best,) * steps
    if mean(assign(high)) >= target:
        return high, tuple(assign(high).tolist())
    for _ in range(80):
        mid = (low + high) / 2
        if mean(assign(mid)) >= target:
            low = mid
        else:
            high = mid
    chosen = assign(low).tolist()
    slack = mean(assign(low)) * steps - target * steps
    moves = sorted(
        ((curves[i][g] - curves[m][g]) / (costs[i] - costs[m]), g, m)
        for g, i in enumerate(chosen)
        for m in range(n)
        if costs[m] < costs[i]
    )
    for _, g, m in moves:
        lost = curves[chosen[g]][g] - curves[m][g]
        if costs[m] < costs[chosen[g]] and lost <= slack:
            slack -= lost
            chosen[g] = m
    return low, tuple(chosen)


class DefaultPolicy(PredictivePolicy):
    """Zero-label routing by difficulty quantile and model priors. Pure and deterministic.

    signal_names: the order of `Features.signals`. quantiles: ascending score table of the route's
    traffic, None = the shipped one. objective: overrides the route's (the named policies use it).
    """

    name = "default"

    def __init__(
        self,
        signal_names: Sequence[str],
        quantiles: Sequence[float] | None = None,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        self.signal_names = signal_names
        self.quantiles = quantiles
        self.objective = objective
        self._score = priors.DifficultyScorer(signal_names)
        self._table = tuple(default_quantiles() if quantiles is None else quantiles)
        told = f"{self.name}/5/{self._table}/{objective}/{priors.ADJUSTMENTS}/{GRID}"
        self._version = f"{self.name}-{blake2b(told.encode(), digest_size=4).hexdigest()}"

    def traffic_window(self) -> ScoreWindow:
        """What remembers a route's traffic for this policy."""
        return ScoreWindow()

    def with_traffic(self, traffic: ScoreWindow) -> DefaultPolicy:
        """The same policy on the route's own picture of the traffic."""
        return self.with_quantiles(traffic.quantiles())

    def with_quantiles(self, quantiles: Sequence[float]) -> DefaultPolicy:
        """The same policy on another picture of the traffic."""
        fresh = type(self)(self.signal_names, quantiles, self.objective)
        return fresh.with_certificate(self.certificate, self.alarm)

    def score(self, x: Features) -> float:
        """The difficulty score before it becomes a quantile; unbounded."""
        return self._score(x)

    def difficulty(self, x: Features) -> float:
        """Share of traffic that is easier, in [0, 1]."""
        return quantile_rank(self._table, self._score(x))

    def prepare_pool(self, candidates: tuple[Candidate, ...], objective: Objective) -> PreparedPool:
        quality, _guessed = priors.quality_priors(candidates)
        curves = list(priors.quality_curves(quality))
        # A typical query, to weigh models against each other before any query is known. An unknown
        # price is no number: for the order only, it ranks behind every known one.
        costs = [priors.cost_usd(c.model, 600, 400) for c in candidates]
        behind = max((c for c in costs if c is not None), default=1e-6) * 1.01
        typical = [behind if c is None else c for c in costs]
        lead = [sum(curve) / (GRID + 1) for curve in curves]
        pool = PreparedPool(candidates, objective, lead, None)
        pool.best = max(range(len(candidates)), key=lambda i: (quality[i], -i))
        pool.more = _Prior(curves, typical, objective, pool.best)
        return pool

    def predict(
        self, pool: PreparedPool, x: Features, limit: int | None, incumbent: int | None, cached: int
    ) -> QueryPredictions:
        score = self._score(x)
        u = quantile_rank(self._table, score)
        out = priors.output_tokens(u, limit)
        g = int(u * GRID + 0.5)
        cost: list[float | None] = []
        speed: list[float | None] = []
        for i, c in enumerate(pool.candidates):
            held = cached if i == incumbent else 0
            cost.append(priors.cost_usd(c.model, x.input_tokens, out, held))
            speed.append(priors.latency_s(c, out))
        return QueryPredictions(
            [curve[g] for curve in pool.more.curves], cost, speed, u, score, "prior"
        )

    def rank(
        self, pool: PreparedPool, view: QueryPredictions, objective: Objective, seed: int
    ) -> Ranking:
        prior: _Prior = pool.more
        if prior.choice is None:
            return super().rank(pool, view, objective, seed)
        merit = [q - prior.lam * t for q, t in zip(view.quality, prior.typical, strict=True)]
        order = sorted(range(len(merit)), key=lambda i: (-merit[i], i))
        best = prior.choice[int(view.difficulty * GRID + 0.5)]
        order.remove(best)
        order.insert(0, best)
        return Ranking(order)


def make_named(name: str, objective: Objective) -> Any:
    """A policy that follows one objective whatever the route says."""

    class Named(DefaultPolicy):
        def __init__(
            self,
            signal_names: Sequence[str],
            quantiles: Sequence[float] | None = None,
            objective: Objective | None = objective,
        ) -> None:
            super().__init__(signal_names, quantiles, objective)

    Named.name = name
    Named.__name__ = f"{name.capitalize()}Policy"
    return Named
