"""The streaming upstream: server-sent events at a fixed pace, each with its number and send time.

Usage: python stream_upstream.py PORT CHUNKS INTERVAL_MS

Every content delta contains `s<number>t<monotonic ns>e`, so a client sees lost, merged and reordered
deltas and the delay of each one, whichever event format a gateway makes of it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

try:
    import uvloop
except ImportError:  # slower, but the same behaviour
    uvloop = None  # type: ignore[assignment]  # tested for below

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_COMMON = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "bench"}
_CHOICE = {"index": 0, "logprobs": None, "finish_reason": None}


def _event(**fields: object) -> str:
    return f"data: {json.dumps(_COMMON | fields)}\n\n"


def _frame(text: str) -> bytes:
    return b"%x\r\n%b\r\n" % (len(text), text.encode())


class StreamUpstream(asyncio.Protocol):
    """One keep-alive connection."""

    chunks = 50
    interval_s = 0.02
    template = _event(choices=[_CHOICE | {"delta": {"role": "assistant", "content": "MARK tok "}}])

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = b""
        self.closed = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        if b"transfer-encoding: chunked" in head.lower():
            if not body.endswith(b"0\r\n\r\n"):
                return
        else:
            _, _, length = head.lower().partition(b"content-length:")
            if len(body) < int(length.split(b"\r\n")[0].strip() or 0):
                return
        self.buffer = b""
        if head.startswith(b"GET"):  # gateways that ask which models there are, or for health
            model = {"id": "bench-stream", "object": "model"}
            self.send_json({"object": "list", "data": [model]})
        elif b'"stream":true' in body.replace(b" ", b""):
            self.number = 0
            self.due = asyncio.get_running_loop().time()
            self.transport.write(_HEAD)
            self.send_chunk()
        else:
            self.send_reply()

    def send_reply(self) -> None:
        message = {"role": "assistant", "content": "ok"}
        reply = _COMMON | {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        self.send_json(reply)

    def send_json(self, reply: dict[str, object]) -> None:
        body = json.dumps(reply).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % len(body) + body)

    def send_chunk(self) -> None:
        if self.closed:
            return
        if self.number == self.chunks:
            usage = {"prompt_tokens": 60, "completion_tokens": self.chunks, "total_tokens": 110}
            end = _event(choices=[_CHOICE | {"delta": {}, "finish_reason": "stop"}])
            end += _event(choices=[], usage=usage) + "data: [DONE]\n\n"
            self.transport.write(_frame(end) + b"0\r\n\r\n")
            return
        mark = f"s{self.number}t{time.monotonic_ns()}e"
        self.transport.write(_frame(self.template.replace("MARK", mark)))
        self.number += 1
        self.due += self.interval_s
        asyncio.get_running_loop().call_at(self.due, self.send_chunk)


async def main(port: int) -> None:
    """Serve until the process ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(StreamUpstream, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    StreamUpstream.chunks = int(sys.argv[2])
    StreamUpstream.interval_s = float(sys.argv[3]) / 1e3
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if uvloop else None) as runner:
        runner.run(main(int(sys.argv[1])))
