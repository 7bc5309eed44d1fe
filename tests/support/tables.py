"""Small tables with a known truth, made by a seed: what the lab's tests judge on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from suffice.lab.data.table import Table
from suffice.types import Message

_EASY = "what is the capital city of {} please tell me".split()
_HARD = "prove that the integral of the polynomial {} converges and derive its limit".split()


def prompts(n: int, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """(n,) prompts, and (n,) whether each is of the hard kind: same lengths, other words."""
    hard = rng.random(n) < 0.5
    out = []
    for i in range(n):
        words = list(_HARD if hard[i] else _EASY)
        rng.shuffle(words)
        words = words * int(rng.integers(1, 5))
        out.append(f"{' '.join(words)} number {i}".replace("{}", "x"))
    return out, hard


def table(
    n: int = 400,
    models: tuple[str, ...] = ("lab/weak", "lab/strong"),
    costs: bool = True,
    seed: int = 0,
    **more: Any,
) -> Table:
    """The first model fails most hard questions; each later one fails fewer and costs ten times as
    much."""
    rng = np.random.default_rng(seed)
    texts, hard = prompts(n, rng)
    k = len(models)
    score = np.empty((n, k))
    for j in range(k):
        right = np.where(hard, 0.25 + 0.6 * j / max(1, k - 1), 0.9)
        score[:, j] = rng.random(n) < right
    usd = 10.0 ** np.arange(k) * 1e-5 * (1 + rng.random((n, 1)))
    return Table(
        "made",
        tuple(f"q{seed}-{i}" for i in range(n)),
        tuple((Message("user", t),) for t in texts),
        models,
        score,
        cost_usd=usd if costs else None,
        benchmark=tuple("hard" if h else "easy" for h in hard),
        **more,
    )


def write_jsonl(table: Table, path: Path) -> Path:
    """As one long file."""
    with path.open("w") as file:
        for i, query_id in enumerate(table.query_ids):
            for j, model in enumerate(table.models):
                row: dict[str, Any] = {
                    "query_id": query_id, "prompt": table.prompts[i], "model": model,
                    "score": None if np.isnan(table.score[i, j]) else table.score[i, j],
                }  # fmt: skip
                if table.benchmark is not None:
                    row["benchmark"] = table.benchmark[i]
                if table.cost_usd is not None and not np.isnan(table.cost_usd[i, j]):
                    row["cost_usd"] = table.cost_usd[i, j]
                file.write(json.dumps(row) + "\n")
    return path


def write_folder(table: Table, folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    queries = {"query_id": list(table.query_ids), "prompt": list(table.prompts)}
    if table.benchmark is not None:
        queries["benchmark"] = list(table.benchmark)  # type: ignore[arg-type]
    pq.write_table(pa.table(queries), folder / "queries.parquet")
    n, k = table.score.shape
    outcomes: dict[str, Any] = {
        "query_id": [q for q in table.query_ids for _ in range(k)],
        "model": list(table.models) * n,
        "score": table.score.ravel(),
    }
    if table.cost_usd is not None:
        outcomes["cost_usd"] = table.cost_usd.ravel()
    pq.write_table(pa.table(outcomes), folder / "outcomes.parquet")
    return folder
