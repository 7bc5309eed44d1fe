"""What to expect of a model on a query, from priors alone: quality, cost, latency.

Nothing here is learned. Quality comes from each model's prior and the ask's difficulty, and is
called a prior wherever it is shown; it promises nothing (docs/concepts/policies.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import exp, expm1, log1p

from ..types import Candidate, Features, Model

GRID = 200  # difficulty quantiles are looked at in GRID + 1 steps
_STEEP = 3.0  # how strongly difficulty moves the odds: from +3 to -3 in logits over the traffic

# The default score: the log length of the last human ask, the only thing that public benchmarks
# reliably support (docs/concepts/policies.md), moved a little by what the ask plainly is.
_MOVES: tuple[tuple[str, float], ...] = (
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


class Scorer:
    """Difficulty score of a query: log(1 + 4 tokens) plus the moves above."""

    def __init__(self, signal_names: Sequence[str]) -> None:
        at = {n: i for i, n in enumerate(signal_names)}
        missing = [n for n, _ in (("log_tokens", 0), *_MOVES) if n not in at]
        if missing:
            raise ValueError(f"signal_names: the default policy needs {missing}")
        self._tokens = at["log_tokens"]
        self._moves = tuple((at[n], w) for n, w in _MOVES)

    def __call__(self, x: Features) -> float:
        s = x.signals.tolist()
        score = log1p(4.0 * expm1(s[self._tokens]))
        for i, w in self._moves:
            v = s[i]
            if v:
                score += w * v
        return score


def _sigmoid(z: float) -> float:
    return 1.0 / (1.0 + exp(-z)) if z >= 0 else exp(z) / (1.0 + exp(z))


@lru_cache(maxsize=4096)
def quality_curve(prior: float) -> tuple[float, ...]:
    """Predicted quality at difficulty quantiles 0, 1/GRID, ..., 1 of a model whose mean is `prior`.

    q(u) = sigmoid(theta - 3 (2u - 1)), theta solved by bisection so that the mean over u is the
    prior: a stronger model is better everywhere and flatter, never worse on what is hard.
    """
    if prior <= 0.0 or prior >= 1.0:
        return (min(1.0, max(0.0, prior)),) * (GRID + 1)
    z = [_STEEP * (2 * g / GRID - 1) for g in range(GRID + 1)]
    low, high = -30.0, 30.0
    for _ in range(60):
        theta = (low + high) / 2
        if sum(_sigmoid(theta - x) for x in z) / (GRID + 1) < prior:
            low = theta
        else:
            high = theta
    return tuple(_sigmoid(low - x) for x in z)


def list_price(m: Model) -> float | None:
    """One number to order models by: input and output price at 3 to 1."""
    i, o = m.price.input_usd_per_mtok, m.price.output_usd_per_mtok
    return None if i is None or o is None else (3 * i + o) / 4


def priors(candidates: Sequence[Candidate]) -> tuple[tuple[float, ...], bool]:
    """(a quality prior for each candidate, whether any had to be guessed from its price's rank)."""
    known = [c.model.quality for c in candidates]
    if all(q is not None for q in known):
        return tuple(q for q in known if q is not None), False
    prices = [list_price(c.model) for c in candidates]
    order = sorted({p for p in prices if p is not None})
    out = []
    for q, p in zip(known, prices, strict=True):
        if q is not None:
            out.append(q)
        elif p is None or len(order) < 2:
            out.append(0.75)
        else:
            out.append(0.65 + 0.25 * order.index(p) / (len(order) - 1))
    return tuple(out), True


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


def switch_usd(incumbent: Model, cached_tokens: int) -> float:
    """What leaving `incumbent` gives up: its cached prefix, at uncached less cached price."""
    p = incumbent.price
    if p.input_usd_per_mtok is None or p.cached_input_usd_per_mtok is None:
        return 0.0
    return max(0.0, cached_tokens * (p.input_usd_per_mtok - p.cached_input_usd_per_mtok) / 1e6)


def latency_s(c: Candidate, output: int) -> float | None:
    if c.first_chunk_s is None or not c.output_tokens_per_s:
        return None
    return c.first_chunk_s + output / c.output_tokens_per_s
