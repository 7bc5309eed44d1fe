"""Prints an evaluation to a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from suffice.lab.evaluate.result import EvaluationResult, PartResult

MAX_MODELS = 12


def show(result: EvaluationResult, files: Sequence[Path], console: Console | None = None) -> None:
    """Print the models, the policies with intervals, the parts and the notes.

    Args:
        result: The evaluation.
        files: Files that were written.
        console: To print to; None: standard output.
    """
    from suffice.lab.evaluate.result import BASELINES
    from suffice.lab.report.evaluation import conclude

    console = console or Console()
    unit = "USD per query" if result["cost_unit"] == "usd" else "share of strong calls"
    console.print(
        f"[bold]{escape(result['table'])}[/bold]: {result['n_queries']:,} queries, "
        f"{len(result['models'])} models, cost in {unit}"
    )
    for warning in result["warnings"]:
        console.print(f"[yellow]warning: {escape(warning)}[/yellow]")
    console.print(_models(result))
    console.print(_policies(result))
    fitted = {n: p["fitted"] for n, p in result["policies"].items() if n not in BASELINES}
    text = escape("; ".join(f"{n}: {how}" for n, how in fitted.items()))
    console.print(f"[dim]{text}[/dim]", soft_wrap=True)
    for title, parts in _parts(result).items():
        console.print(_breakdown(title, parts, result))
    console.print(f"[bold green]{escape(conclude(result))}[/bold green]")
    console.print(f"[dim]In brackets: {escape(result['intervals'])}. Notes:[/dim]")
    for note in result["notes"]:
        console.print(f"[dim]- {escape(note)}[/dim]")
    if files:
        console.print("Written: " + ", ".join(escape(str(f)) for f in files), soft_wrap=True)


def _models(result: EvaluationResult) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", overflow="fold")
    table.add_column("quality", justify="right")
    table.add_column("cost", justify="right")
    rows = sorted(result["models"].items(), key=lambda i: -i[1]["quality"])
    for name, m in rows[:MAX_MODELS]:
        table.add_row(escape(name), f"{m['quality']:.4f}", _cost(m["cost"], result))
    if len(rows) > MAX_MODELS:
        table.add_row(f"[dim]and {len(rows) - MAX_MODELS} more[/dim]", "", "")
    return table


def _policies(result: EvaluationResult) -> Table:
    from suffice.lab.evaluate.result import BASELINES

    pair = result["strong"] is not None
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("policy", overflow="fold", min_width=11)
    heads = ["APGR", "CPT50", "CPT80", "gain over zero router", "QNC"]
    if not pair:
        heads = ["area", "gain over zero router", "QNC", "cost at 95 %"]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name, p in result["policies"].items():
        gain = _with_interval(p["gain_over_zero_router"], p["gain_ci"], sign=True)
        qnc = _optional(p["qnc"], 2)
        if pair:
            apgr = _with_interval(p["apgr"], p["apgr_ci"])
            cells = [apgr, _optional(p["cpt50"]), _optional(p["cpt80"]), gain, qnc]
        else:
            cost = next(e["cost"] for e in p["at_equal_quality"] if e["of_best"] == 0.95)
            cells = [_with_interval(p["area"], p["area_ci"]), gain, qnc, _cost(cost, result)]
        table.add_row(escape(name), *cells, style="dim" if name in BASELINES else None)
    return table


def _parts(result: EvaluationResult) -> dict[str, Mapping[str, PartResult]]:
    parts: dict[str, Mapping[str, PartResult]] = {}
    for column, values in result.get("by", {}).items():
        parts[f"by {column}"] = values
    if "leave_one_source_out" in result:
        parts["leave one source out"] = result["leave_one_source_out"]
    return parts


def _breakdown(title: str, parts: Mapping[str, PartResult], result: EvaluationResult) -> Table:
    pair = result["strong"] is not None
    names = [
        n for n in result["policies"] if n not in ("cheapest", "best", "zero_router", "oracle")
    ]
    what = "APGR" if pair else "gain over zero router"
    table = Table(box=None, pad_edge=False, header_style="bold", title=f"{title}: {what}",
                  title_justify="left")  # fmt: skip
    table.add_column("part", overflow="fold")
    table.add_column("queries", justify="right")
    for name in names:
        table.add_column(escape(name), justify="right")
    small = 0
    for part, values in parts.items():
        policies = values["policies"]
        if policies is None:
            small += 1
            continue
        cells = []
        for name in names:
            p = policies[name]
            if pair:
                cells.append(_with_half_width(p["apgr"], p["apgr_ci"], sign=False))
            else:
                gain = p["gain_over_zero_router"]
                cells.append(_with_half_width(gain, p["gain_ci"], sign=True))
        table.add_row(escape(part), f"{values['n_queries']:,}", *cells)
    table.caption = "±: half of the 95 % interval's width" + (
        f"; {small} parts of fewer than 20 queries are left out" if small else ""
    )
    table.caption_justify = "left"
    return table


def _with_half_width(value: float | None, ci: Sequence[float] | None, sign: bool) -> str:
    """Short enough for a column each: --json and the report have whole intervals."""
    if value is None:
        return "–"
    text = _number(value, 3, sign)
    return text if ci is None else f"{text} ±{_number((ci[1] - ci[0]) / 2, 3)}"


def _number(value: float, digits: int, sign: bool = False) -> str:
    """Without the leading zero, as such figures are usually printed: .812, +.0045."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("+-").startswith("0.") else text


def _optional(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else _number(value, digits)


def _with_interval(value: float | None, ci: Sequence[float] | None, sign: bool = False) -> str:
    if value is None:
        return "–"
    digits = 4 if sign else 3
    text = _number(value, digits, sign)
    if ci is None:
        return text
    low, high = (_number(x, digits, sign) for x in ci)
    return f"{text} \\[{low}, {high}]"


def _cost(value: float | None, result: EvaluationResult) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if result["cost_unit"] == "strong_share" else f"${value:.3g}"
