"""A chart of the single models in cost and quality, and their hull."""

from __future__ import annotations

from pathlib import Path

from suffice.lab.assess.results import Assessment


def draw(assessment: Assessment, path: Path) -> bool:
    """Write a PNG. Returns False, and writes no file, if there are too few costs or models."""
    if assessment.pool is None or assessment.cost_unit is None:
        return False
    points = [
        (m, x, x.cost) for m, x in assessment.models.items() if x.compared and x.cost is not None
    ]
    if len(points) < 2:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 5.0), layout="constrained")
    for name, x, cost in points:
        low, high = x.quality.ci or (x.quality.value, x.quality.value)
        inside = name in assessment.pool.recommended
        axes.errorbar(
            [cost], [x.quality.value],
            yerr=[[x.quality.value - low], [high - x.quality.value]],
            fmt="o", capsize=2, color="tab:green" if inside else "tab:gray",
        )  # fmt: skip
        if x.on_hull or inside or len(points) <= 12:
            axes.annotate(name, (cost, x.quality.value), fontsize=7,
                          xytext=(4, 4), textcoords="offset points")  # fmt: skip
    hull = sorted((assessment.models[m].cost or 0.0, assessment.models[m].quality.value)
                  for m in assessment.pool.hull)  # fmt: skip
    axes.plot([p[0] for p in hull], [p[1] for p in hull], "-", color="tab:blue", linewidth=1,
              label="hull of single models (random mixing)")  # fmt: skip
    costs = [cost for _, _, cost in points]
    if min(costs) > 0 and max(costs) > 8 * min(costs):
        axes.set_xscale("log")
    unit = "USD" if assessment.cost_unit == "usd" else "output tokens"
    axes.set_xlabel(f"mean {unit} per query ({assessment.cost_source})")
    axes.set_ylabel("mean score, 95 % interval")
    axes.set_title(
        f"{assessment.table}: {assessment.pool.n_compared:,} queries; recommended in green"
    )
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True
