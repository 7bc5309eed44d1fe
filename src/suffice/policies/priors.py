"""What to expect of a model on a query, from priors alone: quality, cost, latency.

Nothing here is learned. Quality comes from each model's prior and the ask's difficulty, and is
called a prior wherever it is shown; it promises nothing (docs/concepts/policies.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from math import expm1, log1p

from suffice.types import Candidate, Features, Model

SLOPE = 0.1  # what a weaker model lacks grows by this per deviation of log length, at most
FULL_GAP = 0.25  # gap of mean qualities at which it does
GRID = 200  # difficulty quantiles are looked at in GRID + 1 steps
IRREDUCIBLE_FAILURE = 0.1  # part of a model's failures that no ease of the query takes away
MAX_EXPONENT = 3.0  # the rest grows with difficulty to at most this power

# The default score: the log length of the last human ask, the only thing that public benchmarks
# reliably support (docs/concepts/policies.md). An ask of a line is moved by what it plainly is,
# since its length says little. From two lines on length decides alone: on tables of outcomes the
# moves win as often as they lose, so they are kept to where they are plain.
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
    """Difficulty score of a query: log(1 + 4 tokens), plus the moves above where it is short."""

    def __init__(self, signal_names: Sequence[str]) -> None:
        at = {n: i for i, n in enumerate(signal_names)}
        missing = [n for n, _ in (("log_tokens", 0), *ADJUSTMENTS) if n not in at]
        if missing:
            raise ValueError(f"signal_names: the default policy needs {missing}")
        self._tokens = at["log_tokens"]
        self._moves = tuple((at[n], w) for n, w in ADJUSTMENTS)

    def __call__(self, x: Features) -> float:
        return self.score(x.signals.tolist())

    def score(self, s: Sequence[float]) -> float:
        """The same from the signals alone, (n_signals,)."""
        tokens = expm1(s[self._tokens])
        score = log1p(4.0 * tokens)
        if tokens >= _NO_TOKENS:
            return score
        fade = min(1.0, (_NO_TOKENS - tokens) / (_NO_TOKENS - _FULL_TOKENS))
        for i, w in self._moves:
            v = s[i]
            if v:
                score += fade * w * v
        return score


def prior_version(policy: str, features_schema: str) -> str:
    """The version of an untrained policy's score, as certificates name it.

    It covers what the score is made of. The quantiles follow the traffic and are not part of it.
    """
    hash_input = f"{features_schema}/{ADJUSTMENTS}/{_FULL_TOKENS}/{_NO_TOKENS}"
    return f"{policy}-score-{blake2b(hash_input.encode(), digest_size=4).hexdigest()}"


@lru_cache(maxsize=1024)
def quality_curves(priors: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """Predicted quality of each model of a pool at difficulty quantiles 0, 1/GRID, ..., 1.

    Failures grow with difficulty u as a power law around each model's mean p:
    1 - q(u) = (1 - p) (f + (1 - f) (1 + b) u^b), with one exponent b for the pool, as large as
    keeps every q in [0, 1] and at most MAX_EXPONENT. So the mean over u is the prior, an easy ask is easy
    for every model, and what a stronger model gains over a weaker one grows with difficulty:
    nothing less would make it right to send the harder queries to it.
    """
    p = [min(1.0, max(0.0, x)) for x in priors]
    room = min((1.0 / (1.0 - x) for x in p if x < 1.0), default=1e9)  # of the growth's end
    b = min(
        MAX_EXPONENT, max(0.0, (room - IRREDUCIBLE_FAILURE) / (1.0 - IRREDUCIBLE_FAILURE) - 1.0)
    )
    grow = [(g / GRID) ** b for g in range(GRID + 1)]
    # The grid's own mean, so that the prior is met to rounding.
    part = (1.0 - IRREDUCIBLE_FAILURE) / (sum(grow) / len(grow))
    top = max(IRREDUCIBLE_FAILURE + part * grow[-1], 1.0)
    scale = min(1.0, (room - 1.0) / (top - 1.0)) if top > 1.0 else 1.0
    steps = [1.0 + scale * (IRREDUCIBLE_FAILURE + part * x - 1.0) for x in grow]
    return tuple(tuple(1.0 - (1.0 - x) * step for step in steps) for x in p)


def length_slope(gap: float) -> float:
    """Of a model whose mean quality is `gap` above another's, against it on standardised log length."""
    return SLOPE * min(0.0, max(-1.0, gap / FULL_GAP))


def list_price(m: Model) -> float | None:
    """One number to order models by: input and output price at 3 to 1."""
    i, o = m.price.input_usd_per_mtok, m.price.output_usd_per_mtok
    return None if i is None or o is None else (3 * i + o) / 4


def price_priors(prices: Sequence[float | None]) -> tuple[float, ...]:
    """A guess of each model's quality from the rank of its price: 0.65 to 0.90."""
    order = sorted({p for p in prices if p is not None})
    if len(order) < 2:
        return (0.75,) * len(prices)
    return tuple(
        0.75 if p is None else 0.65 + 0.25 * order.index(p) / (len(order) - 1) for p in prices
    )


def quality_priors(candidates: Sequence[Candidate]) -> tuple[tuple[float, ...], bool]:
    """(a quality prior for each candidate, whether any had to be guessed from its price's rank)."""
    known = [c.model.quality for c in candidates]
    if all(q is not None for q in known):
        return tuple(q for q in known if q is not None), False
    guesses = price_priors([list_price(c.model) for c in candidates])
    return tuple(g if q is None else q for q, g in zip(known, guesses, strict=True)), True


def output_tokens(difficulty: float, limit: int | None) -> int:
    """A rough prior: harder asks are answered at greater length."""
    tokens = int(80 + 700 * difficulty)
    return tokens if limit is None or limit > tokens else limit


def cost_usd(m: Model, input_tokens: int, output: int, cached: int = 0) -> float | None:
    """Predicted USD; `cached` of the input tokens at the cached rate. None = price unknown."""
    p = m.price
    if p.input_usd_per_mtok is None or p.output_usd_per_mtok is None:
        return None
    total = input_tokens * p.input_usd_per_mtok + output * p.output_usd_per_mtok
    if cached and p.cached_input_usd_per_mtok is not None:
        total -= min(cached, input_tokens) * (p.input_usd_per_mtok - p.cached_input_usd_per_mtok)
    return total / 1e6


def switching_cost_usd(incumbent: Model, cached_tokens: int) -> float:
    """What leaving `incumbent` gives up: its cached prefix, at uncached less cached price."""
    p = incumbent.price
    if p.input_usd_per_mtok is None or p.cached_input_usd_per_mtok is None:
        return 0.0
    return max(0.0, cached_tokens * (p.input_usd_per_mtok - p.cached_input_usd_per_mtok) / 1e6)


def latency_s(c: Candidate, output: int) -> float | None:
    if c.first_chunk_s is None or not c.output_tokens_per_s:
        return None
    return c.first_chunk_s + output / c.output_tokens_per_s
