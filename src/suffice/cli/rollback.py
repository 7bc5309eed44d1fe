"""`suffice rollback`: undo the last promotion of a route."""

from __future__ import annotations

import os
import time
from pathlib import Path

import typer


def command(
    route: str = typer.Option(None, "--route", help="Route; required if the config has several."),
    config: Path = typer.Option(None, "--config", help="Path of suffice.toml."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Undo the last promotion of a route that has not been undone yet.

    The route uses again what it used before: an earlier snapshot, or the policy in the config. A
    second rollback undoes the promotion before that one. Workers swap policies without a restart.
    """
    import msgspec
    from rich.console import Console

    from suffice.cli.output import print_json
    from suffice.config import load_settings
    from suffice.lab.ope.promotion import require_route
    from suffice.store import reader

    settings = load_settings(config, os.environ)
    name = require_route(route, settings)
    with reader.open_registry(settings.store.url) as registry:
        entry = registry.rollback(name, by="cli", now_s=time.time())
    if json:
        print_json({"object": "promotion", **msgspec.to_builtins(entry)})
        return
    current = entry.version or f"the configured policy ({settings.routes[name].policy})"
    Console().print(
        f"Rolled back: route {name} uses {current} again (before: {entry.previous}).",
        highlight=False,
        markup=False,
    )
