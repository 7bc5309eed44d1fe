"""kill -9 at any moment: no score is lost or counted twice, by the store or by a learner."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from tests.support.records import at_0001, child, record

from suffice.store import open_store, schema
from suffice.store.sql import SqlStore

pytestmark = pytest.mark.slow

DECISIONS = 50

# Scores decisions over and over, and tells each score once the store has taken it.
_GIVER = """
import random, time
from suffice.types import Feedback
store = open_store(sys.argv[1])
seed = int(sys.argv[2])
draw = random.Random(seed)
print("ready", flush=True)
for n in range(100_000):
    batch = [
        Feedback(decision_id=f"dec_{draw.randrange(50):011x}", score=draw.randrange(11) / 10,
                 key=f"{seed}-{n % 7}-{i}", comment=f"{seed}-{n}")
        for i in range(3)
    ]
    assert all(store.feedback.add_batch(batch))
    print(f"{seed}-{n}", flush=True)
"""

# Adds up what it reads and keeps the sum with its place, as a learner does.
_LEARNER = """
import json, os, time
store = open_store(sys.argv[1])
owner = f"pid-{os.getpid()}"
print("ready", flush=True)
while True:
    if not store.leases.acquire("learner", owner, 0.2, time.time()):
        time.sleep(0.01)
        continue
    at = store.learner_states.load("auto")
    seen = json.loads(at.states.get("sum", b'{"changes": 0, "total": 0.0}'))
    labels = store.feedback.events_since(at.cursor, 17)
    if not labels:
        time.sleep(0.002)
        continue
    for x in labels:
        seen["changes"] += 1
        seen["total"] += x.score - (x.previous_score or 0.0)
    store.learner_states.save("auto", {"sum": json.dumps(seen).encode(), "n": b"%d" % len(labels)},
                             labels[-1].seq, expected_cursor=at.cursor, now_s=time.time())
"""


@pytest.mark.parametrize("engine", ["file", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_killed_at_random_points_feedback_and_learning_agree(
    request: pytest.FixtureRequest, tmp_path: Path, engine: str
) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    if engine == "postgres":
        url = request.getfixturevalue("postgres_url")
    store = open_store(url)
    for n in range(DECISIONS):
        store.append(record(n))
    assert store.flush()
    draw = random.Random(7)
    said: set[str] = set()
    try:
        turn = 0
        # On a busy machine a learner may be killed before it has read anything: some turns more.
        while turn < 4 or (store.learner_states.load("auto").cursor == 0 and turn < 30):
            turn += 1
            givers = [child(_GIVER, url, 10 * turn + i) for i in range(2)]
            learners = [child(_LEARNER, url) for _ in range(2)]
            running = [*givers, *learners]
            for run in running:
                assert run.stdout is not None
                assert run.stdout.readline() == "ready\n"
            time.sleep(draw.uniform(0.05, 0.4))
            for run in sorted(running, key=lambda _: draw.random()):
                os.kill(run.pid, signal.SIGKILL)
                time.sleep(draw.uniform(0.0, 0.02))
            for run in running:
                out, err = run.communicate(timeout=60)
                assert run.returncode == -signal.SIGKILL, err
                if run in givers:
                    said |= set(out.split("\n")[:-1])
        assert said
        _agree(store, said)
    finally:
        store.close()


def _agree(store: SqlStore, said: set[str]) -> None:
    labels, cursor = [], 0
    while page := store.feedback.events_since(cursor):
        labels += page
        cursor = page[-1].seq
    # A score that was acknowledged is stored: as it was, or replaced by a later one.
    rows = store.database.rows(schema.feedback.select())
    assert {r["comment"] for r in rows} >= said
    assert len(rows) == len(labels)
    # Each change is linked to the one it replaces, and exactly one of each key counts now.
    by_key: dict[tuple[str, str, str], list[int]] = {}
    for r in rows:
        if r["replaced_by"] is None:
            by_key.setdefault((r["decision_id"], r["source"], r["key"]), []).append(r["seq"])
    keys = {(r["decision_id"], r["source"], r["key"]) for r in rows}
    assert set(by_key) == keys
    assert all(len(current) == 1 for current in by_key.values())
    # What the killed learners have added up, and the rest of what there is to read, is the truth.
    at = store.learner_states.load("auto")
    assert at.cursor > 0, "a learner learned something"
    seen = json.loads(at.states["sum"])
    for x in store.feedback.events_since(at.cursor, 1_000_000):
        seen["changes"] += 1
        seen["total"] += x.score - (x.previous_score or 0.0)
    assert seen["changes"] == len(labels)
    current = sum(r["score"] for r in rows if r["replaced_by"] is None)
    assert seen["total"] == pytest.approx(current)


def test_killed_while_upgrading_it_upgrades_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    draw = random.Random(3)
    for turn in range(5):
        path = tmp_path / f"{turn}.db"
        feedback = [
            {"decision_id": "dec_00000000001", "source": "user", "key": str(k), "score": 0.5,
             "comment": None, "created_s": 1.0}
            for k in range(300)
        ]  # fmt: skip
        at_0001(f"sqlite:///{path}", 50, feedback)
        code = 'print("ready", flush=True)\nopen_store("sqlite:///" + sys.argv[1]).close()'
        with child(code, path) as run:
            assert run.stdout is not None
            assert run.stdout.readline() == "ready\n"
            time.sleep(draw.uniform(0.0, 0.3))
            os.kill(run.pid, signal.SIGKILL)
        with sqlite3.connect(path) as connection:
            (version,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            columns = {row[1] for row in connection.execute("PRAGMA table_info(feedback)")}
        connection.close()
        assert (version == schema.HEAD) == ("seq" in columns), "half-way is nowhere"
        store = open_store(f"sqlite:///{path}")
        assert len(store.feedback.events_since(0)) == 300
        assert store.summary()["requests"] == 50
        store.close()
