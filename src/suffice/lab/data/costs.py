"""What the outcomes of a table cost: its own costs, a price file, or list prices of the catalog."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.errors import UsageError
from suffice.lab.data.table import FloatArray, Table
from suffice.names import match_model
from suffice.types import Model

TYPICAL_OUTPUT_TOKENS = 300.0  # assumed if a table has no output tokens of a model
Prices = Mapping[str, tuple[float, float]]  # USD per million input and output tokens

# Hosts of open-weight models, tried in this order if a name has no provider.
_HOSTS = (
    "openai", "anthropic", "google", "mistral", "deepseek", "x-ai", "cohere", "together",
    "fireworks", "groq", "novita", "openrouter",
)  # fmt: skip


class OutcomeCosts(NamedTuple):
    """Costs of the outcomes of a table."""

    usd: FloatArray
    """(n, k) USD per outcome, NaN if unknown."""
    known: NDArray[np.bool_]
    """(k,) models of which some cost is known."""
    list_prices: dict[str, str]
    """Model -> price and its source, of models whose costs are not in the table."""


def outcome_costs(table: Table, prices: Prices | None = None) -> OutcomeCosts:
    """Price every outcome of a table.

    Models without any cost in the table are priced by their tokens: input tokens of the table or
    estimated from the text, output tokens of the table or `TYPICAL_OUTPUT_TOKENS`.

    Args:
        table: The outcomes.
        prices: Of the user; models that are not in it have the catalog's list prices.

    Returns:
        The costs and their sources.
    """
    n, k = table.score.shape
    usd = np.full((n, k), np.nan) if table.cost_usd is None else table.cost_usd.copy()
    list_prices: dict[str, str] = {}
    estimated_input: FloatArray | None = None
    for j in np.flatnonzero(np.isnan(usd).all(axis=0)).tolist():
        name = table.models[j]
        price = _find_price(name, prices)
        if price is None:
            continue
        input_tokens = _known_tokens(table.input_tokens, j)
        if input_tokens is None:
            if estimated_input is None:
                estimated_input = _estimate_input_tokens(table)
            input_tokens = estimated_input
        output_tokens = _known_tokens(table.output_tokens, j)
        if output_tokens is None:
            output_tokens = np.full(n, TYPICAL_OUTPUT_TOKENS)
        (usd_in, usd_out), source = price
        usd[:, j] = (input_tokens * usd_in + output_tokens * usd_out) / 1e6
        list_prices[name] = f"{usd_in:g}/{usd_out:g} ({source})"
    return OutcomeCosts(usd, np.asarray(~np.isnan(usd).all(axis=0)), list_prices)


def has_own_costs(table: Table) -> NDArray[np.bool_]:
    """(k,) whether the table itself holds costs of each model."""
    if table.cost_usd is None:
        return np.zeros(len(table.models), bool)
    return np.asarray(~np.isnan(table.cost_usd).all(axis=0))


def _known_tokens(tokens: FloatArray | None, column: int) -> FloatArray | None:
    """(n,) tokens of a model, its mean if a cell is empty; None if the table has none of it."""
    if tokens is None or np.isnan(tokens[:, column]).all():
        return None
    values = tokens[:, column]
    return np.asarray(np.where(np.isnan(values), np.nanmean(values), values))


def _estimate_input_tokens(table: Table) -> FloatArray:
    from suffice.features.signals import estimate_tokens

    return np.array([sum(estimate_tokens(m.text) for m in c) for c in table.messages])


def _find_price(name: str, prices: Prices | None) -> tuple[tuple[float, float], str] | None:
    """((USD per million input, output tokens), source) from the user's file, then the catalog."""
    if prices is not None:
        priced = list(prices)
        column = match_model(name, priced)
        if column is not None:
            return prices[priced[column]], "--prices"
    for model in _catalog_entries(name):
        price = model.price
        if price.input_usd_per_mtok is not None and price.output_usd_per_mtok is not None:
            source = f"{model.provider}, {price.source}"
            return (price.input_usd_per_mtok, price.output_usd_per_mtok), source
    return None


def _catalog_entries(name: str) -> Iterator[Model]:
    """Catalog entries that `name` may mean, the most likely first."""
    from suffice.catalog import builtin_models, lookup

    bare = name.rsplit("/", 1)[-1]
    for model in builtin_models():
        if model.name == name or model.upstream.lower() == bare.lower():
            yield model
    pairs = [(name.split("/", 1)[0], name.split("/", 1)[1])] if "/" in name else []
    pairs += [(host, upstream) for host in _HOSTS for upstream in dict.fromkeys((name, bare))]
    for provider, upstream in pairs:
        entry = lookup(provider, upstream)
        if entry is not None:
            yield entry


class _PriceRow(msgspec.Struct):
    input_usd_per_mtok: float
    output_usd_per_mtok: float


def read_prices(path: Path) -> dict[str, tuple[float, float]]:
    """Read prices from a JSON file.

    The file holds {"model": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0}}, also under a
    top-level "models".

    Args:
        path: Of the file.

    Returns:
        Model -> USD per million input and output tokens.

    Raises:
        UsageError: If the file cannot be read or a price is negative.
    """
    try:
        raw = msgspec.json.decode(path.read_bytes())
        if isinstance(raw, dict) and isinstance(raw.get("models"), dict):
            raw = raw["models"]
        rows = msgspec.convert(raw, dict[str, _PriceRow])
    except OSError as error:
        raise UsageError(f"--prices {path}: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--prices {path}: {error}.",
            remedy='Expected {"model": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0}}.',
        ) from None
    for model, row in rows.items():
        if min(row.input_usd_per_mtok, row.output_usd_per_mtok) < 0:
            raise UsageError(f"--prices {path}: the price of {model!r} is negative.")
    return {m: (r.input_usd_per_mtok, r.output_usd_per_mtok) for m, r in rows.items()}
