"""A trained artifact as a predictor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from suffice import features
from suffice.artifacts import artifact
from suffice.errors import UsageError
from suffice.lab.data.table import FloatArray
from suffice.lab.predictors.base import Batch, Predictor
from suffice.names import match_model


class SavedPredictor(Predictor):
    """Predicts with a trained artifact; `fit` only finds the table's models among its columns.

    Attributes:
        artifact: As loaded.
        version_: Of the artifact.
        columns_: Column of the artifact for each model of the table.
    """

    def __init__(self, path: str) -> None:
        self.name = path
        self.artifact = artifact.load(path)
        artifact.check_versions(
            self.artifact.card, features.SCHEMA, features.embedding_version(), path
        )
        self.version_ = self.artifact.version
        self.training_keys_ = self.artifact.training_keys

    def fit(
        self,
        x: Batch,
        score: FloatArray,
        cost_usd: FloatArray | None,
        price: FloatArray,
        models: Sequence[str],
        sample_weight: FloatArray | None = None,
    ) -> Self:
        """Find the models among the artifact's columns; labels are ignored.

        Returns:
            Itself.

        Raises:
            UsageError: If the artifact was not trained on one of the models.
        """
        known = self.artifact.card.models
        columns = {m: match_model(m, known) for m in models}
        missing = [m for m, c in columns.items() if c is None]
        if missing:
            raise UsageError(
                f"{self.name} was not trained on {', '.join(map(repr, missing))}.",
                remedy=f"It knows: {', '.join(known)}. Choose among them with --models.",
            )
        self.columns_ = [c for c in columns.values() if c is not None]
        self.price_ = price
        return self

    def predict(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        """The artifact's predictions, with known prices if it predicts no cost."""
        quality, cost = self.artifact.estimator.predict(x.signals, x.vectors)
        cost = cost[:, self.columns_]
        return quality[:, self.columns_], np.where(np.isnan(cost), self.price_, cost)

    def strong_score(self, x: Batch, strong: int, weak: int) -> FloatArray:
        """The predicted gap."""
        quality, _ = self.predict(x)
        return np.asarray(quality[:, strong] - quality[:, weak])
