"""A config with two models, and what a test may require of the machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

EASY = "What's the weather today?"
PROOF = "Prove that there are infinitely many primes."


def ask(text: str) -> Any:
    """A conversation of one user message."""
    return [{"role": "user", "content": text}]


def require(component: str, present: bool, reason: str) -> None:
    """Skip if a component is absent; fail if SUFFICE_TEST_REQUIRE names it."""
    if present:
        return
    if component in os.environ.get("SUFFICE_TEST_REQUIRE", "").split(","):
        pytest.fail(f"{component} is required here and absent: {reason}")
    pytest.skip(f"{component}: {reason}")


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
