"""The table of commands. A new command is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer


def build() -> Callable[..., Any]:
    """Returns the command tree as a callable."""
    from suffice.cli import (
        assess,
        calibrate,
        collect,
        demo,
        doctor,
        eval,
        feedback,
        models,
        promote,
        replay,
        report,
        rollback,
        route,
        serve,
        snapshots,
        train,
    )

    app = typer.Typer(
        name="suffice",
        help="Routes every LLM query to the cheapest model that suffices.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback(invoke_without_command=True)
    def root(
        version: bool = typer.Option(False, "--version", help="Show the version and exit."),
    ) -> None:
        if version:
            from importlib.metadata import version as package_version

            typer.echo(f"suffice {package_version('suffice')}")
            raise typer.Exit

    for module in (
        demo, serve, route, models, doctor, feedback, assess, eval, train, calibrate, collect,
        replay, promote, rollback, snapshots, report,
    ):  # fmt: skip
        app.command(module.__name__.rpartition(".")[2])(module.command)
    return typer.main.get_command(app)
