"""Builds src/suffice/features/standard.json: the scale of signals and embedding over training prompts.

    python scripts/build_standard.py --data TABLES

The file has the mean and standard deviation of each signal, and the variance of each dimension of the
embedding. Everything that learns standardises signals and scales its prior by them, never by a handful
of labelled rows. The test-only table is not used.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from suffice import features
from suffice.lab.data.load import load_table
from suffice.lab.predictors.base import extract_table

OUT = Path(__file__).parents[1] / "src" / "suffice" / "features" / "standard.json"


def main() -> None:
    """Rewrite the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    names = sorted(p.parent.name for p in arguments.data.glob("*/queries.parquet"))
    tables = [load_table(arguments.data / n) for n in names if n != "routellm"]
    batches = [extract_table(t) for t in tables]
    signals = np.concatenate([b.signals for b in batches]).astype(float)
    vectors = np.concatenate([b.vectors for b in batches]).astype(float)
    scale = {
        "about": "Mean and standard deviation of each signal and variance of each dimension over "
        f"{len(signals)} training prompts. Built by scripts/build_standard.py.",
        "features": features.SCHEMA,
        "names": list(features.SIGNAL_NAMES),
        "mean": [round(x, 5) for x in signals.mean(axis=0).tolist()],
        "deviation": [round(max(x, 0.05), 5) for x in signals.std(axis=0).tolist()],
        "vector_variance": [float(f"{x:.3g}") for x in vectors.var(axis=0).tolist()],
    }
    OUT.write_text(json.dumps(scale, indent=1) + "\n")
    print(f"{len(signals)} prompts, {len(names) - 1} tables")


if __name__ == "__main__":
    main()
