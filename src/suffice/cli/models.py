"""`suffice models`: the catalog in use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

if TYPE_CHECKING:
    from suffice.types import Model

_QUALITY_MARKS = {"catalog": "*", "config": " ", "unknown": " "}


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
    source = "the built-in catalog" if all_ or example else router.source
    _show(rows, f"{source} (no model is configured)" if example and not all_ else source)


def _show(models: Sequence[Model], source: str) -> None:
    """One line per model, then what the letters mean and where the figures come from."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"[dim]models from {source}; prices in USD per million tokens[/dim]")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("model", "input", "cached", "output", "window", "can", "quality"):
        justify: Literal["left", "right"] = "left" if name in ("model", "can") else "right"
        # Only long names wrap in a narrow terminal.
        table.add_column(name, justify=justify, no_wrap=name != "model", overflow="fold")
    for m in models:
        p = m.price
        table.add_row(
            m.name,
            usd_per_mtok(p.input_usd_per_mtok),
            usd_per_mtok(p.cached_input_usd_per_mtok),
            usd_per_mtok(p.output_usd_per_mtok),
            "?" if m.context_tokens is None else f"{m.context_tokens // 1000:,}k",
            "?" if m.capabilities is None else "".join(sorted(c[0] for c in m.capabilities)),
            "?" if m.quality is None else f"{m.quality:.2f}{_QUALITY_MARKS[m.quality_source]}",
        )
    console.print(table)
    console.print(
        "[dim]can: a audio, j JSON schema, r reasoning, t tools, v vision; ? unknown. quality: * by "
        "the catalog's tier, else by the config.[/dim]"
    )
    prices = sorted(
        {m.price.source + (f", {m.price.dated}" if m.price.dated else "") for m in models}
    )
    console.print(f"[dim]prices from {'; '.join(prices)}[/dim]")


def usd_per_mtok(value: float | None) -> str:
    """A price in USD per million tokens; "?" if unknown."""
    return "?" if value is None else f"{value:g}"
