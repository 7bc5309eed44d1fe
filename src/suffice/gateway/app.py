"""The ASGI application: the chat endpoint as a plain callable, Starlette for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suffice.errors import SufficeError
from suffice.gateway.auth import Auth
from suffice.gateway.chat import ChatEndpoint
from suffice.gateway.disconnect import AsgiReceive, AsgiSend, Scope

if TYPE_CHECKING:
    from suffice.router import Router


class App:
    """An ASGI 3 application over a Router. Runs under any ASGI server.

    Attributes:
        router: closed when the server shuts down.
    """

    def __init__(self, router: Router, *, keepalive_s: float = 15.0) -> None:
        from suffice.gateway.rest import create_api

        auth = Auth(router.api_keys)
        limit = router.max_body_bytes
        self.router = router
        self._chat = ChatEndpoint(router, auth, max_body_bytes=limit, keepalive_s=keepalive_s)
        self._api = create_api(router, auth, max_body_bytes=limit)

    async def __call__(self, scope: Scope, receive: AsgiReceive, send: AsgiSend) -> None:
        """Serve one request, or the server's start and shutdown."""
        if scope["type"] == "http":
            if scope["path"] == "/v1/chat/completions" and scope["method"] == "POST":
                await self._chat(scope, receive, send)
            else:
                await self._api(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:  # a websocket: no endpoint speaks it
            await send({"type": "websocket.close", "code": 1000})

    async def _lifespan(self, receive: AsgiReceive, send: AsgiSend) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    self.router.warm_up()
                    self.router.start_learning()
                    self.router.start_monitoring()
                except SufficeError as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.router.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return


def create_app(router: Router, *, keepalive_s: float = 15.0) -> App:
    """The gateway over a router.

    Args:
        router: the app closes it when its server shuts down.
        keepalive_s: a quiet stream gets a comment this often, so that no proxy cuts it.

    Returns:
        An ASGI application.
    """
    return App(router, keepalive_s=keepalive_s)
