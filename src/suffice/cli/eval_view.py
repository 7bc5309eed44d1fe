"""An evaluation as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def show(result: Mapping[str, Any], files: Sequence[Path], console: Console | None = None) -> None:
    from suffice.lab.evaluate.evaluate import BASELINES
    from suffice.lab.report.evaluation import conclude

    console = console or Console()
    say = console.print
    pair = result["strong"] is not None
    unit = "USD per query" if result["cost_unit"] == "usd" else "share of strong calls"
    say(
        f"[bold]{escape(result['table'])}[/bold]: {result['n_queries']:,} queries, "
        f"{len(result['models'])} models, cost in {unit}"
    )
    for warning in result["warnings"]:
        say(f"[yellow]warning: {escape(warning)}[/yellow]")
    say(_models(result))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("policy", overflow="fold", min_width=11)
    heads = ["APGR", "CPT50", "CPT80", "gain over zero router", "QNC"]
    if not pair:
        heads = ["area", "gain over zero router", "QNC", "cost at 95 %"]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name, p in result["policies"].items():
        gain = _with(p["gain_over_zero_router"], p["gain_ci"], sign=True)
        qnc = _plain(p["qnc"], 2)
        if pair:
            cells = [_with(p["apgr"], p["apgr_ci"]), _plain(p["cpt50"]), _plain(p["cpt80"]), gain]
            cells.append(qnc)
        else:
            at = next(e for e in p["at_equal_quality"] if e["of_best"] == 0.95)
            cells = [_with(p["area"], p["area_ci"]), gain, qnc, _cost(at["cost"], result)]
        table.add_row(escape(name), *cells, style="dim" if name in BASELINES else None)
    say(table)
    how = {n: p["fitted"] for n, p in result["policies"].items() if n not in BASELINES}
    say("[dim]" + escape("; ".join(f"{n}: {h}" for n, h in how.items())) + "[/dim]", soft_wrap=True)
    for title, parts in _parts(result).items():
        say(_breakdown(title, parts, result))
    say(f"[bold green]{escape(conclude(result))}[/bold green]")
    say(f"[dim]In brackets: {escape(result['intervals'])}. Notes:[/dim]")
    for note in result["notes"]:
        say(f"[dim]- {escape(note)}[/dim]")
    if files:
        say("Written: " + ", ".join(escape(str(f)) for f in files), soft_wrap=True)


def _models(result: Mapping[str, Any], most: int = 12) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", overflow="fold")
    table.add_column("quality", justify="right")
    table.add_column("cost", justify="right")
    rows = sorted(result["models"].items(), key=lambda i: -i[1]["quality"])
    for name, m in rows[:most]:
        table.add_row(escape(name), f"{m['quality']:.4f}", _cost(m["cost"], result))
    if len(rows) > most:
        table.add_row(f"[dim]and {len(rows) - most} more[/dim]", "", "")
    return table


def _parts(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    found = {f"by {c}": parts for c, parts in result.get("by", {}).items()}
    if "leave_one_source_out" in result:
        found["leave one source out"] = result["leave_one_source_out"]
    return found


def _breakdown(title: str, parts: Mapping[str, Any], result: Mapping[str, Any]) -> Table:
    pair = result["strong"] is not None
    figure, interval = ("apgr", "apgr_ci") if pair else ("gain_over_zero_router", "gain_ci")
    names = [
        n for n in result["policies"] if n not in ("cheapest", "best", "zero_router", "oracle")
    ]
    what = "APGR" if pair else "gain over zero router"
    table = Table(box=None, pad_edge=False, header_style="bold", title=f"{title}: {what}",
                  title_justify="left")  # fmt: skip
    table.add_column("part", overflow="fold")
    table.add_column("queries", justify="right")
    for n in names:
        table.add_column(escape(n), justify="right")
    small = 0
    for part, found in parts.items():
        p = found["policies"]
        if p is None:
            small += 1
            continue
        cells = [_half(p[n][figure], p[n][interval], sign=not pair) for n in names]
        table.add_row(escape(part), f"{found['n_queries']:,}", *cells)
    table.caption = "±: half of the 95 % interval's width" + (
        f"; {small} parts of fewer than 20 queries are left out" if small else ""
    )
    table.caption_justify = "left"
    return table


def _half(value: float | None, ci: Sequence[float] | None, sign: bool) -> str:
    """Short enough for a column each: --json and the report have whole intervals."""
    if value is None:
        return "–"
    text = _number(value, 3, sign)
    return text if ci is None else f"{text} ±{_number((ci[1] - ci[0]) / 2, 3)}"


def _number(value: float, digits: int, sign: bool = False) -> str:
    """Without the zero in front, as such figures are printed: .812, +.0045."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("+-").startswith("0.") else text


def _plain(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else _number(value, digits)


def _with(
    value: float | None, ci: Sequence[float] | None, sign: bool = False, digits: int | None = None
) -> str:
    if value is None:
        return "–"
    places = digits or (4 if sign else 3)
    text = _number(value, places, sign)
    if ci is None:
        return text
    low, high = (_number(x, places, sign) for x in ci)
    return f"{text} \\[{low}, {high}]"


def _cost(value: float | None, result: Mapping[str, Any]) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if result["cost_unit"] == "strong_share" else f"${value:.3g}"
