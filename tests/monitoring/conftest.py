"""A gateway with an audited route, and its judge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.audits import Judge, written

from suffice.providers.fake import FakeUpstream


@pytest.fixture
def judge() -> Iterator[Judge]:
    with Judge() as made:
        yield made


@pytest.fixture
def path(tmp_path: Path, fake: FakeUpstream, judge: Judge) -> Path:
    return written(tmp_path, fake.base_url, judge.url)
