"""`suffice report`: what was spent, what that saved, and what quality was kept."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from suffice.lab.savings import RouteReport, SavingsReport


def command(
    config: Path = typer.Option(None, "--config", help="Path of suffice.toml."),
    since: str = typer.Option(
        None,
        "--since",
        help="Use requests from this time on: 7d, 12h, 2026-11-01, 2026-11-01T08:00Z.",
    ),
    route: str = typer.Option(None, "--route", help="Use only requests of this route."),
    out: Path = typer.Option(
        None, "--out", help="Write report.html, savings.json and charts into this folder."
    ),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Report savings, quality, models used, latency and failures of the recorded traffic.

    The cost of each single model on the same requests is estimated from the costs that were
    predicted when they were routed, scaled by paid / predicted cost of what answered. Quality
    against the reference model comes from feedback; it is not stated if there are too few labels.
    """
    from suffice.cli.options import parse_since, require_known_route
    from suffice.cli.output import print_json
    from suffice.config import load_settings
    from suffice.errors import JobError
    from suffice.lab import savings

    now_s = time.time()
    since_s = None if since is None else parse_since(since, now_s)
    settings = load_settings(config, os.environ)
    try:
        report = savings.build_report(
            settings.store.url,
            now_s=now_s,
            since_s=since_s,
            route=route,
            references=savings.reference_models(settings, os.environ),
        )
    except JobError:
        # Checked only now: a route that is no longer configured may have recorded requests.
        if route is not None:
            require_known_route(route, settings.routes, ", and no request of it")
        raise
    paths: list[Path] = []
    if out is not None:
        from suffice.lab.report.savings import write_report

        paths = write_report(report, out)
    if json:
        print_json(report)
    else:
        show(report, paths)


def show(r: SavingsReport, paths: Sequence[Path]) -> None:
    """Print the report for a person.

    Args:
        r: The report.
        paths: Files that were written.
    """
    from rich.console import Console

    console = Console()
    for i, sentence in enumerate(r.headline):
        console.print(sentence, style="bold" if i == 0 else "", highlight=False, markup=False)
    for warning in r.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
    for name, route in r.routes.items():
        console.print()
        console.print(_costs(name, route))
        console.print(_quality(route))
    if r.bypass_models:
        console.print()
        console.print(_named_models(r))
    console.print()
    console.print(_latency(r))
    _show_failures(console, r)
    _show_learning(console, r)
    for decision_id, reason in r.skipped_rows:
        text = f"skipped {decision_id}: {reason}"
        console.print(text, style="yellow", highlight=False, markup=False)
    if r.skipped > len(r.skipped_rows):
        console.print(f"and {r.skipped - len(r.skipped_rows)} more skipped", style="yellow")
    if paths:
        console.print(f"[dim]{', '.join(str(p) for p in paths)}[/dim]", highlight=False)


def _table(title: str, *columns: str) -> Table:
    """Return a table whose first column is text and whose other columns are numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    return table


def _costs(name: str, route: RouteReport) -> Table:
    from rich.text import Text

    from suffice.lab.report.formats import format_percent, format_usd
    from suffice.lab.savings.headline import format_saved

    table = _table(
        f"Route {name}: one model alone on the same requests (reference: {route.reference})",
        "model", "would have cost", "95 %", "saved by routing", "95 %",
    )  # fmt: skip
    for s in route.singles.values():
        saved_ci = s.saved_ci if s.saved is not None and s.saved >= 0 else None
        table.add_row(
            Text(s.model),
            format_usd(s.usd) + ("" if s.covers_all else f" on {format_percent(s.coverage)}"),
            _interval(None if s.usd_ci is None else [format_usd(v) for v in s.usd_ci]),
            format_saved(s),
            _interval(None if saved_ci is None else [format_percent(v) for v in saved_ci]),
        )
    return table


def _interval(bounds: Sequence[str] | None) -> str:
    return "" if bounds is None else " to ".join(bounds)


def _quality(route: RouteReport) -> Table:
    from rich.text import Text

    table = _table(
        "Scores of what each model answered (different requests, so not a comparison)",
        "model", "answered", "labels", "mean score", "95 % interval",
    )  # fmt: skip
    for model, m in route.quality.models.items():
        mean = f"too few labels (about {m.needed} needed)" if m.mean is None else f"{m.mean:.3f}"
        interval = _interval(None if m.mean_ci is None else [f"{v:.3f}" for v in m.mean_ci])
        table.add_row(Text(model), f"{m.requests:,}", f"{m.labelled:,}", mean, interval)
    return table


def _named_models(r: SavingsReport) -> Table:
    from rich.text import Text

    from suffice.lab.report.formats import format_usd

    table = _table("Requests that named a model (part of no route)", "model", "requests", "spent")
    for model, m in r.bypass_models.items():
        unknown = f" and {m.cost_unknown:,} of unknown cost" if m.cost_unknown else ""
        table.add_row(Text(model), f"{m.requests:,}", format_usd(m.spent_usd) + unknown)
    return table


def _latency(r: SavingsReport) -> Table:
    from rich.text import Text

    table = _table(
        "Seconds to the whole answer", "model", "answers", "median", "90 %", "95 %", "99 %",
        "first chunk, median",
    )  # fmt: skip
    for model, p in r.latency_s.items():
        first = r.first_chunk_s.get(model)
        table.add_row(
            Text(model),
            f"{p.n:,}",
            *(f"{v:.2f}" for v in (p.p50, p.p90, p.p95, p.p99)),
            "no streams" if first is None else f"{first.p50:.2f}",
        )
    return table


def _show_failures(console: Console, r: SavingsReport) -> None:
    overhead = r.overhead_ms
    console.print(
        f"\nRouter overhead: median {overhead.p50:.2f} ms, 95 % below {overhead.p95:.2f} ms, 99 % "
        f"below {overhead.p99:.2f} ms.",
        highlight=False,
    )
    console.print(
        f"{r.failed:,} of {r.requests:,} requests failed, {r.failovers:,} were answered after a "
        f"failover, {r.client_disconnects:,} clients disconnected.",
        highlight=False,
    )
    for model, c in r.calls.items():
        if c.failed:
            reasons = ", ".join(f"{o} {n:,}" for o, n in c.outcomes.items() if o != "ok")
            text = f"  {model}: {c.failed:,} of {c.calls:,} calls failed ({reasons})"
            console.print(text, highlight=False, markup=False)


def _show_learning(console: Console, r: SavingsReport) -> None:
    from suffice.lab.report.formats import format_time

    sources = ", ".join(
        f"{source} {f.decisions:,} ({'' if f.kind == 'explicit' else 'implicit, '}mean {f.mean:.2f})"
        for source, f in r.feedback.items()
    )
    console.print(f"Feedback: {sources or 'none'}.", highlight=False, markup=False)
    for e in r.events:
        forced = ", forced" if e.forced else ""
        console.print(
            f"{format_time(e.at_s)} {e.route}: {e.kind} {e.version or 'the configured policy'} "
            f"(before: {e.previous or 'the configured policy'}; by {e.by}{forced})",
            highlight=False,
            markup=False,
        )
