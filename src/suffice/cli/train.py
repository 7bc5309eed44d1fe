"""`suffice train`: fits a policy on labelled outcomes and writes one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from suffice.artifacts.artifact import Artifact
    from suffice.lab.train.train import TrainingResult


_TABLE = typer.Argument(
    help="Labelled outcomes: a folder with queries.parquet and outcomes.parquet, a long JSONL, "
    "CSV or Parquet file, a public data set, or the URL of a store (see suffice eval --help)."
)
_OUT = typer.Option(..., "--out", help="Write the artifact to this file, for example router.npz.")
_MODELS = typer.Option(None, "--models", help="Comma-separated models to include, for example a,b.")
_POLICY = typer.Option(
    None,
    "--policy",
    help="Fit this policy (trained, ridge, knn, cluster, constant, or an entry point) instead of "
    "choosing one by nested cross-validation.",
)
_EXTEND = typer.Option(None, "--extend", help="Add the table's new models to this artifact.")
_LICENCE = typer.Option(
    "unknown", "--licence", help="Licence of the labels, for the training card."
)


def command(
    table: str = _TABLE,
    out: Path = _OUT,
    models: str = _MODELS,
    policy: str = _POLICY,
    extend: Path = _EXTEND,
    licence: str = _LICENCE,
    seed: int = typer.Option(0, "--seed", help="Random seed for folds and bootstrap."),
    json: bool = typer.Option(False, "--json", help="Print the training card as one JSON object."),
) -> None:
    """Fit a policy on labelled outcomes.

    Learners are compared by nested cross-validation on what they gain over the zero router (random
    mixing of single models). A learner is chosen only if that gain is above zero with 90 %
    confidence; otherwise the artifact is a constant. Use it as `policy = "router.npz"` of a route.
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
    names = None if models is None else [m.strip() for m in models.split(",") if m.strip()]
    data = load_table(table)
    result: TrainingResult | None = None
    if extend is not None:
        from suffice.lab.train.add_model import add_models

        artifact = add_models(artifacts.load(extend), data, models=names, progress=True)
    else:
        from suffice.lab.train.train import train

        artifact, result = train(
            data, models=names, policy=policy, seed=seed, licence=licence, progress=True
        )
    saved = artifacts.save(artifact, out)
    if json:
        print_json({"artifact": str(out), **msgspec.to_builtins(saved.card)})
    else:
        show(saved, result, out)


def show(saved: Artifact, result: TrainingResult | None, out: Path) -> None:
    """Print what was trained."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    card = saved.card
    if result is not None and result.gains:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("learner", "gain over the zero router, unseen queries", "95 % interval"):
            table.add_column(name)
        rows = dict(result.gains)
        if result.nested is not None:
            rows["(whichever is chosen)"] = result.nested
        for name, (gain, ci) in rows.items():
            mark = "→ " if name == result.chosen else "  "
            span = "unknown" if ci is None else f"{ci[0]:+.4f} to {ci[1]:+.4f}"
            table.add_row(mark + name, f"{gain:+.4f}", span)
        table.add_row("→ constant" if result.chosen == "constant" else "  constant", "0", "")
        console.print(table)
    for note in card.notes:
        console.print(f"[yellow]note[/yellow]: {note}", highlight=False)
    if result is not None:
        console.print(f"[bold green]{result.chosen}[/bold green]: {result.reason}", highlight=False)
    size_kb = out.stat().st_size / 1000
    console.print(
        f"{out} ({size_kb:.0f} kB, {saved.version}): {len(card.models)} models, {card.queries} "
        f"queries, {card.labels} labels; reference {card.reference}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f'Serve it: policy = "{out}" under [routes.auto].',
        style="dim",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
