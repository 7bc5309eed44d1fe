"""Budget pacing over whole days of bursty traffic: spend over budget, and the quality it buys.

    python benchmarks/quality/pacing.py --data DATA --out benchmarks/quality/results --seeds 20

DATA holds paretobandit_val (queries.parquet, outcomes.parquet). Each run is two days: the first
without any profile of the traffic, the second with the first day's. Requests are drawn from the
table with replacement; predicted quality and cost come from the trained head, cross-fitted over five
folds, so no query is predicted by a head that saw it; actual costs and scores are the table's.
Calls take seconds, so bursts have dozens in flight, each with its worst cost reserved.

Baselines: a naive hard stop (best predicted quality until the money is spent, then refusals), the
same with the cheapest model instead of refusals, and a gradient pacer (primal-dual, as in the
package paretobandit: step 0.05, average over 20 requests, penalty on log-normalised cost) that is
given the true number of requests. Compared with the offline optimum: one lambda for the whole day,
known in hindsight, on the same predictions.
"""

from __future__ import annotations

import heapq
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from runner import arguments, publish

from suffice.budgets.lagrange import solve
from suffice.budgets.pacer import Pacer

DAY_S = 86400.0
MODELS = (
    "meta-llama/llama-3.1-8b-instruct",
    "mistralai/mistral-large-2512",
    "google/gemini-2.5-flash",
    "google/gemini-2.5-pro",
)
# Budgets as points between the cheapest and the most expensive model's mean cost, on a log scale.
POINTS = (0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85)
REQUESTS = 3000  # of a mean day
FloatArray = NDArray[np.float64]


class Pool(NamedTuple):
    """(n, k) each: true score and cost, predicted quality and cost; worst: (k,) USD."""

    score: FloatArray
    cost: FloatArray
    quality_: FloatArray
    cost_: FloatArray
    worst: FloatArray


class Day(NamedTuple):
    """times_s: (n,) ascending within the day. at: (n,) rows of the pool. took_s: (n,)."""

    times_s: FloatArray
    at: NDArray[np.intp]
    took_s: FloatArray


class Outcome(NamedTuple):
    ratio: float  # spend over budget
    quality: float  # mean true score over all requests, a refusal scoring 0
    refused: float  # share of requests
    over: bool  # the ceiling was passed
    predicted: float  # mean predicted quality
    spendable: float = 1.0  # of the budget, what the best predicted model throughout would cost


def load(data: Path) -> Pool:
    """The table, cross-fitted: five folds, the trained head, no query predicted by its own label."""
    from suffice.lab.data.load import load_table
    from suffice.lab.predictors.base import extract_table
    from suffice.lab.predictors.registry import make_predictor

    table = load_table(data / "paretobandit_val").select_models(MODELS)
    table = table.take(table.complete)
    x = extract_table(table)
    assert table.cost_usd is not None
    quality_, cost_ = np.empty_like(table.score), np.empty_like(table.score)
    fold = np.random.default_rng(7).permutation(len(table)) % 5
    for f in range(5):
        fit, rest = fold != f, fold == f
        head = make_predictor("trained").fit(
            x.take(fit),
            table.score[fit],
            table.cost_usd[fit],
            np.nanmean(table.cost_usd, axis=0),
            table.models,
        )
        quality_[rest], cost_[rest] = head.predict(x.take(rest))
    worst = table.cost_usd.max(axis=0) * 1.05  # what a max_tokens would bound
    return Pool(table.score, table.cost_usd, quality_, cost_, worst)


def one_day(rng: np.random.Generator, n_pool: int, shape: tuple[float, float]) -> Day:
    """A day with a peak, a size that varies by a third, and four bursts of five to ten times the
    rate. shape: hour of the peak and its height, which stay the same over a run's days."""
    peak, height = shape
    minutes = np.arange(1440)
    rate = 1.0 + height * np.cos((minutes / 60.0 - peak) / 24.0 * 2 * np.pi)
    rate /= rate.sum()
    for _ in range(4):
        start, length = rng.integers(0, 1430), rng.integers(5, 16)
        rate[start : start + length] *= rng.uniform(5.0, 10.0)
    size = REQUESTS * float(np.exp(rng.normal(0.0, 0.3)))
    counts = rng.poisson(rate * size)
    times = np.repeat(minutes * 60.0, counts) + rng.random(int(counts.sum())) * 60.0
    times.sort()
    n = len(times)
    return Day(times, rng.integers(0, n_pool, n), rng.gamma(2.0, 4.0, n))


def ours(pool: Pool, days: list[Day], budget: float, seed: int) -> list[Outcome]:
    pacer = Pacer(budget)
    out, total = [], 0
    for number, day in enumerate(days):
        base = number * DAY_S
        flying: list[tuple[float, str, float]] = []
        score = spent = predicted = 0.0
        refused = 0
        over = False
        for i, t in enumerate(day.times_s.tolist()):
            row = day.at[i]
            while flying and flying[0][0] <= base + t:
                _, call, cost = heapq.heappop(flying)
                pacer.settle(call, cost)
            total += 1
            paced = pacer.decide(
                base + t, MODELS, pool.quality_[row], pool.cost_[row], pool.worst,
                seed=seed * 1_000_003 + total,
            )  # fmt: skip
            j = paced.action
            call = str(total)
            held = None if j is None else pacer.reserve(
                call, MODELS[j], float(pool.cost_[row, j]), float(pool.worst[j]), base + t
            )  # fmt: skip
            if j is None or held is None:
                refused += 1
                continue
            cost = float(pool.cost[row, j])
            spent += cost
            score += float(pool.score[row, j])
            predicted += float(pool.quality_[row, j])
            heapq.heappush(flying, (base + t + day.took_s[i], call, cost))
            totals = pacer.totals()
            over |= totals.spent_usd + totals.reserved_usd > totals.ceiling_usd
        while flying:
            _, call, cost = heapq.heappop(flying)
            pacer.settle(call, cost)
        n = len(day.at)
        over |= spent > budget
        best = pool.cost[day.at, np.argmax(pool.quality_[day.at], axis=1)].sum() / budget
        out.append(
            Outcome(spent / budget, score / n, refused / n, over, predicted / n, min(1.0, best))
        )
    return out


def hard_stop(pool: Pool, day: Day, budget: float, fall_back: bool) -> Outcome:
    """Best predicted quality until what it costs no longer fits; then nothing, or the cheapest."""
    spent = score = predicted = 0.0
    refused = 0
    cheap = int(np.argmin(pool.cost.mean(axis=0)))
    for row in day.at:
        j = int(np.argmax(pool.quality_[row]))
        if spent + pool.cost[row, j] > budget:
            j = cheap
            if not fall_back or spent + pool.cost[row, j] > budget:
                refused += 1
                continue
        spent += float(pool.cost[row, j])
        score += float(pool.score[row, j])
        predicted += float(pool.quality_[row, j])
    n = len(day.at)
    return Outcome(spent / budget, score / n, refused / n, spent > budget, predicted / n)


def gradient(pool: Pool, day: Day, budget: float) -> Outcome:
    """Projected dual ascent, given how many requests the day has."""
    target = budget / len(day.at)
    mean = pool.cost.mean(axis=0)
    log = np.log(mean / mean.min()) / np.log(mean.max() / mean.min())
    lam, average = 0.0, target
    spent = score = predicted = 0.0
    for row in day.at:
        j = int(np.argmax(pool.quality_[row] - lam * log))
        cost = float(pool.cost[row, j])
        spent += cost
        score += float(pool.score[row, j])
        predicted += float(pool.quality_[row, j])
        average += 0.05 * (cost - average)
        lam = min(5.0, max(0.0, lam + 0.05 * (average / target - 1.0)))
    n = len(day.at)
    return Outcome(spent / budget, score / n, 0.0, spent > budget, predicted / n)


def optimum(pool: Pool, day: Day, budget: float, rng: np.random.Generator) -> Outcome:
    """One lambda for the day, its traffic known, on the predictions all others have; costs at what
    they were on average for what was predicted."""
    q = pool.quality_[day.at]
    bias = (pool.cost.sum(axis=0) / pool.cost_.sum(axis=0))[None]
    c = pool.cost_[day.at] * bias
    low, high, mix, _ = solve(q, c, budget / len(day.at))
    lam = np.where(rng.random(len(q)) < mix, low, high)[:, None]
    lam = np.minimum(lam, 1e12)
    j = np.argmax(q - lam * c, axis=1)
    at = np.arange(len(q))
    spent = float(pool.cost[day.at][at, j].sum())
    return Outcome(
        spent / budget,
        float(pool.score[day.at][at, j].mean()),
        0.0,
        spent > budget,
        float(q[at, j].mean()),
    )


def one_run(pool: Pool, point: float, seed: int) -> dict[str, list[Outcome]]:
    rng = np.random.default_rng([seed, int(point * 1000)])
    mean = pool.cost.mean(axis=0)
    each = float(np.exp(np.log(mean.min()) * (1 - point) + np.log(mean.max()) * point))
    budget = each * REQUESTS
    shape = (float(rng.uniform(8, 20)), float(rng.uniform(0.3, 0.8)))
    days = [one_day(rng, len(pool.score), shape) for _ in range(2)]
    return {
        "pacer": ours(pool, days, budget, seed),
        "hard stop": [hard_stop(pool, d, budget, False) for d in days],
        "hard stop, then cheapest": [hard_stop(pool, d, budget, True) for d in days],
        "gradient": [gradient(pool, d, budget) for d in days],
        "offline optimum": [optimum(pool, d, budget, rng) for d in days],
    }


def summary(runs: list[dict[str, list[Outcome]]], day: int) -> dict[str, dict[str, float]]:
    out = {}
    best = np.array([r["offline optimum"][day].quality for r in runs])
    for name in runs[0]:
        ratio = np.array([r[name][day].ratio for r in runs])
        quality = np.array([r[name][day].quality for r in runs])
        lost = best - quality
        out[name] = {
            "runs": len(runs),
            "ratio_mean": float(ratio.mean()),
            "ratio_min": float(ratio.min()),
            "ratio_p05": float(np.quantile(ratio, 0.05)),
            "ratio_p95": float(np.quantile(ratio, 0.95)),
            "ratio_max": float(ratio.max()),
            "within_2_percent": float((np.abs(ratio - 1.0) <= 0.02).mean()),
            # A budget above what the best model throughout costs cannot be spent: no miss, but said.
            "cannot_be_spent": int(np.sum([r["pacer"][day].spendable < 0.98 for r in runs])),
            "ceiling_passed": float(np.mean([r[name][day].over for r in runs])),
            "refused_mean": float(np.mean([r[name][day].refused for r in runs])),
            "refused_max": float(np.max([r[name][day].refused for r in runs])),
            "quality_mean": float(quality.mean()),
            "below_optimum_mean": float(lost.mean()),
            "below_optimum_se": float(lost.std(ddof=1) / np.sqrt(len(lost))),
            "below_optimum_max": float(lost.max()),
        }
    return out


def plot(runs: list[tuple[float, dict[str, list[Outcome]]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = ("pacer", "gradient", "hard stop")
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for n, name in enumerate(names):
        x = [p + 0.02 * (n - 1) for p, _ in runs]
        axes[0].plot(x, [r[name][1].ratio for _, r in runs], ".", ms=4, alpha=0.6, label=name)
        axes[1].plot(
            x,
            [r[name][1].quality - r["offline optimum"][1].quality for _, r in runs],
            ".", ms=4, alpha=0.6, label=name,
        )  # fmt: skip
    axes[0].axhspan(0.98, 1.0, color="0.85", zorder=0)
    axes[0].set(
        xlabel="budget (0 cheapest, 1 most expensive model, log scale)", ylabel="spend / budget"
    )
    axes[1].set(xlabel="budget", ylabel="quality less the offline optimum's")
    axes[1].axhline(0.0, color="0.6", lw=0.8)
    axes[0].set_title("second day: spend")
    axes[1].set_title("second day: quality")
    axes[0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args()
    pool = load(args.data)
    began = time.perf_counter()
    runs = [
        (p, one_run(pool, p, s))
        for p in POINTS
        for s in range(args.first_seed, args.first_seed + args.seeds)
    ]
    plain = [r for _, r in runs]
    result = {
        "seeds": [args.first_seed, args.first_seed + args.seeds - 1],
        "seconds": round(time.perf_counter() - began),
        "requests_a_mean_day": REQUESTS,
        "budgets_log_points": POINTS,
        "models": MODELS,
        "day_1_no_profile": summary(plain, 0),
        "day_2_with_profile": summary(plain, 1),
        "day_2_pacer_by_budget": {
            str(p): summary([r for q, r in runs if q == p], 1)["pacer"] for p in POINTS
        },
    }
    publish(args.out, "pacing", __doc__, result)
    plot(runs, args.out / "pacing.png")
    for day in ("day_1_no_profile", "day_2_with_profile"):
        for name, row in result[day].items():
            print(
                f"{day:20} {name:26} ratio {row['ratio_mean']:.4f} [{row['ratio_min']:.4f}, "
                f"{row['ratio_max']:.4f}] within 2 % {row['within_2_percent']:.3f} passed "
                f"{row['ceiling_passed']:.3f} refused {row['refused_mean']:.4f} quality "
                f"{row['quality_mean']:.4f}, below optimum {row['below_optimum_mean']:.4f}"
            )


if __name__ == "__main__":
    main()
