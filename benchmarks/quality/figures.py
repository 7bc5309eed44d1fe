"""The pictures of docs/benchmarks/quality.md, drawn from the results alone; each carries a digest of
what it was drawn from, so that a picture of older results is noticed without drawing it again."""

from __future__ import annotations

from hashlib import blake2b
from io import BytesIO
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from formatting import over_seeds
from targets import LABELLED, Results

from suffice.lab.evaluate import frontier

Drawing = dict[str, Any]
_COLOURS = {
    "trained": "#0b6e99", "knn": "#c1440e", "cluster": "#3a7d44", "ridge": "#7d3ac1",
    "default": "#444444", "random": "#9a9a9a",
}  # fmt: skip
_KEY = "Comment"  # the PNG's text chunk that holds the digest


def needs(results: Results) -> dict[str, Drawing]:
    """Picture -> all that it shows; only those whose results are there."""
    out: dict[str, Drawing] = {}
    result = results.get("routellm")
    if result is not None:
        panels = []
        for b in result["benchmarks"]:
            if "curves" not in b:
                continue
            lines: dict[str, list[list[float]]] = {}
            for c in b["curves"]:
                low, high = over_seeds(c["each"])
                lines.setdefault(c["policy"], []).append([c["n"], c["apgr"], low, high])
            zero = {z["policy"]: z["apgr"] for z in b["zero_labels"]}
            panels.append(
                {
                    "name": LABELLED[b["benchmark"]], "lines": lines, "zero": zero["default"],
                    "length": zero["length"],
                    "published": {k: v["apgr"] for k, v in b["published"].items()},
                    "targets": [
                        [x["n"], x["target"]] for x in result["targets"]
                        if x["benchmark"] == b["benchmark"] and not isinstance(x["n"], list)
                    ],
                }
            )  # fmt: skip
        out["label-curves.png"] = {"kind": "labels", "panels": panels}
    result = results.get("pool")
    if result is not None:
        panels = [
            {
                "name": c["name"], "models": c["models"], "zero": c["zero_router_hull"],
                "hulls": {p: v["hull_first_seed"] for p, v in c["policies"].items()
                          if p in ("trained", "knn", "default", "random")},
            }
            for c in result["cases"][:2]
        ]  # fmt: skip
        out["pareto.png"] = {"kind": "pareto", "panels": panels}
    return out


def digest(drawing: Drawing) -> str:
    return blake2b(msgspec.json.encode(drawing), digest_size=12).hexdigest()


def digest_of(png: bytes) -> str | None:
    """The digest that a picture carries."""
    at = png.find(_KEY.encode() + b"\0")
    if at < 0:
        return None
    start = at + len(_KEY) + 1
    return png[start : start + 24].decode("ascii", errors="replace")


def draw(drawing: Drawing) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    panels = drawing["panels"]
    figure = Figure(figsize=(5.2 * max(1, len(panels)), 4.3), dpi=100, layout="constrained")
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=False):
        (_labels if drawing["kind"] == "labels" else _pareto)(ax, panel)
        ax.set_title(panel["name"], fontsize=10)
        ax.grid(True, color="#e4e4e4", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    raw = BytesIO()
    figure.savefig(raw, format="png")
    return _small(raw, digest(drawing))


def _small(raw: BytesIO, digest_text: str) -> bytes:
    """The picture with a palette, which takes a third of the bytes; no date inside, so that the same
    figures give the same picture."""
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text(_KEY, digest_text)
    out = BytesIO()
    with Image.open(raw) as picture:
        picture.convert("RGB").quantize(160).save(out, format="png", optimize=True, pnginfo=info)
    return out.getvalue()


def _labels(ax: Any, panel: Drawing) -> None:
    for policy, rows in panel["lines"].items():
        n, mean, low, high = np.array(rows).T
        ours = policy == "trained"
        ax.fill_between(n, low, high, color=_COLOURS[policy], alpha=0.18, linewidth=0)
        ax.plot(
            n, mean, "o-", color=_COLOURS[policy], markersize=4 if ours else 3,
            linewidth=2.0 if ours else 1.1, label=policy, zorder=4 if ours else 3,
        )  # fmt: skip
    sizes = sorted({row[0] for rows in panel["lines"].values() for row in rows})
    left = sizes[0] / 2
    ax.plot([left], [panel["zero"]], "D", color=_COLOURS["trained"], markersize=5,
            label="default, no labels")  # fmt: skip
    ax.axhline(panel["length"], color="#444444", linestyle="--", linewidth=1.1, label="length")
    for name, apgr in panel["published"].items():
        style = ":" if "best" in name else "-."
        ax.axhline(apgr, color="#c2185b", linestyle=style, linewidth=1.2,
                   label=f"published: {name}")  # fmt: skip
    at = np.array([[left if n == 0 else n, limit] for n, limit in panel["targets"]])
    ax.plot(at[:, 0], at[:, 1], "_", color="black", markersize=12, label="target", zorder=5)
    ax.set_xscale("log")
    close = {b for a, b in pairwise(sizes) if b < 1.8 * a}  # would overprint
    names = ["" if s in close else f"{int(s):,}" for s in sizes]
    ax.set_xticks([left, *sizes], ["0", *names])
    ax.minorticks_off()
    low = min([panel["length"], *panel["published"].values()])
    ax.set_ylim(min(low, 0.47) - 0.01, None)
    ax.set_xlabel("labelled queries of the benchmark", fontsize=9)
    ax.set_ylabel("APGR (random 0.5)", fontsize=9)


def _pareto(ax: Any, panel: Drawing) -> None:

    points = {
        m.rsplit("/", 1)[-1]: (v["usd_per_query"], v["quality"]) for m, v in panel["models"].items()
    }
    costs = np.array([c for c, _ in points.values()])
    x = np.geomspace(costs.min(), costs.max(), 300)
    for policy, hull in panel["hulls"].items():
        h = np.array(hull)
        ax.plot(
            x, frontier.quality_on_hull(h, x.clip(h[0, 0])), color=_COLOURS[policy],
            linewidth=2.0 if policy == "trained" else 1.2,
            linestyle=":" if policy == "random" else "-", label=policy,
        )  # fmt: skip
    zero = np.array(panel["zero"])
    ax.plot(
        x,
        frontier.quality_on_hull(zero, x),
        "--",
        color="black",
        linewidth=1.2,
        label="zero router",
    )
    for i, (name, (cost, quality)) in enumerate(sorted(points.items(), key=lambda p: p[1])):
        ax.plot([cost], [quality], "o", color="black", markersize=4, zorder=5)
        right = cost < np.sqrt(costs.min() * costs.max()) * 3
        ax.annotate(
            name, (cost, quality), xytext=(6 if right else -2, -12 - 11 * (i % 2)),
            ha="left" if right else "right", textcoords="offset points", fontsize=7,
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
    # Close to where policies differ: the cheap end falls far below.
    top = max(q for _, q in points.values())
    low = min(q for _, q in points.values())
    ax.set_ylim(top - 0.35 * (top - low), top + 0.12 * (top - low))
    ax.set_xscale("log")
    ax.set_xlabel("mean cost, USD per query (log)", fontsize=9)
    ax.set_ylabel("mean quality", fontsize=9)
