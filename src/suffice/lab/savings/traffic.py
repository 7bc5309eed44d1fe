"""Reads the recorded traffic of a store, oldest first, into totals per route."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from suffice import features
from suffice.lab.ope.logged_choices import CERTAIN, FreeChoices, Turn
from suffice.lab.savings.requests import Candidate, RequestColumns
from suffice.store import reader
from suffice.store.protocols import AUDIT_ROUTE_PREFIX
from suffice.types import Prediction

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

    from suffice.store.reader import AttemptTotals, StoredDecision

MAX_GROUPS = 2048  # sessions beyond this number share groups
MAX_LABELLED = 50_000  # labelled decisions that estimates of quality use, the newest
_MAX_NAMED = 20  # unreadable rows that are named one by one
_MIN_PROPENSITY = 1e-9  # below this a propensity is 0: its weight would dominate all others
_BUCKETS_S = tuple(
    float(s) for s in (1, 5, 10, 60, 300, 900, 3600, 10800, 21600, 43200, 86400, 604800, 2419200)
)
_MAX_BUCKETS = 60
_COLUMNS = (
    "created_s", "route", "chosen", "model", "policy", "policy_version", "basis", "difficulty",
    "status", "attempts", "session", "cost_usd", "latency_s", "first_chunk_s", "overhead_ms",
    "stream", "features", "features_schema", "embedding", "detail",
)  # fmt: skip


@dataclass
class CandidateTotals:
    """Decisions of a route that could have chosen one candidate.

    Attributes:
        samplable: Number of decisions with a propensity above 0.
        inverse_propensity: Sum of 1 / propensity over them.
    """

    samplable: int = 0
    inverse_propensity: float = 0.0


@dataclass
class NamedTotals:
    """Requests that named one model, so no policy decided them."""

    requests: int = 0
    spent_usd: float = 0.0
    cost_unknown: int = 0


@dataclass
class SourceTotals:
    """Current feedback of one source."""

    kind: str
    decisions: int = 0
    scores: int = 0
    total: float = 0.0


class RouteTraffic:
    """What one route's policy decided.

    Attributes:
        models: Model -> its column, in order of appearance.
        requests: The requests whose predictions can be read.
        turns: The newest labelled decisions with a feature vector of the current schema.
        weighable: Number of decisions with valid propensities.
        candidates: Model -> totals over the weighable decisions.
        free_choices, random_choices: Number of free choices, and of those with several outcomes.
    """

    def __init__(self) -> None:
        self.models: dict[str, int] = {}
        self.requests = RequestColumns()
        self.turns: deque[Turn] = deque(maxlen=MAX_LABELLED)
        self.decisions = 0
        self.answered = 0
        self.labelled = 0
        self.weighable = 0
        self.free_choices = 0
        self.random_choices = 0
        self.spent_usd = 0.0
        self.cost_unknown = 0
        self.answers: Counter[str] = Counter()
        self.basis: Counter[str] = Counter()
        self.policies: Counter[str] = Counter()
        self.candidates: dict[str, CandidateTotals] = {}
        self._groups: dict[str, int] = {}
        self._choices = FreeChoices()

    @property
    def groups(self) -> int:
        """Number of sessions, up to `MAX_GROUPS`."""
        return len(self._groups)

    def group(self, key: str) -> int:
        """Return the number of a session."""
        if key not in self._groups and len(self._groups) >= MAX_GROUPS:
            return crc32(key.encode("utf-8", "replace")) % MAX_GROUPS
        return self._groups.setdefault(key, len(self._groups))

    def column(self, model: str) -> int:
        """Return the column of a model."""
        return self.models.setdefault(model, len(self.models))

    def count(self, row: RowMapping, usd: float | None, answered: bool) -> None:
        """Add a decision to the totals that need no predictions."""
        self.decisions += 1
        self.answered += answered
        self.spent_usd += usd or 0.0
        self.cost_unknown += usd is None
        self.basis[row["basis"]] += 1
        self.policies[f"{row['policy']} {row['policy_version']}"] += 1
        if answered:
            self.answers[row["model"]] += 1

    def add_request(
        self,
        row: RowMapping,
        predictions: Sequence[Prediction],
        usd: float | None,
        score: float | None,
    ) -> int:
        """Add a request with its predictions.

        Args:
            row: Of the table `decisions`.
            predictions: Of all candidates.
            usd: Cost of the answer; `None` if it is unknown or there is no answer.
            score: Mean explicit feedback; `None` if there is none.

        Returns:
            The number of its session.
        """
        group = self.group(row["id"] if row["session"] is None else row["session"])
        candidates = [self._candidate(p) for p in predictions]
        self.labelled += score is not None
        self.requests.append(
            group,
            -1 if row["model"] is None else self.column(row["model"]),
            candidates,
            paid_usd=usd,
            difficulty=row["difficulty"],
            first_attempt=row["attempts"] == 1,
            score=score,
        )
        return group

    def _candidate(self, p: Prediction) -> Candidate:
        usd = p.cost_usd
        if usd is None or not isfinite(usd) or usd < 0:
            usd = nan
        return self.column(p.model), usd, nan if p.quality is None else p.quality

    def add_choice(
        self, row: RowMapping, propensities: Mapping[str, float], score: float | None, session: int
    ) -> None:
        """Add a decision whose choice was possible under its propensities."""
        answered_by = row["model"] if row["status"] < 400 else None
        choice = self._choices.assign(
            row["session"], float(row["created_s"]), row["chosen"], answered_by, propensities
        )
        self.free_choices += choice.is_new
        self.random_choices += choice.is_new and choice.propensities[row["chosen"]] < CERTAIN
        self.weighable += 1
        for model, p in choice.propensities.items():
            if p > 0.0:
                totals = self.candidates.setdefault(model, CandidateTotals())
                totals.samplable += 1
                totals.inverse_propensity += 1.0 / p
        signals = _vector(row["features"], "<f4", len(features.SIGNAL_NAMES))
        if score is None or signals is None or row["features_schema"] != features.SCHEMA:
            return
        self.turns.append(
            Turn(
                chosen=row["chosen"],
                score=score,
                propensities=choice.propensities,
                session=session,
                episode=choice.episode,
                signals=signals,
                embedding=_vector(row["embedding"], "<f2", features.DIMENSIONS),
            )
        )


@dataclass
class Traffic:
    """Everything that was read.

    Attributes:
        first_s, last_s: Unix time of the first and last request.
        bucket_s: Length of a time bucket in seconds.
        named: Model -> requests that named it.
        routes: Route -> what its policy decided.
        answers, spent_usd_by_bucket, failures: By start of the bucket.
        sources: Source of feedback -> its totals.
        attempts: Totals of calls by model and outcome.
        overruled: Decisions whose choice was impossible under their propensities.
    """

    first_s: float
    last_s: float
    bucket_s: float
    requests: int = 0
    spent_usd: float = 0.0
    cost_unknown: int = 0
    named: dict[str, NamedTotals] = field(default_factory=dict)
    audits: int = 0
    audits_usd: float = 0.0
    overruled: int = 0
    failed: int = 0
    client_disconnects: int = 0
    failovers: int = 0
    retried: int = 0
    routes: dict[str, RouteTraffic] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    overhead_ms: array[float] = field(default_factory=lambda: array("f"))
    latency_s: dict[str, array[float]] = field(default_factory=dict)
    first_chunk_s: dict[str, array[float]] = field(default_factory=dict)
    answers: dict[float, Counter[str]] = field(default_factory=dict)
    spent_usd_by_bucket: dict[float, float] = field(default_factory=dict)
    failures: Counter[float] = field(default_factory=Counter)
    sources: dict[str, SourceTotals] = field(default_factory=dict)
    attempts: list[AttemptTotals] = field(default_factory=list)
    skipped: int = 0
    skipped_rows: list[tuple[str, str]] = field(default_factory=list)

    def skip(self, decision_id: str, reason: str) -> None:
        """Count a row, or a part of one, that cannot be read."""
        self.skipped += 1
        if len(self.skipped_rows) < _MAX_NAMED:
            self.skipped_rows.append((decision_id, reason))

    def add(self, decision: StoredDecision) -> None:
        """Add one stored decision with its scores."""
        row = decision.row
        self._add_feedback(decision)
        usd = row["cost_usd"]
        if usd is not None and not (isfinite(usd) and usd >= 0):
            self.skip(row["id"], f"its cost is {usd!r}")
            usd = None
        if row["route"].startswith(AUDIT_ROUTE_PREFIX):
            self.audits += 1
            self.audits_usd += usd or 0.0
            return
        answered = row["model"] is not None and row["status"] < 400
        self._count(row, usd, answered)
        if row["basis"] == "bypass":
            named = self.named.setdefault(row["chosen"], NamedTotals())
            named.requests += 1
            named.spent_usd += usd or 0.0
            named.cost_unknown += usd is None
            return
        route = self.routes.setdefault(row["route"], RouteTraffic())
        route.count(row, usd, answered)
        try:
            predictions = reader.decode_detail(row["detail"]).predictions
        except (ValueError, TypeError) as error:  # msgspec's errors are ValueErrors
            self.skip(row["id"], str(error).splitlines()[0])
            return
        score = reader.mean_score(decision.scores, explicit=True)
        session = route.add_request(row, predictions, usd if answered else None, score)
        propensities = {p.model: float(p.propensity) for p in predictions}
        if len(propensities) < len(predictions) or not _is_distribution(propensities):
            values = list(propensities.values())
            self.skip(row["id"], f"its propensities {values} are no distribution")
            return
        possible = {m: p if p >= _MIN_PROPENSITY else 0.0 for m, p in propensities.items()}
        if possible.get(row["chosen"], 0.0) == 0.0:
            # The client's own order of providers, or a cooling model, changed the choice.
            self.overruled += 1
            return
        route.add_choice(row, possible, score, session)

    def _add_feedback(self, decision: StoredDecision) -> None:
        seen = set()
        for s in decision.scores:
            totals = self.sources.setdefault(s.source, SourceTotals(s.kind))
            totals.scores += 1
            totals.total += s.score
            totals.decisions += s.source not in seen
            seen.add(s.source)

    def _count(self, row: RowMapping, usd: float | None, answered: bool) -> None:
        """Add a request to the totals over all routes."""
        self.requests += 1
        self.spent_usd += usd or 0.0
        self.cost_unknown += usd is None
        bucket = int((row["created_s"] - self.first_s) // self.bucket_s)
        start_s = self.first_s + bucket * self.bucket_s
        spent = self.spent_usd_by_bucket.get(start_s, 0.0)
        self.spent_usd_by_bucket[start_s] = spent + (usd or 0.0)
        status, model = row["status"], row["model"]
        self.statuses[status] += 1
        if answered:
            self.answers.setdefault(start_s, Counter())[model] += 1
            self.latency_s.setdefault(model, array("f")).append(row["latency_s"])
            if row["stream"] and row["first_chunk_s"] is not None:
                self.first_chunk_s.setdefault(model, array("f")).append(row["first_chunk_s"])
            self.failovers += model != row["chosen"]
        elif status == 499:
            self.client_disconnects += 1
        else:
            self.failed += 1
            self.failures[start_s] += 1
        self.retried += row["attempts"] > 1
        self.overhead_ms.append(row["overhead_ms"])


def read_traffic(url: str, *, since_s: float | None = None, route: str | None = None) -> Traffic:
    """Return everything that was recorded; write nothing.

    Args:
        url: Of the store.
        since_s: Unix time of the oldest request; `None` for no limit.
        route: Only this route.

    Raises:
        StoreError: If there is no store, or it cannot be read.
    """
    with reader.open_reader(url) as store:
        span = store.span(since_s=since_s, route=route, audits=True)
        traffic = Traffic(span.first_s, span.last_s, _bucket(span.last_s - span.first_s))
        for decision in store.decisions(
            _COLUMNS, since_s=since_s, route=route, audits=True, on_invalid=traffic.skip
        ):
            traffic.add(decision)
        traffic.attempts = store.attempts(since_s=since_s, route=route, audits=True)
    return traffic


def _bucket(span_s: float) -> float:
    """Return a length of time buckets, in seconds, that gives about 60 of them at most."""
    return next((s for s in _BUCKETS_S if span_s / s <= _MAX_BUCKETS), 364 * 86400.0)


def _is_distribution(propensities: Mapping[str, float]) -> bool:
    values = propensities.values()
    return all(0.0 <= p <= 1.0 + 1e-9 for p in values) and abs(sum(values) - 1.0) <= 1e-6


def _vector(blob: bytes | None, dtype: str, size: int) -> NDArray[np.float32] | None:
    if blob is None or len(blob) != size * np.dtype(dtype).itemsize:
        return None
    return np.frombuffer(blob, dtype).astype(np.float32)
