"""RouteLLM's protocol: GPT-4 or Mixtral, with no labels and with 50 to 5,000 of one's own.

    python benchmarks/quality/routellm.py --data DATA --out benchmarks/quality/results --seeds 16

DATA holds the folder routellm (queries.parquet, outcomes.parquet), from lm-sys/RouteLLM's published
responses, contaminated prompts dropped. Thresholds are the edges of ten equal-count bins of the
score; APGR and CPT as in Ong et al. 2024 (arXiv 2406.18665), CPT on the running maximum of the gap
recovered. MT-Bench is routed on its first turn and scored by the mean of two. Intervals: 95 %,
percentiles over redraws of the queries. With labels: each seed draws n queries of the benchmark,
fits on them, and tests on all others but those with one of their prompts; `trained` is the
evidence-averaged linear head, next to it nearest neighbours, a table of clusters and plain ridge;
`less_length` is the difference to prompt length on the same test queries. Nothing was fitted or
tuned on these outcomes, but they were looked at more than once: an earlier head reached .602, .624,
.629 and .654 on MMLU at 300, 1,000, 1,500 and 5,000 labels and fell .008 below length on one of 8
draws of 100; one whose doubt did not fall as labels grow reached .591, .617, .629 and .652. The
present one was chosen between them on pairs of training tables.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from runner import arguments, publish

from suffice.lab.data.load import load_table
from suffice.lab.evaluate.metrics import pair_curve
from suffice.lab.predictors.base import Batch, extract_table
from suffice.lab.predictors.registry import make_predictor

MODELS = ("gpt-4-1106-preview", "mistralai/Mixtral-8x7B-Instruct-v0.1")
PRICE = np.array([15.0, 0.6])  # USD per million tokens at 3 to 1; they only say which is expensive
SIZES = {"mmlu": (50, 100, 300, 1000, 1500, 5000), "gsm8k": (50, 100, 300, 1000)}
LEARNED = ("trained", "knn", "cluster", "ridge")
SAFE_SIZES, SAFE = (50, 100, 300, 1000), -0.005
# Published by RouteLLM: (CPT50, CPT80, APGR), None where not given.
PUBLISHED: dict[str, dict[str, tuple[float | None, float | None, float]]] = {
    "mmlu": {"best, in-domain labels": (None, None, 0.603), "no in-domain labels": (None, None, 0.524)},
    "gsm8k": {"best, in-domain labels": (None, None, 0.622), "no in-domain labels": (None, None, 0.475)},
    "mt_bench": {
        "matrix factorisation, augmented": (0.134, 0.313, 0.802),
        "matrix factorisation, arena only": (0.253, 0.743, 0.580),
    },
}  # fmt: skip
TARGETS = {
    ("mmlu", 0): 0.575, ("mmlu", 50): 0.585, ("mmlu", 300): 0.597, ("mmlu", 1000): 0.622,
    ("mmlu", 1500): 0.635, ("mmlu", 5000): 0.652,
    ("gsm8k", 0): 0.58, ("gsm8k", 50): 0.597, ("gsm8k", 300): 0.605, ("gsm8k", 1000): 0.63,
}  # fmt: skip
WISH = {"benchmark": "mmlu", "n": 1500, "apgr": 0.66}
FloatArray = NDArray[np.float64]


class Benchmark(NamedTuple):
    """score: (n, 2), strong first. prompt: (n,) number of each query's prompt."""

    name: str
    x: Batch
    score: FloatArray
    prompt: NDArray[np.intp]

    def take(self, index: NDArray[np.intp]) -> Benchmark:
        return Benchmark(self.name, self.x.take(index), self.score[index], self.prompt[index])


def benchmarks(data: Path) -> list[Benchmark]:
    table = load_table(data / "routellm").select_models(MODELS)
    table = table.take(table.complete)
    x = extract_table(table, progress=sys.stderr.isatty())
    prompt = np.unique(np.array(table.keys), return_inverse=True)[1]
    assert table.benchmark is not None
    which = np.array(table.benchmark)
    out = []
    for name in ("mmlu", "gsm8k", "mt_bench"):
        rows = np.flatnonzero(which == name)
        out.append(Benchmark(name, x.take(rows), table.score[rows], prompt[rows]))
    return out


def ranked(policy: str, train: Benchmark, test: Benchmark) -> FloatArray:
    fitted = make_predictor(policy).fit(train.x, train.score, None, PRICE, MODELS)
    return fitted.strong_score(test.x, 0, 1)


def figures(rank: FloatArray, score: FloatArray) -> tuple[float, float, float]:
    """(CPT50, CPT80, APGR); CPT is NaN where no share reaches it."""
    p = pair_curve(rank, score[:, 0], score[:, 1])
    half, most = p.cpt(0.5), p.cpt(0.8)
    return (
        float("nan") if half is None else half,
        float("nan") if most is None else most,
        p.apgr,
    )


def named(value: Sequence[float], spread: FloatArray) -> dict[str, Any]:
    """Three figures with their intervals."""
    out: dict[str, Any] = {}
    for i, name in enumerate(("cpt50", "cpt80", "apgr")):
        known = spread[~np.isnan(spread[:, i]), i]
        low, high = np.quantile(known, [0.025, 0.975])
        out[name] = round(float(value[i]), 4)
        out[f"{name}_interval"] = [round(float(low), 4), round(float(high), 4)]
    return out


def without_labels(b: Benchmark, draws: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    nothing = b.take(np.arange(0))
    redraws = [rng.integers(0, len(b.x), len(b.x)) for _ in range(draws)]
    out = []
    for policy in ("default", "length"):
        rank = ranked(policy, nothing, b)
        spread = np.array([figures(rank[r], b.score[r]) for r in redraws])
        out.append({"policy": policy, **named(figures(rank, b.score), spread)})
    # Random scores: their own spread, not that of the queries.
    spread = np.array([figures(rng.random(len(b.x)), b.score) for _ in range(draws)])
    out.append({"policy": "random", **named(spread.mean(axis=0).tolist(), spread)})
    return out


def with_labels(b: Benchmark, n: int, seeds: int) -> list[dict[str, Any]]:
    apgr: dict[str, list[float]] = {p: [] for p in LEARNED}
    length: list[float] = []
    fit_s = []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(b.x))
        train = b.take(order[:n])
        rest = order[n:]
        test = b.take(rest[~np.isin(b.prompt[rest], train.prompt)])
        length.append(figures(ranked("length", train, test), test.score)[2])
        for policy in LEARNED:
            began = time.perf_counter()
            rank = ranked(policy, train, test)
            if policy == "trained":
                fit_s.append(time.perf_counter() - began)
            apgr[policy].append(figures(rank, test.score)[2])
    out = []
    for policy, values in apgr.items():
        a, less = np.array(values), np.array(values) - np.array(length)
        out.append(
            {
                "policy": policy, "n": n,
                "apgr": round(float(a.mean()), 4), "sd": round(float(a.std(ddof=1)), 4),
                "less_length": round(float(less.mean()), 4),
                "least_less_length": round(float(less.min()), 4),
                "seeds_below_length": int((less < SAFE).sum()),
                "each": [round(v, 4) for v in values],
            }
        )  # fmt: skip
    out[0]["seconds"] = round(float(np.mean(fit_s)), 3)
    return out


def targets(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for (name, n), target in TARGETS.items():
        b = next(f for f in found if f["benchmark"] == name)
        if n:
            value = next(c for c in b["curves"] if c["n"] == n and c["policy"] == "trained")["apgr"]
        else:
            value = next(z for z in b["zero_labels"] if z["policy"] == "default")["apgr"]
        out.append(
            {"benchmark": name, "n": n, "target": target, "apgr": value, "met": value >= target}
        )
    for b in found:
        worst = [
            c["least_less_length"] for c in b.get("curves", ())
            if c["policy"] == "trained" and c["n"] in SAFE_SIZES
        ]  # fmt: skip
        if worst:
            out.append(
                {
                    "benchmark": b["benchmark"], "n": list(SAFE_SIZES), "target": SAFE,
                    "least_less_length": min(worst), "met": min(worst) >= SAFE,
                }
            )  # fmt: skip
    return out


def show(found: list[dict[str, Any]], measured: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table as Lines

    console = Console()
    for b in found:
        lines = Lines(title=f"{b['benchmark']}: {b['queries']:,} queries, no labels")
        for column in ("policy", "CPT50", "CPT80", "APGR"):
            lines.add_column(column)
        for z in b["zero_labels"]:
            lines.add_row(
                z["policy"],
                *(
                    f"{z[m]:.3f} [{z[m + '_interval'][0]:.3f}, {z[m + '_interval'][1]:.3f}]"
                    for m in ("cpt50", "cpt80", "apgr")
                ),
            )
        for name, values in PUBLISHED[b["benchmark"]].items():
            lines.add_row(f"published: {name}", *("" if v is None else f"{v:.3f}" for v in values))
        console.print(lines)
        if "curves" not in b:
            continue
        lines = Lines(title=f"{b['benchmark']}: APGR by labels")
        for column in ("policy", "labels", "APGR", "sd", "less length", "least", "below length"):
            lines.add_column(column)
        for c in b["curves"]:
            lines.add_row(
                c["policy"], f"{c['n']:,}", f"{c['apgr']:.4f}", f"{c['sd']:.4f}",
                f"{c['less_length']:+.4f}", f"{c['least_less_length']:+.4f}",
                str(c["seeds_below_length"]),
            )  # fmt: skip
        console.print(lines)
    for target in measured:
        console.print(target, highlight=False)


def main() -> None:
    parser = arguments(__doc__, data=False)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--draws", type=int, default=1000, help="redraws of the queries")
    args = parser.parse_args()
    if args.data is None or not (args.data / "routellm" / "queries.parquet").exists():
        raise SystemExit(
            "Give --data DIR, where DIR/routellm holds queries.parquet and outcomes.parquet with "
            f"the models {MODELS[0]} and {MODELS[1]}: RouteLLM's published responses."
        )
    if args.seeds < 2:
        raise SystemExit("Give --seeds 2 or more: one draw of labels has no spread.")
    began = time.perf_counter()
    found = []
    for b in benchmarks(args.data):
        benchmark: dict[str, Any] = {
            "benchmark": b.name, "queries": len(b.x),
            "quality": [round(q, 4) for q in b.score.mean(axis=0).tolist()],
            "zero_labels": without_labels(b, args.draws),
            "published": {
                k: dict(zip(("cpt50", "cpt80", "apgr"), v, strict=True))
                for k, v in PUBLISHED[b.name].items()
            },
        }  # fmt: skip
        if b.name in SIZES:
            benchmark["curves"] = [c for n in SIZES[b.name] for c in with_labels(b, n, args.seeds)]
        found.append(benchmark)
        print(f"{b.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    measured = targets(found)
    publish(
        args.out,
        "routellm",
        __doc__,
        {
            "models": list(MODELS),
            "seeds": list(range(args.seeds)),
            "draws": args.draws,
            "seconds": round(time.perf_counter() - began),
            "targets": measured,
            "wish": WISH,
            "benchmarks": found,
        },
    )
    show(found, measured)


if __name__ == "__main__":
    main()
