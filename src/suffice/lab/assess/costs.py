"""What each model costs on each query, from the best source the table offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from suffice.lab.assess.traffic_profile import signal_column
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.predictors.base import Batch
from suffice.policies.priors import output_tokens
from suffice.types import Model, Price

# The providers whose list price applies if a table names a model without its provider.
_MAKERS = ("openai", "anthropic", "google", "mistral", "deepseek", "xai", "cohere")


class Costs(NamedTuple):
    """Costs of n queries on k models."""

    cost: FloatArray | None
    """(n, k), never NaN; None if it is not known for every model."""
    unit: str | None
    """"usd" | "output_tokens" | None."""
    source: str
    """In words."""


def costs_of(
    table: Table, batch: Batch, difficulty: FloatArray, priced: Sequence[Model] = ()
) -> Costs:
    """The cost of each model on each query, from the best source that covers every model.

    In this order: the table's own USD; list prices times tokens (estimated if the table has none);
    output tokens alone; nothing. Sources are never mixed, because that would order models by source.

    Args:
        table: The table.
        batch: Features of its queries.
        difficulty: (n,) difficulty of each query, for estimated output tokens.
        priced: Models whose prices come before the catalog's, as the operator configured them.

    Returns:
        The costs.
    """
    if table.cost_usd is not None and _covers_every_model(table.cost_usd):
        return Costs(_impute_means(table.cost_usd), "usd", "the table's cost_usd")
    prices = [price_of(name, priced) for name in table.models]
    if all(p is not None for p in prices) and prices:
        return _from_list_prices(
            table, batch, difficulty, np.array([p for p in prices if p is not None])
        )
    if table.output_tokens is not None and _covers_every_model(table.output_tokens):
        return Costs(
            _impute_means(table.output_tokens),
            "output_tokens",
            "output tokens, since not every model has a cost or a known price",
        )
    unpriced = [m for m, p in zip(table.models, prices, strict=True) if p is None]
    shown = ", ".join(unpriced[:3]) + (
        f" and {len(unpriced) - 3} more" if len(unpriced) > 3 else ""
    )
    return Costs(None, None, f"unknown: no cost_usd in the table and no list price for {shown}")


def _from_list_prices(
    table: Table, batch: Batch, difficulty: FloatArray, usd_per_mtok: FloatArray
) -> Costs:
    """List prices times tokens. usd_per_mtok: (k, 2), input and output."""
    shape = (len(table), len(table.models))
    estimated = []
    if table.input_tokens is not None and _covers_every_model(table.input_tokens):
        input_tokens = _impute_means(table.input_tokens)
    else:
        prompt = np.expm1(signal_column(batch, "log_prompt_tokens"))
        input_tokens = np.broadcast_to(prompt[:, None], shape)
        estimated.append("input")
    if table.output_tokens is not None and _covers_every_model(table.output_tokens):
        written_tokens = _impute_means(table.output_tokens)
    else:
        predicted = np.array([output_tokens(u, None) for u in difficulty.tolist()], float)
        written_tokens = np.broadcast_to(predicted[:, None], shape)
        estimated.append("output")
    cost = (input_tokens * usd_per_mtok[:, 0] + written_tokens * usd_per_mtok[:, 1]) / 1e6
    note = f" ({' and '.join(estimated)} tokens estimated)" if estimated else ""
    return Costs(cost, "usd", f"list prices x tokens{note}")


def _covers_every_model(values: FloatArray) -> bool:
    return bool((~np.isnan(values)).any(axis=0).all())


def _impute_means(values: FloatArray) -> FloatArray:
    """Replace unknown cells by their model's mean."""
    return np.where(np.isnan(values), np.nanmean(values, axis=0), values)


def price_of(name: str, priced: Sequence[Model] = ()) -> tuple[float, float] | None:
    """The list price of a model.

    Args:
        name: The model, with or without its provider.
        priced: The operator's models, which come before the built-in catalog and genai-prices.

    Returns:
        (input, output) USD per million tokens; None if no source knows the name.
    """
    from suffice import catalog

    for models in (priced, catalog.builtin_models()):
        for m in models:
            if name in (m.name, m.upstream) and (known := _known_price(m.price)):
                return known
    provider, _, upstream = name.partition("/")
    names = [(provider, upstream)] if upstream else [(maker, name) for maker in _MAKERS]
    for maker, model_name in names:
        model = catalog.lookup(maker, model_name)
        if model is not None and (known := _known_price(model.price)):
            return known
    return None


def _known_price(price: Price) -> tuple[float, float] | None:
    if price.input_usd_per_mtok is None or price.output_usd_per_mtok is None:
        return None
    return price.input_usd_per_mtok, price.output_usd_per_mtok
