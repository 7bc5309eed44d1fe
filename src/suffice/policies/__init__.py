"""Policies: (features, candidates, objective) -> Decision. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from suffice import features
from suffice.artifacts.artifact import check_versions, load
from suffice.errors import nearest
from suffice.policies.base import Certifiable, TrafficAware, TrafficWindow
from suffice.policies.default import DefaultPolicy
from suffice.policies.objectives import describe, parse_objective
from suffice.policies.traffic import ScoreWindow
from suffice.policies.trained import TrainedPolicy
from suffice.policies.uniform import RandomPolicy
from suffice.types import Objective, Policy

# A new policy is one file and one line here, or an entry point of the group "suffice.policies".
_BUILT_IN: dict[str, Callable[..., Policy]] = {
    "default": DefaultPolicy,
    "cheapest": partial(DefaultPolicy, objective=Objective(kind="cheapest"), name="cheapest"),
    "best": partial(DefaultPolicy, objective=Objective(kind="best"), name="best"),
    "fastest": partial(DefaultPolicy, objective=Objective(kind="fastest"), name="fastest"),
    "weights": partial(
        DefaultPolicy,
        objective=Objective(kind="weights", cost=1.0, speed=0.5, quality=2.0),
        name="weights",
    ),
    "random": partial(RandomPolicy, name="random"),
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
    """Whether a `policy` names a file, not a policy."""
    return policy.endswith(".npz") or "/" in policy or "\\" in policy


def load_trained(path: str) -> TrainedPolicy:
    """Load the artifact at `path`.

    Returns:
        The policy that serves it.

    Raises:
        ArtifactError: the file cannot be read, or was trained on other features.
    """
    artifact = load(path)
    check_versions(artifact.card, features.SCHEMA, features.embedding_version(), path)
    return TrainedPolicy(artifact)


def make(name: str, signal_names: Sequence[str], **params: Any) -> Policy:
    """Make a policy by its name, built in or from the entry points "suffice.policies".

    Args:
        name: of the policy.
        signal_names: the order of `Features.signals`.
        params: for the policy.

    Returns:
        The policy.

    Raises:
        ValueError: the name is unknown. The message has the nearest known name.
    """
    factory = _BUILT_IN.get(name)
    if factory is None:
        from importlib.metadata import entry_points

        installed = {e.name: e for e in entry_points(group="suffice.policies")}
        if name not in installed:
            known = [*_BUILT_IN, *installed]
            close = nearest(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"policy {name!r} is not known{hint} Known: {', '.join(known)}")
        factory = installed[name].load()
    return factory(signal_names, **params)
