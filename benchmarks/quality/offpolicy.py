"""Off-policy estimates against the known truth: bias, error, and whether intervals hold.

    python benchmarks/quality/offpolicy.py --data DATA --out benchmarks/quality/results
    python benchmarks/quality/offpolicy.py --out benchmarks/quality/results --page PAGE

DATA holds paretobandit_val (queries.parquet, outcomes.parquet): every model's score on every query
is known, so what a policy is truly worth is known too. Each run draws decisions from the table with
replacement, lets a logging policy choose, keeps only the score of what it chose, and estimates each
target from that log alone. The truth is the target's mean over the whole table.

The trained router (the lab's head, cross-fitted over five folds) is both a target and, less five
times the cost in dollars, what two of the logging policies follow. The reward model of the doubly
robust estimate is the product's (`suffice.lab.ope.reward_model.cross_fit_q_hat`), fitted on each log alone.

--page PAGE writes the table of committed results into a page of the docs, and runs nothing; with
--check it only says whether the page is up to date.

--obp PYTHON: an interpreter with the package obp (0.4.1 installs by `pip install --no-deps obp` with
numpy<2, scikit-learn, scipy, pandas, matplotlib, seaborn, tqdm, pyyaml, mypy_extensions; later ones
need Python below 3.11). Point estimates are compared with its own on the same logs. Its import of
torch, which these estimators never use, is answered with an empty module.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import msgspec
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from runner import arguments, publish

from suffice.lab.data.load import load_table
from suffice.lab.ope import estimators, intervals
from suffice.lab.ope.estimators import LoggedData
from suffice.lab.ope.reward_model import cross_fit_q_hat
from suffice.lab.ope.verdict import MIN_ESS
from suffice.lab.predictors.base import extract_table
from suffice.lab.predictors.linear import LinearHead

FloatArray = NDArray[np.float64]
FOLDS = 5
USD_WORTH = 5.0  # quality that a dollar buys, for the logging policies that follow the router
RESAMPLES = 999
SWITCH = 10.0  # weight above which switch-DR trusts its model instead
ESTIMATORS = ("ips", "snips", "doubly_robust")
TARGET = 0.90


class World(NamedTuple):
    """The whole truth. score, predicted: (n, k); signals (n, s), vectors (n, d): what a log keeps of
    each query; family: (n,) number of its benchmark."""

    score: FloatArray
    predicted: FloatArray
    signals: NDArray[np.float32]
    vectors: NDArray[np.float32]
    family: NDArray[np.intp]
    models: tuple[str, ...]


class Logging(NamedTuple):
    """name, what it is, propensities (n, k), decisions a run, and whether it is in conversations of
    one to eight turns that keep the first turn's model."""

    name: str
    what: str
    p: FloatArray
    decisions: int
    sticky: bool = False


def world(folder: Path, seed: int) -> tuple[World, FloatArray]:
    """(the table as a world, mean cost of each model)."""
    read = load_table(folder)
    read = read.take(read.complete)
    x, price = extract_table(read), np.nanmean(read.cost_usd, axis=0)
    n, k = read.score.shape
    fold = np.random.default_rng(seed).permutation(n) % FOLDS
    predicted = np.zeros((n, k))
    for f in range(FOLDS):
        fit = fold != f
        cost = None if read.cost_usd is None else read.cost_usd[fit]
        head = LinearHead().fit(x.take(fit), read.score[fit], cost, price, read.models)
        predicted[~fit] = head.predict(x.take(~fit))[0]
    family = np.unique(np.array([b or "" for b in read.benchmark or ()]), return_inverse=True)[1]
    return World(read.score, predicted, x.signals, x.vectors, family, read.models), price


def loggings(w: World, price: FloatArray, seed: int) -> list[Logging]:
    n, k = w.score.shape
    even = np.full((n, k), 1 / k)
    good = np.eye(k)[np.argmax(w.predicted - USD_WORTH * price, axis=1)]
    rng = np.random.default_rng(seed)
    drawn = (w.predicted[:, None, :] + rng.normal(0, 0.03, (n, 64, k))).argmax(axis=2)
    sharp = 0.95 * np.stack([(drawn == a).mean(axis=1) for a in range(k)], axis=1) + 0.05 * even
    mixed = 0.9 * good + 0.1 * even
    return [
        Logging("uniform", "every model alike", even, 1500),
        Logging("mix", "the router less cost, 10 % drawn evenly", mixed, 1500),
        Logging("mix, long", "the same, a longer log", mixed, 6000),
        Logging("sharp", "64 posterior draws of the router, 5 % drawn evenly", sharp, 1500),
        Logging(
            "sticky", "conversations of 1 to 8 turns, the first drawn evenly", even, 3000, True
        ),
    ]


def targets(w: World, log: Logging) -> dict[str, FloatArray]:
    n, k = w.score.shape
    router = np.eye(k)[np.argmax(w.predicted, axis=1)]
    tilted = log.p**1.5
    near = tilted / tilted.sum(axis=1, keepdims=True)
    if np.ptp(log.p) == 0:  # tilting leaves an even policy as it is
        near = 0.7 * log.p + 0.3 * router
    best = np.eye(k)[np.full(n, int(w.score.mean(axis=0).argmax()))]
    return {"best single": best, "router": router, "near the log": near}


def draw(w: World, log: Logging, rng: np.random.Generator) -> tuple[NDArray[np.intp], LoggedData]:
    """(queries drawn, what was logged of them)."""
    n, k = w.score.shape
    if log.sticky:
        rows, session = conversations(w, log.decisions, rng)
    else:
        rows, session = rng.integers(0, n, log.decisions), np.arange(log.decisions)
    p = log.p[rows]
    u = rng.random(len(rows))[session] if log.sticky else rng.random(len(rows))
    action = (u[:, None] > p.cumsum(axis=1)).sum(axis=1).clip(0, k - 1)
    at = np.arange(len(rows))
    return rows, LoggedData(action, p[at, action], w.score[rows, action], p, session)


def conversations(
    w: World, decisions: int, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and their session: each stays within the benchmark of its first query, so every query is
    as likely as any other at every turn."""
    rows: list[NDArray[np.intp]] = []
    session: list[NDArray[np.intp]] = []
    members = [np.flatnonzero(w.family == f) for f in range(int(w.family.max()) + 1)]
    count = 0
    while count < decisions:
        turns = int(rng.integers(1, 9))
        family = members[int(w.family[rng.integers(0, len(w.family))])]
        rows.append(rng.choice(family, turns))
        session.append(np.full(turns, len(session)))
        count += turns
    return np.concatenate(rows), np.concatenate(session)


def switched(log: LoggedData, pi: FloatArray, q: FloatArray) -> estimators.EstimatorTerms:
    """Switch-DR (Wang, Agarwal and Dudik 2017): the model alone where the weight is large. Not in
    the product: here to show why."""
    w = estimators.importance_weights(log, pi)
    at = np.arange(len(log))
    error = np.where(w <= SWITCH, w * (log.reward - q[at, log.action]), 0.0)
    return estimators.EstimatorTerms((pi * q).sum(axis=1) + error, np.ones(len(log)))


def measure(w: World, log: Logging, runs: int, seed: int) -> tuple[list[dict[str, Any]], list[Any]]:
    """(one row per target and estimator, some logs to compare with another implementation)."""
    policies = targets(w, log)
    truth = {name: float((pi * w.score).sum(axis=1).mean()) for name, pi in policies.items()}
    happened = float((log.p * w.score).sum(axis=1).mean())
    seen: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    samples = []
    for run in range(runs):
        rng = np.random.default_rng([seed, run])
        rows, made = draw(w, log, rng)
        q = cross_fit_q_hat(made, w.signals[rows], w.vectors[rows].astype(float))
        simple = LoggedData(made.action, made.propensity, made.reward, made.propensities)
        terms, sizes = {}, {}
        for name, all_pi in policies.items():
            pi = all_pi[rows]
            terms[name, "ips"] = estimators.ips(made, pi)
            terms[name, "snips"] = estimators.snips(made, pi)
            terms[name, "doubly_robust"] = estimators.doubly_robust(made, pi, q)
            terms[name, "direct"] = estimators.direct(made, pi, q)
            terms[name, "switch"] = switched(made, pi, q)
            sizes[name] = estimators.effective_sample_size(
                estimators.importance_weights(made, pi), made.episodes
            )
            if run < 3:
                samples.append((made, pi, q, {e: terms[name, e].value for e in
                                              ("ips", "snips", "doubly_robust", "direct")}))  # fmt: skip
        named = {"/".join(key): t for key, t in terms.items()}
        kinds = {"resamples": RESAMPLES, "seed": run}
        boot = intervals.estimate_policy_values(named, made, **kinds)
        plain = intervals.estimate_policy_values(named, made, method="asymptotic")
        alone = intervals.estimate_policy_values(named, simple, method="asymptotic")
        for (name, estimator), _ in terms.items():
            b, a, s = (f[f"{name}/{estimator}"] for f in (boot, plain, alone))
            t, d = truth[name], truth[name] - happened
            seen.setdefault((name, estimator), []).append(
                (
                    b.value - t,
                    b.low <= t <= b.high,
                    a.low <= t <= a.high,
                    s.low <= t <= s.high,
                    b.difference_low <= d <= b.difference_high,
                    b.high - b.low,
                    sizes[name],
                )
            )
    return [_row(log, key, truth, values) for key, values in seen.items()], samples


def _row(
    log: Logging, key: tuple[str, str], truth: dict[str, float], values: list[tuple[float, ...]]
) -> dict[str, Any]:
    v = np.array(values, float)
    judged = v[:, 6] >= MIN_ESS
    # Coverage is of all runs: to look only at those that are judged would select on the draw.
    return {
        "logging": log.name,
        "target": key[0],
        "estimator": key[1],
        "runs": len(v),
        "truth": truth[key[0]],
        "bias": float(v[:, 0].mean()),
        "bias_error": float(v[:, 0].std(ddof=1) / np.sqrt(len(v))),
        "rmse": float(np.sqrt((v[:, 0] ** 2).mean())),
        "coverage": float(v[:, 1].mean()),
        "coverage_asymptotic": float(v[:, 2].mean()),
        "coverage_without_sessions": float(v[:, 3].mean()),
        "coverage_of_difference": float(v[:, 4].mean()),
        "width": float(np.median(v[:, 5])),
        "ess": float(np.median(v[:, 6])),
        "judged": float(judged.mean()),
    }


_OBP = """
import sys, types
import numpy as np
for name in ("torch", "torch.nn", "torch.optim", "torch.utils", "torch.utils.data"):
    sys.modules[name] = types.ModuleType(name)
torch = sys.modules["torch"]
torch.Tensor = type("Tensor", (), {})
torch.nn, torch.optim, torch.utils = (sys.modules["torch." + n] for n in ("nn", "optim", "utils"))
torch.nn.Module = object
torch.optim.Optimizer = object
torch.utils.data = sys.modules["torch.utils.data"]
for n in ("Dataset", "DataLoader", "random_split"):
    setattr(torch.utils.data, n, object)
import obp.version
from obp.ope import estimators as e
data = np.load(sys.argv[1])
out = []
for i in range(int(data["n"])):
    r, a, p, pi, q = (data[f"{k}{i}"] for k in ("reward", "action", "propensity", "pi", "q"))
    given = dict(reward=r, action=a, pscore=p, action_dist=pi[:, :, None])
    model = dict(given, estimated_rewards_by_reg_model=q[:, :, None])
    out.append([
        e.InverseProbabilityWeighting().estimate_policy_value(**given),
        e.SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**given),
        e.DoublyRobust().estimate_policy_value(**model),
        e.DirectMethod().estimate_policy_value(
            action_dist=pi[:, :, None], estimated_rewards_by_reg_model=q[:, :, None]
        ),
    ])
np.save(sys.argv[2], np.array(out, float))
print(obp.version.__version__)
"""


def against_obp(python: Path, samples: list[Any]) -> dict[str, Any]:
    """Largest difference to the package obp's point estimates on the same logs."""
    arrays: dict[str, Any] = {"n": np.array(len(samples))}
    for i, (log, pi, q, _) in enumerate(samples):
        arrays |= {
            f"reward{i}": log.reward,
            f"action{i}": log.action,
            f"propensity{i}": log.propensity,
            f"pi{i}": pi,
            f"q{i}": q,
        }
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder) / "logs.npz", Path(folder) / "values.npy"
        np.savez(given, **arrays)
        done = subprocess.run(
            [str(python), "-c", _OBP, str(given), str(got)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise SystemExit(f"obp: {done.stderr.strip().splitlines()[-1]}")
        theirs = np.load(got)
    ours = np.array([list(values.values()) for *_, values in samples])
    gap = np.abs(ours - theirs).max(axis=0)
    return {
        "package": f"obp {done.stdout.strip()}",
        "logs": len(samples),
        "largest_difference": dict(
            zip(("ips", "snips", "doubly_robust", "direct"), gap.tolist(), strict=True)
        ),
    }


def show(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'logging':<10} {'target':<13} {'estimator':<14} {'ess':>5} {'judged':>6} {'bias':>8} "
        f"{'rmse':>7} {'covers':>6} {'diff.':>6} {'asym.':>6} {'no s.':>6} {'width':>7}"
    )
    for r in rows:
        mark = "" if r["estimator"] not in ESTIMATORS else (
            "refused" if r["judged"] < 0.5 else "" if r["coverage"] >= TARGET else "MISSED"
        )  # fmt: skip
        print(
            f"{r['logging']:<10} {r['target']:<13} {r['estimator']:<14} {r['ess']:>5.0f} "
            f"{r['judged']:>6.0%} {r['bias']:>+8.4f} {r['rmse']:>7.4f} {r['coverage']:>6.1%} "
            f"{r['coverage_of_difference']:>6.1%} {r['coverage_asymptotic']:>6.1%} "
            f"{r['coverage_without_sessions']:>6.1%} {r['width']:>7.4f} {mark}"
        )


_BEGIN, _END = "<!-- results: begin -->", "<!-- results: end -->"


def table(results: dict[str, Any]) -> str:
    """The results as the docs show them, in Markdown."""
    m, o = results["machine"], results["independent_implementation"]
    names = {"ips": "IPS", "snips": "SNIPS", "doubly_robust": "doubly robust", "direct": "direct"}
    lines = [
        "| log | target | ESS | estimator | bias | RMSE | covers | of the difference | asymptotic "
        "| without sessions | width |",
        "|---|---|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in results["rows"]:
        if r["estimator"] not in names:
            continue
        refused = r["judged"] < 0.5
        size = f"{r['ess']:.0f}" + (", refused" if refused else "")
        covers = f"{r['coverage']:.1%}"
        if r["estimator"] in ESTIMATORS and not refused and r["coverage"] < results["target"]:
            covers = f"**{covers}, below the target**"
        lines.append(
            f"| {r['logging']} | {r['target']} | {size} | {names[r['estimator']]} "
            f"| {r['bias']:+.4f} | {r['rmse']:.4f} | {covers} | {r['coverage_of_difference']:.1%} "
            f"| {r['coverage_asymptotic']:.1%} | {r['coverage_without_sessions']:.1%} "
            f"| {r['width']:.4f} |"
        )
    low = ", ".join(
        f"{names[e]} {c:.1%}" for e, c in results["lowest_coverage_where_judged"].items()
    )
    lines += [
        "",
        f"{results['runs']} runs each, seed {results['seed']}, {results['date']}; "
        f"{m['cpu']}, {m['cores']} cores, Python {m['python']}, numpy "
        f"{results['packages']['numpy']}. Table: {results['table']}. Lowest coverage where the "
        f"log is judged: {low} (target: {results['target']:.0%}).",
    ]
    if o is not None:
        gap = max(o["largest_difference"].values())
        lines.append(f"Largest difference to {o['package']} on {o['logs']} logs: {gap:.0e}.")
    return "\n".join(lines)


def written(page: Path, results: dict[str, Any], check: bool) -> bool:
    """Put the table between its marks. False: with `check`, where it is another there."""
    old = page.read_text(encoding="utf-8")
    before, _, rest = old.partition(_BEGIN)
    _, mark, after = rest.partition(_END)
    if not mark:
        raise SystemExit(f"{page}: there is no {_BEGIN} ... {_END}")
    new = f"{before}{_BEGIN}\n{table(results)}\n{_END}{after}"
    if not check and new != old:
        temporary = page.with_name(f".{page.name}.{os.getpid()}")
        temporary.write_text(new, encoding="utf-8")
        os.replace(temporary, page)
    return not check or new == old


def main() -> None:
    parser = arguments(__doc__, data=False)
    parser.add_argument("--page", type=Path, help="a page of the docs to write the table into")
    parser.add_argument("--check", action="store_true", help="with --page: only compare")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--obp", type=Path, help="a Python that has the package obp")
    given = parser.parse_args()
    if given.page is not None:
        results = msgspec.json.decode((given.out / "offpolicy.json").read_bytes())
        if not written(given.page, results, given.check):
            raise SystemExit(f"{given.page}: is not what the results say; run without --check")
        return
    if given.data is None:
        parser.error("--data or --page is needed")
    began = time.monotonic()
    w, price = world(given.data / "paretobandit_val", given.seed)
    rows, samples = [], []
    for log in loggings(w, price, given.seed):
        more, some = measure(w, log, given.runs, given.seed)
        rows += more
        samples += some
        print(f"{log.name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    show(rows)
    judged = [r for r in rows if r["estimator"] in ESTIMATORS and r["judged"] >= 0.5]
    lowest = {e: min(r["coverage"] for r in judged if r["estimator"] == e) for e in ESTIMATORS}
    print("lowest coverage where judged:", {e: f"{c:.1%}" for e, c in lowest.items()})
    compared = None if given.obp is None else against_obp(given.obp, samples)
    if compared is not None:
        print(compared)
    publish(
        given.out,
        "offpolicy",
        __doc__,
        {
            "table": f"paretobandit_val, {len(w.score)} queries on which all of {len(w.models)} "
            "models have a score",
            "models": w.models,
            "loggings": {
                g.name: {"what": g.what, "decisions": g.decisions}
                for g in loggings(w, price, given.seed)
            },
            "runs": given.runs,
            "seed": given.seed,
            "resamples": RESAMPLES,
            "refused_below_ess": MIN_ESS,
            "target": TARGET,
            "lowest_coverage_where_judged": lowest,
            "rows": rows,
            "independent_implementation": compared,
            "took_s": round(time.monotonic() - began, 1),
        },
    )


if __name__ == "__main__":
    main()
