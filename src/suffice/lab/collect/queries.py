"""Reads the queries to ask from any table, a store or a text file, exactly as they are sent.

`lab.data` keeps the text of a conversation, which is enough for training. Asking a model needs the
complete messages (parts, names, tool calls), and scoring needs the expected answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import msgspec

from suffice.errors import StoreError, TableError, nearest
from suffice.lab.data import load, public_formats
from suffice.lab.data.builder import MISSING_VALUES, TableBuilder
from suffice.lab.data.readers import Row, read_rows
from suffice.lab.data.stored import table_from_store
from suffice.lab.data.table import Table

_EMPTY = (None, "")


@dataclass(frozen=True)
class QueryPool:
    """n queries to select from."""

    table: Table  # without outcomes
    ids: tuple[str, ...]
    messages: tuple[bytes, ...]  # JSON of OpenAI's `messages`
    expected: tuple[Any, ...]  # None = unknown
    column: str | None  # of the expected answers; None = there is no such column
    source: str
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def required_capabilities(self, i: int) -> frozenset[str]:
        """Capabilities that a model needs for query i."""
        raw = self.messages[i]
        marks = {("vision", b'"image_url"'), ("audio", b'"input_audio"')}
        return frozenset(name for name, mark in marks if b'"type":' + mark in raw)


def read_queries(
    source: str, columns: Sequence[str] = (), *, required: bool = False, every: bool = False
) -> QueryPool:
    """Read the queries of a file, folder or store.

    Args:
        source: A path or a store's URL.
        columns: Columns that may hold the expected answer; the first that exists is used.
        required: Whether one of the columns must exist.
        every: Whether every query must have an expected answer.

    Returns:
        The queries.

    Raises:
        TableError: If they cannot be used; it names the place.
    """
    if "://" in source:
        pool = _from_store(source)
    else:
        path = Path(source)
        if not path.exists():
            raise TableError("no such file or folder.", path=source)
        if path.suffix.lower() == ".txt":
            pool = _from_rows(path, _lines(path), columns)
        elif path.is_dir() and (path / "queries.parquet").exists():
            pool = _from_rows(path, read_rows(path / "queries.parquet"), columns, once=True)
        elif path.is_dir() or public_formats.detect(path) is not None:
            pool = _from_public_format(path, columns)
        else:
            pool = _from_rows(path, read_rows(path), columns)
    pool = _with_text(pool)
    if required and pool.column is None:
        raise TableError(
            f"There is no column {' or '.join(map(repr, columns))} with the expected answers.",
            path=source,
            column=columns[0],
            remedy="Add it, or name another with --expected-column.",
        )
    if every:
        missing = [i for i, e in enumerate(pool.expected) if e in _EMPTY]
        if missing:
            raise TableError(
                f"{len(missing)} of {len(pool)} queries have no expected answer, the first is "
                f"{pool.ids[missing[0]]!r}.",
                path=source,
                column=pool.column,
                remedy="Add it, or remove those queries.",
            )
    return pool


def _lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise TableError(
                    f"is not UTF-8: byte 0x{line[error.start]:02x}.",
                    path=str(path),
                    row=number,
                    remedy="Convert it, for example with iconv -t UTF-8.",
                ) from None
            if text:
                yield {"prompt": text}


def _from_rows(
    path: Path, rows: Iterable[Row], columns: Sequence[str], *, once: bool = False
) -> QueryPool:
    builder = TableBuilder(path.name if once else path.stem, str(path))
    raw: dict[str, bytes] = {}
    expected: dict[str, Any] = {}
    column: str | None = None
    seen: dict[str, None] = {}
    shortened = 0
    for i, row in enumerate(rows, 1):
        seen.update(dict.fromkeys(row))
        if column is None:
            column = next((c for c in columns if c in row), None)
        messages = row.get("messages")
        if messages not in MISSING_VALUES:
            messages = _decode_messages(messages)
            if isinstance(messages, list):
                question = _without_last_answer(messages)
                shortened += len(question) < len(messages)
                row = {**row, "messages": question}
        query_id = builder.add_query(row, i, joined=not once)
        if query_id not in raw:
            raw[query_id] = _json_of(row)
        if column is not None and expected.get(query_id) in _EMPTY:
            expected[query_id] = row.get(column)
    table = builder.build()
    if columns and column is None and seen:
        close = nearest(columns[0], seen, 1)
        if close and close[0] not in ("prompt", "messages", "model", "query_id"):
            builder.warnings.append(f"the column nearest to {columns[0]!r} is {close[0]!r}")
    warnings = [*table.warnings]
    if shortened:
        warnings.append(f"{shortened} conversations ended with an answer, which was removed")
    return _pool(table, raw, expected, column, str(path), warnings)


def _decode_messages(messages: Any) -> Any:
    if not isinstance(messages, str):
        return messages
    try:
        return msgspec.json.decode(messages)
    except msgspec.DecodeError:
        return messages  # the builder reports what is wrong with it


def _without_last_answer(messages: list[Any]) -> list[Any]:
    """The messages without the assistant's at the end, which are what a model is asked for."""
    n = len(messages)
    while (
        n > 1
        and isinstance(messages[n - 1], Mapping)
        and messages[n - 1].get("role") == "assistant"
    ):
        n -= 1
    return messages[:n]


def _json_of(row: Row) -> bytes:
    messages = row.get("messages")
    if messages in MISSING_VALUES:
        return msgspec.json.encode([{"role": "user", "content": row.get("prompt")}])
    # Parquet fills every field of a struct, with null if a message has none.
    return msgspec.json.encode(
        [
            {k: v for k, v in m.items() if v is not None or k == "content"}
            for m in cast("list[Mapping[str, object]]", messages)  # add_query has checked them
        ]
    )


def _from_public_format(path: Path, columns: Sequence[str]) -> QueryPool:
    """Returns the queries of a public benchmark's own format.

    Its loader knows the prompts. The expected answer is looked up by the question's number or text.
    """
    table = load.load_table(path, need_scores=False)
    by_key: dict[str, Any] = {}
    column: str | None = None
    if path.is_file() and columns:
        for row in read_rows(path):
            if column is None:
                column = next((c for c in columns if c in row), None)
            if column is None:
                break
            for name in ("query_id", "question_id", "id", "question", "prompt"):
                if row.get(name) not in _EMPTY:
                    by_key.setdefault(f"{row[name]}", row.get(column))
    expected = {
        query_id: by_key.get(query_id, by_key.get(prompt))
        for query_id, prompt in zip(table.query_ids, table.prompts, strict=True)
    }
    return _pool(table, {}, expected, column, str(path), table.warnings)


def _from_store(url: str) -> QueryPool:
    table = table_from_store(url)
    from suffice.store import open_store

    try:
        store = open_store(url)
        try:
            rows = store.decisions(limit=200_000)
        finally:
            store.close()
    except StoreError as error:
        raise TableError(str(error), path=url) from None
    raw = {
        str(r["id"]): _json_of({"messages": _decode_messages(r["prompt"])})
        for r in rows
        if r.get("prompt")
    }
    return _pool(table, raw, {}, None, url, table.warnings)


def _pool(
    table: Table,
    raw: Mapping[str, bytes],
    expected: Mapping[str, Any],
    column: str | None,
    source: str,
    warnings: Iterable[str],
) -> QueryPool:
    messages = tuple(
        raw.get(q) or msgspec.json.encode([{"role": m.role, "content": m.text} for m in c])
        for q, c in zip(table.query_ids, table.messages, strict=True)
    )
    ids = tuple(
        # Without an id the text takes its place, which is not a good id for a table.
        "q-" + blake2b(m, digest_size=8).hexdigest() if q == "\x1f".join(x.text for x in c) else q
        for q, c, m in zip(table.query_ids, table.messages, messages, strict=True)
    )
    without_outcomes = replace(
        table.select_models(()),
        cost_usd=None,
        input_tokens=None,
        output_tokens=None,
        latency_s=None,
    )
    values = tuple(expected.get(q) for q in table.query_ids)
    return QueryPool(without_outcomes, ids, messages, values, column, source, tuple(warnings))


def _with_text(pool: QueryPool) -> QueryPool:
    """The queries that have text."""
    rows = [i for i, c in enumerate(pool.table.messages) if any(m.text.strip() for m in c)]
    if not rows:
        raise TableError("No query has any text.", path=pool.source, column="prompt")
    if len(rows) == len(pool):
        return pool
    return replace(
        pool,
        table=pool.table.take(rows),
        ids=tuple(pool.ids[i] for i in rows),
        messages=tuple(pool.messages[i] for i in rows),
        expected=tuple(pool.expected[i] for i in rows),
        warnings=(*pool.warnings, f"{len(pool) - len(rows)} queries without text were left out"),
    )
