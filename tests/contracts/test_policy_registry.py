"""Contract of a policy registry, of leases and of learner states."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from suffice.errors import ArtifactError, UsageError
from suffice.store import make_snapshot, schema
from suffice.store.records import PolicySnapshot
from suffice.store.sql import SqlStore


def snap(content: bytes, route: str = "auto", **more: Any) -> PolicySnapshot:
    return make_snapshot(route=route, kind="policy", content=content, created_s=1.0, **more)


def test_a_snapshot_comes_back_as_it_was_put(store: SqlStore) -> None:
    s = snap(
        b"\x00\xffweights", parent="policy-0", card={"labels": 12, "auc": 0.7}, created_by="me"
    )
    assert store.registry.put(s)
    assert store.registry.get(s.version) == s
    assert not store.registry.put(msgspec.structs.replace(s, card={"labels": 0})), "immutable"
    assert store.registry.get(s.version).card["labels"] == 12
    (shown,) = store.registry.snapshots("auto")
    assert (shown["version"], shown["bytes"], shown["card"]["auc"]) == (s.version, 9, 0.7)
    assert store.registry.snapshots("other") == []
    assert snap(b"other").version != s.version
    assert snap(b"\x00\xffweights", route="other").version != s.version


@pytest.mark.parametrize("change", [{"content": b"other"}, {"version": "policy-0"}, {"route": "x"}])
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
    with pytest.raises(ArtifactError, match="policy-none"):
        store.registry.promote("auto", "policy-none", by="me", now_s=1.0)
    assert store.registry.generation() == 0


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


def test_one_of_many_that_ask_at_once_gets_the_lease(store: SqlStore) -> None:
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
