"""The utility of each model under an objective that one query can decide."""

from __future__ import annotations

import random
from collections.abc import Sequence

from suffice.policies.prepared_pool import PreparedPool, QueryPredictions, T
from suffice.types import Objective

BALANCED = Objective(kind="weights", cost=1.0, speed=0.5, quality=2.0)


def impute_worst(values: Sequence[float | None], margin: float) -> list[float]:
    """Replace unknown values by one that is larger than every known one: unknown is never zero."""
    known = [v for v in values if v is not None]
    if len(known) == len(values):
        return known
    worst = max(known, default=0.0)
    return [worst * 1.01 + margin if v is None else v for v in values]


def utilities(
    pool: PreparedPool[T], predictions: QueryPredictions, objective: Objective
) -> tuple[list[float], str]:
    """Compute the utility of each model; larger is better.

    Objectives over a whole traffic (`keep_quality`) get a utility that replaces them if a policy does
    not solve them.

    Returns:
        (n_models,) utilities, and what was traded in words.
    """
    quality = predictions.quality
    cost = impute_worst(predictions.cost_usd, 1e-9)
    kind, value = objective.kind, objective.value or 0.0
    if kind == "cheapest":
        return [-c for c in cost], ""
    if kind in ("best", "keep_quality"):
        # By a prior the mean quality decides: on an easy query all models look alike.
        q = pool.mean_quality if predictions.basis == "prior" else quality
        return [q[i] - 1e-9 * c for i, c in enumerate(cost)], ""
    if kind == "max_usd_per_query":
        return under_limit(value, predictions.cost_usd, cost, quality, "price")
    latency = impute_worst(predictions.latency_s, 1e-3)
    if kind == "fastest":
        return [-s for s in latency], ""
    if kind == "max_latency_s":
        return under_limit(value, predictions.latency_s, latency, quality, "latency")
    if kind == "worth_usd":
        return [value * q - c for q, c in zip(quality, cost, strict=True)], ""
    w = objective if kind == "weights" else BALANCED
    max_cost, max_latency = max(cost) or 1.0, max(latency) or 1.0
    return [
        w.quality * q - w.cost * c / max_cost - w.speed * s / max_latency
        for q, c, s in zip(quality, cost, latency, strict=True)
    ], ""


def under_limit(
    limit: float,
    values: Sequence[float | None],
    imputed: Sequence[float],
    quality: Sequence[float],
    what: str,
) -> tuple[list[float], str]:
    """Utilities that take the best quality under a limit.

    Args:
        limit: the largest allowed value.
        values: (n_models,) what is limited; None = unknown, which is never under the limit.
        imputed: (n_models,) the same without unknowns.
        quality: (n_models,) predicted.
        what: the name of what is limited.

    Returns:
        (n_models,) utilities: models over the limit come last, the nearest to it first; and what was
        traded in words.
    """
    allowed = [v is not None and x <= limit for v, x in zip(values, imputed, strict=True)]
    reason = "" if any(allowed) else f", which no model meets: the lowest {what} is taken"
    span = max(imputed) + 1e-9
    utility = [
        q if ok else -1.0 - x / span for q, ok, x in zip(quality, allowed, imputed, strict=True)
    ]
    return utility, reason


def randomize(low: int, high: int, share: float, seed: int) -> tuple[int, dict[int, float]]:
    """Draw between two models.

    Returns:
        The index drawn, `low` with the probability `share`, and the probability of each index.
    """
    if low == high or share >= 1.0:
        return low, {low: 1.0}
    if share <= 0.0:
        return high, {high: 1.0}
    index = low if random.Random(seed).random() < share else high
    return index, {low: share, high: 1.0 - share}
