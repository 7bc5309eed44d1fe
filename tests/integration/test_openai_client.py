"""The official client over real sockets: a tour of everything it does and expects."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from tests.support.common import EASY, PROOF, ask, toml

from suffice.gateway import BackgroundServer
from suffice.providers.fake import FakeUpstream

ROUTES = """
[routes.sees]
models = ["p/weak", "p/eyes"]
objective = "cheapest"
"""
MODELS = """
[models."p/eyes"]
input_usd_per_mtok = 9.0
output_usd_per_mtok = 9.0
capabilities = ["vision", "tools", "json_schema"]
"""
REPLIES = {
    "weak": {"reply": "one two three four five"},
    "strong": {"reply": "alpha beta gamma"},
    "eyes": {"reply": "I see"},
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream({"models": REPLIES}) as fake:
        yield fake


@pytest.fixture(scope="module")
def server(
    upstream: FakeUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BackgroundServer]:
    """One gateway for the module: no test here makes a model fail or stops the gateway."""
    folder = tmp_path_factory.mktemp("gateway")
    config = toml(upstream.base_url, folder / "s.db", ROUTES, MODELS).replace(
        '[models."p/weak"]\n', '[models."p/weak"]\ncapabilities = ["tools", "json_schema"]\n'
    )
    path = folder / "suffice.toml"
    path.write_text(config)
    with BackgroundServer(path) as running:
        yield running


@pytest.fixture
def fake(upstream: FakeUpstream) -> Iterator[FakeUpstream]:
    """The upstream; its models answer as before when the test is over."""
    yield upstream
    for name, model in REPLIES.items():
        upstream.set_model(name, model)


@pytest.fixture
def client(server: BackgroundServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.base_url + "/v1", api_key="any", max_retries=0) as c:
        yield c


def test_easy_to_the_cheap_model_and_a_proof_to_the_strong(client: openai.OpenAI) -> None:
    for text, model in ((EASY, "p/weak"), (PROOF, "p/strong")):
        raw = client.chat.completions.with_raw_response.create(model="auto", messages=ask(text))
        head, reply = raw.headers, raw.parse()
        assert reply.model == head["x-suffice-model"] == model
        assert head["x-suffice-route"] == "auto"
        assert head["x-suffice-attempts"] == "1"
        assert float(head["x-suffice-cost-usd"]) > 0
        assert float(head["x-suffice-overhead-ms"]) < 1000
        assert "quality" in head["x-suffice-reason"]
        assert head["x-request-id"]


def test_a_stream_with_usage_and_one_without(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="auto", messages=ask(EASY), stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "one two three four five"
    assert {c.model for c in chunks} == {"p/weak"}
    assert chunks[-1].usage is not None
    assert chunks[-1].choices == []
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    plain = list(client.chat.completions.create(model="auto", messages=ask(EASY), stream=True))
    assert all(c.usage is None and c.choices for c in plain)


def test_the_async_client(server: BackgroundServer) -> None:
    async def tour() -> str:
        async with openai.AsyncOpenAI(base_url=server.base_url + "/v1", api_key="x") as c:
            replies = await asyncio.gather(
                *(c.chat.completions.create(model="auto", messages=ask(EASY)) for _ in range(20))
            )
            assert {r.model for r in replies} == {"p/weak"}
            stream = await c.chat.completions.create(model="auto", messages=ask(EASY), stream=True)
            return "".join([x.choices[0].delta.content or "" async for x in stream])

    assert asyncio.run(tour()) == "one two three four five"


def test_tools_schema_and_unknown_fields_pass_through(
    client: openai.OpenAI, fake: FakeUpstream
) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "forecast",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
        },
    }
    reply = client.chat.completions.create(
        model="auto",
        messages=ask("Weather in Oslo?"),
        tools=[tool],
        extra_body={"x_new": {"a": [1, 2.50]}},
    )  # type: ignore[call-overload]
    call = reply.choices[0].message.tool_calls[0]
    assert call.function.name == "forecast"
    assert json.loads(call.function.arguments) == {"town": "simulated"}
    sent = json.loads(fake.requests[-1].body)
    assert sent["x_new"] == {"a": [1, 2.5]}
    assert sent["tools"] == [tool]
    assert sent["model"] == "weak"
    streamed = client.chat.completions.create(
        model="auto", messages=ask("Weather in Oslo?"), tools=[tool], stream=True
    )  # type: ignore[call-overload]
    names = [
        c.choices[0].delta.tool_calls[0].function.name
        for c in streamed
        if c.choices[0].delta.tool_calls
    ]
    assert names == ["forecast"]
    schema = {"name": "s", "schema": {"type": "object", "properties": {"n": {"type": "integer"}}}}
    reply = client.chat.completions.create(
        model="auto",
        messages=ask("Give n"),
        response_format={"type": "json_schema", "json_schema": schema},
    )  # type: ignore[call-overload]
    assert json.loads(reply.choices[0].message.content) == {"n": 1}


def test_a_picture_goes_only_to_a_model_that_sees(client: openai.OpenAI) -> None:
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    reply = client.chat.completions.create(
        model="sees", messages=[{"role": "user", "content": content}]
    )  # type: ignore[list-item,misc]
    assert reply.model == "p/eyes"


def test_a_concrete_model_is_a_bypass(client: openai.OpenAI, server: BackgroundServer) -> None:
    for name in ("p/strong", "strong", "suffice/auto"):
        raw = client.chat.completions.with_raw_response.create(
            model=name, messages=ask("Say hello.")
        )
        decision = client.get(f"/decisions/{raw.headers['x-suffice-decision-id']}", cast_to=object)
        assert isinstance(decision, dict)
        if "auto" in name:
            assert decision["basis"] == "prior"
        else:
            assert decision["basis"] == "bypass"
            assert raw.parse().model == "p/strong"


def test_errors_are_the_right_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as lost:
        client.chat.completions.create(model="atuo", messages=ask("x"))
    assert lost.value.code == "model_not_found"
    assert "auto" in str(lost.value)
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="auto", messages=[])
    assert bad.value.param == "messages"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model="auto", messages=ask("x"), extra_body={"suffice": {"objective": "nonsense"}}
        )


def test_models_dry_run_decision_and_feedback(client: openai.OpenAI, fake: FakeUpstream) -> None:
    ids = [m.id for m in client.models.list()]
    assert {"auto", "sees", "p/weak", "p/strong"} <= set(ids)
    assert client.models.retrieve("auto").id == "auto"
    before = len(fake.requests)
    dry_run: Any = client.post(
        "/route", body={"model": "auto", "messages": ask(PROOF)}, cast_to=object
    )
    assert dry_run["model"] == "p/strong"
    assert len(dry_run["predictions"]) == 2
    assert dry_run["features"]
    assert len(fake.requests) == before, "a dry run calls nothing"
    raw = client.chat.completions.with_raw_response.create(
        model="auto",
        messages=ask(EASY),
        extra_body={"suffice": {"explain": True, "metadata": {"team": "a"}}},
    )
    assert json.loads(raw.content)["suffice"]["model"] == "p/weak"
    decision_id = raw.headers["x-suffice-decision-id"]
    for score in (0.2, 1):
        body = {"decision_id": decision_id, "score": score, "source": "test", "key": "k"}
        client.post("/feedback", body=body, cast_to=object)
    decision: Any = client.get(f"/decisions/{decision_id}", cast_to=object)
    assert [(f["source"], f["score"]) for f in decision["feedback"]] == [("test", 1.0)]
    assert decision["metadata"] == {"team": "a"}
    assert decision["prompt"] is None
    with pytest.raises(openai.NotFoundError):
        client.post("/feedback", body={"decision_id": "dec_0", "score": 1}, cast_to=object)
    with pytest.raises(openai.UnprocessableEntityError):
        client.post("/feedback", body={"decision_id": decision_id, "score": 3}, cast_to=object)
    with pytest.raises(openai.BadRequestError):
        client.post("/feedback", body={"decision_id": decision_id}, cast_to=object)


def test_steering(client: openai.OpenAI) -> None:
    def pick(**extra: Any) -> str:
        return client.chat.completions.create(
            model="auto", messages=ask("Name a colour."), extra_body=extra
        ).model

    assert pick(suffice={"objective": "best"}) == "p/strong"
    assert pick(models=["p/strong"]) == "p/strong"
    assert pick(provider={"max_price": {"prompt": 0.2}}) == "p/weak"
    with pytest.raises(openai.BadRequestError, match=r"provider\.only"):
        pick(provider={"only": ["nobody"]})
    reply = client.chat.completions.create(
        model="auto",
        messages=ask(PROOF + " Now."),
        extra_headers={"x-suffice-objective": "cheapest"},
    )
    assert reply.model == "p/weak"


def test_a_prompt_that_fits_no_window_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="window"):
        client.chat.completions.create(model="auto", messages=ask("word " * 150_000))


@pytest.mark.slow
def test_200_streams_at_once_are_neither_lost_nor_mixed(
    server: BackgroundServer, fake: FakeUpstream
) -> None:
    fake.set_model("weak", {"reply": " ".join(str(i) for i in range(50)), "tokens_per_s": 400.0})

    async def one(c: openai.AsyncOpenAI) -> str:
        stream = await c.chat.completions.create(model="p/weak", messages=ask("count"), stream=True)
        return "".join([x.choices[0].delta.content or "" async for x in stream])

    async def many() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=server.base_url + "/v1", api_key="x", max_retries=0
        ) as c:
            return await asyncio.gather(*(one(c) for _ in range(200)))

    got = asyncio.run(many())
    assert got == [" ".join(str(i) for i in range(50))] * 200


def test_framework_errors_have_the_same_shape(server: BackgroundServer) -> None:
    host, port = "127.0.0.1", server.port

    def raw(request: bytes) -> tuple[int, dict[str, Any]]:
        with socket.create_connection((host, port), timeout=10) as s:
            s.sendall(request)
            data = b""
            while b"\r\n\r\n" not in data or not data.endswith(b"}"):
                part = s.recv(65536)
                if not part:
                    break
                data += part
        head, _, body = data.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    def request(method: str, path: str, body: bytes = b"", extra: str = "") -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{extra}\r\n"
        return head.encode() + body

    for sent, status in (
        (request("GET", "/nowhere"), 404),
        (request("GET", "/v1/chat/completions"), 405),
        (request("POST", "/v1/models"), 405),
        (request("POST", "/v1/chat/completions", b"{"), 400),
        (request("POST", "/v1/chat/completions", b"[1]"), 400),
        (request("POST", "/v1/route", b"\xff"), 400),
        (request("POST", "/v1/feedback", b"no"), 400),
        (request("GET", "/v1/models/none"), 404),
    ):
        got, body = raw(sent)
        assert got == status
        assert set(body["error"]) == {"message", "type", "param", "code"}
    big = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {40 * 2**20}\r\n\r\n"
    got, body = raw(big.encode())
    assert got == 413
    assert body["error"]["code"] == "request_too_large"


def test_metrics_and_health(gateway: BackgroundServer) -> None:
    base_url = gateway.base_url + "/v1"
    with openai.OpenAI(base_url=base_url, api_key="any", max_retries=0) as client:
        client.chat.completions.create(model="auto", messages=ask(EASY))

    def get(path: str) -> str:
        with urllib.request.urlopen(gateway.base_url + path, timeout=10) as r:
            return str(r.read().decode())

    text = get("/metrics")
    assert 'suffice_requests_total{model="p/weak",route="auto",status="200"} 1.0' in text
    assert "suffice_overhead_seconds_count 1.0" in text
    assert json.loads(get("/healthz")) == {"status": "ok"}
    assert json.loads(get("/readyz"))["status"] == "ok"


@pytest.mark.slow
def test_requests_while_another_thread_posts_feedback(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=ask(EASY))
    decision_id = raw.headers["x-suffice-decision-id"]
    errors: list[Exception] = []

    def post() -> None:
        try:
            for i in range(20):
                body = {"decision_id": decision_id, "score": i / 20, "key": str(i)}
                client.post("/feedback", body=body, cast_to=object)
        except openai.OpenAIError as error:
            errors.append(error)

    threads = [threading.Thread(target=post) for _ in range(3)]
    for t in threads:
        t.start()
    for _ in range(20):
        client.chat.completions.create(model="auto", messages=ask(EASY))
    for t in threads:
        t.join()
    assert not errors
    decision: Any = client.get(f"/decisions/{decision_id}", cast_to=object)
    assert len(decision["feedback"]) == 20
