"""The drift watch: false alarms while nothing changes, and how soon a loss of five points is seen.

    python benchmarks/quality/drift_detection.py --data DATA --out benchmarks/quality/results --streams 500
    python benchmarks/quality/drift_detection.py --synthetic --out DIR --streams 100

A stream is a trickle of labelled decisions: the loss of each against the reference, 0 where the
reference itself served. Made-up streams have right/wrong losses of a stated mean, among them a mean
of exactly what is certified, the worst that is no change. Streams of paretobandit_val (graded) and
mmlu_pro (right/wrong) draw queries with replacement from those that did not fit the trained head;
the threshold is set in hindsight to the largest whose loss on them is at most 4.5 % where 5 % is
certified, since it is the watch that is tested here and not the certificate. The drop: after 0 or
1,000 labels answers of the cheap model become worth nothing, as many as make its loss over all
traffic 5 points larger. Where the cheap model's share of traffic is c, only about c of the labels
are of its answers and cost money: `paid`.

The watch may raise a false alarm with probability 0.05 over its whole life. No drift: 5,000 labels.
Delays are labels from the drop to the alarm; a stream that alarmed before the drop is a false alarm.
Beside it a repeated test, as is commonly done: every 100 labels, whether the last 500 lost more
than is certified (binomial test at 5 % each time; graded losses rounded up to whole ones in sum).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from runner import arguments, publish

from suffice.lab.data.load import load_table
from suffice.lab.predictors.base import extract_table
from suffice.lab.predictors.linear import LinearHead
from suffice.lab.stats import binomial_cdf, clopper_pearson
from suffice.monitoring import sequential_test

ALPHA = 0.05
QUIET = 5000  # labels without drift
PATIENCE = 5000  # labels after the drop
DROP = 0.05
CERTIFIED = 0.05
TRUE_LOSS = 0.045  # of the streams from tables
BEFORE = (0, 1000)
FloatArray = NDArray[np.float64]


class Source(NamedTuple):
    """Losses to draw from, now and after the drop, (n,) each; share: of decisions that go cheap."""

    name: str
    max_loss: float
    now: FloatArray
    dropped: FloatArray
    share: float


def made_up(max_loss: float, mean: float) -> Source:
    n = 100_000

    def losses(p: float) -> FloatArray:
        return (np.arange(n) < round(p * n)).astype(float)

    return Source(
        f"made up, {max_loss:g} certified, true loss {mean:g}", max_loss, losses(mean),
        losses(mean + DROP), 0.0,
    )  # fmt: skip


def from_table(folder: Path, models: tuple[str, str], fit: int, seed: int = 0) -> Source:
    """The rows of a table that did not fit a head, routed by it at a loss of about 4.5 %."""
    table = load_table(folder).select_models(models)
    table = table.take(table.complete)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(table))
    x = extract_table(table)
    head = LinearHead().fit(
        x.take(order[:fit]), table.score[order[:fit]], None, np.array([2.0, 1.0]), models
    )
    rest = order[fit:]
    gap = head.strong_score(x.take(rest), 0, 1)
    score = table.score[rest]
    loss = np.maximum(0.0, score[:, 0] - score[:, 1])
    by_gap = np.argsort(gap, kind="stable")
    goes = int((loss[by_gap].cumsum() / len(rest) <= TRUE_LOSS).sum())
    cheap = np.zeros(len(rest), bool)
    cheap[by_gap[:goes]] = True
    now = np.where(cheap, loss, 0.0)
    # Answers are spoilt in random order until the mean loss has grown by the drop.
    dropped = now.copy()
    spoilt = np.where(cheap, score[:, 0], 0.0)
    candidates = rng.permutation(np.flatnonzero(spoilt > now))
    gain = np.cumsum((spoilt - now)[candidates]) / len(rest)
    some = candidates[: int(np.searchsorted(gain, DROP)) + 1]
    dropped[some] = spoilt[some]
    grown = dropped.mean() - now.mean()
    if grown < 0.9 * DROP:
        raise SystemExit(f"{folder.name}: the cheap model serves too little to lose {DROP:g} more")
    name = f"{folder.name}, {models[0]} and {models[1]}, true loss {now.mean():.3f}"
    return Source(name, CERTIFIED, now, dropped, float(cheap.mean()))


def sources(data: Path) -> list[Source]:
    return [
        from_table(
            data / "paretobandit_val",
            ("google/gemini-2.5-pro", "meta-llama/llama-3.1-8b-instruct"), 500,
        ),
        from_table(data / "mmlu_pro", ("gemini-1.5-flash-002", "Meta-Llama-3-70B"), 1000),
    ]  # fmt: skip


def invented() -> list[Source]:
    return [
        made_up(0.05, 0.05), made_up(0.05, 0.04), made_up(0.02, 0.015), made_up(0.10, 0.085),
    ]  # fmt: skip


# ── streams ──────────────────────────────────────────────────────────────────────────────────────


def first_alarm(losses: FloatArray, max_loss: float) -> int | None:
    w = sequential_test.start(max_loss, ALPHA)
    for x in losses.tolist():
        w = w.update(x)
        if w.alarm_at is not None:
            return w.alarm_at
    return None


def looks(losses: FloatArray, max_loss: float, window: int = 500, every: int = 100) -> int | None:
    """The label at which a repeated fixed-size test first rejects."""
    total = np.concatenate([[0.0], losses.cumsum()])
    for at in range(window, len(losses) + 1, every):
        lost = int(np.ceil(total[at] - total[at - window] - 1e-9))
        if 1.0 - binomial_cdf(lost - 1, window, max_loss) <= ALPHA:
            return at
    return None


def quiet(source: Source, streams: int, first_seed: int) -> dict[str, Any]:
    alarms = {"watch": 0, "repeated test": 0}
    for seed in range(first_seed, first_seed + streams):
        losses = np.random.default_rng([1, seed]).choice(source.now, QUIET)
        alarms["watch"] += first_alarm(losses, source.max_loss) is not None
        alarms["repeated test"] += looks(losses, source.max_loss) is not None
    return {
        name: {
            "false_alarms": k / streams,
            "ci": [
                round(1 - clopper_pearson(streams - k, streams, 0.025), 4),
                round(clopper_pearson(k, streams, 0.025), 4),
            ],
        }
        for name, k in alarms.items()
    }


def after_drop(source: Source, before: int, streams: int, first_seed: int) -> dict[str, Any]:
    delays, early, missed = [], 0, 0
    for seed in range(first_seed, first_seed + streams):
        rng = np.random.default_rng([2, seed])
        losses = np.concatenate(
            [rng.choice(source.now, before), rng.choice(source.dropped, PATIENCE)]
        )
        at = first_alarm(losses, source.max_loss)
        if at is None:
            missed += 1
            delays.append(np.inf)
        elif at <= before:
            early += 1
        else:
            delays.append(at - before)
    half, most = np.quantile(delays, [0.5, 0.9], method="higher")
    paid = source.share or None
    return {
        "labels_before": before,
        "delay_median": _finite(half),
        "delay_90_percent": _finite(most),
        "paid_median": None if paid is None or not np.isfinite(half) else round(half * paid),
        "missed": missed / streams,
        "alarms_before_the_drop": early / streams,
    }


def _finite(x: float) -> int | None:
    return int(x) if np.isfinite(x) else None


# ── what is shown ────────────────────────────────────────────────────────────────────────────────


def show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for c in (
        "stream",
        "false alarms",
        "repeated test",
        "delay from the start",
        "after 1,000 labels",
    ):
        table.add_column(c, justify="left" if c == "stream" else "right")
    for r in rows:
        cells = []
        for name in ("watch", "repeated test"):
            q = r["no_drift"][name]
            cells.append(f"{q['false_alarms']:.3f} [{q['ci'][0]:.3f}, {q['ci'][1]:.3f}]")
        for d in r["drop"]:
            paid = "" if d["paid_median"] is None else f", {d['paid_median']} paid"
            cells.append(f"{d['delay_median']} (90 %: {d['delay_90_percent']}){paid}")
        table.add_row(r["stream"], *cells)
    Console(width=160).print(table)


def main() -> None:
    parser = arguments(__doc__, data=False)
    parser.add_argument("--synthetic", action="store_true", help="made-up streams only")
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args()
    if (args.data is None) != args.synthetic:
        raise SystemExit("Give either --data DIR or --synthetic.")
    began = time.perf_counter()
    rows = []
    for source in invented() + ([] if args.synthetic else sources(args.data)):
        rows.append(
            {
                "stream": source.name,
                "certified": source.max_loss,
                "true_loss": round(float(source.now.mean()), 4),
                "loss_after_drop": round(float(source.dropped.mean()), 4),
                "cheap_share": round(source.share, 4) or None,
                "no_drift": quiet(source, args.streams, args.first_seed),
                "drop": [after_drop(source, b, args.streams, args.first_seed) for b in BEFORE],
            }
        )
        print(f"{source.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    worst = max(r["no_drift"]["watch"]["false_alarms"] for r in rows)
    publish(
        args.out,
        "drift_detection",
        __doc__,
        {
            "streams": args.streams,
            "first_seed": args.first_seed,
            "stated_false_alarm_probability": ALPHA,
            "worst_false_alarm_rate": worst,
            "seconds": round(time.perf_counter() - began),
            "rows": rows,
        },
    )
    show(rows)
    print(f"stated {ALPHA:g}, worst measured {worst:g}")


if __name__ == "__main__":
    main()
