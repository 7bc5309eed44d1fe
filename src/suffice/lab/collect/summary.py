"""What came of a run: counted from the ledger, so that a resumed run tells the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from suffice.errors import JobError
from suffice.lab.collect import judge as judging
from suffice.lab.collect.calls import Asker
from suffice.lab.collect.run_state import RunState


@dataclass
class ModelSummary:
    """quality: mean score, weighted where queries were sampled. first_failure: its words."""

    answers: int = 0
    scored: int = 0
    failed: int = 0
    quality: float | None = None
    mean_usd: float | None = None
    cut_short: int = 0
    first_failure: str | None = None


@dataclass
class Summary:
    """What came of a run. spent_usd: by all runs on this table, failed and lost calls at their worst
    case included (uncertain_usd); run_usd: by this run. stopped: None where all was asked."""

    out: str
    ledger: str
    queries: int = 0
    asked: int = 0
    models: dict[str, ModelSummary] = field(default_factory=dict)
    scorer: str | None = None
    judge: str | None = None
    judge_prompt: str | None = None
    reference: str | None = None
    judge_contradicts: int = 0
    judged_pairs: int = 0
    spent_usd: float = 0.0
    run_usd: float = 0.0
    uncertain_usd: float = 0.0
    max_usd: float | None = None
    stopped: str | None = None
    sampled: bool = False
    date: str = ""
    suffice: str = ""
    seed: int = 0
    temperature: float | None = None
    max_output_tokens: int = 0
    warnings: list[str] = field(default_factory=list)


def fill(
    s: Summary,
    book: RunState,
    asked: Sequence[int],
    weight: Mapping[int, float] | None,
    asker: Asker,
) -> None:
    """Counts the rows that were asked. Raises JobError where no model gave any answer."""
    ledger = book.ledger
    s.asked, s.sampled = len(asked), weight is not None
    s.temperature, s.max_output_tokens = book.temperature, book.max_output_tokens
    s.spent_usd, s.uncertain_usd = ledger.charged_usd, ledger.uncertain_usd
    s.scorer = book.scorer.name if book.scorer else None
    if book.judge is not None:
        s.judge, s.judge_prompt, s.reference = (
            book.judge.name,
            judging.PROMPT_VERSION,
            book.reference,
        )
    _models(s, book, asked, weight, asker)
    if not any(m.answers for m in s.models.values()):
        raise JobError(_nothing(s, asker))
    _warn(s, book, asked, asker)


def _nothing(s: Summary, asker: Asker) -> str:
    first = next((f"{m}: {t.first}" for m, t in asker.tallies.items() if t.first), None)
    if first is not None:
        return f"No model gave any answer. The first failure, {first}"
    if s.stopped == "max_usd":
        return (
            f"--max-usd {s.max_usd:g} does not cover the worst case of a single query, every answer at "
            f"its longest of {s.max_output_tokens} tokens. Raise it, or lower --max-output-tokens."
        )
    return "Stopped before any model gave an answer."


def _models(
    s: Summary,
    book: RunState,
    asked: Sequence[int],
    weight: Mapping[int, float] | None,
    asker: Asker,
) -> None:
    for m in book.models:
        cells = [(i, book.cell(i, m)) for i in asked]
        answers = [c.answer for _, c in cells if c.answer is not None]
        scored = [(i, c.score) for i, c in cells if c.score is not None]
        w = [1.0 if weight is None else weight[i] for i, _ in scored]
        costs = [a.cost_usd for a in answers if a.cost_usd is not None]
        s.models[m.name] = ModelSummary(
            answers=len(answers),
            scored=len(scored),
            failed=len(cells) - len(answers),
            quality=float(np.average([y for _, y in scored], weights=w)) if scored else None,
            mean_usd=sum(costs) / len(costs) if costs else None,
            cut_short=sum(a.finish_reason == "length" for a in answers),
            first_failure=asker.tally(m.name).first,
        )
        pairs = [c for _, c in cells if len(c.verdicts) == 2]
        s.judged_pairs += len(pairs)
        s.judge_contradicts += sum(c.contradicts for c in pairs)


def _warn(s: Summary, book: RunState, asked: Sequence[int], asker: Asker) -> None:
    for name, tally in asker.tallies.items():
        if tally.given_up is not None:
            s.warnings.append(f"{name} was given up: {tally.given_up} Run it again to go on")
    unread = sum(
        "cannot be read" in (book.cell(i, m).note or "") for i in asked for m in book.models
    )
    if unread:
        s.warnings.append(
            f"{unread} verdicts of the judge could not be read; their scores are null"
        )
    cut = [f"{n} of {m}" for m, x in s.models.items() if (n := x.cut_short)]
    if cut:
        s.warnings.append(
            f"answers cut short at --max-output-tokens {book.max_output_tokens}: {', '.join(cut)}"
        )
    for name in asker.connection.client.ignored_temperature():
        s.warnings.append(f"{name} takes no temperature and was asked at its own")
