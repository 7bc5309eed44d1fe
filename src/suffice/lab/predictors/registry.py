"""Predictors of each model's quality and cost, all under one Protocol (`predictor.Predictor`).

A further one is an entry point of the group "suffice.predictors".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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


def make_predictor(name: str) -> Predictor:
    """The predictor called `name`: built in, an entry point, or the path of an artifact. Raises
    UsageError or ArtifactError."""
    if name not in BUILT_IN and (name.endswith(".npz") or Path(name).is_file()):
        return SavedPredictor(name)
    factory = BUILT_IN.get(name)
    if factory is None:
        from importlib.metadata import entry_points

        offered = {e.name: e for e in entry_points(group="suffice.predictors")}
        if name not in offered:
            known = [*BUILT_IN, *offered]
            close = nearest(name, known, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UsageError(
                f"There is no policy {name!r}.{hint}",
                remedy=f"Known: {', '.join(known)}, or the path of an artifact.",
            )
        factory = offered[name].load()
    return factory()
