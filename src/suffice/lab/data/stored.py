"""Builds a table from the decisions of a store whose prompts were kept."""

from __future__ import annotations

import msgspec

from suffice.errors import StoreError, TableError
from suffice.lab.data.builder import TableBuilder
from suffice.lab.data.table import Table
from suffice.store.reader import mean_score, open_reader

MAX_DECISIONS = 200_000  # the newest are read
_COLUMNS = (
    "session", "route", "model", "cost_usd", "input_tokens", "output_tokens", "latency_s", "prompt",
)  # fmt: skip


def table_from_store(url: str) -> Table:
    """Build a table of stored decisions, scored by the weighted mean of their feedback.

    Args:
        url: Of the store.

    Returns:
        One row per decision with a stored prompt; the model that answered has the only outcome.

    Raises:
        TableError: If the store cannot be read or holds no prompt.
    """
    try:
        with open_reader(url) as store:
            decisions = list(
                store.decisions(_COLUMNS, audits=True, newest_first=True, limit=MAX_DECISIONS)
            )
    except StoreError as error:
        raise TableError(str(error), path=url) from None
    with_prompt = [d for d in reversed(decisions) if d.row["prompt"]]
    if not with_prompt:
        raise TableError(
            f"The store holds {len(decisions)} decisions and no prompt.",
            path=url,
            remedy="Set keep_prompts = true under [store], and try again after some traffic.",
        )
    builder = TableBuilder("store", url)
    for i, (row, scores) in enumerate(with_prompt, 1):
        query_id = builder.add_query(
            {"query_id": row["id"], "messages": msgspec.json.decode(row["prompt"]),
             "group": row["session"], "category": row["route"]},
            i,
        )  # fmt: skip
        if row["model"]:
            outcome = {
                c: row[c] for c in ("cost_usd", "input_tokens", "output_tokens", "latency_s")
            }
            outcome |= {"query_id": query_id, "model": row["model"], "score": mean_score(scores)}
            builder.add_outcome(outcome, i)
    if len(with_prompt) < len(decisions):
        builder.warnings.append(
            f"{len(decisions) - len(with_prompt)} decisions without a prompt were left out"
        )
    return builder.build()
