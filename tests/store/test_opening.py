"""Opening a store: new files, newer schemas, URLs that cannot be used."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.records import child, record

from suffice.errors import StoreError
from suffice.store import open_store


def test_prompts_are_kept_only_when_asked(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 's.db'}")
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


def test_a_new_file_that_another_worker_is_opening_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        # What a change to a log written ahead holds while it is made.
        other.execute("BEGIN EXCLUSIVE")
        other.execute("CREATE TABLE theirs (x)")
        done = threading.Timer(0.3, other.execute, ("COMMIT",))
        done.start()
        open_store(f"sqlite:///{path}").close()
        done.join()
        other.execute("SELECT x FROM theirs")  # else it tells the mode it knew
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


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


@pytest.mark.slow
def test_an_existing_store_is_opened_without_alembic_and_other_dialects(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path / 's.db'}").close()
    code = """
open_store("sqlite:///" + sys.argv[1]).close()
print(sorted({"alembic", "sqlalchemy.dialects.postgresql"} & set(sys.modules)))
"""
    out, err = child(code, tmp_path / "s.db").communicate(timeout=60)
    assert out == "[]\n", err
