"""Which local model servers answer, and with which models."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec

from suffice.errors import UpstreamError
from suffice.providers.transport import HTTPTransport
from suffice.types import Provider


class _Row(msgspec.Struct):
    id: str


class _List(msgspec.Struct):
    data: list[_Row]


async def _models(transport: HTTPTransport, row: Provider, timeout_s: float) -> list[str]:
    headers: list[tuple[str, str]] = []
    if row.api_key:
        headers.append(("authorization", f"Bearer {row.api_key}"))
    response = await transport.get(row.base_url.rstrip("/") + "/models", headers, timeout_s)
    if response.status != 200:
        raise UpstreamError(f"{row.base_url} answered {response.status}.", kind="server")
    try:
        return [m.id for m in msgspec.json.decode(await response.read(), type=_List).data]
    except msgspec.DecodeError as error:
        raise UpstreamError(f"{row.base_url}/models: {error}", kind="malformed") from None


async def discover_local_models(
    providers: Iterable[Provider], timeout_s: float = 0.3
) -> dict[str, list[str]]:
    """Local servers that answer `GET /models`, with the names they serve. Never raises: a server
    that is not there is the usual case. Only loopback rows are asked."""
    transport = HTTPTransport()
    rows = [p for p in providers if p.local]
    try:
        found: list[Any] = await asyncio.gather(
            *(_models(transport, p, timeout_s) for p in rows), return_exceptions=True
        )
    finally:
        await transport.aclose()
    return {p.name: r for p, r in zip(rows, found, strict=True) if isinstance(r, list) and r}


async def check_provider(provider: Provider, timeout_s: float = 3.0) -> str | None:
    """None where the provider answers its model list, else what is wrong, for `suffice doctor`."""
    transport = HTTPTransport()
    try:
        await _models(transport, provider, timeout_s)
    except UpstreamError as error:
        return error.message
    finally:
        await transport.aclose()
    return None
