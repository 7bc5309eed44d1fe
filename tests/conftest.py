"""Shared fixtures: a scripted upstream, a config that points at it, a real gateway over it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import settings as hypothesis_settings
from tests.support.common import require, toml

from suffice.gateway import BackgroundServer
from suffice.providers.fake import FakeUpstream

# No deadline: the machine is shared, and a slow example is not a wrong one.
hypothesis_settings.register_profile("suffice", deadline=None)
hypothesis_settings.load_profile("suffice")


MODELS: dict[str, Any] = {
    "weak": {"reply": "one two three four five"},
    "strong": {"reply": "alpha beta gamma"},
}


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with FakeUpstream({"models": MODELS}) as upstream:
        yield upstream


@pytest.fixture
def config(tmp_path: Path, fake: FakeUpstream) -> Callable[..., Path]:
    """Writes suffice.toml with further routes and models, and gives its path."""

    def write(routes: str = "", models: str = "") -> Path:
        path = tmp_path / "suffice.toml"
        path.write_text(toml(fake.base_url, tmp_path / "s.db", routes, models))
        return path

    return write


@pytest.fixture
def gateway(config: Callable[..., Path]) -> Iterator[BackgroundServer]:
    with BackgroundServer(config()) as server:
        yield server


@pytest.fixture(scope="module")
def shared_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundServer]:
    """One gateway per module, for tests that neither stop it nor count what it did."""
    folder = tmp_path_factory.mktemp("gateway")
    with FakeUpstream({"models": MODELS}) as upstream:
        path = folder / "suffice.toml"
        path.write_text(toml(upstream.base_url, folder / "s.db"))
        with BackgroundServer(path) as server:
            yield server


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """The URL of a new, empty database on the server that SUFFICE_TEST_POSTGRES names."""
    server = os.environ.get("SUFFICE_TEST_POSTGRES", "")
    require("postgres", bool(server), "SUFFICE_TEST_POSTGRES is not set")
    url = sa.make_url(server)
    name = f"test_{uuid.uuid4().hex}"
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield url.set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    engine.dispose()
