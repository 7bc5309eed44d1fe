"""Background work: steps in a thread, leases that keep workers apart."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from suffice.background import LeasedWorker
from suffice.errors import StoreError
from suffice.store import open_store
from suffice.store.sql import SqlStore

LOG = logging.getLogger("suffice.test")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = open_store(f"sqlite:///{tmp_path / 's.db'}")
    yield opened
    opened.close()


def worker(store: SqlStore, owner: str, step: object = None) -> LeasedWorker:
    return LeasedWorker(
        "test",
        step or (lambda now_s: None),  # type: ignore[arg-type]  # any callable of a time
        store.leases,
        owner=owner,
        lease_s=10.0,
        log=LOG,
    )


def test_one_of_two_workers_holds_a_lease_until_it_stops(store: SqlStore) -> None:
    one, two = worker(store, "one"), worker(store, "two")
    assert one.hold("work", 100.0)
    assert not two.hold("work", 101.0)
    assert two.hold("other work", 101.0)
    one.stop()
    assert two.hold("work", 102.0)


def test_a_lease_is_extended_half_way_and_lost_when_it_expires(store: SqlStore) -> None:
    one, two = worker(store, "one"), worker(store, "two")
    assert one.hold("work", 100.0)
    assert one.hold("work", 106.0), "extended to 116"
    assert not two.hold("work", 112.0)
    assert two.hold("work", 117.0), "the first worker did nothing for too long"
    assert not one.hold("work", 118.0)


def test_steps_go_on_after_the_store_was_away_and_the_log_says_it_once(
    store: SqlStore, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[float] = []
    enough = threading.Event()

    def step(now_s: float) -> None:
        steps.append(now_s)
        if len(steps) == 5:
            enough.set()
        if len(steps) < 4:
            raise StoreError("The store is away.")

    running = worker(store, "one", step)
    with caplog.at_level(logging.WARNING, "suffice.test"):
        running.start(interval_s=0.001)
        running.start(interval_s=0.001)  # a second start changes nothing
        assert enough.wait(60)
        running.stop()
    assert running.stopping()
    assert [r.getMessage() for r in caplog.records] == [
        "test waits for the store: The store is away."
    ]
    n = len(steps)
    assert n >= 5
    running.stop()
    assert len(steps) == n
