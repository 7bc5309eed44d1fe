"""Upper bounds of what a call can cost, before it is made."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import msgspec

from suffice.types import Features, Model, Query

# If nothing else bounds an answer, the call is sent with an output limit: what this share of the daily
# budget pays for, between these numbers of tokens.
_SHARE, _MIN_TOKENS, _MAX_TOKENS = 0.02, 4096, 16_384
# Near the end of the budget: what this share of the remaining money pays for, but at least this.
_REMAINING_SHARE, _SCARCE_TOKENS = 0.25, 1024
_MARGIN = 1.5  # over the estimated input: 2.7 characters per token, which holds for code and tables
_MESSAGE_TOKENS = 32  # what a chat template adds to a message, at most
_MEDIA_TOKENS = 4000  # per image or audio part
_MAX_CHOICES = 128

_decode_int = msgspec.json.Decoder(int).decode


class RequestSize(NamedTuple):
    """How large a query is, for bounds of its cost."""

    max_input: int
    """Input tokens that cannot be exceeded, since a token has at least one byte. Images and audio are
    estimated."""
    likely_input: float
    """Input tokens with a margin over the estimate."""
    output_limit: int | None
    """Output tokens that the client limits the answer to."""
    choices: int
    """How many answers the client asks for."""

    @classmethod
    def of(cls, query: Query, features: Features) -> RequestSize:
        """Measure a query."""
        fields, messages = query.fields, query.messages
        media = sum(m.images + m.audio for m in messages)
        if media:  # the bytes of media are not text
            size = sum(len(m.text.encode("utf-8", "surrogatepass")) for m in messages)
        else:
            size = _byte_count(fields.get("messages"))
        for name in ("tools", "functions", "response_format"):
            size += _byte_count(fields.get(name))
        return cls(
            size + _MESSAGE_TOKENS * (len(messages) + 1) + _MEDIA_TOKENS * media,
            _MARGIN * features.input_tokens,
            query.max_output_tokens,
            _choices(fields.get("n")),
        )


class CostBound(NamedTuple):
    """What a call of one model can cost at most."""

    max_cost_usd: float
    """NaN if the price is unknown."""
    output_limit: int | None = None
    """Output tokens that the call must be limited to for that; `None` = as the client sent it."""
    refusal: str | None = None
    """Why the model must not be called at all."""


def cost_bound(
    model: Model,
    size: RequestSize,
    *,
    usd_per_query: float | None = None,
    usd_per_day: float | None = None,
    remaining_usd: float = inf,
) -> CostBound:
    """Bound the cost of a call under a limit per query, a daily budget, or both.

    Args:
        model: The model to call.
        size: The size of the request.
        usd_per_query: The most that a query may cost.
        usd_per_day: The daily budget.
        remaining_usd: What is left of it.

    Returns:
        The bound, with the output limit that makes it one.
    """
    price = model.price
    if price.input_usd_per_mtok is None or price.output_usd_per_mtok is None:
        return CostBound(float("nan"), None, "its price is unknown, and money is limited here")
    output_price = price.output_usd_per_mtok * size.choices
    input_price = max(price.input_usd_per_mtok, price.cache_write_usd_per_mtok or 0.0)
    input_usd = size.max_input * input_price / 1e6
    limits = (size.output_limit, model.max_output_tokens, model.context_tokens)
    known = [tokens for tokens in limits if tokens is not None]
    tokens = unlimited = min(known, default=2**31 - 1)
    if usd_per_day is not None and size.output_limit is None and model.max_output_tokens is None:
        share = affordable_tokens(_SHARE * usd_per_day, 0.0, output_price)
        scarce = affordable_tokens(_REMAINING_SHARE * remaining_usd, input_usd, output_price)
        share = max(_MIN_TOKENS, min(_MAX_TOKENS, share))
        tokens = min(tokens, max(_SCARCE_TOKENS, min(share, scarce)))
    if usd_per_query is not None:
        likely_usd = size.likely_input * price.input_usd_per_mtok / 1e6
        affordable = affordable_tokens(usd_per_query, likely_usd, output_price)
        if affordable < 1 or (size.output_limit is not None and affordable < tokens):
            billed = 0 if size.output_limit is None else tokens
            usd = likely_usd + billed * output_price / 1e6
            refusal = f"up to {format_usd(usd)} is above {format_usd(usd_per_query)} per query"
            return CostBound(usd, None, refusal)
        tokens = min(tokens, affordable)
    usd = input_usd + tokens * output_price / 1e6
    return CostBound(usd, tokens if tokens < unlimited else None)


def affordable_tokens(limit_usd: float, input_usd: float, output_usd_per_mtok: float) -> int:
    """Cap the output so that a call costs at most `limit_usd`.

    Returns:
        Output tokens; 0 if the input alone costs more.

    >>> affordable_tokens(0.01, 0.002, 10.0)
    800
    """
    if input_usd > limit_usd:
        return 0
    if output_usd_per_mtok <= 0.0:
        return 2**31 - 1
    return int(min((limit_usd - input_usd) / output_usd_per_mtok * 1e6 + 1e-6, 2**31 - 1))


def format_usd(usd: float) -> str:
    """Write an amount for a sentence.

    Returns:
        Text without an exponent.

    >>> format_usd(7.349), format_usd(0.00021), format_usd(0.0)
    ('$7.35', '$0.00021', '$0.00')
    """
    if usd >= 0.995 or usd < 5e-10:
        return f"${usd:,.2f}"
    text = f"{float(f'{usd:.3g}'):.9f}".rstrip("0")
    return f"${text}"


def _byte_count(raw: msgspec.Raw | None) -> int:
    return 0 if raw is None else memoryview(raw).nbytes


def _choices(raw: msgspec.Raw | None) -> int:
    if raw is None:
        return 1
    try:
        return max(1, min(_MAX_CHOICES, _decode_int(raw)))
    except msgspec.DecodeError:
        return 1  # the upstream will refuse it
