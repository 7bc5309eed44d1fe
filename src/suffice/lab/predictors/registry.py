"""Finds a predictor by its name: built in, an entry point, or a trained artifact.

Further predictors are entry points of the group "suffice.predictors".
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from suffice.artifacts.artifact import ENTRY_POINTS
from suffice.errors import UsageError, nearest
from suffice.lab.predictors.base import Predictor
from suffice.lab.predictors.baselines import ConstantPredictor, DefaultPredictor, LengthPredictor
from suffice.lab.predictors.linear import LinearHead
from suffice.lab.predictors.saved import SavedPredictor
from suffice.lab.predictors.simple import ClusterPredictor, KNNPredictor, RidgePredictor

BUILT_IN: dict[str, Callable[[], Predictor]] = {
    "default": DefaultPredictor,
    "length": LengthPredictor,
    "constant": ConstantPredictor,
    "trained": LinearHead,
    "knn": KNNPredictor,
    "cluster": ClusterPredictor,
    "ridge": RidgePredictor,
}
NO_LABELS = ("default", "length")  # these use prices and length only
LEARNERS = ("trained", "knn", "cluster", "ridge", "constant")


def is_artifact(name: str) -> bool:
    """Whether `name` is the path of an artifact."""
    return name not in BUILT_IN and (name.endswith(".npz") or Path(name).is_file())


def learns(name: str) -> bool:
    """Whether the predictor is fitted on labels of the table."""
    return name not in NO_LABELS and not is_artifact(name)


def plugin_names() -> list[str]:
    """Names of the predictors that other packages offer."""
    return [e.name for e in metadata.entry_points(group=ENTRY_POINTS) if e.name not in BUILT_IN]


def make_predictor(name: str) -> Predictor:
    """Make a predictor.

    Args:
        name: Built in, an entry point, or the path of an artifact.

    Returns:
        A predictor that is not fitted.

    Raises:
        UsageError: If there is no such predictor, or it lacks a method.
    """
    if is_artifact(name):
        return SavedPredictor(name)
    factory = BUILT_IN.get(name)
    if factory is None:
        plugins = {e.name: e for e in metadata.entry_points(group=ENTRY_POINTS)}
        if name not in plugins:
            known = [*BUILT_IN, *plugins]
            close = nearest(name, known, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UsageError(
                f"There is no policy {name!r}.{hint}",
                remedy=f"Known: {', '.join(known)}, or the path of an artifact.",
            )
        factory = plugins[name].load()
    predictor: object = factory()
    if not isinstance(predictor, Predictor):
        raise UsageError(
            f"The policy {name!r} is not a predictor: {type(predictor).__name__} lacks a member.",
            remedy="Subclass suffice.lab.predictors.base.Predictor.",
        )
    return predictor
