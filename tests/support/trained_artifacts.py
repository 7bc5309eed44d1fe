"""Small artifacts of every kind, made without the lab."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from suffice import features
from suffice.artifacts import artifact as artifacts
from suffice.artifacts import estimators
from suffice.artifacts.artifact import Artifact, Card

MODELS = ("p/weak", "p/strong")
KINDS = ("linear", "constant", "cluster", "knn")
S, D = len(features.SIGNAL_NAMES), features.DIMENSIONS


def estimator(kind: str, models: tuple[str, ...] = MODELS, tokens: bool = True) -> object:
    """The weak model is 0.6 on average and falls with length, the strong one 0.9 throughout."""
    rng = np.random.default_rng(3)
    k = len(models)
    cost = 1e-4 * 8.0 ** np.arange(k)
    quality = np.linspace(0.6, 0.9, k)
    if kind == "constant":
        return estimators.ConstantEstimator(models, quality, cost, np.linspace(200.0, 300.0, k))
    if kind == "cluster":
        centres = rng.normal(size=(5, D)).astype(np.float32) / 16
        table = quality + rng.normal(size=(5, k)) * 0.1
        return estimators.ClusterEstimator(models, centres, table, cost)
    if kind == "knn":
        points = estimators.unit_rows(rng.normal(size=(40, D)).astype(np.float32))
        score = (rng.random((40, k)) < quality).astype(float)
        return estimators.KNNEstimator(models, points, score, quality, cost, 10)
    signals = np.zeros((S, k))
    signals[0] = -0.15 * np.arange(k - 1, -1, -1) / max(1, k - 1)
    vectors = rng.normal(size=(D, k)) * 0.02
    intercept = quality
    if tokens:
        signals = np.concatenate([signals, np.full((S, k), 0.01)], axis=1)
        vectors = np.concatenate([vectors, np.zeros((D, k))], axis=1)
        intercept = np.append(quality, np.log(np.linspace(200.0, 300.0, k)))
    return estimators.LinearEstimator(
        models, np.full(S, 2.0, np.float32), np.ones(S, np.float32), 4.0, signals, vectors,
        intercept, cost, has_tokens=tokens,
    )  # fmt: skip


def artifact(kind: str, models: tuple[str, ...] = MODELS, tokens: bool = True) -> Artifact:
    e = estimator(kind, models, tokens)
    rng = np.random.default_rng(5)
    m = 300
    signals = np.abs(rng.normal(2.0, 1.0, size=(m, S))).astype(np.float32)
    vectors = (rng.normal(size=(m, D)) / 16).astype(np.float32)
    quality, cost = e.predict(signals, vectors)  # type: ignore[attr-defined]
    found = e.output_tokens(signals, vectors)  # type: ignore[attr-defined]
    made = Artifact(
        card=Card(
            kind=kind,
            models=models,
            features=features.SCHEMA,
            table=features.embedding_version(),
            reference=models[-1],
        ),
        estimator=e,
        sample_quality=quality,
        sample_cost=cost,
        sample_tokens=np.full(quality.shape, np.nan) if found is None else found,
        sample_input=np.full(m, 100.0),
        sample_length=signals[:, 0].astype(float) - 2.0,
        training_keys=np.arange(9, dtype=np.uint64),
    )
    return artifacts.unpack(artifacts.pack(made))


def saved(folder: Path, kind: str = "linear") -> Path:
    path = folder / f"{kind}.npz"
    artifacts.save(artifact(kind), path)
    return path
