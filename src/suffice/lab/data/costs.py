"""TODO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.errors import UsageError
from suffice.lab.data.table import FloatArray, Table
from suffice.names import match_model
from suffice.types import Model

TYPICAL_OUTPUT_TOKENS = 300.0  # assumed where a table knows no output tokens of a model


Prices = Mapping[str, tuple[float, float]]  # USD per million input and output tokens


def price_outcomes(
    table: Table, prices: Prices | None = None
) -> tuple[FloatArray, NDArray[np.bool_], dict[str, str]]:
    """(USD of each cell (n, k), NaN where unknown; which models have a known cost (k,); price
    and source of each model whose cost does not come from the table)."""
    n, k = table.score.shape
    cost = np.full((n, k), np.nan) if table.cost_usd is None else table.cost_usd.copy()
    notes: dict[str, str] = {}
    bare = [j for j in range(k) if np.isnan(cost[:, j]).all()]
    typed: FloatArray | None = None
    for j in bare:
        name = table.models[j]
        found = _price(name, prices)
        if found is None:
            continue
        if typed is None:
            typed = _input_tokens(table)
        tokens_in = _known(table.input_tokens, j)
        tokens_in = typed if tokens_in is None else tokens_in
        tokens_out = _known(table.output_tokens, j)
        if tokens_out is None:
            tokens_out = np.full(n, TYPICAL_OUTPUT_TOKENS)
        (usd_in, usd_out), source = found
        cost[:, j] = (tokens_in * usd_in + tokens_out * usd_out) / 1e6
        notes[name] = f"{usd_in:g}/{usd_out:g} ({source})"
    return cost, np.asarray(~np.isnan(cost).all(axis=0)), notes


def has_own_costs(table: Table) -> NDArray[np.bool_]:
    """(k,) whether the table itself holds costs of each model."""
    if table.cost_usd is None:
        return np.zeros(len(table.models), bool)
    return np.asarray(~np.isnan(table.cost_usd).all(axis=0))


def _known(tokens: FloatArray | None, column: int) -> FloatArray | None:
    """(n,) tokens of a model: as the table has them, its mean where a cell is empty; None where it
    has none."""
    if tokens is None or np.isnan(tokens[:, column]).all():
        return None
    t = tokens[:, column]
    return np.asarray(np.where(np.isnan(t), np.nanmean(t), t))


def _input_tokens(table: Table) -> FloatArray:
    from suffice.features.signals import estimate_tokens

    return np.array([sum(estimate_tokens(m.text) for m in c) for c in table.messages])


def _price(name: str, prices: Prices | None) -> tuple[tuple[float, float], str] | None:
    """((USD per million input, output tokens), source) from the user's file, then the catalog."""
    if prices is not None:
        priced = list(prices)
        column = match_model(name, priced)
        if column is not None:
            return prices[priced[column]], "--prices"
    for model in _catalogued(name):
        p = model.price
        if p.input_usd_per_mtok is not None and p.output_usd_per_mtok is not None:
            where = f"{model.provider}, {p.source}"
            return (p.input_usd_per_mtok, p.output_usd_per_mtok), where
    return None


# Who sells open-weight models, asked in this order where a name says no provider.
_SELLERS = (
    "openai", "anthropic", "google", "mistral", "deepseek", "x-ai", "cohere", "together",
    "fireworks", "groq", "novita", "openrouter",
)  # fmt: skip


def _catalogued(name: str) -> Iterator[Model]:
    from suffice.catalog import builtin_models, lookup

    tail = name.rsplit("/", 1)[-1]
    for model in builtin_models():
        if model.name == name or model.upstream.lower() == tail.lower():
            yield model
    if "/" in name:
        found = lookup(*name.split("/", 1))
        if found is not None:
            yield found
    for seller in _SELLERS:
        for asked in dict.fromkeys((name, tail)):
            found = lookup(seller, asked)
            if found is not None:
                yield found


class _PriceRow(msgspec.Struct):
    input_usd_per_mtok: float
    output_usd_per_mtok: float


def read_prices(path: Path) -> dict[str, tuple[float, float]]:
    """{"model": {"input_usd_per_mtok": .., "output_usd_per_mtok": ..}} from a JSON file, also under
    a top-level "models". Raises UsageError."""
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
    bad = [m for m, r in rows.items() if min(r.input_usd_per_mtok, r.output_usd_per_mtok) < 0]
    if bad:
        raise UsageError(f"--prices {path}: the price of {bad[0]!r} is negative.")
    return {m: (r.input_usd_per_mtok, r.output_usd_per_mtok) for m, r in rows.items()}
