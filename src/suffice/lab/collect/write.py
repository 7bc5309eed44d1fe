"""Writes the outcomes table from the journal, atomically."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from suffice.errors import JobError, UsageError
from suffice.lab.collect.run_state import RunState, ScoredAnswer
from suffice.lab.data import readers

_FILES = (".jsonl", ".ndjson", ".csv", ".parquet")
_QUERY = ("query_id", "prompt", "messages", "benchmark", "category", "group", "expected",
          "sampling_weight")  # fmt: skip
_OUTCOME = ("query_id", "model", "score", "cost_usd", "input_tokens", "output_tokens", "latency_s",
            "finish_reason", "verdicts", "note")  # fmt: skip
_NUMBERS = frozenset(
    ("score", "cost_usd", "input_tokens", "output_tokens", "latency_s", "sampling_weight")
)

Row = dict[str, Any]


def journal_path(out: Path) -> Path:
    """The journal of a table: next to a file, inside a folder."""
    return out.with_name(out.name + ".ledger.jsonl") if out.suffix else out / "ledger.jsonl"


def check_output(out: Path) -> None:
    """Check that a table can be written, before any call is paid for.

    Args:
        out: The table's path.

    Raises:
        UsageError: If it cannot.
    """
    if out.suffix and out.suffix.lower() not in _FILES:
        raise UsageError(
            f"--out {out}: unsupported table format {out.suffix!r}.",
            remedy=f"Give a folder (a name without suffix), or one of {', '.join(_FILES)}.",
        )
    if not out.suffix or out.suffix.lower() == ".parquet":
        readers.require_pyarrow()
    ours = journal_path(out).exists()
    table = out if out.suffix else out / "queries.parquet"
    if table.exists() and not ours:
        raise UsageError(
            f"--out {out} exists and was not written by suffice collect.",
            remedy="Choose another name.",
        )
    if out.exists() and bool(out.suffix) == out.is_dir():
        raise UsageError(
            f"--out {out} is a {'folder' if out.is_dir() else 'file'}.",
            remedy="Choose another name.",
        )


def table_rows(
    state: RunState, rows: Sequence[int], weight: Mapping[int, float] | None
) -> tuple[list[Row], list[Row]]:
    """The rows of the queries and of the outcomes, without columns that are empty throughout."""
    table, queries, outcomes = state.pool.table, [], []
    for i in rows:
        messages = table.messages[i]
        plain = (
            len(messages) == 1
            and messages[0].role == "user"
            and not state.pool.required_capabilities(i)
        )
        group = table.group[i] if table.group else None
        expected = state.pool.expected[i]
        if expected is not None and not isinstance(expected, str):
            expected = msgspec.json.encode(expected).decode()
        query: Row = {
            "query_id": state.pool.ids[i],
            "prompt": messages[0].text if plain else None,
            "messages": None if plain else state.pool.messages[i].decode(),
            "benchmark": table.benchmark[i] if table.benchmark else None,
            "category": table.category[i] if table.category else None,
            "group": None if group is None or group.startswith("\0") else group,
            "expected": expected,
            "sampling_weight": None if weight is None else weight[i],
        }
        queries.append(query)
        outcomes += [_outcome(state.pool.ids[i], c) for c in state.scored_answers(i)]
    return _drop_empty(queries, _QUERY), _drop_empty(outcomes, _OUTCOME)


def _outcome(query_id: str, scored: ScoredAnswer) -> Row:
    answer = scored.answer
    usage = answer.usage if answer else None
    return {
        "query_id": query_id,
        "model": scored.model,
        "score": scored.score,
        "cost_usd": answer.cost_usd if answer else None,
        "input_tokens": usage.input_tokens if usage else None,
        "output_tokens": usage.output_tokens if usage else None,
        "latency_s": round(answer.latency_s, 4) if answer else None,
        "finish_reason": answer.finish_reason if answer else None,
        "verdicts": ",".join(scored.verdicts) or None,
        "note": scored.note,
    }


def _drop_empty(rows: list[Row], columns: Sequence[str]) -> list[Row]:
    """Drop columns without any value, except the score."""
    used = [c for c in columns if c == "score" or any(r[c] is not None for r in rows)]
    return [{c: r[c] for c in used} for r in rows]


def write_table(
    out: Path, queries: list[Row], outcomes: list[Row], card: Mapping[str, Any]
) -> None:
    """Write the table. Each file is written next to its place and then moved there.

    Args:
        out: The table's path.
        queries: Rows of queries.
        outcomes: Rows of outcomes.
        card: Content of collect.json.

    Raises:
        JobError: If it cannot be written.
    """
    try:
        if not out.suffix:
            out.mkdir(parents=True, exist_ok=True)
            # Queries first: if the second move fails, the old outcomes still refer to existing
            # queries.
            _replace(out / "queries.parquet", lambda p: _parquet(p, queries))
            _replace(out / "outcomes.parquet", lambda p: _parquet(p, outcomes))
            data = msgspec.json.format(msgspec.json.encode(card), indent=2)
            _replace(out / "collect.json", lambda p: p.write_bytes(data + b"\n"))
            return
        by_id = {q["query_id"]: q for q in queries}
        rows = [{**by_id[o["query_id"]], **o} for o in outcomes]
        kind = out.suffix.lower()
        if kind == ".parquet":
            _replace(out, lambda p: _parquet(p, rows))
        elif kind == ".csv":
            _replace(out, lambda p: p.write_text(_csv(rows), encoding="utf-8", newline=""))
        else:
            _replace(
                out, lambda p: p.write_bytes(b"".join(msgspec.json.encode(r) + b"\n" for r in rows))
            )
    except OSError as error:
        raise JobError(
            f"--out {out} cannot be written: {error.strerror}.",
            remedy="The answers are in the journal: free some space and run the same command again.",
        ) from None


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        make(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _parquet(path: Path, rows: list[Row]) -> None:
    readers.require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [(c, pa.float64() if c in _NUMBERS else pa.string()) for c in rows[0]]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(fields)), path)
