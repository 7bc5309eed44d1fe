"""What `suffice assess` says, as frozen records: the shape of its `--json`.

A share is in [0, 1]. An interval is the 95 % one, [low, high]; None = too few labels for one. All
are clustered by the table's `group`.
"""

from __future__ import annotations

import msgspec

Interval = tuple[float, float]


class Estimate(msgspec.Struct, frozen=True):
    """A figure with its interval. n: labelled queries behind it."""

    value: float
    ci: Interval | None
    n: int


class Spread(msgspec.Struct, frozen=True):
    """Quantiles of a length over the queries."""

    p10: float
    p50: float
    p90: float
    p99: float
    max: float


class Mix(msgspec.Struct, frozen=True):
    """The queries as a whole.

    chars, tokens: of the last human ask; prompt_tokens: estimate for the whole prompt. lengths:
    share of asks of up to 8, 16, 32, ... tokens (the last: longer than all). difficulty: share of
    queries in each tenth of a mixed chat workload, easiest first, by the default policy's score (a
    prior: mostly length). hard_share: share harder than three quarters of that workload. scripts:
    share of queries by the script of most of their letters.
    """

    chars: Spread
    tokens: Spread
    prompt_tokens: Spread
    lengths: tuple[float, ...]
    difficulty: tuple[float, ...]
    hard_share: float
    code_share: float
    math_share: float
    multi_turn_share: float
    duplicate_share: float
    empty_share: float
    scripts: dict[str, float]


class Cluster(msgspec.Struct, frozen=True):
    """Queries that are alike. name, words: what sets them apart from the other clusters, strongest
    first. difficulty: median quantile, as in Mix. models: mean score of each model on its labelled
    queries here. best: the model whose lead over the next is larger than chance here, else None.
    needs_strong: share of queries that only the strong model gets right (Pool says which is which);
    None where no two models can be compared. too_few: the labels here say nothing yet."""

    name: str
    words: tuple[str, ...]
    size: int
    share: float
    median_chars: float
    median_tokens: float
    difficulty: float
    hard_share: float
    examples: tuple[str, ...]
    n_labelled: int
    models: dict[str, Estimate]
    best: str | None
    needs_strong: Estimate | None
    too_few: bool


class ModelLine(msgspec.Struct, frozen=True):
    """One model. quality: its mean score; where models were asked different queries, adjusted for
    how hard those were. cost: mean in the cost unit. compared: whether it has enough labels in
    common with the others to be part of the pools. on_hull: no mix of other models is as good for
    as little; hull_share: in which share of resamples it is. worse_than: the model, or the two
    whose mix is, as good for less. lost_without: area that the whole pool would lose without it,
    mixed and (cross-validated) routed; oracle_lost_without: the same of the oracle, which takes luck
    for skill. adds: area that it adds to the recommended pool, or that this would lose without it.
    verdict: "in the pool" | "adds" | "nothing measurable" | "too few labels to say"."""

    quality: Estimate
    cost: float | None
    compared: bool
    on_hull: bool | None = None
    hull_share: float | None = None
    worse_than: tuple[str, ...] = ()
    lost_without: Estimate | None = None
    routed_lost_without: Estimate | None = None
    oracle_lost_without: Estimate | None = None
    adds: Estimate | None = None
    verdict: str = "too few labels to say"


class PoolLine(msgspec.Struct, frozen=True):
    """One pool of models.

    value: area under its achievable cost-quality hull (mixing and, where labels allow, routing);
    without costs the mean score of routing to the better-predicted model. mixed: the area of
    random mixing alone. routing_gain: what a cross-validated router adds over random mixing at equal
    cost, averaged over the pool's own costs (without costs: over its best model).
    oracle: mean of the best score per query, an upper bound that takes luck for skill.
    exactly_one_right: share of queries on which one model of a pair is right and the other wrong.
    cost_to_keep: {"0.95": cost, relative to the best single model's, at which 95 % of its quality
    is kept}, left out where it cannot be."""

    models: tuple[str, ...]
    value: Estimate
    mixed: float | None
    oracle: Estimate
    routing_gain: Estimate | None = None
    exactly_one_right: Estimate | None = None
    cost_to_keep: dict[str, Estimate] = {}


class Pool(msgspec.Struct, frozen=True):
    """Which models to run.

    n_compared: queries that every compared model has a score on. identical: all models score the
    same on each of them. strong: the best single model;
    cheap: what it is held against in needs_strong. ties: models that cannot be told from the best.
    pairs, triples: best first. lead: by how much the best pair beats the next one. recommended: the
    smallest pool that nothing measurably improves. basis: "routed" where a cross-validated router
    was part of the choice, "shrunken means" where labels were too few for one."""

    n_compared: int
    identical: bool
    basis: str
    strong: str
    cheap: tuple[str, ...]
    ties: tuple[str, ...]
    lead_of_best: Estimate | None
    hull: tuple[str, ...]
    singles: tuple[PoolLine, ...]
    pairs: tuple[PoolLine, ...]
    triples: tuple[PoolLine, ...]
    pair_lead: Estimate | None
    triple_gain: Estimate | None
    everything: PoolLine | None
    recommended: tuple[str, ...]
    needs_strong: Estimate | None


class Assessment(msgspec.Struct, frozen=True):
    """All of it. cost_unit: "usd" | "output_tokens" | None. stability: how well the clusters are
    found again on other queries (adjusted Rand index; 1 = the same); None where there is one."""

    table: str
    n_queries: int
    n_labelled: int
    recommendation: tuple[str, ...]
    mix: Mix
    clusters: tuple[Cluster, ...]
    stability: float | None
    models: dict[str, ModelLine]
    cost_unit: str | None
    cost_source: str
    pool: Pool | None
    warnings: tuple[str, ...]
