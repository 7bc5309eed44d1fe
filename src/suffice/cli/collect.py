"""`suffice collect`: collect labels."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from suffice.lab.collect import Forecast, Options, Summary


# The options of the command; its signature has their defaults.
Queries = Annotated[
    str,
    typer.Argument(
        help="A table in any format, a .txt file with one prompt per line, or a store's URL."
    ),
]
Models = Annotated[str, typer.Option("--models", help="Models to ask, comma-separated: a,b.")]
Out = Annotated[
    Path,
    typer.Option("--out", help="Table to write: a folder, or a .jsonl, .csv or .parquet file."),
]
Judge = Annotated[
    str | None,
    typer.Option(
        "--judge", help="Model that compares each answer with the reference's, in both orders."
    ),
]
Reference = Annotated[
    str | None,
    typer.Option(
        "--reference", help="Model that others are compared with. [default: the best by prior]"
    ),
]
Scorer = Annotated[
    str | None,
    typer.Option(
        "--scorer", help="One of exact, contains, regex, json_schema, or module:function."
    ),
]
ExpectedColumn = Annotated[
    str | None,
    typer.Option("--expected-column", help="Column of the expected answer, pattern or schema."),
]
Pattern = Annotated[
    str | None, typer.Option("--pattern", help="One pattern for all queries, for regex.")
]
Schema = Annotated[
    Path | None, typer.Option("--schema", help="File with one schema for all, for json_schema.")
]
MaxUsd = Annotated[
    float | None,
    typer.Option("--max-usd", help="Maximum USD to spend on this table, all runs together."),
]
AllowUnknownPrice = Annotated[
    bool,
    typer.Option("--allow-unknown-price", help="With --max-usd: allow models of unknown price."),
]
Sample = Annotated[
    int | None,
    typer.Option("--sample", help="Label only N queries, chosen by active learning."),
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, help="Random seed of the sample and of the order.")
]
Config = Annotated[str | None, typer.Option("--config", help="Path of a suffice.toml.")]
Concurrency = Annotated[
    int, typer.Option("--concurrency", min=1, max=256, help="Maximum number of concurrent calls.")
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature", min=-1.0, max=2.0, help="Temperature of the models, 0 to 2; -1 sends none."
    ),
]
MaxOutputTokens = Annotated[
    int,
    typer.Option(
        "--max-output-tokens", min=1, help="Maximum output tokens; used for the cost cap."
    ),
]
JudgeMaxOutputTokens = Annotated[
    int,
    typer.Option("--judge-max-output-tokens", min=16, help="Maximum output tokens of the judge."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the forecast and exit.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")]


def command(
    queries: Queries,
    models: Models,
    out: Out,
    judge: Judge = None,
    reference: Reference = None,
    scorer: Scorer = None,
    expected_column: ExpectedColumn = None,
    pattern: Pattern = None,
    schema: Schema = None,
    max_usd: MaxUsd = None,
    allow_unknown_price: AllowUnknownPrice = False,
    sample: Sample = None,
    seed: Seed = 0,
    config: Config = None,
    concurrency: Concurrency = 8,
    temperature: Temperature = 0.0,
    max_output_tokens: MaxOutputTokens = 2048,
    judge_max_output_tokens: JudgeMaxOutputTokens = 1024,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Ask every model every query, score the answers, and write a table of outcomes.

    Run the same command again after a crash or an interrupt: answers are stored in a journal next to
    the table and never paid for twice. Exits with 0 even if --max-usd stopped it early.
    """
    from suffice.lab.collect import Options

    names = tuple(m.strip() for m in models.split(",") if m.strip())
    options = Options(
        queries=queries, models=names, out=out, judge=judge, reference=reference, scorer=scorer,
        expected_column=expected_column, pattern=pattern, schema=schema, max_usd=max_usd,
        allow_unknown_price=allow_unknown_price, sample=sample, seed=seed, config=config,
        concurrency=concurrency, temperature=None if temperature < 0 else temperature,
        max_output_tokens=max_output_tokens, judge_max_output_tokens=judge_max_output_tokens,
    )  # fmt: skip
    _run(options, _Terminal(yes=yes, dry_run=dry_run), dry_run=dry_run, json=json)


def _run(options: Options, ui: _Terminal, *, dry_run: bool, json: bool) -> None:
    from suffice.cli.output import print_json
    from suffice.lab.collect import AbortedError, collect

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


def _forecast_json(forecast: Forecast | None) -> dict[str, Any]:
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
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def notify(self, text: str) -> None:
        """Show one line."""
        self._notified.add(text)
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def confirm(self, forecast: Forecast) -> bool:
        """Show the forecast and ask whether to continue."""
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
        """Show the progress bar."""
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
        """Advance the progress bar."""
        from suffice.cli.output import usd

        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=calls, spent=usd(spent_usd))

    def stop(self) -> None:
        """Remove the progress bar."""
        if self._progress is not None:
            self._progress.stop()

    def summary(self, s: Summary) -> None:
        """Show the summary."""
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
