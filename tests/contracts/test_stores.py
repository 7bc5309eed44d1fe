"""The store: nothing lost, nothing counted twice, nothing that blocks a request."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from suffice import features
from suffice.errors import StoreError
from suffice.store import open_store, opening, sql
from suffice.store.sql import SqlStore
from suffice.types import (
    Attempt,
    Decision,
    Feedback,
    Objective,
    Prediction,
    Record,
    Step,
    Store,
    Usage,
)


def record(n: int, **more: object) -> Record:
    decision = Decision(
        id=f"dec_{n:011x}",
        model="p/a",
        plan=(Step("p/a"), Step("p/b", "failover")),
        predictions=(Prediction("p/a", 0.7, 0.001, 0.5, 1.0),),
        reason="p/a: because.",
        policy="default",
        policy_version="default-1",
        objective=Objective(kind="keep_quality", value=0.95),
        basis="prior",
        route="auto",
    )
    usage = Usage(input_tokens=10, output_tokens=5)
    fields: dict[str, object] = {
        "attempts": (Attempt("p/a", 1, "ok", 1.0, 0.2, usage=usage, cost_usd=0.01),),
        "created_s": 1000.0 + n,
        "request_id": f"req_{n}",
        "status": 200,
        "model": "p/a",
        "usage": usage,
        "cost_usd": 0.01,
        "features": features.extract_text("hello there"),
        "prompt": b'[{"role":"user","content":"a secret"}]',
    }
    return Record(decision=decision, **{**fields, **more})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of a store in trouble, without the waiting."""
    monkeypatch.setattr(opening, "BUSY_S", 0.3)
    monkeypatch.setattr(sql, "_RETRY_S", 0.3)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = open_store(f"sqlite:///{tmp_path / 's.db'}")
    yield opened
    opened.close()


def test_it_is_a_store(store: SqlStore) -> None:
    assert isinstance(store, Store)


def test_a_decision_is_there_at_once_and_after_the_write(store: SqlStore) -> None:
    store.append(record(1))
    at_once = store.decision("dec_00000000001")
    assert store.flush()
    later = store.decision("dec_00000000001")
    assert at_once is not None
    assert at_once == later
    assert later["attempts"][0]["outcome"] == "ok"
    assert later["predictions"][0]["quality"] == 0.7
    assert later["plan"][1] == {"model": "p/b", "role": "failover"}
    assert len(later["feature_vector"]) == len(features.SIGNAL_NAMES)
    assert store.decision("dec_x") is None


def test_prompts_are_kept_only_when_asked(store: SqlStore, tmp_path: Path) -> None:
    store.append(record(1))
    store.close()
    assert b"a secret" not in (tmp_path / "s.db").read_bytes()
    keeping = open_store(f"sqlite:///{tmp_path / 'k.db'}", keep_prompts=True)
    keeping.append(record(1))
    keeping.flush()
    found = keeping.decision("dec_00000000001")
    keeping.close()
    assert found is not None
    assert found["prompt"] == [{"role": "user", "content": "a secret"}]


def test_newest_first(store: SqlStore) -> None:
    for n in range(30):
        store.append(record(n))
    rows = store.decisions(limit=10)
    assert [r["id"] for r in rows] == [f"dec_{n:011x}" for n in range(29, 19, -1)]
    assert len(store.decisions(since_s=1025.0)) == 5


def test_feedback_is_idempotent_by_key(store: SqlStore) -> None:
    store.append(record(1))
    for score in (0.0, 1.0):
        given = Feedback(decision_id="dec_00000000001", score=score, key="k", created_s=1.0)
        assert store.add_feedback(given)
    assert store.add_feedback(Feedback(decision_id="dec_00000000001", score=0.5, source="judge"))
    rows = store.feedback("dec_00000000001")
    assert sorted((r["source"], r["score"]) for r in rows) == [("judge", 0.5), ("user", 1.0)]
    assert not store.add_feedback(Feedback(decision_id="dec_none", score=1.0))
    assert len(list(store.training_rows())) == 2


def test_the_summary_counts_unknown_costs_apart(store: SqlStore) -> None:
    store.append(record(1))
    store.append(record(2, cost_usd=None))
    store.append(record(3, model="p/b", cost_usd=0.03))
    s = store.summary()
    assert s["requests"] == 3
    assert s["cost_usd"] == pytest.approx(0.04)
    assert s["cost_unknown"] == 1
    assert s["failovers"] == 1


def test_a_record_twice_counts_once(store: SqlStore) -> None:
    store.append(record(1))
    store.flush()
    store.append(record(1))
    store.flush()
    assert store.summary()["requests"] == 1


def test_what_a_locked_database_refuses_is_spooled_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    spool = tmp_path / "spool.jsonl"
    opened = open_store(f"sqlite:///{path}", spool=spool)
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    for n in range(50):
        opened.append(record(n))
    assert time.monotonic() - began < 1.0, "append does not wait for the database"
    opened.flush(timeout_s=30)
    health = opened.health()
    assert not health.ok
    assert health.spooled == 50
    assert health.lost == 0
    assert "locked" in str(health.error)
    lock.execute("ROLLBACK")
    lock.close()
    deadline = time.monotonic() + 30
    while opened.health().spooled and time.monotonic() < deadline:
        time.sleep(0.05)
    assert opened.health().ok
    assert opened.summary()["requests"] == 50
    opened.close()
    assert not spool.exists()


def test_a_spool_left_behind_is_read_at_the_next_start(tmp_path: Path) -> None:
    path, spool = tmp_path / "s.db", tmp_path / "spool.jsonl"
    opened = open_store(f"sqlite:///{path}", spool=spool)
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    opened.append(record(7))
    opened.close()
    lock.execute("ROLLBACK")
    lock.close()
    assert spool.exists()
    with spool.open("ab") as file:
        file.write(b'{"torn')  # killed while writing
    again = open_store(f"sqlite:///{path}", spool=spool)
    assert again.decision("dec_00000000007") is not None
    assert again.health().lost == 1
    again.close()


_WRITER = """
import sys, time
sys.path.insert(0, {tests!r})
from test_stores import record
from suffice.store import open_store
store = open_store("sqlite:///" + sys.argv[1])
for n in range(200):
    store.append(record(n))
time.sleep({wait})
print("ready", flush=True)
for n in range(200, 203):
    store.append(record(n))
time.sleep(60)
"""


def test_kill_9_loses_no_more_than_the_last_moment(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    code = _WRITER.format(tests=str(Path(__file__).parent), wait=0.5)
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        os.kill(child.pid, signal.SIGKILL)
    opened = open_store(f"sqlite:///{path}")
    assert opened.summary()["requests"] >= 200
    opened.close()


def test_two_processes_share_one_database(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_stores import record
from suffice.store import open_store
store = open_store("sqlite:///" + sys.argv[1])
for n in range(300):
    store.append(record(n + 1000 * int(sys.argv[2])))
store.close()
assert store.health().lost == 0
"""
    path = str(tmp_path / "s.db")
    children = [
        subprocess.Popen([sys.executable, "-c", code, path, str(i)], stderr=subprocess.PIPE)
        for i in range(2)
    ]
    for child in children:
        _, err = child.communicate(timeout=60)
        assert child.returncode == 0, err.decode()
    opened = open_store(f"sqlite:///{path}")
    assert opened.summary()["requests"] == 600
    opened.close()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    open_store(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StoreError, match="9999"):
        open_store(f"sqlite:///{path}")


@pytest.mark.parametrize(
    "url", ["sqlite:////no/such/folder/s.db", "nonsense", "mysterydb://x/y", "sqlite:////proc/s.db"]
)
def test_a_store_that_cannot_be_opened_says_why(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(url)
    assert caught.value.remedy
