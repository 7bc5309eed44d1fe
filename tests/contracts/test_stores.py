"""Contract of a store: decisions, spend and totals. Nothing is lost, nothing is counted twice."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from tests.support.records import record, score, with_vectors

from suffice import features
from suffice.store import reader
from suffice.store.protocols import Store
from suffice.store.sql import SqlStore
from suffice.types import Attempt, Prediction, Usage


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


def test_newest_first(store: SqlStore) -> None:
    for n in range(30):
        store.append(record(n))
    rows = store.decisions(limit=10)
    assert [r["id"] for r in rows] == [f"dec_{n:011x}" for n in range(29, 19, -1)]
    assert len(store.decisions(since_s=1025.0)) == 5


def test_spend_counts_unknown_costs_apart(store: SqlStore) -> None:
    for n in range(10):
        store.append(record(n, cost_usd=None if n == 3 else 0.5))
    r = record(11)
    other = msgspec.structs.replace(r, decision=msgspec.structs.replace(r.decision, route="other"))
    store.append(other)
    s = store.spend("auto", 1000.0)
    assert (s.usd, s.requests, s.unknown) == (pytest.approx(4.5), 10, 1)
    s = store.spend("auto", 1002.0, 1005.0)
    assert (s.usd, s.requests, s.unknown) == (pytest.approx(1.0), 3, 1)
    assert store.spend("none", 0.0).usd == 0.0


def test_the_summary_counts_unknown_costs_apart(store: SqlStore) -> None:
    store.append(record(1))
    store.append(record(2, cost_usd=None))
    store.append(record(3, model="p/b", cost_usd=0.03))
    s = store.summary()
    assert s["requests"] == 3
    assert s["cost_usd"] == pytest.approx(0.04)
    assert s["cost_unknown"] == 1
    assert s["failovers"] == 1


def test_calls_of_audits_are_not_requests(store: SqlStore) -> None:
    failed = Attempt("p/a", 1, "overloaded", 1001.0, 0.1, status=503)
    for n, route in enumerate(("auto", "audit:auto", "auto")):
        r = record(n, **({"status": 502, "attempts": (failed,)} if n == 1 else {}))
        store.append(
            msgspec.structs.replace(r, decision=msgspec.structs.replace(r.decision, route=route))
        )
    s = store.summary()
    assert (s["requests"], s["failed"], s["attempts"], s["errors"]) == (2, 0, 2, [])
    assert s["cost_usd"] == pytest.approx(0.02)
    assert [m["requests"] for m in s["models"]] == [2]


def test_attempts_are_totalled_wherever_they_are_stored(store: SqlStore) -> None:
    usage = Usage(input_tokens=10, output_tokens=5)
    failed = Attempt("p/a", 1, "overloaded", 1.0, 0.1, status=503)
    good = Attempt("p/b", 2, "ok", 1.1, 0.2, usage=usage, cost_usd=0.01)
    unpriced = Attempt("p/a", 1, "ok", 1.0, 0.2, usage=usage, cost_usd=None)
    store.append(record(1))
    store.append(record(2, model="p/b", attempts=(failed, good)))
    store.append(record(3, attempts=(unpriced,)))
    store.append(record(4, attempts=(unpriced,), cost_usd=None))
    store.append(record(5, attempts=(), model=None, status=503))
    before = [store.decision(f"dec_{n:011x}") for n in range(1, 6)]
    assert store.flush()
    after = [store.decision(f"dec_{n:011x}") for n in range(1, 6)]
    assert after == before
    numbers = [[(a["number"], a["outcome"]) for a in d["attempts"]] for d in after if d]
    assert numbers == [
        [(1, "ok")], [(1, "overloaded"), (2, "ok")], [(1, "ok")], [(1, "ok")], []
    ]  # fmt: skip
    with store.database.engine.connect() as connection:
        totals = reader.StoreReader(connection).attempts()
    assert sorted((t.model, t.outcome, t.attempts, t.cost_known) for t in totals) == [
        ("p/a", "ok", 3, 1), ("p/a", "overloaded", 1, 0), ("p/b", "ok", 1, 1)
    ]  # fmt: skip
    assert store.summary()["errors"] == [{"model": "p/a", "outcome": "overloaded", "count": 1}]


def test_a_record_twice_counts_once(store: SqlStore) -> None:
    store.append(record(1))
    store.flush()
    store.append(record(1))
    store.flush()
    assert store.summary()["requests"] == 1


def read_back(store: SqlStore, **options: Any) -> list[reader.StoredDecision]:
    """What the reader of stored decisions gives, page by page."""
    store.flush()
    with store.database.engine.connect() as connection:
        columns = ("chosen", "detail", "embedding")
        return list(reader.StoreReader(connection).decisions(columns, **options))


@pytest.mark.parametrize("newest_first", [False, True])
def test_decisions_are_read_page_by_page_with_the_scores_that_count_now(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, newest_first: bool
) -> None:
    monkeypatch.setattr(reader, "PAGE", 2)
    for n in range(5):
        store.append(with_vectors(n))
    for n in (1, 3):
        for source in ("user", "judge", "test"):
            store.feedback.add(score(n, 0.5, source=source))
    store.feedback.add(score(3, 1.0))
    rows = read_back(store, newest_first=newest_first)
    numbers = [int(row["id"][-1]) for row, _ in rows]
    assert numbers == sorted(range(5), reverse=newest_first)
    scores = {int(row["id"][-1]): scores for row, scores in rows}
    assert [len(scores[n]) for n in range(5)] == [0, 3, 0, 3, 0]
    assert {s.source: s.score for s in scores[3]} == {"judge": 0.5, "test": 0.5, "user": 1.0}
    assert reader.mean_score(scores[3]) == pytest.approx(2.0 / 3.0)
    assert reader.mean_score(scores[3], sources={"user"}) == 1.0
    assert reader.mean_score(scores[0]) is None
    detail = reader.decode_detail(rows[0].row["detail"])
    assert detail.predictions == (Prediction("p/a", 0.7, 0.001, 0.5, 1.0),)
    assert np.frombuffer(rows[0].row["embedding"], "<f2").shape == (256,)
    assert len(read_back(store, since_s=1001.0)) == 4
    assert len(read_back(store, limit=3)) == 3
    assert read_back(store, route="none") == []


def test_calls_of_audits_are_read_only_if_asked_for(store: SqlStore) -> None:
    for n, route in enumerate(("auto", "audit:auto", "other", "audit:other")):
        r = record(n)
        store.append(
            msgspec.structs.replace(r, decision=msgspec.structs.replace(r.decision, route=route))
        )
    assert [row["id"][-1] for row, _ in read_back(store)] == ["0", "2"]
    assert [row["id"][-1] for row, _ in read_back(store, route="auto")] == ["0"]
    assert len(read_back(store, audits=True)) == 4
    assert [row["id"][-1] for row, _ in read_back(store, route="auto", audits=True)] == ["0", "1"]
    with store.database.engine.connect() as connection:
        opened = reader.StoreReader(connection)
        assert opened.span() == (2, 1000.0, 1002.0)
        assert opened.span(route="none") == (0, 0.0, 0.0)
        (all_attempts,) = opened.attempts()
        assert (all_attempts.model, all_attempts.outcome, all_attempts.attempts) == ("p/a", "ok", 2)
        assert all_attempts.cost_usd == pytest.approx(0.02)


def test_a_score_out_of_range_is_reported_and_skipped(store: SqlStore) -> None:
    store.append(record(1))
    store.feedback.add(score(1, 0.5))
    store.feedback.add(score(1, 1.0, source="judge"))
    with store.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE feedback SET score = 7.0 WHERE source = 'judge'")
    reported: list[str] = []
    ((_, scores),) = read_back(
        store, on_invalid=lambda i, reason: reported.append(f"{i}: {reason}")
    )
    assert [s.score for s in scores] == [0.5]
    assert reported == ["dec_00000000001: feedback of judge: score 7.0, weight 1.0"]
