"""One database: reading, writing and counting in it. What the parts of the store are built on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from suffice.errors import StoreError
from suffice.store import schema
from suffice.store.engine import first_line, open_engine, shown


class Database:
    """An engine over this version's schema. Raises StoreError where it cannot be opened."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = open_engine(url)
        # SQLite takes one writer at a time and has the others ask again and again, ever more
        # seldom: of this process's threads, one asks.
        self._turn = threading.Lock()

    def dispose(self) -> None:
        """Let go of the connections, where nothing is being written."""
        self._engine.dispose()

    def _rows(self, query: Any, values: Any = None) -> list[dict[str, Any]]:
        try:
            with self._engine.connect() as connection:
                return [dict(r) for r in connection.execute(query, values).mappings()]
        except SQLAlchemyError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> StoreError:
        return StoreError(
            f"The store cannot be read: {first_line(error)}.", remedy=f"Check {shown(self.url)}."
        )

    @contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        """A transaction that writes, in its turn."""
        alone = self._turn if self._engine.dialect.name == "sqlite" else nullcontext()
        with alone, self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _writing(self, what: str) -> Iterator[sa.Connection]:
        """One transaction: all of it or, with StoreError, none.

        Its first statement should write: an SQLite transaction that began by reading cannot wait
        for another writer, it fails.
        """
        try:
            with self._begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(
                f"The store cannot {what} now: {first_line(error)}.",
                remedy="Send it again later.",
            ) from None


def count(connection: sa.Connection, name: str, n: int = 1) -> int:
    """Raise a counter by `n` and return it. Nobody else gets a number, nor sees what was written
    with one, before this transaction ends: numbers become visible in their order."""
    t = schema.counters
    connection.execute(
        sa.update(t).where(t.c.name == name).values(value=t.c.value + n),
    )
    return int(connection.execute(sa.select(t.c.value).where(t.c.name == name)).scalar_one())
