"""`suffice assess`: what is asked, and which models to run for it."""

from __future__ import annotations

import os
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
        help="A table or log of queries (a folder, JSONL, CSV or Parquet), a store's URL, or its "
        "SQLite file."
    ),
    models: str = typer.Option(None, "--models", help="Only these models: a,b,c."),
    clusters: int = typer.Option(
        None, "--clusters", min=1, help="How many clusters, instead of a number found in the data."
    ),
    config: Path = typer.Option(
        None, "--config", help="A suffice.toml, for the prices of models the catalog lacks."
    ),
    out: Path = typer.Option(
        None, "--out", help="A folder for assess.json and, where costs are known, a picture."
    ),
    json: bool = typer.Option(False, "--json", help="One JSON object (docs/guides/assess.md)."),
) -> None:
    """See what you ask, and which models to run for it.

    Clusters of the queries with names, length, difficulty and what only a strong model gets right;
    then the best single model, pair and triple, the cost-quality hull, and what each model adds,
    each with a 95 % interval. Logs without scores give the first half.
    """
    from suffice.cli.assess_view import show
    from suffice.cli.output import print_json
    from suffice.lab.assess import assess

    names = None if models is None else [m.strip() for m in models.split(",") if m.strip()]
    priced = _priced(config)
    if out is not None:
        _usable(out)
    with _progress() as say:
        found = assess(
            _read(table), models=names, clusters=clusters, priced=priced, progress=True, say=say
        )
    if out is not None:
        _write(found, out)
    if json:
        print_json(found)
    else:
        show(found)


def _read(where: str) -> Table:
    from suffice.lab.data.load import load_table

    path = Path(where)
    if "://" not in where and path.is_file():
        with path.open("rb") as file:
            if file.read(16) == b"SQLite format 3\0":
                where = f"sqlite:///{path.resolve().as_posix()}"
    return load_table(where, need_scores=False)


def _priced(config: Path | None) -> tuple[Model, ...]:
    if config is None:
        return ()
    from suffice.router import Router

    return tuple(Router.for_dry_run(config).models())


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what is being done; nothing where nobody watches."""
    from rich.console import Console
    from rich.status import Status

    status = Status("", console=Console(stderr=True))
    started: list[bool] = []

    def say(what: str) -> None:
        status.update(what)
        if not started:  # not before the bar of the reading is gone
            started.append(True)
            status.start()

    try:
        yield say
    finally:
        status.stop()


def _usable(out: Path) -> None:
    from suffice.errors import UsageError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}.", remedy="Give a folder.") from None


def _write(found: Assessment, out: Path) -> None:
    import msgspec

    from suffice.errors import JobError
    from suffice.lab.assess.picture import draw

    try:
        half = out / "assess.json.part"
        half.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
        os.replace(half, out / "assess.json")
        half = out / "cost-quality.part.png"
        if draw(found, half):
            os.replace(half, out / "cost-quality.png")
    except OSError as error:
        raise JobError(f"--out {out}: {error.strerror}.") from None
