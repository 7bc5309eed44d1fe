"""Certified thresholds on real outcomes: violation rate and share of cheap traffic.

    python benchmarks/quality/certificates.py --data DATA --out benchmarks/quality/results --splits 100
    python benchmarks/quality/certificates.py --synthetic --out DIR --splits 20      (no data needed)

DATA holds routellm, paretobandit_val and llmrouter_example (queries.parquet, outcomes.parquet). A
split draws 1,000 queries (600 of paretobandit_val) to fit the trained head and drops every other
query with one of their prompts. The rest is the population: n calibration rows are drawn from it
with replacement, so that the loss over the population is exactly the expected loss that is
promised, and a violation is a loss above eps there. `unseen` counts violations on the rows that
were not drawn instead: the usual way, with the noise of a finite test on top of the promise.
Scores: prompt length, which needs no labels, and the head. Thresholds are 50 quantiles of the
fitted queries' scores; `own` walks every score of the calibration rows instead, as
`suffice calibrate` does for untrained policies. Confidence 0.9.

The baseline is naive tuning on the same draws: the largest of the same thresholds whose loss on the
calibration rows is at most eps; and for graded scores Hoeffding-Bentkus next to the betting
bound that is used. The choice between those two was made on llmrouter_example, arena_bench_v1 and
eq_bench_v2 with random scores, before anything here was run.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from runner import arguments, publish

from suffice.lab import stats
from suffice.lab.calibrate import risk_control
from suffice.lab.calibrate.exchange_rate import choose_exchange_rate, quality_gaps
from suffice.lab.calibrate.risk_control import Kind, fixed_sequence_test, quantile_thresholds
from suffice.lab.data.load import load_table
from suffice.lab.predictors.base import Batch, extract_table
from suffice.lab.predictors.baselines import LengthPredictor
from suffice.lab.predictors.linear import LinearHead

CONFIDENCE = 0.9
DELTA = 1 - CONFIDENCE
SIZES = (200, 500, 2000)
EPS = (0.02, 0.05, 0.10)
TARGETS = {"mean_violation": 0.10, "worst_cell": 0.16, "mmlu_share_500_at_5_percent": 0.25}
FloatArray = NDArray[np.float64]


class Case(NamedTuple):
    """score: (n, k), cost: (k,), the reference first. priced: whether the costs are dollars, or only
    say which model is more expensive. judged: whether the targets are about it."""

    name: str
    x: Batch
    keys: NDArray[np.intp]
    score: FloatArray
    cost: FloatArray
    priced: bool
    fit: int
    kind: Kind
    judged: bool
    models: tuple[str, ...]


def of_table(
    folder: Path, name: str, models: tuple[str, ...], fit: int, kind: Kind, judged: bool,
    benchmark: str | None = None,
) -> Case:  # fmt: skip
    table = load_table(folder).select_models(models)
    keep = table.complete
    if benchmark is not None:
        keep &= np.array([b == benchmark for b in table.benchmark or ()])
    table = table.take(keep)
    cost = (
        np.full(len(models), np.nan)
        if table.cost_usd is None
        else np.nanmean(table.cost_usd, axis=0)
    )
    priced = not np.isnan(cost).any()
    if not priced:
        cost = np.arange(len(models), 0, -1.0)
    keys = np.unique(np.array(table.keys, dtype=object).astype(str), return_inverse=True)[1]
    return Case(
        name, extract_table(table), keys, table.score, cost, priced, fit, kind, judged, models
    )


def cases(data: Path) -> Iterator[Case]:
    gpt, mixtral = "gpt-4-1106-preview", "mistralai/Mixtral-8x7B-Instruct-v0.1"
    yield of_table(
        data / "routellm", "MMLU, GPT-4 and Mixtral", (gpt, mixtral), 1000, "binary", True, "mmlu"
    )
    pro, flash = "google/gemini-2.5-pro", "google/gemini-2.5-flash"
    large, llama = "mistralai/mistral-large-2512", "meta-llama/llama-3.1-8b-instruct"
    folder = data / "paretobandit_val"
    yield of_table(folder, "ParetoBandit, Pro and Llama", (pro, llama), 600, "graded", True)
    yield of_table(
        folder,
        "ParetoBandit, Pro and three others",
        (pro, flash, large, llama),
        600,
        "graded",
        True,
    )
    yield of_table(
        data / "llmrouter_example", "development: LLMRouter, Nemotron 49B and Gemma 9B",
        ("llama-3.3-nemotron-super-49b-v1", "gemma-2-9b-it"), 1000, "graded", False,
    )  # fmt: skip


def synthetic(kind: Kind, seed: int = 0) -> Case:
    """4,000 queries whose loss grows with length and with one more signal."""
    from suffice import features

    rng = np.random.default_rng(seed)
    n = 4000
    signals = np.zeros((n, len(features.SIGNAL_NAMES)), np.float32)
    signals[:, 0] = rng.normal(5.0, 1.0, n)
    signals[:, 1] = rng.normal(0.0, 1.0, n)
    chance = 1 / (1 + np.exp(-(signals[:, 0] + signals[:, 1] - 6.0)))
    lost = rng.random(n) < chance
    score = np.stack([np.ones(n), np.where(lost, 0.0, 1.0)], axis=1)
    if kind == "graded":
        score[:, 1] = 1 - (1 - score[:, 1]) * rng.choice([0.2, 0.6, 1.0], n)
    x = Batch(signals, np.zeros((n, features.DIMENSIONS), np.float32))
    return Case(
        f"synthetic, {kind}", x, np.arange(n), score, np.array([2.0, 1.0]), False, 500, kind, True,
        ("strong", "weak"),
    )  # fmt: skip


# ── one split ────────────────────────────────────────────────────────────────────────────────────


def walks(
    loss: FloatArray, score: FloatArray, thresholds: FloatArray, max_loss: float, kind: Kind
) -> dict[str, float]:
    """Threshold of each rule, -inf where it certifies nothing."""
    shared: dict[str, Any] = {"max_loss": max_loss, "confidence": CONFIDENCE, "kind": kind}
    found = {
        "certified": fixed_sequence_test(loss, score, thresholds=thresholds, **shared).threshold,
        "own": fixed_sequence_test(loss, score, **shared).threshold,
    }
    means = np.array([loss[score <= t].sum() for t in thresholds]) / len(loss)
    below = thresholds[means <= max_loss]
    found["naive"] = float(below.max()) if len(below) else None
    if kind == "graded":
        found["hoeffding_bentkus"] = None
        for t, mean in zip(thresholds.tolist(), means.tolist(), strict=True):
            if risk_control.hoeffding_bentkus_p_value(mean, len(loss), max_loss) > DELTA:
                break
            found["hoeffding_bentkus"] = t
    return {k: -np.inf if v is None else v for k, v in found.items()}


def one_split(case: Case, seed: int, rows: list[tuple[Any, ...]]) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(case.keys))
    fit = order[: case.fit]
    pool = order[case.fit :]
    pool = pool[~np.isin(case.keys[pool], case.keys[fit])]
    head = LinearHead().fit(case.x.take(fit), case.score[fit], None, case.cost, case.models)
    quality = head.predict(case.x)[0]
    rate = {e: choose_exchange_rate(quality[fit], case.cost, e) for e in EPS}
    length = (
        LengthPredictor()
        .fit(case.x, case.score[:0], None, case.cost, case.models)
        .strong_score(case.x, 0, 1)
    )
    cheapest = np.full(len(length), len(case.models) - 2)
    for eps in EPS:
        for name, (place, score) in (
            ("length", (cheapest, length)),
            ("trained", quality_gaps(quality, case.cost, rate[eps])),
        ):
            alternative = case.score[np.arange(len(place)), place + 1]
            loss = np.maximum(0.0, case.score[:, 0] - alternative)
            thresholds = quantile_thresholds(score[fit])
            for n in SIZES:
                if n > len(pool):
                    continue
                cal = rng.choice(pool, n)
                out = np.setdiff1d(pool, cal)
                for rule, t in walks(loss[cal], score[cal], thresholds, eps, case.kind).items():
                    goes = score <= t
                    saved = np.where(goes, case.cost[0] - case.cost[place + 1], 0.0) / case.cost[0]
                    rows.append(
                        (name, n, eps, rule, goes[pool].mean(), float((loss * goes)[pool].mean()),
                         float((loss * goes)[out].mean()), saved[pool].mean())
                    )  # fmt: skip


def summary(case: Case, rows: list[tuple[Any, ...]], splits: int) -> list[dict[str, Any]]:
    cells = []
    for key in dict.fromkeys(r[:4] for r in rows):
        name, n, eps, rule = key
        share, loss, unseen, saved = np.array([r[4:] for r in rows if r[:4] == key]).T
        broken = int((loss > eps).sum())
        spread = 1.96 * float(share.std(ddof=1)) / len(share) ** 0.5
        cells.append(
            {
                "score": name, "n": n, "eps": eps, "rule": rule,
                "violations": broken / splits,
                "violations_ci": [
                    round(1 - stats.clopper_pearson(splits - broken, splits, 0.025), 4),
                    round(stats.clopper_pearson(broken, splits, 0.025), 4),
                ],
                "violations_unseen": float((unseen > eps).mean()),
                "certified_away": round(float(share.mean()), 4),
                "certified_away_ci": [
                    round(float(share.mean()) - spread, 4), round(float(share.mean()) + spread, 4),
                ],
                "nothing_certified": float((share == 0).mean()),
                "cost_saved": round(float(saved.mean()), 4) if case.priced else None,
            }
        )  # fmt: skip
    return cells


# ── what is shown ────────────────────────────────────────────────────────────────────────────────


def over(cells: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "cells": len(cells),
        "mean_violation": round(float(np.mean([c["violations"] for c in cells])), 4),
        "worst_cell": max(c["violations"] for c in cells),
        "mean_violation_unseen": round(float(np.mean([c["violations_unseen"] for c in cells])), 4),
        "worst_cell_unseen": max(c["violations_unseen"] for c in cells),
    }


def targets(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The targets of the project and what was measured: for each rule over all judged cells, and for
    what is certified case by case; betting next to Hoeffding-Bentkus over all graded cells."""
    out: dict[str, Any] = {"targets": TARGETS}
    for rule in ("certified", "own", "naive", "hoeffding_bentkus"):
        cells = [c for r in results if r["judged"] for c in r["cells"] if c["rule"] == rule]
        if cells:
            out[rule] = over(cells)
    out["certified_by_case"] = {
        r["case"]: over([c for c in r["cells"] if c["rule"] == "certified"]) for r in results
    }
    pairs: list[tuple[float, float]] = []
    for r in results:
        by = {(c["score"], c["n"], c["eps"], c["rule"]): c["certified_away"] for c in r["cells"]}
        pairs += [
            (by[(*k[:3], "certified")], v) for k, v in by.items() if k[3] == "hoeffding_bentkus"
        ]
    out["betting_against_hoeffding_bentkus"] = {
        "graded_cells": len(pairs),
        "betting_certifies_more": sum(a > b for a, b in pairs),
        "mean_share_betting": round(float(np.mean([a for a, _ in pairs])), 4),
        "mean_share_hoeffding_bentkus": round(float(np.mean([b for _, b in pairs])), 4),
    }
    for r in results:
        if r["case"].startswith("MMLU"):
            out["mmlu_share_500_at_5_percent"] = {
                f"{c['score']}, {c['rule']}": c["certified_away"]
                for c in r["cells"]
                if (c["n"], c["eps"]) == (500, 0.05)
            }
    return out


def show(results: list[dict[str, Any]], measured: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    for r in results:
        table = Table(title=r["case"], box=None, header_style="bold", title_justify="left")
        for c in ("score", "n", "eps", "rule", "violations", "unseen", "goes cheap", "saved"):
            table.add_column(c, justify="left" if c in ("score", "rule") else "right")
        for c in r["cells"]:
            low, high = c["violations_ci"]
            table.add_row(
                c["score"], str(c["n"]), f"{c['eps']:g}", c["rule"],
                f"{c['violations']:.2f} [{low:.2f}, {high:.2f}]", f"{c['violations_unseen']:.2f}",
                f"{c['certified_away']:.1%}",
                "" if c["cost_saved"] is None else f"{c['cost_saved']:.1%}",
            )  # fmt: skip
        console.print(table)
    for name, value in measured.items():
        console.print(f"{name}: {value}", highlight=False)


def main() -> None:
    parser = arguments(__doc__, data=False)
    parser.add_argument("--synthetic", action="store_true", help="made-up queries instead of DATA")
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args()
    if (args.data is None) != args.synthetic:
        raise SystemExit("Give either --data DIR or --synthetic.")
    made = [synthetic("binary"), synthetic("graded")] if args.synthetic else cases(args.data)
    began = time.perf_counter()
    results = []
    for case in made:
        rows: list[tuple[Any, ...]] = []
        for seed in range(args.first_seed, args.first_seed + args.splits):
            one_split(case, seed, rows)
        results.append(
            {
                "case": case.name, "judged": case.judged, "kind": case.kind, "models": case.models,
                "queries": len(case.keys), "fit_labels": case.fit,
                "quality": [round(q, 4) for q in case.score.mean(axis=0).tolist()],
                "loss_if_always_cheapest": round(
                    float(np.maximum(0, case.score[:, 0] - case.score[:, -1]).mean()), 4
                ),
                "cells": summary(case, rows, args.splits),
            }
        )  # fmt: skip
        print(f"{case.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    measured = targets(results)
    publish(
        args.out,
        "certificates",
        __doc__,
        {
            "splits": args.splits,
            "first_seed": args.first_seed,
            "confidence": CONFIDENCE,
            "seconds": round(time.perf_counter() - began),
            "targets": measured,
            "cases": results,
        },
    )
    show(results, measured)


if __name__ == "__main__":
    main()
