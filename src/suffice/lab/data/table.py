"""The lab's one shape of data: queries, and what models made of them.

A Table is dense: one row per query, one column per model, NaN where nothing is known. Loaders
(`lab.loading`) make it from files; everything else in the lab takes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from suffice.types import Message

_NOT_WORD = re.compile(r"[\W_]+")
_WRAPPER = re.compile(r"^[\s#*]*(?:question|q|user|human|prompt)\s*:\s*", re.IGNORECASE)

FloatArray = NDArray[np.float64]
_T = TypeVar("_T")


def prompt_key(prompt: str, chars: int | None = None) -> str:
    """What two prompts share when they are the same question: lower case, letters and digits only,
    no 'question:' in front; of all of it, or of its first `chars` characters."""
    return _NOT_WORD.sub("", _WRAPPER.sub("", prompt).lower())[:chars]


@dataclass(frozen=True)
class Table:
    """Outcomes of models on queries.

    query_ids: (n,). messages: (n,) conversations, oldest message first. models: (k,).
    score: (n, k) in [0, 1]. cost_usd, input_tokens, output_tokens, latency_s: (n, k), or None where
    no row of the table had it. NaN = unknown everywhere. group: (n,) what belongs together (session,
    template, user); intervals are clustered by it; None: every query stands alone.
    warnings: what a loader found odd, in words, to be shown to the user.
    """

    name: str
    query_ids: tuple[str, ...]
    messages: tuple[tuple[Message, ...], ...]
    models: tuple[str, ...]
    score: FloatArray
    cost_usd: FloatArray | None = None
    input_tokens: FloatArray | None = None
    output_tokens: FloatArray | None = None
    latency_s: FloatArray | None = None
    benchmark: tuple[str | None, ...] | None = None
    category: tuple[str | None, ...] | None = None
    group: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.query_ids)

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """(n,) the last user message of each conversation."""
        return tuple(
            next((m.text for m in reversed(c) if m.role == "user"), c[-1].text if c else "")
            for c in self.messages
        )

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """(n,) normalised prompts: two rows with one key are the same question to every split."""
        return tuple(
            prompt_key(p) or f"\0{i}" for p, i in zip(self.prompts, self.query_ids, strict=True)
        )

    @cached_property
    def clusters(self) -> NDArray[np.intp]:
        """(n,) number of the group of each query; each query its own where there are no groups."""
        if self.group is None:
            return np.arange(len(self))
        return np.unique(np.array(self.group, dtype=object).astype(str), return_inverse=True)[1]

    @property
    def complete(self) -> NDArray[np.bool_]:
        """(n,) queries on which every model has a score."""
        return np.asarray(~np.isnan(self.score).any(axis=1))

    def take(self, index: Sequence[int] | NDArray[np.intp] | NDArray[np.bool_]) -> Table:
        """The same table with only these queries, in this order."""
        at = np.asarray(index)
        at = np.flatnonzero(at) if at.dtype == bool else at.astype(np.intp)

        def some(values: tuple[_T, ...]) -> tuple[_T, ...]:
            return tuple(values[i] for i in at)

        def part(a: FloatArray | None) -> FloatArray | None:
            return None if a is None else a[at]

        return replace(
            self,
            query_ids=some(self.query_ids),
            messages=some(self.messages),
            score=self.score[at],
            cost_usd=part(self.cost_usd),
            input_tokens=part(self.input_tokens),
            output_tokens=part(self.output_tokens),
            latency_s=part(self.latency_s),
            benchmark=None if self.benchmark is None else some(self.benchmark),
            category=None if self.category is None else some(self.category),
            group=None if self.group is None else some(self.group),
        )

    def select_models(self, models: Sequence[str]) -> Table:
        """The same table with only these models, in this order. Raises KeyError for an unknown."""
        at = {m: i for i, m in enumerate(self.models)}
        cols = [at[m] for m in models]

        def part(a: FloatArray | None) -> FloatArray | None:
            return None if a is None else a[:, cols]

        return replace(
            self,
            models=tuple(models),
            score=self.score[:, cols],
            cost_usd=part(self.cost_usd),
            input_tokens=part(self.input_tokens),
            output_tokens=part(self.output_tokens),
            latency_s=part(self.latency_s),
        )
