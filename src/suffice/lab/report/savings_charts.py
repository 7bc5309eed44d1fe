"""The plots of a report as PNG, drawn from the report alone."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from suffice.errors import UsageError
from suffice.lab.report.charts import short
from suffice.lab.savings.headline import format_usd

if TYPE_CHECKING:
    from suffice.lab.savings import Report, RouteReport

_COLOURS = ("#0b6e99", "#c1440e", "#3a7d44", "#7d3ac1", "#b8860b", "#c2185b", "#00796b", "#5d4037")
_MOST = 8  # models with a colour of their own; the rest are drawn as one
_GREY = "#9a9a9a"


def figures(r: Report) -> dict[str, bytes]:
    """File name -> PNG: costs of each route, the mix over time, latency. Raises UsageError without
    matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise UsageError(
            "--out: drawing the plots needs matplotlib.", remedy="pip install 'suffice[lab]'"
        ) from None
    matplotlib.use("Agg")
    palette = colours(r)
    out = {}
    for i, (name, one) in enumerate(r.routes.items()):
        if any(s.usd is not None for s in one.singles.values()):
            out[_file("costs", name, i)] = _costs(one, palette)
    out["mix.png"] = _mix(r, palette)
    if r.latency_s:
        out["latency.png"] = _latency(r, palette)
    return out


def costs_file(r: Report, route: str) -> str:
    """The name of the route's plot of costs."""
    return _file("costs", route, list(r.routes).index(route))


def _file(what: str, route: str, i: int) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", route.lower()).strip("-")[:40]
    return f"{what}-{plain}.png" if plain == route else f"{what}-{plain or 'route'}-{i}.png"


def colours(r: Report) -> dict[str, str]:
    """Of the models that answered or would have, by how much they answered."""
    names = dict.fromkeys([*r.latency_s, *(m for one in r.routes.values() for m in one.singles)])
    return {m: _COLOURS[i] if i < _MOST else _GREY for i, m in enumerate(names)}


def _costs(one: RouteReport, palette: dict[str, str]) -> bytes:
    from matplotlib.figure import Figure

    known = [s for s in one.singles.values() if s.usd is not None][:12]
    figure = Figure(figsize=(9.0, 1.5 + 0.48 * len(known)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for row, s in enumerate(reversed(known)):
        # A model that could not take all is drawn beside the spend on what it could.
        share, value = 1.0 / max(s.coverage, 1e-9), s.usd or 0.0
        axes.barh([row], [value * share], color=palette[s.model], height=0.6, alpha=0.85)
        if s.usd_ci is not None:
            axes.plot([v * share for v in s.usd_ci], [row, row], color="#222222", linewidth=1.6)
        end = max(value, s.usd_ci[1] if s.usd_ci else value) * share
        axes.annotate(
            format_usd(value * share) + ("" if s.coverage > 0.9995 else " *"), (end, row),
            xytext=(6, 0), textcoords="offset points", va="center", fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip
    # On the requests that are compared, as far as some model could take all of them.
    whole = [s.spent_usd for s in known if s.spent_usd is not None and s.coverage > 0.9995]
    spent = max(whole, default=one.spent_usd)
    axes.axvline(
        spent, color="black", linestyle="--", linewidth=1.3, label=f"spent: {format_usd(spent)}"
    )
    names = [
        short(s.model) + (" (reference)" if s.model == one.reference else "")
        for s in reversed(known)
    ]
    axes.set_yticks(range(len(known)), names, fontsize=9)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.12)
    axes.set_xlabel("USD for the same requests, by one model alone (line: 95 % interval)")
    axes.legend(loc="lower right", fontsize=8.5, frameon=False)
    _plain(axes, "x")
    return _png(figure)


def _mix(r: Report, palette: dict[str, str]) -> bytes:
    import matplotlib.dates
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    dates: Any = matplotlib.dates
    figure = Figure(figsize=(9.0, 5.0), dpi=150, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    days = r.mix.bucket_s / 86400
    at = dates.date2num([datetime.fromtimestamp(s, UTC) for s in r.mix.starts_s]) + days / 2
    base = np.zeros(len(at))
    drawn = list(r.mix.models.items())
    rest = np.sum([n for _, n in drawn[_MOST:]], axis=0) if len(drawn) > _MOST else None
    stacks = [(short(m), np.array(n), palette[m]) for m, n in drawn[:_MOST]]
    if rest is not None:
        stacks.append((f"{len(drawn) - _MOST} others", np.asarray(rest), _GREY))
    stacks.append(("failed", np.array(r.mix.failed), "#d00000"))
    for name, n, colour in stacks:
        if n.any():
            above.bar(at, n, width=days * 0.92, bottom=base, color=colour, label=name)
            base = base + n
    for e in r.events:
        for axes in (above, below):
            axes.axvline(
                dates.date2num(datetime.fromtimestamp(e.at_s, UTC)), color="black", linewidth=1.1,
                linestyle="-" if e.kind == "promote" else ":",
            )  # fmt: skip
    above.set_ylabel(f"requests in {span(r.mix.bucket_s)}")
    above.yaxis.set_major_locator(MaxNLocator(integer=True))
    above.margins(y=0.12)
    figure.legend(loc="outside upper center", ncols=4, fontsize=8.5, frameon=False)
    below.bar(at, r.mix.spent_usd, width=days * 0.92, color="#555555")
    below.set_ylabel("USD")
    locator = dates.AutoDateLocator(maxticks=8)
    below.xaxis.set_major_locator(locator)
    below.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    below.set_xlabel("UTC")
    for axes in (above, below):
        _plain(axes, "y")
    return _png(figure)


def span(seconds: float) -> str:
    """A length of time in the largest unit that it is whole in."""
    for unit, size in (("week", 604800), ("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds % size == 0:
            n = int(seconds // size)
            return f"a {unit}" if n == 1 and unit != "hour" else f"{n} {unit}{'s' * (n > 1)}"
    return f"{seconds:g} s"


def _latency(r: Report, palette: dict[str, str]) -> bytes:
    from matplotlib.figure import Figure

    known = list(r.latency_s.items())[:12]
    figure = Figure(figsize=(9.0, 1.4 + 0.42 * len(known)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for row, (m, p) in enumerate(reversed(known)):
        axes.plot([p.p50, p.p99], [row, row], color=palette[m], linewidth=1.6, alpha=0.6)
        for value, mark in ((p.p50, "o"), (p.p90, "|"), (p.p95, "|"), (p.p99, ">")):
            axes.plot([value], [row], mark, color=palette[m], markersize=8 if mark == "|" else 6)
    values = [v for _, p in known for v in (p.p50, p.p99)]
    if min(values) > 0 and max(values) / min(values) > 20:
        axes.set_xscale("log")
    else:
        axes.set_xlim(0, max(values) * 1.06 or 1.0)
    axes.set_yticks(range(len(known)), [short(m) for m, _ in reversed(known)], fontsize=9)
    axes.set_ylim(-0.6, len(known) - 0.4)
    axes.set_xlabel("seconds to the whole answer: median (dot), 90 %, 95 % (ticks), 99 % (arrow)")
    _plain(axes, "x")
    return _png(figure)


def _plain(axes: Any, grid: str) -> None:
    axes.grid(True, axis=grid, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Any) -> bytes:
    out = BytesIO()
    # No version inside: the same report gives the same bytes.
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
