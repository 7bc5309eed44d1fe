"""`suffice assess`: what is asked, and which models to run for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from suffice.errors import UsageError, nearest
from suffice.lab.assess import cluster_names
from suffice.lab.assess import recommendation as advice
from suffice.lab.assess.adjusted_means import TOO_FEW, adjusted, estimate, redraws, share, within
from suffice.lab.assess.clustering import Found, find, renumbered
from suffice.lab.assess.comparison import LEAST, Compared, compare, ground
from suffice.lab.assess.contributions import each_model
from suffice.lab.assess.costs import Costs, costs_of
from suffice.lab.assess.pools import choose, only_strong
from suffice.lab.assess.results import Assessment, Cluster, Estimate, ModelLine, Pool
from suffice.lab.assess.traffic_profile import HARD, column, difficulty, mix_of
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.predictors.base import Batch, extract_table
from suffice.lab.stats import ClusterBootstrap, percentile_interval
from suffice.types import Model

__all__ = ["Assessment", "assess"]

MOST_MODELS = 100
_EXAMPLES = 3
_EXAMPLE_CHARS = 110
_MOVED = 0.005  # by which adjusting a mean is worth a word
_WIDE = 0.3  # an interval wider than this says nothing yet about a share

Say = Callable[[str], None]


def assess(
    table: Table,
    *,
    models: Sequence[str] | None = None,
    clusters: int | None = None,
    priced: Sequence[Model] = (),
    progress: bool = False,
    say: Say = lambda _: None,
    seed: int = 0,
) -> Assessment:
    """The whole assessment of a table of at least one query.

    models: only these. clusters: how many instead of a number found in the data. priced: models
    whose prices come before the catalog's. progress: a bar on standard error while queries are
    read; say: told each later step in a word. Raises UsageError for unknown models, more than
    MOST_MODELS, or a number of clusters below 1.
    """
    if clusters is not None and clusters < 1:
        raise UsageError(f"--clusters {clusters}: expected at least 1.")
    table = _only(table, models)
    batch = extract_table(table, progress)
    # One thread: the problems are small, and the answer must not depend on how many cores there are
    # (sums in another order end in other clusters).
    # The limit holds for libraries that are loaded by then, so scikit-learn comes first.
    import sklearn.cluster
    import sklearn.metrics  # noqa: F401
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(limits=1):
        return _assess(table, batch, models is not None, clusters, priced, say, seed)


def _assess(
    table: Table, batch: Batch, named: bool, clusters: int | None, priced: Sequence[Model],
    say: Say, seed: int,
) -> Assessment:  # fmt: skip
    say("clustering")
    hard = difficulty(batch)
    found = find(batch.vectors, clusters, seed)
    say("naming clusters")
    found, words = _named(table.prompts, found, merge=clusters is None, seed=seed)
    say("comparing models")
    warnings = list(table.warnings)
    costs = Costs(None, None, "unknown")
    lines: dict[str, ModelLine] = {}
    pool: Pool | None = None
    compared: Compared | None = None
    drawn = redraws(table, seed)
    labelled = ~np.isnan(table.score).all(axis=1) if table.models else np.zeros(len(table), bool)
    recommendation: tuple[str, ...]
    if not labelled.any():
        recommendation = advice.without_labels(table.name)
    else:
        costs = costs_of(table, batch, hard, priced)
        lines, moved = _lines(table, costs, drawn)
        cols, rows = ground(table.score, keep_all=named)
        if len(cols) == 1 or len(rows) < LEAST:
            recommendation = _incomparable(table, lines, rows)
        else:
            warnings += _left_out(table, cols, rows, moved)
            compared = compare(table, batch, costs.cost, cols, rows, seed)
            pool, pick = choose(compared, seed)
            for name, fields in each_model(compared, pick).items():
                lines[name] = _with(lines[name], compared=True, **fields)
            unit = None if compared.cost is None else costs.unit
            source = costs.source if costs.cost is None else "the same for every model"
            recommendation = advice.advise(pool, lines, unit, source)
    made = _clusters(table, batch, hard, found, words, drawn, compared, pool)
    return Assessment(
        table=table.name,
        n_queries=len(table),
        n_labelled=int(labelled.sum()),
        recommendation=recommendation,
        mix=mix_of(table, batch, hard),
        clusters=made,
        stability=found.stability,
        models=lines,
        cost_unit=costs.unit,
        cost_source=costs.source,
        pool=pool,
        warnings=tuple(warnings),
    )


def _only(table: Table, models: Sequence[str] | None) -> Table:
    """The chosen models, else those with at least one score; all where none has any."""
    if models:
        for m in models:
            if m not in table.models:
                close = nearest(m, table.models, 1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise UsageError(
                    f"--models: the table has no model {m!r}.{hint}",
                    remedy=f"It has: {advice.listed(table.models, 8) if table.models else 'none'}.",
                )
        table = table.select_models(list(dict.fromkeys(models)))
    else:
        scored = np.flatnonzero((~np.isnan(table.score)).any(axis=0)).tolist()
        if 0 < len(scored) < len(table.models):
            table = table.select_models([table.models[j] for j in scored])
    if len(table.models) > MOST_MODELS:
        raise UsageError(
            f"The table has {len(table.models)} models; at most {MOST_MODELS} are compared.",
            remedy="Name those that matter: --models a,b,c.",
        )
    return table


def _lines(
    table: Table, costs: Costs, drawn: ClusterBootstrap
) -> tuple[dict[str, ModelLine], bool]:
    """(a line for each model, whether any mean differs from the plain one by what would be seen)."""
    mean, draws = adjusted(table.score, drawn)
    counts = (~np.isnan(table.score)).sum(axis=0)
    asked = (~np.isnan(table.score)).any(axis=1)
    spent = None if costs.cost is None else costs.cost[asked].mean(axis=0)
    plain = np.nanmean(np.where(counts > 0, table.score, 0.0), axis=0)
    moved = bool((np.abs(mean - plain)[counts > 0] >= _MOVED).any())
    lines = {
        name: ModelLine(
            estimate(mean[j], draws[:, j], int(counts[j])),
            None if spent is None else float(spent[j]),
            compared=False,
        )
        for j, name in enumerate(table.models)
        if counts[j]
    }
    return lines, moved


def _named(
    prompts: Sequence[str], found: Found, merge: bool, seed: int
) -> tuple[Found, list[list[str]]]:
    """Clusters with their words; those that would bear one name put together where wanted."""
    while True:
        k = int(found.labels.max()) + 1
        words = cluster_names.names(prompts, found.labels, k, seed)
        number = cluster_names.alike(words)
        if not merge or k == 1 or number.max() == k - 1:
            return found, words
        found = renumbered(found, number)


def _with(line: ModelLine, **fields: object) -> ModelLine:
    import msgspec

    return msgspec.structs.replace(line, **fields)


def _incomparable(table: Table, lines: dict[str, ModelLine], rows: np.ndarray) -> tuple[str, ...]:
    if len(lines) == 1:
        only = next(iter(lines))
        return (
            f"{only} is the only model with scores: there is nothing to choose between. Its mean "
            f"score is {advice.said(lines[only].quality)}.",
            "Ask a second model the same queries: suffice collect.",
        )
    overlap = (~np.isnan(table.score)).sum(axis=1).max()
    if overlap <= 1:
        return (
            "No query was answered by two models, so models cannot be compared: each mean below is "
            "of the queries that were sent to that model, and those may have been the easier ones.",
            "Ask several models the same queries: suffice collect.",
        )
    return (
        f"Too few labels to say which models to run: of the queries that several models answered, "
        f"at least {LEAST} are needed, and there are {len(rows)}.",
        "Ask several models the same queries: suffice collect.",
    )


def _left_out(table: Table, cols: Sequence[int], rows: np.ndarray, moved: bool) -> list[str]:
    out = []
    seen = np.asarray(~np.isnan(table.score))
    asked = int(seen.any(axis=1).sum())
    if moved:
        out.append(
            "not every model has a score on every query: mean scores are adjusted for how hard "
            "each model's queries were"
        )
    if len(rows) < asked:
        out.append(
            f"models are compared on the {len(rows)} queries that all compared ones answered, of "
            f"{asked} with labels"
        )
    left = [m for j, m in enumerate(table.models) if j not in cols and seen[:, j].any()]
    if left:
        out.append(
            f"too few labels in common with the others to be compared: {advice.listed(left)}"
        )
    return out


# ── clusters ─────────────────────────────────────────────────────────────────────────────────────


def _clusters(
    table: Table,
    batch: Batch,
    hard: FloatArray,
    found: Found,
    words: list[list[str]],
    drawn: ClusterBootstrap,
    compared: Compared | None,
    pool: Pool | None,
) -> tuple[Cluster, ...]:
    labels = found.labels
    k = len(words)
    chars, tokens = np.expm1(column(batch, "log_chars")), np.expm1(column(batch, "log_tokens"))
    titles = cluster_names.unique(words, [_wordless(chars[labels == c]) for c in range(k)])
    means, draws, counts = within(table.score, labels, k, drawn)
    needs = _needs(table, labels, k, drawn, compared, pool)
    out = []
    for c in range(k):
        inside = labels == c
        models = {
            m: estimate(means[c, j], draws[:, c, j], int(counts[c, j]))
            for j, m in enumerate(table.models)
            if counts[c, j]
        }
        labelled = int((~np.isnan(table.score[inside])).any(axis=1).sum()) if models else 0
        out.append(
            Cluster(
                name=titles[c],
                words=tuple(words[c]),
                size=int(inside.sum()),
                share=float(inside.mean()),
                median_chars=float(round(np.median(chars[inside]))),
                median_tokens=float(round(np.median(tokens[inside]))),
                difficulty=float(np.median(hard[inside])),
                hard_share=float((hard[inside] > HARD).mean()),
                examples=_examples(table.prompts, np.flatnonzero(inside), found.near),
                n_labelled=labelled,
                models=models,
                best=None if compared is None else _leader(table, compared, inside),
                needs_strong=needs[c],
                too_few=_too_few(needs[c]),
            )
        )
    return tuple(out)


def _too_few(needs: Estimate | None) -> bool:
    return needs is None or needs.ci is None or needs.ci[1] - needs.ci[0] > _WIDE


def _needs(
    table: Table, labels: np.ndarray, k: int, drawn: ClusterBootstrap, compared: Compared | None,
    pool: Pool | None,
) -> list[Estimate | None]:  # fmt: skip
    if compared is None or pool is None or not pool.cheap:
        return [None] * k
    at = {m: j for j, m in enumerate(compared.models)}
    hits = only_strong(compared, at[pool.strong], [at[m] for m in pool.cheap])
    out = []
    for c in range(k):
        spread = np.full(len(table), np.nan)
        inside = labels[compared.rows] == c
        spread[compared.rows[inside]] = hits[inside]
        out.append(share(spread, drawn, table.group is not None))
    return out


def _leader(table: Table, compared: Compared, inside: np.ndarray) -> str | None:
    """The model that leads among the cluster's queries by more than chance over every other."""
    here = np.flatnonzero(inside[compared.rows])
    if len(here) < TOO_FEW:
        return None
    score = compared.score[here]
    best = int(np.argmax(score.mean(axis=0)))
    rows = compared.rows[here]
    again = ClusterBootstrap(table.clusters[rows], 200, 0)
    means = again.means(score)
    for j in range(score.shape[1]):
        if j != best:
            ci = percentile_interval(means[:, best] - means[:, j])
            if ci is None or ci[0] <= 0:
                return None
    return compared.models[best]


def _wordless(chars: FloatArray) -> str:
    return "empty prompts" if np.median(chars) == 0 else "numbers and symbols"


def _examples(prompts: Sequence[str], inside: np.ndarray, near: np.ndarray) -> tuple[str, ...]:
    """Prompts nearest to the cluster's centre, all different, on one line each. A beginning that
    all of them share, a template, is left out."""
    order = inside[np.argsort(-near[inside], kind="stable")][:200]
    seen: dict[str, str] = {}
    for i in order:
        text = " ".join(prompts[i][:2000].split())
        if text:
            seen.setdefault(text[:_EXAMPLE_CHARS].lower(), text)
        if len(seen) >= 12:
            break
    texts = list(seen.values())
    start = _shared(texts) if len(texts) >= 2 else 0
    cut = [("…" if start else "") + t[start:] for t in texts]
    return tuple(
        t if len(t) <= _EXAMPLE_CHARS else t[: _EXAMPLE_CHARS - 1].rstrip() + "…"
        for t in cut[:_EXAMPLES]
    )


def _shared(texts: Sequence[str]) -> int:
    """Length of the beginning that all texts share, to the last whole word; 0 where it is short, or
    is most of them."""
    first, last = min(texts), max(texts)  # what these two share, all between them share
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    start = first.rfind(" ", 0, same) + 1
    return start if start >= 30 and min(map(len, texts)) >= start + 30 else 0
