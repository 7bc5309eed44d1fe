"""Prices and windows out of the `genai-prices` package. Imported only where a name is looked up.

Its import takes about 50 ms and its records several MB, so the request path never comes here.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from suffice.types import Price

# Our provider names -> genai-prices' ids, where they differ.
_IDS = {"xai": "x-ai", "bedrock": "aws", "gemini": "google"}
# Azure's OpenAI surface serves OpenAI's models at OpenAI's list prices.
_ALSO = {"azure": "openai"}


def _usd(value: Any) -> float | None:
    if value is None:
        return None
    base = getattr(value, "base", value)  # tiered: the base tier, which short prompts pay
    return float(base)


def find(provider: str, upstream: str, when: dt.datetime | None = None) -> Any:
    """genai-prices' record of a model, or None."""
    from genai_prices.data import providers

    wanted = [_IDS.get(provider, provider)] + ([_ALSO[provider]] if provider in _ALSO else [])
    for row in providers:
        if row.id in wanted:
            for model in row.models:
                if model.id == upstream or model.is_match(upstream):
                    return model
    return None


def price_of(model: Any, when: dt.datetime) -> Price:
    """A genai-prices record as a Price, at the rates of `when` and of the base tier."""
    from importlib.metadata import version

    prices = model.get_prices(when)
    return Price(
        input_usd_per_mtok=_usd(prices.input_mtok),
        output_usd_per_mtok=_usd(prices.output_mtok),
        cached_input_usd_per_mtok=_usd(prices.cache_read_mtok),
        cache_write_usd_per_mtok=_usd(prices.cache_write_mtok),
        source=f"genai-prices {version('genai-prices')}",
        dated=when.date().isoformat(),
    )
