"""Shared fixtures: a scripted upstream, a config that points at it, a real gateway over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from tests.support.common import toml

from suffice.gateway import BackgroundServer
from suffice.providers.fake import FakeUpstream

# No deadline: the machine is shared, and a slow example is not a wrong one.
hypothesis_settings.register_profile("suffice", deadline=None)
hypothesis_settings.load_profile("suffice")


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    models: dict[str, Any] = {
        "weak": {"reply": "one two three four five"},
        "strong": {"reply": "alpha beta gamma"},
    }
    with FakeUpstream({"models": models}) as upstream:
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
