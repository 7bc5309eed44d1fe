"""Starting, stopping, keys, the store going away, and the in-process client."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.support.common import EASY, PROOF

import suffice
from suffice.errors import JobError, NotFoundError, UnprocessableError
from suffice.gateway import BackgroundServer
from suffice.providers.fake import FakeUpstream

pytestmark = pytest.mark.slow

ASK: Any = [{"role": "user", "content": EASY}]


def serve(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "suffice", "serve", *args],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(env or {})},
        check=False,
    )


def test_an_open_host_without_keys_refuses_to_start(config: Callable[..., Path]) -> None:
    done = serve("--config", str(config()), "--host", "0.0.0.0", "--port", "18999")
    assert done.returncode == 2
    assert "SUFFICE_API_KEYS" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_said(config: Callable[..., Path]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = serve("--config", str(config()), "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "--port" in done.stderr


def test_an_unwritable_store_is_said(config: Callable[..., Path]) -> None:
    path = config()
    path.write_text(path.read_text().replace("sqlite:///", "sqlite:////no/such/dir"))
    done = serve("--config", str(path), "--port", "18998")
    assert done.returncode == 1
    assert "store.url" in done.stderr
    with pytest.raises(JobError, match=r"store\.url"):
        BackgroundServer(path).start()


def test_keys(config: Callable[..., Path]) -> None:
    with BackgroundServer(config(), env={"SUFFICE_API_KEYS": "k-one, k-two"}) as server:
        for key in ("k-one", "k-two"):
            with openai.OpenAI(base_url=server.base_url + "/v1", api_key=key) as good:
                assert good.chat.completions.create(model="auto", messages=ASK).model == "p/weak"
        with openai.OpenAI(base_url=server.base_url + "/v1", api_key="wrong") as bad:
            with pytest.raises(openai.AuthenticationError):
                bad.chat.completions.create(model="auto", messages=ASK)
            with pytest.raises(openai.AuthenticationError):
                bad.models.list()
        for path in ("/v1/models", "/v1/decisions/x"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(server.base_url + path, timeout=10)
            assert caught.value.code == 401
            caught.value.close()
        with urllib.request.urlopen(server.base_url + "/healthz", timeout=10) as r:
            assert r.status == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_stopping_flushes_every_record(
    config: Callable[..., Path], tmp_path: Path, workers: int
) -> None:
    with (
        BackgroundServer(config(), workers=workers) as server,
        openai.OpenAI(base_url=server.base_url + "/v1", api_key="x") as c,
    ):
        for _ in range(40):
            c.chat.completions.create(model="auto", messages=ASK)
    with sqlite3.connect(tmp_path / "s.db") as db:
        assert db.execute("select count(*) from decisions").fetchone() == (40,)
        assert db.execute("select sum(attempts) from decisions").fetchone() == (40,)
    db.close()


def test_kill_9_loses_only_the_last_moment(config: Callable[..., Path], tmp_path: Path) -> None:
    server = BackgroundServer(config()).start()
    with openai.OpenAI(base_url=server.base_url + "/v1", api_key="x") as c:
        for _ in range(30):
            c.chat.completions.create(model="auto", messages=ASK)
        time.sleep(0.5)
        os.kill(server.pid, signal.SIGKILL)
    server.stop()
    with sqlite3.connect(tmp_path / "s.db") as db:
        assert db.execute("select count(*) from decisions").fetchone() == (30,)
    db.close()


@pytest.mark.slow
def test_a_locked_store_stops_no_request_and_says_so(
    config: Callable[..., Path], tmp_path: Path
) -> None:
    with BackgroundServer(config()) as server:
        lock = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        with openai.OpenAI(base_url=server.base_url + "/v1", api_key="x", timeout=20) as c:
            for _ in range(5):
                assert c.chat.completions.create(model="auto", messages=ASK).model == "p/weak"
        deadline = time.monotonic() + 20
        while True:
            with urllib.request.urlopen(server.base_url + "/readyz", timeout=10) as r:
                state = json.loads(r.read())
            if state["status"] == "degraded" or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        assert state["status"] == "degraded"
        assert state["store"]["spooled"] == 5
        lock.execute("ROLLBACK")
        lock.close()
    with sqlite3.connect(tmp_path / "s.db") as db:
        assert db.execute("select count(*) from decisions").fetchone() == (5,)
    db.close()


def test_the_in_process_client_is_the_official_one(
    config: Callable[..., Path], fake: FakeUpstream
) -> None:
    with suffice.Client(config()) as client:
        assert isinstance(client, openai.OpenAI)
        raw = client.chat.completions.with_raw_response.create(model="auto", messages=ASK)
        assert raw.parse().model == "p/weak"
        chunks = list(client.chat.completions.create(model="auto", messages=ASK, stream=True))
        assert (
            "".join(c.choices[0].delta.content or "" for c in chunks) == "one two three four five"
        )
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="none", messages=ASK)
        decision_id = raw.headers["x-suffice-decision-id"]
        client.router.feedback(decision_id, 1.0)
        found = client.router.decision(decision_id)
        assert found is not None
        assert found["feedback"][0]["score"] == 1.0


def test_the_async_in_process_client(config: Callable[..., Path]) -> None:
    import asyncio

    async def tour() -> str:
        async with suffice.AsyncClient(config()) as client:
            stream = await client.chat.completions.create(model="auto", messages=ASK, stream=True)
            return "".join([c.choices[0].delta.content or "" async for c in stream])

    assert asyncio.run(tour()) == "one two three four five"


def test_the_router_in_python(config: Callable[..., Path], fake: FakeUpstream) -> None:
    router = suffice.Router.from_config(config())
    try:
        easy, hard = router.route(EASY), router.route([{"role": "user", "content": PROOF}])
        assert (easy.model, hard.model) == ("p/weak", "p/strong")
        assert easy.id != hard.id
        assert [s.model for s in easy.plan] == ["p/weak", "p/strong"]
        assert fake.requests == []
        with pytest.raises(NotFoundError):
            router.feedback(easy.id, 1.0)  # decided, never run
        for score in (1.5, -0.1, float("nan")):
            with pytest.raises(UnprocessableError):
                router.feedback(easy.id, score)
    finally:
        router.close()


@pytest.mark.parametrize(
    ("ceiling", "answers"),
    [
        ("", "p/strong"),  # what the operator lists is used, whatever it costs
        ("fallback_max_usd_per_query = 0.0005", "p/spare"),
    ],
)
def test_a_listed_fallback_is_used_unless_it_is_above_a_configured_ceiling(
    config: Callable[..., Path], fake: FakeUpstream, ceiling: str, answers: str
) -> None:
    routes = f"""
[routes.careful]
models = ["p/weak"]
fallbacks = ["p/strong", "p/spare"]
{ceiling}
"""
    models = '[models."p/spare"]\ninput_usd_per_mtok = 0.1\noutput_usd_per_mtok = 0.1\n'
    fake.set_model("weak", {"actions": [{"status": 503, "repeat": True}]})
    fake.set_model("spare", {"reply": "spare"})
    with suffice.Client(config(routes, models), max_retries=0) as client:
        assert client.chat.completions.create(model="careful", messages=ASK).model == answers


def test_a_session_keeps_its_model_after_a_failover(
    config: Callable[..., Path], fake: FakeUpstream
) -> None:
    fake.set_model("weak", {"reply": "w", "actions": [{"status": 500}]})
    talk: Any = [
        *ASK,
        {"role": "assistant", "content": "Sunny."},
        {"role": "user", "content": "thanks"},
    ]
    extra = {"suffice": {"session": "s-1"}}
    with suffice.Client(config(), max_retries=0) as client:
        first = client.chat.completions.create(model="auto", messages=talk, extra_body=extra)
        second = client.chat.completions.create(model="auto", messages=talk, extra_body=extra)
    assert first.model == "p/strong", "the cheap one failed"
    assert second.model == "p/strong", "and the conversation does not go back to it"
