"""The spool file: what goes in comes out once, also if lines are torn."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.records import child, record

from suffice.store import open_store, spool
from suffice.store.rows import RecordRows, to_rows
from suffice.store.spool import Spool, open_spool


def rows(*numbers: int) -> list[RecordRows]:
    return [to_rows(record(n), False) for n in numbers]


def ids(found: list[RecordRows]) -> list[str]:
    return [row[0] for row, _ in found]


def test_what_goes_in_comes_out_in_order_and_the_file_is_gone(tmp_path: Path) -> None:
    s = Spool(tmp_path / "x")
    s.append(rows(1, 2))
    s.append(rows(3))
    out: list[RecordRows] = []
    assert s.replay(lambda batch: out.extend(batch) or True)  # type: ignore[func-returns-value]
    assert out == rows(1, 2, 3)
    assert s.count == 0
    assert not s.path.exists()


def test_a_refused_batch_stays_and_a_written_one_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "BATCH", 2)
    s = Spool(tmp_path / "x")
    s.append(rows(1, 2, 3, 4, 5))
    seen: list[list[str]] = []

    def once(batch: list[RecordRows]) -> bool:
        seen.append(ids(batch))
        return len(seen) != 2  # the second time the database is down again

    assert not s.replay(once)
    assert s.count == 3
    s.append(rows(6))
    assert s.replay(once)
    first, second = ids(rows(1, 2)), ids(rows(3, 4))
    assert seen == [first, second, second, ids(rows(5, 6))]


def test_a_record_added_while_replaying_is_not_lost(tmp_path: Path) -> None:
    s = Spool(tmp_path / "x")
    s.append(rows(1))
    out: list[str] = []

    def write(batch: list[RecordRows]) -> bool:
        if not out:
            s.append(rows(2))  # what another thread does meanwhile
        out.extend(ids(batch))
        return True

    assert s.replay(write)
    assert out == ids(rows(1, 2))


@given(cut=st.integers(min_value=0, max_value=2500))
def test_a_torn_file_loses_only_the_torn_line(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        Spool(path).append(rows(1, 2, 3))
        whole = path.read_bytes()
        ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
        cut = min(cut, len(whole))
        path.write_bytes(whole[:cut])
        s = Spool(path)
        s.append(rows(9))
        out: list[str] = []
        assert s.replay(lambda batch: out.extend(ids(batch)) or True)  # type: ignore[func-returns-value]
        # A line that misses nothing but its end is whole.
        kept = sum(1 for end in ends if end - 1 <= cut)
        assert out == ids(rows(*range(1, kept + 1), 9))
        assert s.corrupt_lines == (0 if cut in (0, *ends, *(e - 1 for e in ends)) else 1)
        assert s.count == 0


def test_find(tmp_path: Path) -> None:
    s = Spool(tmp_path / "x")
    assert s.find("dec_00000000001") is None
    s.append(rows(1, 2))
    assert s.find("dec_00000000002") == rows(2)[0]
    assert s.find("dec_0000000000") is None, "a part of an id is not an id"


def test_files_of_the_dead_are_taken_over_and_those_of_the_living_left(tmp_path: Path) -> None:
    gone = child("")
    gone.communicate(timeout=60)
    base = tmp_path / "s.db"
    of_dead = tmp_path / f"s.db.{gone.pid}.spool.jsonl"
    of_living = tmp_path / f"s.db.{os.getppid()}.spool.jsonl"
    of_another = tmp_path / f"t.db.{gone.pid}.spool.jsonl"
    for n, path in enumerate((of_dead, of_living, of_another)):
        Spool(path).append(rows(n))
    s = open_spool(base)
    assert s.count == 1
    assert not of_dead.exists()
    out: list[str] = []
    # Killed right now, the next process still finds it: the new name follows the same pattern.
    assert open_spool(base).count == 1
    assert open_spool(base).replay(lambda batch: out.extend(ids(batch)) or True)  # type: ignore[func-returns-value]
    assert out == ids(rows(0))
    assert sorted(tmp_path.iterdir()) == sorted([of_living, of_another])


def test_a_killed_workers_spool_reaches_the_database_at_the_next_start(tmp_path: Path) -> None:
    gone = child("")
    gone.communicate(timeout=60)
    Spool(tmp_path / f"s.db.{gone.pid}.spool.jsonl").append(rows(1, 2))
    store = open_store(f"sqlite:///{tmp_path / 's.db'}")
    assert store.summary()["requests"] == 2
    store.close()
    assert [p.name for p in tmp_path.iterdir()] == ["s.db"]
