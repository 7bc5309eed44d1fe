"""The single models in cost and quality, and their hull, as a picture."""

from __future__ import annotations

from pathlib import Path

from suffice.lab.assess.results import Assessment


def draw(found: Assessment, path: Path) -> bool:
    """Writes a PNG; False, and no file, where costs or models are too few to draw."""
    if found.pool is None or found.cost_unit is None:
        return False
    points = [(m, x, x.cost) for m, x in found.models.items() if x.compared and x.cost is not None]
    if len(points) < 2:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 5.0), layout="constrained")
    for name, x, cost in points:
        low, high = x.quality.ci or (x.quality.value, x.quality.value)
        inside = name in found.pool.recommended
        axes.errorbar(
            [cost], [x.quality.value],
            yerr=[[x.quality.value - low], [high - x.quality.value]],
            fmt="o", capsize=2, color="tab:green" if inside else "tab:gray",
        )  # fmt: skip
        if x.on_hull or inside or len(points) <= 12:
            axes.annotate(name, (cost, x.quality.value), fontsize=7,
                          xytext=(4, 4), textcoords="offset points")  # fmt: skip
    hull = sorted((found.models[m].cost or 0.0, found.models[m].quality.value)
                  for m in found.pool.hull)  # fmt: skip
    axes.plot([p[0] for p in hull], [p[1] for p in hull], "-", color="tab:blue", linewidth=1,
              label="hull of single models (random mixing)")  # fmt: skip
    costs = [cost for _, _, cost in points]
    if min(costs) > 0 and max(costs) > 8 * min(costs):
        axes.set_xscale("log")
    unit = "USD" if found.cost_unit == "usd" else "output tokens"
    axes.set_xlabel(f"mean {unit} a query ({found.cost_source})")
    axes.set_ylabel("mean score, 95 % interval")
    axes.set_title(f"{found.table}: {found.pool.n_compared:,} queries; recommended in green")
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True
