"""The queries as a whole: lengths, scripts, difficulty, code and mathematics, repetitions."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np

from suffice.lab.assess.results import Mix, Spread
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.predictors.base import Batch
from suffice.policies.priors import DifficultyScorer
from suffice.policies.traffic import default_quantiles, quantile_rank

HARD = 0.75  # quantile of a mixed chat workload above which a query is called hard
# A query is about code, or mathematics, with at least two words or marks of it, and one in 33 of its
# words: long prose holds a "class" and a "return" too.
_MARKS = 2
_MARKS_A_WORD = 0.03
_CHARS_A_WORD = 5.5
_MARKED_CHARS = 1025  # of an ask that marks are counted in
_READ = 400  # characters that tell a query's script
_STEPS = (8, 16, 32, 64, 128, 256, 512, 1024)  # tokens, of the histogram of lengths

# The scripts that share a writing system count as one.
_AS = {"HIRAGANA": "Japanese", "KATAKANA": "Japanese", "CJK": "Han", "HANGUL": "Korean"}


def difficulty(batch: Batch) -> FloatArray:
    """(n,) the share of a mixed chat workload that is easier, by the default policy's score."""
    from suffice import features

    scorer, table = DifficultyScorer(features.SIGNAL_NAMES), default_quantiles()
    return np.array([quantile_rank(table, scorer.score(s)) for s in batch.signals.tolist()])


def column(batch: Batch, name: str) -> FloatArray:
    from suffice import features

    return batch.signals[:, features.SIGNAL_NAMES.index(name)].astype(float)


def mix_of(table: Table, batch: Batch, hard: FloatArray) -> Mix:
    """hard: (n,) of `difficulty`."""
    chars = np.expm1(column(batch, "log_chars"))
    tokens = np.expm1(column(batch, "log_tokens"))
    words = np.minimum(chars, _MARKED_CHARS) / _CHARS_A_WORD
    least = np.log1p(np.maximum(_MARKS, _MARKS_A_WORD * words)) - 1e-6
    fenced = np.array(["```" in p for p in table.prompts])
    at = np.digitize(tokens, _STEPS, right=True)
    return Mix(
        chars=_spread(chars),
        tokens=_spread(tokens),
        prompt_tokens=_spread(np.expm1(column(batch, "log_prompt_tokens"))),
        lengths=_shares(at, len(_STEPS) + 1),
        difficulty=_shares(np.minimum(9, (hard * 10).astype(int)), 10),
        hard_share=float((hard > HARD).mean()),
        code_share=float(((column(batch, "code") >= least) | fenced).mean()),
        math_share=float((column(batch, "math") >= least).mean()),
        multi_turn_share=float((column(batch, "turns") > 0).mean()),
        duplicate_share=1.0 - len(set(table.keys)) / len(table),
        empty_share=float((chars == 0).mean()),
        scripts=scripts(table.prompts),
    )


def _spread(v: FloatArray) -> Spread:
    return Spread(*(float(round(x)) for x in np.quantile(v, [0.1, 0.5, 0.9, 0.99, 1.0])))


def _shares(at: np.ndarray, n: int) -> tuple[float, ...]:
    return tuple((np.bincount(at, minlength=n) / len(at)).tolist())


def scripts(prompts: Sequence[str]) -> dict[str, float]:
    """Share of prompts by the script of most of their letters, largest first; kana makes it
    Japanese, however many characters are Han.

    >>> scripts(["Wie geht es?", "今日の天気は"])
    {'Latin': 0.5, 'Japanese': 0.5}
    """
    seen = Counter(_script(p[:_READ]) for p in prompts)
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
    """The script of a letter, by the first word of its Unicode name; "" where it is none."""
    if not c.isalpha():
        return ""
    first = unicodedata.name(c, "other").split()[0].split("-")[0]
    return _AS.get(first, first.capitalize())
