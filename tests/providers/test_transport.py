"""The HTTP client against servers that frame, stall, break and reuse connections in every way."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.raw_http import LOOPS, OK, RawServer, answer_each, run_on, serve, wait_until

from suffice.errors import UpstreamError
from suffice.providers.transport import HTTPTransport
from suffice.transport import Response
from suffice.types import Timeouts

Main = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(params=sorted(LOOPS))
def run(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    return lambda main: run_on(request.param, main())


@asynccontextmanager
async def transport_to(handler: Any) -> AsyncIterator[tuple[HTTPTransport, RawServer]]:
    transport = HTTPTransport(proxies={})
    async with serve(handler) as server:
        try:
            yield transport, server
        finally:
            await transport.aclose()


async def post(
    transport: HTTPTransport, server: RawServer, *, stream: bool = False, total_s: float = 20.0
) -> Response:
    headers = [("content-type", "application/json"), ("x-trace", "1")]
    timeouts = Timeouts(total_s=total_s)
    return await transport.send(server.url, headers, b"{}", stream=stream, timeouts=timeouts)


async def read_all(response: Response) -> bytes:
    body = b""
    while chunk := await response.read_chunk():
        body += chunk
    return body


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
REPLIES = {
    "content-length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello"),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b""),
    "chunked": (CHUNKED + b"3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n", 200, b"hello"),
    "trailers": (CHUNKED + b"5\r\nhello\r\n0\r\nx-checksum: 1\r\n\r\n", 200, b"hello"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n", 304, b""),
    "interim": (
        b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + OK,
        200,
        b"ok",
    ),
    "redirect": (b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", 302, b""),
    "line feeds alone": (b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok", 200, b"ok"),
    "padded chunk sizes": (CHUNKED + b"2  \r\nok\r\n0\r\n\r\n", 200, b"ok"),
    "length of a chunked body": (
        CHUNKED[:-2] + b"content-length: 9\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        200,
        b"ok",
    ),
    "a charset as encoding": (
        b"HTTP/1.1 200 OK\r\ncontent-encoding: utf-8\r\ncontent-length: 2\r\n\r\nok",
        200,
        b"ok",
    ),
    "empty header": (b"HTTP/1.1 200 OK\r\nx-empty:\r\ncontent-length: 2\r\n\r\nok", 200, b"ok"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", sorted(REPLIES))
def test_each_framing_is_read_and_the_connection_is_reused(
    run: Callable[[Main], None], name: str, stream: bool
) -> None:
    reply, status, body = REPLIES[name]

    async def main() -> None:
        async with transport_to(answer_each(reply)) as (transport, server):
            for _ in range(3):
                response = await post(transport, server, stream=stream)
                assert response.status == status
                assert await (read_all(response) if stream else response.read()) == body
                assert response.header("link") is None, "headers of interim responses are dropped"
                await response.aclose()
            assert server.connections == 1

    run(main)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_reply_may_be_split_anywhere(data: st.DataObject) -> None:
    reply, status, body = REPLIES[data.draw(st.sampled_from(sorted(REPLIES)))]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(reply) - 1), max_size=6)))
    stream = data.draw(st.booleans())

    async def handle(server: RawServer, reader: asyncio.StreamReader, writer: Any) -> None:
        await server.read_request(reader)
        for start, end in zip([0, *cuts], [*cuts, len(reply)], strict=True):
            writer.write(reply[start:end])
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    async def main() -> None:
        async with transport_to(handle) as (transport, server):
            response = await post(transport, server, stream=stream)
            assert response.status == status
            assert await (read_all(response) if stream else response.read()) == body

    run_on("uvloop", main())


def test_the_request_carries_its_headers_and_length(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        async with transport_to(answer_each(OK)) as (transport, server):
            await post(transport, server)
            head, _, body = server.requests[0].partition(b"\r\n\r\n")
            first, *lines = head.split(b"\r\n")
            assert first == b"POST /v1/x HTTP/1.1"
            assert body == b"{}"
            assert b"host: 127.0.0.1:%d" % server.port in lines
            assert {b"content-type: application/json", b"x-trace: 1", b"content-length: 2"} <= set(
                lines
            )
            assert not any(line.startswith(b"accept-encoding") for line in lines)

    run(main)


@pytest.mark.parametrize("stream", [False, True])
def test_a_body_without_a_length_ends_with_the_connection(
    run: Callable[[Main], None], stream: bool
) -> None:
    async def handle(server: RawServer, reader: asyncio.StreamReader, writer: Any) -> None:
        await server.read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhel")
        await asyncio.sleep(0.01)
        writer.write(b"lo")

    async def main() -> None:
        async with transport_to(handle) as (transport, server):
            for _ in range(2):
                response = await post(transport, server, stream=stream)
                assert await (read_all(response) if stream else response.read()) == b"hello"
            assert server.connections == 2

    run(main)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
        CHUNKED + b"5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-",
        b"",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        CHUNKED + b"zz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-encoding: br\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-encoding: gzip\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nx-long: " + b"x" * 100_000 + b"\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000 + b"content-length: 2\r\n\r\nok",
    ],
    ids=lambda reply: repr(reply[-16:]),
)
def test_a_broken_reply_is_a_cut(run: Callable[[Main], None], reply: bytes, stream: bool) -> None:
    async def handle(server: RawServer, reader: asyncio.StreamReader, writer: Any) -> None:
        await server.read_request(reader)
        writer.write(reply)

    async def main() -> None:
        async with transport_to(handle) as (transport, server):
            with pytest.raises(UpstreamError) as caught:
                response = await post(transport, server, stream=stream)
                await read_all(response)
            assert caught.value.kind == "cut"
            assert f"127.0.0.1:{server.port}: the connection broke" in str(caught.value)
            assert len(server.requests) == 1, "a new connection that fails is not tried again"
            await wait_until(lambda: not server.open)

    run(main)


def test_bytes_before_a_break_are_delivered(run: Callable[[Main], None]) -> None:
    async def handle(server: RawServer, reader: asyncio.StreamReader, writer: Any) -> None:
        await server.read_request(reader)
        writer.write(CHUNKED + b"5\r\nhello\r\n")

    async def main() -> None:
        async with transport_to(handle) as (transport, server):
            response = await post(transport, server, stream=True)
            await wait_until(lambda: not server.open)
            assert await response.read_chunk() == b"hello"
            with pytest.raises(UpstreamError):
                await response.read_chunk()

    run(main)


def test_a_reply_of_a_byte_at_a_time(run: Callable[[Main], None]) -> None:
    async def handle(server: RawServer, reader: asyncio.StreamReader, writer: Any) -> None:
        await server.read_request(reader)
        for byte in CHUNKED + b"5\r\nhello\r\n0\r\n\r\n":
            writer.write(bytes([byte]))
            await asyncio.sleep(0.001)

    async def main() -> None:
        async with transport_to(handle) as (transport, server):
            response = await post(transport, server)
            assert await response.read() == b"hello"

    run(main)


def test_a_compressed_body_is_decompressed(run: Callable[[Main], None]) -> None:
    packed = gzip.compress(b"hello " * 100)
    reply = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed)

    async def main() -> None:
        async with transport_to(answer_each(reply + packed)) as (transport, server):
            response = await post(transport, server)
            assert await response.read() == b"hello " * 100
            response = await post(transport, server, stream=True)
            assert await read_all(response) == b"hello " * 100

    run(main)


def test_a_decompression_bomb_is_refused(run: Callable[[Main], None]) -> None:
    packed = gzip.compress(b"\0" * (70 << 20), compresslevel=1)
    reply = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed)

    async def main() -> None:
        async with transport_to(answer_each(reply + packed)) as (transport, server):
            with pytest.raises(UpstreamError, match="too large"):
                await post(transport, server)

    run(main)


def test_only_the_start_of_a_body_may_be_read(run: Callable[[Main], None]) -> None:
    async def handle(server: RawServer, reader: asyncio.StreamReader, writer: Any) -> None:
        await server.read_request(reader)
        writer.write(b"HTTP/1.1 500 No\r\n\r\n" + b"x" * 1000)
        await reader.read()

    async def main() -> None:
        async with transport_to(handle) as (transport, server):
            response = await post(transport, server, stream=True)
            assert await response.read(10) == b"x" * 10
            await response.aclose()
            await wait_until(lambda: not server.open)

    run(main)


def test_a_slow_reader_holds_the_upstream_back(run: Callable[[Main], None]) -> None:
    size = 32 << 20
    sent: list[int] = []

    async def handle(server: RawServer, reader: asyncio.StreamReader, writer: Any) -> None:
        await server.read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(size >> 16):
            writer.write(b"x" * (1 << 16))
            await writer.drain()
            sent.append(1 << 16)

    async def main() -> None:
        async with transport_to(handle) as (transport, server):
            response = await post(transport, server, stream=True)
            await asyncio.sleep(0.2)
            assert sum(sent) < size, "the sender waits"
            total = 0
            while chunk := await response.read_chunk():
                total += len(chunk)
            assert total == size

    run(main)


def test_a_header_with_a_line_end_is_not_sent(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        async with transport_to(answer_each(OK)) as (transport, server):
            for header in (("x", "a\r\nb: c"), ("x\n", "a"), ("x", "a\r")):
                with pytest.raises(ValueError, match="line end"):
                    await transport.send(
                        server.url, [header], b"", stream=False, timeouts=Timeouts()
                    )
            assert server.connections == 0

    run(main)


@pytest.mark.parametrize("url", ["ftp://x/y", "http:///x", "x", "http://a b/c"])
def test_what_is_not_an_http_url_is_an_error(url: str) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="not an http"):
            await HTTPTransport({}).send(url, [], b"", stream=False, timeouts=Timeouts())

    run_on("asyncio", main())
