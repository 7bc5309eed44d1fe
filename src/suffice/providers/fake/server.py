"""A real HTTP/1.1 server on loopback that behaves by a Script. Speaks OpenAI chat completions.

Our own protocol on asyncio rather than a framework: it must be able to misbehave (stall, cut, reset)
and to answer some thousand requests a second beside the gateway under test. Headers and the first
bytes of the body leave in one write, and TCP_NODELAY is on, so that it adds no latency of its own.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any, Self

import msgspec

from suffice.errors import JobError
from suffice.providers.fake.script import Action, FakeModel, Script, action_of, is_sufficient

_encode = msgspec.json.encode
_OK = Action()


class ReceivedRequest(msgspec.Struct):
    """A request that the fake received. left: the client hung up before the reply was complete."""

    model: str
    stream: bool
    body: bytes
    headers: dict[str, str]
    received_s: float
    disconnected: bool = False
    completed: bool = False


class _Body(msgspec.Struct):
    model: str = ""
    messages: Any = None
    stream: bool | None = None
    stream_options: Any = None
    tools: Any = None
    response_format: Any = None
    metadata: Any = None


_decode_body = msgspec.json.Decoder(_Body).decode


class _Connection(asyncio.Protocol):
    def __init__(self, fake: FakeUpstream) -> None:
        self._fake = fake
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._seen: ReceivedRequest | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._fake._connections.add(self)
        if self._fake._down:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fake._connections.discard(self)
        if self._seen is not None and not self._seen.completed:
            self._seen.disconnected = True
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._next()

    def _next(self) -> None:
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
            self._next()

    def whole(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}"]
        lines += [f"content-length: {len(body)}"]
        lines += [f"{k}: {v}" for k, v in (headers or {}).items()]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def error(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        body = {"error": {"message": message, "type": "simulated", "param": None, "code": None}}
        self.whole(status, _encode(body), headers)

    async def _serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        fake = self._fake
        if path.endswith("/models") and method == "GET":
            rows = [{"id": m, "object": "model"} for m in fake.script.models]
            self.whole(200, _encode({"object": "list", "data": rows}))
            return
        if not path.endswith("/chat/completions") or method != "POST":
            self.error(404, f"nothing at {method} {path}")
            return
        key = fake.script.api_key
        if key is not None and headers.get("authorization") != f"Bearer {key}":
            self.error(401, "simulated: wrong key")
            return
        try:
            request = _decode_body(body)
        except msgspec.DecodeError as error:
            self.error(400, f"simulated: {error}")
            return
        self._seen = seen = ReceivedRequest(
            request.model, bool(request.stream), body, headers, time.time()
        )
        fake._note(seen)
        model = fake.script.models.get(request.model)
        if model is None and fake.script.any_model:
            model = FakeModel()
        if model is None:
            self.error(404, f"simulated: no model {request.model!r}")
            seen.completed = True
            return
        action = fake._take(request.model, model)
        if await self._misbehaves(action):
            seen.completed = True
            return
        if model.first_chunk_s:
            await asyncio.sleep(model.first_chunk_s)
        if request.stream and action.kind != "stream_as_json":
            await self._stream(request, model, action)
        else:
            await self._answer(request, model, action)
        seen.completed = True

    async def _misbehaves(self, action: Action) -> bool:
        kind = action.kind
        if kind == "status":
            if action.body is None:
                self.error(action.status, f"simulated {action.status}", action.headers)
            else:
                text = action.body if isinstance(action.body, str) else None
                raw = text.encode() if text is not None else _encode(action.body)
                self.whole(action.status, raw, action.headers)
        elif kind == "stall":
            await asyncio.sleep(3600)
        elif kind == "reset":
            self.transport.abort()
        elif kind == "malformed":
            self.whole(200, b'{"id": "x", "object": "something"}')
        elif kind == "not_json":
            self.whole(200, b"<html>gateway timeout</html>", content_type="text/html")
        elif kind == "empty":
            self.whole(200, b"")
        else:
            return False
        return True

    def _facts(
        self, request: _Body, model: FakeModel
    ) -> tuple[dict[str, Any], dict[str, int], Any]:
        """(the assistant's message, usage, what the simulation says of the answer)."""
        meta = request.metadata if isinstance(request.metadata, dict) else {}
        text = model.reply
        message: dict[str, Any] = {"role": "assistant", "content": text}
        last = (request.messages or [{}])[-1]
        if request.tools and last.get("role") != "tool":
            function = request.tools[0].get("function", {})
            message["content"] = None
            message["tool_calls"] = [
                {
                    "id": "call_sim",
                    "type": "function",
                    "function": {
                        "name": function.get("name", "f"),
                        "arguments": _encode(_example(function.get("parameters"))).decode(),
                    },
                }
            ]
        elif (request.response_format or {}).get("type") == "json_schema":
            schema = request.response_format["json_schema"].get("schema")
            message["content"] = _encode(_example(schema)).decode()
        prompt = max(1, len(_encode(request.messages)) // 4)
        told = meta.get("output_tokens")
        output = int(told) if told is not None else model.output_tokens
        if output is None:
            output = max(1, len(text) // 4)
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
        }
        verdict = None
        if "difficulty" in meta:
            verdict = {
                "sufficient": is_sufficient(
                    self._fake.script.seed,
                    request.model,
                    str(meta.get("id", "")),
                    model.skill,
                    float(meta["difficulty"]),
                )
            }
        return message, usage, verdict

    async def _answer(self, request: _Body, model: FakeModel, action: Action) -> None:
        message, usage, verdict = self._facts(request, model)
        if model.tokens_per_s:
            await asyncio.sleep(usage["completion_tokens"] / model.tokens_per_s)
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        out: dict[str, Any] = {
            "id": "chatcmpl-sim",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.model,
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        }
        if model.usage:
            out["usage"] = {
                **usage,
                "prompt_tokens_details": {
                    "cached_tokens": min(model.cached_tokens, usage["prompt_tokens"])
                },
            }
        if verdict is not None:
            out["simulated"] = verdict
        body = _encode(out)
        if action.kind in ("cut", "stall_mid"):
            head = (
                f"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
            )
            self.transport.write(head.encode() + b"\r\n\r\n" + body[: len(body) // 2])
            if action.kind == "stall_mid":
                await asyncio.sleep(3600)
            self.transport.close()
            return
        self.whole(200, body)

    async def _stream(self, request: _Body, model: FakeModel, action: Action) -> None:
        message, usage, verdict = self._facts(request, model)
        base = {
            "id": "chatcmpl-sim",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": request.model,
        }

        def event(delta: dict[str, Any], reason: str | None = None, **extra: Any) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            data = b"data: " + _encode({**base, "choices": [choice], **extra}) + b"\n\n"
            return b"%x\r\n%s\r\n" % (len(data), data)

        deltas: list[dict[str, Any]] = []
        if message.get("tool_calls"):
            deltas = [{"tool_calls": [{"index": 0, **c} for c in message["tool_calls"]]}]
        else:
            words = str(message["content"]).split(" ")
            deltas = [{"content": w if i == 0 else " " + w} for i, w in enumerate(words)]
        write = self.transport.write
        head = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        write(head + event({"role": "assistant", "content": ""}))
        pause_s = 0.0
        if model.tokens_per_s:
            pause_s = usage["completion_tokens"] / model.tokens_per_s / len(deltas)
        for i, delta in enumerate(deltas):
            if action.kind in ("cut", "stall_mid", "error_event") and i == action.after_chunks:
                if action.kind == "stall_mid":
                    await asyncio.sleep(3600)
                if action.kind == "error_event":
                    data = b'data: {"error": {"message": "simulated failure", "code": 500}}\n\n'
                    write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))
                    return
                self.transport.close()
                return
            if pause_s:
                await asyncio.sleep(pause_s)
            write(event(delta))
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        extra = {"simulated": verdict} if verdict is not None else {}
        write(event({}, reason, **extra))
        if model.usage and (request.stream_options or {}).get("include_usage"):
            data = b"data: " + _encode({**base, "choices": [], "usage": usage}) + b"\n\n"
            write(b"%x\r\n%s\r\n" % (len(data), data))
        write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def _example(schema: Any) -> Any:
    """A small value of a JSON schema, for simulated tool calls and structured replies."""
    if not isinstance(schema, dict):
        return {}
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return {k: _example(v) for k, v in (schema.get("properties") or {}).items()}
    if kind == "array":
        return [_example(schema.get("items"))]
    return {"string": "simulated", "integer": 1, "number": 1.5, "boolean": True}.get(str(kind))


class FakeUpstream:
    """A scripted fake of a model provider: a real HTTP server on loopback, in a thread.

    with FakeUpstream({"models": {"m": {"reply": "Hi."}}}) as fake:
        ...  # call fake.base_url + "/chat/completions"
        fake.set_down(True)   # connections are refused or dropped from now on
        fake.requests             # what it received
    """

    def __init__(
        self, script: Script | dict[str, Any], *, port: int = 0, keep: int = 10_000
    ) -> None:
        self.script = msgspec.convert(script, Script) if isinstance(script, dict) else script
        self.port = port
        self._keep = keep
        self.requests: list[ReceivedRequest] = []
        self._taken: dict[str, int] = {}
        self._connections: set[_Connection] = set()
        self._down = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: asyncio.Server | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def _note(self, seen: ReceivedRequest) -> None:
        self.requests.append(seen)
        if len(self.requests) > self._keep:
            del self.requests[: self._keep // 2]

    def _take(self, name: str, model: FakeModel) -> Action:
        if not model.actions:
            return _OK
        n = self._taken.get(name, 0)
        self._taken[name] = n + 1
        if n < len(model.actions):
            return action_of(model.actions[n])
        last = action_of(model.actions[-1])
        return last if last.repeat else _OK

    def start(self) -> Self:
        started = threading.Event()
        failed: list[BaseException] = []

        async def listen() -> None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(
                lambda: _Connection(self), "127.0.0.1", self.port, backlog=1024
            )
            self.port = self._server.sockets[0].getsockname()[1]

        async def end() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        loop = self._loop = asyncio.new_event_loop()

        def run() -> None:
            try:
                loop.run_until_complete(listen())
            except OSError as error:
                failed.append(error)
                started.set()
                return
            started.set()
            loop.run_forever()
            loop.run_until_complete(end())
            loop.close()

        self._thread = threading.Thread(target=run, name="fake-upstream", daemon=True)
        self._thread.start()
        started.wait(10.0)
        if failed:
            raise JobError(f"The fake upstream cannot listen on port {self.port}: {failed[0]}")
        return self

    def _call(self, work: Any) -> None:
        assert self._loop is not None, "start() first"
        done = threading.Event()

        def run() -> None:
            try:
                work()
            finally:
                done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait(5.0)

    def set_down(self, down: bool) -> None:
        """Down: open connections are dropped and new ones are reset at once."""

        def work() -> None:
            self._down = down
            if down:
                for connection in list(self._connections):
                    connection.transport.abort()

        self._call(work)

    def set_model(self, name: str, model: FakeModel | dict[str, Any]) -> None:
        """Change or add a model while it runs; its list of actions begins anew."""
        found = msgspec.convert(model, FakeModel) if isinstance(model, dict) else model

        def work() -> None:
            models = {**self.script.models, name: found}
            self.script = msgspec.structs.replace(self.script, models=models)
            self._taken.pop(name, None)

        self._call(work)

    def stop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return

        def work() -> None:
            if self._server is not None:
                self._server.close()
            for connection in list(self._connections):
                connection.transport.abort()
            loop.call_soon(loop.stop)

        loop.call_soon_threadsafe(work)
        self._thread.join(5.0)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
