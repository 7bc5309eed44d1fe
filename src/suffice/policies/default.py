"""The default policy: no labels, every objective.

Difficulty is a quantile of traffic; a model's predicted quality falls with it around the model's
prior; the objective is then solved over that predicted distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import (
    Candidate,
    Decision,
    Features,
    Objective,
    Prediction,
    Session,
    Step,
)
from . import predict
from .objectives import describe
from .predict import GRID
from .quantiles import rank, shipped

_BALANCED = Objective(kind="weights", cost=1.0, speed=0.5, quality=2.0)
_HARDER = 0.15  # quality that a conversation must be about to lose before it changes its model
_CACHED = 256


class _Pool:
    """What can be computed once for a tuple of candidates and an objective."""

    __slots__ = ("best", "candidates", "choice", "curves", "guessed", "lam", "objective", "typical")

    def __init__(self, candidates: tuple[Candidate, ...], objective: Objective) -> None:
        self.candidates = candidates
        self.objective = objective
        quality, self.guessed = predict.priors(candidates)
        self.curves = list(predict.quality_curves(quality))
        self.best = max(range(len(candidates)), key=lambda i: (quality[i], -i))
        # A typical query, to weigh models against each other before any query is known.
        costs = [predict.cost_usd(c.model, 600, 400) for c in candidates]
        known = [c for c in costs if c is not None]
        # An unknown price is no number: for the order only, it ranks behind every known one.
        behind = max(known, default=1e-6) * 1.01
        self.typical = [behind if c is None else c for c in costs]
        self.lam = 0.0
        self.choice: tuple[int, ...] | None = None
        if objective.kind == "keep_quality":
            self.lam, self.choice = cheapest_mix(
                tuple(self.curves), tuple(self.typical), (objective.value or 0.0), self.best
            )


@lru_cache(maxsize=1024)
def cheapest_mix(
    curves: tuple[tuple[float, ...], ...], costs: tuple[float, ...], keep: float, best: int
) -> tuple[float, tuple[int, ...]]:
    """The cheapest assignment of models to difficulty quantiles whose mean predicted quality is at
    least `keep` x that of model `best`.

    curves: (n_models, GRID + 1) predicted quality; costs: (n_models,) USD. Returns the multiplier
    lambda and the chosen model at each quantile, (GRID + 1,). For a given lambda the argmax of
    quality - lambda * cost is optimal at its own quality (Everett 1963); lambda is bisected to the
    largest that keeps the target, then what slack the last breakpoint leaves is spent on single
    quantiles, the best saving per lost quality first.
    """
    q = np.asarray(curves)
    c = np.asarray(costs)[:, None]
    n, steps = q.shape
    columns = np.arange(steps)
    target = keep * float(q[best].mean())

    def assign(lam: float) -> NDArray[np.intp]:
        merit = q - lam * c
        # Ties go to the cheaper model.
        return np.asarray(np.argmax(merit - 1e-15 * c / c.max(initial=1e-12), axis=0))

    def mean(chosen: NDArray[np.intp]) -> float:
        return float(q[chosen, columns].mean())

    positive = [x for x in costs if x > 0]
    low, high = 0.0, 1e3 / min(positive, default=1.0)
    if mean(assign(low)) < target:  # only where `best` is not the best everywhere
        return 0.0, (best,) * steps
    if mean(assign(high)) >= target:
        return high, tuple(assign(high).tolist())
    for _ in range(80):
        mid = (low + high) / 2
        if mean(assign(mid)) >= target:
            low = mid
        else:
            high = mid
    chosen = assign(low).tolist()
    slack = mean(assign(low)) * steps - target * steps
    moves = sorted(
        ((curves[i][g] - curves[m][g]) / (costs[i] - costs[m]), g, m)
        for g, i in enumerate(chosen)
        for m in range(n)
        if costs[m] < costs[i]
    )
    for _, g, m in moves:
        lost = curves[chosen[g]][g] - curves[m][g]
        if costs[m] < costs[chosen[g]] and lost <= slack:
            slack -= lost
            chosen[g] = m
    return low, tuple(chosen)


class DefaultPolicy:
    """Zero-label routing by difficulty quantile and model priors. Pure and deterministic.

    signal_names: the order of `Features.signals`. quantiles: ascending score table of the route's
    traffic, None = the shipped one. objective: overrides the route's (the named policies use it).
    """

    name = "default"

    def __init__(
        self,
        signal_names: Sequence[str],
        quantiles: Sequence[float] | None = None,
        objective: Objective | None = None,
    ) -> None:
        self.signal_names = signal_names
        self.quantiles = quantiles
        self.objective = objective
        self._score = predict.Scorer(signal_names)
        self._table = tuple(shipped() if quantiles is None else quantiles)
        self._pools: dict[tuple[int, Objective], _Pool] = {}
        told = f"{self.name}/4/{self._table}/{objective}/{predict._MOVES}/{GRID}"
        self._version = f"{self.name}-{blake2b(told.encode(), digest_size=4).hexdigest()}"

    @property
    def version(self) -> str:
        return self._version

    def with_quantiles(self, quantiles: Sequence[float]) -> DefaultPolicy:
        """The same policy on another picture of the traffic."""
        return type(self)(self.signal_names, quantiles, self.objective)

    def score(self, x: Features) -> float:
        """The difficulty score before it becomes a quantile; unbounded."""
        return self._score(x)

    def difficulty(self, x: Features) -> float:
        """Share of traffic that is easier, in [0, 1]."""
        return rank(self._table, self._score(x))

    def _pool(self, candidates: tuple[Candidate, ...], objective: Objective) -> _Pool:
        key = (id(candidates), objective)
        pool = self._pools.get(key)
        if pool is None or pool.candidates is not candidates:
            if len(self._pools) >= _CACHED:
                self._pools.clear()
            pool = self._pools[key] = _Pool(candidates, objective)
        return pool

    def decide(
        self,
        x: Features,
        candidates: tuple[Candidate, ...],
        objective: Objective,
        session: Session | None = None,
        *,
        id: str = "",
        seed: int = 0,
        max_output_tokens: int | None = None,
    ) -> Decision:
        if not candidates:
            raise ValueError("candidates: expected at least one")
        if self.objective is not None and self.objective.kind != objective.kind:
            # A named policy; of its own kind it takes the route's figures.
            objective = self.objective
        pool = self._pool(candidates, objective)
        score = self._score(x)
        u = rank(self._table, score)
        out = predict.output_tokens(u, max_output_tokens)
        g = int(u * GRID + 0.5)
        incumbent = self._incumbent(candidates, session)
        cached = session.cached_tokens if session is not None and incumbent is not None else 0
        leaving = (
            predict.switch_usd(candidates[incumbent].model, cached)
            if incumbent is not None
            else 0.0
        )
        quality = [curve[g] for curve in pool.curves]
        cost: list[float | None] = []
        speed: list[float | None] = []
        for i, c in enumerate(candidates):
            cost.append(
                predict.cost_usd(c.model, x.input_tokens, out, cached if i == incumbent else 0)
            )
            speed.append(predict.latency_s(c, out))
        merit, why = self._merit(pool, g, quality, cost, speed, objective)
        order = sorted(range(len(candidates)), key=lambda i: (-merit[i], i))
        if session is not None and session.failed:
            order.sort(key=lambda i: candidates[i].model.name in session.failed)
        if pool.choice is not None and (session is None or not session.failed):
            best = pool.choice[g]
            order.remove(best)
            order.insert(0, best)
        stay = ""
        if incumbent is not None and order[0] != incumbent:
            stay = _stays(x, incumbent, order[0], quality, cost, leaving, objective)
            if stay:
                order.remove(incumbent)
                order.insert(0, incumbent)
        top = order[0]
        reason = stay or self._reason(pool, candidates, top, u, quality, cost, why, objective, x)
        return Decision(
            id=id,
            model=candidates[top].model.name,
            plan=tuple(
                [
                    Step(candidates[i].model.name, "choice" if n == 0 else "failover")
                    for n, i in enumerate(order)
                ]
            ),
            predictions=tuple(
                [
                    Prediction(
                        c.model.name,
                        quality[i],
                        cost[i],
                        speed[i],
                        1.0 if i == top else 0.0,
                        leaving if i != incumbent else 0.0,
                    )
                    for i, c in enumerate(candidates)
                ]
            ),
            reason=reason,
            policy=self.name,
            policy_version=self._version,
            objective=objective,
            basis="prior",
            propensity=1.0,
            difficulty=u,
            score=score,
            seed=seed,
        )

    @staticmethod
    def _incumbent(candidates: tuple[Candidate, ...], session: Session | None) -> int | None:
        if session is None or session.incumbent is None or session.incumbent in session.failed:
            return None
        for i, c in enumerate(candidates):
            if c.model.name == session.incumbent:
                return i
        return None

    @staticmethod
    def _merit(
        pool: _Pool,
        g: int,
        quality: list[float],
        cost: list[float | None],
        speed: list[float | None],
        o: Objective,
    ) -> tuple[list[float], str]:
        """(merit of each candidate, larger is better; a word on what was traded)."""
        n = range(len(quality))
        worst_cost = max((c for c in cost if c is not None), default=0.0)
        # Unknown cost or latency ranks behind every known one, never as zero.
        c = [x if x is not None else worst_cost * 1.01 + 1e-9 for x in cost]
        worst_speed = max((s for s in speed if s is not None), default=0.0)
        s = [x if x is not None else worst_speed * 1.01 + 1e-3 for x in speed]
        kind, value = o.kind, o.value or 0.0
        if kind == "keep_quality":
            return [quality[i] - pool.lam * pool.typical[i] for i in n], ""
        if kind == "cheapest":
            return [-c[i] for i in n], ""
        if kind == "fastest":
            return [-s[i] for i in n], ""
        if kind in ("best", "max_quality_loss"):
            # The whole model's prior first: on an easy ask they all look alike.
            return [sum(pool.curves[i]) / (GRID + 1) - 1e-9 * c[i] for i in n], ""
        if kind == "max_usd_per_query":
            return _under(value, cost, c, quality, n, "price")
        if kind == "max_latency_s":
            return _under(value, speed, s, quality, n, "latency")
        if kind == "worth_usd":
            return [value * quality[i] - c[i] for i in n], ""
        w = o if kind == "weights" else _BALANCED
        top_c, top_s = max(c) or 1.0, max(s) or 1.0
        return [
            w.quality * quality[i] - w.cost * c[i] / top_c - w.speed * s[i] / top_s for i in n
        ], ""

    @staticmethod
    def _reason(
        pool: _Pool,
        candidates: tuple[Candidate, ...],
        top: int,
        u: float,
        quality: list[float],
        cost: list[float | None],
        why: str,
        o: Objective,
        x: Features,
    ) -> str:
        name = candidates[top].model.name
        follow = " (inherited by a follow-up)" if x.follow_up else ""
        price = cost[top]
        shown = "at an unknown price" if price is None else f"at ${price:.6f}"
        text = (
            f"{name}: harder than {u:.0%} of traffic{follow}, predicted quality {quality[top]:.2f} "
            f"(prior) {shown}, by {describe(o)}{why}"
        )
        best = pool.best
        dear = cost[best]
        if best != top:
            if price and dear and dear > price:
                text += f"; {dear / price:.1f}x cheaper than {candidates[best].model.name}"
        elif o.kind == "keep_quality":
            text += "; a cheaper model would keep too little of the quality"
        if o.kind == "max_quality_loss":
            text += "; not calibrated, so the reference model serves"
        elif o.kind == "usd_per_day":
            text += "; no pacing yet, so quality and cost are balanced"
        return text + "."


def _under(
    limit: float,
    given: list[float | None],
    filled: list[float],
    quality: list[float],
    n: range,
    what: str,
) -> tuple[list[float], str]:
    """Best quality among those under a limit; all others behind, nearest to it first."""
    inside = [given[i] is not None and filled[i] <= limit for i in n]
    why = "" if any(inside) else f", which no {what} meets: the lowest is taken"
    span = max(filled) + 1e-9
    merit = [quality[i] if inside[i] else -1.0 - filled[i] / span for i in n]
    return merit, why


def _stays(
    x: Features,
    incumbent: int,
    choice: int,
    quality: list[float],
    cost: list[float | None],
    leaving: float,
    o: Objective,
) -> str:
    """Why a conversation keeps its model, or '' where it should change."""
    if x.in_tool_loop:
        return "The conversation stays on its model: it is inside a tool loop."
    if quality[choice] - quality[incumbent] > _HARDER and o.kind != "cheapest":
        return ""
    now, then = cost[incumbent], cost[choice]
    # `now` has the cached discount in it already; `leaving` is the margin for coming back later.
    if now is not None and then is not None and now - then > leaving:
        return ""
    if leaving > 0.0:
        return (
            f"The conversation stays on its model: leaving its cached prefix costs ${leaving:.6f}, "
            "more than the change would gain."
        )
    return "The conversation stays on its model: the change would gain too little."


def make_named(name: str, objective: Objective) -> Any:
    """A policy that follows one objective whatever the route says."""

    class Named(DefaultPolicy):
        def __init__(
            self,
            signal_names: Sequence[str],
            quantiles: Sequence[float] | None = None,
            objective: Objective | None = objective,
        ) -> None:
            super().__init__(signal_names, quantiles, objective)

    Named.name = name
    Named.__name__ = f"{name.capitalize()}Policy"
    return Named
