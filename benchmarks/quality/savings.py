"""What single models would have cost, as `suffice report` has it, against what they did cost.

    python benchmarks/quality/savings.py --data DATA --out benchmarks/quality/results --draws 60
    python benchmarks/quality/savings.py --out benchmarks/quality/results --page docs/concepts/savings.md

DATA holds arena_bench_v1, zeroeval, mmlu_pro and paretobandit_val (queries.parquet, outcomes.parquet)
and prices.json. There every model answered every query, so the cost of each model alone is known: the
table's own, else prompt and answer in characters, four to a token, at list prices. Each draw takes four
models and random bounds of the default policy's difficulty, sends each query to one model (the harder,
the more expensive), and forgets the others' costs. Predicted costs are the default policy's prior, which
knows no model's length of answers. Error: log(estimated / true cost) of one model alone on all queries.

report: the product's (`suffice.lab.savings.counterfactual_cost`). by model: predictions scaled by paid /
predicted of the requests that the model took. by request: by paid / predicted of the request, no matter who
answered. plain: the predictions as they are. covers: share of the report's 95 % intervals that hold
the truth.

No table here is held out. On the first three, four ways were compared (by model, by request, their
geometric mean, the fit), then seven settings of the two deviations (VERBOSITY_SD, INTERACTION_SD in
counterfactual_cost.py): 0.12/0, 0.3/0, 0.3/0.1, 0.3/0.2, 0.45/0.1, 0.45/0.2, 0.6/0.2; 0.3/0.15 was
taken. Then the fourth was looked at under 0.3/0.15, 0.5/0.15, 0.7/0.15 (coverage 66, 73, 80 % in 25
draws) and 0.5/0.2 (89 % in 60), and only after that was 0.3/0.2 settled on. So its figures are not clean
either, and coverage on new traffic may be lower than any of these. One of its models reasons at length,
several times the others' answers.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import msgspec
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from runner import arguments, publish

from suffice import catalog, features
from suffice.lab.data.costs import Prices, read_prices
from suffice.lab.savings.counterfactual_cost import single_model_costs
from suffice.lab.savings.requests import RequestArrays
from suffice.lab.savings.traffic import MAX_GROUPS
from suffice.policies import priors

CHOSEN_ON = ("arena_bench_v1", "zeroeval", "mmlu_pro")
SEEN = ("paretobandit_val",)  # looked at before the deviations were final
TABLES = (*CHOSEN_ON, *SEEN)
MODELS = 4
QUERIES = 2000
_CHARS = 4.0  # a token

FloatArray = NDArray[np.float64]


def load(folder: Path, per: Prices) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(true (n, k) USD, NaN = not answered, predicted (n, k) USD, difficulty (n,)) of the priced
    models that answered nearly everything. per: model -> USD per million tokens in and out."""
    import pyarrow.parquet as pq

    prompts = {
        q["query_id"]: q["prompt"] or ""
        for q in pq.read_table(folder / "queries.parquet").to_pylist()
    }
    usd: dict[str, dict[str, float]] = {}
    for r in pq.read_table(folder / "outcomes.parquet").to_pylist():
        m, q = r["model"], r["query_id"]
        if m not in per:
            per = {**per, m: _listed(m)}
        i, o = per[m]
        if r.get("cost_usd"):
            usd.setdefault(m, {})[q] = r["cost_usd"]
        elif r.get("output_chars"):
            usd.setdefault(m, {})[q] = (len(prompts[q]) * i + r["output_chars"] * o) / _CHARS / 1e6
    models = sorted(
        m for m, found in usd.items() if len(found) > 0.8 * len(prompts) and per[m][1] > 0
    )
    ids = sorted(prompts)
    rng = np.random.default_rng(0)
    if len(ids) > QUERIES:
        ids = [ids[i] for i in np.sort(rng.choice(len(ids), QUERIES, replace=False))]
    scorer = priors.DifficultyScorer(features.SIGNAL_NAMES)
    found = [features.extract_text(prompts[q]) for q in ids]
    score = np.array([scorer(x) for x in found])
    difficulty = score.argsort(kind="stable").argsort() / len(score)
    expected = [priors.output_tokens(float(u), None) for u in difficulty]
    true = np.array([[usd[m].get(q, np.nan) for m in models] for q in ids])
    guess = np.array(
        [
            [x.input_tokens * per[m][0] + tokens * per[m][1] for m in models]
            for x, tokens in zip(found, expected, strict=True)
        ]
    )
    return true, guess / 1e6, difficulty


def _listed(model: str) -> tuple[float, float]:
    """The catalog's price, for models that prices.json does not know; (0, 0) = unknown."""
    found = catalog.lookup("openrouter", model)
    if found is None or found.price.output_usd_per_mtok is None:
        return (0.0, 0.0)
    return (found.price.input_usd_per_mtok or 0.0, found.price.output_usd_per_mtok)


def reported(
    guess: FloatArray, paid: FloatArray, action: NDArray[np.intp], difficulty: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """((k,) USD of each model alone, (k, 2) its interval) by the product."""
    n, k = guess.shape
    rows = np.arange(n)
    requests = RequestArrays(
        group=rows % MAX_GROUPS,
        answered=action,
        paid_usd=paid,
        difficulty=difficulty,
        first_attempt=np.ones(n, bool),
        score=np.full(n, np.nan),
        request=np.repeat(rows, k),
        model=np.tile(np.arange(k), n),
        predicted_usd=guess.ravel(),
        predicted_quality=np.full(n * k, np.nan),
    )
    names = [str(j) for j in range(k)]
    costs = single_model_costs(requests, {name: j for j, name in enumerate(names)})
    return (
        np.array([costs[m].usd for m in names], float),
        np.array([costs[m].usd_ci for m in names], float),
    )


def one_draw(
    rng: np.random.Generator, true: FloatArray, guess: FloatArray, difficulty: FloatArray
) -> tuple[dict[str, FloatArray], FloatArray]:
    """(way -> (k,) log errors, (k,) whether the report's interval holds the truth)."""
    pick = rng.choice(true.shape[1], min(MODELS, true.shape[1]), replace=False)
    pick = pick[np.argsort(guess[:, pick].mean(axis=0))]
    whole = ~np.isnan(true[:, pick]).any(axis=1)
    true, guess, difficulty = true[whole][:, pick], guess[whole][:, pick], difficulty[whole]
    k, rows = true.shape[1], np.arange(len(true))
    bounds = np.sort(rng.uniform(0.1, 0.9, k - 1))
    action = np.searchsorted(bounds, difficulty)
    paid, own = true[rows, action], guess[rows, action]
    usd, interval = reported(guess, paid, action, difficulty)
    overall = paid.sum() / own.sum()
    ratio = np.array(
        [paid[action == j].sum() / own[action == j].sum() if (action == j).any() else overall
         for j in range(k)]
    )  # fmt: skip
    ways = {
        "report": usd,
        "by model": ratio * guess.sum(axis=0),
        "by request": (guess * (paid / own)[:, None]).sum(axis=0),
        "plain": guess.sum(axis=0),
    }
    total = true.sum(axis=0)
    held = (interval[:, 0] <= total) & (total <= interval[:, 1])
    return {w: np.log(v / total) for w, v in ways.items()}, held.astype(float)


def main() -> None:
    """Runs all tables and writes savings.json."""
    parser = arguments(__doc__, data=False)
    parser.add_argument("--page", type=Path, help="Write the committed results into this page.")
    parser.add_argument("--draws", type=int, default=60)
    args = parser.parse_args()
    if args.page is not None:
        fill(args.page, msgspec.json.decode((args.out / "savings.json").read_bytes()))
        return
    if args.data is None:
        parser.error("--data or --page is needed")
    prices = read_prices(args.data / "prices.json")
    tables = {}
    for name in TABLES:
        true, guess, difficulty = load(args.data / name, prices)
        rng = np.random.default_rng(1)
        errors: dict[str, list[FloatArray]] = {}
        held = []
        for _ in range(args.draws):
            found, holds = one_draw(rng, true, guess, difficulty)
            held.append(holds)
            for way, e in found.items():
                errors.setdefault(way, []).append(e)
        tables[name] = {
            "queries_at_most": len(true),
            "models": true.shape[1],
            "chosen_on": name in CHOSEN_ON,
            "covers": round(float(np.concatenate(held).mean()), 3),
            "ways": {w: _figures(np.stack(e), seed=2) for w, e in errors.items()},
        }
        for way, f in tables[name]["ways"].items():
            print(f"{name:16} {way:11} rmse {f['rmse']:.3f} {f['rmse_ci']} bias {f['bias']:+.3f}")
        print(f"{name:16} intervals hold the truth: {tables[name]['covers']:.2f}")
    publish(
        args.out,
        "savings",
        __doc__,
        {
            "draws": args.draws,
            "models_a_draw": MODELS,
            "seed": 1,
            "tables": tables,
        },
    )


def fill(page: Path, results: dict[str, Any]) -> None:
    """The committed results as a table between the page's marks."""
    text = page.read_text()
    before, rest = text.split("<!-- results: begin -->")
    after = rest.split("<!-- results: end -->")[1]
    body = f"{before}<!-- results: begin -->\n{shown(results)}<!-- results: end -->{after}"
    temporary = page.with_name(f".{page.name}.{os.getpid()}")
    temporary.write_text(body)
    os.replace(temporary, page)


def shown(results: dict[str, Any]) -> str:
    """Markdown: root mean square of log errors with its interval, and coverage."""
    made = results["made"]
    lines = [
        "| table | report | by model | by request | predictions as they are | 95 % interval holds |",
        "|---|---|---|---|---|---|",
    ]
    for name, t in results["tables"].items():
        cells = [
            "{:.2f} ({:.2f} to {:.2f})".format(t["ways"][w]["rmse"], *t["ways"][w]["rmse_ci"])
            for w in ("report", "by model", "by request", "plain")
        ]
        mark = " (chosen on)" if t["chosen_on"] else " (seen before the choice was final)"
        lines.append(f"| {name}{mark} | {' | '.join(cells)} | {t['covers']:.0%} |")
    lines += [
        "",
        f"Root mean square of log(estimated / true cost) of one model alone, {results['draws']} draws of "
        f"at most {results['models_a_draw']} models and difficulty bounds, seed {results['seed']}; in "
        "brackets 95 % over draws. "
        f"benchmarks/quality/savings.py, {made['date']}, {made['machine']['cpu']}, Python "
        f"{made['machine']['python']}, numpy {made['packages']['numpy']}, commit {made['commit']}.",
        "",
    ]
    return "\n".join(lines)


def _figures(errors: FloatArray, seed: int) -> dict[str, Any]:
    """Of log errors (draws, k): root mean square with its 95 % bootstrap interval over draws."""
    rng = np.random.default_rng(seed)
    square = (errors**2).mean(axis=1)
    again = rng.choice(square, (999, len(square))).mean(axis=1)
    low, high = np.sqrt(np.quantile(again, [0.025, 0.975]))
    return {
        "rmse": round(float(np.sqrt(square.mean())), 4),
        "rmse_ci": [round(float(low), 4), round(float(high), 4)],
        "bias": round(float(errors.mean()), 4),
        "median_abs": round(float(np.median(np.abs(errors))), 4),
    }


if __name__ == "__main__":
    main()
