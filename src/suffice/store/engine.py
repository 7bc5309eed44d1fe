"""Opening a database and bringing it to this version's schema."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from suffice.errors import StoreError
from suffice.store import schema

BUSY_S = 5.0  # how long a write waits for another process before the database counts as down


# libpq waits for ever by default: for a server that does not answer, and for one that vanished.
_IMPATIENT = {"connect_timeout": int(BUSY_S), "tcp_user_timeout": int(2 * BUSY_S * 1000)}


def open_engine(url: str) -> sa.Engine:
    """An engine over a database of this version's schema. Raises StoreError."""
    try:
        engine = _engine(url)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        remedy = "Give sqlite:///path.db or postgresql://user@host/database."
        if isinstance(error, ImportError) and url.startswith("postgres"):
            remedy = "Install the driver: pip install 'suffice[postgres]'."
        raise StoreError(
            f"store.url {shown(url)!r} cannot be used: {first_line(error)}.", remedy=remedy
        ) from None
    try:
        migrate(engine)
    except (SQLAlchemyError, OSError) as error:
        engine.dispose()
        raise StoreError(
            f"The store {shown(url)!r} cannot be opened: {first_line(error)}.",
            remedy="Check that the path exists and can be written, or change store.url.",
        ) from None
    except StoreError:
        engine.dispose()
        raise
    return engine


def _engine(url: str) -> sa.Engine:
    if not url.startswith("sqlite"):
        parsed = sa.make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        own = parsed.drivername == "postgresql+psycopg"
        return sa.create_engine(
            parsed, pool_pre_ping=True, connect_args=dict(_IMPATIENT) if own else {}
        )
    args: dict[str, Any] = {"timeout": BUSY_S}
    if database_file(url) is None:
        # A database in memory is its connection: one for all threads, one thread at a time.
        engine = sa.create_engine(
            url,
            connect_args={**args, "check_same_thread": False},
            poolclass=sa.pool.QueuePool,
            pool_size=1,
            max_overflow=0,
        )
    else:
        engine = sa.create_engine(url, connect_args=args)

    @sa.event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute(f"PRAGMA busy_timeout={int(BUSY_S * 1000)}")
        cursor.close()

    return engine


def _write_ahead(cursor: Any) -> None:
    """Have a log written ahead. Of two workers that do so to a new file at once, each may hold what
    the other waits for, and SQLite then says that it is locked: asked again, a little each time."""
    until_s = time.monotonic() + BUSY_S
    cursor.execute("PRAGMA busy_timeout=50")
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until_s:
                raise
        time.sleep(0.01)


def database_file(url: str) -> Path | None:
    """The file of an SQLite database; None for one in memory, and for a server's.

    Raises sqlalchemy.exc.ArgumentError for what is no URL.
    """
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    assert parsed.database is not None
    return Path(parsed.database).absolute()


def spool_base(url: str) -> Path | None:
    """What the spool file is named after; None where a database in memory needs none."""
    if url.startswith("sqlite"):
        return database_file(url)
    return Path(f"suffice-{hashlib.sha256(shown(url).encode()).hexdigest()[:8]}").absolute()


def migrate(engine: sa.Engine) -> None:
    """Bring the database to this version's schema. Alembic is imported only where there is work."""
    with engine.connect() as connection:
        version = _version(connection)
    if version == schema.HEAD:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    scripts = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", scripts.replace("%", "%%"))  # it interpolates
    known = {s.revision for s in ScriptDirectory.from_config(config).walk_revisions()}
    if version is not None and version not in known:
        raise StoreError(
            f"The store has schema {version}, which this version of suffice does not know.",
            remedy="It was written by a newer one: upgrade suffice, or use another store.url.",
        )
    for attempt in range(20):
        try:
            with engine.begin() as connection:
                if engine.dialect.name == "sqlite":
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                if _version(connection) != schema.HEAD:
                    config.attributes["connection"] = connection
                    command.upgrade(config, "head")
            return
        except SQLAlchemyError:
            # Another worker is migrating at this moment: look again.
            if attempt == 19:
                raise
            time.sleep(0.1)
            with engine.connect() as connection:
                if _version(connection) == schema.HEAD:
                    return


def _version(connection: Any) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    row = connection.exec_driver_sql("SELECT version_num FROM alembic_version").first()
    return None if row is None else str(row[0])


def insert_sql(engine: sa.Engine, table: str, columns: list[str]) -> str:
    """An insert that ignores an id that is there already, in the driver's own marks."""
    mark = "?" if engine.dialect.paramstyle == "qmark" else "%s"
    names = ", ".join(columns)
    values = ", ".join([mark] * len(columns))
    return f"INSERT INTO {table} ({names}) VALUES ({values}) ON CONFLICT DO NOTHING"


def first_line(error: BaseException) -> str:
    """What a driver said, without SQLAlchemy's statement and link."""
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def shown(url: str) -> str:
    """A URL without its password."""
    try:
        return str(sa.make_url(url))
    except SQLAlchemyError:
        return url
