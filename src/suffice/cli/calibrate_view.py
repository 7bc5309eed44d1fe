"""Shows a calibration, as JSON values and in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from suffice.lab.calibrate.calibrate import Calibration


def figures(calibration: Calibration) -> dict[str, object]:
    """The JSON keys of a calibration that certifies."""
    costs = calibration.costs
    return {
        "labels": calibration.result.n,
        "cheap_share": calibration.result.cheap_share,
        "net_quality_change": calibration.net_quality_change,
        "usd_per_query": None if costs is None else {"reference": costs[0], "certified": costs[1]},
        "notes": list(calibration.notes),
    }


def failure(calibration: Calibration, state: str) -> dict[str, object]:
    """The JSON keys of a calibration that certifies nothing; `state` says what became of the file."""
    result = calibration.result
    return {
        "certified": False,
        "reason": result.reason,
        "labels": result.n,
        "labels_needed": result.labels_needed,
        "first_step": {
            "cheap_share": result.cheap_share,
            "loss": result.losses / result.n if result.n else None,
            "upper_bound": result.upper_bound,
        },
        "file": state,
        "notes": list(calibration.notes),
    }


def show(calibration: Calibration, path: Path | None = None) -> None:
    """Print a calibration; `path` is where its certificate was written."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, pad_edge=False, show_header=False)
    for row in _rows(calibration):
        table.add_row(*row)
    console.print(table)
    for note in calibration.notes:
        console.print(f"[yellow]note[/yellow]: {note}", highlight=False)
    c = calibration.certificate
    if c is None:
        return
    cheap = c.cheap[0] if len(c.cheap) == 1 else f"one of {len(c.cheap)} cheaper models"
    console.print(
        f"[bold green]certified[/bold green]: {c.cheap_share:.0%} of queries may go to {cheap}; "
        f"with {c.confidence:.0%} confidence the quality lost against {c.reference} is at most "
        f"{c.max_loss:g} on average over all queries, while traffic is like {c.table}.",
        highlight=False,
    )
    console.print(f"[dim]{path}[/dim]", highlight=False, soft_wrap=True)


def _rows(calibration: Calibration) -> list[tuple[str, str]]:
    from suffice.cli.output import usd

    result, certificate = calibration.result, calibration.certificate
    unit = "queries" if certificate is None else certificate.unit
    share = f"{result.cheap_share:.1%}"
    rows = [
        ("reference", calibration.reference),
        ("cheap", ", ".join(calibration.cheap)),
        ("labels", f"{result.n} {unit}, {result.kind}, {result.method}"),
        ("loss seen", f"{result.losses:g} of {result.n}" if result.n else "none"),
        ("loss at most", f"{result.upper_bound:.4f}"),
        ("goes cheap", share if certificate is not None else f"{share} at the easiest step"),
    ]
    if certificate is not None:
        rows.append(("score at most", f"{certificate.threshold:.6g}"))
        if calibration.net_quality_change is not None:
            rows.append(("net change of quality", f"{calibration.net_quality_change:+.4f}"))
        if calibration.costs is not None:
            before, after = calibration.costs
            saved = f"{1 - after / before:.0%} less"
            rows.append(("USD per query", f"{usd(before)} → {usd(after)} ({saved})"))
    return rows
