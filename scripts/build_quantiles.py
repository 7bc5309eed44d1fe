"""Builds src/suffice/policies/quantiles.json: quantiles of the default policy's difficulty score.

The sample is the demo's mixed workload, which we wrote ourselves: about half of it is easy, as chat
traffic is. A route's own traffic replaces it (policies/traffic.py).

Usage: python scripts/build_quantiles.py
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from suffice import features
from suffice.dialects.openai_request import parse_chat
from suffice.policies.priors import DifficultyScorer
from suffice.policies.traffic import quantile_table

ROOT = Path(__file__).parents[1] / "src" / "suffice"


def main() -> None:
    """Rewrite the file."""
    score = DifficultyScorer(features.SIGNAL_NAMES)
    scores = []
    for line in (ROOT / "cli" / "demo_queries.jsonl").read_bytes().splitlines():
        row = msgspec.json.decode(line)
        body = msgspec.json.encode({"model": "auto", "messages": row["messages"]})
        scores.append(score(features.extract(parse_chat(body, {}).messages)))
    table = {
        "about": "Quantiles 0 %, 1 %, ..., 100 % of the default policy's score over the demo's "
        f"{len(scores)} queries. Built by scripts/build_quantiles.py.",
        "features": features.SCHEMA,
        "quantiles": [round(q, 4) for q in quantile_table(scores)],
    }
    (ROOT / "policies" / "quantiles.json").write_text(json.dumps(table, indent=1) + "\n")
    print(f"{len(scores)} scores from {min(scores):.2f} to {max(scores):.2f}")


if __name__ == "__main__":
    main()
