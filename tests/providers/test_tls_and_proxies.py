"""TLS and proxies of the HTTP client."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable
from pathlib import Path
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
from suffice.providers.transport import HTTPTransport

CERTIFICATES = Path(__file__).parent / "certificates"
Main = Callable[[], Any]


@pytest.fixture(params=sorted(LOOPS))
def run(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    return lambda main: run_on(request.param, main())


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
    "proxy", ["https://127.0.0.1:1", "socks5://127.0.0.1:1", "http://[::1", "127.0.0.1:99999"]
)
def test_a_proxy_that_cannot_be_used_is_no_connection(
    run: Callable[[Main], None], proxy: str
) -> None:
    async def main() -> None:
        with pytest.raises(UpstreamError, match="proxy that the environment names") as caught:
            await post(HTTPTransport({"https": proxy}), "https://upstream.test/v1")
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
