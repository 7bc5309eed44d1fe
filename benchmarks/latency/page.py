"""Generates docs/benchmarks/latency.md from results.json.

Usage: python benchmarks/latency/page.py   (run.py calls it after a measurement)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "benchmarks" / "latency.md"


def number(value: float) -> str:
    """Three digits are enough for figures that vary by percents."""
    if value == int(value) and value < 1000:
        return str(int(value))
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def figure(peer: dict[str, Any], *keys: str, spread: bool = True) -> str:
    """`median (least-greatest)` of one figure, or a dash if it was not measured."""
    value: Any = peer
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if value is None:
        return "-"
    if not isinstance(value, list):
        return number(value) if isinstance(value, int | float) else str(value)
    median, least, greatest = map(number, value)
    return median if not spread or least == greatest else f"{median} ({least}-{greatest})"


def targets(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What the gateway is measured against (docs/architecture.md), and whether it is met."""
    own = results["peers"].get("suffice", {})
    streams = own.get("stream-200", {})
    damaged = None
    if streams:
        damaged = sum(streams[k][2] for k in ("lost", "merged", "reordered", "failed"))
    rows = [
        ("CPU per request, small body, 16 connections, us", own.get("small-16"), 200),
        ("CPU per chunk, 200 streams, us", streams or None, 40),
        ("chunks lost, merged or reordered, or streams failed, at 200 streams", damaged, 0),
        ("start to first answer, s", own.get("start_s"), 0.6),
        ("`from suffice import Router`, s", results.get("import_s"), 0.3),
        ("resident memory, idle, MB", own.get("rss_idle_mb"), 90),
        ("resident memory after all loads, MB", own.get("rss_loaded_mb"), 110),
        ("installed size without extras, MB", own.get("installed_mb"), 120),
        ("installed distributions", own.get("distributions"), 35),
    ]
    result = []
    for name, value, limit in rows:
        if isinstance(value, dict):
            value = value.get("cpu_us_per_request") or value.get("cpu_us_per_chunk")
        median = value[0] if isinstance(value, list) else value
        if median is not None:
            result.append(
                {"name": name, "value": number(median), "limit": limit, "met": median <= limit}
            )
    return result


def render(results: dict[str, Any]) -> str:
    """The page as Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown
    )
    template = environment.get_template("latency.md.j2")
    return template.render(results, figure=figure, targets=targets(results))


def write(results: dict[str, Any]) -> None:
    """Write the page into docs/."""
    PAGE.write_text(render(results), "utf-8")


if __name__ == "__main__":
    write(json.loads((HERE / "results.json").read_text("utf-8")))
