"""The store: nothing lost, nothing counted twice, nothing that blocks a request."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from suffice import features
from suffice.errors import ArtifactError, StoreError, UsageError
from suffice.store import engine as opening
from suffice.store import feedback, make_snapshot, open_store, reader, schema, writer
from suffice.store.protocols import Store
from suffice.store.records import PolicySnapshot
from suffice.store.sql import SqlStore
from suffice.types import (
    Attempt,
    Decision,
    Feedback,
    Objective,
    PlanStep,
    Prediction,
    RequestRecord,
    Usage,
)


def record(n: int, **more: object) -> RequestRecord:
    decision = Decision(
        id=f"dec_{n:011x}",
        model="p/a",
        plan=(PlanStep("p/a"), PlanStep("p/b", "failover")),
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
    return RequestRecord(decision=decision, **{**fields, **more})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of a store in trouble, without the waiting."""
    monkeypatch.setattr(opening, "BUSY_S", 0.3)
    monkeypatch.setattr(writer, "RETRY_S", 0.3)


@pytest.fixture(params=["file", "memory", pytest.param("postgres", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlStore]:
    """An empty store over each engine."""
    url = {"file": f"sqlite:///{tmp_path / 's.db'}", "memory": "sqlite://"}.get(request.param)
    if url is None:
        url = request.getfixturevalue("postgres_url")
    opened = open_store(url, embed=lambda x: x.embedding)
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
        assert store.feedback.add(given)
    assert store.feedback.add(Feedback(decision_id="dec_00000000001", score=0.5, source="judge"))
    rows = store.feedback.current("dec_00000000001")
    assert sorted((r["source"], r["score"]) for r in rows) == [("judge", 0.5), ("user", 1.0)]
    assert not store.feedback.add(Feedback(decision_id="dec_none", score=1.0))
    assert [len(scores) for _, scores in read_back(store)] == [2]


# ── feedback as a learner reads it ───────────────────────────────────────────────────────────────


def score(n: int, value: float, **more: Any) -> Feedback:
    return Feedback(decision_id=f"dec_{n:011x}", score=value, created_s=2000.0, **more)


def vectors(n: int) -> RequestRecord:
    x = features.extract_text("hello there")
    point = np.linspace(-2, 2, 256, dtype=np.float32)
    return record(n, features=msgspec.structs.replace(x, embedding=point), session="s", key_id="k")


def test_a_label_carries_the_decision_as_it_was_made(store: SqlStore) -> None:
    store.append(vectors(1))
    assert store.feedback.add(score(1, 0.25, source="judge", weight=0.5))
    (label,) = store.feedback.events_since(0)
    assert (label.decision_id, label.route, label.chosen, label.model) == (
        "dec_00000000001", "auto", "p/a", "p/a"
    )  # fmt: skip
    assert label.predictions == (Prediction("p/a", 0.7, 0.001, 0.5, 1.0),)
    assert (label.score, label.weight, label.source, label.kind) == (0.25, 0.5, "judge", "explicit")
    assert (label.propensity, label.cost_usd, label.created_s) == (1.0, 0.01, 1001.0)
    assert (label.session, label.key_id, label.snapshot) == ("s", "k", None)
    assert label.signals is not None and label.embedding is not None
    np.testing.assert_array_equal(label.signals, features.extract_text("hello there").signals)
    # float16 keeps eleven bits.
    np.testing.assert_allclose(label.embedding, np.linspace(-2, 2, 256), rtol=5e-4, atol=1e-4)
    assert label.embedding.dtype == np.float32


def test_each_change_is_read_once_and_says_what_it_replaces(store: SqlStore) -> None:
    for n in range(4):
        store.append(record(n))
    for n in range(4):
        assert store.feedback.add(score(n, 0.0))
    first = store.feedback.events_since(0)
    assert [x.score for x in first] == [0.0] * 4
    assert [x.seq for x in first] == sorted({x.seq for x in first})
    cursor = first[-1].seq
    assert store.feedback.events_since(cursor) == []
    store.feedback.add(score(2, 1.0, weight=0.5))
    store.feedback.add(score(2, 0.5))
    store.feedback.add(score(3, 1.0, key="another"))
    then = store.feedback.events_since(cursor)
    assert [(x.score, x.previous_score, x.previous_weight) for x in then] == [
        (1.0, 0.0, 1.0),
        (0.5, 1.0, 0.5),
        (1.0, None, None),
    ]
    assert then[0].previous_seq == first[2].seq
    assert then[1].previous_seq == then[0].seq
    # Whoever adds up weight * score, taking off what is replaced, has what counts now.
    total = sum(
        x.weight * x.score - (x.previous_weight or 0.0) * (x.previous_score or 0.0)
        for x in [*first, *then]
    )
    assert total == pytest.approx(
        sum(s.score * s.weight for _, scores in read_back(store) for s in scores)
    )


def test_the_same_score_again_is_no_change(store: SqlStore) -> None:
    store.append(record(1))
    for _ in range(3):
        assert store.feedback.add(score(1, 1.0, key="k", comment="fine"))
    assert len(store.feedback.events_since(0)) == 1
    store.feedback.add(score(1, 1.0, key="k", comment="fine after all"))
    assert len(store.feedback.events_since(0)) == 2
    assert len(store.feedback.current("dec_00000000001")) == 1


def test_a_page_at_a_time_and_a_route_at_a_time(store: SqlStore) -> None:
    for n in range(6):
        r = record(n)
        route = "auto" if n % 2 else "other"
        store.append(
            msgspec.structs.replace(r, decision=msgspec.structs.replace(r.decision, route=route))
        )
        store.feedback.add(score(n, n / 10))
    cursor, seen = 0, []
    while page := store.feedback.events_since(cursor, 2):
        assert len(page) <= 2
        seen += [x.score for x in page]
        cursor = page[-1].seq
    assert seen == [n / 10 for n in range(6)]
    assert [x.score for x in store.feedback.events_since(0, route="auto")] == [0.1, 0.3, 0.5]


def test_a_batch_is_one_transaction_with_a_word_on_each(store: SqlStore) -> None:
    for n in range(3):
        store.append(record(n))
    batch = [score(0, 0.1), score(9, 0.5), score(1, 0.2), score(0, 0.9), score(2, 0.3, key="k")]
    assert store.feedback.add_batch(batch) == [True, False, True, True, True]
    kept = [x for n in range(3) for x in store.feedback.current(f"dec_{n:011x}")]
    assert [x["score"] for x in kept] == [0.9, 0.2, 0.3], "the last of the batch wins"
    assert store.feedback.add_batch([]) == []


@pytest.mark.parametrize("odd", ["", "x" * 65, "dec_\0", "dec_\ud83d", "décision"])
def test_what_cannot_be_an_id_is_no_decision(store: SqlStore, odd: str) -> None:
    assert not store.feedback.add(Feedback(decision_id=odd, score=1.0))


def test_a_key_scores_only_its_own_decisions(store: SqlStore) -> None:
    store.append(record(1, key_id="key_a"))
    store.append(record(2))
    assert not store.feedback.add(score(1, 0.0), key_id="key_b")
    assert not store.feedback.add(score(2, 0.0), key_id="key_b"), "nor one made without a key"
    assert store.feedback.add(score(1, 1.0), key_id="key_a")
    assert store.feedback.add_batch([score(1, 0.5), score(2, 0.5)], key_id="key_a") == [True, False]
    assert store.feedback.add(score(2, 1.0)), "the operator scores any"


def test_scores_noticed_by_the_gateway_follow_their_decisions(store: SqlStore) -> None:
    for n in range(20):
        store.append(record(n))
        store.feedback.append([score(n, 0.0, source="implicit:empty", kind="implicit")])
    store.feedback.append([score(99, 0.0, source="implicit:empty", kind="implicit")])
    assert store.flush()
    assert len(store.feedback.events_since(0)) == 20
    assert store.health().pending == 0
    assert store.summary()["feedback"]["decisions"] == 0, "nobody said anything"


def test_a_failed_first_attempt_is_judged_for_the_model_that_failed(store: SqlStore) -> None:
    store.append(record(1, model="p/b"))
    store.feedback.add(score(1, 0.0, source=feedback.UPSTREAM_ERROR, kind="implicit"))
    store.feedback.add(score(1, 1.0))
    assert [x.scored_model for x in store.feedback.events_since(0)] == ["p/a", "p/b"]


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
        store.append(vectors(n))
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


def test_a_label_of_an_unreadable_decision_is_left_out(store: SqlStore) -> None:
    for n in range(3):
        store.append(record(n))
        store.feedback.add(score(n, 1.0))
    with store.database.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE decisions SET detail = '{torn' WHERE id = 'dec_00000000001'"
        )
    assert [x.decision_id[-1] for x in store.feedback.events_since(0)] == ["0", "2"]


def test_writers_side_by_side_lose_nothing_and_readers_miss_nothing(store: SqlStore) -> None:
    for n in range(40):
        store.append(record(n))
    store.flush()
    seen: list[int] = []
    stop = threading.Event()

    def read() -> None:
        cursor = 0
        while True:
            last = stop.is_set()
            for label in store.feedback.events_since(cursor, 7):
                cursor = label.seq
                seen.append(cursor)
            if last and not store.feedback.events_since(cursor, 1):
                return
            time.sleep(0.001)  # a reader that never rests keeps an in-memory database to itself

    def write(who: int) -> None:
        for n in range(40):
            batch = [score(n, 0.5, source=f"s{who}", key=str(k)) for k in "ab"]
            for attempt in range(3):
                try:
                    store.feedback.add_batch(batch)
                    break
                except StoreError:  # another writer was long in there: send it again, as it says
                    if attempt == 2:
                        raise

    with ThreadPoolExecutor(4) as pool:
        reader = pool.submit(read)
        try:
            for writer in [pool.submit(write, who) for who in range(3)]:
                writer.result()
        finally:
            stop.set()
        reader.result()
    assert len(seen) == len(set(seen)) == 240
    assert seen == [x.seq for x in store.feedback.events_since(0, 1000)]


# ── snapshots ────────────────────────────────────────────────────────────────────────────────────


def snap(content: bytes, route: str = "auto", **more: Any) -> PolicySnapshot:
    return make_snapshot(route=route, kind="brain", content=content, created_s=1.0, **more)


def test_a_snapshot_comes_back_as_it_was_put(store: SqlStore) -> None:
    s = snap(b"\x00\xffweights", parent="brain-0", card={"labels": 12, "auc": 0.7}, created_by="me")
    assert store.registry.put(s)
    assert store.registry.get(s.version) == s
    assert not store.registry.put(msgspec.structs.replace(s, card={"labels": 0})), "immutable"
    assert store.registry.get(s.version).card["labels"] == 12
    (shown,) = store.registry.snapshots("auto")
    assert (shown["version"], shown["bytes"], shown["card"]["auc"]) == (s.version, 9, 0.7)
    assert store.registry.snapshots("other") == []
    assert snap(b"other").version != s.version
    assert snap(b"\x00\xffweights", route="other").version != s.version


@pytest.mark.parametrize("change", [{"content": b"other"}, {"version": "brain-0"}, {"route": "x"}])
def test_a_snapshot_under_a_false_name_is_refused(store: SqlStore, change: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError):
        store.registry.put(msgspec.structs.replace(snap(b"a"), **change))
    assert store.registry.snapshots() == []


def test_a_snapshot_changed_in_the_database_is_not_used(store: SqlStore) -> None:
    good, bad = snap(b"good"), snap(b"bad")
    store.registry.put(good)
    store.registry.put(bad)
    store.registry.promote("auto", good.version, by="me", now_s=1.0)
    with store.database.engine.begin() as connection:
        connection.execute(
            schema.snapshots.update()
            .where(schema.snapshots.c.version == bad.version)
            .values(content=b"evil")
        )
    for use in (
        lambda: store.registry.get(bad.version),
        lambda: store.registry.promote("auto", bad.version, by="me", now_s=2.0),
    ):
        with pytest.raises(ArtifactError, match="damaged"):
            use()
    assert store.registry.current("auto") == good.version


def test_promotions_are_a_history_that_can_be_undone(store: SqlStore) -> None:
    a, b = snap(b"a"), snap(b"b", parent=snap(b"a").version)
    for s in (a, b):
        store.registry.put(s)
    assert store.registry.current("auto") is None
    with pytest.raises(UsageError):
        store.registry.rollback("auto", by="me", now_s=0.0)
    seen = [store.registry.generation()]

    def generation_changed() -> bool:
        seen.append(store.registry.generation())
        return seen[-1] > seen[-2]

    assert not generation_changed()
    store.registry.promote("auto", a.version, by="me", now_s=1.0, evidence={"lower": 0.01})
    assert generation_changed()
    store.registry.promote("auto", b.version, by="cli", now_s=2.0, forced=True)
    assert generation_changed()
    again = store.registry.promote("auto", b.version, by="cli", now_s=3.0)
    assert not generation_changed(), "it was current already"
    assert (again.promoted_at_s, again.previous) == (2.0, a.version)
    assert store.registry.current("auto") == b.version
    assert store.registry.current("other") is None
    assert store.registry.rollback("auto", by="me", now_s=4.0).version == a.version
    assert generation_changed()
    assert store.registry.current("auto") == a.version
    assert store.registry.rollback("auto", by="me", now_s=5.0).version is None
    assert store.registry.current("auto") is None
    with pytest.raises(UsageError, match="nothing to undo"):
        store.registry.rollback("auto", by="me", now_s=6.0)
    store.registry.promote("auto", b.version, by="me", now_s=7.0)
    assert store.registry.current("auto") == b.version
    assert store.registry.rollback("auto", by="me", now_s=8.0).version is None
    history = store.registry.promotions("auto")
    assert [p.kind for p in history] == [
        "rollback", "promote", "rollback", "rollback", "promote", "promote"
    ]  # fmt: skip
    assert history[-1].evidence == {"lower": 0.01}
    assert [p.forced for p in history[-2:]] == [True, False]


def test_only_a_routes_own_snapshots_are_promoted(store: SqlStore) -> None:
    s = snap(b"a")
    store.registry.put(s)
    with pytest.raises(UsageError, match="'auto'"):
        store.registry.promote("other", s.version, by="me", now_s=1.0)
    with pytest.raises(ArtifactError, match="brain-none"):
        store.registry.promote("auto", "brain-none", by="me", now_s=1.0)
    assert store.registry.generation() == 0


# ── the learner ──────────────────────────────────────────────────────────────────────────────────


def test_a_lease_has_one_holder(store: SqlStore) -> None:
    leases = store.leases
    assert leases.acquire("learner", "a", 10.0, now_s=100.0)
    assert not leases.acquire("learner", "b", 10.0, now_s=105.0)
    assert leases.acquire("another", "b", 10.0, now_s=105.0)
    assert leases.acquire("learner", "a", 10.0, now_s=106.0), "its holder extends it"
    assert not leases.acquire("learner", "b", 10.0, now_s=115.9)
    assert leases.acquire("learner", "b", 10.0, now_s=116.0), "it has expired"
    assert not leases.acquire("learner", "a", 10.0, now_s=116.5)
    assert not leases.release("learner", "a")
    assert leases.release("learner", "b")
    assert leases.acquire("learner", "a", 10.0, now_s=117.0)


def test_of_many_that_ask_at_once_one_gets_the_lease(store: SqlStore) -> None:
    for turn in range(5):
        got: list[str] = []
        start = threading.Barrier(6)

        def ask(who: str, turn: int = turn, got: list[str] = got, start: Any = start) -> None:
            start.wait()
            if store.leases.acquire("learner", who, 10.0, now_s=100.0 * turn):
                got.append(who)

        threads = [threading.Thread(target=ask, args=(f"w{i}",)) for i in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(got) == 1


def test_state_and_cursor_move_together_or_not_at_all(store: SqlStore) -> None:
    assert store.learner_states.load("auto").cursor == 0
    assert not store.learner_states.save("auto", {"a": b"x"}, 5, expected_cursor=3, now_s=1.0)
    assert store.learner_states.load("auto").states == {}
    both = {"head": b"\x00\x01", "bandit": b"b"}
    assert store.learner_states.save("auto", both, 5, expected_cursor=0, now_s=1.0)
    assert not store.learner_states.save("auto", {"head": b"late"}, 7, expected_cursor=0, now_s=2.0)
    found = store.learner_states.load("auto")
    assert (found.cursor, found.states) == (5, both)
    assert store.learner_states.save("auto", {"head": b"2"}, 9, expected_cursor=5, now_s=3.0)
    found = store.learner_states.load("auto")
    assert (found.cursor, found.states) == (9, {"head": b"2", "bandit": b"b"})
    found = store.learner_states.load("auto", ("head", "nothing"))
    assert (found.cursor, found.states) == (9, {"head": b"2"})
    assert store.learner_states.load("auto", ()).cursor == 9
    assert store.learner_states.save("auto", {}, 11, expected_cursor=9, now_s=4.0)
    assert store.learner_states.load("auto").cursor == 11
    assert store.learner_states.load("other").states == {}


def test_of_two_learners_one_moves_on(store: SqlStore) -> None:
    won: list[int] = []

    def learn(who: int) -> None:
        for _ in range(20):
            at = store.learner_states.load("auto")
            n = int(at.states.get("n", b"0"))
            if store.learner_states.save(
                "auto", {"n": b"%d" % (n + 1)}, at.cursor + 1, expected_cursor=at.cursor, now_s=1.0
            ):
                won.append(who)

    threads = [threading.Thread(target=learn, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    found = store.learner_states.load("auto")
    assert found.cursor == int(found.states["n"]) == len(won)


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
    for n, route in enumerate(("auto", "audit:auto", "auto")):
        r = record(n, status=502 if n == 1 else 200)
        store.append(
            msgspec.structs.replace(r, decision=msgspec.structs.replace(r.decision, route=route))
        )
    s = store.summary()
    assert (s["requests"], s["failed"], s["attempts"]) == (2, 0, 2)
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


_PATHS = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
_WRITER = """
import sys, time
sys.path[:0] = {tests!r}
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
    code = _WRITER.format(tests=_PATHS, wait=0.5)
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
sys.path[:0] = {_PATHS!r}
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
