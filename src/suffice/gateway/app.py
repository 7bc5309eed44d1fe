"""The ASGI application: the chat endpoint as a plain callable, Starlette for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suffice.errors import SufficeError
from suffice.gateway.auth import Auth
from suffice.gateway.chat import AsgiReceive, AsgiSend, ChatEndpoint, Scope

if TYPE_CHECKING:
    from suffice.router import Router


class App:
    """An ASGI 3 application over a Router. Runs under any ASGI server."""

    def __init__(self, router: Router, *, keepalive_s: float = 15.0) -> None:
        from suffice.gateway.rest import create_rest

        auth = Auth(router.api_keys)
        limit = router.max_body_bytes
        self.router = router
        self._chat = ChatEndpoint(router, auth, max_body_bytes=limit, keepalive_s=keepalive_s)
        self._rest = create_rest(router, auth, max_body_bytes=limit)

    async def __call__(self, scope: Scope, receive: AsgiReceive, send: AsgiSend) -> None:
        if scope["type"] == "http":
            if scope["path"] == "/v1/chat/completions" and scope["method"] == "POST":
                await self._chat(scope, receive, send)
            else:
                await self._rest(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:  # a websocket: there is none here
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
    """The gateway over `router`. The app closes the router when its server shuts down."""
    return App(router, keepalive_s=keepalive_s)
