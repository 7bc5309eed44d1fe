"""Draws docs/img/demo.svg: a real run of the demo, recorded by rich as it prints.

Usage: python scripts/picture.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from suffice.cli import demo
from suffice.cli.demo_view import View

KEPT = 34  # queries shown: the picture is for a first look, the demo shows all


def main() -> None:
    console = Console(record=True, width=110, force_terminal=True)
    workload = demo.load(None)[:KEPT]
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        view = View(len(workload), console)
        with view:
            summary = demo.run(workload, Path(folder), view)
        summary["records"], summary["config"] = "demo.db", "suffice.toml"
        view.summary(summary)
    target = Path(__file__).parents[1] / "docs" / "img" / "demo.svg"
    target.write_text(console.export_svg(title="suffice demo"), encoding="utf-8")


if __name__ == "__main__":
    main()
