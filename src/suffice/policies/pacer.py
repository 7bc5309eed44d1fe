"""Keeping a budget over a day: the multiplier of quality - lambda * cost that spends what is left.

Every few requests lambda is solved for on the last predicted (quality, cost) vectors, such that the
predicted spend equals what is left for each request still expected today (the dual of the fractional
knapsack). Between the two lambdas on both sides of the solution each request draws, so that the
spend is met exactly in expectation. A ceiling stands behind it: before a call its worst cost is
reserved, after it what it cost is settled, and no reservation may pass the ceiling.

Time comes as an argument, seeds too. Money is held in whole nano-dollars, rounded up, so that no
order of additions can pass the ceiling by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, isfinite
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from .day import DAY_S, Day
from .state import misfit, pack, unpack

SCHEMA = "pacer-1"
NANO = 1_000_000_000
MOST_USD = 9e6  # a day, so that sums fit 64 bits

_WINDOW = 256  # vectors that lambda is solved on
_EVERY = 16  # requests between two solutions
_AIM = 0.998  # of the ceiling: what is left out keeps the last requests of a day from being refused
_AHEAD = 0.01  # of the day's aim spent beyond what the last solution promised: then the cheapest
# By which part the day's remaining traffic may turn out larger than told at its start, with a
# profile of the days before and without: for so much more the cheapest model is kept affordable.
_RISK, _RISK_BLIND = 0.5, 1.0
_BIAS_MEMORY = 0.98  # what a settled request's error is worth after each further one
_BIAS_REQUESTS = 20.0  # what "costs are as predicted" counts for

Floats = NDArray[np.float64]


class Paced(NamedTuple):
    """action: index of the candidate, None where none may be called. propensities: (k,), summing
    to 1, or all 0. usd_left: for each request still expected today. quality_per_usd: the multiplier
    used; infinite where only the cheapest is taken. reason: in words where the limits decided."""

    action: int | None
    propensities: tuple[float, ...]
    quality_per_usd: float
    usd_left: float
    reason: str


class Totals(NamedTuple):
    """Today's money in USD: spent and settled, reserved by calls in flight, and the ceiling."""

    spent_usd: float
    reserved_usd: float
    ceiling_usd: float


class Pacer:
    """usd_per_day: the ceiling of a day (UTC, shifted by `day_starts_s`); None: no budget.
    max_usd_per_query: no call may cost more. aim: share of the ceiling to spend.

    Raises ValueError that names the argument. Not safe for threads: one event loop, or a lock.
    """

    def __init__(
        self,
        usd_per_day: float | None,
        *,
        max_usd_per_query: float | None = None,
        aim: float = _AIM,
        day_starts_s: float = 0.0,
    ) -> None:
        for name, value in (
            ("usd_per_day", usd_per_day),
            ("max_usd_per_query", max_usd_per_query),
        ):
            if value is not None and not 0.0 < value <= MOST_USD:
                raise ValueError(f"{name}: expected above 0, at most {MOST_USD:g}, got {value!r}")
        if not 0.5 <= aim <= 1.0:
            raise ValueError(f"aim: expected 0.5 to 1, got {aim!r}")
        self.usd_per_day = usd_per_day
        self.max_usd_per_query = max_usd_per_query
        self.aim = aim
        self.day = Day(day_starts_s)
        self._ceiling = None if usd_per_day is None else int(usd_per_day * NANO)
        self._spent = 0
        self._reserved = 0
        self._open: dict[str, _Call] = {}
        self._models: dict[str, int] = {}
        self._worst: dict[str, int] = {}  # nano-dollars, of the last query
        self._quality = np.full((_WINDOW, 0), np.nan)
        self._cost = np.full((_WINDOW, 0), np.nan)
        self._seen = 0
        self._since = 0  # requests since the last solution, and what was out at it
        self._from = 0
        self._every = _EVERY
        self._low = self._high = 0.0  # the two lambdas
        self._mix = 1.0  # probability of the lower
        self._left = float("inf")
        self._bias: dict[str, list[float]] = {}  # predicted and settled USD, fading
        self._overrun = 1.0  # the most that a call cost over its worst

    # ── deciding ─────────────────────────────────────────────────────────────────────────────────

    def decide(
        self,
        now_s: float,
        models: Sequence[str],
        quality: Sequence[float],
        cost_usd: Sequence[float],
        worst_usd: Sequence[float],
        *,
        seed: int,
    ) -> Paced:
        """Which candidate to call for one request, which is counted as today's.

        quality, cost_usd, worst_usd: (k,) predicted quality and cost, and the most that a call can
        cost; cost or worst NaN: unknown, never called while there is a limit. Reserve next.
        """
        self._turn(now_s)
        self.day.count(now_s)
        q, c = np.asarray(quality, float), np.asarray(cost_usd, float)
        worst = np.asarray(worst_usd, float) * self._overrun
        bias = np.array([self._bias_of(m) for m in models])
        c = c * bias
        k = len(models)
        if self._ceiling is not None:
            self._remember(models, q, c)
            for m, w in zip(models, worst.tolist(), strict=True):
                self._worst[m] = _nano(w) if isfinite(w) else 0
            self._since += 1
            if self._since >= self._every or self._seen <= _EVERY:
                self._solve(now_s)
        able = self._able(c, worst)
        if not able.any():
            return Paced(None, (0.0,) * k, float("inf"), self._left, self._refusal())
        if self._ceiling is None:
            at = _best(q, c, 0.0, able)
            return Paced(at, _one(at, k), 0.0, float("inf"), "")
        if self._ahead():
            at = _best(q, c, float("inf"), able)
            return Paced(
                at, _one(at, k), float("inf"), self._left, "ahead of the budget: the cheapest"
            )
        low, high = _best(q, c, self._low, able), _best(q, c, self._high, able)
        p = np.zeros(k)
        p[low] += self._mix
        p[high] += 1.0 - self._mix
        first = float(np.random.default_rng(seed).random()) < self._mix
        lam = self._low if first else self._high
        return Paced(low if first else high, tuple(p.tolist()), lam, self._left, "")

    def _able(self, c: Floats, worst: Floats) -> NDArray[np.bool_]:
        able = np.isfinite(c) & np.isfinite(worst) & (worst >= 0.0)
        if self.max_usd_per_query is not None:
            able &= worst <= self.max_usd_per_query
        elif self._ceiling is None:
            return np.ones(len(c), bool)
        if self._ceiling is not None:
            free = self._ceiling - self._spent - self._reserved
            able &= np.array([isfinite(w) and _nano(w) <= free for w in worst.tolist()])
        return able

    def _refusal(self) -> str:
        if self._ceiling is not None and self._ceiling - self._spent - self._reserved <= 0:
            return "today's budget is spent or reserved by calls in flight"
        if self._ceiling is None:
            return "no model's worst cost is under the limit a query"
        return "no model's worst cost fits what is left of today's budget and the limit a query"

    def _ahead(self) -> bool:
        """Whether more went out since the last solution than it promised, by 1 % of the day's aim.

        Measured against the solution, not against the share of the day that has passed: where the
        traffic is only forecast, each revised forecast would look like overspending.
        """
        return (
            self._out() - self._from > self._since * self._left * NANO + _AHEAD * self._aim_nano()
        )

    def _out(self) -> int:
        """Spent today, and what calls in flight will probably cost (not what they reserve)."""
        flying = sum(c.expected for c in self._open.values() if c.day == self.day.number)
        return self._spent + flying

    def _aim_nano(self) -> float:
        # Of a day that was joined in the middle only the part that is left is spent.
        return (self._ceiling or 0) * self.aim * self.day.part

    def _solve(self, now_s: float) -> None:
        self._since = 0
        self._from = self._out()
        expected = self.day.remaining(now_s)
        # What is left over at midnight is lost, what is short is made up for: rather too few.
        remaining = max(1.0, expected - expected**0.5)
        left = max(0.0, self._aim_nano() - self._from) / NANO
        n = min(self._seen, _WINDOW)
        q, c = self._quality[:n], self._cost[:n]
        # What cannot be reserved any more today must not be planned with.
        free = (self._ceiling or 0) - self._spent - self._reserved
        shut = [i for m, i in self._models.items() if self._worst.get(m, 0) > free]
        if shut and len(shut) < len(self._models):
            c = c.copy()
            c[:, shut] = np.nan
        # If more requests come than expected, at least the cheapest must still be affordable.
        known = np.where(np.isfinite(q), c, np.nan)
        known = known[np.isfinite(known).any(axis=1)]
        least = float(np.nanmin(known, axis=1).mean()) if len(known) else 0.0
        risk = _RISK if self.day.known else _RISK_BLIND
        spare = risk * self.day.left(now_s) * least
        self._left = max(min(left / remaining, least), left / remaining - spare)
        self._low, self._high, self._mix = solve(q, c, self._left)
        # Towards midnight there are fewer requests than usually pass between two solutions.
        self._every = max(1, min(_EVERY, int(expected / _EVERY)))

    def _remember(self, models: Sequence[str], q: Floats, c: Floats) -> None:
        new = [m for m in models if m not in self._models]
        if new:
            for m in new:
                self._models[m] = len(self._models)
            wider = np.full((_WINDOW, len(new)), np.nan)
            self._quality = np.concatenate([self._quality, wider], axis=1)
            self._cost = np.concatenate([self._cost, wider], axis=1)
        at = self._seen % _WINDOW
        columns = [self._models[m] for m in models]
        self._quality[at] = np.nan
        self._cost[at] = np.nan
        self._quality[at, columns] = q
        self._cost[at, columns] = c
        self._seen += 1

    # ── money ────────────────────────────────────────────────────────────────────────────────────

    def reserve(
        self, call: str, model: str, cost_usd: float, worst_usd: float, now_s: float
    ) -> bool:
        """Set the worst cost of a call aside before it is made. False where it does not fit under
        the limits: then it must not be made. A second attempt of the same request is a call of its
        own. Raises ValueError for a call that is open already."""
        self._turn(now_s)
        if call in self._open:
            raise ValueError(f"call: {call!r} is reserved already")
        if self.max_usd_per_query is not None or self._ceiling is not None:
            if not isfinite(worst_usd) or worst_usd < 0.0:
                return False
            if self.max_usd_per_query is not None and worst_usd > self.max_usd_per_query:
                return False
        worst = _nano(worst_usd * self._overrun) if isfinite(worst_usd) else 0
        if self._ceiling is not None and self._spent + self._reserved + worst > self._ceiling:
            return False
        known = float(cost_usd) if isfinite(cost_usd) and cost_usd > 0.0 else 0.0
        expected = known * self._bias_of(model)
        self._open[call] = _Call(
            model, self.day.number, worst, min(worst, _nano(expected)), known, float(worst_usd)
        )
        self._reserved += worst
        return True

    def settle(self, call: str, cost_usd: float | None) -> None:
        """What a reserved call cost; None: it is not known, so its whole reservation is spent.
        0 where nothing was billed. A call of an earlier day was that day's. Raises KeyError."""
        done = self._open.pop(call)
        today = done.day == self.day.number
        if today:
            self._reserved -= done.worst
        if cost_usd is None or not isfinite(cost_usd):
            self._spent += done.worst if today else 0
            return
        if today:
            self._spent += _nano(max(0.0, cost_usd))
        if done.worst_usd > 0.0 and cost_usd > done.worst_usd:
            # Who says "worst" was wrong; from now on more is set aside.
            self._overrun = float(min(max(self._overrun, cost_usd / done.worst_usd), 100.0))
        if done.predicted > 0.0 and cost_usd > 0.0:
            told = self._bias.setdefault(done.model, [0.0, 0.0])
            told[0] = told[0] * _BIAS_MEMORY + done.predicted
            told[1] = told[1] * _BIAS_MEMORY + float(cost_usd)

    def totals(self) -> Totals:
        ceiling = float("inf") if self._ceiling is None else self._ceiling / NANO
        return Totals(self._spent / NANO, self._reserved / NANO, ceiling)

    def sync(self, spent_usd: float, reserved_usd: float = 0.0) -> None:
        """Take today's totals from the store, where other workers spend as well: everything settled
        today, and what calls of *other* workers have reserved."""
        own = sum(c.worst for c in self._open.values() if c.day == self.day.number)
        self._spent = _nano(spent_usd)
        self._reserved = own + _nano(reserved_usd)

    def _bias_of(self, model: str) -> float:
        """Settled over predicted cost of a model, held near 1 while little is settled."""
        told = self._bias.get(model)
        if told is None or told[0] <= 0.0:
            return 1.0
        requests = 1.0 / (1.0 - _BIAS_MEMORY)
        prior = told[0] * _BIAS_REQUESTS / requests
        return min(5.0, max(0.2, (told[1] + prior) / (told[0] + prior)))

    def _turn(self, now_s: float) -> None:
        if self.day.turn(now_s):
            self._spent = self._from = 0
            self._since = self._every  # solve afresh
            self._reserved = 0  # what is still in flight is the old day's

    # ── state ────────────────────────────────────────────────────────────────────────────────────

    def state(self) -> bytes:
        """All but the calls in flight: who restarts knows them from its own records, and calls
        `sync`. Until then their reservations count as spent, so the ceiling still holds."""
        card = _Card(
            self.usd_per_day, self.max_usd_per_query, self.aim, self.day.card(),
            self._spent + self._reserved, tuple(self._models), self._seen,
            self._low, self._high, self._mix, {m: (t[0], t[1]) for m, t in self._bias.items()},
            self._overrun,
        )  # fmt: skip
        return pack(SCHEMA, card, {"quality": self._quality, "cost": self._cost})

    @classmethod
    def from_state(cls, raw: bytes) -> Pacer:
        """Raises ArtifactError: cut, changed, of another schema."""
        card, arrays = unpack(raw, SCHEMA, _Card)
        shape = (_WINDOW, len(card.models))
        for name in ("quality", "cost"):
            if name not in arrays or arrays[name].shape != shape:
                raise misfit(SCHEMA, f"{name} is not {shape}")
        try:
            out = cls(card.usd_per_day, max_usd_per_query=card.max_usd_per_query, aim=card.aim)
            out.day = Day.from_card(card.day)
        except ValueError as error:
            raise misfit(SCHEMA, str(error)) from None
        out._spent = out._from = card.spent
        out._since = _EVERY
        out._models = {m: i for i, m in enumerate(card.models)}
        out._quality, out._cost = arrays["quality"], arrays["cost"]
        out._seen = card.seen
        out._low, out._high, out._mix = card.low, card.high, card.mix
        out._bias = {m: list(t) for m, t in card.bias.items()}
        out._overrun = card.overrun
        return out


def solve(quality: Floats, cost: Floats, usd_each: float) -> tuple[float, float, float]:
    """(low, high, mix): two neighbouring multipliers and the probability of the lower, with which
    the requests of the window spend `usd_each` on average. Where all of the best costs less: 0, 0;
    where all of the cheapest costs more: infinity.

    quality, cost: (n, k), NaN where a model was no candidate. Everett 1963: for any lambda the
    argmax of quality - lambda * cost is the best that its own spend can buy; between two lambdas
    of neighbouring spends a mixture is the best of the relaxed problem.
    """
    usable = np.isfinite(quality) & np.isfinite(cost)
    rows = usable.any(axis=1)
    if not rows.any():
        return 0.0, 0.0, 1.0
    q = np.where(usable, quality, -np.inf)[rows]
    c = np.where(usable, cost, np.inf)[rows]
    at = np.arange(len(q))
    dear = np.where(np.isfinite(c), c, 0.0)

    def spend(lam: float) -> float:
        merit = np.where(np.isfinite(c), q - lam * dear, -np.inf)
        return float(c[at, np.argmax(merit, axis=1)].mean())

    if spend(0.0) <= usd_each:
        return 0.0, 0.0, 1.0
    if float(c.min(axis=1).mean()) >= usd_each:
        return float("inf"), float("inf"), 1.0
    # A quality of 1 for the smallest difference of costs: above it everything is the cheapest.
    top = float(np.nanmax(np.where(usable, quality, np.nan)) - np.nanmin(quality)) + 1.0
    low, high = 0.0, top / 1e-12
    start = top / max(float(dear.max()), 1e-12)
    if spend(start) >= usd_each:
        low = start
        while low < high and spend(low * 4.0) >= usd_each:
            low *= 4.0
        high = low * 4.0
    else:
        high = start
        while high > 1e-9 and spend(high / 4.0) < usd_each:
            high /= 4.0
        low = high / 4.0
    for _ in range(24):
        middle = (low * high) ** 0.5
        if spend(middle) >= usd_each:
            low = middle
        else:
            high = middle
    more, less = spend(low), spend(high)
    if more <= less:
        return low, high, 1.0
    return low, high, min(1.0, max(0.0, (usd_each - less) / (more - less)))


def affordable_tokens(limit_usd: float, input_usd: float, output_usd_per_mtok: float) -> int:
    """Output tokens that a call may have so that it cannot cost more than `limit_usd`: what
    max_tokens must be capped at for a hard limit on a query. 0 where the input alone costs more.

    >>> affordable_tokens(0.01, 0.002, 10.0)
    800
    """
    if input_usd > limit_usd:
        return 0
    if output_usd_per_mtok <= 0.0:
        return 2**31 - 1
    return int(min((limit_usd - input_usd) / output_usd_per_mtok * 1e6 + 1e-6, 2**31 - 1))


def seconds_to_midnight(now_s: float, day_starts_s: float = 0.0) -> float:
    """Until the budget's next day begins: the Retry-After of a refusal."""
    return DAY_S - (now_s - day_starts_s) % DAY_S


def _nano(usd: float) -> int:
    return ceil(usd * NANO)


def _one(at: int, k: int) -> tuple[float, ...]:
    return tuple(float(i == at) for i in range(k))


def _best(q: Floats, c: Floats, lam: float, able: NDArray[np.bool_]) -> int:
    """Candidate of the highest quality - lam * cost among the able; ties go to the cheaper."""
    if lam == float("inf"):
        merit = -c
    else:
        merit = q - lam * np.where(np.isfinite(c), c, 0.0)
    merit = np.where(able, merit, -np.inf)
    best = np.flatnonzero(merit >= merit.max())
    return int(best[np.argmin(np.where(np.isfinite(c[best]), c[best], np.inf))])


class _Call(NamedTuple):
    model: str
    day: int
    worst: int  # nano-dollars set aside
    expected: int  # nano-dollars it will probably cost
    predicted: float  # USD, before our own correction
    worst_usd: float  # as its caller said


class _Card(msgspec.Struct, frozen=True):
    usd_per_day: float | None
    max_usd_per_query: float | None
    aim: float
    day: msgspec.Raw
    spent: int
    models: tuple[str, ...]
    seen: int
    low: float
    high: float
    mix: float
    bias: dict[str, tuple[float, float]]
    overrun: float
