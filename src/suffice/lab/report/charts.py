"""All charts of the lab as PNG: of an evaluation, a savings report and an assessment.

The same input gives the same bytes: no date and no version is stored in the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from suffice.errors import UsageError
from suffice.lab.data.table import FloatArray
from suffice.lab.evaluate import frontier
from suffice.lab.report.formats import format_duration, format_usd, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from suffice.lab.assess.results import Assessment
    from suffice.lab.savings.records import RouteReport, SavingsReport

_COLOURS = ("#0b6e99", "#c1440e", "#3a7d44", "#7d3ac1", "#b8860b", "#c2185b", "#00796b", "#5d4037")
_GREY = "#9a9a9a"
_RED = "#d00000"
_BASELINE_COLOURS = {"random": _GREY, "length": "#444444", "oracle": "#c9a227"}
_NOT_DRAWN = ("cheapest", "best", "zero_router")  # visible as dots and as the dashed hull
_MAX_ROWS = 12  # models in a bar chart

Result = Mapping[str, Any]  # the JSON object of `suffice eval`


# ── shared ───────────────────────────────────────────────────────────────────────────────────────


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UsageError(
            "--out: drawing charts needs matplotlib.", remedy="pip install 'suffice[lab]'"
        ) from None
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _png(figure: Figure) -> bytes:
    data = BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def _style(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    axes.grid(True, axis=grid, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _is_wide(values: Sequence[float] | FloatArray, ratio: float) -> bool:
    """Return whether positive values differ by so much that a log scale shows them better."""
    return min(values) > 0 and max(values) / min(values) > ratio


# ── evaluation ───────────────────────────────────────────────────────────────────────────────────


def draw_evaluation(result: Result) -> dict[str, bytes]:
    """Return {"curves.png": ..., "closeup.png": ..., "gains.png": ...}.

    Raises:
        UsageError: If matplotlib is not installed.
    """
    return {
        "curves.png": _draw_curves(result, oracle=True),
        "closeup.png": _draw_curves(result, oracle=False),
        "gains.png": _draw_gains(result),
    }


def _policy_colours(result: Result) -> dict[str, str]:
    """Return a colour for each drawn policy, the same in every chart."""
    colours = iter(_COLOURS * (1 + len(result["policies"]) // len(_COLOURS)))
    return {
        name: _BASELINE_COLOURS.get(name) or next(colours)
        for name in result["policies"]
        if name not in _NOT_DRAWN
    }


def _draw_curves(result: Result, oracle: bool) -> bytes:
    figure = _figure(9.0, 5.6)
    axes = figure.subplots()
    points = np.array([[m["cost"], m["quality"]] for m in result["models"].values()])
    by_share = result["cost_unit"] == "strong_share"
    log = not by_share and _is_wide(points[:, 0], 20)
    low, high = float(points[:, 0].min()), float(points[:, 0].max())
    costs = np.geomspace(low, high, 200) if log else np.linspace(low, high, 200)
    zero_router = frontier.zero_router_hull(points)
    heights = [frontier.quality_on_hull(zero_router, costs)]
    for name, colour in _policy_colours(result).items():
        if name == "oracle" and not oracle:
            continue
        curve = np.array(result["policies"][name]["curve"])
        hull = frontier.policy_hull(curve, points)
        height = frontier.quality_on_hull(hull, costs.clip(hull[0, 0]))
        axes.plot(curve[:, 0], curve[:, 1], ".", color=colour, markersize=2.5, alpha=0.35)
        style = ":" if name == "oracle" else "-"
        axes.plot(costs, height, style, color=colour, linewidth=1.7, label=short_name(name))
        heights.append(height)
    label = "zero router (mix of single models)"
    axes.plot(costs, heights[0], "--", color="black", linewidth=1.3, label=label)
    axes.plot(points[:, 0], points[:, 1], "o", color="black", markersize=4.5, zorder=5)
    _label_models(axes, list(result["models"]), points, zero_router, log)
    axes.set_ylabel("mean quality (score)")
    axes.set_xlabel(
        "share of queries sent to the strong model" if by_share else "mean cost, USD per query"
    )
    if log:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.4, high * 1.6)
    else:
        axes.set_xlim(low - 0.03 * (high - low), high + 0.06 * (high - low))
    if not oracle:  # zoom in to where the policies are
        bottom = float(np.quantile(np.stack(heights), 0.02))
        top = float(np.max(heights))
        space = max(1e-3, 0.08 * (top - bottom))
        axes.set_ylim(bottom - 3 * space, top + space)
    _style(axes)
    title = f"{result['table']}: {result['n_queries']:,} queries, {len(points)} models"
    axes.set_title(title + ("" if oracle else ", without the oracle"), loc="left", fontsize=11)
    axes.legend(loc="lower right", fontsize=8, framealpha=0.9)
    return _png(figure)


def _label_models(
    axes: Axes, names: Sequence[str], points: FloatArray, hull: FloatArray, log: bool
) -> None:
    """Label all models if there are few, else those on the hull."""
    on_hull = {tuple(p) for p in hull.tolist()}
    x = np.log(points[:, 0]) if log else points[:, 0]
    position = (x - x.min()) / max(float(np.ptp(x)), 1e-300)
    last, depth = -1.0, 0
    for j in np.argsort(position, kind="stable").tolist():
        if len(points) > 8 and tuple(points[j].tolist()) not in on_hull:
            continue
        # Labels that would overlap their neighbour step down.
        depth = depth + 1 if position[j] - last < 0.18 else 0
        last = float(position[j])
        right = position[j] < 0.75
        axes.annotate(
            short_name(names[j]), points[j], xytext=(7 if right else -7, -12 - 12 * (depth % 4)),
            ha="left" if right else "right", textcoords="offset points", fontsize=7.5, zorder=6,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip


def _draw_gains(result: Result) -> bytes:
    colours = _policy_colours(result)
    names = [name for name in reversed(colours) if name != "oracle"]
    figure = _figure(9.0, 1.2 + 0.42 * len(names))
    axes = figure.subplots()
    for row, name in enumerate(names):
        p = result["policies"][name]
        if p["gain_ci"] is not None:
            axes.plot(p["gain_ci"], [row, row], color=colours[name], linewidth=2.2)
        axes.plot([p["gain_over_zero_router"]], [row], "o", color=colours[name], markersize=6)
    axes.axvline(0.0, color="black", linestyle="--", linewidth=1.1)
    random = result["policies"]["random"]["gain_over_zero_router"]
    axes.axvline(random, color=_GREY, linestyle=":", linewidth=1.1)
    axes.set_yticks(range(len(names)), [short_name(name) for name in names])
    axes.set_xlabel(
        "gain over the zero router in mean quality, 95 % interval (dotted: random mixing)"
    )
    _style(axes, "x")
    axes.margins(y=0.12)
    return _png(figure)


# ── savings ──────────────────────────────────────────────────────────────────────────────────────


def draw_savings(r: SavingsReport) -> dict[str, bytes]:
    """Return file name -> PNG: costs of each route, requests over time, latency.

    Raises:
        UsageError: If matplotlib is not installed.
    """
    names = [*r.latency_s, *(m for route in r.routes.values() for m in route.singles)]
    colours = {
        m: _COLOURS[i] if i < len(_COLOURS) else _GREY for i, m in enumerate(dict.fromkeys(names))
    }
    charts = {
        costs_chart(r, name): _draw_costs(route, colours)
        for name, route in r.routes.items()
        if any(s.usd is not None for s in route.singles.values())
    }
    charts["mix.png"] = _draw_mix(r, colours)
    if r.latency_s:
        charts["latency.png"] = _draw_latency(r, colours)
    return charts


def costs_chart(r: SavingsReport, route: str) -> str:
    """Return the file name of the chart of a route's costs."""
    slug = re.sub(r"[^a-z0-9]+", "-", route.lower()).strip("-")[:40]
    if slug == route:
        return f"costs-{slug}.png"
    return f"costs-{slug or 'route'}-{list(r.routes).index(route)}.png"


def _draw_costs(route: RouteReport, colours: Mapping[str, str]) -> bytes:
    priced = [(s, s.usd) for s in route.singles.values() if s.usd is not None][:_MAX_ROWS]
    figure = _figure(9.0, 1.5 + 0.48 * len(priced))
    axes = figure.subplots()
    labels = []
    for row, (s, usd) in enumerate(reversed(priced)):
        labels.append(short_name(s.model) + (" (reference)" if s.model == route.reference else ""))
        # A model that could not take all requests is scaled up from those it could take.
        scale = 1.0 / max(s.coverage, 1e-9)
        axes.barh([row], [usd * scale], color=colours[s.model], height=0.6, alpha=0.85)
        interval = [bound * scale for bound in s.usd_ci or (usd, usd)]
        axes.plot(interval, [row, row], color="#222222", linewidth=1.6 if s.usd_ci else 0.0)
        axes.annotate(
            format_usd(usd * scale) + ("" if s.covers_all else " *"),
            (max(usd * scale, interval[1]), row),
            xytext=(6, 0), textcoords="offset points", va="center", fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip
    # The spend on the compared requests, if some model could take all of them.
    compared = [s.spent_usd for s, _ in priced if s.spent_usd is not None and s.covers_all]
    spent = max(compared, default=route.spent_usd)
    label = f"spent: {format_usd(spent)}"
    axes.axvline(spent, color="black", linestyle="--", linewidth=1.3, label=label)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.12)
    axes.set_xlabel("USD for the same requests, by one model alone (line: 95 % interval)")
    axes.legend(loc="lower right", fontsize=8.5, frameon=False)
    _style(axes, "x")
    return _png(figure)


def _draw_mix(r: SavingsReport, colours: Mapping[str, str]) -> bytes:
    figure = _figure(9.0, 5.0)
    import matplotlib.dates
    from matplotlib.ticker import MaxNLocator

    dates: Any = matplotlib.dates  # its functions have no annotations

    requests, spend = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    days = r.mix.bucket_s / 86400
    starts = [datetime.fromtimestamp(s, UTC) for s in r.mix.starts_s]
    x = np.array(dates.date2num(starts)) + days / 2
    bottom = np.zeros(len(x))
    for label, counts, colour in _mix_layers(r, colours):
        if counts.any():
            requests.bar(x, counts, width=days * 0.92, bottom=bottom, color=colour, label=label)
            bottom = bottom + counts
    spend.bar(x, r.mix.spent_usd, width=days * 0.92, color="#555555")
    for event in r.events:
        when = dates.date2num(datetime.fromtimestamp(event.at_s, UTC))
        style = "-" if event.kind == "promote" else ":"
        for axes in (requests, spend):
            axes.axvline(when, color="black", linewidth=1.1, linestyle=style)
    requests.set_ylabel(f"requests per {format_duration(r.mix.bucket_s).removeprefix('1 ')}")
    requests.yaxis.set_major_locator(MaxNLocator(integer=True))
    requests.margins(y=0.12)
    figure.legend(loc="outside upper center", ncols=4, fontsize=8.5, frameon=False)
    spend.set_ylabel("USD")
    locator = dates.AutoDateLocator(maxticks=8)
    spend.xaxis.set_major_locator(locator)
    spend.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    spend.set_xlabel("UTC")
    for axes in (requests, spend):
        _style(axes, "y")
    return _png(figure)


def _mix_layers(r: SavingsReport, colours: Mapping[str, str]) -> list[tuple[str, FloatArray, str]]:
    """Return (label, requests per bucket, colour) of the largest models, the others, and failures."""
    models = list(r.mix.models.items())
    shown, others = models[: len(_COLOURS)], models[len(_COLOURS) :]
    layers = [(short_name(m), np.array(n, float), colours[m]) for m, n in shown]
    if others:
        total = np.sum([n for _, n in others], axis=0, dtype=float)
        layers.append((f"{len(others)} others", np.asarray(total), _GREY))
    layers.append(("failed", np.array(r.mix.failed, float), _RED))
    return layers


def _draw_latency(r: SavingsReport, colours: Mapping[str, str]) -> bytes:
    rows = list(r.latency_s.items())[:_MAX_ROWS][::-1]
    figure = _figure(9.0, 1.4 + 0.42 * len(rows))
    axes = figure.subplots()
    for row, (model, p) in enumerate(rows):
        axes.plot([p.p50, p.p99], [row, row], color=colours[model], linewidth=1.6, alpha=0.6)
        for value, marker in ((p.p50, "o"), (p.p90, "|"), (p.p95, "|"), (p.p99, ">")):
            size = 8 if marker == "|" else 6
            axes.plot([value], [row], marker, color=colours[model], markersize=size)
    values = [v for _, p in rows for v in (p.p50, p.p99)]
    if _is_wide(values, 20):
        axes.set_xscale("log")
    else:
        axes.set_xlim(0, max(values) * 1.06 or 1.0)
    axes.set_yticks(range(len(rows)), [short_name(m) for m, _ in rows], fontsize=9)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("seconds to the whole answer: median (dot), 90 %, 95 % (ticks), 99 % (arrow)")
    _style(axes, "x")
    return _png(figure)


# ── assessment ───────────────────────────────────────────────────────────────────────────────────


def draw_assessment(assessment: Assessment) -> bytes | None:
    """Return a PNG of the single models in cost and quality, and their hull.

    Returns:
        `None` if there are too few costs or models.
    """
    pool = assessment.pool
    points = [
        (name, m, m.cost)
        for name, m in assessment.models.items()
        if m.compared and m.cost is not None
    ]
    if pool is None or assessment.cost_unit is None or len(points) < 2:
        return None
    figure = _figure(7.5, 5.0)
    axes = figure.subplots()
    for name, m, cost in points:
        quality = m.quality.value
        low, high = m.quality.ci or (quality, quality)
        recommended = name in pool.recommended
        axes.errorbar(
            [cost], [quality], yerr=[[quality - low], [high - quality]],
            fmt="o", capsize=2, color=_COLOURS[2] if recommended else _GREY,
        )  # fmt: skip
        if m.on_hull or recommended or len(points) <= 12:
            axes.annotate(
                name, (cost, quality), xytext=(4, 4), textcoords="offset points", fontsize=7
            )
    hull = sorted(
        (assessment.models[m].cost or 0.0, assessment.models[m].quality.value) for m in pool.hull
    )
    label = "hull of single models (random mixing)"
    axes.plot(*zip(*hull, strict=True), "-", color=_COLOURS[0], linewidth=1, label=label)
    if _is_wide([cost for *_, cost in points], 8):
        axes.set_xscale("log")
    unit = "USD" if assessment.cost_unit == "usd" else "output tokens"
    axes.set_xlabel(f"mean {unit} per query ({assessment.cost_source})")
    axes.set_ylabel("mean score, 95 % interval")
    axes.set_title(f"{assessment.table}: {pool.n_compared:,} queries; recommended in green")
    axes.legend(loc="lower right", fontsize=8)
    _style(axes)
    return _png(figure)
