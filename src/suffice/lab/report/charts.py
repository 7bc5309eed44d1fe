"""Figures of an evaluation as PNG, drawn from its JSON object alone."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np

from suffice.lab.data.table import FloatArray
from suffice.lab.evaluate import frontier

_COLOURS = ("#0b6e99", "#c1440e", "#3a7d44", "#7d3ac1", "#b8860b", "#c2185b", "#00796b", "#5d4037")
_PLAIN = {"random": "#9a9a9a", "length": "#444444", "oracle": "#c9a227"}
_NOT_DRAWN = ("cheapest", "best", "zero_router")  # dots and the dashed hull show them


def figures(result: Mapping[str, Any]) -> dict[str, bytes]:
    """{"curves.png": .., "closeup.png": .., "gains.png": ..}. Raises UsageError without
    matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        from suffice.errors import UsageError

        raise UsageError(
            "--out: drawing curves needs matplotlib.", remedy="pip install 'suffice[lab]'"
        ) from None
    matplotlib.use("Agg")
    return {
        "curves.png": _curves(result, oracle=True),
        "closeup.png": _curves(result, oracle=False),
        "gains.png": _gains(result),
    }


def colours(result: Mapping[str, Any]) -> dict[str, str]:
    """A colour for each policy, the same in every figure."""
    free = iter(_COLOURS * (1 + len(result["policies"]) // len(_COLOURS)))
    return {
        n: _PLAIN[n] if n in _PLAIN else next(free)
        for n in result["policies"]
        if n not in _NOT_DRAWN
    }


def singles(result: Mapping[str, Any]) -> FloatArray:
    """(k, 2) cost and quality of the models."""
    return np.array([[m["cost"], m["quality"]] for m in result["models"].values()])


def short(name: str, most: int = 28) -> str:
    """A model's or policy's name as a label."""
    tail = name.rsplit("/", 1)[-1]
    return tail if len(tail) <= most else tail[: most - 1] + "…"


def _curves(result: Mapping[str, Any], oracle: bool) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 5.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    points = singles(result)
    shares = result["cost_unit"] == "strong_share"
    paid = points[:, 0][points[:, 0] > 0]
    log = not shares and len(paid) == len(points) and paid.max() / paid.min() > 20
    low, high = float(points[:, 0].min()), float(points[:, 0].max())
    zero = frontier.zero_router_hull(points)
    dense = np.geomspace(low, high, 200) if log else np.linspace(low, high, 200)
    for name, colour in colours(result).items():
        if name == "oracle" and not oracle:
            continue
        curve = np.array(result["policies"][name]["curve"])
        hull = frontier.policy_hull(curve, points)
        axes.plot(curve[:, 0], curve[:, 1], ".", color=colour, markersize=2.5, alpha=0.35)
        style = ":" if name == "oracle" else "-"
        axes.plot(
            dense, frontier.quality_on_hull(hull, dense.clip(hull[0, 0])), style, color=colour,
            linewidth=1.7, label=short(name),
        )  # fmt: skip
    axes.plot(
        dense, frontier.quality_on_hull(zero, dense), "--", color="black", linewidth=1.3,
        label="zero router (mix of single models)",
    )  # fmt: skip
    axes.plot(points[:, 0], points[:, 1], "o", color="black", markersize=4.5, zorder=5)
    _names(axes, result, points, zero, log)
    axes.set_ylabel("mean quality (score)")
    axes.set_xlabel(
        "share of queries sent to the strong model" if shares else "mean cost, USD per query"
    )
    if log:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.4, high * 1.6)
    else:
        axes.set_xlim(low - 0.03 * (high - low), high + 0.06 * (high - low))
    if not oracle:
        _close_up(axes, result, points, dense)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"{result['table']}: {result['n_queries']:,} queries, {len(points)} models"
        + ("" if oracle else ", without the oracle"),
        loc="left", fontsize=11,
    )  # fmt: skip
    axes.legend(loc="lower right", fontsize=8, framealpha=0.9)
    return _png(figure)


def _names(axes: Any, result: Mapping[str, Any], points: Any, zero: Any, log: bool) -> None:
    """Labels the models: all where there are few, else those on the hull."""
    on_hull = {tuple(p) for p in zero.tolist()}
    few = len(points) <= 8
    span = np.log(points[:, 0]) if log else points[:, 0]
    where = (span - span.min()) / max(float(np.ptp(span)), 1e-300)
    names = list(result["models"])
    last, depth = -1.0, 0
    for j in np.argsort(where, kind="stable").tolist():
        if not few and tuple(points[j].tolist()) not in on_hull:
            continue
        # Neighbours that would overprint each other step down.
        depth = depth + 1 if where[j] - last < 0.18 else 0
        last = float(where[j])
        right = where[j] < 0.75
        axes.annotate(
            short(names[j]), points[j], xytext=(7 if right else -7, -12 - 12 * (depth % 4)),
            ha="left" if right else "right", textcoords="offset points", fontsize=7.5, zorder=6,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip


def _close_up(axes: Any, result: Mapping[str, Any], points: Any, dense: Any) -> None:
    """Looks at where the policies are: from the lowest hull's middle to the highest."""
    values = []
    for name in colours(result):
        if name != "oracle":
            hull = frontier.policy_hull(np.array(result["policies"][name]["curve"]), points)
            values.append(frontier.quality_on_hull(hull, dense.clip(hull[0, 0])))
    values.append(frontier.quality_on_hull(frontier.zero_router_hull(points), dense))
    v = np.stack(values)
    bottom, top = float(np.quantile(v, 0.02)), float(v.max())
    room = max(1e-3, 0.08 * (top - bottom))
    axes.set_ylim(bottom - 3 * room, top + room)


def _gains(result: Mapping[str, Any]) -> bytes:
    from matplotlib.figure import Figure

    palette = colours(result)
    names = [n for n in palette if n != "oracle"]
    figure = Figure(figsize=(9.0, 1.2 + 0.42 * len(names)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(reversed(names)):
        p = result["policies"][name]
        gain, interval = p["gain_over_zero_router"], p["gain_ci"]
        if interval is not None:
            axes.plot(interval, [row, row], color=palette[name], linewidth=2.2)
        axes.plot([gain], [row], "o", color=palette[name], markersize=6)
    axes.axvline(0.0, color="black", linestyle="--", linewidth=1.1)
    random = result["policies"]["random"]["gain_over_zero_router"]
    axes.axvline(random, color=_PLAIN["random"], linestyle=":", linewidth=1.1)
    axes.set_yticks(range(len(names)), [short(n) for n in reversed(names)])
    axes.set_xlabel(
        "gain over the zero router in mean quality, 95 % interval (dotted: what a coin gains)"
    )
    axes.grid(True, axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)
    return _png(figure)


def _png(figure: Any) -> bytes:
    out = BytesIO()
    # No date inside: the same figures give the same bytes.
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
