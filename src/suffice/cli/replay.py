"""`suffice replay`: estimate what another policy would have scored and cost on recorded traffic."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from suffice.lab.ope.replay import Replay
    from suffice.types import Objective

_ESTIMATORS = {
    "ips": "IPS",
    "snips": "self-normalised",
    "doubly_robust": "doubly robust",
    "direct": "direct (reward model only)",
}


def command(
    policy: str = typer.Option(..., "--policy", help="Name of a policy, or path of an artifact."),
    config: Path = typer.Option(None, "--config", help="Path of suffice.toml."),
    since: str = typer.Option(
        None,
        "--since",
        help="Use decisions from this time on: 7d, 12h, 2026-11-01, 2026-11-01T08:00Z.",
    ),
    route: str = typer.Option(None, "--route", help="Use only decisions of this route."),
    objective: str = typer.Option(
        None, "--objective", help="Objective, for example keep_quality=0.9. [default: the route's]"
    ),
    source: list[str] = typer.Option(
        None, "--source", help="Count only feedback of this source; may be repeated."
    ),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Estimate what a policy would have scored and cost on recorded decisions and feedback."""
    from suffice.cli.options import parse_since, require_known_route
    from suffice.cli.output import print_json
    from suffice.config import load_settings
    from suffice.lab.ope import replay

    since_s = None if since is None else parse_since(since, time.time())
    settings = load_settings(config, os.environ)
    if route is not None:
        require_known_route(route, settings.routes)
    result = replay.run(
        settings.store.url,
        replay.load_evaluation_policy(settings, policy, os.environ, _parse_objective(objective)),
        policy,
        since_s=since_s,
        route=route,
        sources=frozenset(source) if source else None,
        progress=not json,
    )
    if json:
        print_json(result)
    else:
        show(result)


def _parse_objective(text: str | None) -> Objective | None:
    from suffice.errors import UsageError
    from suffice.policies import parse_objective

    if text is None:
        return None
    try:
        return parse_objective(text)
    except ValueError as error:
        raise UsageError(f"--objective: {error}.") from None


def show(r: Replay) -> None:
    """Print a replay for a person."""
    from rich.console import Console

    console = Console()
    colour = {"better": "green", "worse": "red"}.get(r.verdict.word, "yellow")
    console.print(
        f"[bold]{r.policy}[/bold] ({r.policy_version}) on {_describe_log(r)}", highlight=False
    )
    console.print(f"[bold {colour}]{r.verdict.reason}[/bold {colour}]", highlight=False)
    _show_estimates(console, r)
    _show_cost(console, r)
    shares = ", ".join(
        f"{m} {s['policy']:.0%} (was {s['happened']:.0%})" for m, s in r.shares.items()
    )
    console.print(f"would choose: {shares}", highlight=False)
    console.print(
        f"[dim]effective sample size {r.ess:.0f}; the log could have made {r.support:.1%} of the "
        f"policy's choices; largest weight {r.largest_weight:.1f}; {r.explored:.1%} of decisions "
        "were random choices.[/dim]",
        highlight=False,
    )
    for reason, n in r.left_out.items():
        console.print(f"[dim]{n} left out: {reason}[/dim]", highlight=False)
    if r.skipped:
        rows = "1 row" if r.skipped == 1 else f"{r.skipped} rows"
        console.print(f"[yellow]skipped {rows} that cannot be read:[/yellow]", highlight=False)
        for decision_id, reason in r.skipped_rows:
            console.print(f"  {decision_id}: {reason}", highlight=False, markup=False)
        if r.skipped > len(r.skipped_rows):
            console.print(f"  and {r.skipped - len(r.skipped_rows)} more", highlight=False)
    for warning in r.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)


def _describe_log(r: Replay) -> str:
    route = f"route {r.route}" if r.route else "all routes"
    sources = ", ".join(f"{s} {n}" for s, n in r.sources.items()) or "none"
    return (
        f"{r.decisions} decisions of {route}, {r.sessions} sessions; {r.labelled} "
        f"({r.labelled_share:.0%}) labelled (feedback: {sources})"
    )


def _show_estimates(console: Console, r: Replay) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("estimate", "score", "95 % interval", "difference", "95 % interval"):
        table.add_column(name, justify="left" if name == "estimate" else "right")
    table.add_row("happened", _score(r.happened["score"]), "", "", "")
    for name, e in r.estimates.items():
        table.add_row(
            _ESTIMATORS[name],
            _score(e["value"]),
            _range(e.get("low"), e.get("high")),
            _score(e["difference"], sign=True),
            _range(e.get("difference_low"), e.get("difference_high"), sign=True),
        )
    console.print(table)


def _show_cost(console: Console, r: Replay) -> None:
    from suffice.cli.output import usd

    c = r.cost
    if c.value is None or c.difference is None or not c.paid:
        console.print("cost: unknown; no decision has a known cost and a predicted cost")
        return
    interval = (
        ""
        if c.difference_low is None or c.difference_high is None
        else f" [{c.difference_low / c.paid:+.0%}, {c.difference_high / c.paid:+.0%}]"
    )
    console.print(
        f"cost per decision: {usd(c.value)} against {usd(c.paid)} paid "
        f"({c.difference / c.paid:+.0%}{interval}), by predicted tokens on "
        f"{c.decisions} decisions of known cost",
        highlight=False,
        markup=False,
    )


def _score(value: float | None, sign: bool = False) -> str:
    if value is None:
        return "unknown"
    return f"{value:+.3f}" if sign else f"{value:.3f}"


def _range(low: float | None, high: float | None, sign: bool = False) -> str:
    return "" if low is None or high is None else f"{_score(low, sign)} to {_score(high, sign)}"
