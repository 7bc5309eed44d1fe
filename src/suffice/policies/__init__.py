"""Policies: (features, candidates, objective) -> Decision. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from suffice import features
from suffice.artifacts.artifact import check_versions, load
from suffice.errors import nearest
from suffice.policies.base import Certifiable, TrafficAware, TrafficWindow
from suffice.policies.default import DefaultPolicy, make_named
from suffice.policies.objectives import describe, parse_objective
from suffice.policies.traffic import ScoreWindow
from suffice.policies.trained import TrainedPolicy
from suffice.policies.uniform import RandomPolicy
from suffice.types import Objective, Policy

# A new policy is one file and one line here, or an entry point of the group "suffice.policies".
_BUILT_IN: dict[str, Callable[..., Policy]] = {
    "default": DefaultPolicy,
    "cheapest": make_named("cheapest", Objective(kind="cheapest")),
    "best": make_named("best", Objective(kind="best")),
    "fastest": make_named("fastest", Objective(kind="fastest")),
    "weights": make_named("weights", Objective(kind="weights", cost=1.0, speed=0.5, quality=2.0)),
    "random": RandomPolicy,
}
POLICY_NAMES: tuple[str, ...] = tuple(_BUILT_IN)

__all__ = [
    "POLICY_NAMES",
    "Certifiable",
    "DefaultPolicy",
    "RandomPolicy",
    "ScoreWindow",
    "TrafficAware",
    "TrafficWindow",
    "TrainedPolicy",
    "describe",
    "is_path",
    "load_trained",
    "make",
    "parse_objective",
]


def is_path(policy: str) -> bool:
    """Whether a `policy` names a file rather than a policy."""
    return policy.endswith(".npz") or "/" in policy or "\\" in policy


def load_trained(path: str) -> TrainedPolicy:
    """The policy that serves the artifact at `path`.

    Raises:
        ArtifactError: the file cannot be read, or was trained on other features.
    """
    artifact = load(path)
    check_versions(artifact.card, features.SCHEMA, features.embedding_version(), path)
    return TrainedPolicy(artifact)


def make(name: str, signal_names: Sequence[str], **params: Any) -> Policy:
    """The policy called `name`, built in or from an entry point of the group "suffice.policies".

    signal_names: the order of `Features.signals`. Raises ValueError with the nearest known name.
    """
    factory = _BUILT_IN.get(name)
    if factory is None:
        from importlib.metadata import entry_points

        offered = {e.name: e for e in entry_points(group="suffice.policies")}
        if name not in offered:
            known = [*_BUILT_IN, *offered]
            close = nearest(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"policy {name!r} is not known{hint} Known: {', '.join(known)}")
        factory = offered[name].load()
    return factory(signal_names, **params)
