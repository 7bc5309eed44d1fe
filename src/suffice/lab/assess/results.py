"""The result of `suffice assess` as frozen records: the shape of its `--json`.

A share is in [0, 1]. An interval is the 95 % interval [low, high], clustered by the table's `group`;
None means that there are too few labels for one.
"""

from __future__ import annotations

import msgspec

Interval = tuple[float, float]


class Estimate(msgspec.Struct, frozen=True):
    """A figure with its interval."""

    value: float
    ci: Interval | None
    n: int
    """Number of labelled queries it rests on."""


class Quantiles(msgspec.Struct, frozen=True):
    """Quantiles of a length over the queries."""

    p50: float
    p90: float
    p99: float
    max: float


class TrafficProfile(msgspec.Struct, frozen=True):
    """The queries as a whole."""

    chars: Quantiles
    """Of the last user message."""
    tokens: Quantiles
    """Of the last user message."""
    prompt_tokens: Quantiles
    """Estimate for the whole prompt."""
    lengths: tuple[float, ...]
    """Share of messages of up to 8, 16, 32, ... tokens; the last entry is all longer ones."""
    difficulty: tuple[float, ...]
    """Share of queries in each tenth of a mixed chat workload, easiest first, by the default
    policy's score (a prior: mostly length)."""
    hard_share: float
    """Share of queries harder than three quarters of that workload."""
    code_share: float
    math_share: float
    multi_turn_share: float
    duplicate_share: float
    empty_share: float
    scripts: dict[str, float]
    """Share of queries by the script of most of their letters."""


class Cluster(msgspec.Struct, frozen=True):
    """A group of similar queries."""

    name: str
    words: tuple[str, ...]
    """Terms that distinguish it from the other clusters, most distinctive first."""
    size: int
    share: float
    median_chars: float
    median_tokens: float
    difficulty: float
    """Median difficulty, as in `TrafficProfile`."""
    hard_share: float
    examples: tuple[str, ...]
    n_labelled: int
    models: dict[str, Estimate]
    """Mean score of each model on its labelled queries in this cluster."""
    best: str | None
    """The model that leads here by more than chance; None if there is none."""
    needs_strong: Estimate | None
    """Share of queries that only the strong model answers well (see `PoolReport`); None if no two
    models can be compared."""
    too_few: bool
    """Whether there are too few labels to say anything about this cluster."""


class ModelSummary(msgspec.Struct, frozen=True):
    """One model."""

    quality: Estimate
    """Mean score; if models were asked different queries, adjusted for how hard those were."""
    cost: float | None
    """Mean cost per query in the cost unit."""
    compared: bool
    """Whether it has enough labels in common with the others to be part of the pools."""
    on_hull: bool | None = None
    """Whether no mix of other models is as good at this cost."""
    hull_share: float | None = None
    """Share of bootstrap samples in which it is on the hull."""
    adds: Estimate | None = None
    """Value that it adds to the recommended pool, or that the pool would lose without it."""
    verdict: str = "too few labels to say"
    """"in the pool" | "adds" | "nothing measurable" | "too few labels to say"."""


class PoolSummary(msgspec.Struct, frozen=True):
    """One pool of models."""

    models: tuple[str, ...]
    value: Estimate
    """Area under its cost-quality hull (mixing and, if there are enough labels, routing). Without
    costs: the mean score of sending each query to the model with the best prediction."""
    mixed: float | None
    """The area of random mixing alone."""
    oracle: Estimate
    """Mean of the best score per query: an upper bound that counts luck as skill."""
    routing_gain: Estimate | None = None
    """What a cross-validated router adds over random mixing at equal cost, averaged over the pool's
    own costs (without costs: over its best model)."""
    cost_to_keep: dict[str, Estimate] = {}
    """{"0.95": cost relative to the best single model's, at which 95 % of its quality is kept};
    without an entry if that quality cannot be kept."""


class PoolReport(msgspec.Struct, frozen=True):
    """Which models to run."""

    n_compared: int
    """Queries on which every compared model has a score."""
    identical: bool
    """Whether all models have the same score on each query."""
    basis: str
    """"routed" if a cross-validated router was part of the choice, "shrunken means" if there were
    too few labels for one."""
    strong: str
    """The best single model."""
    cheap: tuple[str, ...]
    """The models it is compared with in `needs_strong`."""
    ties: tuple[str, ...]
    """Models that cannot be distinguished from the best."""
    hull: tuple[str, ...]
    singles: tuple[PoolSummary, ...]
    pairs: tuple[PoolSummary, ...]
    """Best first."""
    triples: tuple[PoolSummary, ...]
    """Best first."""
    pair_lead: Estimate | None
    """By how much the best pair is better than the second."""
    triple_gain: Estimate | None
    """By how much the best triple is better than the best pair."""
    everything: PoolSummary | None
    """The pool of all models, if there are more than three."""
    recommended: tuple[str, ...]
    """The smallest pool that no other pool measurably improves on."""
    needs_strong: Estimate | None


class Assessment(msgspec.Struct, frozen=True):
    """The whole result."""

    table: str
    n_queries: int
    n_labelled: int
    recommendation: tuple[str, ...]
    mix: TrafficProfile
    clusters: tuple[Cluster, ...]
    stability: float | None
    """Agreement of the clusters of two halves of the queries (adjusted Rand index; 1 = the same);
    None if there is one cluster."""
    models: dict[str, ModelSummary]
    cost_unit: str | None
    """"usd" | "output_tokens" | None."""
    cost_source: str
    pool: PoolReport | None
    warnings: tuple[str, ...]
