"""How many more requests to expect today, from those so far and from the days before."""

from __future__ import annotations

from math import floor

import msgspec

DAY_S = 86400.0
BINS = 96  # of a quarter of an hour
_BIN_S = DAY_S / BINS
_RECENT = 6  # bins of which the present rate is the mean, without the busiest: a burst
_SMOOTH = 4  # bins to both sides over which a profile is averaged: its bursts will not come back
_HALF = 6.0  # bins after which a bin's say in how busy today is has halved
_SHRINK = 0.02  # of a day's requests: what "today is like the days before" counts for
_YESTERDAY = 0.6  # what the newest whole day counts for in the profile


class Day:
    """Counts of today's requests a bin, and the profile of the whole days before.

    starts_s: when a day starts, seconds after midnight UTC. Time is an argument; a clock that runs
    backwards within a day is taken to stand still.
    """

    def __init__(self, starts_s: float = 0.0) -> None:
        self.starts_s = starts_s
        self.number = -1  # days since 1970
        self.part = 1.0  # of today that we were there for, or will have been
        self._counts = [0.0] * BINS
        self._profile: list[float] | None = None

    @property
    def requests(self) -> float:
        return sum(self._counts)

    def turn(self, now_s: float) -> bool:
        """Whether a new day began; call it before anything else."""
        number = floor((now_s - self.starts_s) / DAY_S)
        if number <= self.number:
            return False
        first = self.number < 0
        if not first and self.part > 0.9:
            old = self._profile
            told = _smooth(self._counts)
            self._profile = (
                told
                if old is None
                else [_YESTERDAY * n + (1 - _YESTERDAY) * o for n, o in zip(told, old, strict=True)]
            )
        self._counts = [0.0] * BINS
        self.number = number
        into = self._into(now_s)
        self.part = 1.0 - into / DAY_S if first else 1.0
        return True

    def count(self, now_s: float) -> None:
        """One more request."""
        self._counts[self._bin(now_s)] += 1.0

    def remaining(self, now_s: float) -> float:
        """Requests still to come today, expected."""
        into = self._into(now_s)
        left_s = DAY_S - into
        been_s = max(1.0, into - (1.0 - self.part) * DAY_S)
        n = self.requests
        if self._profile is None or sum(self._profile) <= 0.0:
            # The average so far stands while the day is long; its end goes by the present rate.
            share = left_s / DAY_S
            return left_s * (share * n / been_s + (1.0 - share) * self._recent(into, been_s))
        whole = sum(self._profile)
        at = self._bin(now_s)
        inside = (into % _BIN_S) / _BIN_S
        before = sum(self._profile[:at]) + inside * self._profile[at]
        # How today compares with the days before, the last hours more than the morning.
        first = int((1.0 - self.part) * BINS)
        weight: list[float] = [0.5 ** ((at - i) / _HALF) for i in range(first, at + 1)]
        usual = [*self._profile[first:at], inside * self._profile[at]]
        came: float = sum(w * c for w, c in zip(weight, self._counts[first : at + 1], strict=True))
        told: float = sum(w * u for w, u in zip(weight, usual, strict=True))
        scale = (came + _SHRINK * whole) / (told + _SHRINK * whole)
        return max(0.0, whole - before) * scale

    def _recent(self, into: float, been_s: float) -> float:
        """Requests a second lately."""
        at = min(BINS - 1, int(into / _BIN_S))
        first = max(0, at - _RECENT + 1, int((into - been_s) / _BIN_S))
        seen = self._counts[first : at + 1]
        span = min(been_s, into - first * _BIN_S)
        if len(seen) >= 4:
            top = max(range(len(seen) - 1), key=seen.__getitem__)  # not the bin we are in
            return (sum(seen) - seen[top]) / max(span - _BIN_S, 1.0)
        return sum(seen) / max(span, 1.0)

    @property
    def known(self) -> bool:
        """Whether there is a whole day's profile to go by."""
        return self._profile is not None

    def left(self, now_s: float) -> float:
        """Share of the day still to come, in time."""
        return 1.0 - self._into(now_s) / DAY_S

    def _into(self, now_s: float) -> float:
        return min(max(0.0, now_s - self.starts_s - self.number * DAY_S), DAY_S - 1e-6)

    def _bin(self, now_s: float) -> int:
        return min(BINS - 1, int(self._into(now_s) / _BIN_S))

    def card(self) -> msgspec.Raw:
        """All of it as JSON, for a snapshot."""
        kept = _Card(self.starts_s, self.number, self.part, self._counts, self._profile)
        return msgspec.Raw(msgspec.json.encode(kept))

    @classmethod
    def from_card(cls, card: msgspec.Raw) -> Day:
        """Raises ValueError where it is none."""
        try:
            kept = msgspec.json.decode(card, type=_Card)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from None
        if len(kept.counts) != BINS or (kept.profile is not None and len(kept.profile) != BINS):
            raise ValueError(f"a day has {BINS} bins")
        out = cls(kept.starts_s)
        out.number, out.part = kept.number, kept.part
        out._counts, out._profile = list(kept.counts), kept.profile
        return out


def _smooth(counts: list[float]) -> list[float]:
    """What to expect of another day: each bin the mean of its neighbourhood on the circle of a day.
    What a bin has above twice the median around it was a burst, which will come again, but at any
    time: it is spread over the whole day, so the sum stays."""
    plain = []
    for i, n in enumerate(counts):
        around = sorted(counts[(i + d) % BINS] for d in range(-2 * _SMOOTH, 2 * _SMOOTH + 1))
        # Where there is little traffic a median of 0 says nothing.
        plain.append(min(n, 2.0 * around[2 * _SMOOTH] + 3.0))
    bursts = (sum(counts) - sum(plain)) / BINS
    around_ = range(-_SMOOTH, _SMOOTH + 1)
    return [
        sum(plain[(i + d) % BINS] for d in around_) / len(around_) + bursts for i in range(BINS)
    ]


class _Card(msgspec.Struct, frozen=True):
    starts_s: float
    number: int
    part: float
    counts: list[float]
    profile: list[float] | None
