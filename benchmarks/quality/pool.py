"""Many models: what learned policies gain over the zero router, cross-validated on each table.

    python benchmarks/quality/pool.py --data DATA --out benchmarks/quality/results --seeds 8

DATA holds any of paretobandit_val, mmlu_pro, llmrouter_example, arena_bench_v1 (queries.parquet,
outcomes.parquet) and, for tables without costs, prices.json. Five folds over normalised prompts,
drawn again for each seed: no query is predicted by a fit that saw its prompt. Area is the mean height
of the policy's cost-quality hull between the cheapest and the most expensive single model; the zero router
is the hull of the single models, so that gain = area - its area, both hulls picked on the judged
queries. A gain is the mean over seeds; its interval is a basic bootstrap over prompts, 95 %, of that
mean, hulls picked again in each redraw. `random` mixes the zero router's models by a coin: its gain is
what picking a hull on the test set alone brings. Priors and hyperpriors are the package's own: nothing
was chosen on these figures.

Nested: what `suffice train` reports, where inner folds choose the learner (or a constant). Label
curves: each fold's fit sees n labelled queries drawn from the other folds. Tables without costs are
priced by the list prices of prices.json at the prompt's length and 300 output tokens. mmlu_pro: of
the priced models ten at even ranks of accuracy, chosen before anything was fitted.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from runner import arguments, publish

from suffice.lab import stats
from suffice.lab.data.costs import Prices, outcome_costs, read_prices
from suffice.lab.data.load import load_table
from suffice.lab.data.splits import connected_groups, group_kfold
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.evaluate import frontier, metrics
from suffice.lab.evaluate.frontier import Gain, random_mixtures, sweep_tradeoffs
from suffice.lab.evaluate.problem import EvalSet, build_eval_set
from suffice.lab.predictors.base import Batch, extract_table
from suffice.lab.predictors.registry import make_predictor
from suffice.lab.train.train import train

FOLDS = 5
LEARNED = ("trained", "knn", "cluster", "ridge", "constant")
NAMES = (*LEARNED, "default", "random")
SIZES = (100, 300, 1000)
TARGETS = {"ParetoBandit, 3 models": 0.0035, "ParetoBandit, 4 models": 0.0030}
LLAMA, LARGE = "meta-llama/llama-3.1-8b-instruct", "mistralai/mistral-large-2512"
FLASH, PRO = "google/gemini-2.5-flash", "google/gemini-2.5-pro"


class Case(NamedTuple):
    """models: None = all of the table that have a cost, a number = so many at even ranks of
    accuracy. labels: whether curves over the number of labels are drawn. nested: seeds of the
    nested choice, which fits eighty times for each."""

    folder: str
    name: str
    models: tuple[str, ...] | int | None
    labels: bool = False
    nested: int = 1


CASES = (
    Case("paretobandit_val", "ParetoBandit, 3 models", (LLAMA, LARGE, PRO), nested=4),
    Case("paretobandit_val", "ParetoBandit, 4 models", (LLAMA, LARGE, FLASH, PRO), True, nested=4),
    Case("arena_bench_v1", "Arena bench v1", None),
    Case("llmrouter_example", "LLMRouter example, 9 models", None),
    Case("mmlu_pro", "MMLU-Pro, 10 models", 10),
)


def even_ranks(table: Table, priced: NDArray[np.bool_], count: int) -> tuple[str, ...]:
    """The models at `count` even ranks of accuracy among the priced, best and worst included."""
    mean = np.nanmean(table.score, axis=0)
    order = [j for j in np.argsort(mean, kind="stable").tolist() if priced[j]]
    at = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return tuple(table.models[order[i]] for i in at)


class World:
    """A table as numbers. score, paid: (n, k) of its complete queries `rows`; cost: as a fit sees
    it, with NaN where unknown."""

    def __init__(self, ground: EvalSet, prices: Prices | None, draws: int) -> None:
        self.ground = ground
        self.table = ground.table
        self.models = ground.models
        self.x: Batch = extract_table(self.table)
        self.clusters = connected_groups(self.table)
        self.score, self.paid, self.rows = ground.score, ground.cost, ground.rows
        self.cost = outcome_costs(self.table, prices)[0]
        self.singles = np.stack([self.paid.mean(axis=0), self.score.mean(axis=0)], axis=1)
        self.zero = frontier.hull_area(self.singles, self.singles)
        self.redraws = stats.ClusterBootstrap(self.clusters[self.rows], draws, 0)
        singles = np.stack(
            [self.redraws.means(self.paid), self.redraws.means(self.score)], axis=2
        )  # (draws, k, 2)
        self.single_draws = singles
        self.zero_draws = np.array([frontier.hull_area(s, s) for s in singles])

    def judge(self, choices: NDArray[np.intp]) -> tuple[Gain, float | None, FloatArray]:
        """(gain over the zero router with its draws, QNC, (t, 2) points). choices: (t, n)."""
        at = np.arange(len(self.score))
        paid, score = self.paid[at, choices].T, self.score[at, choices].T
        points = np.stack([paid.mean(axis=0), score.mean(axis=0)], axis=1)
        drawn = np.stack([self.redraws.means(paid), self.redraws.means(score)], axis=2)
        areas = np.array(
            [frontier.hull_area(p, s) for p, s in zip(drawn, self.single_draws, strict=True)]
        )
        gain = frontier.hull_area(points, self.singles) - self.zero
        return Gain(gain, areas - self.zero_draws), metrics.qnc(points, self.singles), points

    def crossed(self, name: str, seed: int, labels: int | None = None) -> NDArray[np.intp]:
        """(t, n) choices of a policy, each query's by a fit on the other folds, or on `labels`
        queries of them."""
        if name == "random":
            coin = np.random.default_rng((seed, 1)).random(len(self.score))
            hull = frontier.zero_router_hull(self.singles)
            order = np.lexsort((-self.singles[:, 1], self.singles[:, 0]))
            members = [
                next(int(j) for j in order if tuple(self.singles[j]) == tuple(point))
                for point in hull
            ]
            return random_mixtures(coin, members)
        fold = group_kfold(self.clusters, FOLDS, seed)
        rng = np.random.default_rng((seed, 2))
        quality, cost = np.empty(self.score.shape), np.empty(self.score.shape)
        for f in range(FOLDS):
            fit = np.flatnonzero(fold != f)
            if name == "default":
                fit = fit[:0]
            elif labels is not None:
                fit = np.sort(rng.choice(fit, labels, replace=False))
            inside = fold[self.rows] == f
            predictor = make_predictor(name).fit(
                self.x.take(fit), self.table.score[fit], self.cost[fit], self.ground.mean_cost,
                self.models,
            )  # fmt: skip
            quality[inside], cost[inside] = predictor.predict(self.x.take(self.rows[inside]))
        return sweep_tradeoffs(quality, cost)

    def over_seeds(self, name: str, seeds: Sequence[int], labels: int | None = None) -> Any:
        """The mean gain over seeds with its interval, and what varies between seeds."""
        gains: list[Gain] = []
        qncs: list[float | None] = []
        curve: FloatArray | None = None
        for seed in seeds:
            gain, qnc, points = self.judge(self.crossed(name, seed, labels))
            gains.append(gain)
            qncs.append(qnc)
            if curve is None:
                curve = frontier.policy_hull(points, self.singles)
        each = [g.gain for g in gains]
        mean = float(np.mean(each))
        reached = [q for q in qncs if q is not None]
        assert curve is not None
        return {
            "gain": mean,
            "ci": stats.basic_interval(np.mean([g.draws for g in gains], axis=0), mean),
            "lowest_seed": min(each),
            "highest_seed": max(each),
            "qnc": float(np.mean(reached)) if len(reached) == len(qncs) else None,
            "qnc_reached_on_seeds": len(reached),
            "hull_first_seed": [[float(f"{c:.6g}"), float(f"{q:.6g}")] for c, q in curve.tolist()],
        }


def nested(
    table: Table, models: Sequence[str], prices: Prices | None, seeds: Sequence[int]
) -> dict[str, Any]:
    """What `suffice train` says of itself: the chosen learner and the nested gain, each seed."""
    if prices is not None:
        table = _costed(table, prices)
    rows = []
    for seed in seeds:
        _, outcome = train(table, models=models, seed=seed)
        rows.append((outcome.chosen, outcome.nested))
    known = [n for _, n in rows if n is not None]
    return {
        "chosen": [c for c, _ in rows],
        "gain": float(np.mean([g for g, _ in known])) if known else None,
        "gain_each_seed": [g for g, _ in known],
        "ci_each_seed": [ci for _, ci in known],
    }


def _costed(table: Table, prices: Prices) -> Table:
    """The table with costs at list prices, for a command that takes them from the table only."""
    from dataclasses import replace

    return replace(table, cost_usd=outcome_costs(table, prices)[0])


def one_case(
    case: Case, folder: Path, prices: Prices | None, seeds: Sequence[int], draws: int, quick: bool
) -> dict[str, Any]:
    table = load_table(folder)
    models: Sequence[str] | None
    if isinstance(case.models, int):
        models = even_ranks(table, outcome_costs(table, prices)[1], case.models)
    else:
        models = case.models
    ground = build_eval_set(table, models, prices=prices)
    world = World(ground, prices, draws)
    names = NAMES if not quick else ("trained", "knn", "constant", "default", "random")
    out: dict[str, Any] = {
        "name": case.name,
        "table": case.folder,
        "queries": len(ground.rows),
        "prompts": int(world.redraws.n_clusters),
        "models": {
            m: {"quality": float(q), "usd_per_query": float(c)}
            for m, (c, q) in zip(ground.models, world.singles.tolist(), strict=True)
        },
        "notes": [*table.warnings, *ground.notes],
        "seeds": list(seeds),
        "zero_router_area": world.zero,
        "zero_router_hull": frontier.zero_router_hull(world.singles).tolist(),
        "target": TARGETS.get(case.name),
        "policies": {n: world.over_seeds(n, seeds) for n in names},
    }
    if case.labels:
        rest = len(table) * (FOLDS - 1) // FOLDS
        sizes = [n for n in (SIZES[:2] if quick else SIZES) if n <= rest]
        kinds = [n for n in names if n not in ("default", "random")]
        out["labels"] = {
            str(n): {
                m: {k: v for k, v in world.over_seeds(m, seeds, n).items() if "hull" not in k}
                for m in kinds
            }
            for n in sizes
        }
    if not quick:
        out["nested"] = nested(table, ground.models, prices, seeds[: case.nested])
    return out


def met(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each target next to what was measured."""
    rows = []
    for r in results:
        if r["target"] is not None:
            p = r["policies"]["trained"]
            rows.append(
                {
                    "what": r["name"], "target": r["target"], "gain": p["gain"], "ci": p["ci"],
                    "met": p["gain"] >= r["target"],
                }
            )  # fmt: skip
    return rows


def show(results: Sequence[Mapping[str, Any]]) -> None:
    for r in results:
        print(f"{r['name']}: {r['queries']} queries, {len(r['models'])} models")
        for name, p in r["policies"].items():
            low, high = p["ci"]
            cost = "never" if p["qnc"] is None else f"{p['qnc']:.2f}"
            print(f"  {name:10} {p['gain']:+.4f} [{low:+.4f}, {high:+.4f}] qnc {cost}")
        for n, row in r.get("labels", {}).items():
            gains = ", ".join(f"{m} {p['gain']:+.4f}" for m, p in row.items())
            print(f"  {n} labels: {gains}")
        if "nested" in r:
            print(f"  nested {r['nested']['gain']:+.4f}, chosen {r['nested']['chosen']}")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=400, help="of the bootstrap")
    parser.add_argument("--quick", action="store_true", help="two seeds, fewer learners")
    args = parser.parse_args()
    here = [c for c in CASES if (args.data / c.folder / "outcomes.parquet").exists()]
    if not here:
        known = ", ".join(dict.fromkeys(c.folder for c in CASES))
        raise SystemExit(f"--data {args.data}: none of {known} is there.")
    listed = args.data / "prices.json"
    prices = read_prices(listed) if listed.exists() else None
    count = min(args.seeds, 2) if args.quick else args.seeds
    seeds = list(range(args.first_seed, args.first_seed + count))
    began = time.perf_counter()
    results: list[dict[str, Any]] = []
    for case in here:
        results.append(
            one_case(case, args.data / case.folder, prices, seeds, args.draws, args.quick)
        )
        seconds = time.perf_counter() - began
        print(f"{case.name}: {seconds:.0f} s", file=sys.stderr, flush=True)
        # What is done is kept, should the largest table be stopped.
        publish(
            args.out,
            "pool",
            __doc__,
            {
                "folds": FOLDS,
                "draws": args.draws,
                "quick": args.quick,
                "seconds": round(seconds),
                "targets": met(results),
                "cases": results,
            },
        )
    show(results)


if __name__ == "__main__":
    main()
