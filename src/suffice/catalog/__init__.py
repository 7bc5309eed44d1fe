"""Which models exist, what they can do and cost, and which can take a query.

Built-in rows come from `models.json`, which is built from genai-prices. The operator's config
overrides any field. An unknown value is None, and is shown as unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from suffice.errors import ModelNotFoundError
from suffice.pool import Pool
from suffice.types import ExcludedModel, Model, Price, RoutingOptions, Usage

__all__ = ["Catalog", "builtin_models", "lookup", "apply_overrides", "price_usd"]


class _Row(msgspec.Struct):
    name: str
    provider: str
    upstream: str
    input: float | None
    output: float | None
    cached: float | None
    cache_write: float | None
    context_tokens: int | None
    capabilities: list[str]
    quality: float
    first_chunk_s: float
    output_tokens_per_s: float


class _File(msgspec.Struct):
    source: str
    dated: str
    models: list[_Row]


def builtin_models() -> tuple[Model, ...]:
    """The models that ship with suffice, with dated list prices and rough priors."""
    raw = Path(__file__).with_name("models.json").read_bytes()
    data = msgspec.json.decode(raw, type=_File)
    return tuple(
        Model(
            name=r.name,
            provider=r.provider,
            upstream=r.upstream,
            price=Price(r.input, r.output, r.cached, r.cache_write, data.source, data.dated),
            context_tokens=r.context_tokens,
            capabilities=frozenset(r.capabilities),
            quality=r.quality,
            quality_source="catalog",
            first_chunk_s=r.first_chunk_s,
            output_tokens_per_s=r.output_tokens_per_s,
        )
        for r in data.models
    )


def lookup(provider: str, upstream: str) -> Model | None:
    """Look up a model that is not built in.

    The first call is slow; call it at start-up only.

    Returns:
        The model with its price and window by genai-prices; None if that does not know it either.
    """
    import datetime as dt

    from suffice.catalog import prices

    info = prices.find(provider, upstream)
    if info is None:
        return None
    return Model(
        name=f"{provider}/{upstream}",
        provider=provider,
        upstream=upstream,
        price=prices.price_of(info, dt.datetime.now(dt.UTC)),
        context_tokens=info.context_window,
    )


_MAX_CACHED = 1024
_PRICE_FIELDS = frozenset(Price.__struct_fields__) - {"source", "dated"}


def apply_overrides(base: Model, overrides: Mapping[str, Any]) -> Model:
    """Replace the fields of a model that the operator set; None overrides nothing."""
    fields = {k: v for k, v in overrides.items() if v is not None}
    prices = {k: fields.pop(k) for k in list(fields) if k in _PRICE_FIELDS}
    if prices:
        if "input_usd_per_mtok" in prices and "cached_input_usd_per_mtok" not in prices:
            prices["cached_input_usd_per_mtok"] = None  # the old discount is of the old price
        fields["price"] = msgspec.structs.replace(base.price, **prices, source="config", dated=None)
    if "capabilities" in fields:
        fields["capabilities"] = frozenset(fields["capabilities"])
    if "quality" in fields:
        fields["quality_source"] = "config"
    return msgspec.structs.replace(base, **fields)


def price_usd(model: Model, usage: Usage | None) -> float | None:
    """USD for `usage` at the model's list price; None if a price that is needed is unknown."""
    # input_tokens includes cached and cache-written tokens: each is billed once, at its own price.
    # Reasoning tokens are output tokens.
    if usage is None:
        return None
    p = model.price
    total = 0.0
    if usage.input_tokens:
        if p.input_usd_per_mtok is None:
            return None
        cached = min(usage.cached_input_tokens, usage.input_tokens)
        written = min(usage.cache_write_tokens, usage.input_tokens - cached)
        read_price, write_price = p.cached_input_usd_per_mtok, p.cache_write_usd_per_mtok
        total += (usage.input_tokens - cached - written) * p.input_usd_per_mtok
        total += cached * (p.input_usd_per_mtok if read_price is None else read_price)
        total += written * (p.input_usd_per_mtok if write_price is None else write_price)
    if usage.output_tokens:
        if p.output_usd_per_mtok is None:
            return None
        total += usage.output_tokens * p.output_usd_per_mtok
    return total / 1e6


class Catalog:
    """The models in use, by name.

    Args:
        models: with different names.
    """

    def __init__(self, models: Iterable[Model]) -> None:
        self._by_name = {m.name: m for m in models}
        self._all = Pool(tuple(self._by_name.values()))
        self._capable: dict[tuple[Pool, frozenset[str]], _Capable] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def names(self) -> tuple[str, ...]:
        """The full names of all models."""
        return tuple(self._by_name)

    def models(self) -> tuple[Model, ...]:
        """All models."""
        return self._all.models

    def get(self, name: str) -> Model:
        """Get a model by its full name, or by the upstream's name if only one provider has it.

        Returns:
            The model.

        Raises:
            ModelNotFoundError: with the nearest known names.
        """
        model = self._by_name.get(name)
        if model is not None:
            return model
        matches = [m for m in self._by_name.values() if m.upstream == name]
        if len(matches) != 1:
            raise ModelNotFoundError(name, self._by_name)
        return matches[0]

    def pool(self, models: Iterable[Model]) -> Pool:
        """The pool of these models, in their order: one object per selection."""
        return self._all.subset(models)

    def eligible(
        self,
        pool: Pool,
        *,
        required_capabilities: frozenset[str],
        input_tokens: int,
        max_output_tokens: int | None = None,
        options: RoutingOptions | None = None,
    ) -> tuple[Pool, tuple[ExcludedModel, ...]]:
        """Select the models that can take a query, by hard limits only.

        An unknown window or capability passes, unless the client set `require_parameters`.

        Args:
            pool: of this catalog.
            required_capabilities: without which the query cannot be answered.
            input_tokens: estimated.
            max_output_tokens: the client's limit; None = none.
            options: the client's allow-list, price ceiling and order of providers.

        Returns:
            The models that can take it, and the others with the reason.
        """
        strict = options is not None and options.require_parameters
        capable = self._filter_capabilities(pool, required_capabilities, strict)
        eligible, excluded = capable.pool, capable.excluded
        tokens = input_tokens + (max_output_tokens or 0)
        if tokens > capable.smallest_window:
            windows = [(m, m.context_tokens) for m in eligible.models]
            excluded += tuple(
                ExcludedModel(m.name, f"about {tokens} tokens do not fit its window of {window}")
                for m, window in windows
                if window is not None and tokens > window
            )
            eligible = pool.subset(m for m, window in windows if window is None or tokens <= window)
        if options is not None:
            eligible, excluded = _filter_options(eligible, excluded, options)
        return eligible, excluded

    def _filter_capabilities(self, pool: Pool, required: frozenset[str], strict: bool) -> _Capable:
        key = (pool, required)
        capable = None if strict else self._capable.get(key)
        if capable is None:
            capable = _filter_capabilities(pool, required, strict)
            if not strict:
                if len(self._capable) >= _MAX_CACHED:
                    self._capable.clear()
                self._capable[key] = capable
        return capable


class _Capable(NamedTuple):
    """The part of a pool that has the required capabilities."""

    pool: Pool
    excluded: tuple[ExcludedModel, ...]
    smallest_window: float  # tokens; infinite if no window is known


def _filter_capabilities(pool: Pool, required: frozenset[str], strict: bool) -> _Capable:
    capable: list[Model] = []
    excluded: list[ExcludedModel] = []
    for m in pool.models:
        missing = required - m.capabilities if m.capabilities is not None else frozenset()
        if missing:
            excluded.append(ExcludedModel(m.name, f"cannot do {', '.join(sorted(missing))}"))
        elif strict and required and m.capabilities is None:
            reason = "its capabilities are unknown and were required"
            excluded.append(ExcludedModel(m.name, reason))
        else:
            capable.append(m)
    windows = [m.context_tokens for m in capable if m.context_tokens is not None]
    return _Capable(pool.subset(capable), tuple(excluded), min(windows, default=inf))


def _filter_options(
    pool: Pool, excluded: tuple[ExcludedModel, ...], options: RoutingOptions
) -> tuple[Pool, tuple[ExcludedModel, ...]]:
    """Apply the client's allow-list, its price ceiling and its order of providers."""
    limits = (options.max_input_usd_per_mtok, options.max_output_usd_per_mtok)
    unlimited = options.only is None and not options.ignore and limits == (None, None)
    if unlimited and not options.order:
        return pool, excluded
    allowed: list[Model] = []
    refused: list[ExcludedModel] = []
    for m in pool.models:
        price = (m.price.input_usd_per_mtok, m.price.output_usd_per_mtok)
        over = [
            p is None or p > limit
            for p, limit in zip(price, limits, strict=True)
            if limit is not None
        ]
        if options.only is not None and m.provider not in options.only:
            refused.append(ExcludedModel(m.name, "provider.only leaves it out"))
        elif m.provider in options.ignore:
            refused.append(ExcludedModel(m.name, "provider.ignore names it"))
        elif any(over):
            reason = "its price is above provider.max_price, or unknown"
            refused.append(ExcludedModel(m.name, reason))
        else:
            allowed.append(m)
    if options.order:
        order = {name: i for i, name in enumerate(options.order)}
        allowed.sort(key=lambda m: order.get(m.provider, len(order)))
    return pool.subset(allowed), (*excluded, *refused)
