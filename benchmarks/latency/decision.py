"""What one decision costs: features, prediction and objective of a ten-model trained policy.

    python benchmarks/latency/decision.py --data TABLES [--litellm PYTHON] [--rounds 5]

One thread, CPU time of `features.extract` and `policy.decide`, prompts of 170 to 230 tokens.
*Never seen*: an empty chunk cache, each prompt once. *Warm*: the same prompts again. Other work on the
machine still costs caches, so each number is of the best of the rounds, and the machine's load is
reported with it. `--litellm`: an interpreter with the package litellm, whose local complexity scorer is
timed on the same prompts by the wall clock. Writes decision.json here.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from suffice import features, policies
from suffice.artifacts import artifact as artifacts
from suffice.features import wordpiece
from suffice.lab.data.table import Table
from suffice.lab.train.train import train
from suffice.pool import Candidates, Pool
from suffice.types import Candidate, Decision, Message, Model, Policy, Price

Conversation = tuple[Message, ...]
HERE = Path(__file__).parent
MODELS = tuple(f"bench/m{i}" for i in range(10))
LITELLM = """
import json, sys, time
from unittest.mock import MagicMock
from litellm.router_strategy.complexity_router.complexity_router import ComplexityRouter
prompts = json.load(sys.stdin)
router = ComplexityRouter(model_name="bench", litellm_router_instance=MagicMock())
out = []
for _ in range(int(sys.argv[1])):
    took = []
    for p in prompts:
        started = time.perf_counter()
        router.classify(p)
        took.append((time.perf_counter() - started) * 1e6)
    out.append(took)
import importlib.metadata as m
print(json.dumps({"version": m.version("litellm"), "us": out}))
"""


def prompts(data: Path, low: int = 170, high: int = 230, most: int = 1500) -> list[str]:
    """Prompts of `low` to `high` tokens from every table but the test-only one."""
    import pyarrow.parquet as pq

    tokenizer = wordpiece.WordPiece(wordpiece.load_vocabulary())
    selected: list[str] = []
    for folder in sorted(p for p in data.iterdir() if (p / "queries.parquet").exists()):
        if folder.name != "routellm":
            texts = pq.read_table(folder / "queries.parquet")["prompt"].to_pylist()
            selected += [t for t in texts if low <= len(tokenizer.ids(t[:1100])) <= high]
    np.random.default_rng(0).shuffle(selected)
    return selected[:most]


def ten_models(texts: Sequence[str]) -> tuple[bytes, float]:
    """An artifact over ten models, and the seconds that training on 1,500 labels took."""
    # The scores are made up: what is timed does not depend on them.
    n = min(1500, len(texts))
    rng = np.random.default_rng(0)
    skill = np.linspace(-0.5, 1.5, 10)
    length = np.array([len(t) for t in texts[:n]])
    hard = (np.log(length) - np.log(length).mean())[:, None]
    score = (rng.random((n, 10)) < 1 / (1 + np.exp(hard - skill))).astype(float)
    table = Table(
        "made",
        tuple(map(str, range(n))),
        tuple((Message("user", t),) for t in texts[:n]),
        MODELS,
        score,
        cost_usd=np.exp(rng.normal(size=(n, 10)) * 0.3 + np.linspace(-9, -5, 10)),
        output_tokens=np.exp(rng.normal(size=(n, 10)) * 0.3 + 5),
    )
    started = time.perf_counter()
    made, _ = train(table, policy="trained")
    return artifacts.pack(made), time.perf_counter() - started


def percentiles(us: Sequence[float]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(us, [50, 90, 99])
    return {"median": round(p50, 1), "p90": round(p90, 1), "p99": round(p99, 1)}


def time_each(
    conversations: Sequence[Conversation], decide: Callable[[Conversation], Decision]
) -> list[float]:
    """CPU microseconds of each decision."""
    us = []
    for messages in conversations:
        started_ns = time.process_time_ns()
        decide(messages)
        us.append((time.process_time_ns() - started_ns) / 1e3)
    return us


def best(rounds: list[list[float]]) -> dict[str, float]:
    return percentiles(min(rounds, key=lambda r: float(np.median(r))))


def decider(policy: Policy) -> Callable[[Conversation], Decision]:
    """Decides over ten models as the gateway does, with an interned pool."""
    models = tuple(
        Model(m, "bench", m, price=Price(0.1 * 2**i, 0.4 * 2**i)) for i, m in enumerate(MODELS)
    )
    candidates = Candidates.of(Pool(models), [Candidate(m, 0.5, 80.0) for m in models])
    objective = policies.parse_objective({"keep_quality": 0.95})

    def decide(messages: Conversation) -> Decision:
        return policy.decide(features.extract(messages), candidates, objective, id="d", seed=1)

    return decide


def measure(texts: Sequence[str], trained: Policy, rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds per kind of decision."""
    conversations = [(Message("user", t),) for t in texts]
    long_text = " ".join(texts)
    long = [(Message("user", long_text[i * 37 : i * 37 + 80_000]),) for i in range(300)]
    decide = decider(trained)
    by_default = decider(policies.make("default", features.SIGNAL_NAMES))
    decide(conversations[0])
    by_default(conversations[0])
    cold = []
    for _ in range(rounds):
        features.tokenizer.cache_clear()
        features.tokenizer()
        cold.append(time_each(conversations, decide))
    us = {"trained, ten models, 200 tokens, never seen": best(cold)}
    for name, decide_one, queries in (
        ("trained, ten models, 200 tokens, warm", decide, conversations),
        ("trained, ten models, 20,000 tokens", decide, long),
        ("default, ten models, 200 tokens, warm", by_default, conversations),
    ):
        us[name] = best([time_each(queries, decide_one) for _ in range(rounds)])
    return us


def measure_litellm(
    python: Path, texts: Sequence[str], rounds: int
) -> tuple[str, dict[str, float]]:
    """The version of litellm, and microseconds of its local complexity scorer."""
    process = subprocess.run(
        [python, "-c", LITELLM, str(rounds)],
        input=json.dumps(texts), capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    result = json.loads(process.stdout.splitlines()[-1])
    return result["version"], best(result["us"])


def main() -> None:
    """Measure and write decision.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--litellm", type=Path, help="a Python that has litellm")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    texts = prompts(arguments.data)
    raw, train_s = ten_models(texts)
    us = measure(texts, policies.TrainedPolicy(artifacts.unpack(raw)), arguments.rounds)
    versions = {n: version(n) for n in ("numpy", "msgspec", "suffice")}
    if arguments.litellm:
        name = "LiteLLM's local complexity scorer, the same prompts, warm"
        versions["litellm"], us[name] = measure_litellm(arguments.litellm, texts, arguments.rounds)
    result = {
        "date": dt.date.today().isoformat(),
        "machine": f"{os.cpu_count()} shared virtual cores, {platform.machine()}, "
        f"Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 2),
        "method": "CPU time of features.extract + policy.decide, one thread, "
        f"{len(texts)} prompts, best of {arguments.rounds} rounds by median",
        "versions": versions,
        "microseconds": us,
        "train_s": round(train_s, 2),
        "train": "1,500 labelled queries, ten models, the evidence-averaged head, cross-validated",
    }
    (HERE / "decision.json").write_text(json.dumps(result, indent=1) + "\n")
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
