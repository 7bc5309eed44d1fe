"""Collects queries and outcomes row by row, checks each, and builds a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np

from suffice.errors import TableError
from suffice.lab.data.readers import Row, missing_column_error
from suffice.lab.data.table import FloatArray, Table
from suffice.types import Message

_NUMBERS = ("cost_usd", "input_tokens", "output_tokens", "latency_s")
_LABELS = ("benchmark", "category", "group")
MISSING_VALUES = (None, "", "null", "None", "nan", "NaN", "NULL")
_MIN_SCORES = 20  # scores below which a scale is not judged


def table_from_rows(name: str, rows: Iterable[Row], path: str = "") -> Table:
    """Build a table from long rows, one per query and model, query and outcome columns joined.

    A row without `model` is a query only. Without `query_id` the prompt identifies the query.

    Args:
        name: Of the table.
        rows: In any order.
        path: Where they come from, for errors.

    Returns:
        The table.

    Raises:
        TableError: If a value is wrong.
    """
    builder = TableBuilder(name, path)
    for i, row in enumerate(rows, 1):
        query_id = builder.add_query(row, i, joined=True)
        if row.get("model") not in MISSING_VALUES:
            builder.add_outcome({**row, "query_id": query_id}, i)
        elif row.get("score") not in MISSING_VALUES:
            raise TableError("A score without a model.", path=path, column="model", row=i)
    return builder.build()


class TableBuilder:
    """Collects queries and outcomes and builds the dense table.

    Attributes:
        path: File that rows come from now, for errors.
        warnings: What the table will warn about.
    """

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.path = path
        self.warnings: list[str] = []
        self._query_index: dict[str, int] = {}
        self._messages: list[tuple[Message, ...]] = []
        self._labels: dict[str, list[str | None]] = {c: [] for c in _LABELS}
        self._weights: list[float] = []
        self._models: dict[str, int] = {}
        self._cells: dict[tuple[int, int], int] = {}
        self._values: list[tuple[float, ...]] = []
        self._dropped: set[str] = set()
        self._nans = 0

    def add_query(self, row: Row, number: int, joined: bool = False) -> str:
        """Add one query.

        Args:
            row: With `query_id`, and `prompt` or `messages`.
            number: Of the row, for errors.
            joined: The row may repeat a query.

        Returns:
            The query's id.

        Raises:
            TableError: If a value is wrong or the query was added before.
        """
        raw_id = row.get("query_id")
        if raw_id in MISSING_VALUES and not joined:
            raise self._error("query_id", number, "expected an id, got nothing")
        messages = self._read_messages(row, number)
        has_id = raw_id not in MISSING_VALUES
        query_id = str(raw_id) if has_id else "\x1f".join(m.text for m in messages)
        if query_id in self._query_index:
            if not joined:
                raise self._error("query_id", number, f"{query_id!r} appears twice")
            self._repeat_query(query_id, row, number, messages if has_id else ())
            return query_id
        if row.get("contaminated") in (True, "True", "true", 1):
            self._dropped.add(query_id)
            return query_id
        self._query_index[query_id] = len(self._messages)
        self._messages.append(messages)
        self._weights.append(self._read_weight(row, number))
        for column, values in self._labels.items():
            value = row.get(column)
            values.append(None if value in MISSING_VALUES else str(value))
        return query_id

    def _repeat_query(
        self, query_id: str, row: Row, number: int, messages: tuple[Message, ...]
    ) -> None:
        """Check a further row of a known query, and fill in what the first row lacks."""
        index = self._query_index[query_id]
        if messages and messages != self._messages[index]:
            if self._messages[index]:
                raise self._error("prompt", number, f"query {query_id!r} has another prompt above")
            self._messages[index] = messages
        weight = self._read_weight(row, number)
        if math.isnan(self._weights[index]):
            self._weights[index] = weight
        elif not math.isnan(weight) and weight != self._weights[index]:
            raise self._error(
                "sampling_weight", number, f"query {query_id!r} has another sampling_weight above"
            )

    def _read_weight(self, row: Row, number: int) -> float:
        weight = self._read_number(row, "sampling_weight", number)
        if weight is None:
            return math.nan
        if weight < 0:
            raise self._error("sampling_weight", number, f"expected at least 0, got {weight:g}")
        return weight

    def _read_messages(self, row: Row, number: int) -> tuple[Message, ...]:
        messages = row.get("messages")
        if messages not in MISSING_VALUES:
            return self._parse_messages(messages, number)
        prompt = row.get("prompt")
        if prompt is None:
            if "prompt" not in row and "messages" not in row:
                raise missing_column_error(self.path, "prompt", list(row))
            raise self._error("prompt", number, "expected text, got nothing")
        if not isinstance(prompt, str):
            raise self._error("prompt", number, f"expected text, got {prompt!r}")
        return (Message("user", prompt),)

    def _parse_messages(self, raw: object, number: int) -> tuple[Message, ...]:
        if isinstance(raw, str):
            try:
                raw = msgspec.json.decode(raw)
            except msgspec.DecodeError as error:
                raise self._error("messages", number, f"not valid JSON: {error}") from None
        messages = []
        for item in raw if isinstance(raw, list) else [None]:
            role = item.get("role") if isinstance(item, Mapping) else None
            if not isinstance(item, Mapping) or not isinstance(role, str):
                raise self._error("messages", number, "expected a list of {role, content} objects")
            content = item.get("content")
            parts = content if isinstance(content, list) else [content]
            text = " ".join(
                p if isinstance(p, str) else str(p.get("text") or "")
                for p in parts
                if isinstance(p, (str, Mapping))
            )
            messages.append(Message(role, text, is_tool_result=role in ("tool", "function")))
        return tuple(messages)

    def add_outcome(self, row: Row, number: int) -> None:
        """Add the outcome of one model on one query.

        Args:
            row: With `query_id`, `model`, `score`, and optionally costs, tokens and latency.
            number: Of the row, for errors.

        Raises:
            TableError: If a value is wrong, or the query is unknown, or the outcome was added before.
        """
        query_id = str(row.get("query_id"))
        index = self._query_index.get(query_id)
        if index is None:
            if query_id in self._dropped:
                return
            raise self._error("query_id", number, f"{query_id!r} is not among the queries")
        model = row.get("model")
        if model in MISSING_VALUES:
            raise self._error("model", number, "expected a name, got nothing")
        column = self._models.setdefault(str(model), len(self._models))
        if (index, column) in self._cells:
            raise TableError(
                f"query {query_id!r} and model {str(model)!r} appear twice.",
                path=self.path,
                row=number,
                remedy="Keep one row per query and model, or give each repeat its own query_id.",
            )
        score = self._read_number(row, "score", number)
        if score is not None and not 0.0 <= score <= 1.0:
            raise TableError(
                f"expected a score from 0 to 1, got {score:g}.",
                path=self.path,
                column="score",
                row=number,
                remedy="Divide by the scale's largest score.",
            )
        self._cells[index, column] = len(self._values)
        values = [math.nan if score is None else score]
        for name in _NUMBERS:
            value = self._read_number(row, name, number)
            if value is not None and value < 0:
                raise self._error(name, number, f"expected at least 0, got {value:g}")
            values.append(math.nan if value is None else value)
        self._values.append(tuple(values))

    def _read_number(self, row: Row, column: str, number: int) -> float | None:
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
                value = float(str(raw))
            except ValueError:
                raise self._error(column, number, f"expected a number, got {raw!r}") from None
        if math.isnan(value):
            self._nans += 1
            return None
        if math.isinf(value):
            raise self._error(column, number, "expected a finite number, got infinity")
        return value

    def _error(self, column: str, number: int, what: str) -> TableError:
        return TableError(f"{what}.", path=self.path, column=column, row=number)

    def build(self) -> Table:
        """Build the table from everything added so far."""
        models = sorted(self._models)
        columns = [self._models[m] for m in models]
        values = np.array(self._values, dtype=float).reshape(-1, 1 + len(_NUMBERS))
        labels = {c: tuple(v) if any(v) else None for c, v in self._labels.items()}
        group = labels["group"]
        warnings = list(self.warnings)
        if self._dropped:
            warnings.append(f"{len(self._dropped)} queries marked contaminated were dropped")
        if self._nans:
            warnings.append(f"{self._nans} values are NaN and count as unknown")
        weight = self._build_weight(warnings)
        cost_usd, input_tokens, output_tokens, latency_s = (
            None if np.isnan(v).all() else self._dense(v, columns) for v in values[:, 1:].T
        )
        table = Table(
            self.name,
            tuple(self._query_index),
            tuple(self._messages),
            tuple(models),
            self._dense(values[:, 0], columns),
            cost_usd=cost_usd,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            latency_s=latency_s,
            benchmark=labels["benchmark"],
            category=labels["category"],
            # A query without a group is independent of all others.
            group=None if group is None else _fill_groups(group),
            sampling_weight=weight,
        )
        return replace(table, warnings=(*warnings, *_scale_warnings(table)))

    def _dense(self, values: FloatArray, columns: Sequence[int]) -> FloatArray:
        """(n, k) from the values of the cells, models in the order of `columns`."""
        dense = np.full((len(self._messages), len(self._models)), np.nan)
        cells = np.array(list(self._cells), dtype=np.intp).reshape(-1, 2)
        dense[cells[:, 0], cells[:, 1]] = values
        return dense[:, list(columns)]

    def _build_weight(self, warnings: list[str]) -> FloatArray | None:
        """(n,) sampling weights, None if no row has one."""
        weight = np.array(self._weights)
        missing = np.isnan(weight)
        if missing.all():
            return None
        if not np.nansum(weight):
            raise TableError(
                "every sampling_weight is 0.", path=self.path, column="sampling_weight"
            )
        if missing.any():
            warnings.append(
                f"{missing.sum()} queries have no sampling_weight and count as one query each"
            )
        return np.where(missing, 1.0, weight)


def _fill_groups(groups: Sequence[str | None]) -> tuple[str, ...]:
    return tuple(f"\x00{i}" if g is None else g for i, g in enumerate(groups))


def _scale_warnings(table: Table) -> Iterator[str]:
    """Warn of right/wrong scores next to graded ones: their means do not compare."""
    by_model = {m: table.score[:, j] for j, m in enumerate(table.models)}
    mixed = _mixed_scales(by_model)
    if mixed is not None:
        yield (
            f"mixed scales: {mixed[0]} has right/wrong scores, {mixed[1]} graded ones; their means "
            "do not compare"
        )
    if table.benchmark is not None:
        names = np.array([b or "" for b in table.benchmark], dtype=object)
        mixed = _mixed_scales({b: table.score[names == b] for b in dict.fromkeys(names)})
        if mixed is not None:
            yield (
                f"mixed scales: {mixed[0]!r} has right/wrong scores, {mixed[1]!r} graded ones; "
                "evaluate them separately"
            )


def _mixed_scales(parts: Mapping[str, FloatArray]) -> tuple[str, str] | None:
    """(a part with right/wrong scores, a part with graded ones) if there are both."""
    binary: dict[str, bool] = {}
    for name, score in parts.items():
        known = score[~np.isnan(score)]
        if len(known) >= _MIN_SCORES:
            binary[name] = bool(np.isin(known, (0.0, 1.0)).all())
    right_wrong = next((n for n, b in binary.items() if b), None)
    graded = next((n for n, b in binary.items() if not b), None)
    return None if right_wrong is None or graded is None else (right_wrong, graded)
