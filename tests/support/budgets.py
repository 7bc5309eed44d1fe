"""A router with money limits over a scripted transport, and a clock that tests move."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from suffice import Router
from suffice.budgets import Ledger, shared_ledger
from suffice.budgets.shared_ledger import LedgerRow
from suffice.config import parse_settings
from suffice.dialects.openai_request import parse_chat
from suffice.errors import (
    UpstreamError,
)
from suffice.types import Query

DAY_S = 86400.0
MONDAY = 20_000 * DAY_S  # a midnight

Answers = Callable[[str, dict[str, Any]], Any]


class Reply:
    """A whole reply as the transport gives it."""

    status = 200

    def __init__(self, prompt: int, output: int | None) -> None:
        message = {"role": "assistant", "content": "yes"}
        body: dict[str, Any] = {"choices": [{"index": 0, "message": message}]}
        if output is not None:
            body["usage"] = {"prompt_tokens": prompt, "completion_tokens": output}
        self._body = msgspec.json.encode(body)

    def header(self, name: str) -> str | None:
        return "application/json" if name == "content-type" else None

    async def read(self, limit: int | None = None) -> bytes:
        return self._body

    async def aclose(self) -> None: ...


class Upstream:
    """A transport that answers by a function; `sent` holds the bodies."""

    def __init__(self, answer: Answers) -> None:
        self.answer = answer
        self.sent: list[dict[str, Any]] = []

    def prepare(self, connect_s: float) -> None: ...

    async def send(self, url: str, headers: Any, body: bytes, **_: Any) -> Any:
        request = msgspec.json.decode(body)
        self.sent.append(request)
        reply = self.answer(request["model"], request)
        if asyncio.isfuture(reply):
            reply = await reply
        if isinstance(reply, BaseException):
            raise reply
        return reply

    async def aclose(self) -> None: ...


class Clock:
    def __init__(self, now_s: float = MONDAY) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def settings(tmp_path: Path, objective: Any, **route: Any) -> dict[str, Any]:
    return {
        "store": {"url": f"sqlite:///{(tmp_path / 's.db').as_posix()}"},
        "providers": {"p": {"dialect": "openai", "base_url": "http://127.0.0.1:9/v1"}},
        "models": {
            "p/weak": {"input_usd_per_mtok": 0.2, "output_usd_per_mtok": 1.0, "quality": 0.6},
            "p/mid": {"input_usd_per_mtok": 0.8, "output_usd_per_mtok": 4.0, "quality": 0.8},
            "p/strong": {"input_usd_per_mtok": 2.5, "output_usd_per_mtok": 10.0, "quality": 0.95},
            "p/free": {"input_usd_per_mtok": 0.0, "output_usd_per_mtok": 0.0, "quality": 0.4},
            "p/odd": {"quality": 0.99},
        },
        "routes": {
            "auto": {
                "models": ["p/weak", "p/mid", "p/strong"],
                "objective": objective,
                "learning": "off",
                "retries": {"backoff_base_s": 0.0},
                **route,
            },
        },
    }


@contextlib.contextmanager
def routed(
    tmp_path: Path,
    objective: Any,
    answer: Answers | None = None,
    *,
    clock: Clock | None = None,
    env: dict[str, str] | None = None,
    **route: Any,
) -> Iterator[Router]:
    made = Router(
        parse_settings(settings(tmp_path, objective, **route)),
        env=env or {},
        seed=1,
        clock=clock or Clock(MONDAY + 3600.0),
        transport=Upstream(answer or (lambda m, b: Reply(50, 40))),
    )
    try:
        yield made
    finally:
        asyncio.run(made.aclose())


def asking(text: str = "What is a river?", **fields: Any) -> Query:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
    return parse_chat(msgspec.json.encode(body), {})


def spent(router: Router) -> tuple[float, float]:
    totals = router.ready()["budgets"]["auto"]
    return totals["spent_usd"], totals["reserved_usd"]


def failing(kind: Any) -> UpstreamError:
    return UpstreamError(f"simulated {kind}", kind=kind)


@contextlib.contextmanager
def opened(
    tmp_path: Path,
    objective: Any,
    answer: Answers,
    *,
    clock: Clock | None = None,
    env: dict[str, str] | None = None,
    **route: Any,
) -> Iterator[Router]:
    """`routed` for use inside a running loop."""
    made = Router(
        parse_settings(settings(tmp_path, objective, **route)),
        env=env or {},
        seed=1,
        clock=clock or Clock(),
        transport=Upstream(answer),
    )
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def with_other_worker(
    tmp_path: Path, objective: Any, **more: Any
) -> Iterator[tuple[Router, LedgerRow]]:
    """`routed`, and another worker's view of the route's money."""
    with (
        shared_ledger(2) as path,
        contextlib.closing(Ledger(path)) as ledger,
        routed(tmp_path, objective, env={"SUFFICE_LEDGER": path}, **more) as r,
    ):
        yield r, ledger.row("auto")
