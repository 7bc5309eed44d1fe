"""`suffice assess`: the mix of queries, and which models to run for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from suffice.errors import UsageError, nearest
from suffice.lab.assess import cluster_names, recommendation
from suffice.lab.assess.adjusted_means import adjusted_means, bootstrap, estimate
from suffice.lab.assess.clustering import Clustering, cluster, merge
from suffice.lab.assess.clusters import describe_clusters
from suffice.lab.assess.comparison import MIN_QUERIES, Comparison, common_queries, compare
from suffice.lab.assess.contributions import add_contributions
from suffice.lab.assess.costs import Costs, costs_of
from suffice.lab.assess.pools import choose_pool
from suffice.lab.assess.results import Assessment, ModelSummary, PoolReport
from suffice.lab.assess.traffic_profile import difficulty, profile_traffic
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.predictors.base import Batch, extract_table
from suffice.lab.stats import ClusterBootstrap
from suffice.types import Model

__all__ = ["Assessment", "assess"]

MAX_MODELS = 100
_VISIBLE_ADJUSTMENT = 0.005  # of a mean score, that is mentioned

OnStep = Callable[[str], None]


def assess(
    table: Table,
    *,
    models: Sequence[str] | None = None,
    clusters: int | None = None,
    priced: Sequence[Model] = (),
    progress: bool = False,
    on_step: OnStep = lambda _: None,
    seed: int = 0,
) -> Assessment:
    """Assess a table of at least one query.

    Args:
        table: The table.
        models: Only these models. None: all with a score.
        clusters: Number of clusters, instead of a number chosen from the data.
        priced: Models whose prices come before the catalog's.
        progress: Show a progress bar on standard error while queries are read.
        on_step: Called with the name of each later step.
        seed: Seed of everything random.

    Returns:
        The assessment.

    Raises:
        UsageError: If a model is unknown, there are more than MAX_MODELS, or `clusters` is below 1.
    """
    if clusters is not None and clusters < 1:
        raise UsageError(f"--clusters {clusters}: expected at least 1.")
    table = _select_models(table, models)
    batch = extract_table(table, progress)
    # One thread: the problems are small, and the result must not depend on the number of cores
    # (sums in another order give other clusters). The limit applies to libraries that are already
    # loaded, so scikit-learn is imported first.
    import sklearn.cluster  # noqa: F401
    import sklearn.metrics  # noqa: F401
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(limits=1):
        return _assess(table, batch, models is not None, clusters, priced, on_step, seed)


def _assess(
    table: Table, batch: Batch, named: bool, clusters: int | None, priced: Sequence[Model],
    on_step: OnStep, seed: int,
) -> Assessment:  # fmt: skip
    on_step("clustering")
    hard = difficulty(batch)
    clustering = cluster(batch.vectors, clusters, seed)
    on_step("naming clusters")
    clustering, words = _name_clusters(table.prompts, clustering, clusters is None, seed)
    on_step("comparing models")
    draws = bootstrap(table, seed)
    labelled = ~np.isnan(table.score).all(axis=1) if table.models else np.zeros(len(table), bool)
    if labelled.any():
        verdict = _compare_models(table, batch, hard, named, priced, draws, seed)
    else:
        sentences = recommendation.without_labels(table.name)
        verdict = _Verdict(sentences, Costs(None, None, "unknown"), {}, None, None, [])
    return Assessment(
        table=table.name,
        n_queries=len(table),
        n_labelled=int(labelled.sum()),
        recommendation=verdict.sentences,
        mix=profile_traffic(table, batch, hard),
        clusters=describe_clusters(
            table, batch, hard, clustering, words, draws, verdict.comparison, verdict.pool
        ),
        stability=clustering.stability,
        models=verdict.models,
        cost_unit=verdict.costs.unit,
        cost_source=verdict.costs.source,
        pool=verdict.pool,
        warnings=(*table.warnings, *verdict.warnings),
    )


class _Verdict(NamedTuple):
    """What the labels say about the models."""

    sentences: tuple[str, ...]
    costs: Costs
    models: dict[str, ModelSummary]
    comparison: Comparison | None
    pool: PoolReport | None
    warnings: list[str]


def _compare_models(
    table: Table, batch: Batch, hard: FloatArray, named: bool, priced: Sequence[Model],
    draws: ClusterBootstrap, seed: int,
) -> _Verdict:  # fmt: skip
    costs = costs_of(table, batch, hard, priced)
    models, is_adjusted = _summarise_models(table, costs, draws)
    columns, rows = common_queries(table.score, keep_all=named)
    if len(columns) == 1 or len(rows) < MIN_QUERIES:
        return _Verdict(_not_comparable(table, models, len(rows)), costs, models, None, None, [])
    warnings = _comparison_notes(table, columns, len(rows), is_adjusted)
    comparison = compare(table, batch, costs.cost, columns, rows, seed)
    pool, picked = choose_pool(comparison, seed)
    add_contributions(models, comparison, picked)
    unit = None if comparison.cost is None else costs.unit
    same_price = comparison.cost is None and costs.cost is not None
    source = "the same for every model" if same_price else costs.source
    sentences = recommendation.recommend(pool, models, unit, source)
    return _Verdict(sentences, costs, models, comparison, pool, warnings)


def _select_models(table: Table, models: Sequence[str] | None) -> Table:
    """The chosen models, else those with at least one score; all if none has any."""
    if models:
        for m in models:
            if m not in table.models:
                close = nearest(m, table.models, 1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                known = recommendation.join_names(table.models, 8) if table.models else "none"
                raise UsageError(
                    f"--models: the table has no model {m!r}.{hint}", remedy=f"It has: {known}."
                )
        table = table.select_models(list(dict.fromkeys(models)))
    else:
        scored = np.flatnonzero((~np.isnan(table.score)).any(axis=0)).tolist()
        if 0 < len(scored) < len(table.models):
            table = table.select_models([table.models[j] for j in scored])
    if len(table.models) > MAX_MODELS:
        raise UsageError(
            f"The table has {len(table.models)} models; at most {MAX_MODELS} are compared.",
            remedy="Choose some of them: --models a,b,c.",
        )
    return table


def _summarise_models(
    table: Table, costs: Costs, draws: ClusterBootstrap
) -> tuple[dict[str, ModelSummary], bool]:
    """Mean score and cost of each model, and whether adjusting changed any mean visibly."""
    mean, mean_draws = adjusted_means(table.score, draws)
    counts = (~np.isnan(table.score)).sum(axis=0)
    labelled = (~np.isnan(table.score)).any(axis=1)
    spent = None if costs.cost is None else costs.cost[labelled].mean(axis=0)
    plain = np.nanmean(np.where(counts > 0, table.score, 0.0), axis=0)
    is_adjusted = bool((np.abs(mean - plain)[counts > 0] >= _VISIBLE_ADJUSTMENT).any())
    models = {
        name: ModelSummary(
            estimate(mean[j], mean_draws[:, j], int(counts[j])),
            None if spent is None else float(spent[j]),
            compared=False,
        )
        for j, name in enumerate(table.models)
        if counts[j]
    }
    return models, is_adjusted


def _name_clusters(
    prompts: Sequence[str], clustering: Clustering, merge_same: bool, seed: int
) -> tuple[Clustering, list[list[str]]]:
    """The clusters with their words; clusters with the same name are merged if wanted."""
    while True:
        k = int(clustering.labels.max()) + 1
        words = cluster_names.name_clusters(prompts, clustering.labels, k, seed)
        number = cluster_names.merge_same_names(words)
        if not merge_same or k == 1 or number.max() == k - 1:
            return clustering, words
        clustering = merge(clustering, number)


def _not_comparable(
    table: Table, models: dict[str, ModelSummary], n_common: int
) -> tuple[str, ...]:
    advice = "Ask several models the same queries: suffice collect."
    if len(models) == 1:
        only = next(iter(models))
        score = recommendation.format_estimate(models[only].quality)
        return (
            f"{only} is the only model with scores, so there is no other to compare it with. Its "
            f"mean score is {score}.",
            "Ask a second model the same queries: suffice collect.",
        )
    if (~np.isnan(table.score)).sum(axis=1).max() <= 1:
        return (
            "No query was answered by two models, so models cannot be compared: each mean below is "
            "of the queries that were sent to that model, and those may have been the easier ones.",
            advice,
        )
    return (
        f"Too few labels to say which models to run: of the queries that several models answered, "
        f"at least {MIN_QUERIES} are needed, and there are {n_common}.",
        advice,
    )


def _comparison_notes(
    table: Table, columns: Sequence[int], n_common: int, is_adjusted: bool
) -> list[str]:
    notes = []
    seen = np.asarray(~np.isnan(table.score))
    labelled = int(seen.any(axis=1).sum())
    if is_adjusted:
        notes.append(
            "not every model has a score on every query: mean scores are adjusted for how hard "
            "each model's queries were"
        )
    if n_common < labelled:
        notes.append(
            f"models are compared on the {n_common} queries that all compared ones answered, of "
            f"{labelled} with labels"
        )
    excluded = [m for j, m in enumerate(table.models) if j not in columns and seen[:, j].any()]
    if excluded:
        names = recommendation.join_names(excluded)
        notes.append(f"too few labels in common with the others to be compared: {names}")
    return notes
