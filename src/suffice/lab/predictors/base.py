"""What the lab compares: things that predict, for each query, each model's quality and cost.

The trade-off is not theirs: whoever evaluates sweeps `argmax quality - lambda * cost`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from suffice import features
from suffice.lab.data.table import FloatArray, Table
from suffice.learning import regression
from suffice.types import Message

_T = TypeVar("_T")


@dataclass(frozen=True)
class Batch:
    """Queries as numbers, made by the features room. signals: float32 (n, n_signals);
    vectors: float32 (n, n_dimensions), the static embedding of each ask."""

    signals: NDArray[np.float32]
    vectors: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.signals)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_] | Sequence[int]) -> Batch:
        return Batch(self.signals[index], self.vectors[index])


def extract_table(table: Table, progress: bool = False, vectors: bool = True) -> Batch:
    """Every query of a table through `suffice.features`, as serving sees it.

    progress: show a bar on standard error. vectors: False leaves the embeddings zero, for policies
    that do not look at them.
    """
    return extract_conversations(table.messages, progress, vectors)


def extract_conversations(
    conversations: Sequence[Sequence[Message]], progress: bool = False, vectors: bool = True
) -> Batch:
    """The same for conversations, (n,)."""
    from suffice import features

    n = len(conversations)
    signals = np.zeros((n, len(features.SIGNAL_NAMES)), np.float32)
    points = np.zeros((n, features.DIMENSIONS), np.float32)
    for i, messages in enumerate(track(conversations, "reading queries", progress)):
        x = features.extract(messages)
        signals[i] = x.signals
        if vectors:
            points[i] = features.embed(x)
    return Batch(signals, points)


def track(items: Sequence[_T], what: str, progress: bool) -> Iterable[_T]:
    """`items` with a progress bar on standard error where asked for."""
    if not progress:
        return items
    from rich.console import Console
    from rich.progress import track as bar

    return bar(items, description=what, console=Console(stderr=True), transient=True)


class Predictor(Protocol):
    """Estimator manners: `__init__` stores arguments, `fit` returns self, state ends in `_`.

    fit: x has n >= 0 queries; score (n, k) and cost_usd (n, k) hold NaN where unknown; price (k,)
    is what is known of the models' cost before any label (mean USD a query, or list price; NaN
    where unknown). n = 0 must work: then only price and length are known.
    expect: (quality (n, k) in about [0, 1], cost (n, k) in the unit of price, never NaN where the
    price is known).
    rank: for a pair only: (n,) score by which queries go to model `strong` rather than `weak`
    (columns), larger = rather strong.
    """

    name: str

    def fit(
        self,
        x: Batch,
        score: FloatArray,
        cost_usd: FloatArray | None,
        price: FloatArray,
        models: Sequence[str],
    ) -> Self: ...

    def predict(self, x: Batch) -> tuple[FloatArray, FloatArray]: ...

    def strong_score(self, x: Batch, strong: int, weak: int) -> FloatArray: ...


def design_matrix(x: Batch) -> FloatArray:
    """float64 (n, n_signals + n_dimensions): standardised, clipped signals beside the vectors."""
    return regression.design(x.signals, x.vectors, *features.feature_scaler())
