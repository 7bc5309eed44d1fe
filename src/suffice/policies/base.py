"""What every policy that predicts does with its predictions: the objective, the conversation, the
reason. A policy of this family only says what it expects of each candidate (`predict`)."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Literal, Protocol, Self, runtime_checkable

from suffice import features
from suffice.artifacts.certificate import Certificate
from suffice.names import match_model
from suffice.policies import priors
from suffice.policies.objectives import describe
from suffice.types import (
    Candidate,
    Decision,
    Features,
    Objective,
    PlanStep,
    Policy,
    Prediction,
    Session,
)

BALANCED = Objective(kind="weights", cost=1.0, speed=0.5, quality=2.0)
SWITCH_QUALITY_GAIN = (
    0.15  # quality that a conversation must be about to lose before it changes its model
)
_CACHED = 256


class TrafficWindow(Protocol):
    """Recent decisions of one route, as far as a policy needs them."""

    def add(self, decision: Decision) -> bool:
        """Record a decision. Returns whether the policy is due for `with_traffic`."""


@runtime_checkable
class TrafficAware(Protocol):
    """A policy that solves its objective over the traffic of its route."""

    def traffic_window(self) -> TrafficWindow:
        """A new, empty window of traffic for this policy."""

    def with_traffic(self, window: Any) -> Policy:
        """Copy the policy with the traffic of a window that `traffic_window` made."""


@runtime_checkable
class Certifiable(Protocol):
    """A policy that serves `max_quality_loss` under a certificate."""

    certificate: Certificate | None
    alarm: str

    @property
    def score_version(self) -> str:
        """The version of the policy's score, which a certificate names."""

    def with_certificate(self, certificate: Certificate | None, alarm: str = "") -> Policy:
        """Copy the policy with a certificate, or without one."""


class PreparedPool:
    """What can be computed once for a tuple of candidates and an objective. `best`: the reference,
    the candidate of the highest mean quality; `lead`: mean quality of each; `certified`: places of
    the certificate's models, or why it does not hold."""

    __slots__ = ("best", "candidates", "certified", "lead", "more", "names", "objective")

    def __init__(
        self, candidates: tuple[Candidate, ...], objective: Objective, lead: list[float], more: Any
    ) -> None:
        self.candidates = candidates
        self.names = [c.model.name for c in candidates]
        self.objective = objective
        self.lead = lead
        self.best = max(range(len(lead)), key=lambda i: (lead[i], -i))
        self.certified: tuple[int, ...] | str = ""
        self.more = more


class QueryPredictions:
    """What a policy expects of each candidate for one query, (n_candidates,) each; None = unknown.
    difficulty: share of traffic that is easier; score: what it came from; basis: how sure."""

    __slots__ = ("basis", "cost", "difficulty", "quality", "score", "speed")

    def __init__(
        self,
        quality: list[float],
        cost: list[float | None],
        speed: list[float | None],
        difficulty: float,
        score: float,
        basis: Literal["prior", "trained", "certified"],
    ) -> None:
        self.quality = quality
        self.cost = cost
        self.speed = speed
        self.difficulty = difficulty
        self.score = score
        self.basis = basis


class Ranking:
    """order: candidates, best first. shares: probability of each, None = the first is certain. why:
    words on what was traded."""

    __slots__ = ("order", "shares", "why")

    def __init__(self, order: list[int], why: str = "", shares: list[float] | None = None) -> None:
        self.order = order
        self.why = why
        self.shares = shares


class PredictivePolicy:
    """Base of policies that predict quality, cost and latency and let the objective choose.

    objective: overrides the route's (the named policies use it). A subclass gives `prepare_pool`,
    `predict` and, where an objective is solved over traffic, `rank`.
    """

    name = "deciding"
    objective: Objective | None = None
    certificate: Certificate | None = None
    alarm = ""
    _uncertified = ""

    def __init__(self) -> None:
        self._pools: dict[tuple[int, Objective], PreparedPool] = {}
        self._version = self.name

    @property
    def score_version(self) -> str:
        """The version of the policy's score, which a certificate names."""
        return priors.prior_version(self.name, features.SCHEMA)

    def with_certificate(self, certificate: Certificate | None, alarm: str = "") -> Self:
        """Copy the policy with a certificate for `max_quality_loss`.

        Args:
            certificate: None removes the one in use.
            alarm: why the certificate must not be used now; the reference model then serves.
        """
        other = copy.copy(self)
        other._pools = {}
        other.certificate = certificate
        other.alarm = alarm
        uncertified = other._uncertified = self._uncertified or self._version
        other._version = uncertified
        if certificate is not None:
            hash_input = f"{uncertified}/{certificate.digest}" + ("/alarm" if alarm else "")
            base = uncertified.rpartition("-")[0]
            other._version = f"{base}-{blake2b(hash_input.encode(), digest_size=4).hexdigest()}"
        return other

    @property
    def version(self) -> str:
        return self._version

    def prepare_pool(self, candidates: tuple[Candidate, ...], objective: Objective) -> PreparedPool:
        raise NotImplementedError

    def predict(
        self, pool: PreparedPool, x: Features, limit: int | None, incumbent: int | None, cached: int
    ) -> QueryPredictions:
        raise NotImplementedError

    def _pool(self, candidates: tuple[Candidate, ...], objective: Objective) -> PreparedPool:
        key = (id(candidates), objective)
        pool = self._pools.get(key)
        if pool is None or pool.candidates is not candidates:
            if len(self._pools) >= _CACHED:
                self._pools.clear()
            pool = self._pools[key] = self.prepare_pool(candidates, objective)
            if objective.kind == "max_quality_loss":
                pool.certified = self.resolve_certificate(pool)
        return pool

    def resolve_certificate(self, pool: PreparedPool) -> tuple[int, ...] | str:
        """The places in the pool of the certificate's (reference, *cheap), or why it does not hold
        for this pool and objective."""
        certificate = self.certificate
        if certificate is None:
            return "not calibrated"
        if self.alarm:
            return self.alarm
        models = (certificate.reference, *certificate.cheap)
        columns = certificate.find_columns(pool.names)
        if columns is None:
            missing = [m for m in models if match_model(m, pool.names) is None]
            return f"certified with {', '.join(missing)}, which cannot be had now"
        prices: dict[str, tuple[float, float] | None] = {}
        for name, column in zip(models, columns, strict=True):
            p = pool.candidates[column].model.price
            known = p.input_usd_per_mtok is not None and p.output_usd_per_mtok is not None
            prices[name] = (p.input_usd_per_mtok, p.output_usd_per_mtok) if known else None  # type: ignore[assignment]
        reason = certificate.unmet_reason(pool.objective) or certificate.stale_reason(
            self.score_version, prices
        )
        return columns if reason is None else f"the certificate does not hold: {reason}"

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
        incumbent = _incumbent(pool, session)
        cached, leaving = 0, 0.0
        if session is not None and incumbent is not None:
            cached = session.cached_tokens
            leaving = priors.switching_cost_usd(candidates[incumbent].model, cached)
        view = self.predict(pool, x, max_output_tokens, incumbent, cached)
        if objective.kind == "max_quality_loss":
            choice = self._certified(pool, view)
        else:
            choice = self.rank(pool, view, objective, seed)
        order, shares = choice.order, choice.shares
        if session is not None and session.failed:
            order.sort(key=lambda i: pool.names[i] in session.failed)
            shares = None
        stay = ""
        # After an alarm a conversation does not stay with a model that is not trusted any more.
        left = bool(self.alarm) and objective.kind == "max_quality_loss" and not x.in_tool_loop
        if incumbent is not None and order[0] != incumbent and not left:
            stay = sticky_reason(x, incumbent, order[0], view, leaving, objective)
            if stay:
                order.remove(incumbent)
                order.insert(0, incumbent)
        if incumbent is not None:
            shares = None  # what the conversation did before decides, not this draw
        top = order[0]
        reason = stay or self._reason(pool, view, top, choice.why, x)
        if shares is None:
            shares = [0.0] * len(order)
            shares[top] = 1.0
        names = pool.names
        return Decision(
            id=id,
            model=names[top],
            plan=tuple(
                [
                    PlanStep(names[i], "choice" if n == 0 else "failover")
                    for n, i in enumerate(order)
                ]
            ),
            predictions=tuple(
                [
                    Prediction(
                        names[i],
                        quality,
                        view.cost[i],
                        view.speed[i],
                        shares[i],
                        leaving if i != incumbent else 0.0,
                    )
                    for i, quality in enumerate(view.quality)
                ]
            ),
            reason=reason,
            policy=self.name,
            policy_version=self._version,
            objective=objective,
            basis=view.basis,
            propensity=shares[top],
            difficulty=view.difficulty,
            score=view.score,
            seed=seed,
        )

    # ── the objective ────────────────────────────────────────────────────────────────────────────

    def rank(
        self, pool: PreparedPool, view: QueryPredictions, objective: Objective, seed: int
    ) -> Ranking:
        merit, why = utilities(pool, view, objective)
        return Ranking(sorted(range(len(merit)), key=lambda i: (-merit[i], i)), why)

    def _certified(self, pool: PreparedPool, view: QueryPredictions) -> Ranking:
        """The certified alternative where the score is at most the certified threshold, else the
        reference; the reference alone where no certificate holds."""
        certified, certificate = pool.certified, self.certificate
        n = range(len(pool.names))
        if isinstance(certified, str) or certificate is None:
            reference = None if certificate is None else certificate.find_reference(pool.names)
            top = pool.best if reference is None else reference
            why = f"; {certified}, so the reference model serves"
        else:
            index, gap = certificate.choose_alternative([view.quality[i] for i in certified])
            score = gap if certificate.score == "gap" else view.score
            top = certified[index + 1] if certificate.accepts(score) else certified[0]
            view.basis = "certified"
            why = f"; certified on {certificate.n} {certificate.unit} of {certificate.table}"
        order = sorted(n, key=lambda i: (i != top, -view.quality[i], i))
        return Ranking(order, why)

    def _reason(
        self, pool: PreparedPool, view: QueryPredictions, top: int, why: str, x: Features
    ) -> str:
        o = pool.objective
        price, quality = view.cost[top], view.quality[top]
        shown = "at an unknown price" if price is None else f"at ${price:.6f}"
        text = (
            f"{pool.names[top]}: {self._how_hard(view, x)}predicted quality {quality:.2f} "
            f"({view.basis}) {shown}, by {describe(o)}{why}"
        )
        best = pool.best
        dear = view.cost[best]
        if best != top:
            if price and dear and dear > price:
                text += f"; {dear / price:.1f}x cheaper than {pool.names[best]}"
        elif o.kind == "keep_quality":
            text += "; a cheaper model would keep too little of the quality"
        return text + "."

    def _how_hard(self, view: QueryPredictions, x: Features) -> str:
        follow = " (inherited by a follow-up)" if x.follow_up else ""
        return f"harder than {view.difficulty:.0%} of traffic{follow}, "


def randomize(low: int, high: int, share: float, seed: int) -> tuple[int, dict[int, float]]:
    """A draw between two candidates, `share` of the time the first; and both probabilities."""
    if low == high or share >= 1.0:
        return low, {low: 1.0}
    if share <= 0.0:
        return high, {high: 1.0}
    drawn = low if random.Random(seed).random() < share else high
    return drawn, {low: share, high: 1.0 - share}


def impute_worst(values: Sequence[float | None], margin: float) -> list[float]:
    """Unknown values rank behind every known one, never as zero."""
    worst = max((v for v in values if v is not None), default=0.0)
    return [worst * 1.01 + margin if v is None else v for v in values]


def utilities(pool: PreparedPool, view: QueryPredictions, o: Objective) -> tuple[list[float], str]:
    """(merit of each candidate, larger is better; a word on what was traded), for every objective
    that one query can settle; those over traffic get what stands in for them."""
    quality = view.quality
    n = range(len(quality))
    c = impute_worst(view.cost, 1e-9)
    kind, value = o.kind, o.value or 0.0
    if kind == "cheapest":
        return [-c[i] for i in n], ""
    if kind in ("best", "keep_quality"):
        if view.basis == "prior":
            # The whole model's prior first: on an easy ask they all look alike.
            return [pool.lead[i] - 1e-9 * c[i] for i in n], ""
        return [quality[i] - 1e-9 * c[i] for i in n], ""
    if kind == "max_usd_per_query":
        return under_limit(value, view.cost, c, quality, n, "price")
    s = impute_worst(view.speed, 1e-3)
    if kind == "fastest":
        return [-s[i] for i in n], ""
    if kind == "max_latency_s":
        return under_limit(value, view.speed, s, quality, n, "latency")
    if kind == "worth_usd":
        return [value * quality[i] - c[i] for i in n], ""
    w = o if kind == "weights" else BALANCED
    top_c, top_s = max(c) or 1.0, max(s) or 1.0
    return [w.quality * quality[i] - w.cost * c[i] / top_c - w.speed * s[i] / top_s for i in n], ""


def under_limit(
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


# ── the conversation ─────────────────────────────────────────────────────────────────────────────


def _incumbent(pool: PreparedPool, session: Session | None) -> int | None:
    if session is None or session.incumbent is None or session.incumbent in session.failed:
        return None
    try:
        return pool.names.index(session.incumbent)
    except ValueError:
        return None


def sticky_reason(
    x: Features, incumbent: int, choice: int, view: QueryPredictions, leaving: float, o: Objective
) -> str:
    """Why a conversation keeps its model, or '' where it should change."""
    if x.in_tool_loop:
        return "The conversation stays on its model: it is inside a tool loop."
    if (
        view.quality[choice] - view.quality[incumbent] > SWITCH_QUALITY_GAIN
        and o.kind != "cheapest"
    ):
        return ""
    now, then = view.cost[incumbent], view.cost[choice]
    # `now` has the cached discount in it already; `leaving` is the margin for coming back later.
    if now is not None and then is not None and now - then > leaving:
        return ""
    if leaving > 0.0:
        return (
            f"The conversation stays on its model: leaving its cached prefix costs ${leaving:.6f}, "
            "more than the change would gain."
        )
    return "The conversation stays on its model: the change would gain too little."
