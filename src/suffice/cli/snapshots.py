"""`suffice snapshots`: list the policies in the store and the history of promotions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import typer

if TYPE_CHECKING:
    from suffice.store.records import Promotion


class _RouteSnapshots(TypedDict):
    """The JSON object of one route."""

    current: str | None
    configured: str | None
    snapshots: Sequence[Mapping[str, Any]]  # rows of the table `snapshots`
    history: Sequence[Promotion]


def command(
    route: str = typer.Option(None, "--route", help="List only this route."),
    config: Path = typer.Option(None, "--config", help="Path of suffice.toml."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """List policy snapshots with their training cards, the current one, and past promotions."""
    import msgspec

    from suffice.cli.options import require_known_route
    from suffice.cli.output import print_json
    from suffice.config import load_settings
    from suffice.store import reader

    settings = load_settings(config, os.environ)
    with reader.open_registry(settings.store.url) as registry:
        rows = registry.snapshots(route)
        # A route that is no longer configured keeps its snapshots.
        names = dict.fromkeys([*settings.routes, *(s["route"] for s in rows)])
        if route is not None:
            require_known_route(route, names)
        histories = {
            name: registry.promotions(name) for name in ([route] if route is not None else names)
        }
    routes: dict[str, _RouteSnapshots] = {
        name: {
            "current": history[0].version if history else None,
            "configured": settings.routes[name].policy if name in settings.routes else None,
            "snapshots": [s for s in rows if s["route"] == name],
            "history": history,
        }
        for name, history in histories.items()
    }
    if json:
        print_json({"object": "snapshots", "routes": msgspec.to_builtins(routes)})
        return
    for name, entry in routes.items():
        _show(name, entry)


def _show(name: str, route: _RouteSnapshots) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from suffice.lab.report.formats import format_time

    console = Console()
    current = route["current"] or f"the configured policy ({route['configured']})"
    console.print(f"Route {name} uses {current}.", style="bold", highlight=False, markup=False)
    if route["snapshots"]:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("", "version", "made (UTC)", "by", "kB", "trained on"):
            table.add_column(column, no_wrap=column == "version")
        for s in route["snapshots"]:
            table.add_row(
                "→" if s["version"] == route["current"] else "",
                s["version"],
                format_time(s["created_s"]),
                Text(s["created_by"]),
                f"{s['bytes'] / 1000:.0f}",
                Text(_describe_card(s["card"])),
            )
        console.print(table)
    else:
        console.print("No snapshots. Run suffice promote FILE to store one.", style="dim")
    for entry in route["history"]:
        console.print(_describe_promotion(entry), highlight=False, markup=False)
    console.print()


def _describe_card(card: Mapping[str, Any]) -> str:
    """Return the training card in one line."""
    parts = [str(card.get("kind", ""))]
    if card.get("queries") is not None:
        parts.append(f"{card['queries']:,} queries, {card.get('labels', 0):,} labels")
    if card.get("trained_on"):
        parts.append(str(card["trained_on"]))
    models = card.get("models")
    if models:
        parts.append(f"{len(models)} models, reference {card.get('reference', 'unknown')}")
    return "; ".join(p for p in parts if p)


def _describe_promotion(p: Promotion) -> str:
    from suffice.lab.report.formats import format_time

    after, before = (v or "the configured policy" for v in (p.version, p.previous))
    action = "promoted" if p.kind == "promote" else "rolled back to"
    text = f"{format_time(p.promoted_at_s)} {action} {after}, before {before}, by {p.by}"
    if p.forced:
        text += ", forced"
    evidence = p.evidence or {}
    reason = evidence.get("reason") or evidence.get("rule")
    return f"{text}: {reason}" if reason else text
