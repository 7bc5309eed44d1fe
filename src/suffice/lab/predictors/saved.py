"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from suffice import features
from suffice.artifacts import artifact
from suffice.errors import UsageError
from suffice.lab.data.table import FloatArray
from suffice.lab.predictors.base import Batch
from suffice.names import match_model


class SavedPredictor:
    """A trained artifact among the predictors: `fit` learns nothing, it only finds the table's
    models among the artifact's columns. A model that the artifact does not know has none: NaN.

    Learned before: `version_`, `training_keys_` (uint64 hashes of the prompts learned from).
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
    ) -> Self:
        known = self.artifact.card.models
        self.columns_ = [match_model(m, known) for m in models]
        self.price_ = price
        missing = [m for m, c in zip(models, self.columns_, strict=True) if c is None]
        if missing:
            raise UsageError(
                f"{self.name} was not trained on {', '.join(map(repr, missing))}.",
                remedy=f"It knows: {', '.join(known)}. Choose among them with --models.",
            )
        return self

    def predict(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        columns = [c for c in self.columns_ if c is not None]
        quality, cost = self.artifact.estimator.predict(x.signals, x.vectors)
        own = cost[:, columns]
        # Dollars of another table do not compare with these: known prices stand in for unknown.
        return quality[:, columns], np.where(np.isnan(own), self.price_, own)

    def strong_score(self, x: Batch, strong: int, weak: int) -> FloatArray:
        quality, _ = self.predict(x)
        return np.asarray(quality[:, strong] - quality[:, weak])
