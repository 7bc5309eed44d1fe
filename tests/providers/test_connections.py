"""Connections of the HTTP client: reuse, loss, cancellation, deadlines."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.raw_http import (
    LOOPS,
    OK,
    RawServer,
    answer_each,
    post,
    run_on,
    serve,
    wait_until,
)

from suffice.errors import UpstreamError
from suffice.providers.http1 import Connection
from suffice.providers.transport import HTTPTransport
from suffice.types import Timeouts

Main = Callable[[], Any]


@pytest.fixture(params=sorted(LOOPS))
def run(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    return lambda main: run_on(request.param, main())


async def stall(server: RawServer, reader: asyncio.StreamReader, writer: Any) -> None:
    await server.read_request(reader)
    await reader.read()  # until the client hangs up


async def stall_in_the_middle(server: RawServer, reader: asyncio.StreamReader, writer: Any) -> None:
    await server.read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
    await reader.read()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("handler", [stall, stall_in_the_middle])
def test_a_cancelled_request_ends_the_upstream_call(
    run: Callable[[Main], None], handler: Any, stream: bool
) -> None:
    async def request(transport: HTTPTransport, url: str) -> None:
        response = await post(transport, url, stream=stream)
        try:
            assert await response.read_chunk() == b"hello"
            await response.read_chunk()
        finally:
            await response.aclose()

    async def main() -> None:
        transport = HTTPTransport({})
        async with serve(handler) as server:
            task = asyncio.ensure_future(request(transport, server.url))
            await wait_until(lambda: len(server.requests) == 1)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            began_s = time.monotonic()
            await wait_until(lambda: not server.open)
            assert time.monotonic() - began_s < 5.0
        await transport.aclose()

    run(main)


def test_a_whole_reply_has_one_deadline(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        transport = HTTPTransport({})
        for handler in (stall, stall_in_the_middle):
            async with serve(handler) as server:
                with pytest.raises(UpstreamError) as caught:
                    await post(transport, server.url, timeouts=Timeouts(total_s=0.1))
                assert caught.value.kind == "timeout_total"
                await wait_until(lambda server=server: not server.open)
        await transport.aclose()

    run(main)


def test_requests_at_once_have_a_connection_each_and_share_them_later(
    run: Callable[[Main], None],
) -> None:
    async def main() -> None:
        transport = HTTPTransport({})
        async with serve(answer_each(OK)) as server:
            for _ in range(3):
                await asyncio.gather(*(post(transport, server.url) for _ in range(20)))
            assert server.connections == 20
            assert len(server.requests) == 60
            await transport.aclose()
            await wait_until(lambda: not server.open)

    run(main)


def test_no_more_than_256_idle_connections_are_kept(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        transport = HTTPTransport({})
        async with serve(answer_each(OK)) as server:
            await asyncio.gather(*(post(transport, server.url) for _ in range(300)))
            await wait_until(lambda: server.open <= 256)
            assert server.open == 256
            await transport.aclose()

    run(main)


def test_connection_close_is_obeyed(run: Callable[[Main], None]) -> None:
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"

    async def main() -> None:
        transport = HTTPTransport({})
        async with serve(answer_each(reply)) as server:
            for count in (1, 2, 3):
                assert await (await post(transport, server.url)).read() == b"ok"
                assert server.connections == count
        await transport.aclose()

    run(main)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "reply",
    [
        OK + OK,
        OK + b"HTTP/1.1 200 OK\r\n",
        OK + b"H",
        OK + b"more than content-length says",
        OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") + b"and more",
    ],
    ids=lambda reply: repr(reply[-16:]),
)
def test_bytes_after_a_reply_are_not_taken_for_the_next_one(
    run: Callable[[Main], None], reply: bytes, stream: bool
) -> None:
    async def main() -> None:
        transport = HTTPTransport({})
        async with serve(answer_each(reply)) as server, asyncio.timeout(20):
            for count in (1, 2, 3):
                response = await post(transport, server.url, stream=stream)
                assert await response.read() == b"ok"
                assert server.connections == count
        await transport.aclose()

    run(main)


def test_a_large_stream_that_is_not_read_does_not_block_its_connection(
    run: Callable[[Main], None],
) -> None:
    size = 300 * 1024
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size

    async def main() -> None:
        transport = HTTPTransport({})
        async with serve(answer_each(reply)) as server:
            for _ in range(3):
                response = await post(transport, server.url, stream=True)
                await asyncio.sleep(0.05)
                await response.aclose()
            for stream in (False, True):
                response = await post(transport, server.url, stream=stream)
                assert len(await response.read()) == size
        await transport.aclose()

    run(main)


async def answer_once_and_close_on_the_next(
    server: RawServer, reader: asyncio.StreamReader, writer: Any
) -> None:
    """Closes as the second request of a connection arrives, as at the end of an idle time."""
    await server.read_request(reader)
    writer.write(OK)
    await server.read_request(reader)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_lost_with_an_idle_connection_is_sent_once_more(
    run: Callable[[Main], None], stream: bool
) -> None:
    async def main() -> None:
        transport = HTTPTransport({})
        async with serve(answer_once_and_close_on_the_next) as server:
            for _ in range(2):
                response = await post(transport, server.url, stream=stream)
                assert await response.read() == b"ok"
            assert (server.connections, len(server.requests)) == (2, 3)
        await transport.aclose()

    run(main)


def test_a_request_whose_reply_had_begun_is_not_sent_again(run: Callable[[Main], None]) -> None:
    async def handle(server: RawServer, reader: asyncio.StreamReader, writer: Any) -> None:
        await server.read_request(reader)
        writer.write(OK)
        await server.read_request(reader)
        writer.write(b"HTTP/1.1 200")

    async def main() -> None:
        transport = HTTPTransport({})
        async with serve(handle) as server:
            await post(transport, server.url)
            with pytest.raises(UpstreamError) as caught:
                await post(transport, server.url)
            assert caught.value.kind == "cut"
            assert len(server.requests) == 2
        await transport.aclose()

    run(main)


def test_an_idle_connection_that_was_closed_is_not_used(run: Callable[[Main], None]) -> None:
    async def handle(server: RawServer, reader: asyncio.StreamReader, writer: Any) -> None:
        await server.read_request(reader)
        writer.write(OK)

    async def main() -> None:
        transport = HTTPTransport({})
        async with serve(handle) as server:
            for count in (1, 2):
                await post(transport, server.url)
                await wait_until(lambda: not server.open)
                await asyncio.sleep(0.05)
                assert len(server.requests) == count
        await transport.aclose()

    run(main)


def test_nothing_listens() -> None:
    async def main() -> None:
        with pytest.raises(UpstreamError) as caught:
            await post(HTTPTransport({}), "http://127.0.0.1:1/v1")
        assert caught.value.kind == "connect"
        with pytest.raises(UpstreamError, match=r"host\.invalid: no connection"):
            await post(HTTPTransport({}), "http://host.invalid/v1")

    run_on("uvloop", main())


def test_a_tls_handshake_that_does_not_end_is_a_connect_timeout(
    run: Callable[[Main], None],
) -> None:
    async def main() -> None:
        transport = HTTPTransport({})
        async with serve(stall) as server:
            with pytest.raises(UpstreamError) as caught:
                await post(
                    transport, f"https://127.0.0.1:{server.port}/", timeouts=Timeouts(connect_s=0.1)
                )
            assert caught.value.kind == "timeout_connect"
            await wait_until(lambda: not server.open)

    run(main)


def test_handshakes_that_fail_leave_nothing_in_memory(run: Callable[[Main], None]) -> None:
    def open_connections() -> int:
        gc.collect()
        return sum(type(o) is Connection for o in gc.get_objects())

    async def refuse(server: RawServer, reader: asyncio.StreamReader, writer: Any) -> None:
        writer.write(b"not TLS")

    async def main() -> None:
        transport = HTTPTransport({})
        before = open_connections()
        async with serve(refuse) as server:
            for _ in range(10):
                with pytest.raises(UpstreamError):
                    await post(transport, f"https://127.0.0.1:{server.port}/")
        await wait_until(lambda: open_connections() <= before + 1)

    run(main)


def test_one_transport_serves_one_loop_after_another() -> None:
    transport = HTTPTransport({})

    async def main() -> None:
        async with serve(answer_each(OK)) as server:
            assert await (await post(transport, server.url)).read() == b"ok"
            await transport.aclose()

    for loop in ("asyncio", "uvloop", "asyncio"):
        run_on(loop, main())
    gc.collect()


@pytest.mark.parametrize(("ends", "connections"), [(True, 1), (False, 2)])
def test_a_drained_response_keeps_its_connection_if_it_ends_soon(
    run: Callable[[Main], None], ends: bool, connections: int
) -> None:
    async def handle(server: RawServer, reader: asyncio.StreamReader, writer: Any) -> None:
        while True:
            await server.read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nlast\r\n")
            await asyncio.sleep(0.05)
            if ends:
                writer.write(b"0\r\n\r\n")

    async def main() -> None:
        transport = HTTPTransport({})
        async with serve(handle) as server:
            response = await post(transport, server.url, stream=True)
            assert await response.read_chunk() == b"last"
            response.drain()
            await asyncio.sleep(0.2) if ends else await wait_until(lambda: not server.open)
            response = await post(transport, server.url, stream=True)
            assert await response.read_chunk() == b"last"
            assert server.connections == connections
            await response.aclose()
            await transport.aclose()

    run(main)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of connections that are not closed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_transport_outlives_a_loop_that_was_closed_without_it() -> None:
    transport = HTTPTransport({})

    async def main() -> None:
        async with serve(answer_each(OK)) as server:
            assert await (await post(transport, server.url)).read() == b"ok"

    for loop in ("asyncio", "uvloop", "asyncio"):
        run_on(loop, main())
    run_on("asyncio", transport.aclose())
    gc.collect()
