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

    app.command("demo")(demo.command)
    app.command("serve")(serve.command)
    app.command("route")(route.command)
    app.command("models")(models.command)
    app.command("doctor")(doctor.command)
    app.command("feedback")(feedback.command)
    app.command("assess")(assess.command)
    app.command("eval")(eval.command)
    app.command("train")(train.command)
    app.command("calibrate")(calibrate.command)
    app.command("collect")(collect.command)
    app.command("replay")(replay.command)
    app.command("promote")(promote.command)
    app.command("rollback")(rollback.command)
    app.command("snapshots")(snapshots.command)
    app.command("report")(report.command)
    return typer.main.get_command(app)
