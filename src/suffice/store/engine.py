"""Opens a database, migrates it to this version's schema, and runs queries and transactions."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from suffice.errors import StoreError
from suffice.store import schema
from suffice.store.protocols import Row

# A table without rowid keeps at most a quarter of a page of a row in its tree; the rest goes to
# overflow pages, which double the cost of a record. Takes effect when a database is created.
PAGE_BYTES = 8192
BUSY_S = 5.0  # how long a write waits for another process before the database counts as down
_MIGRATION_ATTEMPTS = 20
_MIGRATION_WAIT_S = 0.1


def open_engine(url: str) -> sa.Engine:
    """Open a database and migrate it.

    Returns:
        An engine over a database of this version's schema.

    Raises:
        StoreError: The URL is invalid, the driver is missing, the database cannot be opened, or a
            newer version of suffice wrote it.
    """
    try:
        engine = create_engine(url)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        remedy = "Give sqlite:///path.db or postgresql://user@host/database."
        if isinstance(error, ImportError) and url.startswith("postgres"):
            remedy = "Install the driver: pip install 'suffice[postgres]'."
        raise StoreError(
            f"store.url {redact_url(url)!r} cannot be used: {driver_message(error)}.",
            remedy=remedy,
        ) from None
    try:
        migrate(engine)
    except (SQLAlchemyError, OSError) as error:
        engine.dispose()
        raise StoreError(
            f"The store {redact_url(url)!r} cannot be opened: {driver_message(error)}.",
            remedy="Check that the path exists and can be written, or change store.url.",
        ) from None
    except StoreError:
        engine.dispose()
        raise
    return engine


def create_engine(url: str) -> sa.Engine:
    """An engine for the URL, of any schema version. SQLite is opened with a write-ahead log."""
    if not url.startswith("sqlite"):
        return _server_engine(sa.make_url(url))
    timeout = {"timeout": BUSY_S}
    if database_file(url) is None:
        # An in-memory database exists per connection: all threads share one, in turns.
        engine = sa.create_engine(
            url,
            connect_args={**timeout, "check_same_thread": False},
            poolclass=sa.pool.QueuePool,
            pool_size=1,
            max_overflow=0,
        )
    else:
        engine = sa.create_engine(url, connect_args=timeout)

    @sa.event.listens_for(engine, "connect")
    def _set_pragmas(connection: sqlite3.Connection, _: object) -> None:
        cursor = connection.cursor()
        _create_file(cursor)
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute(f"PRAGMA busy_timeout={int(BUSY_S * 1000)}")
        cursor.close()

    return engine


def _server_engine(url: sa.URL) -> sa.Engine:
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    # libpq has no time limit by default, neither for connecting nor for a server that vanished.
    limits = {"connect_timeout": int(BUSY_S), "tcp_user_timeout": int(2 * BUSY_S * 1000)}
    psycopg = url.drivername == "postgresql+psycopg"
    return sa.create_engine(url, pool_pre_ping=True, connect_args=limits if psycopg else {})


def _create_file(cursor: sqlite3.Cursor) -> None:
    """Set the page size of a new file, and switch to a write-ahead log.

    When two workers do so on a new file at the same time, each may hold the lock that the other
    waits for. SQLite then reports "locked" at once, so the statements are retried.

    Raises:
        sqlite3.OperationalError: The file is locked for too long, or cannot be written.
    """
    deadline_s = time.monotonic() + BUSY_S
    cursor.execute("PRAGMA busy_timeout=50")
    while True:
        try:
            cursor.execute(f"PRAGMA page_size={PAGE_BYTES}")
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() >= deadline_s:
                raise
        time.sleep(0.01)


def database_file(url: str) -> Path | None:
    """The file of an SQLite database.

    Returns:
        None for an in-memory database and for a server.

    Raises:
        sqlalchemy.exc.ArgumentError: The URL is invalid.
    """
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    assert parsed.database is not None
    return Path(parsed.database).absolute()


def spool_base(url: str) -> Path | None:
    """The path that the spool file's name begins with. None: an in-memory database has no spool."""
    if url.startswith("sqlite"):
        return database_file(url)
    return Path(f"suffice-{hashlib.sha256(redact_url(url).encode()).hexdigest()[:8]}").absolute()


def migrate(engine: sa.Engine) -> None:
    """Bring the database to this version's schema. Imports Alembic only if there is work to do.

    Raises:
        StoreError: The schema is newer than this version of suffice.
        SQLAlchemyError: A migration failed; the transaction was rolled back.
    """
    with engine.connect() as connection:
        version = _schema_version(connection)
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
    for attempt in range(_MIGRATION_ATTEMPTS):
        try:
            with engine.begin() as connection:
                if engine.dialect.name == "sqlite":
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                if _schema_version(connection) != schema.HEAD:
                    config.attributes["connection"] = connection
                    command.upgrade(config, "head")
            return
        except SQLAlchemyError:
            # Another worker may be migrating: wait for its result.
            if attempt == _MIGRATION_ATTEMPTS - 1:
                raise
            time.sleep(_MIGRATION_WAIT_S)
            with engine.connect() as connection:
                if _schema_version(connection) == schema.HEAD:
                    return


def _schema_version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    row = connection.exec_driver_sql("SELECT version_num FROM alembic_version").first()
    return None if row is None else str(row[0])


def insert_sql(engine: sa.Engine, table: str, columns: list[str]) -> str:
    """An INSERT in the driver's parameter style that skips a row whose key exists already."""
    mark = "?" if engine.dialect.paramstyle == "qmark" else "%s"
    names = ", ".join(columns)
    values = ", ".join([mark] * len(columns))
    return f"INSERT INTO {table} ({names}) VALUES ({values}) ON CONFLICT DO NOTHING"


def driver_message(error: BaseException) -> str:
    """The first line of the driver's message, without SQLAlchemy's statement and link."""
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def redact_url(url: str) -> str:
    """The URL without its password."""
    try:
        return str(sa.make_url(url))
    except SQLAlchemyError:
        return url


class Database:
    """One database: its connections, and one writer at a time.

    Args:
        url: An SQLAlchemy URL of SQLite or PostgreSQL.

    Raises:
        StoreError: The database cannot be opened, or a newer version wrote it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = open_engine(url)
        # SQLite takes one writer at a time, and a writer that waits polls at growing intervals.
        # One thread of this process polls, the others wait for this lock.
        self._write_lock = threading.Lock()

    def dispose(self) -> None:
        """Close the connections that are not in use."""
        self.engine.dispose()

    def rows(self, query: sa.Executable) -> list[Row]:
        """The result of a query as dictionaries. Raises StoreError."""
        try:
            with self.engine.connect() as connection:
                return [dict(r) for r in connection.execute(query).mappings()]
        except SQLAlchemyError as error:
            message, remedy = read_problem(self.url, error)
            raise StoreError(message, remedy=remedy) from None

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """A write transaction. SQLAlchemy's errors pass through."""
        lock = self._write_lock if self.engine.dialect.name == "sqlite" else nullcontext()
        with lock, self.engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self, action: str) -> Iterator[sa.Connection]:
        """A write transaction that is stored whole or, with StoreError, not at all.

        Its first statement should write: an SQLite transaction that began by reading fails instead
        of waiting for another writer.

        Args:
            action: What the store cannot do if it fails, for the error's message.

        Yields:
            The connection of the transaction.

        Raises:
            StoreError: The database is down, or refused a statement.
        """
        try:
            with self.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(
                f"The store cannot {action} now: {driver_message(error)}.",
                remedy="Send it again later.",
            ) from None


def read_problem(url: str, error: Exception) -> tuple[str, str]:
    """Message and remedy of a failed read."""
    return f"The store cannot be read: {driver_message(error)}.", f"Check {redact_url(url)}."


def next_sequence(connection: sa.Connection, name: str, n: int = 1) -> int:
    """Raise a counter by `n` and return it.

    The counter's row stays locked until the transaction ends. So no two transactions get the same
    number, and rows become visible in the order of their numbers.

    Returns:
        The last of the `n` new numbers.
    """
    counters = schema.counters
    connection.execute(
        sa.update(counters).where(counters.c.name == name).values(value=counters.c.value + n)
    )
    query = sa.select(counters.c.value).where(counters.c.name == name)
    return int(connection.execute(query).scalar_one())
