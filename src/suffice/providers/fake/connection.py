"""One connection to a fake upstream: parses requests and answers, or misbehaves, by the script."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from typing import Protocol

import msgspec

from suffice.providers.fake.completions import ERROR_EVENT, Completion, decode_request
from suffice.providers.fake.script import Action, FakeModel, Script

_FOREVER_S = 3600.0
_STREAM_HEAD = (
    b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_END_OF_CHUNKS = b"0\r\n\r\n"
_NOT_COMPLETIONS = {
    "malformed": (b'{"id": "x", "object": "something"}', "application/json"),
    "not_json": (b"<html>gateway timeout</html>", "text/html"),
    "empty": (b"", "application/json"),
}


class ReceivedRequest(msgspec.Struct):
    """A request that the fake received.

    Attributes:
        model: the model it names.
        stream: whether it asks for a stream.
        body: as it came.
        headers: with names in lower case.
        received_s: unix seconds.
        disconnected: whether the client hung up before the reply was complete.
        completed: whether the reply was sent to its end, or broken off by the script.
    """

    model: str
    stream: bool
    body: bytes
    headers: dict[str, str]
    received_s: float
    disconnected: bool = False
    completed: bool = False


class Upstream(Protocol):
    """What a connection needs of the server."""

    script: Script

    def connected(self, connection: FakeConnection) -> None:
        """A connection is open."""
        ...

    def disconnected(self, connection: FakeConnection) -> None:
        """A connection is closed."""
        ...

    def record(self, request: ReceivedRequest) -> None:
        """Keep a request."""
        ...

    def next_action(self, name: str, model: FakeModel) -> Action:
        """What to do with this request to `model`."""
        ...


class FakeConnection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive. A head and the first bytes of a body leave in one write."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._received: ReceivedRequest | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._upstream.connected(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the client hung up, if its reply was not complete."""
        self._upstream.disconnected(self)
        if self._received is not None and not self._received.completed:
            self._received.disconnected = True
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Serve the request as soon as it is complete."""
        self._buffer += data
        self._serve_next()

    def _serve_next(self) -> None:
        if self._task is not None and not self._task.done():
            return
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (h.partition(":") for h in head[1:])}
        length = int(headers.get("content-length", 0))
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        method, path, _ = head[0].split(" ", 2)
        self._task = asyncio.get_running_loop().create_task(
            self._serve(method, path.partition("?")[0], headers, body)
        )
        self._task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.transport.abort()
        elif not self.transport.is_closing():
            self._serve_next()

    async def _serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        script = self._upstream.script
        if path.endswith("/models") and method == "GET":
            rows = [{"id": name, "object": "model"} for name in script.models]
            self._send(200, msgspec.json.encode({"object": "list", "data": rows}))
        elif not path.endswith("/chat/completions") or method != "POST":
            self._send_error(404, f"nothing at {method} {path}")
        elif script.api_key is not None and headers.get("authorization") != (
            f"Bearer {script.api_key}"
        ):
            self._send_error(401, "simulated: wrong key")
        else:
            await self._complete(headers, body)

    async def _complete(self, headers: dict[str, str], body: bytes) -> None:
        """Answer a chat completion."""
        try:
            request = decode_request(body)
        except msgspec.DecodeError as error:
            self._send_error(400, f"simulated: {error}")
            return
        received = self._received = ReceivedRequest(
            request.model, bool(request.stream), body, headers, time.time()
        )
        self._upstream.record(received)
        script = self._upstream.script
        model = script.models.get(request.model, FakeModel() if script.any_model else None)
        if model is None:
            self._send_error(404, f"simulated: no model {request.model!r}")
        else:
            action = self._upstream.next_action(request.model, model)
            if not await self._misbehave(action):
                completion = Completion(request, model, script.seed, time.time())
                await asyncio.sleep(model.first_chunk_s)
                if request.stream and action.kind != "stream_as_json":
                    await self._send_stream(completion, model, action)
                else:
                    await self._send_whole(completion, model, action)
        received.completed = True

    async def _misbehave(self, action: Action) -> bool:
        """Do what the action asks for instead of an answer. False if it asks for an answer."""
        if action.kind == "status":
            if action.body is None:
                self._send_error(action.status, f"simulated {action.status}", action.headers)
            else:
                text = action.body
                body = text.encode() if isinstance(text, str) else msgspec.json.encode(text)
                self._send(action.status, body, action.headers)
        elif action.kind == "stall":
            await asyncio.sleep(_FOREVER_S)
        elif action.kind == "reset":
            self.transport.abort()
        elif action.kind in _NOT_COMPLETIONS:
            body, content_type = _NOT_COMPLETIONS[action.kind]
            self._send(200, body, content_type=content_type)
        else:
            return False
        return True

    async def _send_whole(self, completion: Completion, model: FakeModel, action: Action) -> None:
        if model.tokens_per_s:
            await asyncio.sleep(completion.output_tokens / model.tokens_per_s)
        body = completion.body()
        if action.kind in ("cut", "stall_mid"):
            head = (
                f"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
            )
            self.transport.write(head.encode() + b"\r\n\r\n" + body[: len(body) // 2])
            await self._break_off(action)
        else:
            self._send(200, body)

    async def _send_stream(self, completion: Completion, model: FakeModel, action: Action) -> None:
        self.transport.write(_STREAM_HEAD + _chunk(completion.first_event()))
        events = completion.content_events()
        pause_s = 0.0
        if model.tokens_per_s:
            pause_s = completion.output_tokens / model.tokens_per_s / len(events)
        for index, event in enumerate(events):
            if index == action.after_chunks:
                if action.kind == "error_event":
                    self.transport.write(_chunk(ERROR_EVENT) + _END_OF_CHUNKS)
                    return
                if action.kind in ("cut", "stall_mid"):
                    await self._break_off(action)
                    return
            if pause_s:
                await asyncio.sleep(pause_s)
            self.transport.write(_chunk(event))
        *before, last = map(_chunk, completion.last_events())
        for chunk in before:
            self.transport.write(chunk)
        self.transport.write(last + _END_OF_CHUNKS)

    async def _break_off(self, action: Action) -> None:
        if action.kind == "stall_mid":
            await asyncio.sleep(_FOREVER_S)
        self.transport.close()

    def _send(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] = {},
        content_type: str = "application/json",
    ) -> None:
        lines = [
            f"HTTP/1.1 {status} X",
            f"content-type: {content_type}",
            f"content-length: {len(body)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def _send_error(self, status: int, message: str, headers: Mapping[str, str] = {}) -> None:
        error = {"message": message, "type": "simulated", "param": None, "code": None}
        self._send(status, msgspec.json.encode({"error": error}), headers)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
