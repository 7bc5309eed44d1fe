"""Draws docs/img/demo.svg: a real run of the demo, recorded by rich as it prints.

Usage: python scripts/picture.py
"""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path

from rich.console import Console

from suffice.cli import demo
from suffice.cli.demo_view import View
from suffice.cli.demo_workload import load

WIDTH = 120
KEPT = 34  # queries shown: the picture is for a first look, the demo shows all


def main() -> None:
    # No terminal: on one, each redrawing of the progress bar would be recorded as a line.
    console = Console(record=True, width=WIDTH, file=io.StringIO(), color_system="truecolor")
    workload = load(None)[:KEPT]
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        view = View(len(workload), console)
        with view:
            summary = demo.run(workload, Path(folder), view)
        summary["records"], summary["config"] = "demo.db", "suffice.toml"
        view.summary(summary)
    target = Path(__file__).parents[1] / "docs" / "img" / "demo.svg"
    # Rich's template asks a CDN for its font: who looks at the picture should call nobody.
    svg = re.sub(r"@font-face\s*\{.*?\}", "", console.export_svg(title="suffice demo"), flags=re.S)
    svg = svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
