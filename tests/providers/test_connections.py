"""Connections of the HTTP client: reuse, loss, cancellation, deadlines, TLS and proxies."""

from __future__ import annotations

import asyncio
import base64
import gc
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.raw_http import LOOPS, OK, RawServer, answer_each, run_on, serve

from suffice.errors import UpstreamError
from suffice.providers.transport import HTTPTransport
from suffice.transport import Response
from suffice.types import Timeouts

CERTIFICATES = Path(__file__).parent / "certificates"
Main = Callable[[], Any]


@pytest.fixture(params=sorted(LOOPS))
def run(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    return lambda main: run_on(request.param, main())


async def post(
    transport: HTTPTransport, url: str, *, stream: bool = False, timeouts: Timeouts | None = None
) -> Response:
    return await transport.send(url, [], b"{}", stream=stream, timeouts=timeouts or Timeouts())


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10.0):
        while not condition():
            await asyncio.sleep(0.005)


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


def test_bytes_after_a_reply_are_not_taken_for_the_next_one(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        transport = HTTPTransport({})
        async with serve(answer_each(OK + OK)) as server:
            for count in (1, 2, 3):
                assert await (await post(transport, server.url)).read() == b"ok"
                assert server.connections == count
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


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of connections that nobody closed
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


# TLS


def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "localhost.pem")
    return context


@pytest.mark.parametrize("stream", [False, True])
def test_tls_with_a_trusted_certificate(
    run: Callable[[Main], None], monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "ca.pem"))

    async def main() -> None:
        transport = HTTPTransport({})
        async with serve(answer_each(OK), server_tls()) as server:
            for _ in range(2):
                url = f"https://localhost:{server.port}/v1"
                response = await post(transport, url, stream=stream)
                assert await response.read() == b"ok"
            assert server.connections == 1
            await transport.aclose()
            await wait_until(lambda: not server.open)

    run(main)


@pytest.mark.parametrize(
    ("host", "trusted", "reason"),
    [("127.0.0.1", True, "not valid for '127.0.0.1'"), ("localhost", False, "self-signed|issuer")],
)
def test_a_certificate_that_does_not_hold_is_no_connection(
    run: Callable[[Main], None],
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    trusted: bool,
    reason: str,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / ("ca.pem" if trusted else "none.pem")))

    async def main() -> None:
        transport = HTTPTransport({})
        async with serve(answer_each(OK), server_tls()) as server:
            with pytest.raises(UpstreamError, match=reason) as caught:
                await post(transport, f"https://{host}:{server.port}/v1")
            assert caught.value.kind == "connect"
            assert not server.requests

    run(main)


# Proxies


def test_a_plain_request_goes_through_the_proxy_whole(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        async with serve(answer_each(OK)) as proxy:
            transport = HTTPTransport({"http": f"http://me:s%20t@127.0.0.1:{proxy.port}"})
            await post(transport, "http://models.example:81/v1/x?y=1")
            head = proxy.requests[0].decode()
            login = base64.b64encode(b"me:s t").decode()
            assert head.startswith("POST http://models.example:81/v1/x?y=1 HTTP/1.1\r\n")
            assert "host: models.example:81\r\n" in head
            assert f"proxy-authorization: Basic {login}\r\n" in head
            await transport.aclose()

    run(main)


def test_tls_goes_through_a_tunnel_of_the_proxy(
    run: Callable[[Main], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "ca.pem"))

    async def main() -> None:
        async with serve(answer_each(OK), server_tls()) as server:

            async def tunnel(proxy: RawServer, reader: asyncio.StreamReader, writer: Any) -> None:
                await proxy.read_request(reader)
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                upstream, upstream_writer = await asyncio.open_connection("127.0.0.1", server.port)

                async def copy(source: asyncio.StreamReader, sink: Any) -> None:
                    while data := await source.read(65536):
                        sink.write(data)
                    sink.close()

                await asyncio.gather(copy(reader, upstream_writer), copy(upstream, writer))

            async with serve(tunnel) as proxy:
                transport = HTTPTransport({"https": f"http://127.0.0.1:{proxy.port}"})
                response = await post(transport, f"https://localhost:{server.port}/v1/x")
                assert await response.read() == b"ok"
                assert proxy.requests[0].startswith(b"CONNECT localhost:%d HTTP/1.1" % server.port)
                assert server.requests[0].startswith(b"POST /v1/x HTTP/1.1\r\n")
                await transport.aclose()
                await wait_until(lambda: not server.open and not proxy.open)

    run(main)


def test_a_proxy_that_refuses_is_no_connection(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        async with serve(answer_each(b"HTTP/1.1 407 Authenticate\r\n\r\n")) as proxy:
            transport = HTTPTransport({"https": f"http://127.0.0.1:{proxy.port}"})
            with pytest.raises(UpstreamError) as caught:
                await post(transport, "https://models.example/v1")
            assert caught.value.kind == "connect"

    run(main)


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        ("*", "http://127.0.0.1:{}/"),
        ("example.org, 127.0.0.1", "http://127.0.0.1:{}/"),
        ("127.0.0.0/8", "http://127.0.0.1:{}/"),
        (".localhost", "http://localhost:{}/"),
    ],
)
def test_no_proxy_names_hosts_that_are_reached_directly(no_proxy: str, url: str) -> None:
    async def main() -> None:
        transport = HTTPTransport({"http": "http://127.0.0.1:1", "no": no_proxy})
        async with serve(answer_each(OK)) as server:
            assert (await post(transport, url.format(server.port))).status == 200
            await transport.aclose()

    run_on("uvloop", main())
