"""CPU microseconds that the code of suffice costs per request, without sockets and without a database.

    python benchmarks/latency/request_path.py [--rounds 100]

Whole requests go through the ASGI app: parse, features, decision, attempt, record, response headers. The
transport answers from memory and the store drops its records. Batches of 150 requests are timed with
`time.process_time`; the best batch is the least disturbed by other processes on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec

from suffice import Router
from suffice.config import parse_settings
from suffice.gateway import create_app
from suffice.store.protocols import Store
from suffice.transport import Transport

BATCH = 150
REPLY = msgspec.json.encode(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1750000000,
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Take the night train. " * 10},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 64, "completion_tokens": 52, "total_tokens": 116},
    }
)
BODY = msgspec.json.encode(
    {
        "model": "auto",
        "messages": [
            {"role": "system", "content": "You are a concise travel assistant."},
            {
                "role": "user",
                "content": "I must be in Hamburg by tomorrow 09:00. Compare the night train with an "
                "early flight: total time, rough cost, and which one is less likely to be late.",
            },
        ],
        "max_tokens": 256,
    }
)


class Reply:
    """A whole response from memory."""

    status = 200

    def header(self, name: str) -> str:
        """The type of the content, for every name."""
        return "application/json"

    async def read(self, limit: int | None = None) -> bytes:
        """The whole body."""
        return REPLY

    async def aclose(self) -> None:
        """Do nothing."""


class MemoryTransport:
    """Answers every request at once."""

    def prepare(self, urls: Iterable[str]) -> None:
        """Do nothing."""

    async def send(
        self, url: str, headers: Sequence[tuple[str, str]], body: bytes, **_: object
    ) -> Reply:
        """Answer at once."""
        return Reply()

    async def aclose(self) -> None:
        """Do nothing."""


class NullStore:
    """Drops every record."""

    def append(self, record: object) -> None:
        """Drop the record."""

    def close(self) -> None:
        """Do nothing."""


def router() -> Router:
    """A router over three models."""

    def model(usd: float, quality: float) -> dict[str, Any]:
        return {
            "input_usd_per_mtok": usd,
            "output_usd_per_mtok": 4 * usd,
            "context_tokens": 128_000,
            "capabilities": ["tools", "json_schema"],
            "quality": quality,
        }

    models = {"p/small": model(0.1, 0.6), "p/middle": model(1, 0.8), "p/large": model(5, 0.95)}
    settings = {
        "providers": {"p": {"dialect": "openai", "base_url": "http://127.0.0.1:9/v1"}},
        "models": models,
        "routes": {"auto": {"models": list(models), "objective": {"keep_quality": 0.95}}},
    }
    return Router(
        parse_settings(settings),
        env={},
        transport=cast(Transport, MemoryTransport()),
        store=cast(Store, NullStore()),
    )


async def measure(rounds: int) -> dict[str, float]:
    """CPU microseconds per request: of the best batch, and the quartiles of all."""
    app = create_app(router())
    headers = [(b"host", b"127.0.0.1"), (b"content-length", b"%d" % len(BODY))]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: object) -> None: ...

    async def request() -> None:
        path = "/v1/chat/completions"
        await app(
            {"type": "http", "path": path, "method": "POST", "headers": headers}, receive, send
        )

    for _ in range(2 * BATCH):
        await request()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)  # as the gateway does
    batches = []
    for _ in range(rounds):
        started = time.process_time()
        for _ in range(BATCH):
            await request()
        batches.append((time.process_time() - started) / BATCH * 1e6)
    batches.sort()
    quartile = len(batches) // 4
    return {
        "best": round(batches[0], 1),
        "first_quartile": round(batches[quartile], 1),
        "median": round(batches[2 * quartile], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=100)
    print(json.dumps(asyncio.run(measure(parser.parse_args().rounds))))


if __name__ == "__main__":
    main()
