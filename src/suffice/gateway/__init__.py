"""The HTTP gateway: an ASGI app over a Router, and ways to run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from suffice.gateway.app import create_app
    from suffice.gateway.server import BackgroundServer, serve

__all__ = ["BackgroundServer", "create_app", "serve"]


def __getattr__(name: str) -> object:  # Starlette and Granian are heavy: import them when used
    if name == "create_app":
        from suffice.gateway.app import create_app

        return create_app
    if name in ("BackgroundServer", "serve"):
        from suffice.gateway import server

        return getattr(server, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
