"""Reads recorded decisions from a store, for replay.

A row that cannot be read (a detail that is not JSON, a feature vector of another schema, propensities
that do not sum to 1) is skipped, named and counted; the others are read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite, nan
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice import features
from suffice.store.reader import decode_detail, mean_score, open_reader
from suffice.types import Objective, Prediction

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

MAX_DECISIONS = 500_000  # decisions read at a time, the newest
_SHOWN = 20  # skipped rows that are named one by one
_SIGNALS = len(features.SIGNAL_NAMES)
_COLUMNS = (
    "created_s", "route", "chosen", "model", "policy", "policy_version", "basis", "propensity",
    "status", "session", "cost_usd", "features", "features_schema", "embedding", "detail",
)  # fmt: skip


class LoggedDecision(msgspec.Struct, frozen=True, kw_only=True):
    """One decision as it was made.

    Attributes:
        model: Which model answered, None if none did.
        predictions: Of each candidate, with its propensity.
        plan: Models in the order in which they were to be called.
        signals: float32 (n_signals,).
        embedding: float32 (n_dimensions,), None if it was not recorded.
        score: Weighted mean of its feedback, NaN without feedback.
    """

    id: str
    created_s: float
    route: str
    chosen: str
    model: str | None
    status: int
    session: str | None
    cost_usd: float | None
    predictions: tuple[Prediction, ...]
    plan: tuple[str, ...]
    objective: Objective
    policy: str
    policy_version: str
    signals: NDArray[np.float32]
    embedding: NDArray[np.float32] | None
    score: float


@dataclass
class DecisionLog:
    """Decisions read from a store.

    Attributes:
        rows: Oldest first.
        skipped: (decision id, reason) of the first rows that cannot be read.
        n_skipped: Number of all rows that cannot be read.
        excluded: Reason -> number of decisions that can be read but that no policy made.
        sources: Source of feedback -> number of decisions that have some.
        truncated: Whether the store has more than `MAX_DECISIONS`.
    """

    rows: list[LoggedDecision] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    n_skipped: int = 0
    excluded: dict[str, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    truncated: bool = False

    def skip(self, decision_id: str, reason: str) -> None:
        """Count a row that cannot be read."""
        self.n_skipped += 1
        if len(self.skipped) < _SHOWN:
            self.skipped.append((decision_id, reason))

    def add(self, row: RowMapping, score: float | None) -> None:
        """Add one row of the table `decisions`, or count why it is not used."""
        if row["basis"] == "bypass":
            self._exclude("asked for by name, so no policy decided")
            return
        try:
            decision = _parse(row, score)
            propensity = _chosen_propensity(decision)
        except (ValueError, TypeError) as error:  # msgspec's errors are ValueErrors
            self.skip(str(row["id"]), str(error).splitlines()[0])
            return
        if propensity == 0.0:
            # The client's own order of providers, or a model in cooldown, changed the first model.
            self._exclude("another model was put in front of the policy's choice")
            return
        self.rows.append(decision)

    def _exclude(self, reason: str) -> None:
        self.excluded[reason] = self.excluded.get(reason, 0) + 1


def read_decisions(
    url: str,
    *,
    since_s: float | None = None,
    route: str | None = None,
    sources: frozenset[str] | None = None,
) -> DecisionLog:
    """Read the newest decisions of a store with their feedback.

    Args:
        url: Of the store.
        since_s: Only decisions since then, unix time.
        route: Only decisions of this route.
        sources: Only feedback of these sources.

    Returns:
        The decisions, oldest first, and what was left out.

    Raises:
        StoreError: If the store cannot be read.
    """
    log = DecisionLog()
    with open_reader(url) as store:
        decisions = store.decisions(
            _COLUMNS,
            since_s=since_s,
            route=route,
            newest_first=True,
            limit=MAX_DECISIONS + 1,
            on_invalid=log.skip,
        )
        for n, (row, scores) in enumerate(decisions):
            if n == MAX_DECISIONS:
                log.truncated = True
                break
            used = [s for s in scores if sources is None or s.source in sources]
            for source in {s.source for s in used if s.weight > 0.0}:
                log.sources[source] = log.sources.get(source, 0) + 1
            log.add(row, mean_score(used))
    log.rows.reverse()
    log.sources = dict(sorted(log.sources.items()))
    return log


def _parse(row: RowMapping, score: float | None) -> LoggedDecision:
    """Decode a row; raises ValueError or TypeError if it cannot be read."""
    detail = decode_detail(row["detail"])
    signals = _vector(row["features"], "<f4", _SIGNALS, "feature vector")
    if signals is None:
        raise ValueError("no feature vector was recorded")
    if row["features_schema"] != features.SCHEMA:
        raise ValueError(
            f"its feature vector is of schema {row['features_schema']!r}; this version makes "
            f"{features.SCHEMA!r}"
        )
    cost_usd = None if row["cost_usd"] is None else float(row["cost_usd"])
    if cost_usd is not None and not (isfinite(cost_usd) and cost_usd >= 0):
        raise ValueError(f"its cost is {cost_usd!r}")
    return LoggedDecision(
        id=str(row["id"]),
        created_s=float(row["created_s"]),
        route=str(row["route"]),
        chosen=str(row["chosen"]),
        model=row["model"],
        status=int(row["status"]),
        session=row["session"],
        cost_usd=cost_usd,
        predictions=detail.predictions,
        plan=tuple(s.model for s in detail.plan),
        objective=detail.objective,
        policy=str(row["policy"]),
        policy_version=str(row["policy_version"]),
        signals=signals,
        embedding=_vector(row["embedding"], "<f2", features.DIMENSIONS, "embedding"),
        score=nan if score is None else score,
    )


def _vector(blob: object, dtype: str, n: int, what: str) -> NDArray[np.float32] | None:
    if blob is None:
        return None
    if not isinstance(blob, bytes) or len(blob) != n * np.dtype(dtype).itemsize:
        size = len(blob) if isinstance(blob, bytes) else type(blob).__name__
        raise ValueError(f"its {what} should hold {n} numbers, not {size} bytes")
    vector = np.frombuffer(blob, dtype).astype(np.float32)
    if not np.isfinite(vector).all():
        raise ValueError(f"its {what} holds values that are not numbers")
    return vector


def _chosen_propensity(decision: LoggedDecision) -> float:
    """Propensity of the chosen model; raises ValueError if those of the candidates are invalid."""
    names = [p.model for p in decision.predictions]
    if decision.chosen not in names:
        raise ValueError(f"its choice {decision.chosen!r} is not among its candidates")
    if len(set(names)) < len(names):
        raise ValueError("a candidate is recorded twice")
    propensities = [p.propensity for p in decision.predictions]
    in_range = all(0.0 <= p <= 1.0 + 1e-9 for p in propensities)
    if not in_range or abs(sum(propensities) - 1.0) > 1e-6:
        raise ValueError(f"its propensities {propensities} do not sum to 1")
    return propensities[names.index(decision.chosen)]
