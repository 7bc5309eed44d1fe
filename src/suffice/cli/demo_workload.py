"""The workload of the demo: its own queries, or those of a file."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from suffice.errors import TableError

_TAGGED = re.compile(r"<(\w[\w-]*)>.*?</\1>", re.DOTALL)


class Query(msgspec.Struct, kw_only=True):
    """One line of the workload."""

    messages: list[dict[str, Any]]
    id: str = ""
    kind: str = "own"
    difficulty: float | None = None  # in [0, 1], as its author rated it
    output_tokens: int | None = None
    tools: list[Any] | None = None
    response_format: Any = None


def load(path: Path | None) -> list[Query]:
    """Read the workload.

    Args:
        path: A JSON lines file; None = the demo's own queries.

    Returns:
        The queries.

    Raises:
        TableError: If the file cannot be read; it names the file and the line.
    """
    try:
        data = (
            path.read_bytes()
            if path
            else files(__package__).joinpath("demo_queries.jsonl").read_bytes()
        )
    except OSError as error:
        raise TableError(f"cannot be read: {error.strerror}.", path=str(path)) from None
    queries: list[Query] = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line)
            if isinstance(row, dict) and "messages" not in row and "prompt" in row:
                row["messages"] = [{"role": "user", "content": row.pop("prompt")}]
            if isinstance(row, str):
                row = {"messages": [{"role": "user", "content": row}]}
            query = msgspec.convert(row, Query)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TableError(
                f"{error}.",
                path=str(path) if path else "the demo's own queries",
                row=number,
                remedy='Each line: {"prompt": "..."} or {"messages": [...]}.',
            ) from None
        query.id = query.id or f"q{number}"
        queries.append(query)
    if not queries:
        raise TableError("contains no queries.", path=str(path))
    return queries


def last_user_text(query: Query) -> str:
    """The last user message, on one line."""
    for m in reversed(query.messages):
        if m.get("role") == "user":
            content = m.get("content")
            if isinstance(content, list):
                content = " ".join(p.get("text", "") for p in content if isinstance(p, dict))
            return " ".join(_TAGGED.sub(" ", str(content or "")).split())
    return ""
