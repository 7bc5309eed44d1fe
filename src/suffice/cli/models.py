"""`suffice models`: the catalog in use."""

from __future__ import annotations

from pathlib import Path

import typer


def command(
    config: Path = typer.Option(None, "--config", help="Path of a suffice.toml."),
    all_: bool = typer.Option(
        False, "--all", help="List the whole catalog, not only the models in use."
    ),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Show the models in use: prices, windows, capabilities, and where each figure comes from."""
    import msgspec

    from suffice import catalog
    from suffice.cli.output import print_json
    from suffice.router import EXAMPLE_POOL, Router

    router = Router.for_dry_run(config)
    example = router.source == EXAMPLE_POOL
    rows = catalog.builtin_models() if all_ or example else router.models()
    if json:
        print_json({"object": "list", "data": msgspec.to_builtins(rows)})
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    source = "the built-in catalog (no model is configured)" if example else router.source
    console.print(
        f"[dim]models from {'the built-in catalog' if all_ else source}; USD per million tokens[/dim]"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("model", "input", "cached", "output", "window", "can", "quality", "price from"):
        right = name in ("input", "cached", "output", "window", "quality")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for m in rows:
        p = m.price
        table.add_row(
            m.name,
            usd_per_mtok(p.input_usd_per_mtok),
            usd_per_mtok(p.cached_input_usd_per_mtok),
            usd_per_mtok(p.output_usd_per_mtok),
            "unknown" if m.context_tokens is None else f"{m.context_tokens:,}",
            "unknown" if m.capabilities is None else " ".join(sorted(m.capabilities)),
            "unknown" if m.quality is None else f"{m.quality:.2f} ({m.quality_source})",
            p.source + (f", {p.dated}" if p.dated else ""),
        )
    console.print(table)


def usd_per_mtok(value: float | None) -> str:
    """A price in USD per million tokens."""
    return "unknown" if value is None else f"{value:g}"
