"""The feedback loop through the real gateway: requests, feedback, learning, replay, shadow.

    python benchmarks/quality/end_to_end/run.py --out DIR [--requests 2000] [--seeds 5] [--jobs 1] [--quick]

A gateway in a child process, three simulated models that are good at different topics (simulation.py),
the official openai client, and feedback: some late, 30 % never, from users, tests and
judges, some corrected afterwards. Loopback only. For every seed, on the same stream:

  off       learning = off: the zero-label policy on what the operator entered for the models
  on        learning = on from the first request, 8 requests under way
  shadow    learning = shadow, one request at a time as `off` is, so that orders are the same
  served    the last snapshot of `on` as the route's policy, on 500 further queries

The right model of a query is the one whose chance of a good answer on its topic, at WORTH_USD a good
answer, less its cost is best; `value` is that difference in units of a good answer, by the chances
and not by luck. Two kinds of operators: one who enters vendors' claims (each model as good as where
it is best), one who knows each model's mean roughly. Replay is `suffice replay`, as a user types it:
of the policy that served `off` and `served` on their own logs, and of the last snapshot on the log
of `on`, which others made, against what it then earned in `served`.

Overhead is the gateway's own (x-suffice-overhead-ms), `off` and `on` both with 8 requests under way,
and within a second from when a refit began. Ranges are over seeds, least to most.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
from runner import arguments, publish, write_json
from simulation import MODELS, WORTH_USD, Request, requests, usd, values, world
from traffic import Sent, config, drive, recorded, replay, snapshots, upstream

BLOCK = 100
AT_ONCE = 8
PER_S = 50.0
SERVED = 500
OPERATORS = {"claims": "vendors' claims", "means": "their means, roughly"}
FloatArray = NDArray[np.float64]


def blocks(x: NDArray[Any], size: int) -> list[float]:
    """Means of successive `size` elements."""
    n = len(x) // size * size
    return [round(float(v), 4) for v in x[:n].reshape(-1, size).mean(axis=1)]


def measured(sent: Sent, value: FloatArray, right: NDArray[np.intp], size: int) -> dict[str, Any]:
    n = np.arange(len(right))
    return {
        "right": blocks(sent.model == right, size),
        "score": blocks(sent.good, size),
        "usd_per_1000": blocks(sent.usd * 1000, size),
        "value": blocks(value[n, sent.model], size),
        "value_mean": float(value[n, sent.model].mean()),
        "usd": float(sent.usd.sum()),
        "share": {m: float((sent.model == j).mean()) for j, m in enumerate(MODELS)},
    }


def oracle(stream: list[Request], value: FloatArray, right: NDArray[np.intp], good: Any) -> Any:
    """Who knows every chance, and the best single model by them."""
    n = np.arange(len(right))
    single = int(value.mean(axis=0).argmax())
    return {
        "value_mean": float(value[n, right].mean()),
        "score": float(np.mean([good(r, j) for r, j in zip(stream, right.tolist(), strict=True)])),
        "usd": float(sum(usd(r, j) for r, j in zip(stream, right.tolist(), strict=True))),
        "best_single": {"model": MODELS[single], "value_mean": float(value[:, single].mean())},
    }


def overhead(sent: Sent, refits_s: list[float]) -> dict[str, Any]:
    """p50 and p99 of all, and of those within a second from the beginning of a refit."""
    near = np.zeros(len(sent.at_s), bool)
    for at in refits_s:
        near |= (sent.at_s >= at) & (sent.at_s < at + 1.0)
    return {
        "all": _percentiles(sent.overhead_ms),
        "near_a_refit": _percentiles(sent.overhead_ms[near]),
    }


def _percentiles(x: FloatArray) -> dict[str, float | None]:
    if len(x) == 0:
        return {"n": 0, "p50_ms": None, "p99_ms": None}
    p50, p99 = np.percentile(x, [50, 99])
    return {"n": len(x), "p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


def agreed(found: dict[str, Any]) -> dict[str, Any]:
    """A replay's doubly robust estimate and what happened in the same log."""
    e, happened = found["estimates"]["doubly_robust"], found["happened"]["score"]
    held = None if e["low"] is None else e["low"] <= happened <= e["high"]
    return {
        "decisions": found["decisions"], "labelled": found["labelled"],
        "agreement": found["agreement"], "happened": happened, "estimate": e["value"],
        "low": e["low"], "high": e["high"], "within": held, "verdict": found["verdict"]["word"],
        "cost_paid": found["cost"]["paid"], "cost_estimate": found["cost"]["value"],
        "cost_within": found["cost"]["low"] <= found["cost"]["paid"] <= found["cost"]["high"],
    }  # fmt: skip


def one_seed(seed: int, n: int, operator: str, folder: Path, full: bool) -> dict[str, Any]:
    """All runs of a seed. full: with shadow, served and replays, which `off` and `on` need not."""
    size = min(BLOCK, max(10, n // 10))
    w, stream = world(seed, operator), requests(seed, n + SERVED)
    value, right = values(w, stream)
    stream, later = stream[:n], stream[n : n + min(SERVED, n)]
    out: dict[str, Any] = {
        "seed": seed,
        "told": operator,
        "guess": dict(zip(MODELS, w.guess, strict=True)),
    }
    with upstream() as fake:
        off_at = config(folder, w, fake.base_url, "off")
        off = drive(off_at, w, stream, at_once=1, per_s=PER_S)
        on_at = config(folder, w, fake.base_url, "on")
        on = drive(on_at, w, stream, at_once=AT_ONCE, per_s=PER_S)
        out["off"] = measured(off, value[:n], right[:n], size)
        out["on"] = measured(on, value[:n], right[:n], size)
        out["oracle"] = oracle(stream, value[:n], right[:n], w.good)
        made = snapshots(on_at)
        log = recorded(on_at, on.ids)
        out["on"]["refits"] = [s["card"]["figures"]["through_seq"] for s in made]
        out["on"]["explored"] = sum(bool(r["explored"]) for r in log)
        out["on"]["labelled"] = sum(bool(r.sources) for r in stream)
        if not full:
            return out
        repeat = config(folder, w, fake.base_url, "off", name="repeat")
        again = drive(repeat, w, stream, at_once=AT_ONCE, per_s=PER_S)
        refits_s = [s["created_s"] for s in made]
        out["overhead_ms"] = {"off": overhead(again, []), "on": overhead(on, refits_s)}

        shadow_at = config(folder, w, fake.base_url, "shadow")
        shadow = drive(shadow_at, w, stream, at_once=1, per_s=PER_S)
        out["shadow"] = compared(
            recorded(off_at, off.ids), recorded(shadow_at, shadow.ids), right, size
        )

        last = folder / "last.npz"
        last.write_bytes(made[-1]["content"])
        # Shadow, so that the store keeps what a trained policy is asked with.
        served_at = config(folder, w, fake.base_url, "shadow", policy=str(last), name="served")
        served = drive(served_at, w, later, at_once=1, per_s=PER_S)
        out["served"] = measured(served, value[n : n + len(later)], right[n : n + len(later)], size)
    foreign = replay(on_at, str(last))
    e, truth = foreign["estimates"]["doubly_robust"], float(served.good.mean())
    out["replay"] = {
        "off": agreed(replay(off_at, "default")),
        "served": agreed(replay(served_at, str(last))),
        "last_snapshot_on_the_log_of_on": {
            "verdict": foreign["verdict"]["word"], "why": foreign["verdict"]["why"],
            "support": foreign["support"], "ess": foreign["ess"],
            "estimate": e["value"], "low": e["low"], "high": e["high"], "earned_when_served": truth,
            "within": None if e["low"] is None else e["low"] <= truth <= e["high"],
        },
    }  # fmt: skip
    return out


def one_run(seed: int, n: int, operator: str, keep: Path | None) -> dict[str, Any]:
    """A seed's runs, or what is kept of them."""
    kept = None if keep is None else keep / f"{operator}-{seed}-{n}.json"
    if kept is not None and kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="suffice-loop-") as folder:
        run = one_seed(seed, n, operator, Path(folder), full=operator == "claims")
    run |= {"seconds": round(time.time() - began, 1), "load_average": os.getloadavg()[0]}
    if kept is not None:
        write_json(kept, run)
    return run


def compared(
    off: list[dict[str, Any]], shadow: list[dict[str, Any]], right: NDArray[np.intp], size: int
) -> dict[str, Any]:
    """Request by request: is all of the decision the same, and what would the shadow have done?"""
    parts = ("chosen", "plan", "predictions", "reason", "propensity", "policy_version", "snapshot")
    differ = sum(any(a[p] != b[p] for p in parts) for a, b in zip(off, shadow, strict=True))
    decisions = [b["shadow"] for b in shadow]
    would = np.array([MODELS.index(t["model"]) if t else -1 for t in decisions])
    return {
        "decisions": len(off),
        "differ": differ,
        "logged": sum(t is not None for t in decisions),
        # Before the first refit there is nothing to log: what served counts.
        "would_be_right": blocks(
            np.where(would >= 0, would, [MODELS.index(a["chosen"]) for a in off])
            == right[: len(off)],
            size,
        ),
    }


# ── over seeds ───────────────────────────────────────────────────────────────────────────────────


def spread(x: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(x)), "low": float(np.min(x)), "high": float(np.max(x))}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and range over the seeds of one kind of operator; `after`: the blocks behind the first
    1,000 labelled queries (or the last third, where there are fewer)."""
    curves = {
        kind: {
            k: np.array([r[kind][k] for r in runs])
            for k in ("right", "value", "score", "usd_per_1000")
        }
        for kind in ("off", "on")
    }
    n = curves["on"]["right"].shape[1]
    share = np.mean([r["on"]["labelled"] / sum(r["on"]["share"].values()) for r in runs]) / n
    first = min(int(np.ceil(1000 / share)), 2 * n // 3) if share else 2 * n // 3
    out: dict[str, Any] = {"seeds": len(runs), "blocks": n, "after_block": first}
    for kind, c in curves.items():
        out[kind] = {
            k: {
                "first_block": spread(v[:, 0].tolist()),
                "after": spread(v[:, first:].mean(axis=1).tolist()),
                "by_block": [round(float(x), 4) for x in v.mean(axis=0)],
            }
            for k, v in c.items()
        }
        out[kind]["usd"] = spread([r[kind]["usd"] for r in runs])
    out["oracle"] = {
        "value": spread([r["oracle"]["value_mean"] for r in runs]),
        "score": spread([r["oracle"]["score"] for r in runs]),
        "usd": spread([r["oracle"]["usd"] for r in runs]),
        "best_single_value": spread([r["oracle"]["best_single"]["value_mean"] for r in runs]),
    }
    out["explored"] = spread([r["on"]["explored"] for r in runs])
    out["refits"] = spread([len(r["on"]["refits"]) for r in runs])
    return out


def proof(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Shadow, replay and overhead over the full seeds."""
    full = [r for r in runs if "shadow" in r]
    third = max(1, len(full[0]["shadow"]["would_be_right"]) // 3)
    replays = {
        name: {
            "within": sum(bool(r["replay"][name]["within"]) for r in full),
            "of": len(full),
            "largest_gap": max(
                abs(r["replay"][name]["estimate"] - r["replay"][name]["happened"]) for r in full
            ),
        }
        for name in ("off", "served")
    }
    other = [r["replay"]["last_snapshot_on_the_log_of_on"] for r in full]
    words = [x["verdict"] for x in other]
    return {
        "shadow": {
            "decisions": sum(r["shadow"]["decisions"] for r in full),
            "differ": sum(r["shadow"]["differ"] for r in full),
            "would_be_right_first_third": spread(
                [float(np.mean(r["shadow"]["would_be_right"][:third])) for r in full]
            ),
            "would_be_right_last_third": spread(
                [float(np.mean(r["shadow"]["would_be_right"][-third:])) for r in full]
            ),
        },
        "replay": replays,
        "last_snapshot_on_the_log_of_on": {
            "verdicts": {w: words.count(w) for w in sorted(set(words))},
            "interval_holds_what_it_earned": sum(bool(x["within"]) for x in other),
            "of": len(other),
        },
        "overhead_ms": {
            f"{kind}, {where}": {
                p: spread([r["overhead_ms"][kind][where][p] for r in full])
                for p in ("p50_ms", "p99_ms")
            }
            for kind, where in (("off", "all"), ("on", "all"), ("on", "near_a_refit"))
            if all(r["overhead_ms"][kind][where]["n"] for r in full)
        },
    }


def show(results: dict[str, Any]) -> None:
    def cell(x: dict[str, float], digits: int = 3) -> str:
        return f"{x['mean']:.{digits}f} [{x['low']:.{digits}f}, {x['high']:.{digits}f}]"

    for kind, s in results["operators"].items():
        print(f"\n{kind}: {s['seeds']} seeds, mean [least, most]")
        print(
            f"{'':10} {'right, first block':>24} {'right, after':>24} {'value, after':>24} {'USD':>24}"
        )
        for run in ("off", "on"):
            x = s[run]
            print(
                f"{run:10} {cell(x['right']['first_block']):>24} {cell(x['right']['after']):>24} "
                f"{cell(x['value']['after']):>24} {cell(x['usd']):>24}"
            )
        o = s["oracle"]
        print(f"{'oracle':10} {'1':>24} {'1':>24} {cell(o['value']):>24} {cell(o['usd']):>24}")
        print(
            f"best single model: value {cell(o['best_single_value'])}; explored {cell(s['explored'], 1)}"
        )
    p = results["proof"]
    s = p["shadow"]
    would = cell(s["would_be_right_first_third"]), cell(s["would_be_right_last_third"])
    print(f"\nshadow: {s['differ']} of {s['decisions']} decisions differ from off")
    print(f"the shadow would be right: {would[0]} in the first third, {would[1]} in the last")
    for name, x in p["replay"].items():
        print(
            f"replay of {name}: {x['within']} of {x['of']} within, largest gap {x['largest_gap']:.2g}"
        )
    print(f"last snapshot on the log of on: {p['last_snapshot_on_the_log_of_on']}")
    for name, x in p["overhead_ms"].items():
        print(f"overhead, {name}: p50 {cell(x['p50_ms'])} ms, p99 {cell(x['p99_ms'], 1)} ms")


def plot(results: dict[str, Any], runs: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for ax, (kind, words) in zip(axes, OPERATORS.items(), strict=True):
        s = results["operators"][kind]
        x = (np.arange(s["blocks"]) + 0.5) * results["block"]
        for run, colour in (("off", "0.5"), ("on", "C0")):
            every = np.array([r[run]["right"] for r in runs if r["told"] == kind])
            ax.plot(x, every.mean(axis=0), color=colour, label=f"learning = {run}")
            ax.fill_between(x, every.min(axis=0), every.max(axis=0), color=colour, alpha=0.2, lw=0)
        if kind == "claims":
            would = np.array([r["shadow"]["would_be_right"] for r in runs if "shadow" in r])
            ax.plot(x, would.mean(axis=0), color="C1", ls="--", label="what the shadow would do")
        ax.set(title=f"the operator entered {words}", xlabel="requests", ylim=(0, 1))
    axes[0].set_ylabel("share sent to the right model")
    axes[0].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = arguments(__doc__, data=False)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--keep", type=Path, help="where finished runs are kept, not to run again")
    parser.add_argument("--quick", action="store_true", help="one seed, 300 requests")
    args = parser.parse_args()
    n, seeds = (300, 1) if args.quick else (args.requests, args.seeds)
    for folder in (args.out, args.keep):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    runs = []
    # A process each: the runs mostly wait for their pace.
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        under_way = [
            pool.submit(one_run, seed, n, operator, args.keep)
            for operator in OPERATORS
            for seed in range(seeds)
        ]
        for done in under_way:
            run = done.result()
            runs.append(run)
            print(
                f"{run['told']}, seed {run['seed']}: {run['on']['right']}",
                file=sys.stderr,
                flush=True,
            )
    found = {
        "seconds": round(sum(r["seconds"] for r in runs), 1),
        # Of the machine while it ran, for the overheads.
        "load_average": spread([r["load_average"] for r in runs]),
        "seeds": list(range(seeds)),
        "jobs": args.jobs,
        "requests": n,
        "block": min(BLOCK, max(10, n // 10)),
        "worth_usd": WORTH_USD,
        "operators": {k: summary([r for r in runs if r["told"] == k]) for k in OPERATORS},
        "proof": proof(runs),
        "runs": runs,
    }
    show(found)
    publish(args.out, "end_to_end", __doc__, found)
    plot(found, runs, args.out / "end_to_end.png")


if __name__ == "__main__":
    main()
