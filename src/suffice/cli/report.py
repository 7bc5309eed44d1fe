"""`suffice report`: what was spent, what that saved, and what quality was kept."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from suffice.lab.savings import Report, RouteReport


def command(
    config: Path = typer.Option(None, "--config", help="A suffice.toml."),
    since: str = typer.Option(
        None, "--since", help="From then on: 7d, 12h, 2026-11-01, 2026-11-01T08:00Z."
    ),
    route: str = typer.Option(None, "--route", help="Only requests of this route."),
    out: Path = typer.Option(
        None, "--out", help="A folder for report.html, savings.json and the plots."
    ),
    json: bool = typer.Option(False, "--json", help="One JSON object."),
) -> None:
    """Report savings, quality, mix of models, latency and failures of the recorded traffic.

    Each single model is priced on the same requests by the costs predicted when they were routed,
    scaled by what was paid over what was predicted where it was taken. Quality against the
    reference model comes from feedback, and is not stated where labels are too few to say.
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
        found = savings.build_report(
            settings.store.url,
            now_s=now_s,
            since_s=since_s,
            route=route,
            known=savings.reference_models(settings, os.environ),
        )
    except JobError:
        # Checked only now: a route that is no longer configured may have recorded requests.
        if route is not None:
            require_known_route(route, settings.routes, ", and no request of it")
        raise
    written: list[Path] = []
    if out is not None:
        from suffice.lab.report.savings import write

        written = write(found, out)
    if json:
        print_json(found)
    else:
        show(found, written)


def show(r: Report, written: list[Path]) -> None:
    """The report as a person reads it."""
    from rich.console import Console

    console = Console()
    for i, line in enumerate(r.headline):
        console.print(line, style="bold" if i == 0 else "", highlight=False, markup=False)
    for warning in r.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
    for name, one in r.routes.items():
        console.print()
        console.print(_costs(name, one))
        console.print(_quality(one))
    console.print()
    console.print(_speed(r))
    _failures(console, r)
    _learning(console, r)
    for decision_id, why in r.skipped_rows:
        console.print(
            f"skipped {decision_id}: {why}", style="yellow", highlight=False, markup=False
        )
    if r.skipped > len(r.skipped_rows):
        console.print(f"and {r.skipped - len(r.skipped_rows)} more skipped", style="yellow")
    if written:
        console.print(f"[dim]{', '.join(str(p) for p in written)}[/dim]", highlight=False)


def _table(title: str, left: int, *names: str) -> Any:
    """A table whose first `left` columns are words."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(names):
        table.add_column(name, justify="left" if i < left else "right", overflow="fold")
    return table


def _costs(name: str, one: RouteReport) -> Any:
    from rich.text import Text

    from suffice.lab.savings.headline import format_percent, format_saved, format_usd

    table = _table(
        f"Route {name}: one model alone on the same requests (reference: {one.reference})", 1,
        "model", "would have cost", "95 %", "saved", "95 %",
    )  # fmt: skip
    for s in one.singles.values():
        dearer = s.saved is not None and s.saved < 0
        span = "" if s.saved_ci is None or dearer else (
            f"{format_percent(s.saved_ci[0])} to {format_percent(s.saved_ci[1])}"
        )  # fmt: skip
        part = "" if s.coverage > 0.9995 else f" on {format_percent(s.coverage)}"
        table.add_row(
            Text(s.model),
            format_usd(s.usd) + part,
            "" if s.usd_ci is None else f"{format_usd(s.usd_ci[0])} to {format_usd(s.usd_ci[1])}",
            f"{1 - s.saved:.1f} x spent" if dearer and s.saved is not None else format_saved(s),
            span,
        )
    return table


def _quality(one: RouteReport) -> Any:
    from rich.text import Text

    table = _table(
        "Scores of what each model answered (different requests, so no comparison)", 1,
        "model", "answered", "labels", "mean score", "95 % interval",
    )  # fmt: skip
    for model, m in one.quality.models.items():
        mean = f"too few to say (about {m.needed})" if m.mean is None else f"{m.mean:.3f}"
        span = "" if m.mean_ci is None else f"{m.mean_ci[0]:.3f} to {m.mean_ci[1]:.3f}"
        table.add_row(Text(model), f"{m.requests:,}", f"{m.labelled:,}", mean, span)
    return table


def _speed(r: Report) -> Any:
    from rich.text import Text

    table = _table(
        "Seconds to the whole answer", 1, "model", "answers", "median", "90 %", "95 %", "99 %",
        "first chunk, median",
    )  # fmt: skip
    for model, p in r.latency_s.items():
        first = r.first_chunk_s.get(model)
        table.add_row(
            Text(model), f"{p.n:,}", f"{p.p50:.2f}", f"{p.p90:.2f}", f"{p.p95:.2f}", f"{p.p99:.2f}",
            "no streams" if first is None else f"{first.p50:.2f}",
        )  # fmt: skip
    return table


def _failures(console: Any, r: Report) -> None:
    o = r.overhead_ms
    console.print(
        f"\nRouter overhead: median {o.p50:.2f} ms, 95 % under {o.p95:.2f} ms, 99 % under "
        f"{o.p99:.2f} ms.",
        highlight=False,
    )
    console.print(
        f"{r.failed:,} of {r.requests:,} requests failed, {r.failovers:,} were answered after "
        f"failing over, {r.client_left:,} clients left.",
        highlight=False,
    )
    for model, c in r.calls.items():
        if c.failed:
            bad = ", ".join(f"{o} {n:,}" for o, n in c.outcomes.items() if o != "ok")
            console.print(
                f"  {model}: {c.failed:,} of {c.calls:,} calls failed ({bad})",
                highlight=False, markup=False,
            )  # fmt: skip


def _learning(console: Any, r: Report) -> None:
    from suffice.lab.savings.headline import format_time

    told = ", ".join(
        f"{s} {f.decisions:,} ({'mean ' if f.kind == 'explicit' else 'implicit, mean '}{f.mean:.2f})"
        for s, f in r.feedback.items()
    )
    console.print(f"Feedback: {told or 'none'}.", highlight=False, markup=False)
    for e in r.events:
        forced = ", forced" if e.forced else ""
        console.print(
            f"{format_time(e.at_s)} {e.route}: {e.kind} {e.version or 'the configured policy'} "
            f"(before: {e.previous or 'the configured policy'}; by {e.by}{forced})",
            highlight=False, markup=False,
        )  # fmt: skip
