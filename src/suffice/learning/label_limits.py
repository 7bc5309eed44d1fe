"""Limits what the labels of one source may count for, so that no client can teach a route alone."""

from __future__ import annotations

from math import exp

import msgspec

_MAX_SOURCES = 10_000
_DECAY_STEP = 0.01  # of the window: the decay is applied at most a hundred times per window
_FORGOTTEN = 1e-3  # a source that counts for less is dropped


class SourceLimits(msgspec.Struct, frozen=True):
    """Limits per source.

    Raises:
        ValueError: A value is out of range.
    """

    share: float = 0.2  # of what counted lately that one source may make up; 1 = no limit
    # Labels per window that every source may give regardless of the share. Also all that a source may
    # give while it is the only one.
    min_labels: float = msgspec.field(default=100.0, name="least")
    window_s: float = 86400.0  # seconds after which what counted has decayed to 1/e
    trusted: frozenset[str] = frozenset()  # sources without a limit

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"limits.share: expected above 0, at most 1, got {self.share!r}")
        if not 0.0 <= self.min_labels <= 1e9:
            raise ValueError(f"limits.min_labels: expected 0 to 1e9, got {self.min_labels!r}")
        if not 1.0 <= self.window_s <= 1e9:
            raise ValueError(f"limits.window_s: expected 1 to 1e9, got {self.window_s!r}")


def limits_for_clients(clients: int) -> SourceLimits:
    """Limits for a gateway with that many API keys.

    Without keys clients cannot be distinguished, and a single client harms no other, so there is
    no limit. A few clients may each give more than an even share, or they would block each other.

    Returns:
        The limits, with the API key as the source.
    """
    if clients < 2:
        return SourceLimits(share=1.0)
    return SourceLimits(share=max(0.2, 1.5 / clients), min_labels=300.0)


class SourceLimiter:
    """What each source counted for lately. Time is an argument and never runs backwards."""

    def __init__(self, limits: SourceLimits) -> None:
        self.limits = limits
        self._weight_of: dict[str, float] = {}  # as of `_decayed_at_s`
        self._total = 0.0
        self._decayed_at_s: float | None = None

    def weight_of(self, source: str) -> float:
        """What the source's labels counted for lately."""
        return self._weight_of.get(source, 0.0)

    def admit(self, source: str, weight: float, now_s: float) -> float:
        """Count a label.

        Args:
            source: Who gave it.
            weight: Its weight, at least 0.
            now_s: Unix time.

        Returns:
            What the label counts for: its weight, or what its source has left, at least 0.
        """
        if weight <= 0.0:
            return 0.0
        self._decay(now_s)
        limits = self.limits
        counted = self._weight_of.get(source, 0.0)
        if limits.share < 1.0 and source not in limits.trusted:
            others = max(0.0, self._total - counted)
            allowed = max(limits.min_labels, limits.share / (1.0 - limits.share) * others)
            weight = min(weight, max(0.0, allowed - counted))
        if weight > 0.0:
            self._weight_of[source] = counted + weight
            self._total += weight
        return weight

    def _decay(self, now_s: float) -> None:
        if self._decayed_at_s is None:
            self._decayed_at_s = now_s
        elapsed_s = now_s - self._decayed_at_s
        if elapsed_s < _DECAY_STEP * self.limits.window_s and len(self._weight_of) < _MAX_SOURCES:
            return
        keep = exp(-max(0.0, elapsed_s) / self.limits.window_s)
        decayed = sorted(
            ((w * keep, source) for source, w in self._weight_of.items()), reverse=True
        )
        # Sources that hardly count are dropped, and the smallest ones if there are too many.
        self._weight_of = {s: w for w, s in decayed[: _MAX_SOURCES // 2] if w > _FORGOTTEN}
        self._total = sum(self._weight_of.values())
        self._decayed_at_s = max(self._decayed_at_s, now_s)

    def copy(self) -> SourceLimiter:
        """An independent copy."""
        return SourceLimiter.from_state(self.state())

    def state(self) -> msgspec.Raw:
        """Everything, as JSON."""
        state = _State(self.limits, self._weight_of, self._total, self._decayed_at_s)
        return msgspec.Raw(msgspec.json.encode(state, order="deterministic"))

    @classmethod
    def from_state(cls, state: msgspec.Raw) -> SourceLimiter:
        """Restore what `state` gave.

        Args:
            state: The JSON.

        Returns:
            The limiter.

        Raises:
            ValueError: It is not such a state.
        """
        try:
            saved = msgspec.json.decode(state, type=_State)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from None
        limiter = cls(saved.limits)
        limiter._weight_of = dict(saved.weight_of)
        limiter._total = saved.total
        limiter._decayed_at_s = saved.decayed_at_s
        return limiter


class _State(msgspec.Struct, frozen=True):
    limits: SourceLimits
    weight_of: dict[str, float] = msgspec.field(name="by")
    total: float
    decayed_at_s: float | None = msgspec.field(name="at")
