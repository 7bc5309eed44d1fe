"""Compares HTTP clients for upstream calls: CPU per request, and what a cancelled call does.

nginx answers one fixed chat completion. Each client runs in its own process on a uvloop event loop
with 1 and 16 requests at once; CPU is `time.process_time` of that process, all threads included.
Rounds are interleaved. A second test cancels a call before its response headers and in the middle
of a stream, and looks whether the server sees the connection close within a second.

Usage: python benchmarks/latency/http_clients.py [--requests 5000] [--rounds 3]
Needs nginx; pip install pyqwest pyreqwest aiohttp. Writes http_clients.json here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import run as harness

HERE = Path(__file__).parent
BODY = json.dumps(harness.ASK).encode()
HEADERS = [("content-type", "application/json"), ("authorization", "Bearer none")]
AT_ONCE = (1, 16)
WARM_UP = 300
Call = Callable[[str], Awaitable[bytes]]


def suffice_client() -> tuple[Call, Call]:
    from suffice.providers.transport import HTTPTransport
    from suffice.types import Timeouts

    transport, timeouts = HTTPTransport({}), Timeouts()

    async def whole(url: str) -> bytes:
        response = await transport.send(url, HEADERS, BODY, stream=False, timeouts=timeouts)
        return await response.read()

    async def streamed(url: str) -> bytes:
        response = await transport.send(url, HEADERS, BODY, stream=True, timeouts=timeouts)
        try:
            while await response.read_chunk():
                pass
        finally:
            await response.aclose()
        return b""

    return whole, streamed


def pyqwest_client() -> tuple[Call, Call]:
    import pyqwest

    client = pyqwest.Client(
        pyqwest.HTTPTransport(
            connect_timeout=5.0,
            follow_redirects=False,
            enable_otel=False,
            pool_max_idle_per_host=256,
        )
    )

    async def whole(url: str) -> bytes:
        async with asyncio.timeout(600.0):
            return (await client.post(url, HEADERS, BODY)).content

    async def streamed(url: str) -> bytes:
        async with client.stream("POST", url, HEADERS, BODY) as response:
            async for _ in response.content:
                pass
        return b""

    return whole, streamed


def pyreqwest_client() -> tuple[Call, Call]:
    from pyreqwest.client import ClientBuilder

    client = ClientBuilder().build()

    def request(url: str) -> Any:
        builder = client.post(url).body_bytes(BODY)
        for name, value in HEADERS:
            builder = builder.header(name, value)
        return builder

    async def whole(url: str) -> bytes:
        response = await request(url).build().send()
        return bytes(await response.bytes())

    async def streamed(url: str) -> bytes:
        async with request(url).streamed_read_buffer_limit(0).build_streamed() as response:
            while await response.body_reader.read_chunk() is not None:
                pass
        return b""

    return whole, streamed


def aiohttp_client() -> tuple[Call, Call]:
    import aiohttp

    session = aiohttp.ClientSession(
        auto_decompress=False,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=600.0, connect=5.0),
        cookie_jar=aiohttp.DummyCookieJar(),
    )
    headers = dict(HEADERS)

    async def whole(url: str) -> bytes:
        async with session.post(url, data=BODY, headers=headers, allow_redirects=False) as response:
            return await response.read()

    async def streamed(url: str) -> bytes:
        async with session.post(url, data=BODY, headers=headers, allow_redirects=False) as response:
            async for _ in response.content.iter_any():
                pass
        return b""

    return whole, streamed


CLIENTS = {
    "suffice": suffice_client,
    "pyqwest": pyqwest_client,
    "pyreqwest": pyreqwest_client,
    "aiohttp": aiohttp_client,
}


async def cpu_us(call: Call, url: str, requests: int, at_once: int) -> float:
    remaining = 0

    async def worker() -> None:
        nonlocal remaining
        while remaining > 0:
            remaining -= 1
            assert len(await call(url)) > 100

    for count in (WARM_UP, requests):
        remaining = count
        before_s = time.process_time()
        await asyncio.gather(*(worker() for _ in range(at_once)))
        used_s = time.process_time() - before_s
    return used_s / requests * 1e6


async def ends_when_cancelled(call: Call, start: bytes) -> bool:
    """Whether the server sees the end of a cancelled call within a second. start: what it sends."""
    started, ended = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(start)
        started.set()
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
        ended.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions"
    task = asyncio.ensure_future(call(url))
    await started.wait()
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    try:
        await asyncio.wait_for(ended.wait(), 1.0)
    except TimeoutError:
        return False
    finally:
        server.close()
    return True


async def measure_one(name: str, url: str, requests: int) -> dict[str, Any]:
    whole, streamed = CLIENTS[name]()
    row: dict[str, Any] = {
        f"cpu_us_at_{n}": round(await cpu_us(whole, url, requests, n), 1) for n in AT_ONCE
    }
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"
    row["cancels_before_headers"] = await ends_when_cancelled(whole, b"")
    row["cancels_in_a_stream"] = await ends_when_cancelled(streamed, head)
    return row


def measure(requests: int, rounds: int) -> dict[str, Any]:
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in CLIENTS}
    with tempfile.TemporaryDirectory() as folder:
        port = harness.free_port()
        reply = json.dumps(harness.REPLY)
        process = harness.nginx(
            Path(folder),
            "upstream",
            port,
            "server { listen 127.0.0.1:PORT; location / { default_type application/json; "
            f"return 200 '{reply}'; }} }}",
        )
        try:
            for _ in range(rounds):
                for name in CLIENTS:
                    url = f"http://127.0.0.1:{port}/v1/chat/completions"
                    command = [sys.executable, __file__, "--one", name, url, str(requests)]
                    out = subprocess.run(command, check=True, capture_output=True, text=True)
                    rows[name].append(json.loads(out.stdout))
        finally:
            process.terminate()
            process.wait(10)
    return {name: summarize(each) for name, each in rows.items()}


def summarize(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Median, least and greatest of each number; whether all rounds agree for the rest."""
    row: dict[str, Any] = {}
    for key in rounds[0]:
        values = [each[key] for each in rounds]
        if isinstance(values[0], bool):
            row[key] = all(values)
        else:
            row[key] = {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
            }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("CLIENT", "URL", "REQUESTS"))
    args = parser.parse_args()
    if args.one:
        import uvloop

        name, url, requests = args.one
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            print(json.dumps(runner.run(measure_one(name, url, int(requests)))), flush=True)
            os._exit(0)  # clients are not closed; their threads must not hold the process up
    rows = measure(args.requests, args.rounds)
    names = ("httptools", "uvloop", "pyqwest", "pyreqwest", "aiohttp")
    result = {
        "date": dt.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "requests": args.requests,
        "rounds": args.rounds,
        "clients": rows,
    }
    (HERE / "http_clients.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
