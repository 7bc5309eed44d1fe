"""Feedback end to end: over HTTP, from the shell, in Python; good, late, repeated, foreign, odd."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.common import EASY

import suffice
from suffice.cli import main
from suffice.errors import BadRequestError, NotFoundError, UnprocessableError
from suffice.gateway import BackgroundServer
from suffice.store import open_store

ASK: Any = [{"role": "user", "content": EASY}]


class Gateway:
    """A running gateway, spoken to over its socket."""

    def __init__(self, base_url: str, key: str | None = None) -> None:
        self.base_url = base_url
        self.key = key

    def decide(self) -> str:
        with openai.OpenAI(base_url=self.base_url + "/v1", api_key=self.key or "x") as c:
            raw = c.chat.completions.with_raw_response.create(model="auto", messages=ASK)
        return str(raw.headers["x-suffice-decision-id"])

    def post(self, body: Any, **headers: str) -> tuple[int, Any]:
        if self.key is not None:
            headers["authorization"] = f"Bearer {self.key}"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            self.base_url + "/v1/feedback",
            data,
            {
                "content-type": "application/json",
                **{k.replace("_", "-"): v for k, v in headers.items()},
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def scores(self, decision_id: str) -> list[dict[str, Any]]:
        headers = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(
            f"{self.base_url}/v1/decisions/{decision_id}", headers=headers
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            found: list[dict[str, Any]] = json.loads(response.read())["feedback"]
        return found


@pytest.fixture
def open_gateway(shared_gateway: BackgroundServer) -> Gateway:
    return Gateway(shared_gateway.base_url)


@pytest.fixture
def keyed(config: Callable[..., Path]) -> Iterator[tuple[Gateway, Gateway]]:
    with BackgroundServer(config(), env={"SUFFICE_API_KEYS": "k-one, k-two"}) as server:
        yield Gateway(server.base_url, "k-one"), Gateway(server.base_url, "k-two")


def test_scores_verdicts_sources_and_repetition(open_gateway: Gateway) -> None:
    g = open_gateway
    decision_id = g.decide()
    status, body = g.post({"decision_id": decision_id, "score": 0.25})
    assert (status, body["score"], body["source"]) == (200, 0.25, "user")
    status, body = g.post({"decision_id": decision_id, "verdict": "good"})
    assert (status, body["score"]) == (200, 1.0)
    g.post({"decision_id": decision_id, "verdict": "bad", "source": "judge", "comment": "wrong"})
    for score in (0.1, 0.9):
        g.post(
            {"decision_id": decision_id, "score": score, "source": "test"},
            idempotency_key="run-7",
        )
    g.post({"decision_id": decision_id, "score": 0.5, "source": "test", "key": "own"},
           idempotency_key="run-7")  # fmt: skip
    found = {(f["source"], f["key"]): f for f in g.scores(decision_id)}
    assert {k: f["score"] for k, f in found.items()} == {
        ("user", ""): 1.0, ("judge", ""): 0.0, ("test", "run-7"): 0.9, ("test", "own"): 0.5
    }  # fmt: skip
    assert found["judge", ""]["verdict"] == "bad"
    assert found["judge", ""]["comment"] == "wrong"
    assert {f["kind"] for f in found.values()} == {"explicit"}


@pytest.mark.slow
def test_a_score_that_comes_days_later_keeps_its_time(open_gateway: Gateway) -> None:
    g = open_gateway
    decision_id = g.decide()
    for source, created, expected in (
        ("user", 1_700_000_000, 1_700_000_000.0),
        ("test", "2023-11-14T22:13:20Z", 1_700_000_000.0),
        ("judge", "2023-11-15T00:13:20.5+02:00", 1_700_000_000.5),
        ("a", "2023-11-14 22:13:20", 1_700_000_000.0),
    ):
        body = {"decision_id": decision_id, "score": 1, "source": source, "created": created}
        assert g.post(body)[0] == 200
        (found,) = (f for f in g.scores(decision_id) if f["source"] == source)
        assert found["created_s"] == expected
    body = {"decision_id": decision_id, "score": 1, "created": time.time() + 200}
    assert g.post(body)[0] == 200, "clocks differ a little"


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"score": 1.01}, 422, "score"),
    ({"score": -0.0001}, 422, "score"),
    ({"score": "1"}, 400, "score"),
    ({"score": True}, 400, "score"),
    ({"score": None}, 400, "score"),
    ({"score": 1, "verdict": "good"}, 422, "score"),
    ({"score": None, "verdict": "great"}, 422, "verdict"),
    ({"score": None, "verdict": 1}, 400, "verdict"),
    ({"source": ""}, 422, "source"),
    ({"source": "x" * 65}, 422, "source"),
    ({"source": "implicit:retried"}, 422, "source"),
    ({"key": "x" * 129}, 422, "key"),
    ({"key": "a\0b"}, 422, "key"),
    ({"comment": "x" * 20_000}, 422, "comment"),
    ({"comment": ["x"]}, 400, "comment"),
    ({"created": 4102444800}, 422, "created"),
    ({"created": "2100-01-01"}, 422, "created"),
    ({"created": 1_700_000_000_000}, 422, "created"),
    ({"created": -1}, 422, "created"),
    ({"created": "yesterday"}, 422, "created"),
    ({"created": [1]}, 400, "created"),
    ({"scroe": 1}, 400, "scroe"),
    ({"decision_id": 7}, 400, "decision_id"),
    ({"decision_id": None}, 400, "decision_id"),
    ({"decision_id": "dec_none"}, 404, "decision_id"),
    ({"decision_id": "x" * 300}, 422, "decision_id"),
]


def test_bad_input_names_the_field(open_gateway: Gateway) -> None:
    for change, status, param in BAD:
        body: dict[str, Any] = {"decision_id": "dec_0", "score": 1, **change}
        got, told = open_gateway.post(body)
        assert (got, told["error"]["param"]) == (status, param), change
        assert (param if status != 404 else "dec_none") in told["error"]["message"]
        # The same in a batch concerns its item alone.
        got, told = open_gateway.post({"feedback": [body]})
        assert got == 200
        assert told["results"][0]["status"] == ("not_found" if status == 404 else "invalid")
        assert told["results"][0]["param"] == param
        assert told["results"][0]["message"]


def test_milliseconds_are_recognised(open_gateway: Gateway) -> None:
    body = {"decision_id": "dec_0", "score": 1, "created": 1_700_000_000_000}
    assert "milliseconds" in open_gateway.post(body)[1]["error"]["message"]


def test_a_batch_tells_the_fate_of_each(open_gateway: Gateway) -> None:
    g = open_gateway
    first, second = g.decide(), g.decide()
    status, body = g.post(
        {
            "feedback": [
                {"decision_id": first, "score": 0.5},
                {"decision_id": "dec_none", "score": 1},
                {"decision_id": second, "verdict": "good", "source": "test", "key": "k"},
                {"decision_id": second, "score": 7},
                "what",
                {"decision_id": first, "score": 0.75},
            ]
        },
        idempotency_key="upload-3",
    )
    assert status == 200
    assert [r["status"] for r in body["results"]] == [
        "stored", "not_found", "stored", "invalid", "invalid", "stored"
    ]  # fmt: skip
    assert [r["decision_id"] for r in body["results"]] == [
        first, "dec_none", second, second, None, first
    ]  # fmt: skip
    assert (body["stored"], body["not_found"], body["invalid"]) == (3, 1, 2)
    assert [(f["score"], f["key"]) for f in g.scores(first)] == [(0.75, "upload-3")]
    assert [(f["score"], f["key"]) for f in g.scores(second)] == [(1.0, "k")]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"feedback": []}, 422),
        ({"feedback": [{"decision_id": "dec_0", "score": 1}] * 1001}, 422),
        ({"feedback": {"decision_id": "dec_0"}}, 422),
        ({"feedback": None}, 422),
        ({"feedback": [], "score": 1}, 422),
        (b'{"feedback": [', 400),
        (b"[]", 400),
        (b"", 400),
    ],
)
def test_a_batch_that_is_malformed_as_a_whole(
    open_gateway: Gateway, body: Any, status: int
) -> None:
    got, told = open_gateway.post(body)
    assert got == status
    assert told["error"]["message"]


def test_a_thousand_at_once_and_again(open_gateway: Gateway) -> None:
    g = open_gateway
    decision_id = g.decide()
    batch = [{"decision_id": decision_id, "score": i / 1000, "key": str(i)} for i in range(1000)]
    for _ in range(2):
        status, body = g.post({"feedback": batch})
        assert (status, body["stored"]) == (200, 1000)
    assert len(g.scores(decision_id)) == 1000


def test_a_key_scores_only_its_own_decisions(keyed: tuple[Gateway, Gateway]) -> None:
    one, two = keyed
    mine, foreign = one.decide(), two.decide()
    assert one.post({"decision_id": mine, "score": 1})[0] == 200
    got, told = one.post({"decision_id": foreign, "score": 0})
    unknown = one.post({"decision_id": "dec_none", "score": 0})
    assert got == 404
    assert told["error"]["message"].replace(foreign, "X") == unknown[1]["error"]["message"].replace(
        "dec_none", "X"
    ), "nobody learns that it exists"
    got, told = one.post({"feedback": [{"decision_id": i, "score": 0.5} for i in (mine, foreign)]})
    assert [r["status"] for r in told["results"]] == ["stored", "not_found"]
    assert two.scores(foreign) == []
    assert Gateway(one.base_url).post({"decision_id": mine, "score": 0})[0] == 401
    assert [f["score"] for f in one.scores(mine)] == [0.5]


@pytest.mark.slow
def test_right_after_the_reply_whichever_worker_gets_it(config: Callable[..., Path]) -> None:
    with BackgroundServer(config(), workers=2) as server:
        g = Gateway(server.base_url)
        for _ in range(12):  # a connection each, so that both workers take part
            assert g.post({"decision_id": g.decide(), "score": 1})[0] == 200


def test_what_was_scored_is_counted_without_the_names_of_users(gateway: BackgroundServer) -> None:
    g = Gateway(gateway.base_url)
    decision_id = g.decide()
    for source, score in (("user", 1), ("user", 0.5), ("judge", 0), ("alice@example.org", 1)):
        g.post({"decision_id": decision_id, "score": score, "source": source, "key": str(score)})
    g.post({"decision_id": "dec_none", "score": 1})
    with urllib.request.urlopen(g.base_url + "/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    counted = {
        (s.name, s.labels["source"]): s.value
        for f in families
        for s in f.samples
        if s.name.startswith("suffice_feedback")
    }
    assert counted == {
        ("suffice_feedback_total", "user"): 2,
        ("suffice_feedback_total", "judge"): 1,
        ("suffice_feedback_total", "other"): 1,
        ("suffice_feedback_score_total", "user"): 1.5,
        ("suffice_feedback_score_total", "judge"): 0,
        ("suffice_feedback_score_total", "other"): 1,
    }


# ── Python and the shell ─────────────────────────────────────────────────────────────────────────


def test_in_python(config: Callable[..., Path]) -> None:
    with suffice.Client(config()) as client:
        raw = client.chat.completions.with_raw_response.create(model="auto", messages=ASK)
        decision_id = raw.headers["x-suffice-decision-id"]
        router = client.router
        router.feedback(decision_id, 1.0)
        router.feedback(decision_id, verdict="bad", source="judge", created_s=1_700_000_000.0)
        results = router.feedback_batch(
            [{"decision_id": decision_id, "score": 0.5, "source": "test"}, {"decision_id": "dec_0"}]
        )
        assert [r["status"] for r in results] == ["stored", "invalid"]
        found = router.decision(decision_id)
        assert found is not None
        assert sorted((f["source"], f["score"]) for f in found["feedback"]) == [
            ("judge", 0.0), ("test", 0.5), ("user", 1.0)
        ]  # fmt: skip
        for error, given in (
            (UnprocessableError, {"score": 2.0}),
            (UnprocessableError, {"score": float("nan")}),
            (UnprocessableError, {"score": 1.0, "verdict": "good"}),
            (BadRequestError, {}),
            (NotFoundError, {"score": 1.0, "decision_id": "dec_none"}),
        ):
            fields: Any = {"decision_id": decision_id, **given}
            with pytest.raises(error):
                router.feedback(**fields)
        with pytest.raises(UnprocessableError):
            router.feedback_batch([])


@pytest.mark.slow
def test_from_the_shell(
    config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config()
    with BackgroundServer(path) as server:
        g = Gateway(server.base_url)
        ids = [g.decide() for _ in range(3)]
    with_config = ("--config", str(path))
    assert main(["feedback", ids[0], "good", "--key", "k", *with_config]) == 0
    assert capsys.readouterr().out == f"{ids[0]}: 1 from user\n"
    assert main(["feedback", ids[0], "0.25", "--source", "test", "--json", *with_config]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "decision_id": ids[0], "score": 0.25, "source": "test"
    }  # fmt: skip
    many = tmp_path / "scores.jsonl"
    many.write_text(
        f'{{"decision_id": "{ids[1]}", "verdict": "bad"}}\n'
        "\n"
        '{"decision_id": "dec_to\n'
        f'{{"decision_id": "{ids[2]}", "score": 0.5, "source": "judge"}}\n'
        '{"decision_id": "dec_none", "score": 1}\n'
        f'{{"decision_id": "{ids[2]}", "score": 5}}\n'
        "[1]\n"
    )
    assert main(["feedback", "--file", str(many), "--source", "test", "--json", *with_config]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {
        "file": str(many), "stored": 2, "not_found": 1, "invalid": 3
    }  # fmt: skip
    for line, what in ((3, "JSON"), (5, "dec_none"), (6, "score"), (7, "object")):
        assert any(e.startswith(f"{many}:{line}: ") and what in e for e in said.err.splitlines()), (
            said.err
        )
    store = open_store(f"sqlite:///{tmp_path / 's.db'}")
    found = {(f["source"], f["score"]) for i in ids for f in store.feedback.current(i)}
    store.close()
    assert found == {("user", 1.0), ("test", 0.25), ("test", 0.0), ("judge", 0.5)}


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("dec_none", "1"), 2, "dec_none"),
        (("dec_none", "1.5"), 2, "score"),
        (("dec_none", "so-so"), 2, "good, or bad"),
        (("dec_none",), 2, "SCORE"),
        ((), 2, "--file"),
        (("--file", "none.jsonl"), 2, "none.jsonl"),
        (("dec_none", "1", "--file", "none.jsonl"), 2, "--file"),
        (("--file", "empty.jsonl"), 1, "no score was stored"),
    ],
)
def test_bad_usage_in_the_shell(
    config: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    assert main(["feedback", *args, "--config", str(config())]) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_a_key_sees_only_its_own_decisions(keyed: tuple[Gateway, Gateway]) -> None:
    """A decision may hold the prompt."""
    one, two = keyed
    decision_id = one.decide()
    assert one.scores(decision_id) == []
    with pytest.raises(urllib.error.HTTPError) as caught:
        two.scores(decision_id)
    with caught.value:
        assert caught.value.code == 404
