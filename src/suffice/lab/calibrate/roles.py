"""Which model is the reference, and which cheaper models may answer instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from suffice.errors import UsageError
from suffice.lab.data.table import FloatArray
from suffice.lab.evaluate.problem import EvalSet
from suffice.lab.predictors.saved import SavedPredictor
from suffice.names import match_model


@dataclass(frozen=True)
class Roles:
    """The models of a calibration.

    Attributes:
        names: The reference, then the cheap models.
        cost: (1 + cheap,) mean USD per query, NaN if unknown.
        priced: Whether costs are known.
    """

    names: tuple[str, ...]
    cost: FloatArray
    priced: bool

    @property
    def reference(self) -> str:
        """The model that quality is compared to."""
        return self.names[0]

    @property
    def cheap(self) -> tuple[str, ...]:
        """Models that may answer instead."""
        return self.names[1:]


def assign_roles(
    eval_set: EvalSet, saved: SavedPredictor | None, reference: str | None, notes: list[str]
) -> Roles:
    """Assign the roles without looking at a label.

    Args:
        eval_set: The models and their costs.
        saved: The artifact; None for a policy without training.
        reference: As requested; None: the artifact's, or the most expensive.
        notes: For the user, extended here.

    Returns:
        The roles.

    Raises:
        UsageError: If there is no such reference, or nothing is cheaper.
    """
    priced = eval_set.cost_unit == "usd"
    column = _find_reference(eval_set, saved, reference)
    columns = [column, *_cheap_columns(eval_set, column, saved is not None, notes)]
    cost = eval_set.mean_cost if priced else np.full(len(eval_set.models), np.nan)
    return Roles(tuple(eval_set.models[j] for j in columns), cost[columns], priced)


def _find_reference(eval_set: EvalSet, saved: SavedPredictor | None, requested: str | None) -> int:
    names, cost = eval_set.models, eval_set.mean_cost
    if requested is not None:
        column = match_model(requested, names)
        if column is None:
            raise UsageError(
                f"--reference: {requested!r} is not among {_list_names(names)}.",
                remedy="Name one of them.",
            )
        return column
    if saved is not None:
        for model in _by_predicted_quality(saved):
            for i, name in enumerate(names):
                if match_model(name, saved.artifact.card.models) == model:
                    return i
    if eval_set.cost_unit == "usd" and (cost == cost.max()).sum() == 1:
        return int(np.argmax(cost))
    raise UsageError(
        "Which model is the reference? The table's costs do not tell, and its scores may not: they "
        "are the calibration labels.",
        remedy=f"Give --reference, one of {_list_names(names)}.",
    )


def _by_predicted_quality(saved: SavedPredictor) -> list[int]:
    """Columns of the artifact: its reference, then the others by predicted quality."""
    card, means = saved.artifact.card, saved.artifact.sample_quality.mean(axis=0)
    reference = card.models.index(card.reference)
    return sorted(range(len(card.models)), key=lambda j: (j != reference, -means[j]))


def _cheap_columns(eval_set: EvalSet, reference: int, trained: bool, notes: list[str]) -> list[int]:
    """Columns of lower cost than the reference; without predictions only the cheapest."""
    names, cost = eval_set.models, eval_set.mean_cost
    others = [j for j in range(len(names)) if j != reference]
    if eval_set.cost_unit != "usd":
        return others
    cheap = [j for j in others if cost[j] < cost[reference]]
    if not cheap:
        raise UsageError(
            f"No model costs less than the reference, {names[reference]}.",
            remedy="Choose others with --models, or another --reference.",
        )
    dropped = [names[j] for j in others if j not in cheap]
    if dropped:
        notes.append(f"left out, since they cost no less than the reference: {', '.join(dropped)}")
    if not trained and len(cheap) > 1:
        cheapest = min(cheap, key=lambda j: cost[j])
        notes.append(
            "without labels to predict which cheap model suits a query, only the cheapest is "
            f"certified: {names[cheapest]}; --models names another pair"
        )
        return [cheapest]
    return cheap


def _list_names(names: Sequence[str], most: int = 8) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
