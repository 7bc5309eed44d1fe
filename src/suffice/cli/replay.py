"""`suffice replay`: what another policy would have scored and cost on the recorded traffic."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from suffice.lab.ope.replay import Replay


def command(
    policy: str = typer.Option(..., "--policy", help="A policy's name, or an artifact's path."),
    config: Path = typer.Option(None, "--config", help="A suffice.toml."),
    since: str = typer.Option(
        None, "--since", help="From then on: 7d, 12h, 2026-11-01, 2026-11-01T08:00Z."
    ),
    route: str = typer.Option(None, "--route", help="Only decisions of this route."),
    objective: str = typer.Option(
        None, "--objective", help="For example keep_quality=0.9; the route's own where left out."
    ),
    source: list[str] = typer.Option(
        None, "--source", help="Count only feedback of this source; may be given again."
    ),
    json: bool = typer.Option(False, "--json", help="One JSON object."),
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
    found = replay.run(
        settings.store.url,
        replay.load_evaluation_policy(settings, policy, os.environ, _objective(objective)),
        policy,
        since_s=since_s,
        route=route,
        sources=frozenset(source) if source else None,
        progress=not json,
    )
    if json:
        print_json(found)
    else:
        show(found)


def _objective(text: str | None) -> Any:
    from suffice.errors import UsageError
    from suffice.policies import parse_objective

    if text is None:
        return None
    try:
        return parse_objective(text)
    except ValueError as error:
        raise UsageError(f"--objective: {error}.") from None


def show(r: Replay) -> None:
    """The report as a person reads it."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    word = r.verdict.word
    colour = {"better": "green", "worse": "red"}.get(word, "yellow")
    console.print(f"[bold]{r.policy}[/bold] ({r.policy_version}) on {_what(r)}", highlight=False)
    console.print(f"[bold {colour}]{r.verdict.why}[/bold {colour}]", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("estimate", "score", "95 % interval", "difference", "95 % interval"):
        table.add_column(name, justify="left" if name == "estimate" else "right")
    table.add_row("happened", _score(r.happened["score"]), "", "", "")
    names = {"ips": "IPS", "snips": "self-normalised", "doubly_robust": "doubly robust"}
    for key, e in r.estimates.items():
        table.add_row(
            names.get(key, "direct, a model's word"),
            _score(e["value"]),
            _range(e.get("low"), e.get("high")),
            _score(e["difference"], sign=True),
            _range(e.get("difference_low"), e.get("difference_high"), sign=True),
        )
    console.print(table)
    _show_cost(console, r)
    shares = ", ".join(
        f"{m} {s['policy']:.0%} (was {s['happened']:.0%})" for m, s in r.shares.items()
    )
    console.print(f"would choose: {shares}", highlight=False)
    console.print(
        f"[dim]worth {r.ess:.0f} of the policy's own decisions; the log could have made "
        f"{r.support:.1%} of its choices; largest weight {r.largest_weight:.1f}; "
        f"{r.explored:.1%} of decisions were drawn.[/dim]",
        highlight=False,
    )
    for why, n in r.left_out.items():
        console.print(f"[dim]{n} left out: {why}[/dim]", highlight=False)
    if r.skipped:
        rows = "1 row that" if r.skipped == 1 else f"{r.skipped} rows that"
        console.print(f"[yellow]skipped {rows} cannot be read:[/yellow]", highlight=False)
        for decision_id, why in r.skipped_rows:
            console.print(f"  {decision_id}: {why}", highlight=False, markup=False)
        if r.skipped > len(r.skipped_rows):
            console.print(f"  and {r.skipped - len(r.skipped_rows)} more", highlight=False)
    for warning in r.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)


def _what(r: Replay) -> str:
    route = f"route {r.route}" if r.route else "all routes"
    sources = ", ".join(f"{s} {n}" for s, n in r.sources.items()) or "none"
    return (
        f"{r.decisions} decisions of {route}, {r.sessions} sessions; {r.labelled} "
        f"({r.labelled_share:.0%}) labelled (feedback: {sources})"
    )


def _show_cost(console: Any, r: Replay) -> None:
    from suffice.cli.output import usd

    c = r.cost
    if c["value"] is None or not c["paid"]:
        console.print("cost: unknown, since no decision has a known cost and a prediction of it")
        return
    span = (
        ""
        if c["difference_low"] is None
        else f" [{c['difference_low'] / c['paid']:+.0%}, {c['difference_high'] / c['paid']:+.0%}]"
    )
    console.print(
        f"cost a decision: {usd(c['value'])} against {usd(c['paid'])} paid "
        f"({c['difference'] / c['paid']:+.0%}{span}), by predicted tokens on "
        f"{c['decisions']} decisions of known cost",
        highlight=False,
        markup=False,
    )


def _score(value: float | None, sign: bool = False) -> str:
    return "unknown" if value is None else f"{value:+.3f}" if sign else f"{value:.3f}"


def _range(low: float | None, high: float | None, sign: bool = False) -> str:
    return "" if low is None or high is None else f"{_score(low, sign)} to {_score(high, sign)}"
