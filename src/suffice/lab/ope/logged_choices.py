"""The choice that each logged decision follows, and logged choices as arrays.

In a conversation the router makes a free choice and then keeps to it. Such a later turn is logged
with propensity 1, but it was as likely as the free choice it follows. `FreeChoices` finds that
choice, so a turn carries its propensities and its episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import FloatArray
from suffice.lab.ope.estimators import LoggedData
from suffice.routing.sessions import MAX_IDLE_S

CERTAIN = 1.0 - 1e-9  # a propensity from here on is no random choice
_MAX_SESSIONS = 100_000  # remembered before those that the router forgot are dropped


class FreeChoice(NamedTuple):
    """The free choice that is in force at a turn.

    Attributes:
        propensities: Model -> the log's probability of choosing it.
        episode: Number of the choice.
        is_new: Whether this turn made the choice; false if the turn keeps to an earlier one.
    """

    propensities: Mapping[str, float]
    episode: int
    is_new: bool


class _LastTurn(NamedTuple):
    created_s: float
    incumbent: str | None
    choice: FreeChoice


class FreeChoices:
    """Assigns a free choice to each logged turn. Turns must come oldest first."""

    def __init__(self) -> None:
        self._last: dict[str, _LastTurn] = {}
        self._episodes = 0

    def assign(
        self,
        session: str | None,
        created_s: float,
        chosen: str,
        answered_by: str | None,
        propensities: Mapping[str, float],
    ) -> FreeChoice:
        """Return the choice in force at this turn and remember the turn.

        Args:
            session: Key of the conversation; `None` if the request has none.
            created_s: Unix time of the turn.
            chosen: The model that was chosen.
            answered_by: The model that answered successfully; `None` if none did.
            propensities: Model -> probability as logged for this turn.
        """
        before = self._last.get(session) if session is not None else None
        if before is not None and created_s - before.created_s > MAX_IDLE_S:
            before = None
        inherits = (
            before is not None
            and chosen == before.incumbent
            and propensities.get(chosen, 0.0) >= CERTAIN
            and before.choice.propensities.get(chosen, 0.0) > 0.0
        )
        if before is not None and inherits:
            choice = before.choice._replace(is_new=False)
        else:
            choice = FreeChoice(propensities, self._episodes, True)
            self._episodes += 1
        if session is not None:
            incumbent = answered_by if answered_by or before is None else before.incumbent
            self._last[session] = _LastTurn(created_s, incumbent, choice)
            if len(self._last) > _MAX_SESSIONS:
                oldest_s = created_s - MAX_IDLE_S
                self._last = {k: t for k, t in self._last.items() if t.created_s >= oldest_s}
        return choice


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One logged decision as an off-policy estimate needs it.

    Attributes:
        chosen: The model that was chosen.
        score: Weighted mean of its feedback; NaN if unlabelled.
        propensities: Model -> the log's probability, of the free choice in force.
        session: Number of the session.
        episode: Number of the free choice in force.
        signals: (n_signals,) features of the query.
        embedding: (n_dimensions,) embedding of the query; `None` if not recorded.
    """

    chosen: str
    score: float
    propensities: Mapping[str, float]
    session: int
    episode: int
    signals: NDArray[np.float32]
    embedding: NDArray[np.float32] | None


def logged_data(turns: Sequence[Turn], models: Sequence[str]) -> LoggedData:
    """Return n turns over k models as arrays."""
    column = {m: j for j, m in enumerate(models)}
    propensities = by_model([t.propensities for t in turns], models)
    action = np.array([column[t.chosen] for t in turns], np.intp)
    return LoggedData(
        action,
        propensities[np.arange(len(turns)), action],
        np.array([t.score for t in turns], float),
        propensities,
        np.array([t.session for t in turns], np.intp),
        np.array([t.episode for t in turns], np.intp),
    )


def by_model(rows: Sequence[Mapping[str, float]], models: Sequence[str]) -> FloatArray:
    """Return (n, k) values of n mappings from model to value; 0 if a model has none."""
    return np.array([[row.get(m, 0.0) for m in models] for row in rows], float).reshape(
        len(rows), len(models)
    )
