"""Failures over real sockets: failover, circuit breakers, errors and clients that disconnect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from tests.support.common import EASY, ask, toml

from suffice.gateway import BackgroundServer
from suffice.providers.fake import FakeUpstream

BEFORE_CONTENT = ("stall", "reset", "malformed", "not_json", "empty", "cut")
AFTER_CONTENT = ("cut", "stall_mid", "error_event")
# Circuit breakers remember failures, so each case has its own model, and a route that tries it first.
FAILING = (
    "dead", "sole", "busy", "strict",
    *(f"{action}-{kind}" for action in BEFORE_CONTENT for kind in ("whole", "stream")),
    *(f"{action}-late" for action in AFTER_CONTENT),
)  # fmt: skip


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream({"models": {"weak": {"reply": "one two three four five"}}}) as fake:
        fake.set_model("dead", {"actions": [{"status": 500, "repeat": True}]})
        fake.set_model("sole", {"actions": [{"status": 500, "repeat": True}]})
        yield fake


@pytest.fixture(scope="module")
def server(
    upstream: FakeUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BackgroundServer]:
    """One gateway for the module, with one model per kind of failure."""
    folder = tmp_path_factory.mktemp("gateway")
    models = routes = ""
    for name in FAILING:
        others = "" if name == "sole" else ', "p/weak"'
        models += f'[models."p/{name}"]\ninput_usd_per_mtok = 0.01\noutput_usd_per_mtok = 0.01\n'
        routes += (
            f'[routes.{name}]\nmodels = ["p/{name}"{others}]\nobjective = "cheapest"\n'
            "timeouts = { first_chunk_s = 0.4, idle_s = 0.4, total_s = 20 }\n"
        )
    path = folder / "suffice.toml"
    path.write_text(toml(upstream.base_url, folder / "s.db", routes, models))
    with BackgroundServer(path) as running:
        yield running


@pytest.fixture
def client(server: BackgroundServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.base_url + "/v1", api_key="any", max_retries=0) as c:
        yield c


def test_failover_is_invisible_and_recorded(client: openai.OpenAI) -> None:
    for stream in (False, True):
        raw = client.chat.completions.with_raw_response.create(
            model="dead", messages=ask(EASY), stream=stream
        )  # type: ignore[call-overload]
        assert raw.headers["x-suffice-model"] == "p/weak"
        if stream:
            list(raw.parse())
        if raw.headers["x-suffice-attempts"] == "1":
            continue  # the breaker had opened by then
        found: Any = client.get(
            f"/decisions/{raw.headers['x-suffice-decision-id']}", cast_to=object
        )
        assert [a["outcome"] for a in found["attempts"]] == ["server", "ok"]
        assert found["chosen"] == "p/dead"


def test_a_breaker_never_removes_the_last_model(client: openai.OpenAI) -> None:
    for _ in range(6):
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="sole", messages=ask(EASY))
        assert caught.value.status_code == 502
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert caught.value.response.headers["x-suffice-decision-id"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("action", BEFORE_CONTENT)
def test_every_way_to_fail_before_content_fails_over(
    client: openai.OpenAI, upstream: FakeUpstream, action: str, stream: bool
) -> None:
    name = f"{action}-{'stream' if stream else 'whole'}"
    actions = [{"kind": action, "after_chunks": 0, "repeat": True}]
    upstream.set_model(name, {"reply": "a b c", "actions": actions})
    before = len(upstream.requests)
    reply = client.chat.completions.create(model=name, messages=ask(EASY), stream=stream)  # type: ignore[call-overload]
    model = {c.model for c in reply} if stream else {reply.model}
    assert model == {"p/weak"}
    assert name in {request.model for request in upstream.requests[before:]}


@pytest.mark.parametrize("action", AFTER_CONTENT)
def test_after_the_first_content_a_failure_is_an_error_never_silence(
    client: openai.OpenAI, upstream: FakeUpstream, action: str
) -> None:
    name = f"{action}-late"
    upstream.set_model(
        name, {"reply": "a b c d e", "actions": [{"kind": action, "after_chunks": 2}]}
    )
    got = ""
    with pytest.raises(openai.APIError):
        for c in client.chat.completions.create(model=name, messages=ask(EASY), stream=True):
            got += c.choices[0].delta.content or ""
    assert got == "a b"


def test_errors_of_an_upstream_reach_the_client(
    client: openai.OpenAI, upstream: FakeUpstream
) -> None:
    upstream.set_model(
        "busy", {"actions": [{"status": 429, "headers": {"retry-after": "7"}, "repeat": True}]}
    )
    with pytest.raises(openai.RateLimitError) as busy:
        client.chat.completions.create(model="p/busy", messages=ask("x"))
    assert busy.value.response.headers["retry-after"] == "7"
    upstream.set_model(
        "strict",
        {
            "actions": [
                {
                    "status": 400,
                    "body": {"error": {"message": "bad tool", "param": "tools"}},
                    "repeat": True,
                }
            ]
        },
    )
    with pytest.raises(openai.BadRequestError) as fault:
        client.chat.completions.create(model="p/strict", messages=ask("x"))
    assert fault.value.param == "tools"
    assert "bad tool" in str(fault.value)
