"""Every attempt is reserved, and settled exactly once."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from tests.support.budgets import (
    Reply,
    asking,
    failing,
    opened,
    routed,
    spent,
)

from suffice import Router
from suffice.budgets import shared_ledger
from suffice.errors import (
    AllAttemptsFailedError,
)


@pytest.mark.parametrize(
    ("kind", "billed"),
    [
        ("connect", False),
        ("timeout_connect", False),
        ("rate_limit", False),
        ("auth", False),
        ("not_found", False),
        ("server", True),
        ("overloaded", True),
        ("timeout_total", True),
        ("malformed", True),
        ("cut", True),
    ],
)
def test_a_failed_attempt_counts_in_full_unless_it_was_certainly_not_billed(
    tmp_path: Path, kind: str, billed: bool
) -> None:
    def answer(model: str, _: Any) -> Any:
        return failing(kind) if model == "weak" else Reply(50, 40)

    with routed(
        tmp_path,
        {"usd_per_day": 20.0},
        answer,
        models=["p/weak", "p/mid"],
        retries={"per_model": 0},
    ) as r:
        weak = {"objective": "cheapest"}
        done = asyncio.run(r.answer(asking(max_tokens=1000, suffice=weak)))
        assert done.model == "p/mid"
        usd, reserved = spent(r)
    mid = (50 * 0.8 + 40 * 4.0) / 1e6
    assert reserved == 0.0
    if billed:
        assert usd >= mid + 1000 * 1.0 / 1e6
    else:
        assert usd == pytest.approx(mid)


def test_no_retry_and_no_failover_once_the_budget_is_spent(tmp_path: Path) -> None:
    # The first attempt may have been billed; the second would pass the ceiling.
    with routed(
        tmp_path, {"usd_per_day": 0.0015}, lambda m, b: failing("server"), models=["p/weak"]
    ) as r:
        with pytest.raises(AllAttemptsFailedError, match=r"Not called: p/weak: it may cost"):
            asyncio.run(r.answer(asking(max_tokens=1000)))
        assert len(r.transport.sent) == 1
        usd, reserved = spent(r)
    assert reserved == 0.0
    assert 0.001 <= usd <= 0.0015


def test_every_way_to_end_settles_exactly_once(tmp_path: Path) -> None:
    class Bug(Exception): ...

    ends: list[Any] = [Reply(50, 40), Reply(50, None), failing("auth"), Bug("ours"), None]

    async def main(r: Router) -> None:
        nonlocal gate
        gate = asyncio.get_running_loop().create_future()
        for end in ends:
            now[0] = end
            before = spent(r)[0]
            if end is None:
                task = asyncio.ensure_future(r.answer(asking(max_tokens=1000)))
                await asyncio.sleep(0)
                assert spent(r)[1] > 0.0
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                with contextlib.suppress(Bug, AllAttemptsFailedError):
                    await r.answer(asking(max_tokens=1000))
            after, reserved = spent(r)
            assert reserved == 0.0, end
            cost[str(type(end).__name__) + str(len(cost))] = after - before

    now: list[Any] = [None]
    gate: Any = None
    cost: dict[str, float] = {}
    with opened(
        tmp_path,
        {"usd_per_day": 20.0},
        lambda m, b: gate if now[0] is None else now[0],
        models=["p/weak"],
    ) as r:
        asyncio.run(main(r))
    whole, unknown, unbilled, bug, left = cost.values()
    assert whole == pytest.approx((50 * 0.2 + 40 * 1.0) / 1e6)
    assert unknown >= 1000 / 1e6, "its tokens were not counted: all that was reserved"
    assert unbilled == 0.0
    assert bug == pytest.approx(left), "what was recorded: about the prompt"
    assert 0.0 < left < whole


def test_a_call_may_end_after_the_ledger_was_closed(tmp_path: Path) -> None:
    async def main() -> None:
        gate: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with shared_ledger(2) as path:
            env = {"SUFFICE_LEDGER": path}
            with opened(tmp_path, {"usd_per_day": 1.0}, lambda m, b: gate, env=env) as r:
                task = asyncio.ensure_future(r.answer(asking(max_tokens=1000)))
                await asyncio.sleep(0)
                reserved = spent(r)[1]
                r.budgets.close()
                assert spent(r) == (reserved, 0.0), "it may be billed, and its cost is never known"
                gate.set_result(Reply(50, 40))
                assert (await task).status == 200
                assert spent(r) == (reserved, 0.0)

    asyncio.run(main())
