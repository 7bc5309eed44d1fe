"""Whether a decision changes when the same question is worded differently, and how long it takes."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.lab.evaluate.frontier import best_predicted, choices_at, sweep_thresholds
from suffice.lab.evaluate.predictions import PredictionRunner, Predictions
from suffice.lab.evaluate.problem import EvalSet
from suffice.lab.evaluate.result import FlipRates
from suffice.lab.predictors.base import Batch, extract_conversations
from suffice.types import Message

MAX_PERTURBED = 500  # queries perturbed for flip rates
MAX_TIMED = 200  # decisions timed


def _wrap(text: str) -> str:
    lines = text.split("\n")
    return "\n".join(textwrap.fill(x, 60) if len(x) > 60 else x for x in lines)


def _swap_first_case(text: str) -> str:
    return text[:1].swapcase() + text[1:]


def _prepend_please(text: str) -> str:
    return f"Please {text[:1].lower()}{text[1:]}"


WHITE_SPACE: dict[str, Callable[[str], str]] = {
    "trailing space": lambda t: t + " \n\n",
    "wrapped at 60 columns": _wrap,
}
REWORDINGS: dict[str, Callable[[str], str]] = {
    "first letter's case": _swap_first_case,
    "'Question:' in front": lambda t: f"Question: {t}",
    "'Please' in front": _prepend_please,
    "'Thanks!' at the end": lambda t: f"{t} Thanks!",
}


def perturb(conversation: Sequence[Message], change: Callable[[str], str]) -> tuple[Message, ...]:
    """The conversation with its last user message changed."""
    messages = list(conversation)
    for i in range(len(messages) - 1, -1, -1):
        if messages[i].role == "user" and not messages[i].is_tool_result:
            messages[i] = msgspec.structs.replace(messages[i], text=change(messages[i].text))
            break
    return tuple(messages)


def flip_rates(predictions: Predictions, runner: PredictionRunner, trade_off: int) -> FlipRates:
    """Measure the share of decisions that change when the question is worded differently.

    Args:
        predictions: Of the policy.
        runner: That made them.
        trade_off: Index of the trade-off at which decisions are compared.

    Returns:
        The rate per kind of change, and its mean per group of changes.
    """
    eval_set, rows = runner.eval_set, predictions.rows
    if len(rows) > MAX_PERTURBED:
        rng = np.random.default_rng((runner.seed, 2))
        rows = np.sort(rng.permutation(rows)[:MAX_PERTURBED])
    conversations = [eval_set.table.messages[i] for i in eval_set.rows[rows]]
    weight = None if eval_set.weight is None else eval_set.weight[rows]
    before = _decide(predictions, runner.x.take(rows), eval_set, trade_off)

    def rates(changes: Mapping[str, Callable[[str], str]]) -> dict[str, float]:
        result = {}
        for name, change in changes.items():
            x = extract_conversations([perturb(c, change) for c in conversations])
            flipped = _decide(predictions, x, eval_set, trade_off) != before
            result[name] = float(np.average(flipped, weights=weight))
        return result

    white_space, rewording = rates(WHITE_SPACE), rates(REWORDINGS)
    return {
        "white_space": float(np.mean(list(white_space.values()))),
        "white_space_each": white_space,
        "rewording": float(np.mean(list(rewording.values()))),
        "rewording_each": rewording,
        "n_queries": len(rows),
    }


def _decide(p: Predictions, x: Batch, eval_set: EvalSet, trade_off: int) -> NDArray[np.intp]:
    """(n,) decisions at one trade-off of the sweep over the predictions."""
    if p.strong_score is not None and eval_set.pair is not None:
        score = p.predictor.strong_score(x, *eval_set.pair)
        choices = sweep_thresholds(score, *eval_set.pair, reference=p.strong_score)
        return np.asarray(choices[trade_off])
    quality, cost = p.predictor.predict(x)
    return choices_at(quality, cost, swept=(p.quality, p.cost), step=trade_off)


def overhead_us(predictions: Predictions, eval_set: EvalSet) -> float:
    """Median microseconds from messages to a choice, one query at a time, in this process.

    It covers text, features, prediction and the best trade-off. Serving's own path is measured in
    benchmarks/.

    Returns:
        Microseconds.
    """
    durations = []
    for i in eval_set.rows[predictions.rows[:MAX_TIMED]]:
        start = time.perf_counter()
        x = extract_conversations([eval_set.table.messages[i]])
        quality, cost = predictions.predictor.predict(x)
        best_predicted(quality, cost)
        durations.append(time.perf_counter() - start)
    return float(np.median(durations)) * 1e6
