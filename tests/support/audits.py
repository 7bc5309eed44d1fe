"""A route served from a certificate, with a judge that reads what it is asked: real sockets."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import msgspec
from tests.support.common import EASY, PROOF, toml

import suffice
from suffice import config, features, policies
from suffice.artifacts import certificate as certificates
from suffice.artifacts.certificate import Certificate
from suffice.policies import priors

ROUTE = """
[routes.safe]
models = ["p/weak", "p/strong"]
objective = {{ max_quality_loss = 0.05, confidence = 0.9 }}
certificate = "c.json"
[routes.safe.audit]
sample_rate = {share}
judge = "j/judge"
max_usd_per_day = {cap}
{more}
"""
JUDGE = """
[providers.j]
dialect = "openai"
base_url = "{url}"
[models."j/judge"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 4.0
"""


class Judge:
    """A judge on a real socket. says(a, b) is its whole reply to a pair of answers; it hangs
    while `hangs` is set. refuses: a parameter it answers 400 to."""

    def __init__(self) -> None:
        self.says: Callable[[str, str], str] = plainly
        self.requests: list[dict[str, Any]] = []
        self.refuses: str | None = None
        self.usage = True
        self.free = threading.Event()
        self.free.set()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                judge.requests.append(body)
                judge.free.wait(30)
                if judge.refuses is not None and judge.refuses in body:
                    text = f"'{judge.refuses}' is not supported with this model."
                    if judge.refuses == "max_tokens":
                        text += " Use 'max_completion_tokens' instead."
                    error = {"error": {"message": text}}
                    self._answer(400, error)
                    return
                text = body["messages"][1]["content"]
                message = {"role": "assistant", "content": judge.says(*answers(text))}
                reply: dict[str, Any] = {
                    "id": "x", "object": "chat.completion", "created": 0, "model": "judge",
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                }  # fmt: skip
                if judge.usage:
                    reply["usage"] = {"prompt_tokens": 400, "completion_tokens": 50}
                self._answer(200, reply)

            def _answer(self, status: int, body: Any) -> None:
                raw = json.dumps(body).encode()
                try:
                    self.send_response(status)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(raw)))
                    self.end_headers()
                    self.wfile.write(raw)
                except OSError:
                    self.close_connection = True  # the gateway has left

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.free.set()
        self._server.shutdown()
        self._server.server_close()


def answers(text: str) -> tuple[str, str]:
    matches = [
        re.search(rf"<answer-{which}-\w+>\n(.*)\n</answer-{which}", text, re.DOTALL)
        for which in "AB"
    ]
    assert matches[0] is not None and matches[1] is not None
    return matches[0][1], matches[1][1]


def plainly(a: str, b: str) -> str:
    """The answer with BAD in it is the worse one."""
    if ("BAD" in a) == ("BAD" in b):
        return "Both will do.\nVERDICT: TIE"
    return f"One is wrong.\nVERDICT: {'B' if 'BAD' in a else 'A'}"


def certificate(**changed: Any) -> Certificate:
    """Of the default policy's score: EASY may go cheap, PROOF may not."""
    policy: Any = policies.make("default", features.SIGNAL_NAMES)
    easy, hard = (policy.score(features.extract_text(t)) for t in (EASY, PROOF))
    assert easy < hard
    base: dict[str, Any] = {
        "policy": "default",
        "policy_version": priors.prior_version("default", features.SCHEMA),
        "score": "rank", "reference": "p/strong", "cheap": ("p/weak",), "cost_usd": (1e-4,),
        "exchange_rate": 0.0, "threshold": (easy + hard) / 2, "max_loss": 0.05,
        "confidence": 0.9, "method": "clopper-pearson", "kind": "binary", "unit": "queries",
        "n": 500, "losses": 10.0, "upper_bound": 0.04, "cheap_share": 0.5,
        "prices": {"p/strong": (2.5, 10.0), "p/weak": (0.15, 0.6)},
        "made": "2026-11-02", "table": "labels",
    }  # fmt: skip
    return certificates.with_digest(Certificate(**{**base, **changed}))


def written(
    folder: Path,
    upstream: str,
    judge: str,
    *,
    share: float = 0.05,
    cap: float = 1.0,
    more: str = "",
) -> Path:
    """A suffice.toml with the route `safe`, and its certificate beside it."""
    if not (folder / "c.json").exists():
        certificates.save(certificate(), folder / "c.json")
    path = folder / "suffice.toml"
    routes = ROUTE.format(share=share, cap=cap, more=more)
    path.write_text(toml(upstream, folder / "s.db", routes, JUDGE.format(url=judge)))
    return path


@contextmanager
def router(path: Path, share: float = 1.0, seed: int = 1) -> Iterator[suffice.Router]:
    """A router in this process that audits more than a config may ask for."""
    resolved = config.resolve(config.load_settings(path, {}), {})
    spec = resolved.routes["safe"]
    assert spec.audit is not None
    audit = msgspec.structs.replace(spec.audit, sample_rate=share)
    routes = {**resolved.routes, "safe": msgspec.structs.replace(spec, audit=audit)}
    made = suffice.Router(msgspec.structs.replace(resolved, routes=routes), env={}, seed=seed)
    try:
        yield made
    finally:
        made.close()


def until(true: Callable[[], Any], within_s: float = 20.0) -> Any:
    """What it is once it is true. Fails after `within_s`."""
    end = time.monotonic() + within_s
    while not (value := true()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
    return value
