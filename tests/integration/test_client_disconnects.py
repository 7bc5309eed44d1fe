"""Clients that disconnect: the upstream call ends, and what was produced is recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.support.common import EASY, ask

from suffice.gateway import BackgroundServer
from suffice.providers.fake import FakeUpstream
from suffice.store import open_store


@pytest.fixture
def client(gateway: BackgroundServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.base_url + "/v1", api_key="any", max_retries=0) as c:
        yield c


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_a_client_that_disconnects_cancels_the_upstream_call(
    client: openai.OpenAI, fake: FakeUpstream
) -> None:
    fake.set_model("weak", {"reply": "w " * 2000, "tokens_per_s": 500.0})
    stream = client.chat.completions.create(model="auto", messages=ask(EASY), stream=True)
    next(iter(stream))
    stream.close()
    until(lambda: fake.requests[-1].disconnected)
    fake.set_model("weak", {"reply": "w", "first_chunk_s": 30.0})
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).chat.completions.create(model="auto", messages=ask(EASY))
    until(lambda: fake.requests[-1].disconnected)


def test_a_whole_reply_that_nobody_waited_for_is_recorded_with_its_attempt(
    client: openai.OpenAI, fake: FakeUpstream, tmp_path: Path
) -> None:
    fake.set_model("weak", {"reply": "w", "first_chunk_s": 30.0})
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).chat.completions.create(model="auto", messages=ask(EASY))

    def outcomes() -> list[tuple[str, str]]:
        store = open_store(f"sqlite:///{tmp_path / 's.db'}")
        try:
            rows = [store.decision(row["id"]) for row in store.decisions(limit=10)]
        finally:
            store.close()
        return [(a["outcome"], a["model"]) for row in rows if row for a in row["attempts"]]

    until(lambda: outcomes() == [("cancelled", "p/weak")])


def test_what_was_produced_before_a_disconnect_is_recorded(
    client: openai.OpenAI, fake: FakeUpstream
) -> None:
    fake.set_model("weak", {"reply": "w " * 2000, "tokens_per_s": 500.0})
    stream = client.chat.completions.create(model="auto", messages=ask(EASY), stream=True)
    decision_id = stream.response.headers["x-suffice-decision-id"]
    for _ in range(5):
        next(iter(stream))
    stream.close()
    decision: dict[str, Any] = {}

    def recorded() -> bool:
        try:
            row: Any = client.get(f"/decisions/{decision_id}", cast_to=object)
        except openai.NotFoundError:
            return False
        decision.update(row)
        return True

    until(recorded)
    assert decision["status"] == 499
    assert decision["attempts"][0]["outcome"] == "cancelled"
    assert decision["output_tokens"] > 0
    assert decision["cost_usd"] > 0
