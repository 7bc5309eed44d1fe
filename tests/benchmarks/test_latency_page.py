"""The page of the latency benchmark is generated from the committed results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LATENCY = ROOT / "benchmarks" / "latency"


def test_the_latency_page_is_current() -> None:
    code = "import json, page; print(page.render(json.load(open('results.json'))), end='')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=LATENCY, capture_output=True, text=True, check=True
    )
    page = (ROOT / "docs" / "benchmarks" / "latency.md").read_text("utf-8")
    assert done.stdout == page


def test_the_results_state_machine_and_versions() -> None:
    results = json.loads((LATENCY / "results.json").read_text("utf-8"))
    assert results["machine"]["cpu"]
    for peer in results["peers"].values():
        assert peer["label"]
        assert "small-16" in peer or peer["failure"]
