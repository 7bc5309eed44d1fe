"""What a run will cost, said before it costs anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from suffice import features
from suffice.catalog import price_usd
from suffice.lab.collect.run_state import RunState
from suffice.policies.priors import output_tokens
from suffice.types import Model, Usage

_PROMPT_TOKENS = 420  # of the judge's own instructions
_VERDICT_TOKENS = 150  # a judge's usual reply, where none is known yet


@dataclass(frozen=True)
class Row:
    """Of one model. known: answers that the ledger has already. usd: predicted; most_usd: with every
    answer at its longest. None = its price is unknown."""

    model: str
    role: str  # "model" | "judge"
    calls: int
    known: int
    input_tokens: int
    output_tokens: int
    usd: float | None
    most_usd: float | None


@dataclass(frozen=True)
class Forecast:
    """spent_usd: by earlier runs on the same table; the cap counts it."""

    rows: tuple[Row, ...]
    queries: int
    spent_usd: float
    max_usd: float | None

    @property
    def calls(self) -> int:
        return sum(r.calls for r in self.rows)

    @property
    def usd(self) -> float | None:
        """None where a price is unknown."""
        return _sum([r.usd for r in self.rows])

    @property
    def most_usd(self) -> float | None:
        return _sum([r.most_usd for r in self.rows])


def _sum(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(v for v in values if v is not None)


def forecast(book: RunState, rows: Sequence[int], max_usd: float | None) -> Forecast:
    """Calls, tokens and money for these rows of the pool.

    Input tokens are estimated as the router does; output tokens are the mean of the model's answers
    in the ledger, else a prior by the query's length.
    """
    table = book.pool.table
    x = {i: features.extract(table.messages[i]) for i in rows}
    length = np.array([x[i].user_message_tokens for i in rows], float)
    rank = np.argsort(np.argsort(length, kind="stable"), kind="stable") / max(1, len(rows))
    prior = {
        i: output_tokens(float(u), book.max_output_tokens) for i, u in zip(rows, rank, strict=True)
    }
    out = []
    for m in book.models:
        todo = {book.ask(i, m).key: i for i in rows if book.answer(i, m) is None}
        known = len({book.ask(i, m).key for i in rows}) - len(todo)
        mean = _mean_output(book, m, False)
        n_in = sum(x[i].input_tokens for i in todo.values())
        n_out = sum(prior[i] if mean is None else mean for i in todo.values())
        out.append(_row(m, "model", len(todo), known, n_in, n_out, book.max_output_tokens))
    if book.judge is not None:
        out.append(_judge_row(book, rows, {i: f.input_tokens for i, f in x.items()}, prior))
    return Forecast(tuple(out), len(rows), book.ledger.charged_usd, max_usd)


def _judge_row(
    book: RunState, rows: Sequence[int], asked: dict[int, int], prior: dict[int, int]
) -> Row:
    judge = book.judge
    assert judge is not None
    answers = 1 if book.reference is None else 2
    calls = known = tokens = 0
    for i in rows:
        n = book.verdict_count()
        if not book.missing(i):  # the answers are at hand: it is known which need a verdict
            n = len(book.unjudged(i))
            known += sum(len(book.verdict_asks(i, m)) for m in book.models) - n
        calls += n
        tokens += n * (_PROMPT_TOKENS + asked[i] + answers * prior[i])
    mean = _mean_output(book, judge, True)
    each = _VERDICT_TOKENS if mean is None else mean
    return _row(judge, "judge", calls, known, tokens, calls * each, book.judge_max_output_tokens)


def verdict_usd(book: RunState, i: int) -> float:
    """What the judge is expected to cost for one query, on the high side; 0 without a judge."""
    if book.judge is None:
        return 0.0
    asked = features.extract(book.pool.table.messages[i]).input_tokens
    answers = 1 if book.reference is None else 2
    usage = Usage(
        input_tokens=_PROMPT_TOKENS + asked + answers * min(book.max_output_tokens, 700),
        output_tokens=2 * _VERDICT_TOKENS,
    )
    return book.verdict_count() * (price_usd(book.judge, usage) or 0.0)


def _mean_output(book: RunState, model: Model, judging: bool) -> float | None:
    found = [a.usage.output_tokens for a in book.answers_of(model.name, judging) if a.usage]
    return sum(found) / len(found) if len(found) >= 5 else None


def _row(m: Model, role: str, calls: int, known: int, n_in: float, n_out: float, limit: int) -> Row:
    usage = Usage(input_tokens=int(n_in), output_tokens=int(n_out))
    most = Usage(input_tokens=int(n_in), output_tokens=calls * limit)
    return Row(
        m.name, role, calls, known, int(n_in), int(n_out), price_usd(m, usage), price_usd(m, most)
    )
