"""A certified route over real gateways: a model turns bad, every worker notices, nothing is forgotten."""

from __future__ import annotations

import http.client
import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.audits import Judge, until, written
from tests.support.common import EASY

from suffice.gateway import BackgroundServer
from suffice.providers.fake import FakeUpstream
from suffice.store import open_store

pytestmark = pytest.mark.slow

BODY = json.dumps({"model": "safe", "messages": [{"role": "user", "content": EASY}]})


@pytest.fixture
def judge() -> Iterator[Judge]:
    with Judge() as made:
        yield made


class Client:
    """Requests over one kept connection, which stays with one worker."""

    def __init__(self, server: BackgroundServer) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)

    def ask(self) -> dict[str, str]:
        self._connection.request(
            "POST", "/v1/chat/completions", BODY, {"content-type": "application/json"}
        )
        response = self._connection.getresponse()
        body = response.read()
        assert response.status == 200, body
        return {k.lower(): v for k, v in response.getheaders()}

    def leave(self) -> None:
        """Ask, and close before the answer is there."""
        self._connection.request(
            "POST", "/v1/chat/completions", BODY, {"content-type": "application/json"}
        )
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def got(server: BackgroundServer, path: str) -> bytes:
    with urllib.request.urlopen(server.base_url + path, timeout=20) as response:
        value: bytes = response.read()
    return value


def watched(server: BackgroundServer) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(got(server, "/readyz"))["watch"]["safe"]
    return value


def gauge(server: BackgroundServer, name: str) -> float | None:
    families = text_string_to_metric_families(got(server, "/metrics").decode())
    values = [
        s.value
        for f in families
        for s in f.samples
        if s.name == name and s.labels["route"] == "safe"
    ]
    return values[0] if values else None


def test_an_alarm_reaches_every_worker_and_survives_a_kill(
    tmp_path: Path, fake: FakeUpstream, judge: Judge
) -> None:
    path = written(tmp_path, fake.base_url, judge.url, share=0.05)
    with BackgroundServer(path) as one, BackgroundServer(path) as two:
        with Client(one) as a, Client(two) as b:
            for _ in range(40):
                assert a.ask()["x-suffice-model"] == "p/weak"
                assert b.ask()["x-suffice-model"] == "p/weak"
            assert watched(one)["alarm"] is False
            assert gauge(one, "suffice_watch_alarm") == 0.0
            with Client(one) as other:
                other.leave()
            fake.set_model("weak", {"reply": "BAD"})
            headers: dict[str, str] = {}

            def fallen_back() -> bool:
                headers.update(a.ask())
                return headers["x-suffice-model"] == "p/strong"

            until(fallen_back, 60.0)
            assert "the watch raised an alarm" in headers["x-suffice-reason"]
            assert "0.05 is certified" in headers["x-suffice-reason"]
            # The other gateway made none of these labels.
            until(lambda: b.ask()["x-suffice-model"] == "p/strong", 15.0)
        for server in (one, two):
            assert watched(server)["alarm"] is True
            assert gauge(server, "suffice_watch_alarm") == 1.0
            assert (gauge(server, "suffice_watch_loss") or 0.0) > 0.05
        labels = watched(one)["labels"]
        os.kill(one.pid, signal.SIGKILL)
        os.kill(two.pid, signal.SIGKILL)
    with BackgroundServer(path) as again:
        with Client(again) as c:  # from the first request on
            assert c.ask()["x-suffice-model"] == "p/strong"
        assert watched(again)["alarm"] is True
        assert watched(again)["labels"] >= labels
    store = open_store(f"sqlite:///{(tmp_path / 's.db').as_posix()}")
    try:
        audited = [d for d in store.decisions(route="safe", limit=10_000) if d["model"] == "p/weak"]
        told = [f for d in audited for f in store.feedback.current(d["id"])]
        assert labels <= len(told)
        assert {f["source"] for f in told} == {"audit"}
        assert store.spend("audit:safe", 0.0).usd > 0.0
        assert store.spend("safe", 0.0).requests == len(store.decisions(route="safe", limit=10_000))
    finally:
        store.close()


def test_a_hanging_judge_delays_neither_requests_nor_shutdown(
    tmp_path: Path, fake: FakeUpstream, judge: Judge
) -> None:
    judge.free.clear()
    path = written(tmp_path, fake.base_url, judge.url, share=0.05)
    with BackgroundServer(path) as server:
        with Client(server) as c:

            def hanging() -> bool:
                assert c.ask()["x-suffice-model"] == "p/weak"
                return bool(judge.requests)

            until(hanging, 60.0)
            for _ in range(50):
                assert c.ask()["x-suffice-model"] == "p/weak"
            assert watched(server)["audits"].get("labelled") is None
        process = server.process
        assert process is not None
        server.stop(timeout_s=15.0)
        assert process.returncode != -signal.SIGKILL
    store = open_store(f"sqlite:///{(tmp_path / 's.db').as_posix()}")
    try:
        statuses = {d["status"] for d in store.decisions(route="audit:safe")}
        assert statuses == {200, 499}  # the reference answered; the judge was cut off
    finally:
        store.close()
