"""`suffice feedback`: a score for a decision, straight into the store."""

from __future__ import annotations

from pathlib import Path

import typer


def command(
    decision_id: str = typer.Argument(help="From the header x-suffice-decision-id."),
    score: float = typer.Argument(help="From 0 (useless) to 1 (sufficient)."),
    source: str = typer.Option("user", "--source", help="Who says so: user, test, judge, ..."),
    comment: str = typer.Option(None, "--comment"),
    key: str = typer.Option(None, "--key", help="The same key again replaces the score."),
    config: Path = typer.Option(None, "--config", help="A suffice.toml."),
) -> None:
    """Score a recorded decision."""
    from ..router import Router

    router = Router.for_explaining(config)
    try:
        router.feedback(decision_id, score, source=source, comment=comment, key=key)
    finally:
        router.close()
    typer.echo(f"{decision_id}: {score:g} from {source}")
