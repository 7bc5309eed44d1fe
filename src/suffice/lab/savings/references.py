"""The reference model of each route: the model that quality and savings are measured against."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from suffice.artifacts import artifact
from suffice.config import RouteSpec, Settings, resolve
from suffice.errors import ArtifactError
from suffice.lab.savings.requests import RequestArrays
from suffice.names import match_model
from suffice.policies import is_path
from suffice.store import reader


class Reference(NamedTuple):
    """A route's reference model, and why it is that one."""

    model: str
    reason: str


def reference_models(settings: Settings, env: Mapping[str, str]) -> dict[str, Reference]:
    """Return route -> its reference model by the config and the promoted snapshots.

    Args:
        settings: The config.
        env: Environment variables.

    Raises:
        ConfigError: If the config is invalid.
        StoreError: If the store exists and cannot be read.
    """
    promoted = _promoted_references(settings)
    return {
        name: _reference(spec, promoted.get(name) or _trained_reference(spec, settings))
        for name, spec in resolve(settings, env, need_keys=False).routes.items()
    }


def best_predicted(models: Collection[str], requests: RequestArrays) -> Reference:
    """Return the reference of a route that is not configured: the best by its predictions.

    Args:
        models: In the order of their columns.
        requests: Of the route.
    """
    reason = "the best by the recorded predictions"
    if not models:
        return Reference("unknown", reason)
    answered = requests.of_answering_model(requests.predicted_quality)
    known = ~np.isnan(requests.predicted_quality) & ~np.isnan(answered[requests.request])
    model, k = requests.model[known], len(models)
    count = np.bincount(model, minlength=k)
    total = np.bincount(model, requests.predicted_quality[known], minlength=k)
    mean = np.where(count > 0, total / np.maximum(count, 1), -1.0)
    return Reference(list(models)[int(mean.argmax())], reason)


def _reference(spec: RouteSpec, trained: str | None) -> Reference:
    names = [m.name for m in spec.models]
    column = None if trained is None else match_model(trained, names)
    if column is not None:
        return Reference(names[column], "the reference of the trained policy")
    # Ties go to the most expensive model; an unknown price does not count as a high one.
    best = max(
        spec.models,
        key=lambda m: (
            -1.0 if m.quality is None else m.quality,
            m.price.output_usd_per_mtok or 0.0,
        ),
    )
    return Reference(
        best.name, "the best by its prior" if best.quality is not None else "the most expensive"
    )


def _trained_reference(spec: RouteSpec, settings: Settings) -> str | None:
    """Return the reference of the route's artifact; `None` without a readable one."""
    if not is_path(spec.policy):
        return None
    path = Path(settings.source).parent / spec.policy
    try:
        return artifact.load(path if path.exists() else spec.policy).card.reference
    except ArtifactError:
        return None  # a report is about the past, which needs no artifact


def _promoted_references(settings: Settings) -> dict[str, str]:
    """Return route -> the reference that the card of its current snapshot names."""
    if not reader.exists(settings.store.url):
        return {}
    references = {}
    with reader.open_registry(settings.store.url) as registry:
        for name in settings.routes:
            version = registry.current(name)
            cards = [s["card"] for s in registry.snapshots(name) if s["version"] == version]
            reference = cards[0].get("reference") if cards else None
            if isinstance(reference, str):
                references[name] = reference
    return references
