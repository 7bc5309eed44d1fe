"""Kill -9 while it learns, anywhere: every label that was taken counts once, and learning goes on.

This file is also the program that is killed: a nursery that forks workers, so that each is up at once.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.feedback import CODE, CODER, PROSE, WRITER, record, router

from suffice.learning import route_learner, worker

pytestmark = pytest.mark.slow

TURN_S = 100.0  # between the clocks of two workers: a dead one's lease has lapsed by then

# Where a worker kills itself: a method of the store, at its n-th call, before or after it is done.
# `execute` is a statement of the transaction that keeps what was learned.
POINTS = (
    ("learner_states.save", 1, "before"),
    ("learner_states.save", 1, "after"),
    ("learner_states.save", 3, "after"),
    ("execute", 2, "before"),
    ("execute", 3, "before"),
    ("execute", 6, "after"),
    ("registry.put", 1, "before"),
    ("registry.put", 1, "after"),
    ("registry.promote", 1, "after"),
    ("feedback.add", 9, "before"),
    ("feedback.add", 9, "after"),
    ("feedback.events_since", 4, "after"),
)
_KEPT = ("learner_cursors", "learner_states")
AT_RANDOM = 6


def save_and_refit_often() -> None:
    """Everything that may be interrupted happens all the time."""
    worker.SAVE_LABELS, worker.SAVE_INTERVAL_S = 7, 0.0
    route_learner.MIN_LABELS_FIRST_REFIT, route_learner.REFIT_GROWTH = 15.0, 0.05
    route_learner.REFIT_INTERVAL_SHARE = 0.0


# ── the program that is killed ───────────────────────────────────────────────────────────────────


def work(folder: Path, number: int, ready: int, point: tuple[str, int, str] | None) -> None:
    """Decide, score and learn until killed. Each confirmed score is noted in `acknowledged`, and by a
    byte to `ready`."""
    import msgspec

    save_and_refit_often()
    r = router(folder)
    learner = r.start_learning(thread=False)
    now_s = 1000.0 + TURN_S * number
    learner.step(now_s)
    assert "auto" in learner.learners, "the lease of the dead was not taken over"
    if point is not None:
        _trap(r.store, *point)
    noted = os.open(folder / "acknowledged", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    rng = random.Random(number)
    for i in range(600):  # never so far: it is dead by then
        text, good = ((CODE, CODER), (PROSE, WRITER))[rng.randrange(2)]
        text = text.format(f"thing{number}x{i}")
        d = msgspec.structs.replace(r.route(text), model=rng.choice((CODER, WRITER)))
        record(r, d, text, at_s=now_s)
        r.feedback(d.id, float(d.model == good), source=f"user{i % 9}")
        os.write(noted, f"{d.id}\n".encode())
        os.write(ready, b"!")
        if i % 5 == 4:
            learner.step(now_s + i * 1e-3)
            assert not learner.problems, learner.problems


def _trap(store: Any, method: str, calls: int, when: str) -> None:
    owner = store
    if method == "execute":
        from sqlalchemy import Connection

        owner = Connection
    else:
        part, _, method = method.partition(".")
        owner = getattr(store, part)
    real: Callable[..., Any] = getattr(owner, method)
    left = calls

    def trapped(*args: Any, **options: Any) -> Any:
        nonlocal left
        if method == "execute" and not any(t in str(args[1]) for t in _KEPT):
            return real(*args, **options)
        left -= 1
        if left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        found = real(*args, **options)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, method, trapped)


def nursery(folder: Path) -> None:
    """Workers one after another, each killed; says how each ended."""
    from suffice import features

    features.embed(features.extract_text("warm"))
    chance = random.Random(7)
    plans: list[tuple[str, int, str] | None] = [*POINTS, *([None] * AT_RANDOM)]
    chance.shuffle(plans)
    for number, point in enumerate(plans):
        came, ready = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(came)
            try:
                work(folder, number, ready, point)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(3)
        os.close(ready)
        if point is None:
            for _ in range(chance.randrange(8, 40)):
                os.read(came, 1)
            time.sleep(chance.uniform(0.0, 0.05))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(came)
        print(number, point or "random", os.waitstatus_to_exitcode(status), flush=True)


# ── the test ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(240)  # eighteen processes, one after another
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_anywhere_every_label_counts_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.learning.test_killed", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ends = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    assert len(ends) == len(POINTS) + AT_RANDOM
    assert {code for _, code in ends} == {str(-signal.SIGKILL)}, done.stdout + done.stderr

    # What was confirmed is in the table, once.
    with sqlite3.connect(tmp_path / "s.db") as connection:
        rows = connection.execute(
            "SELECT f.decision_id, f.score, d.model FROM feedback f JOIN decisions d"
            " ON d.id = f.decision_id ORDER BY f.seq"
        ).fetchall()
    connection.close()
    acknowledged = (tmp_path / "acknowledged").read_text().split()
    scored = [i for i, _, _ in rows]
    assert len(set(scored)) == len(scored)
    assert set(acknowledged) <= set(scored)
    assert 0 <= len(scored) - len(acknowledged) <= len(ends), "one a kill may have been under way"
    assert len(scored) > 150

    r = router(tmp_path)
    try:
        learner = r.start_learning(thread=False)
        last_s = 1000.0 + TURN_S * (len(ends) - 1)
        learner.step(last_s + 1.0)
        assert learner.learners == {}, "the lease of the last one killed still holds"
        saved = r.store.learner_states.load("auto").cursor
        learner.step(last_s + worker.LEASE_S + 50.0)
        mine = learner.learners["auto"]
        assert not learner.problems
        assert 0 < saved <= mine.cursor
        # Counted by hand: each label once, older ones fading as each further one comes.
        fade = mine.regression.forget
        weight, total = {CODER: 0.0, WRITER: 0.0}, {CODER: 0.0, WRITER: 0.0}
        for _, score, model in rows:
            weight[model] = weight[model] * fade + 1.0
            total[model] = total[model] * fade + score
        names = list(mine.names)
        assert mine.regression.labels == pytest.approx([weight[m] for m in names], rel=1e-9)
        assert mine.regression.statistics.moment[:, 0] == pytest.approx(
            [total[m] for m in names], rel=1e-9
        )
        # The whole of it, against one that read everything in one go.
        whole = route_learner.RouteLearner("auto", mine.models, None, mine.spec)
        whole.ingest(r.store.feedback.events_since(0, 1_000_000, route="auto"), 0.0)
        assert np.allclose(
            mine.regression.statistics.gram, whole.regression.statistics.gram, rtol=1e-9, atol=1e-9
        )
        assert np.allclose(
            mine.regression.statistics.moment,
            whole.regression.statistics.moment,
            rtol=1e-9,
            atol=1e-9,
        )
        # And it goes on: what serves is what was learned.
        assert r.store.registry.current("auto") is not None
        assert r.route(CODE.format("config")).model == CODER
        assert r.route(PROSE.format("fox")).model == WRITER
    finally:
        r.close()


if __name__ == "__main__":
    nursery(Path(sys.argv[1]))
