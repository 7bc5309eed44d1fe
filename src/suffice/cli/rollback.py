"""`suffice rollback`: undo the last promotion of a route."""

from __future__ import annotations

import os
import time
from pathlib import Path

import typer


def command(
    route: str = typer.Option(None, "--route", help="Of this route; needed where there are many."),
    config: Path = typer.Option(None, "--config", help="A suffice.toml."),
    json: bool = typer.Option(False, "--json", help="One JSON object."),
) -> None:
    """Undo the last promotion of a route that is not undone yet.

    The route goes back to what it used before: an earlier snapshot, or the policy in the config.
    Once more undoes the promotion before that. Workers swap without a restart.
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
    now = entry.version or f"the configured policy ({settings.routes[name].policy})"
    Console().print(
        f"Rolled back: route {name} uses {now} again (before: {entry.previous}).",
        highlight=False, markup=False,
    )  # fmt: skip
