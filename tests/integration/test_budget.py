"""Budgets over real sockets: crowds, streams, clients that leave, workers that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.support.common import EASY

from suffice.gateway import BackgroundServer
from suffice.providers.fake import FakeUpstream

pytestmark = pytest.mark.slow

TOKENS = 100  # each answer, and the most that a client asks for
WEAK_USD, STRONG_USD = TOKENS * 0.6 / 1e6, TOKENS * 10.0 / 1e6  # without the prompt
ASK: Any = [{"role": "user", "content": EASY}]


@pytest.fixture(autouse=True)
def models(fake: FakeUpstream) -> None:
    for name in ("weak", "strong"):
        fake.set_model(name, {"reply": "a b c d", "output_tokens": TOKENS, "first_chunk_s": 0.05})


def budget(usd: float, more: str = "") -> str:
    return f"""
[routes.day]
models = ["p/weak", "p/strong"]
objective = {{ usd_per_day = {usd} }}
{more}
"""


def recorded(db: Path) -> tuple[float, int]:
    """(USD of the route, requests) as the store has them."""
    with closing(sqlite3.connect(db)) as c:
        usd, n = c.execute(
            "select coalesce(sum(cost_usd), 0), count(*) from decisions where route = 'day'"
        ).fetchone()
    return usd, n


def told(server: BackgroundServer) -> dict[str, float]:
    with urllib.request.urlopen(server.base_url + "/readyz", timeout=10) as r:
        found: dict[str, float] = json.loads(r.read())["budgets"]["day"]
    return found


def settled(server: BackgroundServer) -> dict[str, float]:
    """Once nothing is in flight any more."""
    deadline = time.monotonic() + 10.0
    while (found := told(server))["reserved_usd"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found["reserved_usd"] == 0.0
    return found


async def crowd(
    server: BackgroundServer, n: int, max_tokens: int = TOKENS, **extra: Any
) -> list[Any]:
    """n requests at once, every second one a stream; the replies, or what was raised."""

    async def one(c: openai.AsyncOpenAI, i: int) -> Any:
        asked = {"model": "day", "messages": ASK, "max_tokens": max_tokens, **extra}
        if i % 2:
            stream = await c.chat.completions.create(**asked, stream=True)
            return [chunk async for chunk in stream][-1]
        return await c.chat.completions.create(**asked)

    async with openai.AsyncOpenAI(
        base_url=server.base_url + "/v1", api_key="x", max_retries=0
    ) as c:
        return await asyncio.gather(*(one(c, i) for i in range(n)), return_exceptions=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_crowd_never_passes_the_ceiling(
    config: Callable[..., Path], tmp_path: Path, workers: int
) -> None:
    ceiling = 20.5 * WEAK_USD
    with BackgroundServer(config(budget(ceiling)), workers=workers) as server:
        served = refused = 0
        for _ in range(6):
            for answer in asyncio.run(crowd(server, 50)):
                if isinstance(answer, openai.RateLimitError):
                    assert answer.code == "budget_exceeded"
                    refused += 1
                else:
                    assert not isinstance(answer, BaseException), answer
                    served += 1
            if settled(server)["spent_usd"] > ceiling - 2 * WEAK_USD:
                break
        spent = settled(server)["spent_usd"]
    usd, n = recorded(tmp_path / "s.db")
    assert n == served > 10
    assert refused > 0
    assert usd <= ceiling
    assert usd == pytest.approx(spent, rel=1e-3)
    assert usd > ceiling - 4 * WEAK_USD, "and hardly anything is left over"


def test_the_refusal_as_the_official_client_sees_it(
    config: Callable[..., Path], fake: FakeUpstream
) -> None:
    with (
        BackgroundServer(config(budget(WEAK_USD / 2))) as server,
        openai.OpenAI(base_url=server.base_url + "/v1", api_key="x", max_retries=3) as c,
    ):
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as caught:
                c.chat.completions.create(
                    model="day", messages=ASK, max_tokens=TOKENS, stream=stream
                )
            error = caught.value
            assert error.code == "budget_exceeded"
            assert error.type == "rate_limit_error"
            assert "midnight UTC" in error.message
            head = error.response.headers
            assert head["x-should-retry"] == "false"
            now = time.time()
            assert int(head["retry-after"]) == pytest.approx(86400 - now % 86400, abs=30)
        assert fake.requests == [], "and the client did not try again"
        assert told(server)["spent_usd"] == 0.0


def test_a_disconnected_client_releases_its_reservation(
    config: Callable[..., Path], fake: FakeUpstream, tmp_path: Path
) -> None:
    for name in ("weak", "strong"):
        fake.set_model(name, {"reply": "word " * 200, "output_tokens": 400, "tokens_per_s": 40.0})

    async def leave(server: BackgroundServer) -> None:
        async with openai.AsyncOpenAI(base_url=server.base_url + "/v1", api_key="x") as c:
            asked: Any = {"model": "day", "messages": ASK, "max_tokens": 400}
            stream = await c.chat.completions.create(**asked, stream=True)
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    break
            assert told(server)["reserved_usd"] > 0.0
            await stream.close()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(c.chat.completions.create(**asked), 0.4)

    with BackgroundServer(config(budget(1.0))) as server:
        asyncio.run(leave(server))
        spent = settled(server)["spent_usd"]
    usd, n = recorded(tmp_path / "s.db")
    assert n == 2
    assert usd == pytest.approx(spent, rel=1e-3)
    assert 0.0 < usd < 400 * 0.6 / 1e6, "by far not the whole answers"


def test_failed_attempts_are_reserved_and_settled(
    config: Callable[..., Path], fake: FakeUpstream, tmp_path: Path
) -> None:
    reply = {"reply": "a b c d", "output_tokens": TOKENS}
    fake.set_model("weak", {**reply, "actions": ["cut", {"status": 429}, {"status": 500}]})
    with (
        BackgroundServer(config(budget(1.0, "retries = { per_model = 0 }"))) as server,
        openai.OpenAI(base_url=server.base_url + "/v1", api_key="x", max_retries=0) as c,
    ):
        extra = {"suffice": {"objective": "cheapest"}}
        for stream in (True, False, False):
            done = c.chat.completions.create(
                model="day", messages=ASK, max_tokens=TOKENS, stream=stream, extra_body=extra
            )
            if stream:
                with contextlib.suppress(openai.APIError):
                    list(done)  # cut after its first content: the client is told
        spent = settled(server)["spent_usd"]
    usd, n = recorded(tmp_path / "s.db")
    assert n == 3
    assert usd <= spent
    assert spent - usd == pytest.approx(WEAK_USD, rel=0.7), "the 500 may have been billed"


def test_a_restart_restores_todays_spend(config: Callable[..., Path], tmp_path: Path) -> None:
    path = config(budget(6.5 * WEAK_USD))
    for _ in range(2):
        with BackgroundServer(path) as server:
            asyncio.run(crowd(server, 5))
            before = settled(server)["spent_usd"]
        with BackgroundServer(path) as server:
            assert told(server)["spent_usd"] == pytest.approx(before, abs=1e-8)
    assert recorded(tmp_path / "s.db")[0] <= 6.5 * WEAK_USD


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    if not found.exists():
        pytest.skip("needs /proc")
    return [int(p) for p in found.read_text().split()]


def test_the_reservations_of_a_killed_worker_count_as_spent(
    config: Callable[..., Path], fake: FakeUpstream, tmp_path: Path
) -> None:
    ceiling = 40.5 * WEAK_USD
    fake.set_model("weak", {"reply": "a b", "output_tokens": TOKENS, "first_chunk_s": 2.0})

    async def killed(server: BackgroundServer) -> None:
        asked = asyncio.ensure_future(crowd(server, 20))
        while not (await asyncio.to_thread(told, server))["reserved_usd"]:
            assert not asked.done(), "nothing was in flight"
            await asyncio.sleep(0.01)
        for pid in children(server.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asked

    with BackgroundServer(config(budget(ceiling)), workers=2) as server:
        asyncio.run(killed(server))
        deadline = time.monotonic() + 30.0
        while True:
            with contextlib.suppress(OSError):
                after = told(server)
                break
            assert time.monotonic() < deadline, "the workers did not come back"
            time.sleep(0.1)
        assert after["spent_usd"] + after["reserved_usd"] > 0.0, "it may have been billed"
        for _ in range(4):
            asyncio.run(crowd(server, 30))
        last = told(server)
        assert last["spent_usd"] + last["reserved_usd"] <= ceiling
    assert len(fake.requests) * WEAK_USD <= ceiling, "whatever the records know of"
    assert recorded(tmp_path / "s.db")[0] <= ceiling
