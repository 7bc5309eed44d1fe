"""`suffice collect`: ask every model every query, score the answers, and write a table.

`collect` reads the queries, makes the scorer, resolves the models, opens the journal, selects the
sample, shows the forecast, runs, and writes the table, in this order.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np

from suffice.errors import UsageError
from suffice.lab.collect import judge as judging
from suffice.lab.collect import sampling, scorers, write
from suffice.lab.collect.budget import Budget, has_price
from suffice.lab.collect.calls import BatchCaller, ModelConnection, connect
from suffice.lab.collect.forecast import Forecast, forecast
from suffice.lab.collect.journal import VERSION, CallJournal, SampleChosen
from suffice.lab.collect.journal import Run as RunRecord
from suffice.lab.collect.queries import QueryPool, read_queries
from suffice.lab.collect.run import CollectRun
from suffice.lab.collect.run_state import RunState
from suffice.lab.collect.summary import ModelSummary, Summary, fill_summary
from suffice.lab.predictors.base import extract_table
from suffice.policies.priors import list_price
from suffice.types import Model

__all__ = [
    "AbortedError",
    "Forecast",
    "ModelSummary",
    "Options",
    "ProgressUI",
    "Summary",
    "collect",
]


@dataclass(frozen=True)
class Options:
    """The options of the command; see `suffice collect --help`."""

    queries: str
    models: tuple[str, ...]
    out: Path
    judge: str | None = None
    reference: str | None = None
    scorer: str | None = None
    expected_column: str | None = None
    pattern: str | None = None
    schema: Path | None = None
    max_usd: float | None = None
    allow_unknown_price: bool = False
    sample: int | None = None
    seed: int = 0
    config: str | None = None
    concurrency: int = 8
    temperature: float | None = 0.0
    max_output_tokens: int = 2048
    judge_max_output_tokens: int = 1024


class ProgressUI(Protocol):
    """How a run is shown."""

    def notify(self, text: str) -> None:
        """Show one line now."""

    def confirm(self, forecast: Forecast) -> bool:
        """Show the forecast; False aborts."""

    def start(self, calls: int) -> None:
        """A run of so many calls starts."""

    def advance(self, calls: int, spent_usd: float) -> None:
        """So many further calls are done; spent_usd: by all runs."""

    def stop(self) -> None:
        """The run has ended."""


class AbortedError(Exception):
    """The user saw the forecast and declined."""


def collect(options: Options, ui: ProgressUI, env: Mapping[str, str]) -> Summary:
    """Collect labels. Everything wrong with the options is found before a call is made.

    Args:
        options: What to collect.
        ui: Shows the run.
        env: The environment, for keys.

    Returns:
        The summary.

    Raises:
        UsageError: If an option is wrong.
        ConfigError: If a model cannot be called.
        TableError: If the queries cannot be used.
        JobError: If no model gave any answer, the cap does not cover a single query, or the disk is
            full.
        AbortedError: If the user declines the forecast.
    """
    _check(options)
    write.check_output(options.out)
    pool, scorer = _read_queries(options)
    names = (*options.models, *((options.judge,) if options.judge else ()))
    connection, resolved = connect(options.config, names, env)
    models = _require_distinct(resolved[: len(options.models)])
    judge = resolved[len(options.models)] if options.judge else None
    reference = _reference(options, models) if judge else None
    _check_prices(options, [*models, *([judge] if judge else [])])
    with contextlib.closing(CallJournal(write.journal_path(options.out)).open()) as journal:
        state = RunState(
            pool,
            journal,
            models,
            scorer,
            judge,
            reference.name if reference else None,
            options.temperature,
            options.max_output_tokens,
            options.judge_max_output_tokens,
            show_expected=judge is not None and options.expected_column is not None,
        )
        return _collect(state, connection, options, ui)


def _collect(
    state: RunState, connection: ModelConnection, options: Options, ui: ProgressUI
) -> Summary:
    journal = state.journal
    summary = Summary(
        out=str(options.out),
        ledger=str(journal.path),
        max_usd=options.max_usd,
        seed=options.seed,
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        suffice=version("suffice"),
        warnings=_warnings(state, options),
    )
    for warning in summary.warnings:
        ui.notify(f"warning: {warning}")
    sample = _sample(state, options)
    n = len(state.pool)
    rows = list(range(n)) if sample is None else sampling.selected_rows(sample.passes).tolist()
    weight = None if sample is None else sampling.sampling_weights(sample.passes, n)
    summary.queries = len(rows)
    predicted = forecast(state, rows, options.max_usd)
    if not ui.confirm(predicted):
        raise AbortedError
    _record_start(state, options, sample)
    spent_before_usd = journal.charged_usd
    run, caller = asyncio.run(_run(state, rows, connection, options, predicted, ui))
    summary.stopped = run.stopped
    summary.run_usd = journal.charged_usd - spent_before_usd
    asked_rows = [i for i in rows if state.was_asked(i)]
    if weight is not None:
        weight = sampling.reweight_incomplete(weight, asked_rows)
    fill_summary(summary, state, asked_rows, weight, caller)
    write.write_table(options.out, *write.table_rows(state, asked_rows, weight), asdict(summary))
    return summary


# ── preparation ───────────────────────────────────────────────────────────────────────────────────────


def _check(o: Options) -> None:
    if o.judge and o.scorer:
        raise UsageError("--judge and --scorer exclude each other.", remedy="Give one of them.")
    if not o.models:
        raise UsageError("--models: expected at least one model.")
    if o.reference and not o.judge:
        raise UsageError("--reference belongs to --judge.")
    if o.sample is not None and o.sample < 1:
        raise UsageError(f"--sample: expected at least 1, got {o.sample}.")
    if o.max_usd is not None and not o.max_usd > 0:
        raise UsageError(f"--max-usd: expected more than 0, got {o.max_usd:g}.")


def _read_queries(o: Options) -> tuple[QueryPool, scorers.Scorer | None]:
    if o.scorer:
        return scorers.make_scorer(
            o.scorer,
            o.queries,
            expected_column=o.expected_column,
            pattern=o.pattern,
            schema=o.schema,
        )
    for name, value in (("--pattern", o.pattern), ("--schema", o.schema)):
        if value is not None:
            raise UsageError(f"{name} needs a --scorer.")
    columns = (o.expected_column,) if o.expected_column else ()
    return read_queries(o.queries, columns, required=bool(columns)), None


def _require_distinct(models: Sequence[Model]) -> tuple[Model, ...]:
    names = [m.name for m in models]
    repeated = next((n for n in names if names.count(n) > 1), None)
    if repeated:
        raise UsageError(f"--models names {repeated} twice.")
    return tuple(models)


def _reference(o: Options, models: tuple[Model, ...]) -> Model | None:
    """The model that the others are compared with: as named, else the best by its prior."""
    if o.reference is None:
        if len(models) == 1:
            return None
        return max(models, key=lambda m: (m.quality or 0.0, list_price(m) or 0.0))
    named = [m for m in models if o.reference in (m.name, m.upstream)]
    if not named:
        raise UsageError(
            f"--reference {o.reference} is not among --models.",
            remedy=f"One of {', '.join(m.name for m in models)}.",
        )
    if len(models) == 1:
        raise UsageError("--reference needs a second model that is compared with it.")
    return named[0]


def _check_prices(o: Options, models: Sequence[Model]) -> None:
    unknown = [m.name for m in models if not has_price(m)]
    if unknown and o.max_usd is not None and not o.allow_unknown_price:
        raise UsageError(
            f"--max-usd cannot be enforced: the price of {', '.join(unknown)} is unknown.",
            remedy="Set input_usd_per_mtok and output_usd_per_mtok in the config, or use "
            "--allow-unknown-price: then the cap does not count them.",
        )


def _warnings(state: RunState, o: Options) -> list[str]:
    warnings = list(state.pool.warnings)
    journal, names = state.journal, [m.name for m in state.models]
    unknown = [
        m.name for m in (*state.models, *([state.judge] if state.judge else [])) if not has_price(m)
    ]
    if unknown:
        warnings.append(
            f"the price of {', '.join(unknown)} is unknown: shown as such, and not counted"
        )
    if state.judge is not None:
        family = judging.family_warning(state.judge.name, names)
        warnings += [family] if family else []
        if o.reference is None and state.reference:
            warnings.append(f"{state.reference} is the reference; --reference names another")
        if any(state.pool.required_capabilities(i) for i in range(len(state.pool))):
            warnings.append("the judge reads text only: images and audio are not shown to it")
    elif state.scorer is None:
        warnings.append(
            "no --judge and no --scorer: answers are stored and scores stay unknown; run it again with "
            "one of them, answers are not paid for twice"
        )
    if journal.lost:
        warnings.append(
            f"an earlier run ended with {journal.lost} calls in flight: they may have been charged, "
            "are counted at their maximum cost, and are made again"
        )
    last = journal.runs[-1] if journal.runs else None
    parameters = (o.temperature, o.max_output_tokens)
    if last is not None and (last.temperature, last.max_output_tokens) != parameters:
        warnings.append(
            f"the last run had --temperature {last.temperature} and --max-output-tokens "
            f"{last.max_output_tokens}: its answers are not reused"
        )
    return warnings


def _record_start(state: RunState, o: Options, sample: SampleChosen | None) -> None:
    if sample is not None and sample not in state.journal.samples:
        state.journal.append(sample)
    state.journal.append(
        RunRecord(
            version=VERSION,
            suffice=version("suffice"),
            queries=o.queries,
            models=[m.name for m in state.models],
            scorer=o.scorer or (judging.PROMPT_VERSION if o.judge else ""),
            judge=state.judge.name if state.judge else None,
            reference=state.reference,
            temperature=o.temperature,
            max_output_tokens=o.max_output_tokens,
            seed=o.seed,
            at_s=time.time(),
        )
    )


def _sample(state: RunState, o: Options) -> SampleChosen | None:
    """The selected rows of the pool, as an earlier run selected them; None = all rows."""
    pool = state.pool
    n = len(pool)
    if o.sample is None or o.sample >= n:
        return None
    pool_hash = blake2b(
        "\0".join(pool.ids).encode() + b"\0\0".join(pool.messages), digest_size=16
    ).hexdigest()
    earlier = [s for s in state.journal.samples if (s.pool, s.seed) == (pool_hash, o.seed)]
    same = next((s for s in earlier if s.size == o.sample), None)
    if same is not None:
        return same
    smaller = [s for s in earlier if s.size < o.sample]
    before = max(smaller, key=lambda s: s.size).passes if smaller else []
    x = extract_table(pool.table, progress=n > 2000)
    score = np.full((n, len(state.models)), np.nan)
    for i in sampling.selected_rows(before):
        score[i] = [np.nan if c.score is None else c.score for c in state.scored_answers(int(i))]
    more = sampling.choose_round(
        x, o.sample, before, o.seed, sampling.expected_disagreement(x, score)
    )
    return SampleChosen(pool_hash, o.seed, o.sample, [*before, more], time.time())


# ── the run ────────────────────────────────────────────────────────────────────────────────────────


async def _run(
    state: RunState,
    rows: Sequence[int],
    connection: ModelConnection,
    o: Options,
    predicted: Forecast,
    ui: ProgressUI,
) -> tuple[CollectRun, BatchCaller]:
    journal = state.journal
    budget = Budget(o.max_usd, lambda: journal.charged_usd)
    caller = BatchCaller(connection, journal, budget, o.concurrency, asyncio.Event(), seed=o.seed)
    run = CollectRun(
        state,
        rows,
        caller,
        budget,
        lambda n: ui.advance(n, journal.charged_usd),
        ui.notify,
        o.seed,
    )
    ui.start(predicted.calls)
    try:
        await run.run()
    finally:
        ui.stop()
        await connection.aclose()
    return run, caller
