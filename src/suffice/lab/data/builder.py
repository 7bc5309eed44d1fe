"""TODO."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from suffice.errors import TableError
from suffice.lab.data.readers import (
    Row,
    missing_column_error,
)
from suffice.lab.data.table import FloatArray, Table
from suffice.types import Message

_NUMBERS = ("cost_usd", "input_tokens", "output_tokens", "latency_s")


_LABELS = ("benchmark", "category", "group")


MISSING_VALUES = (None, "", "null", "None", "nan", "NaN", "NULL")


def table_from_rows(name: str, rows: Iterable[Row], path: str = "") -> Table:
    """A Table from long rows: query and outcome columns joined, one row per query and model; rows
    without `model` are queries only. query_id may be left out: the prompt then stands for it."""
    builder = TableBuilder(name, path)
    for i, row in enumerate(rows, 1):
        query_id = builder.add_query(row, i, joined=True)
        if row.get("model") not in MISSING_VALUES:
            builder.add_outcome({**row, "query_id": query_id}, i)
        elif row.get("score") not in MISSING_VALUES:
            raise TableError("A score without a model.", path=path, column="model", row=i)
    return builder.build()


class TableBuilder:
    """Collects queries and outcomes, checks each, and makes the dense table."""

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.path = path
        self.warnings: list[str] = []
        self._at: dict[str, int] = {}
        self._messages: list[tuple[Message, ...]] = []
        self._labels: dict[str, list[str | None]] = {c: [] for c in _LABELS}
        self._models: dict[str, int] = {}
        self._cells: dict[tuple[int, int], int] = {}
        self._values: list[tuple[float, ...]] = []
        self._dropped: set[str] = set()
        self._nans = 0

    def add_query(self, row: Row, number: int, joined: bool = False) -> str:
        """Takes one query; returns its id. joined: seeing it again is fine."""
        raw = row.get("query_id")
        if raw in MISSING_VALUES and not joined:
            raise self._wrong("query_id", number, "expected an id, got nothing", row)
        messages = self._messages_of(row, number)
        if raw in MISSING_VALUES:
            query_id = "\x1f".join(m.text for m in messages)
        else:
            query_id = str(raw)
        if query_id in self._at:
            if not joined:
                raise self._wrong("query_id", number, f"{query_id!r} appears twice", row)
            at = self._at[query_id]
            if raw not in MISSING_VALUES and messages and messages != self._messages[at]:
                if self._messages[at]:
                    raise self._wrong(
                        "prompt", number, f"query {query_id!r} has another prompt above", row
                    )
                self._messages[at] = messages
            return query_id
        if row.get("contaminated") in (True, "True", "true", 1):
            self._dropped.add(query_id)
            return query_id
        self._at[query_id] = len(self._messages)
        self._messages.append(messages)
        for column, values in self._labels.items():
            v = row.get(column)
            values.append(None if v in MISSING_VALUES else str(v))
        return query_id

    def _messages_of(self, row: Row, number: int) -> tuple[Message, ...]:
        messages = row.get("messages")
        if messages not in MISSING_VALUES:
            return self._parsed(messages, number)
        prompt = row.get("prompt")
        if prompt is None:
            if "prompt" not in row and "messages" not in row:
                raise missing_column_error(self.path, "prompt", list(row))
            raise self._wrong("prompt", number, "expected text, got nothing", row)
        if not isinstance(prompt, str):
            raise self._wrong("prompt", number, f"expected text, got {prompt!r}", row)
        return (Message("user", prompt),)

    def _parsed(self, raw: Any, number: int) -> tuple[Message, ...]:
        if isinstance(raw, str):
            try:
                raw = msgspec.json.decode(raw)
            except msgspec.DecodeError as error:
                raise self._wrong("messages", number, f"not valid JSON: {error}", {}) from None
        out = []
        for m in raw if isinstance(raw, list) else [None]:
            if not isinstance(m, Mapping) or not isinstance(m.get("role"), str):
                raise self._wrong(
                    "messages", number, "expected a list of {role, content} objects", {}
                )
            content = m.get("content")
            parts = content if isinstance(content, list) else [content]
            text = " ".join(
                p if isinstance(p, str) else str(p.get("text") or "")
                for p in parts
                if isinstance(p, (str, Mapping))
            )
            out.append(Message(m["role"], text, is_tool_result=m["role"] in ("tool", "function")))
        return tuple(out)

    def add_outcome(self, row: Row, number: int) -> None:
        """Takes what one model made of one query."""
        query_id = str(row.get("query_id"))
        at = self._at.get(query_id)
        if at is None:
            if query_id in self._dropped:
                return
            raise self._wrong("query_id", number, f"{query_id!r} is not among the queries", row)
        model = row.get("model")
        if model in MISSING_VALUES:
            raise self._wrong("model", number, "expected a name, got nothing", row)
        col = self._models.setdefault(str(model), len(self._models))
        if (at, col) in self._cells:
            raise TableError(
                f"query {query_id!r} and model {str(model)!r} appear twice.",
                path=self.path,
                row=number,
                remedy="Keep one row per query and model, or give repeats a query_id of their own.",
            )
        score = self._number(row, "score", number)
        if score is not None and not 0.0 <= score <= 1.0:
            raise TableError(
                f"expected a score from 0 to 1, got {score:g}.",
                path=self.path,
                column="score",
                row=number,
                remedy="Divide by the scale's largest score.",
            )
        self._cells[at, col] = len(self._values)
        values = [math.nan if score is None else score]
        for column in _NUMBERS:
            v = self._number(row, column, number)
            if v is not None and v < 0:
                raise self._wrong(column, number, f"expected at least 0, got {v:g}", row)
            values.append(math.nan if v is None else v)
        self._values.append(tuple(values))

    def _number(self, row: Row, column: str, number: int) -> float | None:
        raw = row.get(column)
        if isinstance(raw, (int, float)) and not isinstance(raw, bool):
            value = float(raw)
        elif raw in MISSING_VALUES:
            if raw in ("nan", "NaN"):
                self._nans += 1
            return None
        elif raw in ("True", "true", True):
            value = 1.0
        elif raw in ("False", "false", False):
            value = 0.0
        else:
            try:
                value = float(raw)
            except (TypeError, ValueError):
                raise self._wrong(column, number, f"expected a number, got {raw!r}", row) from None
        if math.isnan(value):
            self._nans += 1
            return None
        if math.isinf(value):
            raise self._wrong(column, number, "expected a finite number, got infinity", row)
        return value

    def _wrong(self, column: str, number: int, what: str, row: Row) -> TableError:
        return TableError(f"{what}.", path=self.path, column=column, row=number)

    def build(self) -> Table:
        n, k = len(self._messages), len(self._models)
        arrays: list[FloatArray | None] = []
        values = np.array(self._values, dtype=float).reshape(-1, 1 + len(_NUMBERS))
        cells = np.array(list(self._cells), dtype=np.intp).reshape(-1, 2)
        for c in range(values.shape[1]):
            if c and np.isnan(values[:, c]).all():
                arrays.append(None)
                continue
            dense = np.full((n, k), np.nan)
            dense[cells[:, 0], cells[:, 1]] = values[:, c]
            arrays.append(dense)
        score = arrays[0]
        assert score is not None
        order = sorted(range(k), key=list(self._models).__getitem__)
        optional: dict[str, Any] = {
            name: None if a is None else a[:, order]
            for name, a in zip(_NUMBERS, arrays[1:], strict=True)
        }
        labels: dict[str, Any] = {
            c: tuple(v) if any(x is not None for x in v) else None for c, v in self._labels.items()
        }
        if labels["group"] is not None:
            # A query without a group stands alone.
            labels["group"] = tuple(
                f"\x00{i}" if g is None else g for i, g in enumerate(labels["group"])
            )
        if self._dropped:
            self.warnings.append(f"{len(self._dropped)} queries marked contaminated were dropped")
        if self._nans:
            self.warnings.append(f"{self._nans} values are NaN and count as unknown")
        names = list(self._models)
        made = Table(
            self.name,
            tuple(self._at),
            tuple(self._messages),
            tuple(names[i] for i in order),
            score[:, order],
            **optional,
            **labels,
        )
        return replace(made, warnings=(*self.warnings, *_scales(made)))


def _scales(table: Table) -> Iterator[str]:
    """Scores that are right/wrong for one part and graded for another cannot be averaged blindly."""
    graded = []
    for j, model in enumerate(table.models):
        known = table.score[:, j][~np.isnan(table.score[:, j])]
        if len(known) >= 20:
            graded.append((model, bool(np.isin(known, (0.0, 1.0)).all())))
    if len({g for _, g in graded}) > 1:
        binary = next(m for m, g in graded if g)
        other = next(m for m, g in graded if not g)
        yield (
            f"mixed scales: {binary} has right/wrong scores, {other} graded ones; their means "
            "do not compare"
        )
    if table.benchmark is not None:
        kinds: dict[str, bool] = {}
        names = np.array([b or "" for b in table.benchmark], dtype=object)
        for b in dict.fromkeys(names):
            known = table.score[names == b]
            known = known[~np.isnan(known)]
            if len(known) >= 20:
                kinds[str(b)] = bool(np.isin(known, (0.0, 1.0)).all())
        if len(set(kinds.values())) > 1:
            yield (
                f"mixed scales: {next(b for b, g in kinds.items() if g)!r} has right/wrong scores, "
                f"{next(b for b, g in kinds.items() if not g)!r} graded ones; judge them apart"
            )
