"""`suffice serve`: run the gateway."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from suffice.router import Router


def command(
    config: Path = typer.Option(None, "--config", help="Path of a suffice.toml."),
    host: str = typer.Option(None, "--host", help="Address to listen on."),
    port: int = typer.Option(None, "--port", min=1, max=65535, help="Port to listen on."),
    workers: int = typer.Option(None, "--workers", min=1, max=64, help="Number of processes."),
) -> None:
    """Run the gateway. Point the base URL of an OpenAI client at it."""
    # A refit on all cores delays requests and is no faster if the cores are busy. Set before NumPy is
    # loaded; workers inherit it.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    from suffice.gateway import serve

    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )

    def ready(url: str, router: Router) -> None:
        for warning in router.warnings:
            typer.echo(f"warning: {warning}", err=True)
        typer.echo(f"suffice gateway at {url}/v1  (models from {router.source})")
        for name, route in router.routes.items():
            typer.echo(f"  {name}: {', '.join(m.name for m in route.models)}")

    serve(config, host=host, port=port, workers=workers, ready=ready)
