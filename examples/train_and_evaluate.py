"""From a table of outcomes to a learned policy and its curve.

Run: python examples/train_and_evaluate.py
The table is made up: the small model fails most proofs. Use `suffice collect` for a real one.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import tempfile
from pathlib import Path

from suffice.cli import main as suffice

EASY = ("What is the capital of country {}?", "Translate the word number {} into French.")
HARD = ("Prove that theorem {} holds for all integers.", "Derive the limit of series {}.")


def write_table(path: Path, queries: int, seed: int) -> None:
    """One line per query and model: the prompt, the score in [0, 1] and the cost."""
    generator = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(queries):
            hard = generator.random() < 0.5
            prompt = generator.choice(HARD if hard else EASY).format(number)
            for model, cost_usd, chance in (
                ("acme/small", 0.0001, 0.2 if hard else 0.95),
                ("acme/large", 0.0020, 0.95),
            ):
                row = {
                    "query_id": f"{seed}-{number}",
                    "prompt": prompt,
                    "model": model,
                    "score": float(generator.random() < chance),
                    "cost_usd": cost_usd,
                }
                file.write(json.dumps(row) + "\n")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labels, fresh = folder / "labels.jsonl", folder / "fresh.jsonl"
        artifact = folder / "router.npz"
        write_table(labels, queries=300, seed=1)
        write_table(fresh, queries=200, seed=2)

        # The commands `suffice train` and `suffice eval`, called as functions.
        assert suffice(["train", str(labels), "--out", str(artifact)]) == 0
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            command = ["eval", str(fresh), "--policy", str(artifact), "--json"]
            assert suffice(command) == 0
        policies = json.loads(output.getvalue())["policies"]
        print("area under the cost-quality curve, with its interval:")
        for policy, figures in sorted(policies.items(), key=lambda item: -(item[1]["area"] or 0)):
            print(f"  {policy:40} {figures['area']} {figures['area_ci']}")


if __name__ == "__main__":
    main()
