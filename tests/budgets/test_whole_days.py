"""Days with bursts spend their budget and never more."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.budgets import (
    DAY_S,
    MONDAY,
    Clock,
    Reply,
    asking,
    opened,
)

from suffice import Router
from suffice.budgets import shared_ledger
from suffice.errors import (
    BudgetExceededError,
)
from suffice.types import Query

WORDS = "river stone copper lantern meadow thunder velvet orchard puzzle harbour".split()


class World:
    """Days of requests through the router, with calls that take seconds of a virtual clock."""

    def __init__(self, seed: int, requests: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.requests = requests
        self.clock = Clock(MONDAY)
        self.refused = 0
        self.costs: list[float] = []
        self.models: list[str] = []
        self.overspent = 0

    def times(self) -> list[float]:
        """A day with a peak in the afternoon and four bursts of five to ten times the rate."""
        rng = self.rng
        minutes = np.arange(1440)
        rate = 1.0 + 0.6 * np.cos((minutes / 60.0 - 15.0) / 24.0 * 2 * np.pi)
        rate /= rate.sum()
        for _ in range(4):
            start = rng.integers(0, 1430)
            rate[start : start + rng.integers(5, 16)] *= rng.uniform(5.0, 10.0)
        counts = rng.poisson(rate * self.requests)
        return sorted((np.repeat(minutes * 60.0, counts) + rng.random(counts.sum()) * 60).tolist())

    def query(self) -> Query:
        words = self.rng.choice(WORDS, int(self.rng.integers(3, 60)))
        return asking(" ".join(words) + "?", max_tokens=2000)

    async def day(self, workers: list[Router], midnight_s: float) -> float:
        """One day; returns what it has cost. The ceiling is looked at after every event. Of two
        workers the first gets four of five requests."""
        loop = asyncio.get_running_loop()
        open_calls: list[tuple[float, int, asyncio.Future[Any], asyncio.Task[Any]]] = []
        gates: list[asyncio.Future[Any]] = []
        rng, clock = self.rng, self.clock
        n_before = len(self.costs)

        def answer(model: str, body: dict[str, Any]) -> asyncio.Future[Any]:
            gates.append(loop.create_future())
            return gates[-1]

        for r in workers:
            r.transport.answer = answer
        arrivals = [midnight_s + t for t in self.times()]
        for at_s in [*arrivals, math.inf]:
            while open_calls and open_calls[0][0] <= at_s:
                clock.now_s, _, gate, task = heapq.heappop(open_calls)
                gate.set_result(Reply(40, int(rng.gamma(2.0, 200.0)) % 2000 + 1))
                done = await task
                assert done.cost_usd is not None
                self.costs.append(done.cost_usd)
                self.models.append(done.model)
                self.check_ceiling(r)
            if at_s == math.inf:
                break
            clock.now_s = at_s
            r = workers[int(rng.random() > 0.8) % len(workers)]
            task = loop.create_task(r.answer(self.query()))
            before = len(gates)
            await asyncio.sleep(0)
            if task.done():
                assert isinstance(task.exception(), BudgetExceededError)
                self.refused += 1
                continue
            assert len(gates) == before + 1
            took_s = float(rng.gamma(2.0, 4.0))
            heapq.heappush(open_calls, (at_s + took_s, len(gates), gates[-1], task))
            self.check_ceiling(r)
        return sum(self.costs[n_before:])

    def check_ceiling(self, r: Router) -> None:
        totals = r.ready()["budgets"]["auto"]
        self.overspent += (
            totals["spent_usd"] + totals["reserved_usd"] > totals["ceiling_usd"] + 1e-12
        )


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "workers"), [(2.5, 1), (4.0, 2)])
def test_days_with_bursts_spend_their_budget_and_never_more(
    tmp_path: Path, budget: float, workers: int
) -> None:
    async def main() -> None:
        world = World(int(budget * 10), 1500)
        with contextlib.ExitStack() as stack:
            env = {"SUFFICE_LEDGER": stack.enter_context(shared_ledger(workers))}
            of = [
                stack.enter_context(
                    opened(
                        tmp_path,
                        {"usd_per_day": budget},
                        lambda m, b: None,
                        clock=world.clock,
                        env=env,
                    )
                )
                for _ in range(workers)
            ]
            for r in of:
                r.budgets.restore(r.store)
            first = await world.day(of, MONDAY)
            shares = [world.models.count(m) for m in ("p/weak", "p/mid", "p/strong")]
            second = await world.day(of, MONDAY + DAY_S)
        print(budget, first / budget, second / budget, world.refused, shares)
        assert world.overspent == 0
        assert first <= budget
        assert 0.98 * budget <= second <= budget
        assert world.refused == 0
        assert shares[1] + shares[2] > 0.1 * sum(shares), "what is left over buys quality"

    asyncio.run(main())
