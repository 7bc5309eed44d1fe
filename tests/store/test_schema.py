"""The migrations and the tables in code are the same schema."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from suffice.errors import StoreError
from suffice.store import engine as opening
from suffice.store import open_store, schema


def test_the_migrations_end_in_the_tables_of_the_code(tmp_path: Path) -> None:
    engine = opening.open_engine(f"sqlite:///{tmp_path / 's.db'}")
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), schema.metadata)
    engine.dispose()
    assert differences == []


def test_head_is_the_last_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


def test_a_password_is_never_shown() -> None:
    with pytest.raises(StoreError) as caught:
        open_store("mysterydb://me:hunter2@host/db")
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in opening.redact_url("postgresql://me:hunter2@host/db")


def test_the_driver_of_postgresql_is_the_one_we_ship() -> None:
    try:
        engine = opening.create_engine("postgresql://me@127.0.0.1:1/db")
    except ImportError as error:
        assert "psycopg" in str(error)
        assert "psycopg2" not in str(error)
    else:
        assert engine.url.drivername == "postgresql+psycopg"
        engine.dispose()
