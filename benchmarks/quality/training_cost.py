"""What training and assessing cost in time and memory, as the commands a user runs.

    python benchmarks/quality/training_cost.py --data DATA --out benchmarks/quality/results --rounds 3

Each command is a separate process: wall seconds, CPU seconds (user + system, which a
shared machine stretches less) and peak resident memory from its rusage, everything included: start of
Python, reading the table, cross-validation, writing. The best round by wall time is shown, and the
load average of the machine next to it.

`suffice train`: 1,500 labelled queries x 10 models, on mmlu_pro (models at even ranks of accuracy
among the priced; DATA/prices.json gives costs); once with the evidence-averaged linear head and
once choosing among all learners by nested cross-validation. `suffice assess`: 100,000 queries, made
by drawing words of the tables' prompts at their lengths, each query from one table, so that topics
remain; once as an unlabelled log and once with scores and costs of four models.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from pool import even_ranks
from runner import arguments, publish

from suffice.lab.data.costs import outcome_costs, read_prices
from suffice.lab.data.load import load_table
from suffice.lab.data.table import Table

TRAIN_LABELS, TRAIN_MODELS = 1500, 10
QUERIES = 100_000
TARGETS = {"train_s": 30.0, "train_mb": 1000.0, "assess_s": 60.0}
MADE_MODELS = ("made/small", "made/medium", "made/large", "made/largest")


def measured(command: Sequence[str]) -> dict[str, float]:
    """Runs a command; wall and CPU seconds, peak MB. Raises SystemExit with its words if it fails."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            raise SystemExit(
                f"{' '.join(command)} ended with {child.returncode}:\n"
                + said.read().decode(errors="replace")[-2000:]
            )
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return {
        "wall_s": round(wall, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(kilobytes * 1024 / 1e6, 1),
    }


def best_of(rounds: int, command: Sequence[str]) -> dict[str, Any]:
    runs = []
    for _ in range(rounds):
        load = os.getloadavg()[0]
        runs.append(measured(command) | {"load_average_before": round(load, 2)})
    best = min(runs, key=lambda r: r["wall_s"])
    return {**best, "rounds": runs}


def write_table(table: Table, folder: Path, scores: bool = True) -> None:
    """The two parquet files of a table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    pq.write_table(
        pa.table({"query_id": list(table.query_ids), "prompt": list(table.prompts)}),
        folder / "queries.parquet",
    )
    if scores:
        k = len(table.models)
        columns: dict[str, Any] = {
            "query_id": [q for q in table.query_ids for _ in range(k)],
            "model": list(table.models) * len(table),
            "score": table.score.ravel(),
        }
        if table.cost_usd is not None:
            columns["cost_usd"] = table.cost_usd.ravel()
        pq.write_table(pa.table(columns), folder / "outcomes.parquet")


def labelled(data: Path, count: int, models: int) -> Table:
    """`count` queries with scores and costs of `models` models, of the largest table at hand."""
    folder = next(f for f in ("mmlu_pro", "paretobandit_val") if (data / f).is_dir())
    table = load_table(data / folder)
    listed = data / "prices.json"
    cost, known, _ = outcome_costs(table, read_prices(listed) if listed.exists() else None)
    table = replace(table, cost_usd=cost).select_models(even_ranks(table, known, models))
    rows = np.flatnonzero(table.complete)
    rng = np.random.default_rng(0)
    return table.take(np.sort(rng.choice(rows, min(count, len(rows)), replace=False)))


def made_queries(data: Path, count: int, seed: int = 0) -> Table:
    """`count` queries of words drawn from a table's prompts, with made-up outcomes."""
    rng = np.random.default_rng(seed)
    words, lengths = [], []
    for folder in sorted(p for p in data.iterdir() if (p / "queries.parquet").exists()):
        if folder.name == "routellm":
            continue
        split = [p.split() for p in load_table(folder).prompts]
        words.append(np.array([w for s in split for w in s], dtype=object))
        lengths.append(np.array([len(s) for s in split]))
    of = rng.integers(0, len(words), count)
    prompts = []
    for i in range(count):
        long = int(rng.choice(lengths[of[i]]))
        prompts.append(" ".join(rng.choice(words[of[i]], max(1, min(long, 400)))))
    log_length = np.log([len(p) for p in prompts])
    hard = (log_length - log_length.mean())[:, None] + 0.5 * rng.logistic(size=(count, 1))
    skill = np.linspace(-0.3, 1.8, len(MADE_MODELS))
    score = (rng.logistic(size=(count, len(skill))) < skill - hard).astype(float)
    cost = np.exp(rng.normal(size=score.shape) * 0.3 + np.linspace(-10, -5, len(skill)))
    from suffice.types import Message

    return Table(
        "made", tuple(f"q{i}" for i in range(count)),
        tuple((Message("user", p),) for p in prompts), MADE_MODELS, score, cost_usd=cost,
    )  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of a hundredth of the size")
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    suffice = [sys.executable, "-m", "suffice"]
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        room = Path(scratch)
        table = labelled(args.data, 300 if args.quick else TRAIN_LABELS, TRAIN_MODELS)
        write_table(table, room / "train")
        command = [*suffice, "train", str(room / "train"), "--out", str(room / "router.npz")]
        about = {"queries": len(table), "models": len(table.models)}
        out["train, the safe head"] = about | best_of(rounds, [*command, "--policy", "trained"])
        out["train, chosen by nested cross-validation"] = about | best_of(rounds, command)
        made = made_queries(args.data, QUERIES // 100 if args.quick else QUERIES)
        write_table(made, room / "log", scores=False)
        write_table(made, room / "scored")
        about = {"queries": len(made)}
        for name, folder, models in (
            ("assess, unlabelled", "log", 0), ("assess, four models", "scored", len(MADE_MODELS)),
        ):  # fmt: skip
            out[name] = (
                about
                | {"models": models}
                | best_of(rounds, [*suffice, "assess", str(room / folder), "--json"])
            )
        for name, r in out.items():
            print(
                f"{name}: {r['wall_s']:.1f} s wall, {r['cpu_s']:.1f} s CPU, "
                f"{r['peak_mb']:.0f} MB, load {r['load_average_before']}"
            )
    publish(
        args.out,
        "training_cost",
        __doc__,
        {
            "quick": args.quick,
            "rounds": rounds,
            "targets": TARGETS,
            "commands": out,
        },
    )


if __name__ == "__main__":
    main()
