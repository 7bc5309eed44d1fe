"""The forecast of a run's calls, tokens and cost, shown before any call is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from suffice import features
from suffice.catalog import price_usd
from suffice.lab.collect.run_state import RunState
from suffice.policies.priors import output_tokens
from suffice.types import Model, Usage

_PROMPT_TOKENS = 420  # of the judge's instructions
_VERDICT_TOKENS = 150  # of a judge's reply, if none is known yet


@dataclass(frozen=True)
class ForecastRow:
    """The forecast for one model."""

    model: str
    role: str  # "model" | "judge"
    calls: int
    known: int  # answers that the journal already has
    input_tokens: int
    output_tokens: int
    usd: float | None  # predicted; None = the price is unknown
    most_usd: float | None  # with every answer at its maximum length


@dataclass(frozen=True)
class Forecast:
    """The forecast of a run."""

    rows: tuple[ForecastRow, ...]
    queries: int
    spent_usd: float  # by earlier runs on the same table; the cap counts it
    max_usd: float | None

    @property
    def calls(self) -> int:
        """All calls."""
        return sum(r.calls for r in self.rows)

    @property
    def usd(self) -> float | None:
        """Predicted cost; None if a price is unknown."""
        return _sum([r.usd for r in self.rows])

    @property
    def most_usd(self) -> float | None:
        """Cost with every answer at its maximum length; None if a price is unknown."""
        return _sum([r.most_usd for r in self.rows])


def _sum(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(v for v in values if v is not None)


def forecast(state: RunState, rows: Sequence[int], max_usd: float | None) -> Forecast:
    """Forecast calls, tokens and cost.

    Input tokens are estimated as by the router. Output tokens are the mean of the model's answers in
    the journal, else a prior by the query's length.

    Args:
        state: What is known of each query.
        rows: Rows of the pool to ask.
        max_usd: The cap, for display.

    Returns:
        The forecast.
    """
    table = state.pool.table
    x = {i: features.extract(table.messages[i]) for i in rows}
    length = np.array([x[i].user_message_tokens for i in rows], float)
    rank = np.argsort(np.argsort(length, kind="stable"), kind="stable") / max(1, len(rows))
    prior = {
        i: output_tokens(float(u), state.max_output_tokens) for i, u in zip(rows, rank, strict=True)
    }
    forecasts = []
    for m in state.models:
        todo = {state.model_call(i, m).key: i for i in rows if state.answer(i, m) is None}
        known = len({state.model_call(i, m).key for i in rows}) - len(todo)
        mean = _mean_output(state, m, False)
        n_in = sum(x[i].input_tokens for i in todo.values())
        n_out = sum(prior[i] if mean is None else mean for i in todo.values())
        forecasts.append(_row(m, "model", len(todo), known, n_in, n_out, state.max_output_tokens))
    if state.judge is not None:
        forecasts.append(_judge_row(state, rows, {i: f.input_tokens for i, f in x.items()}, prior))
    return Forecast(tuple(forecasts), len(rows), state.journal.charged_usd, max_usd)


def _judge_row(
    state: RunState, rows: Sequence[int], input_tokens: dict[int, int], prior: dict[int, int]
) -> ForecastRow:
    judge = state.judge
    assert judge is not None
    answers = 1 if state.reference is None else 2
    calls = known = tokens = 0
    for i in rows:
        n = state.max_judge_calls()
        if not state.unanswered_models(i):  # all answers exist, so it is known which need a verdict
            n = len(state.pending_judge_calls(i))
            known += sum(len(state.judge_calls(i, m)) for m in state.models) - n
        calls += n
        tokens += n * (_PROMPT_TOKENS + input_tokens[i] + answers * prior[i])
    mean = _mean_output(state, judge, True)
    each = _VERDICT_TOKENS if mean is None else mean
    return _row(judge, "judge", calls, known, tokens, calls * each, state.judge_max_output_tokens)


def expected_judge_usd(state: RunState, i: int) -> float:
    """A high estimate of what the judge costs for one query; 0 without a judge."""
    if state.judge is None:
        return 0.0
    input_tokens = features.extract(state.pool.table.messages[i]).input_tokens
    answers = 1 if state.reference is None else 2
    usage = Usage(
        input_tokens=_PROMPT_TOKENS + input_tokens + answers * min(state.max_output_tokens, 700),
        output_tokens=2 * _VERDICT_TOKENS,
    )
    return state.max_judge_calls() * (price_usd(state.judge, usage) or 0.0)


def _mean_output(state: RunState, model: Model, judging: bool) -> float | None:
    counts = [a.usage.output_tokens for a in state.answers_of(model.name, judging) if a.usage]
    return sum(counts) / len(counts) if len(counts) >= 5 else None


def _row(
    m: Model, role: str, calls: int, known: int, n_in: float, n_out: float, limit: int
) -> ForecastRow:
    usage = Usage(input_tokens=int(n_in), output_tokens=int(n_out))
    most = Usage(input_tokens=int(n_in), output_tokens=calls * limit)
    return ForecastRow(
        m.name, role, calls, known, int(n_in), int(n_out), price_usd(m, usage), price_usd(m, most)
    )
