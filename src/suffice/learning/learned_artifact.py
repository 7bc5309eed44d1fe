"""Makes the artifact that serves what a route has learned."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.artifacts.artifact import Artifact, Card
from suffice.artifacts.estimators import LinearEstimator
from suffice.learning.posterior import Posterior
from suffice.learning.regression import CLIP, VECTOR_SCALE
from suffice.learning.warm_start import FeatureSpec
from suffice.names import match_model

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]


def _figures(posterior: Posterior, names: tuple[str, ...]) -> dict[str, object]:
    """The figures of a posterior for the card."""
    labels = np.round(posterior.labels, 1).tolist()
    return {
        "labels": dict(zip(names, labels, strict=True)),
        "noise": round(posterior.noise, 5),
        "log10_width_own": round(posterior.model_scale, 3),
        "log10_width_shared": round(posterior.shared_scale, 3),
    }


def build_artifact(
    posterior: Posterior,
    names: tuple[str, ...],
    spec: FeatureSpec,
    *,
    base: Artifact | None,
    mean_tokens: FloatArray,
    sample: tuple[Float32Array, Float32Array],
    trained_on: str,
    through_seq: int,
    now_s: float,
) -> Artifact:
    """The artifact of a posterior.

    Args:
        posterior: Of the route's regression.
        names: (k,) models.
        spec: Of the features.
        base: The artifact that learning started from.
        mean_tokens: (k,) output tokens of each model's replies.
        sample: Signals (n, n_signals) and embeddings (n, n_dimensions) of labelled queries, on which
            policies solve their objective.
        trained_on: What the labels are, for the card.
        through_seq: Sequence number of the last label.
        now_s: Unix time.

    Returns:
        The artifact.
    """
    n_signals = len(spec.mean)
    weights = posterior.weights
    e = LinearEstimator(
        names, spec.mean, spec.std, CLIP, weights[:n_signals], weights[n_signals:] * VECTOR_SCALE,
        posterior.intercept, np.full(len(names), np.nan),
    )  # fmt: skip
    e = _with_token_heads(e, base, mean_tokens)
    signals, vectors = sample
    quality, cost = e.predict(signals, vectors)
    tokens = e.output_tokens(signals, vectors)
    card = Card(
        kind=e.kind,
        models=names,
        features=spec.schema,
        table=spec.table,
        reference=names[int(np.argmax(quality.mean(axis=0)))],
        trained_on=trained_on,
        queries=len(signals),
        labels=int(posterior.labels.sum()),
        made=datetime.fromtimestamp(now_s, UTC).date().isoformat(),
        made_by="the learner",
        scores="graded",
        figures={"through_seq": through_seq, **_figures(posterior, names)},
    )
    return Artifact(
        card=card,
        estimator=e,
        sample_quality=quality,
        sample_cost=np.array(cost),
        sample_tokens=np.full(quality.shape, np.nan) if tokens is None else tokens,
        sample_input=np.expm1(signals[:, spec.prompt_tokens].astype(float)),
        sample_length=((signals[:, 0] - spec.mean[0]) / spec.std[0]).astype(float),
        training_keys=np.empty(0, np.uint64),
    )


def _with_token_heads(
    e: LinearEstimator, artifact: Artifact | None, mean_tokens: FloatArray
) -> LinearEstimator:
    """Add heads for the output tokens of replies.

    Without them a policy would guess the length of a reply from the quality.

    Args:
        e: Learned qualities.
        artifact: The warm start; its token heads are kept for the models that it has.
        mean_tokens: (k,) of each model's replies, for all other models.

    Returns:
        The estimator with token heads.
    """
    k = len(e.models)
    signals, vectors = np.zeros((len(e.mean), k)), np.zeros((len(e.vectors), k))
    intercept = np.log(mean_tokens)
    old = artifact.estimator if artifact is not None else None
    if (
        artifact is not None
        and isinstance(old, LinearEstimator)
        and old.has_tokens
        and np.array_equal(old.mean, e.mean)
        and np.array_equal(old.std, e.std)
    ):
        for j, name in enumerate(e.models):
            c = match_model(name, artifact.card.models)
            if c is not None:
                head = c - len(old.models)  # from the end: token heads are the last k
                signals[:, j], vectors[:, j] = old.signals[:, head], old.vectors[:, head]
                intercept[j] = old.intercept[head]
    return msgspec.structs.replace(
        e,
        signals=np.concatenate([e.signals, signals], axis=1),
        vectors=np.concatenate([e.vectors, vectors], axis=1),
        intercept=np.append(e.intercept, intercept),
        has_tokens=True,
    )
