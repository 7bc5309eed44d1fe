"""What is kept of the traffic while it is read: sums, in memory that is bounded whatever its size.

Sessions stand and fall together, so sums are kept by session; past `GROUPS` of them several share
one, which leaves an interval over groups as valid.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np

GROUPS = 2048
BINS = 9  # of difficulty: eight equal parts, and one where it is unknown
QUALITY_ROWS = 50_000  # labelled decisions that an estimate looks at, the newest
_SESSION_S = 3600.0  # as the router: how long an idle conversation is remembered
_CERTAIN = 1.0 - 1e-9
_SHOWN = 20  # rows that cannot be read, named one by one
# Rows of Route.sums: of each candidate on requests whose cost is known: how many, what was spent,
COVERED, SPENT = 0, 1
# of the model that answered at once: how many, what was predicted, what was paid,
TAKEN, GUESSED, PAID = 2, 3, 4
SCORED, SCORE = 5, 6  # and of the model that answered, on labelled ones.
_SUMS = 7
# Rows of Route.binned, by difficulty: requests, sum and sum of squares of log(paid / predicted) of
# the model that answered at once, and each candidate's predicted cost where that one is free.
RATIOS, LOG_RATIO, LOG_SQUARE, BESIDE_FREE = range(4)


@dataclass
class Labelled:
    """One decision with explicit feedback, as an off-policy estimate needs it. shares: propensities
    of the free choice that was in force. signals, embedding: bytes as stored."""

    chosen: str
    shares: dict[str, float]
    score: float
    session: int
    episode: int
    signals: bytes | None
    embedding: bytes | None


@dataclass
class CandidateTotals:
    """Of one candidate, over all decisions of a route. quality, beside: sums of its predicted
    quality and, on the same requests, of that of the model that answered. drawable: decisions that
    could have gone to it, and inverse: sum of 1 / propensity over those."""

    known: int = 0
    quality: float = 0.0
    beside: float = 0.0
    drawable: int = 0
    inverse: float = 0.0


class RouteTotals:
    """What one route's policy decided. sums: (7, groups, models) and binned: (4, groups, bins,
    models), rows as named above; scaled: (groups, models, models), by the model that answered, what
    each candidate would have cost if the answer were as much longer than predicted as the one that
    came; requests: (groups,) of known cost."""

    def __init__(self) -> None:
        self.models: dict[str, int] = {}
        self.sums = np.zeros((_SUMS, 64, 4))
        self.binned = np.zeros((4, 64, BINS, 4))
        self.scaled = np.zeros((64, 4, 4))
        self.requests = np.zeros(64)
        self.decisions = 0
        self.answered = 0
        self.labelled = 0
        self.free = 0  # free choices, of which
        self.drawn = 0  # these had more than one possible outcome
        self.weighable = 0  # turns with valid propensities: what Expected.drawable is a share of
        self.spent_usd = 0.0
        self.cost_unknown = 0
        self.by_model: Counter[str] = Counter()
        self.basis: Counter[str] = Counter()
        self.expected: dict[str, CandidateTotals] = {}
        self.quality: deque[Labelled] = deque(maxlen=QUALITY_ROWS)
        self.policies: Counter[str] = Counter()
        self._groups: dict[str, int] = {}
        self._episodes = 0
        self._last: dict[str, tuple[float, str | None, dict[str, float], int]] = {}

    def group(self, key: str) -> int:
        """The row of sums that a session belongs to."""
        found = self._groups.get(key)
        if found is None:
            n = len(self._groups)
            if n >= GROUPS:
                return crc32(key.encode("utf-8", "replace")) % GROUPS
            found = self._groups[key] = n
        return found

    @property
    def groups(self) -> int:
        return len(self._groups)

    def column(self, model: str) -> int:
        return self.models.setdefault(model, len(self.models))

    def room(self) -> None:
        """Room for the groups and models met so far."""
        _, g, k = self.sums.shape
        g = max(0, len(self._groups) - g) and max(g, len(self._groups) - g)
        k = max(0, len(self.models) - k) and max(k, len(self.models) - k)
        if g or k:
            self.sums = np.pad(self.sums, ((0, 0), (0, g), (0, k)))
            self.binned = np.pad(self.binned, ((0, 0), (0, g), (0, 0), (0, k)))
            self.scaled = np.pad(self.scaled, ((0, g), (0, k), (0, k)))
            self.requests = np.pad(self.requests, (0, g))

    def trim(self) -> None:
        """Away with the room that was never used: at least one group stays."""
        self.room()
        g, k = max(1, self.groups), len(self.models)
        self.sums = self.sums[:, :g, :k]
        self.binned = self.binned[:, :g, :, :k]
        self.scaled = self.scaled[:g, :k, :k]
        self.requests = self.requests[:g]

    def choice(
        self, row: Mapping[str, Any], shares: dict[str, float]
    ) -> tuple[dict[str, float], int]:
        """(propensities, free choice) that this turn stands on: its own, or those of the turn whose
        model it only kept to."""
        key, chosen, at = row["session"], row["chosen"], float(row["created_s"])
        before = self._last.get(key) if key is not None else None
        if before is not None and at - before[0] > _SESSION_S:
            before = None
        kept = (
            before is not None
            and chosen == before[1]
            and shares.get(chosen, 0.0) >= _CERTAIN
            and before[2].get(chosen, 0.0) > 0.0
        )
        if kept and before is not None:
            shares, episode = before[2], before[3]
        else:
            episode = self._episodes
            self._episodes += 1
            self.free += 1
            self.drawn += shares.get(chosen, 0.0) < _CERTAIN
        if key is not None:
            incumbent = row["model"] if row["model"] is not None and row["status"] < 400 else None
            if incumbent is None and before is not None:
                incumbent = before[1]
            self._last[key] = (at, incumbent, shares, episode)
            if len(self._last) > 100_000:
                self._last = {k: v for k, v in self._last.items() if at - v[0] <= _SESSION_S}
        return shares, episode


@dataclass
class Source:
    """Feedback of one source as it stands now."""

    kind: str
    decisions: int = 0
    scores: int = 0
    total: float = 0.0


@dataclass
class Traffic:
    """All that was read. buckets: start of an interval of `bucket_s` -> model -> requests, and
    spent, failed beside it. attempts: model -> outcome -> (calls, USD of the known costs, of how many
    calls)."""

    requests: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    bucket_s: float = 60.0
    spent_usd: float = 0.0
    cost_unknown: int = 0
    bypass: int = 0
    bypass_usd: float = 0.0
    audits: int = 0
    audits_usd: float = 0.0
    overruled: int = 0
    routes: dict[str, RouteTotals] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    failed: int = 0
    client_left: int = 0
    failovers: int = 0
    retried: int = 0
    overhead_ms: array[float] = field(default_factory=lambda: array("f"))
    latency_s: dict[str, array[float]] = field(default_factory=dict)
    first_chunk_s: dict[str, array[float]] = field(default_factory=dict)
    mix: dict[float, Counter[str]] = field(default_factory=dict)
    spent: Counter[float] = field(default_factory=Counter)
    failures: Counter[float] = field(default_factory=Counter)
    sources: dict[str, Source] = field(default_factory=dict)
    attempts: dict[str, dict[str, tuple[int, float, int]]] = field(default_factory=dict)
    n_skipped: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def skip(self, decision_id: object, why: str) -> None:
        self.n_skipped += 1
        if len(self.skipped) < _SHOWN:
            self.skipped.append((str(decision_id), why))
