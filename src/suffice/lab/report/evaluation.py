"""An evaluation as files: results.json, charts, and one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import msgspec

from suffice.lab.evaluate.result import BASELINES, EvaluationResult, Interval
from suffice.lab.report.charts import draw_evaluation
from suffice.lab.report.formats import short_name
from suffice.lab.report.html import render_page, require_folder, write_atomically

_CAPTIONS = {
    "curves.png": "Cost and quality. Lines are hulls (what mixing a policy's own trade-offs "
    "reaches), faint dots its trade-offs; dashed: random mixing of single models.",
    "closeup.png": "The same without the oracle, zoomed in to where the policies differ.",
    "gains.png": "Gain over the zero router. A policy whose interval includes zero, or whose gain "
    "is not larger than that of random mixing, has not shown that it routes.",
}
_METHOD = [
    "area: mean height of the upper hull of a policy's trade-offs between the cost of the cheapest "
    "and of the most expensive single model; gain: area minus that of the zero router, the hull of "
    "the single models",
    "QNC: lowest cost at which the quality of the best single model is reached, relative to that "
    "model's cost",
    "APGR, CPT50, CPT80: share of the quality gap between the weak and the strong model recovered, "
    "averaged over shares of strong calls; share of strong calls at which half, or 80 %, is",
    "AIQ as RouterBench's paper and as its code define it; RouterArena's S at the best trade-off",
    "queries that share a prompt or a group are resampled together",
]


def write_report(result: EvaluationResult, out: Path) -> list[Path]:
    """Write results.json, the charts and report.html into `out`, all of them or none.

    Args:
        result: The result of `lab.evaluate`.
        out: The folder.

    Returns:
        The paths.

    Raises:
        UsageError: If the folder cannot be written, or matplotlib or Jinja2 is missing.
    """
    require_folder(out)
    charts = draw_evaluation(result)
    contents = {
        "results.json": msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n",
        **charts,
        "report.html": render_html(result, charts).encode(),
    }
    return write_atomically(contents, out)


def render_html(result: EvaluationResult, charts: Mapping[str, bytes]) -> str:
    """Return the page, with style and charts inside."""
    is_usd = result["cost_unit"] == "usd"
    breakdowns = {f"By {column}": parts for column, parts in result.get("by", {}).items()}
    if "leave_one_source_out" in result:
        breakdowns["Leave one source out"] = result["leave_one_source_out"]

    def format_cost(value: float | None) -> str:
        if value is None:
            return "–"
        return f"${value:.3g}" if is_usd else f"{value:.3f}"

    return render_page(
        "evaluation.html",
        {"cost": format_cost, "top_shares": _top_shares},
        r=result,
        charts=charts,
        captions=_CAPTIONS,
        unit="USD per query" if is_usd else "share of strong calls",
        version=version("suffice"),
        conclusion=conclude(result),
        baselines=BASELINES,
        breakdowns=breakdowns,
        policies=[
            name for name in result["policies"] if name not in ("cheapest", "best", "zero_router")
        ],
        method=_METHOD,
    )


def _top_shares(shares: Mapping[str, float]) -> str:
    """Return the three models with the most calls, and their shares."""
    top = sorted(shares.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{short_name(m, 100)} {share:.0%}" for m, share in top if share >= 0.005)


def conclude(result: EvaluationResult) -> str:
    """Return one or two sentences: which policy beats random mixing of single models, if any does."""
    policies = result["policies"]
    random = policies["random"]["gain_over_zero_router"]
    better: dict[str, tuple[float, Interval]] = {}
    for name, p in policies.items():
        gain, interval = p["gain_over_zero_router"], p["gain_ci"]
        is_baseline = name in BASELINES and name != "length"
        if not is_baseline and interval and interval[0] > 0 and gain > max(0.0, random):
            better[name] = gain, interval
    if not better:
        return (
            "No policy is shown to beat random mixing of single models here: the interval of each "
            "includes zero, or random mixing gains as much. A constant model, or a mix of two, does "
            "as well."
        )
    name = max(better, key=lambda n: better[n][0])
    gain, (low, high) = better[name]
    text = (
        f"{name} is best: mean quality {gain:+.4f} [{low:+.4f}, {high:+.4f}] over the zero router at "
        f"equal cost (random mixing: {random:+.4f})."
    )
    relative_cost = policies[name]["qnc"]
    if relative_cost is not None and relative_cost < 0.995:
        text += (
            f" It reaches the quality of {result['reference']} at {relative_cost:.0%} of its cost."
        )
    return text
