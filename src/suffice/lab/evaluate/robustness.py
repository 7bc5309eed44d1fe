"""The same question in other words or other white space, to see whether a decision changes; and how
long a decision takes."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.lab.evaluate.frontier import best_predicted, choices_at, sweep_thresholds
from suffice.lab.evaluate.predictions import PredictionRunner, Predictions
from suffice.lab.evaluate.problem import EvalSet
from suffice.lab.predictors.base import Batch, extract_conversations
from suffice.types import Message

_ASKED_AGAIN = 500  # queries reworded for flip rates, at most
_TIMED = 200  # decisions timed, at most


def _wrapped(text: str) -> str:
    lines = text.split("\n")
    return "\n".join(textwrap.fill(x, 60) if len(x) > 60 else x for x in lines)


def _other_case(text: str) -> str:
    return text[:1].swapcase() + text[1:]


def _please(text: str) -> str:
    return f"Please {text[:1].lower()}{text[1:]}"


WHITE_SPACE: dict[str, Callable[[str], str]] = {
    "trailing space": lambda t: t + " \n\n",
    "wrapped at 60 columns": _wrapped,
}
REWORDINGS: dict[str, Callable[[str], str]] = {
    "first letter's case": _other_case,
    "'Question:' in front": lambda t: f"Question: {t}",
    "'Please' in front": _please,
    "'Thanks!' at the end": lambda t: f"{t} Thanks!",
}


def perturb(conversation: Sequence[Message], change: Callable[[str], str]) -> tuple[Message, ...]:
    """The conversation with its last user message changed."""
    out = list(conversation)
    for i in range(len(out) - 1, -1, -1):
        if out[i].role == "user" and not out[i].is_tool_result:
            out[i] = msgspec.structs.replace(out[i], text=change(out[i].text))
            break
    return tuple(out)


def flip_rates(
    f: Predictions, ground: EvalSet, ask: PredictionRunner, point: Mapping[str, Any]
) -> dict[str, Any]:
    """Share of decisions that change when the same question is put otherwise, at the trade-off of
    the operating point, and the mean over all kinds of change."""
    rows = f.rows
    if len(rows) > _ASKED_AGAIN:
        rows = np.sort(np.random.default_rng((ask.seed, 2)).permutation(rows)[:_ASKED_AGAIN])
    said = [ground.table.messages[i] for i in ground.rows[rows]]
    before = _decisions(f, ask.judged.take(rows), ground, point)
    out: dict[str, Any] = {}
    groups = {"white_space": WHITE_SPACE, "rewording": REWORDINGS}
    for kind, changes in groups.items():
        rates = {}
        for name, change in changes.items():
            x = extract_conversations([perturb(c, change) for c in said])
            rates[name] = float((_decisions(f, x, ground, point) != before).mean())
        out[kind] = float(np.mean(list(rates.values())))
        out[f"{kind}_each"] = rates
    out["n_queries"] = len(rows)
    return out


def _decisions(
    f: Predictions, x: Batch, ground: EvalSet, point: Mapping[str, Any]
) -> NDArray[np.intp]:
    t = int(point["trade_off"])
    if f.rank is not None and ground.strong is not None and ground.weak is not None:
        score = f.predictor.strong_score(x, ground.strong, ground.weak)
        choices = sweep_thresholds(score, ground.strong, ground.weak, like=f.rank)
        return np.asarray(choices[t])
    quality, cost = f.predictor.predict(x)
    return choices_at(quality, cost, like=(f.quality, f.cost), step=t)


def overhead_us(f: Predictions, ground: EvalSet) -> float:
    """Median microseconds from messages to a choice, one query at a time, in this process: text to
    features to prediction to the best trade-off. Serving's own path is measured in benchmarks/."""
    spent = []
    for i in ground.rows[f.rows[:_TIMED]]:
        began = time.perf_counter()
        x = extract_conversations([ground.table.messages[i]])
        quality, cost = f.predictor.predict(x)
        best_predicted(quality, cost)
        spent.append(time.perf_counter() - began)
    return float(np.median(spent)) * 1e6
