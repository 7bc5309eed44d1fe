"""Shared fixtures: a scripted upstream, a config that points at it, a real gateway over it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

from suffice.gateway import BackgroundServer
from suffice.providers.fake import FakeUpstream

# No deadline: the machine is shared, and a slow example is not a wrong one.
hypothesis_settings.register_profile("suffice", deadline=None)
hypothesis_settings.load_profile("suffice")

EASY = "What's the weather today?"
PROOF = "Prove that there are infinitely many primes."


def require(component: str, present: bool, why: str) -> None:
    """Skip where a component is absent; fail where SUFFICE_TEST_REQUIRE demands it."""
    if present:
        return
    if component in os.environ.get("SUFFICE_TEST_REQUIRE", "").split(","):
        pytest.fail(f"{component} is required here and absent: {why}")
    pytest.skip(f"{component}: {why}")


def toml(base_url: str, db: Path, routes: str = "", models: str = "") -> str:
    """A config with a weak and a strong model (priors 0.6 and 0.95) behind `base_url`."""
    return f"""
[store]
url = "sqlite:///{db.as_posix()}"
[providers.p]
dialect = "openai"
base_url = "{base_url}"
[models."p/weak"]
input_usd_per_mtok = 0.15
output_usd_per_mtok = 0.6
context_tokens = 16000
quality = 0.6
[models."p/strong"]
input_usd_per_mtok = 2.5
cached_input_usd_per_mtok = 0.25
output_usd_per_mtok = 10.0
context_tokens = 128000
quality = 0.95
{models}
[routes.auto]
models = ["p/weak", "p/strong"]
objective = {{ keep_quality = 0.95 }}
{routes}
"""


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
