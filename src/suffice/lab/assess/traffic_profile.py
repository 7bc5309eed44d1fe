"""The queries as a whole: lengths, scripts, difficulty, code and mathematics, repetitions."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np

from suffice.lab.assess.results import Quantiles, TrafficProfile
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.predictors.base import Batch
from suffice.policies.priors import DifficultyScorer
from suffice.policies.traffic import default_quantiles, quantile_rank

HARD = 0.75  # quantile of a mixed chat workload above which a query is called hard
# A query is about code, or mathematics, if it has at least two words or marks of it, and one per 33
# words: long prose contains a "class" and a "return" too.
_MIN_MARKS = 2
_MARKS_PER_WORD = 0.03
_CHARS_PER_WORD = 5.5
_SCANNED_CHARS = 1025  # of a message, in which marks are counted
_SCRIPT_CHARS = 400  # from which a query's script is determined
_STEPS = (8, 16, 32, 64, 128, 256, 512, 1024)  # tokens, of the histogram of lengths

# Scripts of one writing system count as one.
_WRITING_SYSTEM = {"HIRAGANA": "Japanese", "KATAKANA": "Japanese", "CJK": "Han", "HANGUL": "Korean"}


def difficulty(batch: Batch) -> FloatArray:
    """The share of a mixed chat workload that is easier, by the default policy's score, (n,)."""
    from suffice import features

    scorer, table = DifficultyScorer(features.SIGNAL_NAMES), default_quantiles()
    return np.array([quantile_rank(table, scorer.score(s)) for s in batch.signals.tolist()])


def signal_column(batch: Batch, name: str) -> FloatArray:
    """One signal of all queries, (n,)."""
    from suffice import features

    return batch.signals[:, features.SIGNAL_NAMES.index(name)].astype(float)


def profile_traffic(table: Table, batch: Batch, hard: FloatArray) -> TrafficProfile:
    """The profile of a table's queries. hard: (n,) as `difficulty` returns it."""
    chars = np.expm1(signal_column(batch, "log_chars"))
    tokens = np.expm1(signal_column(batch, "log_tokens"))
    words = np.minimum(chars, _SCANNED_CHARS) / _CHARS_PER_WORD
    least = np.log1p(np.maximum(_MIN_MARKS, _MARKS_PER_WORD * words)) - 1e-6
    fenced = np.array(["```" in p for p in table.prompts])
    bins = np.digitize(tokens, _STEPS, right=True)
    return TrafficProfile(
        chars=_quantiles(chars),
        tokens=_quantiles(tokens),
        prompt_tokens=_quantiles(np.expm1(signal_column(batch, "log_prompt_tokens"))),
        lengths=_shares(bins, len(_STEPS) + 1),
        difficulty=_shares(np.minimum(9, (hard * 10).astype(int)), 10),
        hard_share=float((hard > HARD).mean()),
        code_share=float(((signal_column(batch, "code") >= least) | fenced).mean()),
        math_share=float((signal_column(batch, "math") >= least).mean()),
        multi_turn_share=float((signal_column(batch, "turns") > 0).mean()),
        duplicate_share=1.0 - len(set(table.keys)) / len(table),
        empty_share=float((chars == 0).mean()),
        scripts=script_shares(table.prompts),
    )


def _quantiles(v: FloatArray) -> Quantiles:
    return Quantiles(*(float(round(x)) for x in np.quantile(v, [0.5, 0.9, 0.99, 1.0])))


def _shares(bins: np.ndarray, n: int) -> tuple[float, ...]:
    return tuple((np.bincount(bins, minlength=n) / len(bins)).tolist())


def script_shares(prompts: Sequence[str]) -> dict[str, float]:
    """Returns the share of prompts by the script of most of their letters, largest first.

    A prompt with kana is Japanese, however many of its characters are Han.

    >>> script_shares(["Wie geht es?", "今日の天気は"])
    {'Latin': 0.5, 'Japanese': 0.5}
    """
    seen = Counter(_script(p[:_SCRIPT_CHARS]) for p in prompts)
    return {name: count / len(prompts) for name, count in seen.most_common()}


def _script(text: str) -> str:
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else "none"
    seen = Counter(_script_of(c) for c in text)
    seen.pop("", None)
    if not seen:
        return "none"
    if seen["Japanese"] and seen["Han"]:
        return "Japanese"
    return seen.most_common(1)[0][0]


@cache
def _script_of(c: str) -> str:
    """The script of a letter, by the first word of its Unicode name; "" if it is not a letter."""
    if not c.isalpha():
        return ""
    first = unicodedata.name(c, "other").split()[0].split("-")[0]
    return _WRITING_SYSTEM.get(first, first.capitalize())
