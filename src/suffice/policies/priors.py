"""What to expect of a model on a query from priors alone: quality, cost, latency.

Nothing here is learned. Quality comes from each model's prior and the query's difficulty. It is
called a prior wherever it is shown, and promises nothing (docs/concepts/policies.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from math import expm1, log1p

from suffice.types import Candidate, Features, Model

SLOPE = 0.1  # how much more a weaker model lacks per standard deviation of log length, at most
FULL_GAP = 0.25  # the gap of mean qualities at which that is reached
GRID = 200  # difficulty quantiles are looked up in GRID + 1 steps
IRREDUCIBLE_FAILURE = 0.1  # the part of a model's failures that the easiest query still has
MAX_EXPONENT = 3.0  # the other failures grow with difficulty to at most this power

# The default score is the log length of the last user message: the only thing that public benchmarks
# reliably support (docs/concepts/policies.md). The length of a message of one line says little, so
# its score is adjusted by what the message plainly is. From two lines on length decides alone: on
# tables of outcomes the adjustments win as often as they lose.
_FULL_TOKENS = 12.0
_NO_TOKENS = 24.0
ADJUSTMENTS: tuple[tuple[str, float], ...] = (
    ("math", 0.90),
    ("code", 0.45),
    ("reasoning", 0.45),
    ("constraints", 0.25),
    ("parts", 0.25),
    ("creative", 0.15),
    ("structure", 0.10),
    ("lookup", -0.90),
    ("log_pasted", 0.12),
)


class DifficultyScorer:
    """Difficulty score of a query: log(1 + 4 tokens), plus adjustments if the query is short.

    Args:
        signal_names: the order of `Features.signals`.

    Raises:
        ValueError: a signal that the score needs is missing.
    """

    def __init__(self, signal_names: Sequence[str]) -> None:
        index_of = {n: i for i, n in enumerate(signal_names)}
        missing = [n for n, _ in (("log_tokens", 0), *ADJUSTMENTS) if n not in index_of]
        if missing:
            raise ValueError(f"signal_names: the default policy needs {missing}")
        self._tokens = index_of["log_tokens"]
        self._adjustments = tuple((index_of[n], weight) for n, weight in ADJUSTMENTS)

    def __call__(self, x: Features) -> float:
        """The score of a query."""
        return self.score(x.signals.tolist())

    def score(self, signals: Sequence[float]) -> float:
        """The score of a query with these signals, (n_signals,)."""
        tokens = expm1(signals[self._tokens])
        score = log1p(4.0 * tokens)
        if tokens >= _NO_TOKENS:
            return score
        fade = min(1.0, (_NO_TOKENS - tokens) / (_NO_TOKENS - _FULL_TOKENS))
        for i, weight in self._adjustments:
            value = signals[i]
            if value:
                score += fade * weight * value
        return score


def prior_version(policy: str, features_schema: str) -> str:
    """The version of an untrained policy's score, as certificates name it."""
    # The quantiles follow the traffic and are not part of it; what the score is made of is.
    hash_input = f"{features_schema}/{ADJUSTMENTS}/{_FULL_TOKENS}/{_NO_TOKENS}"
    return f"{policy}-score-{blake2b(hash_input.encode(), digest_size=4).hexdigest()}"


@lru_cache(maxsize=1024)
def quality_curves(priors: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """Predict the quality of each model of a pool over difficulty.

    Failures grow with difficulty u as a power law around each model's mean p:
    1 - q(u) = (1 - p) (f + (1 - f) (1 + b) u^b), with one exponent b for the pool, as large as
    keeps every q in [0, 1] and at most MAX_EXPONENT. So the mean over u is the prior, an easy query
    is easy for every model, and what a stronger model gains over a weaker one grows with difficulty.
    Otherwise it would not be right to send the harder queries to it.

    Args:
        priors: (n_models,) mean quality.

    Returns:
        (n_models, GRID + 1) quality at the difficulty quantiles 0, 1/GRID, ..., 1.
    """
    means = [min(1.0, max(0.0, p)) for p in priors]
    largest_step = min((1.0 / (1.0 - p) for p in means if p < 1.0), default=1e9)
    f = IRREDUCIBLE_FAILURE
    b = min(MAX_EXPONENT, max(0.0, (largest_step - f) / (1.0 - f) - 1.0))
    growth = [(g / GRID) ** b for g in range(GRID + 1)]
    # The grid's own mean, so that the prior is met to rounding.
    part = (1.0 - f) / (sum(growth) / len(growth))
    top = max(f + part * growth[-1], 1.0)
    scale = min(1.0, (largest_step - 1.0) / (top - 1.0)) if top > 1.0 else 1.0
    steps = [1.0 + scale * (f + part * x - 1.0) for x in growth]
    return tuple(tuple(1.0 - (1.0 - p) * step for step in steps) for p in means)


def length_slope(gap: float) -> float:
    """The slope of a quality gap on standardised log length, for a gap to a stronger model."""
    return SLOPE * min(0.0, max(-1.0, gap / FULL_GAP))


def list_price(m: Model) -> float | None:
    """One number to order models by: input and output price at 3 to 1; None = unknown."""
    usd_in, usd_out = m.price.input_usd_per_mtok, m.price.output_usd_per_mtok
    return None if usd_in is None or usd_out is None else (3 * usd_in + usd_out) / 4


def price_priors(prices: Sequence[float | None]) -> tuple[float, ...]:
    """Guess each model's quality from the rank of its price: 0.65 to 0.90."""
    order = sorted({p for p in prices if p is not None})
    if len(order) < 2:
        return (0.75,) * len(prices)
    return tuple(
        0.75 if p is None else 0.65 + 0.25 * order.index(p) / (len(order) - 1) for p in prices
    )


def quality_priors(models: Sequence[Model]) -> tuple[float, ...]:
    """The quality prior of each model; without one, a guess from the rank of its price."""
    known = [m.quality for m in models]
    if None not in known:
        return tuple([q for q in known if q is not None])
    guesses = price_priors([list_price(m) for m in models])
    return tuple([g if q is None else q for q, g in zip(known, guesses, strict=True)])


def output_tokens(difficulty: float, limit: int | None) -> int:
    """A rough prior of the output's length: harder queries get longer answers."""
    tokens = int(80 + 700 * difficulty)
    return tokens if limit is None or limit > tokens else limit


def cost_usd(m: Model, input_tokens: int, output: int, cached: int = 0) -> float | None:
    """Predicted USD, with `cached` of the input tokens at the cached price; None = price unknown."""
    p = m.price
    if p.input_usd_per_mtok is None or p.output_usd_per_mtok is None:
        return None
    total = input_tokens * p.input_usd_per_mtok + output * p.output_usd_per_mtok
    if cached and p.cached_input_usd_per_mtok is not None:
        total -= min(cached, input_tokens) * (p.input_usd_per_mtok - p.cached_input_usd_per_mtok)
    return total / 1e6


def switching_cost_usd(incumbent: Model, cached_tokens: int) -> float:
    """USD lost with the incumbent's cached prefix: its uncached less its cached price."""
    p = incumbent.price
    if p.input_usd_per_mtok is None or p.cached_input_usd_per_mtok is None:
        return 0.0
    return max(0.0, cached_tokens * (p.input_usd_per_mtok - p.cached_input_usd_per_mtok) / 1e6)


def latency_s(c: Candidate, output: int) -> float | None:
    """Predicted seconds until the whole answer is there; None = the model's speed is unknown."""
    if c.first_chunk_s is None or not c.output_tokens_per_s:
        return None
    return c.first_chunk_s + output / c.output_tokens_per_s
