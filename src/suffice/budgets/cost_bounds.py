"""What a call can cost at most, before it is made."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import msgspec

from suffice.types import Features, Model, Query

# Where nothing else bounds an answer, the call is sent with a limit of its own: what two hundredths
# of the day's budget pay for, within these; towards the budget's end what a quarter of the rest pays.
_SHARE, _LEAST_TOKENS, _MOST_TOKENS = 0.02, 4096, 16_384
_LEFT_SHARE, _SCARCE_TOKENS = 0.25, 1024
_MARGIN = 1.5  # of the estimated input: 2.7 characters a token, which code and tables keep to
_MESSAGE_TOKENS = 32  # what a chat template adds to a message, at most
_MEDIA_TOKENS = 4000  # of a picture or a recording
_MOST_CHOICES = 128

_decode_int = msgspec.json.Decoder(int).decode


class RequestSize(NamedTuple):
    """What a query brings along. most_input: input tokens that cannot be passed, since a token is at
    least one byte (pictures and recordings are estimated). likely_input: with a margin over the
    estimate. limit: output tokens that the client asked for at most; choices: how many answers."""

    most_input: int
    likely_input: float
    limit: int | None
    choices: int

    @classmethod
    def of(cls, query: Query, x: Features) -> RequestSize:
        fields, messages = query.fields, query.messages
        media = sum(m.images + m.audio for m in messages)
        if media:  # their bytes are no text
            size = sum(len(m.text.encode("utf-8", "surrogatepass")) for m in messages)
        else:
            size = _size(fields.get("messages"))
        for name in ("tools", "functions", "response_format"):
            size += _size(fields.get(name))
        return cls(
            size + _MESSAGE_TOKENS * (len(messages) + 1) + _MEDIA_TOKENS * media,
            _MARGIN * x.input_tokens,
            query.max_output_tokens,
            _choices(fields.get("n")),
        )


class CostBound(NamedTuple):
    """worst_usd: what a call can cost at most; NaN where the price is unknown. tokens: the limit of
    output tokens that it must be sent with for that, None = as the client sent it. why_not: why the
    model must not be called at all."""

    worst_usd: float
    tokens: int | None = None
    why_not: str | None = None


def bound(
    m: Model,
    size: RequestSize,
    *,
    usd_per_query: float | None = None,
    usd_per_day: float | None = None,
    usd_left: float = inf,
) -> CostBound:
    """The bound of a call of `m` under a limit for each query, a budget for the day of which
    `usd_left` is left, or both."""
    p = m.price
    if p.input_usd_per_mtok is None or p.output_usd_per_mtok is None:
        return CostBound(float("nan"), None, "its price is unknown, and money is limited here")
    each = p.output_usd_per_mtok * size.choices
    rate = max(p.input_usd_per_mtok, p.cache_write_usd_per_mtok or 0.0)
    prompt = size.most_input * rate / 1e6
    known = [t for t in (size.limit, m.max_output_tokens, m.context_tokens) if t is not None]
    most = own = min(known, default=2**31 - 1)
    if usd_per_day is not None and size.limit is None and m.max_output_tokens is None:
        share = affordable_tokens(_SHARE * usd_per_day, 0.0, each)
        rest = affordable_tokens(_LEFT_SHARE * usd_left, prompt, each)
        share = max(_LEAST_TOKENS, min(_MOST_TOKENS, share))
        most = min(most, max(_SCARCE_TOKENS, min(share, rest)))
    if usd_per_query is not None:
        likely = size.likely_input * p.input_usd_per_mtok / 1e6
        fits = affordable_tokens(usd_per_query, likely, each)
        if fits < 1 or (size.limit is not None and fits < most):
            tokens = 0 if size.limit is None else most
            usd = likely + tokens * each / 1e6
            return CostBound(
                usd, None, f"up to {dollars(usd)} is above {dollars(usd_per_query)} a query"
            )
        most = min(most, fits)
    return CostBound(prompt + most * each / 1e6, most if most < own else None)


def affordable_tokens(limit_usd: float, input_usd: float, output_usd_per_mtok: float) -> int:
    """Output tokens that a call may have so that it cannot cost more than `limit_usd`: what
    max_tokens must be capped at for a hard limit on a query. 0 where the input alone costs more.

    >>> affordable_tokens(0.01, 0.002, 10.0)
    800
    """
    if input_usd > limit_usd:
        return 0
    if output_usd_per_mtok <= 0.0:
        return 2**31 - 1
    return int(min((limit_usd - input_usd) / output_usd_per_mtok * 1e6 + 1e-6, 2**31 - 1))


def dollars(usd: float) -> str:
    """An amount for a sentence, never as an exponent.

    >>> dollars(7.349), dollars(0.00021), dollars(0.0)
    ('$7.35', '$0.00021', '$0.00')
    """
    if usd >= 0.995 or usd < 5e-10:
        return f"${usd:,.2f}"
    text = f"{float(f'{usd:.3g}'):.9f}".rstrip("0")
    return f"${text}"


def _size(raw: msgspec.Raw | None) -> int:
    return 0 if raw is None else memoryview(raw).nbytes


def _choices(raw: msgspec.Raw | None) -> int:
    if raw is None:
        return 1
    try:
        return max(1, min(_MOST_CHOICES, _decode_int(raw)))
    except msgspec.DecodeError:
        return 1  # the upstream will refuse it
