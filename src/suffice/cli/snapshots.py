"""`suffice snapshots`: the policies in the store, which is current, and how that came about."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from suffice.types import Promotion


def command(
    route: str = typer.Option(None, "--route", help="Only of this route."),
    config: Path = typer.Option(None, "--config", help="A suffice.toml."),
    json: bool = typer.Option(False, "--json", help="One JSON object."),
) -> None:
    """List policy snapshots with their cards, which of them is current, and the promotions so far."""
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
        shown = [route] if route is not None else list(names)
        histories = {name: registry.promotions(name) for name in shown}
    found = {
        name: {
            "current": history[0].version if history else None,
            "configured": settings.routes[name].policy if name in settings.routes else None,
            "snapshots": [s for s in rows if s["route"] == name],
            "history": history,
        }
        for name, history in histories.items()
    }
    if json:
        print_json({"object": "snapshots", "routes": msgspec.to_builtins(found)})
        return
    for name, told in found.items():
        _show(name, told)


def _show(name: str, told: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from suffice.lab.savings.headline import format_time

    console = Console()
    current = told["current"] or f"the configured policy ({told['configured']})"
    console.print(f"Route {name} uses {current}.", style="bold", highlight=False, markup=False)
    if told["snapshots"]:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("", "version", "made (UTC)", "by", "kB", "what"):
            table.add_column(column, no_wrap=column == "version")
        for s in told["snapshots"]:
            table.add_row(
                "→" if s["version"] == told["current"] else "",
                s["version"],
                format_time(s["created_s"]),
                Text(s["created_by"]),
                f"{s['bytes'] / 1000:.0f}",
                Text(_card(s["card"])),
            )
        console.print(table)
    else:
        console.print("No snapshots. suffice promote FILE stores one.", style="dim")
    for p in told["history"]:
        console.print(_entry(p), highlight=False, markup=False)
    console.print()


def _card(card: dict[str, Any]) -> str:
    """The training card in a line."""
    parts = [str(card.get("kind", ""))]
    if card.get("queries") is not None:
        parts.append(f"{card['queries']:,} queries, {card.get('labels', 0):,} labels")
    if card.get("trained_on"):
        parts.append(str(card["trained_on"]))
    models = card.get("models")
    if models:
        parts.append(f"{len(models)} models, reference {card.get('reference', 'unknown')}")
    return "; ".join(p for p in parts if p)


def _entry(p: Promotion) -> str:
    from suffice.lab.savings.headline import format_time

    after, before = (v or "the configured policy" for v in (p.version, p.previous))
    words = "promoted" if p.kind == "promote" else "rolled back to"
    text = f"{format_time(p.promoted_at_s)} {words} {after}, before {before}, by {p.by}"
    if p.forced:
        text += ", forced"
    evidence = p.evidence or {}
    reason = evidence.get("reason") or evidence.get("rule")
    return f"{text}: {reason}" if reason else text
