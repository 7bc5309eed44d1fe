"""What a policy computes per pool, per query and per ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

import msgspec

from suffice.policies.objectives import describe
from suffice.pool import Pool
from suffice.types import Objective, PlanStep

T = TypeVar("T")


class PreparedPool(Generic[T]):
    """What a policy computes once for a pool and an objective.

    Attributes:
        pool: the models.
        objective: what they are ranked by.
        objective_text: the same in words.
        mean_quality: (n_models,) mean predicted quality over the traffic.
        reference: the index of the model that the others are measured against.
        solution: what only one policy needs.
        prices: (n_models,) USD per million input and output tokens; None if one is unknown.
        choice_steps, failover_steps: (n_models,) the steps of a plan.
    """

    __slots__ = (
        "choice_steps",
        "failover_steps",
        "mean_quality",
        "objective",
        "objective_text",
        "pool",
        "prices",
        "reference",
        "solution",
    )

    def __init__(
        self,
        pool: Pool,
        objective: Objective,
        mean_quality: Sequence[float],
        reference: int,
        solution: T,
    ) -> None:
        self.pool = pool
        self.objective = objective
        self.objective_text = describe(objective)
        self.mean_quality = mean_quality
        self.reference = reference
        self.solution = solution
        self.prices: list[tuple[float, float] | None] = []
        for model in pool.models:
            usd_in, usd_out = model.price.input_usd_per_mtok, model.price.output_usd_per_mtok
            self.prices.append(None if usd_in is None or usd_out is None else (usd_in, usd_out))
        self.choice_steps = [PlanStep(name, "choice") for name in pool.names]
        self.failover_steps = [PlanStep(name, "failover") for name in pool.names]

    def plan(self, order: Sequence[int]) -> tuple[PlanStep, ...]:
        """The plan that tries the models in this order."""
        steps = self.failover_steps
        return (self.choice_steps[order[0]], *[steps[i] for i in order[1:]])


class QueryPredictions(msgspec.Struct):
    """What a policy expects of each model of a pool for one query.

    Attributes:
        quality: (n_models,) in about [0, 1]. A linear model can leave that range, which ranks as well.
        cost_usd: (n_models,); None = unknown.
        latency_s: (n_models,); None = unknown.
        difficulty: the share of traffic that is easier, in [0, 1].
        score: the policy's own score that the difficulty is a quantile of.
        basis: where the predictions come from.
    """

    quality: list[float]
    cost_usd: list[float | None]
    latency_s: list[float | None]
    difficulty: float
    score: float
    basis: Literal["prior", "trained", "certified"]


class Ranking(msgspec.Struct):
    """The models of a pool in order.

    Attributes:
        order: indices, best first.
        reason: what was traded, to end a sentence with; may be empty.
        propensities: (n_models,) the probability of each as the first; None = the first is certain.
    """

    order: list[int]
    reason: str = ""
    propensities: list[float] | None = None


def best_index(values: Sequence[float]) -> int:
    """The index of the largest value, the first of equals."""
    return max(range(len(values)), key=lambda i: (values[i], -i))
