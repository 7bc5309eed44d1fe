"""What each cluster of queries contains, and how the models do on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from suffice.lab.assess import cluster_names
from suffice.lab.assess.adjusted_means import MIN_LABELS, cluster_means, estimate, proportion
from suffice.lab.assess.clustering import Clustering
from suffice.lab.assess.comparison import Comparison
from suffice.lab.assess.pools import strong_only
from suffice.lab.assess.results import Cluster, Estimate, PoolReport
from suffice.lab.assess.traffic_profile import HARD, signal_column
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.predictors.base import Batch
from suffice.lab.stats import ClusterBootstrap, percentile_interval

_EXAMPLES = 3
_EXAMPLE_CHARS = 110
_WIDE = 0.3  # an interval wider than this says nothing about a share
_MIN_TEMPLATE_CHARS = 30


def describe_clusters(
    table: Table,
    batch: Batch,
    hard: FloatArray,
    clustering: Clustering,
    words: list[list[str]],
    draws: ClusterBootstrap,
    comparison: Comparison | None,
    pool: PoolReport | None,
) -> tuple[Cluster, ...]:
    """Describe each cluster.

    Args:
        table: The table of n queries.
        batch: Their features.
        hard: (n,) difficulty.
        clustering: The clusters.
        words: Distinctive terms of each cluster.
        draws: Bootstrap samples of the queries.
        comparison: The compared models, if any can be compared.
        pool: The recommended pool, if models can be compared.

    Returns:
        One entry per cluster, largest first.
    """
    labels, k = clustering.labels, len(words)
    chars = np.expm1(signal_column(batch, "log_chars"))
    tokens = np.expm1(signal_column(batch, "log_tokens"))
    fallback = [_name_without_words(chars[labels == c]) for c in range(k)]
    names = cluster_names.unique_names(words, fallback)
    means, mean_draws, counts = cluster_means(table.score, labels, k, draws)
    needs = _needs_strong(table, labels, k, draws, comparison, pool)
    clusters = []
    for c in range(k):
        inside = labels == c
        models = {
            m: estimate(means[c, j], mean_draws[:, c, j], int(counts[c, j]))
            for j, m in enumerate(table.models)
            if counts[c, j]
        }
        labelled = int((~np.isnan(table.score[inside])).any(axis=1).sum()) if models else 0
        clusters.append(
            Cluster(
                name=names[c],
                words=tuple(words[c]),
                size=int(inside.sum()),
                share=float(inside.mean()),
                median_chars=float(round(np.median(chars[inside]))),
                median_tokens=float(round(np.median(tokens[inside]))),
                difficulty=float(np.median(hard[inside])),
                hard_share=float((hard[inside] > HARD).mean()),
                examples=_examples(table.prompts, np.flatnonzero(inside), clustering.similarity),
                n_labelled=labelled,
                models=models,
                best=None if comparison is None else _leader(table, comparison, inside),
                needs_strong=needs[c],
                too_few=_is_uncertain(needs[c]),
            )
        )
    return tuple(clusters)


def _is_uncertain(needs: Estimate | None) -> bool:
    return needs is None or needs.ci is None or needs.ci[1] - needs.ci[0] > _WIDE


def _needs_strong(
    table: Table, labels: NDArray[np.intp], k: int, draws: ClusterBootstrap,
    comparison: Comparison | None, pool: PoolReport | None,
) -> list[Estimate | None]:  # fmt: skip
    """Share of each cluster's queries that only the strong model answers well."""
    if comparison is None or pool is None or not pool.cheap:
        return [None] * k
    column = {m: j for j, m in enumerate(comparison.models)}
    hits = strong_only(comparison, column[pool.strong], [column[m] for m in pool.cheap])
    shares = []
    for c in range(k):
        in_table = np.full(len(table), np.nan)
        inside = labels[comparison.rows] == c
        in_table[comparison.rows[inside]] = hits[inside]
        shares.append(proportion(in_table, draws, table.group is not None))
    return shares


def _leader(table: Table, comparison: Comparison, inside: NDArray[np.bool_]) -> str | None:
    """The model that leads every other on the cluster's queries by more than chance."""
    index = np.flatnonzero(inside[comparison.rows])
    if len(index) < MIN_LABELS:
        return None
    score = comparison.score[index]
    best = int(np.argmax(score.mean(axis=0)))
    means = ClusterBootstrap(table.clusters[comparison.rows[index]], 200, 0).means(score)
    for j in range(score.shape[1]):
        if j != best:
            ci = percentile_interval(means[:, best] - means[:, j])
            if ci is None or ci[0] <= 0:
                return None
    return comparison.models[best]


def _name_without_words(chars: FloatArray) -> str:
    return "empty prompts" if np.median(chars) == 0 else "numbers and symbols"


def _examples(
    prompts: Sequence[str], inside: NDArray[np.intp], similarity: NDArray[np.float32]
) -> tuple[str, ...]:
    """Returns distinct prompts nearest to the cluster's centre, on one line each.

    A beginning that all of them share (a template) is left out.
    """
    order = inside[np.argsort(-similarity[inside], kind="stable")][:200]
    distinct: dict[str, str] = {}
    for i in order:
        text = " ".join(prompts[i][:2000].split())
        if text:
            distinct.setdefault(text[:_EXAMPLE_CHARS].lower(), text)
        if len(distinct) >= 12:
            break
    texts = list(distinct.values())
    start = _template_length(texts) if len(texts) >= 2 else 0
    shortened = [("…" if start else "") + t[start:] for t in texts]
    return tuple(
        t if len(t) <= _EXAMPLE_CHARS else t[: _EXAMPLE_CHARS - 1].rstrip() + "…"
        for t in shortened[:_EXAMPLES]
    )


def _template_length(texts: Sequence[str]) -> int:
    """Returns the length of the beginning that all texts share, to the last whole word.

    0 if it is short, or if it is most of the texts.
    """
    first, last = min(texts), max(texts)  # what these two share, all between them share
    pairs = enumerate(zip(first, last, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), 0)
    start = first.rfind(" ", 0, same) + 1
    long_enough = start >= _MIN_TEMPLATE_CHARS
    return start if long_enough and min(map(len, texts)) >= start + _MIN_TEMPLATE_CHARS else 0
