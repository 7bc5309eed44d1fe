"""The official OpenAI client, in-process: over our own ASGI app, without a server.

    client = Client("suffice.toml")
    client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "Hi"}])

It is the official client over the real gateway, so it cannot differ from either.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from suffice.errors import UsageError

try:
    import httpx2 as httpx  # what the official client itself speaks
    import openai
except ModuleNotFoundError as error:  # the official client is an extra: serving needs neither
    raise UsageError(
        f"suffice.Client needs the package {error.name!r}.",
        remedy="Install it with: pip install 'suffice[client]'",
    ) from None

if TYPE_CHECKING:
    from suffice.config import Settings
    from suffice.gateway.app import App
    from suffice.router import Router

T = TypeVar("T")
_END = None


class _Exchange:
    """One request through the ASGI app: body in, status and headers, then chunks of the body."""

    def __init__(self, app: App, request: httpx.Request, body: bytes) -> None:
        self._app = app
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path,
            "root_path": "",
            "query_string": request.url.query,
            "headers": [(k.lower(), v) for k, v in request.headers.raw],
            "server": (request.url.host, request.url.port),
            "client": ("127.0.0.1", 0),
            "state": {},
        }
        self._body: bytes | None = body
        self._closed = asyncio.Event()
        self._head: asyncio.Future[tuple[int, list[tuple[bytes, bytes]]]]
        self._head = asyncio.get_running_loop().create_future()
        self._chunks: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(64)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        except BaseException as error:
            if not self._head.done():
                self._head.set_exception(error)
            else:
                await self._chunks.put(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            await self._chunks.put(_END)

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._closed.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._head.set_result((message["status"], list(message["headers"])))
        elif message.get("body"):
            await self._chunks.put(message["body"])

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        return await asyncio.shield(self._head)

    async def chunk(self) -> bytes | None:
        """The next part of the body; None at its end."""
        item = await self._chunks.get()
        if isinstance(item, BaseException):
            raise item
        return item

    async def close(self) -> None:
        self._closed.set()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (chunk := await self._exchange.chunk()) is not None:
            yield chunk

    async def aclose(self) -> None:
        await self._exchange.close()


class AsyncAppTransport(httpx.AsyncBaseTransport):
    """httpx over an ASGI app in the caller's event loop, streaming as it goes."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request through the app."""
        exchange = _Exchange(self._app, request, await request.aread())
        status, headers = await exchange.head()
        return httpx.Response(status, headers=headers, stream=_AsyncBody(exchange))

    async def aclose(self) -> None:
        """Close the router."""
        await self._app.router.aclose()


class _LoopThread:
    """An event loop in a daemon thread, for callers without one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="suffice-client", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class _SyncBody(httpx.SyncByteStream):
    def __init__(self, thread: _LoopThread, exchange: _Exchange) -> None:
        self._thread = thread
        self._exchange = exchange

    def __iter__(self) -> Iterator[bytes]:
        while (chunk := self._thread.run(self._exchange.chunk())) is not None:
            yield chunk

    def close(self) -> None:
        self._thread.run(self._exchange.close())


class AppTransport(httpx.BaseTransport):
    """httpx over an ASGI app for synchronous callers: the app runs in a separate thread."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._thread = _LoopThread()
        self._closed = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request through the app."""

        async def begin(body: bytes) -> tuple[_Exchange, int, list[tuple[bytes, bytes]]]:
            exchange = _Exchange(self._app, request, body)
            return exchange, *(await exchange.head())

        exchange, status, headers = self._thread.run(begin(request.read()))
        return httpx.Response(status, headers=headers, stream=_SyncBody(self._thread, exchange))

    def close(self) -> None:
        """Close the router and end the thread. Idempotent."""
        if not self._closed:
            self._closed = True
            self._thread.run(self._app.router.aclose())
            self._thread.close()


def _app(config: str | Path | Settings | Router | None) -> App:
    from suffice.gateway.app import create_app
    from suffice.router import Router

    if isinstance(config, Router):
        return create_app(config)
    if config is None or isinstance(config, (str, Path)):
        return create_app(Router.from_config(config))
    return create_app(Router(config))


def _key(app: App) -> str:
    return next(iter(app.router.api_keys), "in-process")


class Client(openai.OpenAI):
    """`openai.OpenAI` over an in-process router. `close()` flushes its store."""

    def __init__(self, config: str | Path | Settings | Router | None = None, **kwargs: Any) -> None:
        """Build the router and the client over it.

        Args:
            config: path of a suffice.toml, Settings, or a Router; None = ./suffice.toml, else the
                environment.
            **kwargs: of `openai.OpenAI`.
        """
        app = _app(config)
        self.router = app.router
        kwargs.setdefault("api_key", _key(app))
        super().__init__(
            base_url="http://suffice.local/v1",
            http_client=httpx.Client(transport=AppTransport(app), timeout=None),
            **kwargs,
        )


class AsyncClient(openai.AsyncOpenAI):
    """`openai.AsyncOpenAI` over an in-process router, in the caller's event loop."""

    def __init__(self, config: str | Path | Settings | Router | None = None, **kwargs: Any) -> None:
        app = _app(config)
        self.router = app.router
        kwargs.setdefault("api_key", _key(app))
        super().__init__(
            base_url="http://suffice.local/v1",
            http_client=httpx.AsyncClient(transport=AsyncAppTransport(app), timeout=None),
            **kwargs,
        )
