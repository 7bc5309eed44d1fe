"""`suffice assess`: the mix of queries, and which models to run for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from suffice.lab.assess import Assessment
    from suffice.lab.data.table import Table
    from suffice.types import Model


def command(
    table: str = typer.Argument(
        help="Table or log of queries (a folder, JSONL, CSV or Parquet), URL of a store, or its "
        "SQLite file."
    ),
    models: str = typer.Option(None, "--models", help="Models to include, comma-separated: a,b."),
    clusters: int = typer.Option(
        None,
        "--clusters",
        min=1,
        help="Number of clusters, instead of a number chosen from the data.",
    ),
    config: Path = typer.Option(
        None,
        "--config",
        help="A suffice.toml with prices of models that the catalog lacks.",
    ),
    out: Path = typer.Option(
        None, "--out", help="Folder for assess.json and, if costs are known, a chart."
    ),
    json: bool = typer.Option(
        False, "--json", help="Print one JSON object (docs/guides/assess.md)."
    ),
) -> None:
    """Show what is asked, and which models to run for it.

    Prints clusters of the queries with names, length, difficulty and the share that needs a strong
    model; then the best single model, pair and triple, the cost-quality hull, and what each model
    adds, each with a 95 % interval. A log without scores gives the clusters only.
    """
    from suffice.cli.assess_view import show
    from suffice.cli.output import print_json
    from suffice.lab.assess import assess

    names = None if models is None else [m.strip() for m in models.split(",") if m.strip()]
    priced = _configured_models(config)
    if out is not None:
        _require_folder(out)
    with _status() as on_step:
        assessment = assess(
            _read(table),
            models=names,
            clusters=clusters,
            priced=priced,
            progress=True,
            on_step=on_step,
        )
    if out is not None:
        _write(assessment, out)
    if json:
        print_json(assessment)
    else:
        show(assessment)


def _read(source: str) -> Table:
    from suffice.lab.data.load import load_table

    path = Path(source)
    if "://" not in source and path.is_file():
        with path.open("rb") as file:
            if file.read(16) == b"SQLite format 3\0":
                source = f"sqlite:///{path.resolve().as_posix()}"
    return load_table(source, need_scores=False)


def _configured_models(config: Path | None) -> tuple[Model, ...]:
    if config is None:
        return ()
    from suffice.router import Router

    return tuple(Router.for_dry_run(config).models())


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """Gives a function that shows the current step on standard error, if it is a terminal."""
    from rich.console import Console
    from rich.status import Status

    status = Status("", console=Console(stderr=True))
    started: list[bool] = []

    def show_step(step: str) -> None:
        status.update(step)
        if not started:  # only after the progress bar of reading has ended
            started.append(True)
            status.start()

    try:
        yield show_step
    finally:
        status.stop()


def _require_folder(out: Path) -> None:
    from suffice.errors import UsageError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out {out}: {error.strerror}.", remedy="Give the path of a folder."
        ) from None


def _write(assessment: Assessment, out: Path) -> None:
    import msgspec

    from suffice.errors import JobError
    from suffice.lab.report.charts import draw_assessment

    try:
        part = out / "assess.json.part"
        part.write_bytes(msgspec.json.format(msgspec.json.encode(assessment), indent=2) + b"\n")
        part.replace(out / "assess.json")
        chart = draw_assessment(assessment)
        if chart is not None:
            part = out / "cost-quality.part.png"
            part.write_bytes(chart)
            part.replace(out / "cost-quality.png")
    except OSError as error:
        raise JobError(f"--out {out}: {error.strerror}.") from None
