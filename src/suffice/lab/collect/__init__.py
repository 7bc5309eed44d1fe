"""Labels in one command: ask every model every query, score the answers, write a table.

    collect(options, screen, env) -> Summary

`collect` is the line: queries and scorer, models, ledger, sample, forecast, run, table.
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
from suffice.lab.collect.budget import Budget, priced
from suffice.lab.collect.calls import Asker, ModelConnection, connect
from suffice.lab.collect.forecast import Forecast, forecast
from suffice.lab.collect.journal import VERSION, Ledger, Sampled
from suffice.lab.collect.journal import Run as RunRecord
from suffice.lab.collect.queries import Pool, read_pool
from suffice.lab.collect.run import Run
from suffice.lab.collect.run_state import RunState
from suffice.lab.collect.summary import ModelSummary, Summary, fill
from suffice.lab.predictors.base import extract_table
from suffice.policies.priors import list_price
from suffice.types import Model

__all__ = ["Declined", "Forecast", "ModelSummary", "Options", "Screen", "Summary", "collect"]


@dataclass(frozen=True)
class Options:
    """What the command line says; see `suffice collect --help`."""

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


class Screen(Protocol):
    """How a run shows itself."""

    def say(self, text: str) -> None:
        """One line for the user, now."""

    def agree(self, forecast: Forecast) -> bool:
        """Show the forecast; False: do not go on."""

    def begin(self, calls: int) -> None: ...
    def step(self, calls: int, spent_usd: float) -> None:
        """So many calls are done with; spent_usd: by all runs."""

    def end(self) -> None: ...


class Aborted(Exception):
    """The user saw the forecast and said no."""


def collect(options: Options, screen: Screen, env: Mapping[str, str]) -> Summary:
    """The whole job. Whatever is wrong with the options is found before a call is made.

    Raises UsageError, ConfigError, TableError; JobError where no model gave any answer, the cap does
    not cover a single query, or the disk is full; Declined.
    """
    _check(options)
    write.check_out(options.out)
    pool, scorer = _pool(options)
    names = (*options.models, *((options.judge,) if options.judge else ()))
    connection, resolved = connect(options.config, names, env)
    models = _distinct(resolved[: len(options.models)])
    judge = resolved[len(options.models)] if options.judge else None
    reference = _reference(options, models) if judge else None
    _check_prices(options, [*models, *([judge] if judge else [])])
    with contextlib.closing(Ledger(write.ledger_path(options.out)).open()) as ledger:
        book = RunState(
            pool,
            ledger,
            models,
            scorer,
            judge,
            reference.name if reference else None,
            options.temperature,
            options.max_output_tokens,
            options.judge_max_output_tokens,
            known_good=judge is not None and options.expected_column is not None,
        )
        summary = Summary(
            out=str(options.out),
            ledger=str(ledger.path),
            max_usd=options.max_usd,
            seed=options.seed,
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            suffice=version("suffice"),
        )
        summary.warnings += _warnings(book, options)
        for warning in summary.warnings:
            screen.say(f"warning: {warning}")
        sample = _sample(book, options)
        n = len(pool)
        rows = list(range(n)) if sample is None else sampling.selected(sample.passes).tolist()
        weight = None if sample is None else sampling.weights(sample.passes, n)
        summary.queries = len(rows)
        told = forecast(book, rows, options.max_usd)
        if not screen.agree(told):
            raise Aborted
        _begin(book, options, sample)
        before_usd = ledger.charged_usd
        run, asker = asyncio.run(_run(book, rows, connection, options, told, screen))
        summary.stopped = run.stopped
        summary.run_usd = ledger.charged_usd - before_usd
        asked = [i for i in rows if book.asked(i)]
        if weight is not None:
            weight = sampling.thinned(weight, asked)
        fill(summary, book, asked, weight, asker)
        write.write(options.out, *write.rows_of(book, asked, weight), asdict(summary))
        return summary


# ── before ───────────────────────────────────────────────────────────────────────────────────────


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


def _pool(o: Options) -> tuple[Pool, scorers.Scorer | None]:
    if o.scorer:
        return scorers.make(
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
    return read_pool(o.queries, columns, must=bool(columns)), None


def _distinct(models: Sequence[Model]) -> tuple[Model, ...]:
    names = [m.name for m in models]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise UsageError(f"--models names {twice} twice.")
    return tuple(models)


def _reference(o: Options, models: tuple[Model, ...]) -> Model | None:
    """The model that the others are held to: as named, else the one expected to be best."""
    if o.reference is None:
        if len(models) == 1:
            return None
        return max(models, key=lambda m: (m.quality or 0.0, list_price(m) or 0.0))
    found = [m for m in models if o.reference in (m.name, m.upstream)]
    if not found:
        raise UsageError(
            f"--reference {o.reference} is not among --models.",
            remedy=f"One of {', '.join(m.name for m in models)}.",
        )
    if len(models) == 1:
        raise UsageError("--reference needs a second model that is compared with it.")
    return found[0]


def _check_prices(o: Options, models: Sequence[Model]) -> None:
    unknown = [m.name for m in models if not priced(m)]
    if unknown and o.max_usd is not None and not o.allow_unknown_price:
        raise UsageError(
            f"--max-usd cannot be kept: the price of {', '.join(unknown)} is unknown.",
            remedy="Give input_usd_per_mtok and output_usd_per_mtok in the config, or say "
            "--allow-unknown-price: then the cap does not count them.",
        )


def _warnings(book: RunState, o: Options) -> list[str]:
    out = list(book.pool.warnings)
    ledger, names = book.ledger, [m.name for m in book.models]
    unknown = [
        m.name for m in (*book.models, *([book.judge] if book.judge else [])) if not priced(m)
    ]
    if unknown:
        out.append(f"the price of {', '.join(unknown)} is unknown: shown as such, and not counted")
    if book.judge is not None:
        said = judging.family_warning(book.judge.name, names)
        out += [said] if said else []
        if o.reference is None and book.reference:
            out.append(f"{book.reference} is the reference; --reference names another")
        if any(book.pool.needs(i) for i in range(len(book.pool))):
            out.append("the judge reads text only: pictures and recordings are not shown to it")
    elif book.scorer is None:
        out.append(
            "no --judge and no --scorer: answers are kept and scores stay unknown; run it again with "
            "one of them, answers are not paid for twice"
        )
    if ledger.lost:
        out.append(
            f"an earlier run ended with {ledger.lost} calls under way: they may have been charged, "
            "are counted at their worst case, and are made again"
        )
    last = ledger.runs[-1] if ledger.runs else None
    now = (o.temperature, o.max_output_tokens)
    if last is not None and (last.temperature, last.max_output_tokens) != now:
        out.append(
            f"the last run had --temperature {last.temperature} and --max-output-tokens "
            f"{last.max_output_tokens}: its answers are others, and are not used"
        )
    return out


def _begin(book: RunState, o: Options, sample: Sampled | None) -> None:
    if sample is not None and sample not in book.ledger.samples:
        book.ledger.note(sample)
    book.ledger.note(
        RunRecord(
            version=VERSION,
            suffice=version("suffice"),
            queries=o.queries,
            models=[m.name for m in book.models],
            scorer=o.scorer or (judging.PROMPT_VERSION if o.judge else ""),
            judge=book.judge.name if book.judge else None,
            reference=book.reference,
            temperature=o.temperature,
            max_output_tokens=o.max_output_tokens,
            seed=o.seed,
            at_s=time.time(),
        )
    )


def _sample(book: RunState, o: Options) -> Sampled | None:
    """Which rows of the pool are asked; None: all. As an earlier run chose, if it did."""
    pool = book.pool
    n = len(pool)
    if o.sample is None or o.sample >= n:
        return None
    h = blake2b("\0".join(pool.ids).encode() + b"\0\0".join(pool.messages), digest_size=16)
    mark = h.hexdigest()
    here = [s for s in book.ledger.samples if (s.pool, s.seed) == (mark, o.seed)]
    found = next((s for s in here if s.size == o.sample), None)
    if found is not None:
        return found
    smaller = [s for s in here if s.size < o.sample]
    before = max(smaller, key=lambda s: s.size).passes if smaller else []
    x = extract_table(pool.table, progress=n > 2000)
    score = np.full((n, len(book.models)), np.nan)
    for i in sampling.selected(before):
        score[i] = [np.nan if c.score is None else c.score for c in book.cells(int(i))]
    more = sampling.choose(x, o.sample, before, o.seed, sampling.disagreement(x, score))
    return Sampled(mark, o.seed, o.sample, [*before, more], time.time())


# ── the run ────────────────────────────────────────────────────────────────────────────────────────


async def _run(
    book: RunState,
    rows: Sequence[int],
    connection: ModelConnection,
    o: Options,
    told: Forecast,
    screen: Screen,
) -> tuple[Run, Asker]:
    ledger = book.ledger
    budget = Budget(o.max_usd, lambda: ledger.charged_usd)
    asker = Asker(connection, ledger, budget, o.concurrency, asyncio.Event(), seed=o.seed)
    run = Run(
        book, rows, asker, budget, lambda n: screen.step(n, ledger.charged_usd), screen.say, o.seed
    )
    screen.begin(told.calls)
    try:
        await run.all()
    finally:
        screen.end()
        await connection.aclose()
    return run, asker
