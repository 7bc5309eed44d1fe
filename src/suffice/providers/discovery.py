"""Which model servers answer, and with which models."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from suffice.errors import UpstreamError
from suffice.providers.transport import HTTPTransport
from suffice.types import Provider


class _ModelRow(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ModelRow]


async def _list_models(transport: HTTPTransport, provider: Provider, timeout_s: float) -> list[str]:
    headers: list[tuple[str, str]] = []
    if provider.api_key:
        headers.append(("authorization", f"Bearer {provider.api_key}"))
    url = provider.base_url.rstrip("/") + "/models"
    response = await transport.get(url, headers, timeout_s)
    if response.status != 200:
        raise UpstreamError(f"{provider.base_url} answered {response.status}.", kind="server")
    try:
        models = msgspec.json.decode(await response.read(), type=_ModelList)
    except msgspec.DecodeError as error:
        raise UpstreamError(f"{url}: {error}", kind="malformed") from None
    return [row.id for row in models.data]


async def discover_local_models(
    providers: Iterable[Provider], timeout_s: float = 0.3
) -> dict[str, list[str]]:
    """Ask the providers on loopback for their models; one that does not answer is left out.

    Returns:
        The names that each provider serves.
    """
    transport = HTTPTransport()
    local = [provider for provider in providers if provider.local]
    try:
        results = await asyncio.gather(
            *(_list_models(transport, provider, timeout_s) for provider in local),
            return_exceptions=True,
        )
    finally:
        await transport.aclose()
    return {
        provider.name: models
        for provider, models in zip(local, results, strict=True)
        if isinstance(models, list) and models
    }


async def check_provider(provider: Provider, timeout_s: float = 3.0) -> str | None:
    """What is wrong with a provider, for `suffice doctor`; None if it lists its models."""
    transport = HTTPTransport()
    try:
        await _list_models(transport, provider, timeout_s)
    except UpstreamError as error:
        return error.message
    finally:
        await transport.aclose()
    return None
