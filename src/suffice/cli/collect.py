"""`suffice collect`: collect labels."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from suffice.lab.collect import Forecast, Summary


def command(
    queries: str = typer.Argument(
        help="A table in any format, a .txt file with one prompt per line, or a store's URL."
    ),
    models: str = typer.Option(..., "--models", help="Models to ask, comma-separated: a,b."),
    out: Path = typer.Option(
        ..., "--out", help="Table to write: a folder, or a .jsonl, .csv or .parquet file."
    ),
    judge: str = typer.Option(
        None,
        "--judge",
        help="Model that compares each answer with the reference's, in both orders.",
    ),
    reference: str = typer.Option(
        None,
        "--reference",
        help="Model that others are compared with. [default: the best by prior]",
    ),
    scorer: str = typer.Option(
        None, "--scorer", help="One of exact, contains, regex, json_schema, or module:function."
    ),
    expected_column: str = typer.Option(
        None, "--expected-column", help="Column of the expected answer, pattern or schema."
    ),
    pattern: str = typer.Option(None, "--pattern", help="One pattern for all, for regex."),
    schema: Path = typer.Option(
        None, "--schema", help="File with one schema for all, for json_schema."
    ),
    max_usd: float = typer.Option(
        None, "--max-usd", help="Maximum USD to spend on this table, all runs together."
    ),
    allow_unknown_price: bool = typer.Option(
        False,
        "--allow-unknown-price",
        help="With --max-usd: allow models of unknown price.",
    ),
    sample: int = typer.Option(
        None, "--sample", help="Label only N queries, chosen by active learning."
    ),
    seed: int = typer.Option(
        0, "--seed", min=0, help="Random seed of the sample and of the order."
    ),
    config: str = typer.Option(None, "--config", help="Path of a suffice.toml."),
    concurrency: int = typer.Option(
        8, "--concurrency", min=1, max=256, help="Maximum concurrent calls."
    ),
    temperature: float = typer.Option(
        0.0,
        "--temperature",
        min=-1.0,
        max=2.0,
        help="Temperature of the models, 0 to 2; -1 sends none.",
    ),
    max_output_tokens: int = typer.Option(
        2048, "--max-output-tokens", min=1, help="Maximum output tokens; used for the cost cap."
    ),
    judge_max_output_tokens: int = typer.Option(
        1024, "--judge-max-output-tokens", min=16, help="Maximum output tokens of the judge."
    ),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask for confirmation."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show the forecast and exit."),
    json: bool = typer.Option(False, "--json", help="Print the summary as one JSON object."),
) -> None:
    """Ask every model every query, score the answers, and write a table of outcomes.

    Run the same command again after a crash or an interrupt: answers are stored in a journal next to
    the table and never paid for twice. Exits with 0 even if --max-usd stopped it early.
    """
    from suffice.cli.output import print_json
    from suffice.lab.collect import AbortedError, Options, collect

    ui = _Terminal(yes=yes, dry_run=dry_run)
    options = Options(
        queries=queries,
        models=tuple(m.strip() for m in models.split(",") if m.strip()),
        out=out,
        judge=judge,
        reference=reference,
        scorer=scorer,
        expected_column=expected_column,
        pattern=pattern,
        schema=schema,
        max_usd=max_usd,
        allow_unknown_price=allow_unknown_price,
        sample=sample,
        seed=seed,
        config=config,
        concurrency=concurrency,
        temperature=None if temperature < 0 else temperature,
        max_output_tokens=max_output_tokens,
        judge_max_output_tokens=judge_max_output_tokens,
    )
    try:
        summary = collect(options, ui, os.environ)
    except AbortedError:
        if dry_run and json:
            print_json({"forecast": _forecast_json(ui.forecast)})
        if dry_run:
            return
        ui.notify("No model was asked.")
        raise typer.Exit(1) from None
    if json:
        print_json(asdict(summary))
    ui.summary(summary)
    if summary.stopped == "interrupted":
        raise typer.Exit(130)


def _forecast_json(forecast: Forecast | None) -> Any:
    assert forecast is not None
    return {**asdict(forecast), "usd": forecast.usd, "most_usd": forecast.most_usd}


class _Terminal:
    """Shows a run on standard error; only JSON goes to standard output."""

    def __init__(self, *, yes: bool, dry_run: bool) -> None:
        from rich.console import Console

        self.forecast: Forecast | None = None
        self._console = Console(stderr=True)
        self._confirms = not yes and sys.stdin.isatty() and sys.stderr.isatty()
        self._dry_run = dry_run
        self._notified: set[str] = set()
        self._progress: Any = None
        self._task: Any = None

    def notify(self, text: str) -> None:
        self._notified.add(text)
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def confirm(self, forecast: Forecast) -> bool:
        self.forecast = forecast
        self._show(forecast)
        if self._dry_run:
            return False
        if not self._confirms or not forecast.calls:
            return True
        return typer.confirm("Continue?", default=True, err=True)

    def _show(self, f: Forecast) -> None:
        from rich.table import Table

        from suffice.cli.output import usd

        table = Table(box=None, pad_edge=False, header_style="bold", title=None)
        for name in ("forecast", "calls", "known", "tokens in", "tokens out", "USD", "at most"):
            table.add_column(name, justify="left" if name == "forecast" else "right")
        for r in f.rows:
            name = r.model if r.role == "model" else f"{r.model} (judge)"
            table.add_row(
                name, f"{r.calls:,}", f"{r.known:,}", f"{r.input_tokens:,}", f"{r.output_tokens:,}",
                usd(r.usd), usd(r.most_usd),
            )  # fmt: skip
        self._console.print(table)
        total = f"{f.queries:,} queries, {f.calls:,} calls, about {usd(f.usd)}"
        if f.spent_usd:
            total += f", after {usd(f.spent_usd)} of earlier runs"
        if f.max_usd is not None:
            total += f"; never more than {usd(f.max_usd)} in all"
            if f.usd is not None and f.spent_usd + f.usd > f.max_usd:
                share = max(0.0, (f.max_usd - f.spent_usd) / f.usd)
                total += f", which will probably stop it after about {share:.0%}"
        self.notify(total + ".")

    def start(self, calls: int) -> None:
        if not calls:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._progress = Progress(
            TextColumn("asking"), BarColumn(), MofNCompleteColumn(),
            TextColumn("spent {task.fields[spent]}"), Remaining(),
            console=self._console,
        )  # fmt: skip
        self._progress.start()
        self._task = self._progress.add_task("asking", total=calls, spent="$0")

    def advance(self, calls: int, spent_usd: float) -> None:
        from suffice.cli.output import usd

        if self._progress is not None:
            self._progress.update(self._task, advance=calls, spent=usd(spent_usd))

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def summary(self, s: Summary) -> None:
        from rich.table import Table

        from suffice.cli.output import number, usd

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("model", "answers", "scored", "failed", "mean score", "USD per query"):
            table.add_column(name, justify="left" if name == "model" else "right")
        for name, m in s.models.items():
            table.add_row(
                name, f"{m.answers:,}", f"{m.scored:,}", f"{m.failed:,}", number(m.quality, 3),
                usd(m.mean_usd),
            )  # fmt: skip
        self._console.print(table)
        for name, m in s.models.items():
            if m.first_failure:
                self.notify(f"{name}: {m.failed} without an answer; the first: {m.first_failure}")
        if s.judged_pairs:
            self.notify(
                f"The judge contradicted itself when the order was swapped in {s.judge_contradicts} "
                f"of {s.judged_pairs} pairs; those score 0.5."
            )
        for warning in s.warnings:
            if f"warning: {warning}" not in self._notified:
                self.notify(f"warning: {warning}")
        if s.stopped == "max_usd":
            self.notify(
                f"--max-usd {s.max_usd:g} stopped it after {s.asked:,} of {s.queries:,} queries; raise "
                "it and run it again to continue."
            )
        elif s.stopped:
            self.notify(
                f"Stopped after {s.asked:,} of {s.queries:,} queries; run it again to continue."
            )
        spent = f"{s.out}: {s.asked:,} queries, {usd(s.spent_usd)} spent"
        if s.uncertain_usd:
            spent += f", of which {usd(s.uncertain_usd)} for calls of uncertain cost"
        self.notify(spent + ".")
