"""Contract of a feedback log: every change is stored once and read once, in its order."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest
from tests.support.records import record, score, with_vectors

from suffice import features
from suffice.errors import StoreError
from suffice.store import feedback, reader
from suffice.store.sql import SqlStore
from suffice.types import Feedback, Prediction


def current_scores(store: SqlStore) -> list[reader.Score]:
    """All scores that count now."""
    store.flush()
    with store.database.engine.connect() as connection:
        rows = list(reader.StoreReader(connection).decisions(("id",)))
    return [s for _, scores in rows for s in scores]


def test_feedback_is_idempotent_by_key(store: SqlStore) -> None:
    store.append(record(1))
    for value in (0.0, 1.0):
        assert store.feedback.add(score(1, value, key="k"))
    assert store.feedback.add(Feedback(decision_id="dec_00000000001", score=0.5, source="judge"))
    rows = store.feedback.current("dec_00000000001")
    assert sorted((r["source"], r["score"]) for r in rows) == [("judge", 0.5), ("user", 1.0)]
    assert not store.feedback.add(Feedback(decision_id="dec_none", score=1.0))
    assert len(current_scores(store)) == 2


def test_a_label_carries_the_decision_as_it_was_made(store: SqlStore) -> None:
    store.append(with_vectors(1))
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
    current = sum(s.score * s.weight for s in current_scores(store))
    assert total == pytest.approx(current)


def test_the_same_score_again_changes_nothing(store: SqlStore) -> None:
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


def test_a_batch_is_one_transaction_with_a_result_per_score(store: SqlStore) -> None:
    for n in range(3):
        store.append(record(n))
    batch = [score(0, 0.1), score(9, 0.5), score(1, 0.2), score(0, 0.9), score(2, 0.3, key="k")]
    assert store.feedback.add_batch(batch) == [True, False, True, True, True]
    kept = [x for n in range(3) for x in store.feedback.current(f"dec_{n:011x}")]
    assert [x["score"] for x in kept] == [0.9, 0.2, 0.3], "the last of the batch wins"
    assert store.feedback.add_batch([]) == []


@pytest.mark.parametrize("odd", ["", "x" * 65, "dec_\0", "dec_\ud83d", "décision"])
def test_an_impossible_id_is_an_unknown_decision(store: SqlStore, odd: str) -> None:
    assert not store.feedback.add(Feedback(decision_id=odd, score=1.0))


def test_a_key_scores_only_its_own_decisions(store: SqlStore) -> None:
    store.append(record(1, key_id="key_a"))
    store.append(record(2))
    assert not store.feedback.add(score(1, 0.0), key_id="key_b")
    assert not store.feedback.add(score(2, 0.0), key_id="key_b"), "nor one made without a key"
    assert store.feedback.add(score(1, 1.0), key_id="key_a")
    assert store.feedback.add_batch([score(1, 0.5), score(2, 0.5)], key_id="key_a") == [True, False]
    assert store.feedback.add(score(2, 1.0)), "the operator scores any"


def test_implicit_feedback_is_stored_after_its_decisions(store: SqlStore) -> None:
    for n in range(20):
        store.append(record(n))
        store.feedback.append([score(n, 0.0, source="implicit:empty", kind="implicit")])
    store.feedback.append([score(99, 0.0, source="implicit:empty", kind="implicit")])
    assert store.flush()
    assert len(store.feedback.events_since(0)) == 20
    assert store.health().pending == 0
    assert store.summary()["feedback"]["decisions"] == 0, "only explicit feedback is counted"


def test_a_failed_first_attempt_is_a_label_of_the_model_that_failed(store: SqlStore) -> None:
    store.append(record(1, model="p/b"))
    store.feedback.add(score(1, 0.0, source=feedback.UPSTREAM_ERROR, kind="implicit"))
    store.feedback.add(score(1, 1.0))
    assert [x.scored_model for x in store.feedback.events_since(0)] == ["p/a", "p/b"]


def test_a_label_of_an_unreadable_decision_is_left_out(store: SqlStore) -> None:
    for n in range(3):
        store.append(record(n))
        store.feedback.add(score(n, 1.0))
    with store.database.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE decisions SET detail = '{torn' WHERE id = 'dec_00000000001'"
        )
    assert [x.decision_id[-1] for x in store.feedback.events_since(0)] == ["0", "2"]


def test_concurrent_writers_lose_nothing_and_readers_miss_nothing(store: SqlStore) -> None:
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
