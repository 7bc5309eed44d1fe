"""A database of an earlier version, with data in it, brought to this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.records import at_0001, record

from suffice.store import open_store
from suffice.store.rows import DECISION_0001, RecordRows, attempt_row, to_rows
from suffice.store.spool import Spool
from suffice.types import Feedback


@pytest.fixture(params=["file", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "file":
        return f"sqlite:///{tmp_path / 's.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


def test_nothing_is_lost_and_everything_goes_on(url: str) -> None:
    old = [
        {
            "decision_id": f"dec_{n:011x}",
            "source": source,
            "key": "",
            "score": n / 10,
            "comment": "né ✓",
            "created_s": 5000.0 + n,
        }
        for n in range(5)
        for source in ("user", "judge")
    ]
    at_0001(url, 8, old)
    store = open_store(url)
    assert store.summary()["requests"] == 8
    assert store.summary()["feedback"]["decisions"] == 5
    found = store.decision("dec_00000000003")
    assert found is not None
    assert found["attempts"][0]["outcome"] == "ok"
    assert [(f["source"], f["score"], f["comment"]) for f in found["feedback"]] == [
        ("user", 0.3, "né ✓"),
        ("judge", 0.3, "né ✓"),
    ]
    labels = store.feedback.events_since(0)
    assert [(x.decision_id, x.source, x.score) for x in labels] == [
        (f["decision_id"], f["source"], f["score"]) for f in old
    ], "a learner that starts now reads all of it, in its order"
    assert {(x.weight, x.kind, x.embedding) for x in labels} == {(1.0, "explicit", None)}
    assert store.feedback.add(Feedback(decision_id="dec_00000000003", score=1.0))
    (new,) = store.feedback.events_since(labels[-1].seq)
    assert (new.score, new.previous_score) == (1.0, 0.3)
    assert len(store.feedback.current("dec_00000000003")) == 2
    assert store.spend("auto", 0.0).requests == 8
    assert store.registry.generation() == 0
    store.append(record(9))
    store.close()
    again = open_store(url)
    assert again.summary()["requests"] == 9
    again.close()


def test_an_empty_database_of_0001_too(url: str) -> None:
    at_0001(url, 1, [])
    store = open_store(url)
    assert store.feedback.events_since(0) == []
    assert store.feedback.add(Feedback(decision_id="dec_00000000000", score=1.0))
    store.close()


def test_records_that_an_earlier_version_spooled_are_written(tmp_path: Path) -> None:
    spool = tmp_path / "spool.jsonl"
    r = record(7)
    attempts = [attempt_row(r.decision.id, a) for a in r.attempts]
    Spool(spool).append([RecordRows(to_rows(r, False).decision, attempts)])
    line = json.loads(spool.read_text())
    line["decision"] = line["decision"][: len(DECISION_0001)]
    spool.write_text(json.dumps(line) + "\n")
    store = open_store(f"sqlite:///{tmp_path / 's.db'}", spool=spool)
    assert store.health().lost == 0
    assert store.summary()["requests"] == 1
    found = store.decision(r.decision.id)
    assert found is not None
    assert [a["outcome"] for a in found["attempts"]] == ["ok"]
    store.close()
