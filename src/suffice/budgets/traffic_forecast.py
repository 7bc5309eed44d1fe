"""How many more requests to expect today, from those so far and from the days before."""

from __future__ import annotations

from math import ceil, exp, floor
from typing import NamedTuple

import msgspec

DAY_S = 86400.0
BINS = 96  # of a quarter of an hour
_BIN_S = DAY_S / BINS
_RECENT = 6  # bins of which the present rate is the mean
_TREND = 2 * _RECENT  # bins after which a rise or fall has died out, all but 1/e
_TURN = 2.0  # the most that it is taken to be, from those bins to the next
_SMOOTH = 4  # bins to both sides over which a profile is averaged
_AROUND = 8  # bins to both sides whose median tells a burst
_BURST, _FEW = 2.0, 3.0  # times that median, and requests more, above which it is one
# Of which nothing is known, before the bursts of a first day say how many come.
_BURSTS_S = 6 * 3600.0
_HALF = 12.0  # bins after which a bin's say in how busy today is has halved
_ERROR = 0.1  # of the rate of what is left of a day, as a standard deviation, towards its end
_ERROR_KNOWN, _ERROR_BLIND = 0.3, 0.5  # at its start, with a profile and without
_SHRINK = 0.02  # of a day's requests: what "today is like the days before" counts for
_YESTERDAY = 0.6  # what the newest whole day counts for in the profile


class RemainingTraffic(NamedTuple):
    """Requests still to come: expected, expected if no further burst comes, and how far off the first
    may be, as a standard deviation."""

    expected: float
    calm: float
    spread: float


class TrafficForecast:
    """Counts of today's requests a bin, and the profile of the whole days before. Bursts are set
    apart: they neither go on nor come again at the same time, but as often.

    starts_s: when a day starts, seconds after midnight UTC. Time is an argument; a clock that runs
    backwards within a day is taken to stand still.
    """

    def __init__(self, starts_s: float = 0.0) -> None:
        self.starts_s = starts_s
        self.number = -1  # days since 1970
        self.part = 1.0  # of today that we were there for, or will have been
        self._counts = [0.0] * BINS
        self._profile: list[float] | None = None  # without bursts
        self._bursts = 0.0  # requests a day that come in bursts; the sum of the bursts' squares
        self._squares = 0.0
        self._calm_at = -1
        self._calmed: list[float] = []

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
            self._learn()
        self._counts, self._calm_at = [0.0] * BINS, -1
        self.number = number
        into = self._into(now_s)
        self.part = 1.0 - into / DAY_S if first else 1.0
        return True

    def _learn(self) -> None:
        """The day that is over goes into the profile."""
        calm = _without_bursts(self._counts)
        (bursts, squares), told = _bursts(self._counts, calm), _smooth(calm)
        new = 1.0 if self._profile is None else _YESTERDAY
        old = self._profile or told
        self._profile = [new * n + (1.0 - new) * o for n, o in zip(told, old, strict=True)]
        self._bursts = new * bursts + (1.0 - new) * self._bursts
        self._squares = new * squares + (1.0 - new) * self._squares

    def count(self, now_s: float) -> None:
        """One more request."""
        self._counts[self._bin(now_s)] += 1.0

    def remaining(self, now_s: float) -> RemainingTraffic:
        """Requests still to come today."""
        into = self._into(now_s)
        left = 1.0 - into / DAY_S
        if self._profile is None or sum(self._profile) <= 0.0:
            return self._blind(into, left)
        at = self._bin(now_s)
        inside = (into % _BIN_S) / _BIN_S
        scale = self._scale(at, inside)
        calm = scale * ((1.0 - inside) * self._profile[at] + sum(self._profile[at + 1 :]))
        bursts, squares = scale * self._bursts * left, scale * scale * self._squares * left
        return _ahead(calm, bursts, squares, _error(_ERROR_KNOWN, left))

    def _scale(self, at: int, inside: float) -> float:
        """How today compares with the days before, the last hours more than the morning."""
        assert self._profile is not None
        came = told = _SHRINK * (sum(self._profile) + self._bursts)
        first = self._first
        calm = self._calm(first, at)
        now = self._profile[at] * inside
        came += min(self._counts[at], _BURST * now * came / told + _FEW)
        told += now
        for i in range(first, at):
            weight = 0.5 ** ((at - i) / _HALF)
            came += weight * calm[i - first]
            told += weight * self._profile[i]
        return came / told

    def _blind(self, into: float, left: float) -> RemainingTraffic:
        """Without any day before: the mean so far stands while the day is long, its end goes by the
        present rate and by how that changes."""
        first, at = self._first, min(BINS - 1, int(into / _BIN_S))
        been_s = max(1.0, into - (1.0 - self.part) * DAY_S)
        calm = self._calm(first, at)
        if len(calm) < _RECENT:
            return _ahead(self.requests / been_s * left * DAY_S, 0.0, 0.0, _ERROR_BLIND)
        recent, mean = _mean(calm[-_RECENT:]), _mean(calm)
        if len(calm) >= 2 * _RECENT:
            # On average over the rest of the day, a rise or fall goes on for half of it, and fades.
            before = _mean(calm[-2 * _RECENT : -_RECENT])
            lasts = _TREND / _RECENT * (1.0 - exp(-left * BINS / 2.0 / _TREND))
            turn = (recent + _FEW) / (before + _FEW)
            recent *= min(_TURN, max(1.0 / _TURN, turn)) ** lasts
        rate = (left * left * mean + (1.0 - left * left) * recent) / _BIN_S
        again = left * DAY_S / (been_s + _BURSTS_S)
        bursts, squares = _bursts(self._counts[first:at], calm)
        calm_ahead = rate * left * DAY_S
        return _ahead(calm_ahead, bursts * again, squares * again, _error(_ERROR_BLIND, left))

    @property
    def _first(self) -> int:
        """The first whole bin of today that we were there for."""
        return ceil((1.0 - self.part) * BINS - 1e-9)

    def _calm(self, first: int, at: int) -> list[float]:
        """Today's whole bins so far, without bursts."""
        if self._calm_at != at:
            self._calm_at, self._calmed = at, _without_bursts(self._counts[first:at])
        return self._calmed

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
        kept = _Card(self.starts_s, self.number, self.part, self._counts, self._profile,
            self._bursts, self._squares)  # fmt: skip
        return msgspec.Raw(msgspec.json.encode(kept))

    @classmethod
    def from_card(cls, card: msgspec.Raw) -> TrafficForecast:
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
        out._bursts, out._squares = kept.bursts, kept.squares
        return out


def seconds_to_midnight(now_s: float, day_starts_s: float = 0.0) -> float:
    """Until the budget's next day begins: the Retry-After of a refusal."""
    return DAY_S - (now_s - day_starts_s) % DAY_S


def _mean(counts: list[float]) -> float:
    return sum(counts) / len(counts)


def _bursts(counts: list[float], calm: list[float]) -> tuple[float, float]:
    """Requests that came in bursts, and the sum of the bursts' squares; neighbouring bins are one."""
    total = squares = size = 0.0
    for n, usual in zip(counts, calm, strict=True):
        size = size + n - usual if n > usual else 0.0
        if n > usual:
            total += n - usual
            squares += size * size - (size - n + usual) ** 2
    return total, squares


def _error(first: float, left: float) -> float:
    return _ERROR + (first - _ERROR) * left


def _ahead(calm: float, bursts: float, squares: float, error: float) -> RemainingTraffic:
    # Bursts as a Poisson process, the rest with its own chance and an error of the rate.
    return RemainingTraffic(calm + bursts, calm, (squares + calm + (error * calm) ** 2) ** 0.5)


def _without_bursts(counts: list[float]) -> list[float]:
    """Each bin, or where it is above twice the median around it that median: bursts do not go on, and
    come again at another time."""
    out = []
    for i, n in enumerate(counts):
        around = sorted(counts[max(0, i - _AROUND) : i + _AROUND + 1])
        usual = around[len(around) // 2]
        # Where there is little traffic a median of 0 says nothing.
        out.append(n if n <= _BURST * usual + _FEW else usual)
    return out


def _smooth(counts: list[float]) -> list[float]:
    """Each bin the mean of its neighbourhood on the circle of a day."""
    around = range(-_SMOOTH, _SMOOTH + 1)
    return [sum(counts[(i + d) % BINS] for d in around) / len(around) for i in range(BINS)]


class _Card(msgspec.Struct, frozen=True):
    starts_s: float
    number: int
    part: float
    counts: list[float]
    profile: list[float] | None
    bursts: float
    squares: float
