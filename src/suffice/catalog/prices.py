"""Prices and windows by the package `genai-prices`. Imported only when a name is looked up.

Its import takes about 50 ms and its records several MB, so the request path does not import it.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

from genai_prices.data import providers
from genai_prices.types import ModelInfo, TieredPrices

from suffice.types import Price

# Our provider names -> the ids of genai-prices, if they differ.
_IDS = {"xai": "x-ai", "bedrock": "aws", "gemini": "google"}
# Azure serves OpenAI's models at OpenAI's list prices.
_ALSO = {"azure": "openai"}


def _usd(value: Decimal | TieredPrices | None) -> float | None:
    if isinstance(value, TieredPrices):
        value = value.base  # what short prompts pay
    return None if value is None else float(value)


def find(provider: str, upstream: str) -> ModelInfo | None:
    """The record of a model; None if it is unknown."""
    ids = [_IDS.get(provider, provider)] + ([_ALSO[provider]] if provider in _ALSO else [])
    for row in providers:
        if row.id in ids:
            for model in row.models:
                if model.id == upstream or model.is_match(upstream):
                    return model
    return None


def price_of(model: ModelInfo, when: dt.datetime) -> Price:
    """The price of a record at a time, in the base tier."""
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
