"""Opens connections to upstreams: addresses, TLS, and the proxies of the environment."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Callable, Mapping
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from suffice.errors import UpstreamError
from suffice.providers.http1 import Connection

_NEXT_ADDRESS_S = 0.25  # until the next address of a host is tried as well (RFC 8305, section 5)
_KEEPALIVE_S = 30
_MAX_CONNECT_REPLY = 8192


class Origin(msgspec.Struct, frozen=True):
    """A server, and how it is reached. Requests to equal origins share connections."""

    host: str
    port: int
    secure: bool
    netloc: str
    proxy: tuple[str, int] | None = None
    proxy_header: str = ""  # of each plain request to a proxy
    request_prefix: str = ""  # before the path: scheme and host, if a proxy must know them


class Connector:
    """Opens connections.

    Args:
        proxies: as `urllib.request.getproxies_environment` returns them.
    """

    def __init__(self, proxies: Mapping[str, str]) -> None:
        self._proxies = dict(proxies)
        self._tls: ssl.SSLContext | None = None

    def tls_context(self) -> ssl.SSLContext:
        """The context that verifies all upstreams: the system's certificates, or SSL_CERT_FILE."""
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    def origin(self, url: SplitResult) -> Origin:
        """Take an http(s) URL apart.

        Returns:
            The origin, with the proxy of the environment.

        Raises:
            ValueError: The port is not valid.
            UpstreamError: The proxy cannot be used.
        """
        host = url.hostname or ""
        secure = url.scheme == "https"
        port = url.port or (443 if secure else 80)
        netloc = url.netloc.rpartition("@")[2]
        proxy_url = self._proxies.get(url.scheme) or self._proxies.get("all")
        if not proxy_url or _bypasses_proxy(self._proxies.get("no", ""), host, netloc):
            return Origin(host, port, secure, netloc)
        try:
            proxy = urlsplit(proxy_url if "://" in proxy_url else f"http://{proxy_url}")
            address = (proxy.hostname or "", proxy.port or 80)
            if proxy.scheme != "http" or not proxy.hostname:
                raise ValueError("only http:// proxies are supported")
        except ValueError as error:
            message = f"{netloc}: the proxy that the environment names cannot be used: {error}."
            raise UpstreamError(message, kind="connect") from None
        header = ""
        if proxy.username is not None:
            login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
            token = base64.b64encode(login.encode()).decode()
            header = f"proxy-authorization: Basic {token}\r\n"
        prefix = "" if secure else f"http://{netloc}"
        return Origin(host, port, secure, netloc, address, header, prefix)

    async def connect(
        self, origin: Origin, new_connection: Callable[[], Connection], timeout_s: float
    ) -> Connection:
        """Open a connection within `timeout_s`, TLS included. Raises UpstreamError."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                sock = await _open_socket(*(origin.proxy or (origin.host, origin.port)))
                try:
                    if origin.proxy is not None and origin.secure:
                        await _open_tunnel(sock, origin)
                    _, connection = await loop.create_connection(
                        new_connection,
                        sock=sock,
                        ssl=self.tls_context() if origin.secure else None,
                        server_hostname=origin.host if origin.secure else None,
                    )
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError:
            raise UpstreamError(
                f"{origin.netloc}: no connection in time.", kind="timeout_connect"
            ) from None
        except (OSError, UnicodeError) as error:
            detail = ""
            if isinstance(error, ssl.SSLCertVerificationError):
                detail = f" ({error.verify_message})"
            raise UpstreamError(
                f"{origin.netloc}: no connection{detail}.", kind="connect"
            ) from None
        return connection


def _bypasses_proxy(no_proxy: str, host: str, netloc: str) -> bool:
    """Whether NO_PROXY names the host: itself, a domain above it, a network, or `*`."""
    for pattern in (part.strip().lower().lstrip(".") for part in no_proxy.split(",")):
        if not pattern:
            continue
        if pattern in ("*", host, netloc) or host.endswith(f".{pattern}"):
            return True
        with contextlib.suppress(ValueError):  # not an address, or not a network
            if ipaddress.ip_address(host) in ipaddress.ip_network(pattern):
                return True
    return False


async def _open_socket(host: str, port: int) -> socket.socket:
    """A connected socket: addresses are tried in order, each a little after the one before."""
    loop = asyncio.get_running_loop()
    addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if len(addresses) == 1:
        return await _connect_socket(addresses[0])
    attempts: set[asyncio.Task[socket.socket]] = set()
    errors: list[BaseException] = []
    try:
        for position, address in enumerate(addresses, 1):
            attempts.add(loop.create_task(_connect_socket(address)))
            delay_s = None if position == len(addresses) else _NEXT_ADDRESS_S
            while attempts:
                done, attempts = await asyncio.wait(
                    attempts, timeout=delay_s, return_when=asyncio.FIRST_COMPLETED
                )
                connected = [attempt for attempt in done if attempt.exception() is None]
                if connected:
                    for spare in connected[1:]:
                        spare.result().close()
                    return connected[0].result()
                errors += [error for attempt in done if (error := attempt.exception())]
                if delay_s is not None:
                    break
    finally:
        for attempt in attempts:
            attempt.add_done_callback(_close_result)
            attempt.cancel()
    raise errors[0] if errors else OSError(f"{host} has no address")


def _close_result(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


_Address = tuple[
    int, int, int, str, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
]


async def _connect_socket(address: _Address) -> socket.socket:
    family, kind, protocol, _, sockaddr = address
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
        await asyncio.get_running_loop().sock_connect(sock, sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


async def _open_tunnel(sock: socket.socket, origin: Origin) -> None:
    """Ask a proxy for a connection to the origin. Raises ConnectionError if it refuses."""
    loop = asyncio.get_running_loop()
    target = f"{f'[{origin.host}]' if ':' in origin.host else origin.host}:{origin.port}"
    request = f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n{origin.proxy_header}\r\n"
    await loop.sock_sendall(sock, request.encode())
    reply = b""
    while b"\r\n\r\n" not in reply:
        data = await loop.sock_recv(sock, 1)
        if not data or len(reply) > _MAX_CONNECT_REPLY:
            raise ConnectionError("the proxy closed the connection")
        reply += data
    if reply.split(b" ", 2)[1:2] != [b"200"]:
        raise ConnectionError(f"the proxy answered {reply.splitlines()[0]!r}")
