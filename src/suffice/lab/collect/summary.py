"""The summary of a run, counted from the journal, so that it includes earlier runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from suffice.errors import JobError
from suffice.lab.collect import judge as judging
from suffice.lab.collect.calls import BatchCaller
from suffice.lab.collect.run_state import RunState


@dataclass
class ModelSummary:
    """The summary of one model."""

    answers: int = 0
    scored: int = 0
    failed: int = 0
    quality: float | None = None  # mean score, weighted if queries were sampled
    mean_usd: float | None = None
    cut_short: int = 0
    first_failure: str | None = None  # its message


@dataclass
class Summary:
    """The summary of a run."""

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
    spent_usd: float = 0.0  # by all runs on this table
    run_usd: float = 0.0  # by this run
    uncertain_usd: float = 0.0  # part of spent_usd: failed and lost calls at their maximum cost
    max_usd: float | None = None
    stopped: str | None = None  # None = everything was asked
    sampled: bool = False
    date: str = ""
    suffice: str = ""
    seed: int = 0
    temperature: float | None = None
    max_output_tokens: int = 0
    warnings: list[str] = field(default_factory=list)


def fill_summary(
    s: Summary,
    state: RunState,
    asked_rows: Sequence[int],
    weight: Mapping[int, float] | None,
    caller: BatchCaller,
) -> None:
    """Count the rows that were asked.

    Args:
        s: The summary to fill.
        state: What is known of each query.
        asked_rows: The rows that were asked.
        weight: Sampling weight by row; None = all queries were selected.
        caller: The caller, for its failures.

    Raises:
        JobError: If no model gave any answer.
    """
    journal = state.journal
    s.asked, s.sampled = len(asked_rows), weight is not None
    s.temperature, s.max_output_tokens = state.temperature, state.max_output_tokens
    s.spent_usd, s.uncertain_usd = journal.charged_usd, journal.uncertain_usd
    s.scorer = state.scorer.name if state.scorer else None
    if state.judge is not None:
        s.judge, s.judge_prompt, s.reference = (
            state.judge.name,
            judging.PROMPT_VERSION,
            state.reference,
        )
    _models(s, state, asked_rows, weight, caller)
    if not any(m.answers for m in s.models.values()):
        raise JobError(_no_answer_message(s, caller))
    _warn(s, state, asked_rows, caller)


def _no_answer_message(s: Summary, caller: BatchCaller) -> str:
    first = next((f"{m}: {t.first}" for m, t in caller.tallies.items() if t.first), None)
    if first is not None:
        return f"No model gave any answer. The first failure, {first}"
    if s.stopped == "max_usd":
        return (
            f"--max-usd {s.max_usd:g} does not cover the maximum cost of a single query, with answers of"
            f" {s.max_output_tokens} tokens. Raise it, or lower --max-output-tokens."
        )
    return "Stopped before any model gave an answer."


def _models(
    s: Summary,
    state: RunState,
    asked_rows: Sequence[int],
    weight: Mapping[int, float] | None,
    caller: BatchCaller,
) -> None:
    for m in state.models:
        cells = [(i, state.scored_answer(i, m)) for i in asked_rows]
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
            first_failure=caller.tally(m.name).first,
        )
        pairs = [c for _, c in cells if len(c.verdicts) == 2]
        s.judged_pairs += len(pairs)
        s.judge_contradicts += sum(c.contradicts for c in pairs)


def _warn(s: Summary, state: RunState, asked_rows: Sequence[int], caller: BatchCaller) -> None:
    for name, tally in caller.tallies.items():
        if tally.given_up is not None:
            s.warnings.append(
                f"{name} was not asked any further: {tally.given_up} Run it again to continue"
            )
    unread = sum(
        "cannot be read" in (state.scored_answer(i, m).note or "")
        for i in asked_rows
        for m in state.models
    )
    if unread:
        s.warnings.append(
            f"{unread} verdicts of the judge could not be read; their scores are null"
        )
    truncated = [f"{n} of {m}" for m, x in s.models.items() if (n := x.cut_short)]
    if truncated:
        s.warnings.append(
            f"answers truncated at --max-output-tokens {state.max_output_tokens}: {', '.join(truncated)}"
        )
    for name in caller.connection.client.ignored_temperature():
        s.warnings.append(f"{name} accepts no temperature; its default was used")
