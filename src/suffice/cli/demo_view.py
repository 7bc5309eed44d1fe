"""The terminal view of the demo: a row per query, then the summary."""

from __future__ import annotations

from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from suffice.cli.output import number, usd

_COLOURS = ("green", "cyan", "magenta")


class View:
    """Prints rows as they arrive, above a progress bar. Use it as a context manager."""

    def __init__(self, total: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self._progress = Progress(
            TextColumn("[bold]routing"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
        )
        self._task = self._progress.add_task("", total=total)
        self._live = Live(self._progress, console=self.console, refresh_per_second=8)
        self._colour: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def start(self, base_url: str, models: list[str]) -> None:
        """Show the header."""
        self._colour = dict(zip(models, _COLOURS, strict=False))
        self.console.print(
            Panel(
                f"A real gateway at [bold]{base_url}[/bold]. The providers behind it are "
                "[bold yellow]SIMULATED[/bold yellow]: prices, speed and skill are made up, replies "
                "are canned, and the quality shown is that of the simulation.",
                title="suffice demo",
                border_style="blue",
            )
        )
        self.console.print(self._table(header=True))

    def _table(self, *, header: bool = False) -> Table:
        table = Table(box=None, show_header=header, pad_edge=False, header_style="bold")
        width = self.console.width
        # The fixed columns take 41 characters and the five gaps 10; the reason needs at least 16.
        reason = min(40, max(16, (width - 51) // 2))
        query = max(12, width - 51 - reason)
        table.add_column("query", width=query, no_wrap=True, overflow="ellipsis")
        table.add_column("model", width=18, no_wrap=True)
        table.add_column("reason", width=reason, no_wrap=True, overflow="ellipsis")
        table.add_column("quality", width=7, justify="right")
        table.add_column("cost", width=9, justify="right")
        table.add_column("time", width=7, justify="right")
        return table

    def add(self, o: Any) -> None:
        """Show one outcome."""
        table = self._table()
        if o.error is not None:
            table.add_row(o.query, "[red]LOST[/red]", o.error, "", "", "")
        else:
            colour = self._colour.get(o.model, "white")
            narrow = self.console.width < 110
            reason = f"harder than {o.difficulty:.0%}"
            if o.attempts > 1:
                reason = "[yellow]failed over[/yellow]" + ("" if narrow else f"; {reason}")
            elif not narrow:
                reason += " of traffic"
            table.add_row(
                o.query,
                f"[{colour}]{o.model}[/{colour}]",
                reason,
                number(o.predicted_quality),
                usd(o.cost_usd),
                f"{o.latency_s * 1e3:.0f} ms",
            )
        self.console.print(table)
        self._progress.advance(self._task)

    def outage(self, provider: str, down: bool) -> None:
        """Show that a provider goes down or comes back."""
        state = "down now" if down else "up again"
        self.console.rule(f"[bold red]provider {provider} is {state}", style="red")

    def summary(self, s: dict[str, Any]) -> None:
        """Show the summary."""
        show = self.console.print
        table = Table(title="What it cost (simulated providers)", header_style="bold")
        table.add_column("")
        table.add_column("cost", justify="right")
        table.add_column("quality of the simulation", justify="right")
        rows = (
            (f"always cheapest: {s['always_cheapest']['model']}", s["always_cheapest"]),
            ("[bold green]suffice[/bold green]", s),
            (f"always best: {s['always_best']['model']}", s["always_best"]),
        )
        for name, row in rows:
            quality = row["quality_of_the_simulation"]
            table.add_row(
                name, usd(row["cost_usd"]), "not graded" if quality is None else f"{quality:.1%}"
            )
        show()
        show(table)
        if s["cheaper_than_always_best"] is not None:
            show(f"{s['cheaper_than_always_best']:.0%} cheaper than always using the best model.")
        share = ", ".join(f"{m} {x:.0%}" for m, x in s["share"].items())
        o = s["overhead_ms"]
        show(
            f"{s['answered']} of {s['queries']} queries answered, [bold]{s['lost']} lost[/bold]; "
            f"{s['attempts']} attempts, {s['failovers']} failed over; {share}."
        )
        show(
            f"Router overhead: median {o['median']:.2f} ms, 95 % under {o['p95']:.2f} ms. "
            f"Feedback posted: {s['feedback_posted']}. Took {s['seconds']:.1f} s."
        )
        show(f"Records: {s['records']}", soft_wrap=True)
        show("Look at one decision:", style="bold")
        show(
            f"  suffice serve --config {s['config']}\n"
            f"  curl -s localhost:8484/v1/decisions/{s['example_decision']}",
            soft_wrap=True,
            highlight=False,
        )
