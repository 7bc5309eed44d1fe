"""What is to be asked: queries from any table, a store or a text file, exactly as they are sent.

`lab.loading` keeps the text of a conversation, which is enough to learn from; asking a model needs
the messages as they were (parts, names, tool calls), and scoring needs the expected answer.
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
class Pool:
    """Queries to choose from. table: (n,) without outcomes. ids: (n,) as they are written.
    messages: (n,) JSON of OpenAI's `messages`. expected: (n,), None where unknown. column: where
    expected came from; None: the queries have no such column."""

    table: Table
    ids: tuple[str, ...]
    messages: tuple[bytes, ...]
    expected: tuple[Any, ...]
    column: str | None
    source: str
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def needs(self, i: int) -> frozenset[str]:
        """Capabilities without which query i cannot be answered."""
        raw = self.messages[i]
        found = {("vision", b'"image_url"'), ("audio", b'"input_audio"')}
        return frozenset(name for name, mark in found if b'"type":' + mark in raw)


def read_pool(
    source: str, columns: Sequence[str] = (), *, must: bool = False, every: bool = False
) -> Pool:
    """Queries of a file, folder or store.

    columns: where an expected answer may stand; the first that is there is taken. must: one of them
    has to be there. every: with a value for every query. Raises TableError.
    """
    if "://" in source:
        pool = _from_store(source)
    else:
        path = Path(source)
        if not path.exists():
            raise TableError("There is no such file or folder.", path=source)
        if path.suffix.lower() == ".txt":
            pool = _from_rows(path, _lines(path), columns)
        elif path.is_dir() and (path / "queries.parquet").exists():
            pool = _from_rows(path, read_rows(path / "queries.parquet"), columns, once=True)
        elif path.is_dir() or public_formats.detect(path) is not None:
            pool = _from_original(path, columns)
        else:
            pool = _from_rows(path, read_rows(path), columns)
    pool = _with_text(pool)
    if must and pool.column is None:
        raise TableError(
            f"There is no column {' or '.join(map(repr, columns))} with the expected answers.",
            path=source,
            column=columns[0],
            remedy="Add it, or name another with --expected-column.",
        )
    if every:
        lacking = [i for i, e in enumerate(pool.expected) if e in _EMPTY]
        if lacking:
            raise TableError(
                f"{len(lacking)} of {len(pool)} queries have no expected answer, the first is "
                f"{pool.ids[lacking[0]]!r}.",
                path=source,
                column=pool.column,
                remedy="Fill it in, or leave those queries out.",
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
) -> Pool:
    builder = TableBuilder(path.name if once else path.stem, str(path))
    raw: dict[str, bytes] = {}
    expected: dict[str, Any] = {}
    column: str | None = None
    seen: dict[str, None] = {}
    cut = 0
    for i, row in enumerate(rows, 1):
        seen.update(dict.fromkeys(row))
        if column is None:
            column = next((c for c in columns if c in row), None)
        messages = row.get("messages")
        if messages not in MISSING_VALUES:
            messages = _decoded(messages)
            if isinstance(messages, list):
                asked = _to_be_answered(messages)
                cut += len(asked) < len(messages)
                row = {**row, "messages": asked}
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
    if cut:
        warnings.append(f"{cut} conversations ended with an answer, which was cut off")
    return _pool(table, raw, expected, column, str(path), warnings)


def _decoded(messages: Any) -> Any:
    if not isinstance(messages, str):
        return messages
    try:
        return msgspec.json.decode(messages)
    except msgspec.DecodeError:
        return messages  # the builder says what is wrong with it


def _to_be_answered(messages: list[Any]) -> list[Any]:
    """Without the assistant's messages at the end: they are what a model is asked for."""
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
    # Parquet fills every field of a struct, with null where a message has none.
    return msgspec.json.encode(
        [
            {k: v for k, v in m.items() if v is not None or k == "content"}
            for m in cast("list[Mapping[str, object]]", messages)  # add_query has checked them
        ]
    )


def _from_original(path: Path, columns: Sequence[str]) -> Pool:
    """A public original: its loader knows its prompts. The expected answer is looked up by the
    question's number or text."""
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


def _from_store(url: str) -> Pool:
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
        str(r["id"]): _json_of({"messages": _decoded(r["prompt"])}) for r in rows if r.get("prompt")
    }
    return _pool(table, raw, {}, None, url, table.warnings)


def _pool(
    table: Table,
    raw: Mapping[str, bytes],
    expected: Mapping[str, Any],
    column: str | None,
    source: str,
    warnings: Iterable[str],
) -> Pool:
    messages = tuple(
        raw.get(q) or msgspec.json.encode([{"role": m.role, "content": m.text} for m in c])
        for q, c in zip(table.query_ids, table.messages, strict=True)
    )
    ids = tuple(
        # Where no id was given the text stood for it, which is no name to write into a table.
        "q-" + blake2b(m, digest_size=8).hexdigest() if q == "\x1f".join(x.text for x in c) else q
        for q, c, m in zip(table.query_ids, table.messages, messages, strict=True)
    )
    bare = replace(
        table.select_models(()),
        cost_usd=None,
        input_tokens=None,
        output_tokens=None,
        latency_s=None,
    )
    values = tuple(expected.get(q) for q in table.query_ids)
    return Pool(bare, ids, messages, values, column, source, tuple(warnings))


def _with_text(pool: Pool) -> Pool:
    """Without queries that ask nothing."""
    kept = [i for i, c in enumerate(pool.table.messages) if any(m.text.strip() for m in c)]
    if not kept:
        raise TableError("No query has any text.", path=pool.source, column="prompt")
    if len(kept) == len(pool):
        return pool
    return replace(
        pool,
        table=pool.table.take(kept),
        ids=tuple(pool.ids[i] for i in kept),
        messages=tuple(pool.messages[i] for i in kept),
        expected=tuple(pool.expected[i] for i in kept),
        warnings=(*pool.warnings, f"{len(pool) - len(kept)} queries without text were left out"),
    )
