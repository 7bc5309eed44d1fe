"""Decisions under white space, templates and rewording, and on sources that nothing was learned from.

    python benchmarks/quality/robustness.py --data DATA --out benchmarks/quality/results

Decisions are serving's own: `features.extract` and `policy.decide`, for the default policy and for
the artifact that `suffice train --policy trained` makes from paretobandit_val. Prompts: up to 500 of
each table of DATA but the test-only one, drawn by seed; four models at made-up prices in the order of
their real ones; three objectives. A decision counts as changed if the first model of the plan is
another. A policy that sent everything to one model would never change: the share of each model is
reported too. Intervals of shares are Wilson's, 95 %, over prompts (a prompt counts as changed if it
changes under any objective).

White space: trailing space and newlines; wrapping at 60 and at 40 columns, Windows line ends. Template
noise: what prompt templates and harnesses put around the same words. Rewording: the deterministic
changes of `suffice/lab/evaluate/robustness.py`.

Leave one source out: for each benchmark of a table (for mmlu_pro each subject) policies learn from all
others. Of a pair APGR, of more models the gain over the zero router; the mean over sources with a 95 %
interval from redrawing sources. For comparison the same sources judged by cross-fitting, which has seen
others of their queries: what knowing the source is worth.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from runner import arguments, publish

from suffice import features, policies
from suffice.artifacts import artifact as artifacts
from suffice.lab.data.costs import read_prices
from suffice.lab.data.load import load_table
from suffice.lab.evaluate.evaluate import evaluate
from suffice.lab.evaluate.robustness import REWORDINGS, WHITE_SPACE
from suffice.lab.stats import wilson_interval
from suffice.lab.train.train import train
from suffice.types import Candidate, Message, Model, Policy, Price

FIT = "paretobandit_val"
TEST_ONLY = "routellm"
EACH = 500
POOL = (  # USD per million tokens in and out, made up
    ("meta-llama/llama-3.1-8b-instruct", 0.03, 0.06),
    ("mistralai/mistral-large-2512", 0.5, 1.5),
    ("google/gemini-2.5-flash", 0.3, 2.5),
    ("google/gemini-2.5-pro", 1.25, 10.0),
)
OBJECTIVES: tuple[Any, ...] = (  # each sends a fair share of prompts to more than one model
    {"keep_quality": 0.9}, {"keep_quality": 0.95}, {"weights": {"cost": 1.0, "quality": 4.0}},
)  # fmt: skip
_REMINDER = "<system-reminder>\nThe task list is empty. Do not mention it.\n</system-reminder>"

CHANGES: dict[str, dict[str, Callable[[str], str]]] = {
    "white space": {
        "trailing space": WHITE_SPACE["trailing space"],
        "wrapped at 60 columns": lambda t: _wrap(t, 60),
        "wrapped at 40 columns": lambda t: _wrap(t, 40),
        "Windows line ends": lambda t: t.replace("\n", "\r\n"),
    },
    "template noise": {
        "'Question:' in front": lambda t: f"Question: {t}",
        "'User:' in front": lambda t: f"User: {t}",
        "a harness's reminder behind": lambda t: f"{t}\n\n{_REMINDER}",
        "'Answer:' behind": lambda t: f"{t}\nAnswer:",
        "ChatML marks": lambda t: f"<|im_start|>user\n{t}<|im_end|>\n<|im_start|>assistant\n",
        "[INST] marks": lambda t: f"[INST] {t} [/INST]",
        "'### Instruction:' and '### Response:'": lambda t: (
            f"### Instruction:\n{t}\n\n### Response:\n"
        ),
    },
    "rewording": {k: v for k, v in REWORDINGS.items() if not k.startswith("'Question:'")},
}


class Source(NamedTuple):
    """Where one source is left out: models None = all with a cost; by: the column that names it."""

    folder: str
    name: str
    models: tuple[str, ...] | None
    by: str = "benchmark"


_GPT, _MIXTRAL = "gpt-4-1106-preview", "mistralai/Mixtral-8x7B-Instruct-v0.1"
SOURCES = (
    Source("paretobandit_val", "ParetoBandit, Gemini Pro and Llama 8B", (POOL[3][0], POOL[0][0])),
    Source(
        "paretobandit_val", "ParetoBandit, 3 models", tuple(POOL[i][0] for i in (0, 1, 3))
    ),
    Source("mmlu_pro", "MMLU-Pro by subject, GPT-4o and Llama 3 70B",
           ("gpt-4o-2024-05-13", "Meta-Llama-3-70B"), "category"),
    Source("llmrouter_example", "LLMRouter example, Nemotron 51B and Qwen 7B",
           ("llama-3.1-nemotron-51b-instruct", "qwen2.5-7b-instruct")),
    Source("llmrouter_example", "LLMRouter example, 9 models", None),
    Source("zeroeval", "ZeroEval, GPT-4o and Llama 3 70B",
           ("gpt-4o-2024-05-13", "Meta-Llama-3-70B-Instruct")),
)  # fmt: skip
LEARNERS = ("trained", "knn", "default")


def _wrap(text: str, width: int) -> str:
    """Long lines broken at spaces; no word is."""
    import textwrap

    lines = (
        textwrap.fill(x, width, break_long_words=False, break_on_hyphens=False)
        if len(x) > width
        else x
        for x in text.split("\n")
    )
    return "\n".join(lines)


# ── the same question put otherwise ──────────────────────────────────────────────────────────────


def prompts(data: Path, each: int, seed: int) -> dict[str, list[str]]:
    """Table -> some of its prompts."""
    out: dict[str, list[str]] = {}
    for folder in sorted(p for p in data.iterdir() if (p / "queries.parquet").exists()):
        if folder.name == TEST_ONLY:
            continue
        texts = load_table(folder).prompts
        order = np.random.default_rng(seed).permutation(len(texts))[:each]
        out[folder.name] = [texts[i] for i in np.sort(order)]
    return out


def trained_policy(folder: Path) -> tuple[Policy, dict[str, Any]]:
    """The policy that serves an artifact trained on a table, and what the artifact says of itself."""
    made, _ = train(load_table(folder), policy="trained", date="2026-01-01")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "router.npz"
        saved = artifacts.save(made, path)
        policy = policies.load_trained(str(path))
    return policy, {"version": saved.version, "queries": saved.card.queries}


class Asker:
    """Asks one policy for the model of each prompt under each objective, (n_objectives, n)."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.pool = tuple(
            Candidate(Model(m, m.split("/")[0], m, price=Price(a, b)), 0.5, 80.0)
            for m, a, b in POOL
        )
        self.objectives = [policies.parse_objective(o) for o in OBJECTIVES]

    def __call__(self, texts: Sequence[str]) -> Any:
        seen = [features.extract((Message("user", t),)) for t in texts]
        return np.array(
            [
                [
                    self.policy.decide(x, self.pool, o, id="d", seed=i).model
                    for i, x in enumerate(seen)
                ]
                for o in self.objectives
            ],
            dtype=object,
        )


def steadiness(policy: Policy, asked: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Per kind and change: how many prompts' decisions change, of how many, with an interval."""
    ask = Asker(policy)
    texts = [t for some in asked.values() for t in some]
    before = ask(texts)
    out: dict[str, Any] = {
        "prompts": len(texts),
        "share": {
            str(o): {m: float((before[i] == m).mean()) for m, _, _ in POOL}
            for i, o in enumerate(OBJECTIVES)
        },
        "changes": {},
    }
    for kind, changes in CHANGES.items():
        rows: dict[str, Any] = {}
        ever = np.zeros(len(texts), bool)
        for name, change in changes.items():
            other = ask([change(t) for t in texts]) != before
            changed = other.any(axis=0)
            ever |= changed
            rows[name] = _counts(changed) | {
                "each_objective": {str(o): int(other[i].sum()) for i, o in enumerate(OBJECTIVES)}
            }
        out["changes"][kind] = {"any": _counts(ever), "each": rows}
    return out


def _counts(changed: Any) -> dict[str, Any]:
    n, k = len(changed), int(changed.sum())
    return {"changed": k, "of": n, "rate": k / n, "ci": wilson_interval(k, n)}


# ── sources that nothing was learned from ────────────────────────────────────────────────────────


def left_out(source: Source, data: Path, seed: int, draws: int) -> dict[str, Any]:
    table = load_table(data / source.folder)
    if source.by != "benchmark":
        table = replace(table, benchmark=getattr(table, source.by))
    listed = data / "prices.json"
    pair = source.models is not None and len(source.models) == 2
    result = evaluate(
        table, LEARNERS, models=source.models, leave_one_source_out=True, by=("benchmark",),
        prices=read_prices(listed) if listed.exists() and not pair else None, draws=draws,
        seed=seed,
    )  # fmt: skip
    figure = "apgr" if pair else "gain_over_zero_router"
    away, within = result["leave_one_source_out"], result["by"]["benchmark"]
    rows = {}
    for name, part in away.items():
        if part["policies"] is None or part["policies"]["length"][figure] is None:
            continue
        interval = "apgr_ci" if pair else "gain_ci"
        figures = part["policies"]
        rows[name] = {
            "queries": part["n_queries"],
            "length": figures["length"][figure],
            "random": figures["random"][figure],
            **{n: figures[n][figure] for n in LEARNERS},
            "trained_ci": figures["trained"][interval],
            "trained_in_source": within[name]["policies"]["trained"][figure],
        }
    columns = ("length", "random", *LEARNERS, "trained_in_source")
    values = {c: np.array([r[c] for r in rows.values()], float) for c in columns}
    rng = np.random.default_rng(seed)
    again = rng.integers(0, len(rows), (4000, len(rows)))

    def mean(v: Any) -> dict[str, Any]:
        low, high = np.quantile(v[again].mean(axis=1), [0.025, 0.975])
        return {"mean": float(v.mean()), "ci": [float(low), float(high)]}

    return {
        "name": source.name,
        "table": source.folder,
        "figure": "APGR" if pair else "gain over the zero router",
        "sources": rows,
        "left_out_small": [n for n in away if n not in rows],
        "mean": {c: mean(v) for c, v in values.items()},
        "trained_minus_length": mean(values["trained"] - values["length"]),
        "trained_worst_source_minus_length": float((values["trained"] - values["length"]).min()),
        "notes": result["notes"],
    }


def show(result: Mapping[str, Any]) -> None:
    for name, p in result["policies"].items():
        print(f"{name}: {p['prompts']} prompts, shares {p['share']}")
        for kind, rows in p["changes"].items():
            print(f"  {kind}: {rows['any']['changed']} of {rows['any']['of']} change")
            for change, r in rows["each"].items():
                print(f"    {change:42} {r['changed']:5} {r['rate']:.2%}")
    for s in result["left_out"]:
        means = ", ".join(
            f"{c} {m['mean']:.4f} [{m['ci'][0]:.4f}, {m['ci'][1]:.4f}]"
            for c, m in s["mean"].items()
        )
        print(f"{s['name']} ({s['figure']}, {len(s['sources'])} sources): {means}")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=300, help="of the bootstrap within a source")
    parser.add_argument("--quick", action="store_true", help="fewer prompts and one left-out table")
    args = parser.parse_args()
    if not (args.data / FIT / "outcomes.parquet").exists():
        raise SystemExit(f"--data {args.data}: there is no {FIT} to train on.")
    began = time.perf_counter()
    asked = prompts(args.data, 100 if args.quick else EACH, args.seed)
    policy, artifact = trained_policy(args.data / FIT)
    result: dict[str, Any] = {
        "seed": args.seed,
        "quick": args.quick,
        "prompts": {name: len(some) for name, some in asked.items()},
        "objectives": [str(o) for o in OBJECTIVES],
        "artifact": artifact,
        "policies": {
            "default": steadiness(policies.make("default", features.SIGNAL_NAMES), asked),
            "trained": steadiness(policy, asked),
        },
    }
    print(f"decisions: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    here = [s for s in SOURCES if (args.data / s.folder / "outcomes.parquet").exists()]
    result["left_out"] = []
    for source in here[:1] if args.quick else here:
        result["left_out"].append(left_out(source, args.data, args.seed, args.draws))
        print(f"{source.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    result["seconds"] = round(time.perf_counter() - began)
    publish(args.out, "robustness", __doc__, result)
    show(result)


if __name__ == "__main__":
    main()
