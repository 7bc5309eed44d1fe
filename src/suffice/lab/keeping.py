"""The store's snapshots for commands that run beside a gateway: no writer, no taking over of what
other processes left, and no database made where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import StoreError

if TYPE_CHECKING:
    from ..store.snapshots import Snapshots


def exists(url: str) -> bool:
    """False where `url` names a file that is not there: opening it would make one."""
    from sqlalchemy.exc import SQLAlchemyError

    from ..store.opening import database_file

    try:
        file = database_file(url)
    except SQLAlchemyError:  # whoever opens it says what is wrong with the URL
        return True
    return file is None or file.exists()


def demand(url: str) -> None:
    """Raises StoreError where there is no store at `url`."""
    from ..store.opening import shown

    if not exists(url):
        raise StoreError(
            f"There is no store at {shown(url)}: nothing has been recorded.",
            remedy="Run suffice serve first, or give the --config that it ran with.",
        )


@contextmanager
def snapshots(url: str, *, make: bool = False) -> Iterator[Snapshots]:
    """The part of the store that holds snapshots and promotions. make: also where there is none
    yet. Raises StoreError."""
    from ..store.snapshots import Snapshots

    if not make:
        demand(url)
    store = Snapshots(url)
    try:
        yield store
    finally:
        store.dispose()
