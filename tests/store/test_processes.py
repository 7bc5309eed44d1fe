"""Records while the database is locked, after kill -9, and of several processes."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from tests.support.records import child, record

from suffice.store import engine, open_store, writer


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits of a store in trouble."""
    monkeypatch.setattr(engine, "BUSY_S", 0.3)
    monkeypatch.setattr(writer, "RETRY_S", 0.3)


def test_records_that_a_locked_database_refuses_are_spooled_and_written_later(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.db"
    spool = tmp_path / "spool.jsonl"
    opened = open_store(f"sqlite:///{path}", spool=spool)
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    for n in range(50):
        opened.append(record(n))
    opened.flush(timeout_s=30)
    health = opened.health()
    assert not health.ok
    assert health.spooled == 50
    assert health.lost == 0
    assert "locked" in str(health.error)
    lock.execute("ROLLBACK")
    lock.close()
    deadline = time.monotonic() + 60
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
import sqlite3, time
store = open_store("sqlite:///" + sys.argv[1])
for n in range(200):
    store.append(record(n))
with sqlite3.connect(sys.argv[1]) as db:  # until the writer's thread has written them
    while db.execute("SELECT count(*) FROM decisions").fetchone()[0] < 200:
        time.sleep(0.01)
print("ready", flush=True)
for n in range(200, 203):
    store.append(record(n))
time.sleep(600)
"""


@pytest.mark.slow
def test_kill_9_loses_no_more_than_the_last_moment(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with child(_WRITER, path) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        os.kill(run.pid, signal.SIGKILL)
    opened = open_store(f"sqlite:///{path}")
    assert opened.summary()["requests"] >= 200
    opened.close()


@pytest.mark.slow
def test_two_processes_share_one_database(tmp_path: Path) -> None:
    code = """
store = open_store("sqlite:///" + sys.argv[1])
for n in range(300):
    store.append(record(n + 1000 * int(sys.argv[2])))
store.close()
assert store.health().lost == 0
"""
    path = tmp_path / "s.db"
    for run in [child(code, path, i) for i in range(2)]:
        _, err = run.communicate(timeout=120)
        assert run.returncode == 0, err
    opened = open_store(f"sqlite:///{path}")
    assert opened.summary()["requests"] == 600
    opened.close()
