"""The store: decisions, attempts, feedback, and what was learned from them."""

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
    """The store at `url`, brought to this version's schema. Imports SQLAlchemy, so not before.

    spool: where records go while the database is down; None = beside it. embed: the ask as a point,
    (n_dimensions,) or None, asked for each record on the writer's thread; shadow: likewise, what
    another policy would have decided. Raises StoreError.
    """
    from suffice.store.sql import SqlStore

    return SqlStore(url, keep_prompts=keep_prompts, spool=spool, embed=embed, shadow=shadow)
