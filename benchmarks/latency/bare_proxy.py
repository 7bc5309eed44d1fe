"""The yardstick: the least a Granian + pyreqwest proxy can do. No parsing, routing or recording.

Usage: python bare_proxy.py PORT UPSTREAM_URL
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from granian.constants import Interfaces
from granian.server.embed import Server
from pyreqwest.client import ClientBuilder


def make_app(upstream: str) -> Any:
    client: Any = None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal client
        if scope["type"] != "http":
            return
        if client is None:
            client = ClientBuilder().build()
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        request = client.post(upstream).body_bytes(body).header("content-type", "application/json")
        response = await request.build().send()
        data = bytes(await response.bytes())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(data)).encode()),
        ]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    return app


async def main() -> None:
    import uvloop  # noqa: F401  the loop is installed below

    server = Server(
        make_app(sys.argv[2]),
        address="127.0.0.1",
        port=int(sys.argv[1]),
        interface=Interfaces.ASGINL,
        websockets=False,
        log_enabled=False,
    )
    await server.serve()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
