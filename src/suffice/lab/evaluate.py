"""`suffice eval`: policies against what models really made of the queries.

The result is one JSON object, the public surface of the command; keys are added, never renamed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from . import flips, metrics
from .folds import together
from .forecasts import Fit, Forecast, Forecaster, chosen_names, forecasts, learns, some
from .ground import Ground, Prices, stand
from .predictor import Batch, batch, track
from .sweep import STEPS, along_hull, by_price_of_quality, by_threshold, cheapest, wished
from .table import Floats, Table

BASELINES = ("cheapest", "best", "random", "length", "zero_router", "oracle")
KEEP = 0.95  # operating points keep this part of the best single model's quality
_SMALLEST = 20  # queries of a benchmark below which nothing is said of it
_ASKED_AGAIN = 500  # queries reworded for flip rates, at most
_TIMED = 200  # decisions timed, at most

GENERAL_NOTES = (
    "random mixes the single models of the zero router's hull by a coin; its hull is picked on the "
    "queries it is judged on, as every policy's is, so that it also gains a little: a gain no "
    "larger than its is none",
    "zero_router and best are picked on these very queries: they are what hindsight would have "
    "chosen without looking at a single prompt",
    "oracle knows every outcome before it chooses; on right/wrong scores it also profits from lucky "
    "answers, so that nothing real comes near it",
)
PAIR_NOTE = (
    "APGR and CPT follow RouteLLM (thresholds at the edges of ten equal-count bins of the score); "
    "CPT reads the running maximum of the quality recovered, where RouteLLM's code interpolates it "
    "raw"
)


def evaluate(
    table: Table,
    policies: Sequence[str] = (),
    *,
    models: Sequence[str] | None = None,
    fit_on: Table | None = None,
    prices: Prices | None = None,
    by: Sequence[str] = (),
    leave_one_source_out: bool = False,
    draws: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Judges policies on a table.

    policies: names of `lab.predictors`, entry points or paths of artifacts; none: the default, and
    with `fit_on` those that learn too. by: "benchmark", "category". draws: of the bootstrap.
    Raises UsageError, TableError, ArtifactError.
    """
    for column in by:
        if column not in ("benchmark", "category"):
            raise UsageError(f"--by: {column!r} is not benchmark or category.")
        if getattr(table, column) is None:
            raise UsageError(
                f"--by {column}: the table has no {column}.",
                remedy=f"Add a column {column!r} to the queries.",
            )
    if leave_one_source_out and len({b for b in table.benchmark or () if b}) < 2:
        raise UsageError(
            "--leave-one-source-out: the table names fewer than two benchmarks.",
            remedy="Add a column 'benchmark' to the queries.",
        )
    ground = stand(table, models, fit_on, prices)
    fit = None if fit_on is None else Fit(fit_on, ground)
    names = [n for n in chosen_names(policies, fit is not None) if n not in BASELINES]
    clusters = together(ground.table)
    ask = Forecaster(ground, fit, clusters, ["length", *names], seed, progress)
    said = forecasts(ask, ["length", *names], progress)
    judged = Court(ground.score, ground.cost, ground, clusters[ground.rows], draws, seed)
    result = _head(table, ground, fit, judged, names, draws, seed)
    result["policies"] = judged.all(said, progress)
    for name in ("length", *names):
        f, p = said[name], result["policies"][name]
        p["flip_rate"] = _flip_rates(f, ground, ask, p["operating_point"])
        p["overhead_us"] = _overhead_us(f, ground)
    if by:
        result["by"] = {c: _parts(c, ground, said, clusters, draws, seed, progress) for c in by}
    if leave_one_source_out:
        result["leave_one_source_out"] = _left_out(
            ask, ground, names, clusters, draws, seed, progress
        )
    return result


def _head(
    table: Table, ground: Ground, fit: Fit | None, judged: Court, names: Sequence[str],
    draws: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    singles = ground.singles
    notes = [*ground.notes, *(fit.notes if fit else ())]
    if fit is None and any(learns(n) for n in names):
        notes.append(
            "policies that learn are cross-fitted: each query is judged by a fit on the folds that "
            "share no prompt and no group with it"
        )
    notes += [*GENERAL_NOTES, *((PAIR_NOTE,) if ground.strong is not None else ())]
    at = metrics.best_single(singles)
    return {
        "table": table.name,
        "n_queries": len(ground.rows),
        "models": {
            m: {"quality": float(q), "cost": float(c)}
            for m, (c, q) in zip(ground.models, singles.tolist(), strict=True)
        },
        "cost_unit": ground.unit,
        "policies": {},
        "n_queries_in_table": len(table),
        "n_clusters": judged.redraws.clusters,
        "strong": None if ground.strong is None else ground.models[ground.strong],
        "weak": None if ground.weak is None else ground.models[ground.weak],
        "reference": ground.models[at],
        "intervals": f"95 %, basic bootstrap over clusters of queries, {draws} draws",
        "seed": seed,
        "warnings": list(table.warnings),
        "notes": notes,
    }


class Court:
    """Judges choices on one set of queries. score, cost: (n, k) of it; clusters: (n,)."""

    def __init__(
        self,
        score: Floats,
        cost: Floats,
        ground: Ground,
        clusters: NDArray[np.intp],
        draws: int,
        seed: int,
    ) -> None:
        self.score, self.cost, self.ground, self.seed = score, cost, ground, seed
        self.singles = np.stack([cost.mean(axis=0), score.mean(axis=0)], axis=1)
        self.redraws = metrics.Redraws(clusters, draws, seed)
        self.single_draws = np.stack(
            [self.redraws.means(cost), self.redraws.means(score)], axis=2
        )  # (draws, k, 2)
        self.zero = metrics.area(self.singles, self.singles)
        self.zero_draws = np.array([metrics.area(s, s) for s in self.single_draws])
        self.best = metrics.best_single(self.singles)

    def all(self, said: Mapping[str, Forecast], progress: bool = False) -> dict[str, Any]:
        """Every baseline, then every policy."""
        baselines = self.baselines()
        out: dict[str, Any] = {}
        todo = [*BASELINES, *(n for n in said if n not in BASELINES)]
        for name in track(todo, "judging", progress):
            if name in baselines:
                choices, rank, how = baselines[name]
                out[name] = self.judge(choices, rank, how)
            else:
                f = said[name]
                out[name] = self.judge(self.choices(f), f.rank, f.fitted)
        self._settle(out)
        return out

    def choices(self, f: Forecast) -> NDArray[np.intp]:
        """(t, n) which model each query gets at each trade-off."""
        g = self.ground
        if f.rank is not None and g.strong is not None and g.weak is not None:
            return by_threshold(f.rank, g.strong, g.weak)
        return by_price_of_quality(f.quality, f.cost)

    def baselines(self) -> dict[str, tuple[NDArray[np.intp], Floats | None, str]]:
        g, n = self.ground, len(self.score)
        coin = np.random.default_rng((self.seed, 1)).random(n)
        whole = np.ones((1, n), np.intp)
        order = np.lexsort((-self.singles[:, 1], self.singles[:, 0]))
        hull = metrics.zero_router(self.singles)
        members = [
            next(j for j in order if tuple(self.singles[j]) == tuple(point)) for point in hull
        ]
        gap, mixed = None, along_hull(coin, members)
        if g.strong is not None and g.weak is not None:
            mixed = by_threshold(coin, g.strong, g.weak)
            # Ties are broken by the coin: the grid of shares would else have holes.
            gap = self.score[:, g.strong] - self.score[:, g.weak] + 1e-9 * coin
        return {
            "cheapest": (whole * order[0], None, "the cheapest model alone"),
            "best": (whole * self.best, None, "the best model alone, known in hindsight"),
            "random": (mixed, None if gap is None else coin, "a coin"),
            "zero_router": (
                np.repeat(np.array(members)[:, None], n, axis=1),
                None,
                "random mixing of single models, known in hindsight",
            ),
            "oracle": (by_price_of_quality(self.score, self.cost), gap, "knows every outcome"),
        }

    def judge(self, choices: NDArray[np.intp], rank: Floats | None, how: str) -> dict[str, Any]:
        """The figures of one policy. choices: (t, n)."""
        at = np.arange(len(self.score))
        cost, quality = self.cost[at, choices].T, self.score[at, choices].T  # (n, t)
        points = np.stack([cost.mean(axis=0), quality.mean(axis=0)], axis=1)
        c, q = self.redraws.means(cost), self.redraws.means(quality)
        drawn = np.array(
            [
                metrics.area(p, s)
                for p, s in zip(np.stack([c, q], axis=2), self.single_draws, strict=True)
            ]
        )
        area = metrics.area(points, self.singles)
        out: dict[str, Any] = {
            "curve": points[np.lexsort((points[:, 1], points[:, 0]))].tolist(),
            "area": area,
            "area_ci": metrics.basic(drawn, area),
            "gain_over_zero_router": area - self.zero,
            "gain_ci": metrics.basic(drawn - self.zero_draws, area - self.zero),
            "qnc": metrics.qnc(points, self.singles),
            "apgr": None,
            "cpt50": None,
            "cpt80": None,
            "apgr_ci": None,
            "fitted": how,
        }
        out |= self._pair(rank) if rank is not None else {}
        out |= self._equal(points)
        low, high = (float(self.singles[:, 0].min()), float(self.singles[:, 0].max()))
        out["aiq_paper"] = metrics.aiq_paper(points, low, high)
        out["operating_point"] = self._operating_point(choices, points)
        out["routerarena"] = None
        if self.ground.unit == "usd":
            scores = [metrics.routerarena(b, 1000 * a) for a, b in points.tolist()]
            out["routerarena"] = max((s for s in scores if s is not None), default=None)
        return out

    def _pair(self, rank: Floats) -> dict[str, Any]:
        g = self.ground
        assert g.strong is not None and g.weak is not None
        strong, weak = self.score[:, g.strong], self.score[:, g.weak]
        p = metrics.pair(rank, strong, weak)
        value = p.apgr
        if not np.isfinite(value):
            return {}
        drawn = metrics.apgr_draws(rank, strong, weak, self.redraws)
        return {
            "apgr": value,
            "cpt50": p.cpt(0.5),
            "cpt80": p.cpt(0.8),
            "apgr_ci": metrics.basic(drawn, value),
        }

    def _equal(self, points: Floats) -> dict[str, Any]:
        """Cost at equal quality and quality at equal cost, beside the zero router's."""
        cost, quality = self.singles[self.best].tolist()
        zero = metrics.zero_router(self.singles)
        return {
            "at_equal_quality": [
                {
                    "of_best": part,
                    "quality": part * quality,
                    "cost": metrics.cost_at(points, self.singles, part * quality),
                    "zero_router_cost": metrics.cost_at(zero, self.singles, part * quality),
                }
                for part in (0.9, 0.95, 0.99, 1.0)
            ],
            "at_equal_cost": [
                {
                    "of_best": part,
                    "cost": part * cost,
                    "quality": metrics.quality_at(points, self.singles, part * cost),
                    "zero_router_quality": metrics.quality_at(zero, self.singles, part * cost),
                }
                for part in (0.25, 0.5, 0.75, 1.0)
            ],
        }

    def _operating_point(self, choices: NDArray[np.intp], points: Floats) -> dict[str, Any]:
        """The cheapest point that keeps KEEP of the best model's quality, else the best point."""
        goal = KEEP * self.singles[self.best, 1]
        good = np.flatnonzero(points[:, 1] >= goal)
        if len(good):
            t = int(good[np.argmin(points[good, 0])])
        else:
            t = int(np.argmax(points[:, 1]))
        at = np.arange(len(self.score))
        got = self.score[at, choices[t]]
        gross, net = metrics.losses(got, self.score[:, self.best])
        share = np.bincount(choices[t], minlength=len(self.singles)) / len(self.score)
        return {
            "keeps": KEEP,
            "kept": bool(len(good)),
            "cost": float(points[t, 0]),
            "quality": float(points[t, 1]),
            "gross_loss": gross,
            "net_loss": net,
            "share": dict(zip(self.ground.models, share.tolist(), strict=True)),
            "trade_off": t,
        }

    def _settle(self, out: dict[str, Any]) -> None:
        """What needs all policies at once, or is known exactly."""
        hulls = [metrics.upper_hull(p["curve"]) for p in out.values()]
        dearest = max(float(h[-1, 0]) for h in hulls)
        for p in out.values():
            p["aiq_code"] = metrics.aiq_code(p["curve"], dearest)
        g, zero = self.ground, out["zero_router"]
        zero |= {"gain_over_zero_router": 0.0, "gain_ci": (0.0, 0.0)}
        if g.strong is not None and out["random"]["apgr"] is not None:
            # Mixing at random lies on the straight line from weak to strong.
            zero |= {"apgr": 0.5, "cpt50": 0.5, "cpt80": 0.8, "apgr_ci": (0.5, 0.5)}


# ── parts of a table ─────────────────────────────────────────────────────────────────────────────


def _parts(
    column: str, ground: Ground, said: Mapping[str, Forecast], clusters: NDArray[np.intp],
    draws: int, seed: int, progress: bool,
) -> dict[str, Any]:  # fmt: skip
    labels = getattr(ground.table, column)
    names = np.array([labels[i] or "" for i in ground.rows], dtype=object)
    out: dict[str, Any] = {}
    values = [v for v in sorted(set(names)) if v]
    for value in track(values, f"by {column}", progress):
        rows = names == value
        if rows.sum() < _SMALLEST:
            out[value] = {"n_queries": int(rows.sum()), "policies": None}
            continue
        parts = {n: some(f, rows) for n, f in said.items()}
        out[value] = _part(rows, ground, parts, clusters, draws, seed)
    return out


def _part(
    rows: NDArray[np.bool_], ground: Ground, said: Mapping[str, Forecast],
    clusters: NDArray[np.intp], draws: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    court = Court(
        ground.score[rows], ground.cost[rows], ground, clusters[ground.rows][rows],
        min(draws, 300), seed,
    )  # fmt: skip
    keys = (
        "area", "area_ci", "gain_over_zero_router", "gain_ci", "qnc", "apgr", "apgr_ci", "cpt50",
        "cpt80", "fitted",
    )  # fmt: skip
    return {
        "n_queries": int(rows.sum()),
        "models": {
            m: {"quality": float(q), "cost": float(c)}
            for m, (c, q) in zip(ground.models, court.singles.tolist(), strict=True)
        },
        "policies": {n: {k: p[k] for k in keys} for n, p in court.all(said).items()},
    }


def _left_out(
    ask: Forecaster, ground: Ground, names: Sequence[str], clusters: NDArray[np.intp],
    draws: int, seed: int, progress: bool,
) -> dict[str, Any]:  # fmt: skip
    marks = ground.table.benchmark or ()
    here = np.array([marks[i] or "" for i in ground.rows], dtype=object)
    out: dict[str, Any] = {}
    values = [v for v in sorted(set(here)) if v]
    for source in track(values, "leaving one source out", progress):
        rows = here == source
        if rows.sum() < _SMALLEST:
            out[source] = {"n_queries": int(rows.sum()), "policies": None}
            continue
        said = forecasts(ask.without(source), ["length", *names], False)
        out[source] = _part(rows, ground, said, clusters, draws, seed)
    return out


# ── robustness and speed ─────────────────────────────────────────────────────────────────────────


def _flip_rates(
    f: Forecast, ground: Ground, ask: Forecaster, point: Mapping[str, Any]
) -> dict[str, Any]:
    """Share of decisions that change when the same question is put otherwise, at the trade-off of
    the operating point, and the mean over all kinds of change."""
    rows = f.rows
    if len(rows) > _ASKED_AGAIN:
        rows = np.sort(np.random.default_rng((ask.seed, 2)).permutation(rows)[:_ASKED_AGAIN])
    said = [ground.table.messages[i] for i in ground.rows[rows]]
    before = _decisions(f, ask.judged.rows(rows), ground, point)
    out: dict[str, Any] = {}
    groups = {"white_space": flips.WHITE_SPACE, "rewording": flips.REWORDING}
    for kind, changes in groups.items():
        rates = {}
        for name, change in changes.items():
            x = batch([flips.reworded(c, change) for c in said])
            rates[name] = float((_decisions(f, x, ground, point) != before).mean())
        out[kind] = float(np.mean(list(rates.values())))
        out[f"{kind}_each"] = rates
    out["n_queries"] = len(rows)
    return out


def _decisions(f: Forecast, x: Batch, ground: Ground, point: Mapping[str, Any]) -> NDArray[np.intp]:
    t = int(point["trade_off"])
    if f.rank is not None and ground.strong is not None and ground.weak is not None:
        score = f.predictor.rank(x, ground.strong, ground.weak)
        choices = by_threshold(score, ground.strong, ground.weak, like=f.rank)
        return np.asarray(choices[t])
    quality, cost = f.predictor.expect(x)
    return wished(quality, cost, like=(f.quality, f.cost), step=t)


def _overhead_us(f: Forecast, ground: Ground) -> float:
    """Median microseconds from messages to a choice, one query at a time, in this process: text to
    features to prediction to the best trade-off. Serving's own path is measured in benchmarks/."""
    spent = []
    for i in ground.rows[f.rows[:_TIMED]]:
        began = time.perf_counter()
        x = batch([ground.table.messages[i]])
        quality, cost = f.predictor.expect(x)
        cheapest(quality, cost)
        spent.append(time.perf_counter() - began)
    return float(np.median(spent)) * 1e6


__all__ = ["BASELINES", "KEEP", "STEPS", "evaluate"]
