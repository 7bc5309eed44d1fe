"""`suffice train`: a policy from labelled outcomes, as one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from suffice.artifacts.artifact import Artifact
    from suffice.lab.train.train import TrainingResult


def command(
    table: str = typer.Argument(
        help="Labelled outcomes: a folder with queries.parquet and outcomes.parquet, a long JSONL, "
        "CSV or Parquet file, a public original, or a store's URL (see suffice eval --help)."
    ),
    out: Path = typer.Option(..., "--out", help="Where the artifact goes, for example router.npz."),
    models: str = typer.Option(None, "--models", help="Only these, comma-separated."),
    policy: str = typer.Option(
        None,
        "--policy",
        help="Fit this one (trained, ridge, knn, cluster, constant, or an entry point) instead of "
        "choosing by nested cross-validation.",
    ),
    extend: Path = typer.Option(
        None, "--extend", help="An artifact to which the table's new models are added."
    ),
    licence: str = typer.Option("unknown", "--licence", help="Of the labels, for the card."),
    seed: int = typer.Option(0, "--seed", help="Of folds and redraws."),
    json: bool = typer.Option(False, "--json", help="The training card as one JSON object."),
) -> None:
    """Fit a policy on labelled outcomes.

    Learners are compared by nested cross-validation on what they gain over the zero router (random
    mixing of single models); one is chosen only where that gain is above zero with 90 % confidence,
    else the artifact is a constant and says so. Use it as `policy = "router.npz"` of a route.
    """
    import msgspec

    from suffice.artifacts import artifact as artifacts
    from suffice.cli.output import print_json
    from suffice.errors import UsageError
    from suffice.lab.data.load import load_table

    if out.is_dir():
        raise UsageError(f"--out {out}: is a folder.", remedy="Give a file such as router.npz.")
    if not out.parent.exists():
        raise UsageError(f"--out {out}: its folder does not exist.", remedy="Make it first.")
    wanted = None if models is None else [m.strip() for m in models.split(",") if m.strip()]
    found = load_table(table)
    outcome: TrainingResult | None = None
    if extend is not None:
        from suffice.lab.train.add_model import add_models as grow

        made = grow(artifacts.load(extend), found, models=wanted, progress=True)
    else:
        from suffice.lab.train.train import train

        made, outcome = train(
            found, models=wanted, policy=policy, seed=seed, licence=licence, progress=True
        )
    saved = artifacts.save(made, out)
    if json:
        print_json({"artifact": str(out), **msgspec.to_builtins(saved.card)})
    else:
        show(saved, outcome, out)


def show(saved: Artifact, outcome: TrainingResult | None, out: Path) -> None:
    """What was made, as a person reads it."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    card = saved.card
    if outcome is not None and outcome.gains:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("learner", "gain over the zero router, unseen queries", "95 % interval"):
            table.add_column(name)
        rows: dict[str, Any] = dict(outcome.gains)
        if outcome.nested is not None:
            rows["(whichever is chosen)"] = outcome.nested
        for name, (gain, ci) in rows.items():
            mark = "→ " if name == outcome.chosen else "  "
            span = "unknown" if ci is None else f"{ci[0]:+.4f} to {ci[1]:+.4f}"
            table.add_row(mark + name, f"{gain:+.4f}", span)
        table.add_row(*("→ constant" if outcome.chosen == "constant" else "  constant", "0", ""))
        console.print(table)
    for note in card.notes:
        console.print(f"[yellow]note[/yellow]: {note}", highlight=False)
    if outcome is not None:
        console.print(f"[bold green]{outcome.chosen}[/bold green]: {outcome.why}", highlight=False)
    size = out.stat().st_size / 1000
    console.print(
        f"{out} ({size:.0f} kB, {saved.version}): {len(card.models)} models, {card.queries} "
        f"queries, {card.labels} labels; reference {card.reference}",
        highlight=False,
    )
    console.print(
        f'Serve it: policy = "{out}" under [routes.auto].',
        style="dim",
        markup=False,
        highlight=False,
    )
