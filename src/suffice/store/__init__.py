"""The store: decisions, attempts, feedback, policy snapshots and what learners have learned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from suffice.store.snapshot import make_snapshot

if TYPE_CHECKING:
    from suffice.store.rows import Embed, Shadow
    from suffice.store.sql import SqlStore

__all__ = ["make_snapshot", "open_store"]


def open_store(
    url: str,
    *,
    keep_prompts: bool = False,
    spool: Path | None = None,
    embed: Embed | None = None,
    shadow: Shadow | None = None,
) -> SqlStore:
    """Open the store at `url` and migrate it to this version's schema.

    SQLAlchemy is imported here, so that programs without a store do not pay for it.

    Args:
        url: `sqlite:///path.db` or `postgresql://user@host/database`.
        keep_prompts: Store the text of prompts.
        spool: The file for records that the database cannot take now. None: next to the database.
        embed: Makes the embedding of a query, on the writer's thread. None: none are stored.
        shadow: What another policy would have decided, likewise.

    Returns:
        The store. Its writer thread runs until `close`.

    Raises:
        StoreError: The store cannot be opened.
    """
    from suffice.store.sql import SqlStore

    return SqlStore(url, keep_prompts=keep_prompts, spool=spool, embed=embed, shadow=shadow)
