"""The terminal output of `suffice assess`: the recommendation first, then the reasons."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING

from suffice.cli.output import usd

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from suffice.lab.assess.results import Assessment, Cluster, Estimate, ModelSummary, PoolSummary

_BARS = " ▁▂▃▄▅▆▇█"
_MODELS = 16  # lines of models shown; --json has all
_PLOT = (60, 10)  # columns, rows
_VERDICTS = {
    "in the pool": "[bold green]in the pool[/]",
    "adds": "[green]adds[/]",
    "nothing measurable": "[dim]adds nothing[/]",
    "too few labels to say": "[yellow]too few labels[/]",
}


def show(assessment: Assessment) -> None:
    """Print the assessment."""
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    labelled = (
        f"{assessment.n_labelled:,} with labels" if assessment.n_labelled else "none with labels"
    )
    count = "1 query" if assessment.n_queries == 1 else f"{assessment.n_queries:,} queries"
    console.print(f"[bold]{escape(assessment.table)}[/]: {count}, {labelled}\n")
    for i, sentence in enumerate(assessment.recommendation):
        style = "bold green" if not i else ""
        console.print(Padding(Text(sentence, style=style), (0, 0, 0, 2)))
    _queries(console, assessment)
    if assessment.models:
        _models(console, assessment)
    if assessment.pool is not None:
        _pools(console, assessment)
    for warning in assessment.warnings:
        console.print(f"[yellow]note:[/] {escape(warning)}")


def _head(console: Console, text: str) -> None:
    console.print(f"\n[bold underline]{text}[/]")


def _table(*columns: tuple[str, str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name, justify in columns:
        table.add_column(name, justify="right" if justify == "r" else "left", overflow="fold")
    return table


# ── queries ────────────────────────────────────────────────────────────────────────────────


def _queries(console: Console, assessment: Assessment) -> None:
    from rich.markup import escape

    m = assessment.mix
    _head(console, "What you ask")
    console.print(
        f"length {_spark(m.lengths)} median {m.tokens.p50:,.0f} tokens, one in ten over "
        f"{m.tokens.p90:,.0f}, longest {m.tokens.max:,.0f} (estimated)"
    )
    console.print(
        f"difficulty {_spark(m.difficulty)} {_percent(m.hard_share)} harder than three quarters "
        "of a mixed chat workload (a prior: mostly length)"
    )
    parts = [
        f"code {_percent(m.code_share)}",
        f"mathematics {_percent(m.math_share)}",
        f"conversations {_percent(m.multi_turn_share)}",
        f"duplicates {_percent(m.duplicate_share)}",
    ]
    if m.empty_share:
        parts.append(f"empty {_percent(m.empty_share)}")
    shown = list(m.scripts.items())[:6]
    parts.append("script " + ", ".join(f"{escape(s)} {_percent(v)}" for s, v in shown))
    console.print(" · ".join(parts) + "\n")
    _clusters(console, assessment)


def _clusters(console: Console, assessment: Assessment) -> None:
    from rich.cells import set_cell_size
    from rich.markup import escape

    needs = any(c.needs_strong for c in assessment.clusters)
    top = max(c.share for c in assessment.clusters)
    room = max(20, min(console.width, 110) - (46 if needs else 30))
    last = f" {'needs strong':>15}" if needs else ""
    console.print(f"[bold]share          {'cluster':<{room}} tokens   hard{last}[/]")
    for c in assessment.clusters:
        bar = "█" * max(1, round(8 * c.share / top))
        name = set_cell_size(_cut(c.name, room), room)  # Chinese takes two columns per character
        need = _needs(c) if needs else ""
        console.print(
            f"{_percent(c.share):>5} {bar:<8} [bold]{escape(name)}[/] {c.median_tokens:>6,.0f} "
            f"{_percent(c.hard_share):>6} {need}"
        )
        # A model that leads everywhere is named above.
        other = c.best if assessment.pool is not None and c.best != assessment.pool.strong else None
        leads = f" [green]{escape(_short(other, assessment))} leads[/]" if other else ""
        left = console.width - 15 - (len(_short(other, assessment)) + 7 if other else 0)
        if c.examples or leads:
            example = _cut(c.examples[0], max(20, left)) if c.examples else ""
            console.print(f"{'':15}[dim]{escape(example)}[/]{leads}")
    _legend(console, assessment, needs)


def _legend(console: Console, assessment: Assessment, needs: bool) -> None:
    from rich.markup import escape

    if needs and assessment.pool is not None:
        cheap = assessment.pool.cheap
        against = cheap[0] if len(cheap) == 1 else f"most of the {len(cheap)} weaker models"
        console.print(
            f"[dim]needs strong: {escape(assessment.pool.strong)} answers well and {escape(against)} does "
            "not, with its 95 % interval; leads: another model is best there by more than chance[/]"
        )
    if assessment.stability is not None and assessment.stability < 0.4:
        console.print(
            "[dim]The clusters are not stable: other queries of this kind would give other clusters "
            f"(agreement of two halves {assessment.stability:.2f}).[/]"
        )


def _needs(c: Cluster) -> str:
    if c.needs_strong is None or c.needs_strong.ci is None or c.too_few:
        return f"[yellow]{'too few labels':>15}[/]"
    low, high = (100 * v for v in c.needs_strong.ci)
    return f"{_percent(c.needs_strong.value):>6} [dim]{f'{low:.0f}-{high:.0f}':>8}[/]"


def _short(name: str, assessment: Assessment) -> str:
    """A model's name without its provider, if that is unambiguous."""
    bare = name.rsplit("/", 1)[-1]
    others = [m for m in assessment.models if m.rsplit("/", 1)[-1] == bare]
    return _cut(bare if len(others) == 1 else name, 30)


# ── models ───────────────────────────────────────────────────────────────────────────────────────


def _models(console: Console, assessment: Assessment) -> None:
    from rich.markup import escape

    _head(console, "Which models to run")
    pool = assessment.pool
    priced = any(x.cost is not None for x in assessment.models.values())
    unit = {"usd": "cost/query", "output_tokens": "output tokens"}.get(
        assessment.cost_unit or "", ""
    )
    columns = [("", "l"), ("model", "l"), ("score", "l")]
    if priced:
        columns.append((unit, "r"))
    if pool is not None:
        columns += [("hull", "l")] if priced else []
        columns += [("next to the pool", "l")]
    table = _table(*columns)
    shown = _shown(assessment)
    for i, (name, x) in enumerate(shown):
        row = [_letter(i), escape(_short(name, assessment)), _plus_minus(x.quality)]
        if priced:
            row.append("unknown" if x.cost is None else _cost(assessment, x.cost))
        if pool is not None:
            if priced:
                row.append(_hull(x))
            row.append(_VERDICTS[x.verdict] if x.compared else "[dim]not compared[/]")
        table.add_row(*row)
    console.print(table)
    if len(assessment.models) > len(shown):
        console.print(
            f"[dim]… and {len(assessment.models) - len(shown)} more: --json lists all.[/]"
        )
    if pool is not None and pool.needs_strong is not None:
        one = len(pool.cheap) == 1
        fail = f"{pool.cheap[0]} fails" if one else "most of the weaker models fail"
        console.print(
            f"[dim]Of all queries {_percent(pool.needs_strong.value)} "
            f"{_between(pool.needs_strong, percent=True)} need {escape(pool.strong)}: "
            f"{escape(fail)} there.[/]"
        )
    if priced:
        console.print(f"[dim]cost: {escape(assessment.cost_source)}[/]")
        _plot(console, shown)


def _shown(assessment: Assessment) -> list[tuple[str, ModelSummary]]:
    """Models to show, best first: the recommended pool, the hull, and as many others as fit."""
    order = sorted(assessment.models.items(), key=lambda p: -p[1].quality.value)
    if len(order) <= _MODELS:
        return order
    keep = {m for m, x in order if x.on_hull} | set(
        assessment.pool.recommended if assessment.pool else ()
    )
    room = max(0, _MODELS - len(keep))
    others = [m for m, _ in order if m not in keep][:room]
    return [(m, x) for m, x in order if m in keep or m in others]


def _hull(x: ModelSummary) -> str:
    if x.on_hull is None:
        return ""
    if x.on_hull:
        sure = "" if (x.hull_share or 0.0) >= 0.95 else f" [dim]{_percent(x.hull_share or 0.0)}[/]"
        return f"on it{sure}"
    return "[dim]below[/]"


def _cost(assessment: Assessment, value: float) -> str:
    return usd(value) if assessment.cost_unit == "usd" else f"{value:,.0f}"


def _letter(i: int) -> str:
    return chr(ord("a") + i) if i < 26 else " "


def _plot(console: Console, shown: list[tuple[str, ModelSummary]]) -> None:
    """Plot score against cost; models of the hull are in capitals."""
    points = [(_letter(i), x) for i, (_, x) in enumerate(shown) if x.cost is not None and i < 26]
    scores = [x.quality.value for _, x in points]
    if len(points) < 2 or max(scores) - min(scores) < 0.005:
        return
    wide, high = _PLOT
    costs = [x.cost or 0.0 for _, x in points]
    logs = min(costs) > 0 and max(costs) > 8 * min(costs)
    xs = [log(c) if logs else c for c in costs]

    def bin_of(v: float, values: list[float], steps: int) -> int:
        span = max(values) - min(values)
        return round((v - min(values)) / span * (steps - 1)) if span else 0

    cells: dict[tuple[int, int], str] = {}
    for (letter, x), cost in sorted(
        zip(points, xs, strict=True), key=lambda p: bool(p[0][1].on_hull)
    ):
        cell = (high - 1 - bin_of(x.quality.value, scores, high), bin_of(cost, xs, wide))
        cells[cell] = f"[bold green]{letter.upper()}[/]" if x.on_hull else f"[dim]{letter}[/]"
    console.print()
    for r in range(high):
        edge = (
            f"{max(scores):.2f} ┤"
            if r == 0
            else f"{min(scores):.2f} ┤"
            if r == high - 1
            else "     │"
        )
        console.print(edge + "".join(cells.get((r, c), " ") for c in range(wide)))
    scale = "log scale" if logs else "linear scale"
    console.print("     └" + "─" * wide)
    console.print(f"[dim]      cheap → expensive ({scale}); capitals: on the cost-quality hull[/]")


# ── pools ────────────────────────────────────────────────────────────────────────────────────────


def _pools(console: Console, assessment: Assessment) -> None:
    from rich.markup import escape

    assert assessment.pool is not None
    if assessment.cost_unit is None and len(assessment.pool.recommended) == 1:
        return  # without costs, a pool that adds nothing says nothing new
    lines = [
        *(("single", x) for x in assessment.pool.singles[:1]),
        *(("pair", x) for x in assessment.pool.pairs[:3]),
        *(("triple", x) for x in assessment.pool.triples[:2]),
    ]
    if assessment.pool.everything is not None:
        lines.append(("all", assessment.pool.everything))
    if len(lines) < 2:
        return
    _head(console, "Pools")
    columns = [("pool", "l"), ("value", "l"), ("routing adds", "l")]
    priced = any(x.cost_to_keep for _, x in lines)
    if priced:
        columns.append(("95 % kept at", "r"))
    table = _table(*columns, ("oracle", "r"))
    for size, x in lines:
        names = " + ".join(_short(m, assessment) for m in x.models)
        if size == "all":
            names = f"all {len(x.models)}"
        mark = "[bold green]" if x.models == assessment.pool.recommended else "[default]"
        row = [f"{mark}{escape(names)}[/]", _plus_minus(x.value), _gain(x)]
        if priced:
            cost_share = x.cost_to_keep.get("0.95")
            row.append("" if cost_share is None else f"{_percent(cost_share.value)} of cost")
        table.add_row(*row, f"[dim]{x.oracle.value:.3f}[/]")
    console.print(table)
    if assessment.cost_unit is None:
        meaning = "mean score with each query sent to the model with the best prediction"
    else:
        meaning = (
            "mean score over all budgets from the cheapest model's cost to the most expensive one's"
        )
    console.print(
        f"[dim]value: {meaning} (cross-validated). oracle: the best answer of each query, known only "
        "afterwards; it counts luck as skill.[/]"
    )


def _gain(x: PoolSummary) -> str:
    g = x.routing_gain
    return "" if g is None else _plus_minus(g, sign=True)


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────


def _percent(share: float) -> str:
    text = f"{100 * share:.0f} %"
    return "<1 %" if text == "0 %" and share > 0 else text


def _between(e: Estimate, percent: bool = False) -> str:
    if e.ci is None:
        return "[yellow]too few[/]"
    a, b = e.ci
    return f"\\[{100 * a:.0f}, {100 * b:.0f}]" if percent else f"\\[{a:.3f}, {b:.3f}]"


def _plus_minus(e: Estimate, sign: bool = False) -> str:
    """A figure with half the interval's width: short enough for a table; --json has both ends."""
    value = f"{e.value:+.3f}" if sign else f"{e.value:.3f}"
    if e.ci is None:
        return f"{value} [yellow]too few[/]"
    return f"{value} [dim]±{(e.ci[1] - e.ci[0]) / 2:.3f}[/]"


def _spark(shares: tuple[float, ...]) -> str:
    top = max(shares) or 1.0
    steps = len(_BARS) - 1
    return "".join(_BARS[max(1, round(s / top * steps)) if s else 0] for s in shares)


def _cut(text: str, most: int) -> str:
    """The text, cut to at most `most` columns of the terminal."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= most else set_cell_size(text, most - 1).rstrip() + "…"
