"""Where learning starts from: the served artifact, or the models' prior qualities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from suffice.artifacts.artifact import Artifact
from suffice.artifacts.estimators import LinearEstimator
from suffice.learning.posterior import Prior
from suffice.learning.regression import NEW_LABELS, PRIOR_LABELS, VECTOR_SCALE
from suffice.names import match_model
from suffice.policies.priors import length_slope, quality_priors
from suffice.types import Model

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]


class FeatureSpec(NamedTuple):
    """What learning needs to know of the features."""

    schema: str
    table: str  # version of the embedding table
    n_dimensions: int  # of an embedding
    mean: Float32Array  # (n_signals,) of the signals over training prompts
    std: Float32Array  # (n_signals,) likewise
    prompt_tokens: int  # index of the signal log(1 + prompt tokens)


def trained_models(names: Sequence[str], artifact: Artifact | None) -> list[str]:
    """Those of the names that the artifact was trained on."""
    models = artifact.card.models if artifact is not None else ()
    return [name for name in names if match_model(name, models) is not None]


def warm_start(models: Sequence[Model], artifact: Artifact | None, spec: FeatureSpec) -> Prior:
    """The prior of a route's regression.

    A model that the artifact was trained on starts with its weights. Any other model starts with
    its prior quality, which falls with the length of the query as in the default policy.

    Args:
        models: (k,) of the route.
        artifact: The served artifact. None: the route serves a policy that was not trained.
        spec: Of the features.

    Returns:
        The prior over the regression's design.
    """
    n_signals, k = len(spec.mean), len(models)
    quality = np.array(quality_priors(tuple(models)))
    weights = np.zeros((n_signals + spec.n_dimensions, k))
    labels = np.full(k, NEW_LABELS)
    weights[0] = [length_slope(-gap) for gap in (quality.max() - quality).tolist()]
    intercept = quality.copy()
    if artifact is None:
        return Prior(weights, intercept, labels)
    e = artifact.estimator
    columns = [match_model(m.name, artifact.card.models) for m in models]
    means = artifact.sample_quality.mean(axis=0)
    # Prior qualities are on another scale than learned ones: shift them by their mean error.
    errors = [means[c] - q for c, q in zip(columns, quality, strict=True) if c is not None]
    shift = float(np.mean(errors)) if errors else 0.0
    for j, c in enumerate(columns):
        if c is None:
            intercept[j] = min(1.0, max(0.0, quality[j] + shift))
            continue
        labels[j] = PRIOR_LABELS
        if isinstance(e, LinearEstimator):
            signals = e.signals[:, c]
            weights[:n_signals, j] = signals * spec.std / e.std
            weights[n_signals:, j] = e.vectors[:, c] / VECTOR_SCALE
            intercept[j] = e.intercept[c] + float(signals @ ((spec.mean - e.mean) / e.std))
        else:
            weights[:, j] = 0.0
            intercept[j] = means[c]
    return Prior(weights, intercept, labels)
