"""The store: decisions, attempts and feedback."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .sql import SqlStore

__all__ = ["open_store"]


def open_store(url: str, *, keep_prompts: bool = False, spool: Path | None = None) -> SqlStore:
    """The store at `url`, brought to this version's schema. Imports SQLAlchemy, so not before.

    spool: where records go while the database is down; None = beside it. Raises StoreError.
    """
    from .sql import SqlStore

    return SqlStore(url, keep_prompts=keep_prompts, spool=spool)
