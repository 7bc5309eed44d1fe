"""A store in trouble: records no database holds, deleted files, full disks, careless scripts."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.records import child, record

from suffice import features
from suffice.errors import StoreError
from suffice.store import engine, feedback, open_store, writer
from suffice.store.reader import StoreReader
from suffice.store.sql import SqlStore
from suffice.types import Feedback, Usage


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of a store in trouble, without the waiting."""
    monkeypatch.setattr(engine, "BUSY_S", 0.3)
    monkeypatch.setattr(writer, "RETRY_S", 0.3)


def embeddings(store: SqlStore) -> dict[str, bytes | None]:
    """The stored embeddings by the last digit of the decision's id."""
    with store.database.engine.connect() as connection:
        rows = StoreReader(connection).decisions(("embedding",))
        return {row["id"][-1]: row["embedding"] for row, _ in rows}


def until(true: Callable[[], bool], within_s: float = 60.0) -> bool:
    deadline = time.monotonic() + within_s
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


@pytest.mark.parametrize(
    ("odd", "column", "kept"),
    [
        ({"usage": Usage(input_tokens=10**30)}, "input_tokens", 2**31 - 1),
        ({"error": "half a \ud83d pair"}, "error", "half a ? pair"),
        ({"decision": {"difficulty": np.float32(0.5)}}, "difficulty", 0.5),
        ({"decision": {"difficulty": float("nan")}}, "difficulty", None),
    ],
    ids=["number too large", "lone surrogate", "numpy scalar", "not a number"],
)
def test_an_odd_value_is_sanitized_and_its_neighbours_are_written(
    tmp_path: Path, odd: dict[str, Any], column: str, kept: object
) -> None:
    store = open_store(f"sqlite:///{tmp_path / 's.db'}")
    for n in range(5):
        store.append(record(n, **(odd if n == 2 else {})))
    assert until(lambda: store.summary()["requests"] == 5)
    found = store.decision("dec_00000000002")
    assert found is not None
    assert found[column] == kept
    assert store.health().ok
    assert store.health().lost == 0
    store.close()


def test_a_record_that_cannot_be_stored_is_dropped_alone_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(f"sqlite:///{tmp_path / 's.db'}")
    with caplog.at_level(logging.ERROR, logger="suffice.store"):
        for n in range(5):
            store.append(record(n, **({"request_id": None} if n == 2 else {})))
        store.append(record(5, metadata={"not": object()}))
        assert store.flush()
    assert store.summary()["requests"] == 4
    assert store.health().lost == 2
    assert "dec_00000000002" in caplog.text
    store.append(record(6))
    assert until(lambda: store.summary()["requests"] == 5), "the writer is still alive"
    store.close()


def test_a_deleted_database_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = open_store(f"sqlite:///{path}")
    store.append(record(1))
    assert store.flush()
    for left in tmp_path.glob("s.db*"):
        left.unlink()
    store.append(record(2))
    assert store.flush()
    store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT id FROM decisions").fetchall() == [("dec_00000000002",)]
    connection.close()


def test_a_database_replaced_by_a_newer_one_is_left_alone(tmp_path: Path) -> None:
    path, newer = tmp_path / "s.db", tmp_path / "newer.db"
    open_store(f"sqlite:///{newer}").close()
    with sqlite3.connect(newer) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    newer_bytes = newer.read_bytes()
    store = open_store(f"sqlite:///{path}")
    for left in tmp_path.glob("s.db*"):
        left.unlink()
    newer.rename(path)
    store.append(record(1))
    assert not store.flush()
    assert "9999" in str(store.health().error)
    assert store.health().spooled == 1
    store.close()
    assert path.read_bytes() == newer_bytes


_FULL = """
import os, resource
from suffice.store import writer
writer.RETRY_S = 0.0  # the database is tried again at every flush
store = open_store("sqlite:///" + sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for n in range(200):
    store.append(record(n))
store.flush()
# From here on no file may become larger than the journal is: it is full, the spool file is not.
full = max(os.path.getsize(sys.argv[1] + end) for end in ("", "-wal"))
resource.setrlimit(resource.RLIMIT_FSIZE, (full, hard))
for n in range(200, 300):
    store.append(record(n))
    if n % 10 == 0:
        store.flush()
store.flush()
down = store.health()
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
store.flush()
up = store.health()
print(down.ok, down.spooled > 0, down.lost, up.ok, up.spooled, store.summary()["requests"])
store.close()
"""


@pytest.mark.slow
def test_a_full_disk_costs_no_record(tmp_path: Path) -> None:
    run = child(_FULL, tmp_path / "s.db")
    out, err = run.communicate(timeout=60)
    assert out.split() == ["False", "True", "0", "True", "0", "300"], out + err


@pytest.mark.slow
def test_a_script_that_never_closes_keeps_its_last_record(tmp_path: Path) -> None:
    code = 'store = open_store("sqlite:///" + sys.argv[1])\nstore.append(record(1))'
    run = child(code, tmp_path / "s.db")
    _, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    store = open_store(f"sqlite:///{tmp_path / 's.db'}")
    assert store.summary()["requests"] == 1
    store.close()


@pytest.mark.slow
def test_many_workers_start_on_an_empty_database(tmp_path: Path) -> None:
    code = 'store = open_store("sqlite:///" + sys.argv[1])\nstore.append(record(int(sys.argv[2])))\nstore.close()'
    runs = [child(code, tmp_path / "s.db", n) for n in range(5)]
    for run in runs:
        _, err = run.communicate(timeout=60)
        assert run.returncode == 0, err
    store = open_store(f"sqlite:///{tmp_path / 's.db'}")
    assert store.summary()["requests"] == 5
    store.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_one_for_all_threads(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store(url)
    for n in range(10):
        store.append(record(n))
    assert until(lambda: store.health().pending == 0)
    assert store.feedback.add(Feedback(decision_id="dec_00000000003", score=1.0))
    assert store.summary()["requests"] == 10
    store.close()
    assert list(tmp_path.iterdir()) == []


def locked(store: SqlStore, path: Path) -> sqlite3.Connection:
    """Lock the database and let the store find out."""
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    store.append(record(1))
    assert not store.flush(timeout_s=30)
    return lock


def test_a_spooled_decision_can_be_read_at_once_and_scored_later(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = open_store(f"sqlite:///{path}")
    lock = locked(store, path)
    given = Feedback(decision_id="dec_00000000001", score=1.0)
    found = store.decision("dec_00000000001")
    assert found is not None
    assert found["feature_vector"]
    with pytest.raises(StoreError, match="later"):  # and not: there is no such decision
        store.feedback.add(given)
    assert store.decision("dec_none") is None
    lock.execute("ROLLBACK")
    lock.close()
    assert until(lambda: store.health().spooled == 0)
    again = store.decision("dec_00000000001")
    assert again == found
    assert store.feedback.add(given)
    store.close()


def test_memory_is_bounded_while_the_database_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_QUEUED", 600)
    database_answers, writer_waits = threading.Event(), threading.Event()

    def embed(_: Any) -> None:
        if threading.current_thread().name == "suffice-store":
            writer_waits.set()
            assert database_answers.wait(60)

    store = open_store(f"sqlite:///{tmp_path / 's.db'}", embed=embed)
    store.append(record(0))
    assert writer_waits.wait(60)
    for n in range(1, 3000):
        store.append(record(n))
    health = store.health()
    assert health.pending <= 600
    assert health.pending + health.spooled == 2999, "and one is being written"
    database_answers.set()
    assert store.flush()
    assert until(lambda: store.summary()["requests"] == 3000)
    assert store.health().lost == 0
    store.close()


def test_the_same_feedback_from_many_threads_is_one(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 's.db'}")
    store.append(record(1))

    def send() -> None:
        for _ in range(20):
            store.feedback.add(Feedback(decision_id="dec_00000000001", score=0.5, key="k"))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(store.feedback.current("dec_00000000001")) == 1
    store.close()


def test_totals_of_an_empty_store_are_zeros_and_an_unknown_cost(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 's.db'}")
    s = store.summary()
    assert (s["requests"], s["input_tokens"], s["failed"], s["cost_unknown"]) == (0, 0, 0, 0)
    assert s["cost_usd"] is None
    store.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError) as caught:
            open_store(f"sqlite:///{tmp_path / 's.db'}")
        assert caught.value.remedy
    finally:
        tmp_path.chmod(0o700)


def test_a_query_that_cannot_be_embedded_costs_no_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def embed(x: Any) -> Any:
        if x.user_message_chars > 20:
            raise ValueError("features: hold no token ids")
        return np.ones(4, np.float32)

    store = open_store(f"sqlite:///{tmp_path / 's.db'}", embed=embed)
    store.append(record(1))
    store.append(record(2, features=features.extract_text("a longer one, of many words")))
    store.append(record(3, features=None))
    assert until(lambda: store.summary()["requests"] == 3)
    assert store.health().lost == 0
    assert "dec_00000000002" in caplog.text
    kept = embeddings(store)
    assert kept == {"1": np.ones(4, "<f2").tobytes(), "2": None, "3": None}
    store.close()


def test_the_embedding_is_made_by_the_writer(tmp_path: Path) -> None:
    made_by: list[str] = []

    def embed(_: Any) -> None:
        made_by.append(threading.current_thread().name)

    store = open_store(f"sqlite:///{tmp_path / 's.db'}", embed=embed)
    store.append(record(1))
    assert store.decision("dec_00000000001") is not None, "reading it makes none"
    assert until(lambda: bool(made_by))
    assert made_by == ["suffice-store"]
    store.close()


def test_an_embedding_survives_the_spool(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    point = np.linspace(-1, 1, 8, dtype=np.float32)
    store = open_store(f"sqlite:///{path}", embed=lambda _: point)
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    store.append(record(1))
    store.flush(timeout_s=30)
    assert store.health().spooled == 1
    lock.execute("ROLLBACK")
    lock.close()
    assert until(lambda: store.health().spooled == 0)
    assert embeddings(store) == {"1": point.astype("<f2").tobytes()}
    store.close()


def test_implicit_feedback_waits_in_memory_while_the_database_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "MAX_PENDING_FEEDBACK", 5)
    path = tmp_path / "s.db"
    store = open_store(f"sqlite:///{path}")
    for n in range(8):
        store.append(record(n))
    assert store.flush()
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    for n in range(8):
        store.feedback.append(
            [Feedback(decision_id=f"dec_{n:011x}", score=0.0, source="implicit:empty")]
        )
    assert until(lambda: not store.health().ok and store.health().pending == 5)
    assert store.health().lost == 3, "the oldest are given up, and that is said"
    with pytest.raises(StoreError):
        store.feedback.add(Feedback(decision_id="dec_00000000007", score=1.0))
    lock.execute("ROLLBACK")
    lock.close()
    assert until(lambda: store.health().ok)
    assert store.health().pending == 0
    assert [x.decision_id[-1] for x in store.feedback.events_since(0)] == list("34567")
    store.close()
