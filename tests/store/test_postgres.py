"""The same store over PostgreSQL. Set SUFFICE_TEST_POSTGRES to the URL of an empty database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from tests.support.records import child, record

from suffice.store import engine as opening
from suffice.store import open_store, schema
from suffice.store.reader import StoreReader
from suffice.store.sql import SqlStore
from suffice.types import Feedback, Usage

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(postgres_url: str) -> str:
    return postgres_url


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    opened = open_store(url)
    yield opened
    opened.close()


def test_records_feedback_and_totals(store: SqlStore) -> None:
    for n in range(100):
        store.append(record(n))
    at_once = store.decision("dec_00000000005")
    assert store.flush()
    assert store.decision("dec_00000000005") == at_once
    for score in (0.0, 1.0):
        given = Feedback(decision_id="dec_00000000005", score=score, key="k", created_s=2000.0)
        assert store.feedback.add(given)
    assert [r["score"] for r in store.feedback.current("dec_00000000005")] == [1.0]
    assert not store.feedback.add(Feedback(decision_id="dec_none", score=1.0))
    store.append(record(5))
    s = store.summary()
    assert s["requests"] == 100
    assert s["cost_usd"] == pytest.approx(1.0)
    assert [r["id"] for r in store.decisions(limit=2)] == ["dec_00000000063", "dec_00000000062"]
    with store.database.engine.connect() as connection:
        rows = StoreReader(connection).decisions(("id",))
        assert [row["id"] for row, scores in rows if scores] == ["dec_00000000005"]


def test_odd_values_are_sanitized(store: SqlStore) -> None:
    store.append(record(1, usage=Usage(input_tokens=10**30)))
    store.append(record(2, error="a zero \0 byte"))
    store.append(record(3))
    assert store.flush()
    assert store.summary()["requests"] == 3
    assert store.health().lost == 0


@pytest.mark.slow
def test_many_workers_start_on_an_empty_database(url: str) -> None:
    code = "open_store(sys.argv[1]).close()"
    for run in [child(code, url) for _ in range(4)]:
        _, err = run.communicate(timeout=60)
        assert run.returncode == 0, err


def test_the_schema_is_that_of_the_code(url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = opening.open_engine(url)
    with engine.connect() as connection:
        found = sa.inspect(connection).get_table_names()
        differences = compare_metadata(MigrationContext.configure(connection), schema.metadata)
    engine.dispose()
    assert set(found) >= {"decisions", "attempts", "feedback"}
    assert differences == []
