"""The store's snapshots for commands that run beside a gateway: no writer, no taking over of what
other processes left, and no database made where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from suffice.errors import StoreError

if TYPE_CHECKING:
    import sqlalchemy as sa

    from suffice.store.registry import Snapshots


def exists(url: str) -> bool:
    """False where `url` names a file that is not there: opening it would make one."""
    from sqlalchemy.exc import SQLAlchemyError

    from suffice.store.engine import database_file

    try:
        file = database_file(url)
    except SQLAlchemyError:  # whoever opens it says what is wrong with the URL
        return True
    return file is None or file.exists()


def demand(url: str) -> None:
    """Raises StoreError where there is no store at `url`."""
    from suffice.store.engine import shown

    if not exists(url):
        raise StoreError(
            f"There is no store at {shown(url)}: nothing has been recorded.",
            remedy="Run suffice serve first, or give the --config that it ran with.",
        )


@contextmanager
def reading(url: str) -> Iterator[sa.Connection]:
    """A connection to read its tables by. Raises StoreError: no store there, or it cannot be read."""
    from sqlalchemy.exc import SQLAlchemyError

    from suffice.store.engine import first_line, open_engine, shown

    demand(url)
    engine = open_engine(url)
    try:
        with engine.connect() as connection:
            yield connection
    except SQLAlchemyError as error:
        raise StoreError(
            f"The store cannot be read: {first_line(error)}.", remedy=f"Check {shown(url)}."
        ) from None
    finally:
        engine.dispose()


def raw_detail(connection: sa.Connection) -> Any:
    """The column `decisions.detail` as JSON's bytes where the database would otherwise end the whole
    reading at a text that is no UTF-8, not only its row."""
    import sqlalchemy as sa

    from suffice.store import schema

    detail = schema.decisions.c.detail
    if connection.dialect.name == "sqlite":
        return sa.cast(detail, sa.LargeBinary).label("detail")
    return detail


@contextmanager
def snapshots(url: str, *, make: bool = False) -> Iterator[Snapshots]:
    """The part of the store that holds snapshots and promotions. make: also where there is none
    yet. Raises StoreError."""
    from suffice.store.registry import Snapshots

    if not make:
        demand(url)
    store = Snapshots(url)
    try:
        yield store
    finally:
        store.dispose()
