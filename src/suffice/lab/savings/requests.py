"""The answered and unanswered requests of one route as arrays.

A row of the first group of arrays is a request. A row of the second is a candidate of a request, so
the arrays are compact for any sizes of pools.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import FloatArray

Candidate = tuple[int, float, float]  # column of the model, predicted USD, predicted quality


@dataclass(frozen=True)
class RequestArrays:
    """n requests and the m candidates of all of them. NaN means unknown.

    Attributes:
        group: (n,) number of the request's session; large stores share numbers.
        answered: (n,) column of the model that answered; -1 if none did.
        paid_usd: (n,) cost of an answered request.
        difficulty: (n,) in [0, 1].
        first_attempt: (n,) whether the first attempt answered.
        score: (n,) mean explicit feedback in [0, 1].
        request: (m,) row of the candidate's request.
        model: (m,) column of the candidate.
        predicted_usd: (m,) predicted cost.
        predicted_quality: (m,) predicted quality.
    """

    group: NDArray[np.intp]
    answered: NDArray[np.intp]
    paid_usd: FloatArray
    difficulty: FloatArray
    first_attempt: NDArray[np.bool_]
    score: FloatArray
    request: NDArray[np.intp]
    model: NDArray[np.intp]
    predicted_usd: FloatArray
    predicted_quality: FloatArray

    def of_answering_model(self, values: FloatArray) -> FloatArray:
        """Return the (n,) value of the candidate that answered, of (m,) candidate values.

        NaN if no candidate answered.
        """
        answered = np.full(len(self.group), np.nan)
        is_answer = self.model == self.answered[self.request]
        answered[self.request[is_answer]] = values[is_answer]
        return answered


class RequestColumns:
    """Collects requests one by one in compact columns."""

    def __init__(self) -> None:
        self._group, self._answered = array("i"), array("i")
        self._paid, self._difficulty, self._score = array("d"), array("d"), array("d")
        self._first_attempt = array("b")
        self._request, self._model = array("i"), array("i")
        self._predicted_usd, self._predicted_quality = array("d"), array("d")

    def append(
        self,
        group: int,
        answered: int,
        candidates: Iterable[Candidate],
        *,
        paid_usd: float | None,
        difficulty: float | None,
        first_attempt: bool,
        score: float | None,
    ) -> None:
        """Add a request with its candidates. Arguments as in `RequestArrays`."""
        for model, usd, quality in candidates:
            self._request.append(len(self._group))
            self._model.append(model)
            self._predicted_usd.append(usd)
            self._predicted_quality.append(quality)
        self._group.append(group)
        self._answered.append(answered)
        self._paid.append(nan if paid_usd is None else paid_usd)
        self._difficulty.append(nan if difficulty is None else difficulty)
        self._first_attempt.append(first_attempt)
        self._score.append(nan if score is None else score)

    def arrays(self) -> RequestArrays:
        """Return all requests so far."""
        return RequestArrays(
            group=np.array(self._group, np.intp),
            answered=np.array(self._answered, np.intp),
            paid_usd=np.array(self._paid, float),
            difficulty=np.array(self._difficulty, float),
            first_attempt=np.array(self._first_attempt, bool),
            score=np.array(self._score, float),
            request=np.array(self._request, np.intp),
            model=np.array(self._model, np.intp),
            predicted_usd=np.array(self._predicted_usd, float),
            predicted_quality=np.array(self._predicted_quality, float),
        )
