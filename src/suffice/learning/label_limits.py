"""How much one source's labels may count for, so that no client can teach the route alone."""

from __future__ import annotations

from math import exp

import msgspec

_MOST_SOURCES = 10_000


class SourceLimits(msgspec.Struct, frozen=True):
    """share: of what counted lately that one source may make up. least: labels a window that every
    source may give whatever the share; also all that a source gets while it is the only one.
    window_s: seconds after which what counted has faded to 1/e. trusted: sources without a limit
    (the operator's own application, tests and judges). share = 1 turns the limit off.
    """

    share: float = 0.2
    least: float = 100.0
    window_s: float = 86400.0
    trusted: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"limits.share: expected above 0, at most 1, got {self.share!r}")
        if not 0.0 <= self.least <= 1e9:
            raise ValueError(f"limits.least: expected 0 to 1e9, got {self.least!r}")
        if not 1.0 <= self.window_s <= 1e9:
            raise ValueError(f"limits.window_s: expected 1 to 1e9, got {self.window_s!r}")


class SourceLimiter:
    """What each source has counted for lately. Time is an argument and never runs backwards."""

    def __init__(self, limits: SourceLimits) -> None:
        self.limits = limits
        self._by: dict[str, float] = {}  # as of `_at`
        self._total = 0.0
        self._at: float | None = None

    def admit(self, source: str, weight: float, now_s: float) -> float:
        """What a label of this weight counts for: all of it, the part that its source has left, or
        0. Counted at once."""
        if weight <= 0.0:
            return 0.0
        self._fade(now_s)
        limits = self.limits
        had = self._by.get(source, 0.0)
        if limits.share < 1.0 and source not in limits.trusted:
            others = max(0.0, self._total - had)
            room = max(limits.least, limits.share / (1.0 - limits.share) * others) - had
            weight = min(weight, max(0.0, room))
        if weight > 0.0:
            self._by[source] = had + weight
            self._total += weight
        return weight

    def _fade(self, now_s: float) -> None:
        if self._at is None:
            self._at = now_s
        # A hundred steps a window: a label is not worth a pass over all sources.
        if now_s - self._at < 0.01 * self.limits.window_s and len(self._by) < _MOST_SOURCES:
            return
        keep = exp(-max(0.0, now_s - self._at) / self.limits.window_s)
        faded = sorted(((v * keep, s) for s, v in self._by.items()), reverse=True)
        # Sources that are hardly there any more are let go, and of a crowd the smallest.
        self._by = {s: v for v, s in faded[: _MOST_SOURCES // 2] if v > 1e-3}
        self._total = sum(self._by.values())
        self._at = max(self._at, now_s)

    def copy(self) -> SourceLimiter:
        return SourceLimiter.from_card(self.card())

    def card(self) -> msgspec.Raw:
        """All of it as JSON, for a snapshot."""
        kept = _Card(self.limits, self._by, self._total, self._at)
        return msgspec.Raw(msgspec.json.encode(kept, order="deterministic"))

    @classmethod
    def from_card(cls, card: msgspec.Raw) -> SourceLimiter:
        """Raises ValueError where it is none."""
        try:
            kept = msgspec.json.decode(card, type=_Card)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from None
        out = cls(kept.limits)
        out._by, out._total, out._at = dict(kept.by), kept.total, kept.at
        return out


class _Card(msgspec.Struct, frozen=True):
    limits: SourceLimits
    by: dict[str, float]
    total: float
    at: float | None
