"""How hard an ask is among others: scores to quantiles of traffic.

The shipped table describes a mixed chat workload (scripts/build_quantiles.py); a route's own
traffic takes over as it comes in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import msgspec

from suffice.types import Decision

STEPS = 100  # a table has STEPS + 1 entries: the 0 %, 1 %, ..., 100 % quantiles


@cache
def shipped() -> tuple[float, ...]:
    """The shipped quantiles of the default policy's score, (STEPS + 1,), ascending."""
    raw = files(__package__).joinpath("quantiles.json").read_bytes()
    return tuple(msgspec.json.decode(raw)["quantiles"])


def rank(table: Sequence[float], score: float) -> float:
    """The share of traffic below `score`, in [0, 1], linear between the table's entries."""
    i = bisect_left(table, score)
    if i <= 0:
        return 0.0
    if i >= len(table):
        return 1.0
    low, high = table[i - 1], table[i]
    part = (score - low) / (high - low) if high > low else 1.0
    return (i - 1 + part) / (len(table) - 1)


def table_of(scores: Sequence[float]) -> tuple[float, ...]:
    """Quantiles (STEPS + 1,) of a sample, linear between order statistics."""
    s = sorted(scores)
    if not s:
        raise ValueError("scores: expected at least one")
    out = []
    for k in range(STEPS + 1):
        at = k / STEPS * (len(s) - 1)
        i = int(at)
        j = min(i + 1, len(s) - 1)
        out.append(s[i] + (s[j] - s[i]) * (at - i))
    return tuple(out)


class ScoreWindow:
    """Recent scores of one route: the shipped table counts as `prior` of them, the rest is traffic.

    Bounded: the last `keep` scores. `add` says when a fresh table is due.
    """

    def __init__(self, keep: int = 2048, prior: int = 256, every: int = 256) -> None:
        self._keep = keep
        self._prior = prior
        self._every = every
        self._recent: list[float] = []
        self._count = 0

    def add(self, decision: Decision) -> bool:
        score = decision.score
        if score is None:
            return False
        recent = self._recent
        if len(recent) < self._keep:
            recent.append(score)
        else:
            recent[self._count % self._keep] = score
        self._count += 1
        return self._count % self._every == 0

    def table(self) -> tuple[float, ...]:
        base = shipped()
        prior = [base[round(i / max(1, self._prior - 1) * STEPS)] for i in range(self._prior)]
        return table_of(prior + self._recent)
