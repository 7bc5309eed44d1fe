"""Several workers share one budget, and a killed one loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from tests.support.budgets import (
    Reply,
    asking,
    routed,
    spent,
)

from suffice.budgets import Ledger, shared_ledger
from suffice.errors import (
    BudgetExceededError,
    ConfigError,
)


def test_two_workers_see_what_each_has_reserved_and_spent(tmp_path: Path) -> None:
    with shared_ledger(2) as path:
        env = {"SUFFICE_LEDGER": path}
        long_answer = lambda m, b: Reply(50, b["max_tokens"])  # noqa: E731
        with (
            routed(tmp_path, {"usd_per_day": 0.01}, long_answer, env=env) as one,
            routed(tmp_path, {"usd_per_day": 0.01}, long_answer, env=env) as two,
        ):
            done = 0
            with contextlib.suppress(BudgetExceededError):
                for _ in range(20):
                    asyncio.run(one.answer(asking(max_tokens=1000)))
                    done += 1
            assert done
            assert spent(one) == spent(two)
            with pytest.raises(BudgetExceededError):
                asyncio.run(two.answer(asking(max_tokens=1000)))
            assert spent(two)[0] <= 0.01
    assert not os.path.exists(path)


def test_the_pacer_counts_the_requests_of_the_other_workers(tmp_path: Path) -> None:
    with shared_ledger(2) as path:
        env = {"SUFFICE_LEDGER": path}
        with (
            routed(tmp_path, {"usd_per_day": 1.0}, env=env) as one,
            routed(tmp_path, {"usd_per_day": 1.0}, env=env) as two,
        ):
            for r in (one, two):
                r.budgets.restore(r.store)  # as the gateway does before it listens
            for _ in range(7):
                asyncio.run(one.answer(asking()))
            asyncio.run(two.answer(asking()))
            budget = two.budgets.of("auto")
            assert budget is not None
            assert budget.requests_today == 8


def test_without_file_locks_each_worker_gets_an_equal_part(tmp_path: Path) -> None:
    with routed(tmp_path, {"usd_per_day": 8.0}, env={"SUFFICE_LEDGER": "4"}) as r:
        assert r.ready()["budgets"]["auto"]["ceiling_usd"] == 2.0


def test_a_ledger_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SUFFICE_LEDGER"):
        Ledger(str(tmp_path / "missing"))
    short = tmp_path / "short"
    short.write_bytes(b"x")
    with pytest.raises(ConfigError, match="SUFFICE_LEDGER"):
        Ledger(str(short))


def _spend(path: str, ceiling: int, calls: int, seed: int) -> None:
    """What a worker does with its row, as fast as it can. Runs in a process of its own."""
    rng = np.random.default_rng(seed)
    row = Ledger(path).row("auto")
    reservations: list[int] = []
    for _ in range(calls):
        nano = int(rng.integers(1, 50))
        with row:
            if row.spent + row.reserved + nano <= ceiling:
                row.reserved_here += nano
                reservations.append(nano)
        while len(reservations) > 3:
            with row:
                nano = reservations.pop(0)
                row.spent += int(rng.integers(0, nano + 1))
                row.reserved_here -= nano
    while True:
        time.sleep(0.01)  # until it is killed, with what it holds


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs signals of POSIX")
def test_processes_never_pass_the_ceiling_and_reservations_survive_a_kill() -> None:
    context = multiprocessing.get_context("spawn")
    with shared_ledger(4) as path:
        ledger = Ledger(path)
        row = ledger.row("auto")
        with row:
            row.start_day(20_000)
        workers = [
            context.Process(target=_spend, args=(path, 5000, 100_000, n), daemon=True)
            for n in range(3)
        ]
        for worker in workers:
            worker.start()
        deadline = time.monotonic() + 60.0
        while time.monotonic() < deadline:
            with row:
                total = row.spent + row.reserved
            assert total <= 5000
            if total > 4900:
                break
            time.sleep(0.002)
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        with row:
            before = row.spent + row.reserved
        assert before > 4900
        late = Ledger(path)  # who comes next clears up after them
        with row:
            assert row.reserved == 0
            assert row.spent == before
        late.close()
        ledger.close()
