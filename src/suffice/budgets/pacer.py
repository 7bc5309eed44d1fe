"""Keeping a budget over a day: the multiplier of quality - lambda * cost that spends what is left.

Every few requests lambda is solved for on the last predicted (quality, cost) vectors, such that the
predicted spend equals what is left for each request still expected today (`multiplier`). Between the
two lambdas on both sides of the solution each request draws, so that the spend is met exactly in
expectation. A ceiling stands behind it (`account`). Time comes as an argument, seeds too.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import inf, isfinite, nan
from typing import NamedTuple

import msgspec
import numpy as np

from suffice.artifacts.npz import mismatch_error, pack_state, unpack_state
from suffice.budgets.account import NANO, Account, Totals
from suffice.budgets.lagrange import Multiplier, plan
from suffice.budgets.traffic_forecast import TrafficForecast

SCHEMA = "pacer-2"
MOST_USD = 9e6  # a day, so that sums fit 64 bits

_WINDOW = 256  # vectors that lambda is solved on
_EVERY = 16  # requests between two solutions
_WORST_MEMORY = 0.9  # what a query's worst cost is worth after each further one

# Of the ceiling. The rest keeps a day's last requests from being refused; of what is left at any time
# this part may be spent nevertheless, so that the last of a day are not starved to keep it.
_AIM, _OF_REST = 0.99, 0.5
_AHEAD = 0.01  # of the day's aim spent beyond what the last solution promised: then solve afresh

# Of the day's requests, given to cheaper models at its end where only they can spend the last of the
# money: more of them would cost more quality than what is left over is worth.
_LATE = 0.05

# For as many requests as may come, so many standard deviations above what is expected, the cheapest
# model is kept affordable: a refusal costs far more quality than a dearer model brings. Towards
# midnight less is kept, since it could not be spent any more.
_RISK, _RISK_LATE = 2.0, 1.0

# Towards midnight fewer requests are planned for than expected, by up to this part: what is short can
# be made up for by cheaper models, what is left over is lost. Of a day's bursts most probably none
# comes in an end of the day shorter than `_CALM_END`.
_FEWER, _CALM_END = 0.4, 0.15


class PacingDecision(NamedTuple):
    """action: index of the candidate, None where none may be called. propensities: (k,), summing
    to 1, or all 0. usd_left: for each request still expected today. quality_per_usd: the multiplier
    used; infinite where only the cheapest is taken. reason: in words where the limits decided."""

    action: int | None
    propensities: tuple[float, ...]
    quality_per_usd: float
    usd_left: float
    reason: str


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
        self.day = TrafficForecast(day_starts_s)
        self._money = Account(usd_per_day, max_usd_per_query)
        self._models: dict[str, int] = {}
        self._worst: list[float] = []  # what a call of each model had to have free lately
        self._quality = np.full((_WINDOW, 0), np.nan)
        self._cost = np.full((_WINDOW, 0), np.nan)
        self._seen = 0
        self._since = 0  # requests since the last solution, and what was out at it
        self._from = 0
        self._every = _EVERY
        self._plan = Multiplier(0.0, 0.0, 1.0, inf)

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
        count: bool = True,
    ) -> PacingDecision:
        """Which candidate to call for one request, which is counted as today's.

        quality, cost_usd, worst_usd: (k,) predicted quality and cost, and the most that a call can
        cost; cost or worst NaN: unknown, never called while there is a limit. Reserve next.
        count False: only asked what would be; nothing is changed.
        """
        money = self._money
        q = [float(v) for v in quality]
        c = [float(v) * money.bias_of(m) for m, v in zip(models, cost_usd, strict=True)]
        worst = [float(v) * money.overrun for v in worst_usd]
        if count:
            self._turn(now_s)
            self.day.count(now_s)
            if money.ceiling is not None:
                self._remember(models, q, c, worst)
                self._since += 1
                if self._since >= self._every or self._seen <= _EVERY or self._ahead():
                    self._solve(now_s)
        limited = money.ceiling is not None or money.most_each is not None
        able = [
            i
            for i in range(len(c))
            if not limited or (isfinite(c[i]) and worst[i] >= 0.0 and money.covers(worst[i]))
        ]
        return self._draw(q, c, able, seed)

    def _draw(self, q: list[float], c: list[float], able: list[int], seed: int) -> PacingDecision:
        k, left = len(c), self._plan.usd_each
        if not able:
            return PacingDecision(None, (0.0,) * k, inf, left, self._refusal())
        if self._money.ceiling is None:
            at = _best(q, c, 0.0, able)
            return PacingDecision(at, _one(at, k), 0.0, inf, "")
        low, high, mix, _ = self._plan
        first = random.Random(seed).random() < mix
        one, other = _best(q, c, low, able), _best(q, c, high, able)
        p = [0.0] * k
        p[one] += mix
        p[other] += 1.0 - mix
        return PacingDecision(one if first else other, tuple(p), low if first else high, left, "")

    def _refusal(self) -> str:
        if self._money.ceiling is None:
            return "no model's worst cost is under the limit a query"
        if self._money.free <= 0:
            return "today's budget is spent or reserved by calls in flight"
        return "no model's worst cost fits what is left of today's budget and the limit a query"

    def _ahead(self) -> bool:
        """Whether more went out since the last solution than it promised, by 1 % of the day's aim.

        Measured against the solution, not against the share of the day that has passed: where the
        traffic is only forecast, each revised forecast would look like overspending.
        """
        promised = self._since * self._plan.usd_each * NANO
        return self._money.out - self._from > promised + _AHEAD * self._aim_nano()

    def _aim_nano(self) -> float:
        return self._today_nano() * self.aim

    def _today_nano(self) -> float:
        # Of a day that was joined in the middle only the part that is left is spent.
        return (self._money.ceiling or 0) * self.day.part

    def _solve(self, now_s: float) -> None:
        self._since = 0
        self._from = self._money.out
        few, many = self._traffic(now_s)
        usd = max(self._aim_nano() - self._from, _OF_REST * (self._today_nano() - self._from), 0.0)
        usd /= NANO
        spare = max(0.0, ((self._money.ceiling or 0) - self._from) / NANO - usd)
        n = min(self._seen, _WINDOW)
        q, c = self._quality[:n], self._cost[:n]
        cheapest = np.where(np.isfinite(q) & np.isfinite(c), c, inf).min(axis=1, initial=inf)
        cheapest = cheapest[cheapest < inf]
        least = float(cheapest.mean()) if len(cheapest) else 0.0
        late = _LATE * (self.day.requests + many)
        # If so many requests come, at least the cheapest must still be affordable.
        kept = min(max(0.0, (many - few) * least - spare), max(0.0, usd - few * least))
        self._plan = plan(q, c, usd - kept, few, self._worst, spare + kept, late)
        # Towards midnight there are fewer requests than usually pass between two solutions.
        self._every = max(1, min(_EVERY, int(few / _EVERY)))

    def _traffic(self, now_s: float) -> tuple[float, float]:
        """Requests to plan today's money for, and to keep the cheapest model affordable for."""
        ahead, left = self.day.remaining(now_s), self.day.left(now_s)
        likely = ahead.calm + (ahead.expected - ahead.calm) * left / (left + _CALM_END)
        late = (1.0 - left) ** 4
        few = likely - min(ahead.spread, _FEWER * likely) * late
        risk = _RISK + (_RISK_LATE - _RISK) * late
        return max(1.0, few), ahead.expected + risk * ahead.spread

    def _remember(
        self, models: Sequence[str], q: list[float], c: list[float], worst: list[float]
    ) -> None:
        new = [m for m in models if m not in self._models]
        if new:
            for m in new:
                self._models[m] = len(self._models)
                self._worst.append(nan)
            wider = np.full((_WINDOW, len(new)), np.nan)
            self._quality = np.concatenate([self._quality, wider], axis=1)
            self._cost = np.concatenate([self._cost, wider], axis=1)
        at = self._seen % _WINDOW
        columns = [self._models[m] for m in models]
        self._quality[at] = np.nan
        self._cost[at] = np.nan
        self._quality[at, columns] = q
        self._cost[at, columns] = c
        for i, w in zip(columns, worst, strict=True):
            if isfinite(w):
                old = self._worst[i]
                self._worst[i] = w if old != old else w + _WORST_MEMORY * (old - w)
        self._seen += 1

    def note(self, n: int, now_s: float) -> None:
        """`n` requests more today that were not decided here: another worker's, or a wish of the
        client. They are among what the last solution has promised money for."""
        self._turn(now_s)
        for _ in range(n):
            self.day.count(now_s)
        self._since += n

    # ── money ────────────────────────────────────────────────────────────────────────────────────

    def reserve(
        self, call: str, model: str, cost_usd: float, worst_usd: float, now_s: float
    ) -> int | None:
        """Set the worst cost of a call aside before it is made: the nano-dollars held, which may be
        0. None where it does not fit under the limits: then it must not be made. A second attempt
        of the same request is a call of its own. Raises ValueError for a call that is open already.
        """
        self._turn(now_s)
        return self._money.reserve(call, model, cost_usd, worst_usd)

    def settle(self, call: str, cost_usd: float | None) -> None:
        """What a reserved call cost; None: it is not known, so its whole reservation is spent.
        0 where nothing was billed. A call of an earlier day was that day's. Raises KeyError."""
        self._money.settle(call, cost_usd)

    def totals(self) -> Totals:
        return self._money.totals()

    def sync(self, spent_usd: float, reserved_usd: float = 0.0) -> None:
        """Take today's totals from the store, where other workers spend as well: everything settled
        today, and what calls of *other* workers have reserved."""
        self._money.sync(spent_usd, reserved_usd)

    def _turn(self, now_s: float) -> None:
        if self.day.turn(now_s):
            self._money.turn(self.day.number)
            self._from = 0
            self._since = self._every  # solve afresh

    # ── state ────────────────────────────────────────────────────────────────────────────────────

    def state(self) -> bytes:
        """All but the calls in flight: who restarts knows them from its own records, and calls
        `sync`. Until then their reservations count as spent, so the ceiling still holds."""
        money = self._money
        card = _Card(
            self.usd_per_day, self.max_usd_per_query, self.aim, self.day.card(),
            money.spent + money.reserved, tuple(self._models), self._seen,
            [_told(w) for w in self._worst], tuple([_told(v) for v in self._plan]),
            {m: (t[0], t[1]) for m, t in money.bias.items()}, money.overrun,
        )  # fmt: skip
        return pack_state(SCHEMA, card, {"quality": self._quality, "cost": self._cost})

    @classmethod
    def from_state(cls, raw: bytes) -> Pacer:
        """Raises ArtifactError: cut, changed, of another schema."""
        card, arrays = unpack_state(raw, SCHEMA, _Card)
        shape = (_WINDOW, len(card.models))
        for name in ("quality", "cost"):
            if name not in arrays or arrays[name].shape != shape:
                raise mismatch_error(SCHEMA, f"{name} is not {shape}")
        if len(card.worst) != len(card.models):
            raise mismatch_error(SCHEMA, "worst is not of as many models")
        if len(card.plan) != len(Multiplier._fields):
            raise mismatch_error(SCHEMA, "plan is none")
        try:
            out = cls(card.usd_per_day, max_usd_per_query=card.max_usd_per_query, aim=card.aim)
            out.day = TrafficForecast.from_card(card.day)
        except ValueError as error:
            raise mismatch_error(SCHEMA, str(error)) from None
        money = out._money
        money.day, money.spent, out._from = out.day.number, card.spent, card.spent
        money.bias = {m: list(t) for m, t in card.bias.items()}
        money.overrun = card.overrun
        out._since = _EVERY
        out._models = {m: i for i, m in enumerate(card.models)}
        out._worst = [nan if w is None else w for w in card.worst]
        out._quality, out._cost = arrays["quality"], arrays["cost"]
        out._seen = card.seen
        out._plan = Multiplier(*[inf if v is None else v for v in card.plan])
        return out


def _told(number: float) -> float | None:
    """As JSON has it, which knows no infinity."""
    return number if isfinite(number) else None


def _one(at: int, k: int) -> tuple[float, ...]:
    return tuple([float(i == at) for i in range(k)])


def _best(q: list[float], c: list[float], lam: float, able: list[int]) -> int:
    """Candidate of the highest quality - lam * cost among the able; ties go to the cheaper. A cost
    that is not known counts as nothing, but loses a tie."""
    best, most = able[0], (-inf, -inf)
    for i in able:
        known = isfinite(c[i])
        merit = -c[i] if lam == inf else q[i] - lam * c[i] if known else q[i]
        told = (merit, -c[i] if known else -inf)
        if told > most:
            best, most = i, told
    return best


class _Card(msgspec.Struct, frozen=True):
    usd_per_day: float | None
    max_usd_per_query: float | None
    aim: float
    day: msgspec.Raw
    spent: int
    models: tuple[str, ...]
    seen: int
    worst: list[float | None]
    plan: tuple[float | None, ...]
    bias: dict[str, tuple[float, float]]
    overrun: float
