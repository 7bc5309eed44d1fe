"""The Protocol of predictors, and queries as the numbers that predictors read.

A predictor predicts each model's quality and cost for each query. The trade-off between them is not
part of it: an evaluation sweeps `argmax quality - lambda * cost`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from suffice import features
from suffice.artifacts.estimators import Estimator
from suffice.errors import UsageError
from suffice.lab.data.table import FloatArray, RowIndex, Table
from suffice.learning import regression
from suffice.types import Message

_T = TypeVar("_T")
_NO_KEYS: NDArray[np.uint64] = np.zeros(0, np.uint64)


@dataclass(frozen=True)
class Batch:
    """Features of n queries.

    Attributes:
        signals: float32 (n, n_signals).
        vectors: float32 (n, n_dimensions), the static embedding of each last user message.
    """

    signals: NDArray[np.float32]
    vectors: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.signals)

    def take(self, index: RowIndex) -> Batch:
        """Only these queries, in this order."""
        return Batch(self.signals[index], self.vectors[index])


def extract_table(table: Table, progress: bool = False, vectors: bool = True) -> Batch:
    """Compute the features of every query of a table, as serving computes them.

    Args:
        table: Of n queries.
        progress: Show a bar on standard error.
        vectors: False leaves the embeddings zero, for policies that do not read them.

    Returns:
        The features of n queries.
    """
    return extract_conversations(table.messages, progress, vectors)


def extract_conversations(
    conversations: Sequence[Sequence[Message]], progress: bool = False, vectors: bool = True
) -> Batch:
    """Compute the features of conversations; see `extract_table`."""
    n = len(conversations)
    signals = np.zeros((n, len(features.SIGNAL_NAMES)), np.float32)
    embeddings = np.zeros((n, features.DIMENSIONS), np.float32)
    for i, messages in enumerate(track(conversations, "reading queries", progress)):
        x = features.extract(messages)
        signals[i] = x.signals
        if vectors:
            embeddings[i] = features.embed(x)
    return Batch(signals, embeddings)


def design_matrix(x: Batch) -> FloatArray:
    """float64 (n, n_signals + n_dimensions): standardised, clipped signals, then the vectors."""
    return regression.design(x.signals, x.vectors, *features.feature_scaler())


def track(items: Sequence[_T], what: str, progress: bool) -> Iterable[_T]:
    """Iterate over `items`, with a progress bar on standard error if `progress`."""
    if not progress:
        return items
    from rich.console import Console
    from rich.progress import track as bar

    return bar(items, description=what, console=Console(stderr=True), transient=True)


@runtime_checkable
class Predictor(Protocol):
    """Predicts quality and cost, with the conventions of scikit-learn's estimators.

    `__init__` stores arguments, `fit` returns self, learned state ends in `_`. Subclass this class to
    inherit the defaults of `training_keys_` and `estimator`.

    Attributes:
        name: Under which the predictor is chosen and reported.
        training_keys_: uint64 hashes of the prompts that an artifact was trained on; else empty.
    """

    name: str
    training_keys_: NDArray[np.uint64] = _NO_KEYS

    def fit(
        self,
        x: Batch,
        score: FloatArray,
        cost_usd: FloatArray | None,
        price: FloatArray,
        models: Sequence[str],
        sample_weight: FloatArray | None = None,
    ) -> Self:
        """Learn from labelled queries.

        Args:
            x: Features of n >= 0 queries. With n = 0 only price and length are known.
            score: (n, k), NaN if unknown.
            cost_usd: (n, k), NaN if unknown; None if no cost is known.
            price: (k,) what is known of the models' costs before any label (mean USD per query, or
                list price), NaN if unknown.
            models: (k,) names.
            sample_weight: (n,) how many labels each query counts as; None: one each.
        """
        ...

    def predict(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        """Predict for n queries.

        Returns:
            Quality (n, k) in about [0, 1], and cost (n, k) in the unit of `price`, not NaN if the
            price is known.
        """
        ...

    def strong_score(self, x: Batch, strong: int, weak: int) -> FloatArray:
        """Rank the queries of a pair of models.

        Args:
            x: Features of n queries.
            strong: Column of the strong model.
            weak: Column of the weak model.

        Returns:
            (n,); queries of a larger score go to the strong model first.
        """
        ...

    def estimator(self, models: Sequence[str]) -> Estimator:
        """What was learned, in the form that an artifact stores.

        Raises:
            UsageError: If the predictor cannot be saved.
        """
        raise UsageError(
            f"The policy {self.name!r} cannot be saved: it has no `estimator(models)`.",
            remedy="See suffice.artifacts.estimators.Estimator.",
        )
