"""Loads LiteLLM's spend logs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from suffice.errors import TableError
from suffice.lab.data.builder import TableBuilder
from suffice.lab.data.readers import Row, read_rows
from suffice.lab.data.table import Table


def load_spend_logs(path: Path) -> Table:
    """Load LiteLLM's LiteLLM_SpendLogs, exported as CSV or JSON. They hold no scores.

    A spend of 0 means that LiteLLM knew no price.

    Args:
        path: Of the file.

    Returns:
        The table.

    Raises:
        TableError: If no row has messages, or a value is wrong.
    """
    builder = TableBuilder(path.stem, str(path))
    without_messages = 0
    for i, row in enumerate(read_rows(path), 1):
        messages = _logged_messages(row, path, i)
        if not messages:
            without_messages += 1
            continue
        query_id = builder.add_query(
            {"query_id": row.get("request_id"), "messages": messages,
             "group": row.get("session_id")},
            i,
        )  # fmt: skip
        builder.add_outcome(
            {"query_id": query_id, "model": row.get("model"),
             "cost_usd": row.get("spend") if row.get("spend") not in (0, 0.0, "0", "0.0") else None,
             "input_tokens": row.get("prompt_tokens"),
             "output_tokens": row.get("completion_tokens")},
            i,
        )  # fmt: skip
    table = builder.build()
    if not len(table):
        raise TableError(
            "This log holds no messages.", path=str(path), column="messages",
            remedy="Turn on store_prompts_in_spend_logs in LiteLLM and export again.",
        )  # fmt: skip
    if without_messages:
        builder.warnings.append(f"{without_messages} log rows without messages were left out")
        table = builder.build()
    return table


def _logged_messages(row: Row, path: Path, number: int) -> list[object] | None:
    """The messages of a log row: their own column, or the request's body."""
    for column in ("messages", "proxy_server_request"):
        value = row.get(column)
        if isinstance(value, str) and value.strip():
            try:
                value = msgspec.json.decode(value)
            except msgspec.DecodeError as error:
                raise TableError(
                    f"not valid JSON: {error}.", path=str(path), column=column, row=number
                ) from None
        if isinstance(value, Mapping):
            value = value.get("messages")
        if isinstance(value, list) and value:
            return value
    return None
