"""What each model costs on each query, from the best source the table offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from suffice.lab.assess.traffic_profile import column
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.predictors.base import Batch
from suffice.policies.priors import output_tokens
from suffice.types import Model

# Where a table names a model without its provider: whose list price it then has.
_MAKERS = ("openai", "anthropic", "google", "mistral", "deepseek", "xai", "cohere")


class Costs(NamedTuple):
    """cost: (n, k), never NaN, or None where it is not known for every model. unit: "usd" |
    "output_tokens" | None. source: in words."""

    cost: FloatArray | None
    unit: str | None
    source: str


def costs_of(
    table: Table, batch: Batch, difficulty: FloatArray, priced: Sequence[Model] = ()
) -> Costs:
    """In this order: the table's own USD; list prices times tokens (those the table lacks are
    estimated); output tokens alone; nothing. Each only where it is known for every model, since a
    mixture of sources would order models by source. priced: models whose prices come first, as
    the operator configured them."""
    if table.cost_usd is not None and _every_model(table.cost_usd):
        return Costs(_filled(table.cost_usd), "usd", "the table's cost_usd")
    prices = [price_of(name, priced) for name in table.models]
    if all(p is not None for p in prices) and prices:
        return _listed(table, batch, difficulty, np.array([p for p in prices if p is not None]))
    if table.output_tokens is not None and _every_model(table.output_tokens):
        return Costs(
            _filled(table.output_tokens),
            "output_tokens",
            "output tokens, since not every model has a cost or a known price",
        )
    lacking = [m for m, p in zip(table.models, prices, strict=True) if p is None]
    shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
    return Costs(None, None, f"unknown: no cost_usd in the table and no list price for {shown}")


def _listed(table: Table, batch: Batch, difficulty: FloatArray, usd_per_mtok: FloatArray) -> Costs:
    """usd_per_mtok: (k, 2), input and output."""
    shape = (len(table), len(table.models))
    estimated = []
    if table.input_tokens is not None and _every_model(table.input_tokens):
        read = _filled(table.input_tokens)
    else:
        prompt = np.expm1(column(batch, "log_prompt_tokens"))
        read = np.broadcast_to(prompt[:, None], shape)
        estimated.append("input")
    if table.output_tokens is not None and _every_model(table.output_tokens):
        written = _filled(table.output_tokens)
    else:
        guess = np.array([output_tokens(u, None) for u in difficulty.tolist()], float)
        written = np.broadcast_to(guess[:, None], shape)
        estimated.append("output")
    cost = (read * usd_per_mtok[:, 0] + written * usd_per_mtok[:, 1]) / 1e6
    said = f" ({' and '.join(estimated)} tokens estimated)" if estimated else ""
    return Costs(cost, "usd", f"list prices x tokens{said}")


def _every_model(values: FloatArray) -> bool:
    return bool((~np.isnan(values)).any(axis=0).all())


def _filled(values: FloatArray) -> FloatArray:
    """Unknown cells take their model's mean."""
    return np.where(np.isnan(values), np.nanmean(values, axis=0), values)


def price_of(name: str, priced: Sequence[Model] = ()) -> tuple[float, float] | None:
    """(input, output) USD per million tokens by the operator's models, the built-in catalog, then
    genai-prices; None where none knows the name."""
    from suffice import catalog

    for models in (priced, catalog.builtin_models()):
        for m in models:
            if name in (m.name, m.upstream):
                i, o = m.price.input_usd_per_mtok, m.price.output_usd_per_mtok
                if i is not None and o is not None:
                    return i, o
    provider, _, upstream = name.partition("/")
    ways = [(provider, upstream)] if upstream else [(maker, name) for maker in _MAKERS]
    for maker, rest in ways:
        found = catalog.lookup(maker, rest)
        if found is not None:
            i, o = found.price.input_usd_per_mtok, found.price.output_usd_per_mtok
            if i is not None and o is not None:
                return i, o
    return None
