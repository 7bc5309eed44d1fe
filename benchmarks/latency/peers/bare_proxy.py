"""The thinnest useful Python proxy: decode, set the model, forward, decode the reply. No features.

Granian serves `app`; UPSTREAM_PORT and STREAM_PORT are in the environment.
"""

import os
from typing import Any

import msgspec
from pyreqwest.client import ClientBuilder

PLAIN = f"http://127.0.0.1:{os.environ['UPSTREAM_PORT']}/v1/chat/completions"
STREAM = f"http://127.0.0.1:{os.environ['STREAM_PORT']}/v1/chat/completions"
JSON, EVENTS = (b"content-type", b"application/json"), (b"content-type", b"text/event-stream")

decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode
client: Any = None


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    request = decode(body)
    request["model"] = "bench"
    if request.get("stream"):
        # Without a limit of 0 the client holds chunks back until its buffer is full.
        call = upstream(STREAM, request).streamed_read_buffer_limit(0).build_streamed()
        async with call as response:
            await send(
                {"type": "http.response.start", "status": response.status, "headers": [EVENTS]}
            )
            while (chunk := await response.body_reader.read_chunk()) is not None:
                await send({"type": "http.response.body", "body": bytes(chunk), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        return
    response = await upstream(PLAIN, request).build().send()
    data = bytes(await response.bytes())
    decode(data)
    length = (b"content-length", str(len(data)).encode())
    await send(
        {"type": "http.response.start", "status": response.status, "headers": [JSON, length]}
    )
    await send({"type": "http.response.body", "body": data})


def upstream(url: str, request: Any) -> Any:
    builder = client.post(url).header("content-type", "application/json")
    return builder.body_bytes(encode(request))


async def lifespan(receive: Any, send: Any) -> None:
    global client
    while True:
        kind = (await receive())["type"]
        if kind == "lifespan.startup":
            client = ClientBuilder().build()
            await send({"type": "lifespan.startup.complete"})
        else:
            await client.close()
            await send({"type": "lifespan.shutdown.complete"})
            return
