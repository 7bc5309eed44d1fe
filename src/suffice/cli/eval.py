"""`suffice eval`: curves and metrics of policies on a table of outcomes, with the baselines."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from suffice.errors import UsageError

_POLICY = typer.Option(
    [],
    "--policy",
    help="Evaluate this policy: default, trained, knn, cluster, ridge, constant, an entry point, "
    "or the path of an artifact. Repeat the option for several.",
)
_MODELS = typer.Option(None, "--models", help="Comma-separated models to include, for example a,b.")
_FIT_ON = typer.Option(
    None, "--fit-on", help="Fit policies that learn on this table instead of cross-fitting."
)
_OUT = typer.Option(
    None, "--out", help="Write results.json, curves as PNG and report.html into this folder."
)
_BY = typer.Option(
    [], "--by", help="Also evaluate each value of this column: benchmark or category."
)
_LEAVE_ONE_SOURCE_OUT = typer.Option(
    False,
    "--leave-one-source-out",
    help="Also evaluate each benchmark by policies fitted on all others.",
)
_PRICES = typer.Option(
    None,
    "--prices",
    help='Read prices of models without costs from this JSON file: {"model": '
    '{"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}}.',
)
_DRAWS = typer.Option(1000, "--draws", min=100, max=10000, help="Number of bootstrap resamples.")
_SEED = typer.Option(0, "--seed", min=0, help="Random seed for folds, random mixing and bootstrap.")


def command(
    table: str = typer.Argument(..., help="A folder, a file or the URL of a store."),
    policy: list[str] = _POLICY,
    models: str = _MODELS,
    fit_on: str = _FIT_ON,
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
    out: Path = _OUT,
    by: list[str] = _BY,
    leave_one_source_out: bool = _LEAVE_ONE_SOURCE_OUT,
    prices: Path = _PRICES,
    draws: int = _DRAWS,
    seed: int = _SEED,
) -> None:
    """Evaluate routing policies on recorded outcomes: curves, metrics with intervals, baselines.

    \b
    TABLE is one of
      a folder    queries.parquet   query_id, prompt or messages,
                                    optional benchmark, category, group,
                                    sampling_weight
                  outcomes.parquet  query_id, model, score from 0 to 1 (null: unknown),
                                    optional cost_usd, input_tokens, output_tokens, latency_s
      one file    .jsonl, .json, .csv, .tsv or .parquet with those columns joined,
                  one row per query and model
      originals   RouterBench (CSV or Parquet, not pickle), RouteLLM's response CSVs and
                  MT-Bench folder, MMLU-Pro result JSONs, OpenAI evals logs; GSM8K, MMLU-Pro
                  questions and LiteLLM spend logs hold no scores and are for assess and collect
      a store     sqlite:///... with stored prompts and feedback

    Without --policy the default policy is evaluated, and with --fit-on the learned ones too. Without
    --fit-on a policy that learns is cross-fitted; with it, queries that are in both tables are
    dropped before fitting. The baselines are always included: cheapest, best, random, length,
    zero_router (random mixing of single models) and oracle.

    Costs are those of the table. A pair without costs is costed by its share of strong calls; more
    models without costs by --prices or by list prices of the catalog.
    """
    from suffice.cli.output import print_json
    from suffice.lab.data.costs import read_prices
    from suffice.lab.data.load import load_table
    from suffice.lab.evaluate.evaluate import evaluate

    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: there is a file of that name.", remedy="Give a folder.")
    if fit_on is not None and _same_table(table, fit_on):
        raise UsageError(
            "--fit-on is the table that is judged.",
            remedy="Leave it out: policies that learn are then cross-fitted.",
        )
    result = evaluate(
        load_table(table),
        policy,
        models=[m.strip() for m in models.split(",") if m.strip()] if models is not None else None,
        fit_on=None if fit_on is None else load_table(fit_on),
        prices=None if prices is None else read_prices(prices),
        by=list(dict.fromkeys(c.strip() for b in by for c in b.split(","))),
        leave_one_source_out=leave_one_source_out,
        draws=draws,
        seed=seed,
        progress=sys.stderr.isatty(),
    )
    files: list[Path] = []
    if out is not None:
        from suffice.lab.report.evaluation import write_report

        files = write_report(result, out)
    if json:
        print_json(result)
    else:
        from suffice.cli.eval_view import show

        show(result, files)


def _same_table(a: str, b: str) -> bool:
    if "://" in a or "://" in b:
        return a == b
    return Path(a).resolve() == Path(b).resolve()
