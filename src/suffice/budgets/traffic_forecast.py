"""Forecasts today's remaining requests from those so far and from the days before."""

from __future__ import annotations

from math import ceil, exp, floor
from typing import NamedTuple

DAY_S = 86400.0
BINS = 96  # of a quarter of an hour
_BIN_S = DAY_S / BINS
_RECENT_BINS = 6  # whose mean is the present rate
_TREND_BINS = 2 * _RECENT_BINS  # after which a rise or fall has died out, all but 1/e
_MAX_TREND = 2.0  # the largest ratio of those bins to the ones before
_SMOOTH_BINS = 4  # to both sides over which a profile is averaged
_MEDIAN_BINS = 8  # to both sides whose median a burst is compared with
_BURST_RATIO, _BURST_REQUESTS = 2.0, 3.0  # times that median, plus requests, above which is a burst
_BURST_PRIOR_S = 6 * 3600.0  # without bursts, before the bursts of a first day say how many come
_HALF_LIFE_BINS = 12.0  # of a bin's weight in how busy today is
_RATE_ERROR = 0.1  # of the rate of the remaining day, as a standard deviation, at the day's end
_RATE_ERROR_PROFILE, _RATE_ERROR_NO_PROFILE = 0.3, 0.5  # at its start
_PRIOR_SHARE = 0.02  # of a day's requests: the weight of "today is like the days before"
_NEWEST_DAY = 0.6  # the weight of the newest whole day in the profile


class RemainingTraffic(NamedTuple):
    """Requests still to come today."""

    expected: float
    baseline: float
    """Expected if no further burst comes."""
    std: float
    """Standard deviation of the number of requests around `expected`."""


class TrafficForecast:
    """Counts of today's requests per bin, and the profile of the whole days before.

    Bursts are kept apart from the profile: they neither continue nor come again at the same time, but as
    often. Days are UTC. Time is an argument; a clock that runs backwards within a day counts as stopped.
    """

    def __init__(self) -> None:
        self.number = -1  # days since 1970
        self.observed_fraction = 1.0  # of today that this process sees
        self._counts = [0.0] * BINS
        self._profile: list[float] | None = None  # requests per bin without bursts
        self._bursts = 0.0  # requests per day that come in bursts
        self._burst_squares = 0.0  # the sum of the squares of the bursts' sizes
        self._baseline_end = -1
        self._baseline: list[float] = []

    @property
    def requests(self) -> float:
        """Requests counted today."""
        return sum(self._counts)

    @property
    def has_profile(self) -> bool:
        """Whether a whole day was seen."""
        return self._profile is not None

    def start_day(self, now_s: float) -> bool:
        """Start a new day if it has begun. Call it before anything else.

        Returns:
            Whether a new day has begun.
        """
        number = floor(now_s / DAY_S)
        if number <= self.number:
            return False
        first = self.number < 0
        if not first and self.observed_fraction > 0.9:
            self._update_profile()
        self._counts, self._baseline_end = [0.0] * BINS, -1
        self.number = number
        self.observed_fraction = 1.0 - self._seconds_into_day(now_s) / DAY_S if first else 1.0
        return True

    def _update_profile(self) -> None:
        """Blend the day that is over into the profile."""
        baseline = _without_bursts(self._counts)
        bursts, squares = _burst_moments(self._counts, baseline)
        newest = _smooth(baseline)
        weight = 1.0 if self._profile is None else _NEWEST_DAY
        before = self._profile or newest
        self._profile = [
            weight * n + (1.0 - weight) * o for n, o in zip(newest, before, strict=True)
        ]
        self._bursts = weight * bursts + (1.0 - weight) * self._bursts
        self._burst_squares = weight * squares + (1.0 - weight) * self._burst_squares

    def count(self, now_s: float) -> None:
        """Count one request."""
        self._counts[self._bin(now_s)] += 1.0

    def remaining(self, now_s: float) -> RemainingTraffic:
        """Forecast the requests still to come today."""
        into_s = self._seconds_into_day(now_s)
        share = 1.0 - into_s / DAY_S
        if self._profile is None or sum(self._profile) <= 0.0:
            return self._forecast_without_history(into_s, share)
        index = self._bin(now_s)
        inside = (into_s % _BIN_S) / _BIN_S
        scale = self._scale(self._profile, index, inside)
        ahead = (1.0 - inside) * self._profile[index] + sum(self._profile[index + 1 :])
        bursts = scale * self._bursts * share
        squares = scale * scale * self._burst_squares * share
        return _remaining(scale * ahead, bursts, squares, _rate_error(_RATE_ERROR_PROFILE, share))

    def _scale(self, profile: list[float], index: int, inside: float) -> float:
        """The ratio of today to the days before; recent hours weigh more."""
        observed = predicted = _PRIOR_SHARE * (sum(profile) + self._bursts)
        first = self._first_bin
        baseline = self._baseline_until(first, index)
        current = profile[index] * inside
        limit = _BURST_RATIO * current * observed / predicted + _BURST_REQUESTS
        observed += min(self._counts[index], limit)
        predicted += current
        for i in range(first, index):
            weight = 0.5 ** ((index - i) / _HALF_LIFE_BINS)
            observed += weight * baseline[i - first]
            predicted += weight * profile[i]
        return observed / predicted

    def _forecast_without_history(self, into_s: float, share: float) -> RemainingTraffic:
        """Forecast a first day: its mean so far, and towards its end the present rate and trend."""
        first, index = self._first_bin, min(BINS - 1, int(into_s / _BIN_S))
        observed_s = max(1.0, into_s - (1.0 - self.observed_fraction) * DAY_S)
        baseline = self._baseline_until(first, index)
        if len(baseline) < _RECENT_BINS:
            expected = self.requests / observed_s * share * DAY_S
            return _remaining(expected, 0.0, 0.0, _RATE_ERROR_NO_PROFILE)
        recent, mean = _mean(baseline[-_RECENT_BINS:]), _mean(baseline)
        if len(baseline) >= 2 * _RECENT_BINS:
            # On average over the rest of the day, a rise or fall goes on for half of it, and fades.
            before = _mean(baseline[-2 * _RECENT_BINS : -_RECENT_BINS])
            duration = _TREND_BINS / _RECENT_BINS * (1.0 - exp(-share * BINS / 2.0 / _TREND_BINS))
            trend = (recent + _BURST_REQUESTS) / (before + _BURST_REQUESTS)
            recent *= min(_MAX_TREND, max(1.0 / _MAX_TREND, trend)) ** duration
        rate = (share * share * mean + (1.0 - share * share) * recent) / _BIN_S
        repeats = share * DAY_S / (observed_s + _BURST_PRIOR_S)
        bursts, squares = _burst_moments(self._counts[first:index], baseline)
        error = _rate_error(_RATE_ERROR_NO_PROFILE, share)
        return _remaining(rate * share * DAY_S, bursts * repeats, squares * repeats, error)

    @property
    def _first_bin(self) -> int:
        """The first whole bin of today that this process saw."""
        return ceil((1.0 - self.observed_fraction) * BINS - 1e-9)

    def _baseline_until(self, first: int, end: int) -> list[float]:
        """Today's whole bins so far, without bursts."""
        if self._baseline_end != end:
            self._baseline_end, self._baseline = end, _without_bursts(self._counts[first:end])
        return self._baseline

    def remaining_share(self, now_s: float) -> float:
        """The share of the day still to come, in time."""
        return 1.0 - self._seconds_into_day(now_s) / DAY_S

    def _seconds_into_day(self, now_s: float) -> float:
        return min(max(0.0, now_s - self.number * DAY_S), DAY_S - 1e-6)

    def _bin(self, now_s: float) -> int:
        return min(BINS - 1, int(self._seconds_into_day(now_s) / _BIN_S))


def seconds_to_midnight(now_s: float) -> float:
    """Seconds until the budget's next day begins."""
    return DAY_S - now_s % DAY_S


def _mean(counts: list[float]) -> float:
    return sum(counts) / len(counts)


def _burst_moments(counts: list[float], baseline: list[float]) -> tuple[float, float]:
    """Requests in bursts, and the sum of the bursts' squares. Neighbouring bins are one burst."""
    total = squares = size = 0.0
    for n, usual in zip(counts, baseline, strict=True):
        size = size + n - usual if n > usual else 0.0
        if n > usual:
            total += n - usual
            squares += size * size - (size - n + usual) ** 2
    return total, squares


def _rate_error(at_start: float, share: float) -> float:
    return _RATE_ERROR + (at_start - _RATE_ERROR) * share


def _remaining(baseline: float, bursts: float, squares: float, error: float) -> RemainingTraffic:
    # Bursts are a Poisson process. The baseline varies by chance and by an error of the rate.
    variance = squares + baseline + (error * baseline) ** 2
    return RemainingTraffic(baseline + bursts, baseline, variance**0.5)


def _without_bursts(counts: list[float]) -> list[float]:
    """Each bin, or the median around it if the bin is above twice that median."""
    baseline = []
    for i, n in enumerate(counts):
        around = sorted(counts[max(0, i - _MEDIAN_BINS) : i + _MEDIAN_BINS + 1])
        median = around[len(around) // 2]
        # With little traffic a median of 0 is not informative.
        baseline.append(n if n <= _BURST_RATIO * median + _BURST_REQUESTS else median)
    return baseline


def _smooth(counts: list[float]) -> list[float]:
    """The mean of each bin's neighbourhood on the circle of a day."""
    offsets = range(-_SMOOTH_BINS, _SMOOTH_BINS + 1)
    return [sum(counts[(i + d) % BINS] for d in offsets) / len(offsets) for i in range(BINS)]
