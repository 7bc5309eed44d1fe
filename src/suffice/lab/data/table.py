"""Queries and what models made of them: the one data shape of the lab.

A `Table` is dense: one row per query, one column per model, NaN for unknown values. `load_table`
makes it from files; everything else in the lab takes it.
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
RowIndex = Sequence[int] | NDArray[np.intp] | NDArray[np.bool_]
_T = TypeVar("_T")


def prompt_key(prompt: str, chars: int | None = None) -> str:
    """Normalise a prompt: lower case, letters and digits only, no leading "question:".

    Args:
        prompt: The text.
        chars: Length of the key. None: the whole prompt.

    Returns:
        A key that two prompts share if they are the same question.
    """
    return _NOT_WORD.sub("", _WRAPPER.sub("", prompt).lower())[:chars]


@dataclass(frozen=True)
class Table:
    """Outcomes of models on queries. NaN means unknown everywhere.

    Attributes:
        name: Of the file or folder.
        query_ids: (n,).
        messages: (n,) conversations, oldest message first.
        models: (k,).
        score: (n, k) in [0, 1].
        cost_usd: (n, k), or None if no row of the table has it; so are the next three.
        input_tokens: (n, k) or None.
        output_tokens: (n, k) or None.
        latency_s: (n, k) or None.
        benchmark: (n,) where each query comes from, or None.
        category: (n,) or None.
        group: (n,) queries that belong together (session, template, user) share a group; intervals
            are clustered by it. None: every query is independent.
        sampling_weight: (n,) how many queries of the population each row represents, at least 0.
            None: all represent the same number.
        warnings: Peculiarities that the user must see.
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
    sampling_weight: FloatArray | None = None
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
        """(n,) number of each query's group; without groups, each query has its own number."""
        if self.group is None:
            return np.arange(len(self))
        return np.unique(np.array(self.group, dtype=object).astype(str), return_inverse=True)[1]

    @property
    def complete(self) -> NDArray[np.bool_]:
        """(n,) queries on which every model has a score."""
        return np.asarray(~np.isnan(self.score).any(axis=1))

    def take(self, index: RowIndex) -> Table:
        """The same table with only these queries, in this order."""
        rows = np.asarray(index)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.intp)

        def items(values: tuple[_T, ...]) -> tuple[_T, ...]:
            return tuple(values[i] for i in rows)

        def part(array: FloatArray | None) -> FloatArray | None:
            return None if array is None else array[rows]

        return replace(
            self,
            query_ids=items(self.query_ids),
            messages=items(self.messages),
            score=self.score[rows],
            cost_usd=part(self.cost_usd),
            input_tokens=part(self.input_tokens),
            output_tokens=part(self.output_tokens),
            latency_s=part(self.latency_s),
            benchmark=None if self.benchmark is None else items(self.benchmark),
            category=None if self.category is None else items(self.category),
            group=None if self.group is None else items(self.group),
            sampling_weight=part(self.sampling_weight),
        )

    def select_models(self, models: Sequence[str]) -> Table:
        """Keep only these models, in this order.

        Returns:
            The smaller table.

        Raises:
            KeyError: If the table has no such model.
        """
        index_of = {m: i for i, m in enumerate(self.models)}
        columns = [index_of[m] for m in models]

        def part(array: FloatArray | None) -> FloatArray | None:
            return None if array is None else array[:, columns]

        return replace(
            self,
            models=tuple(models),
            score=self.score[:, columns],
            cost_usd=part(self.cost_usd),
            input_tokens=part(self.input_tokens),
            output_tokens=part(self.output_tokens),
            latency_s=part(self.latency_s),
        )
