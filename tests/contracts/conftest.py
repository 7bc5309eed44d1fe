"""An empty store over each engine, for the contract of stores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.common import require

from suffice.store import engine, open_store, schema, writer
from suffice.store.sql import SqlStore


@pytest.fixture(params=["file", "memory", pytest.param("postgres", marks=pytest.mark.postgres)])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SqlStore]:
    """An empty store. SUFFICE_TEST_POSTGRES is the URL of an empty database."""
    monkeypatch.setattr(writer, "RETRY_S", 0.3)
    url = {"file": f"sqlite:///{tmp_path / 's.db'}", "memory": "sqlite://"}.get(request.param)
    if url is None:
        url = os.environ.get("SUFFICE_TEST_POSTGRES", "")
        require("postgres", bool(url), "SUFFICE_TEST_POSTGRES is not set")
    opened = open_store(url, embed=lambda x: x.embedding)
    yield opened
    opened.close()
    if request.param == "postgres":
        database = engine.create_engine(url)
        with database.begin() as connection:
            schema.metadata.drop_all(connection)
            connection.exec_driver_sql("DROP TABLE IF EXISTS alembic_version")
        database.dispose()
