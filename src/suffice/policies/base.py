"""The base of policies that predict, and let the objective, the conversation and a certificate decide.

A policy of this family says what it expects of each model (`predict`), and how it solves an objective
over its traffic (`rank`).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Protocol, Self, runtime_checkable

from suffice import features
from suffice.artifacts.certificate import Certificate
from suffice.policies import priors
from suffice.policies.certification import Certification
from suffice.policies.prepared_pool import PreparedPool, QueryPredictions, Ranking, T
from suffice.policies.stickiness import find_incumbent, sticky_reason
from suffice.policies.utility import utilities
from suffice.pool import Candidates, Pool
from suffice.types import (
    Candidate,
    Decision,
    Features,
    Model,
    Objective,
    Policy,
    Prediction,
    Session,
)

_MAX_CACHED = 256


class TrafficWindow(Protocol):
    """Recent decisions of one route, as far as a policy needs them."""

    def add(self, decision: Decision) -> bool:
        """Record a decision. Returns whether the policy is due for `with_traffic`."""


@runtime_checkable
class TrafficAware(Protocol):
    """A policy that solves its objective over the traffic of its route."""

    def traffic_window(self) -> TrafficWindow:
        """A new, empty window of traffic for this policy."""

    # Any: each policy takes the kind of window that its own `traffic_window` makes.
    def with_traffic(self, window: Any) -> Policy:
        """Copy the policy with the traffic of a window that `traffic_window` made."""


@runtime_checkable
class Certifiable(Protocol):
    """A policy that serves `max_quality_loss` under a certificate."""

    @property
    def certificate(self) -> Certificate | None:
        """The certificate in use."""

    @property
    def alarm(self) -> str:
        """Why the certificate must not be used now; "" = it may be."""

    @property
    def score_version(self) -> str:
        """The version of the policy's score, which a certificate names."""

    def with_certificate(self, certificate: Certificate | None, alarm: str = "") -> Policy:
        """Copy the policy with a certificate, or without one."""


class PredictivePolicy(ABC, Generic[T]):
    """Base of policies that predict quality, cost and latency and let the objective choose.

    Attributes:
        name: of the policy.
        objective: overrides the route's, unless that is of the same kind; None = the route's.
        certification: the certificate in use.
    """

    name = "predictive"
    objective: Objective | None = None
    certification = Certification()

    def __init__(self, uncertified_version: str) -> None:
        self.version = self._uncertified_version = uncertified_version
        self._prepared: dict[tuple[Pool, Objective], PreparedPool[T]] = {}
        self._pools: dict[tuple[Model, ...], Pool] = {}

    @property
    def certificate(self) -> Certificate | None:
        """The certificate in use."""
        return self.certification.certificate

    @property
    def alarm(self) -> str:
        """Why the certificate must not be used now; "" = it may be."""
        return self.certification.alarm

    @property
    def score_version(self) -> str:
        """The version of the policy's score, which a certificate names."""
        return priors.prior_version(self.name, features.SCHEMA)

    def with_certificate(self, certificate: Certificate | None, alarm: str = "") -> Self:
        """Copy the policy with a certificate for `max_quality_loss`.

        Args:
            certificate: None removes the one in use.
            alarm: why the certificate must not be used now; the reference model then serves.

        Returns:
            A policy with another version. It shares what was computed per pool, which does not
            depend on the certificate.
        """
        other = copy.copy(self)
        other.certification = Certification(certificate, alarm, self.score_version)
        other.version = other.certification.version(self._uncertified_version)
        return other

    @abstractmethod
    def prepare_pool(self, pool: Pool, objective: Objective) -> PreparedPool[T]:
        """Compute what depends on the pool and the objective alone."""

    @abstractmethod
    def predict(
        self,
        pool: PreparedPool[T],
        candidates: tuple[Candidate, ...],
        x: Features,
        max_output_tokens: int | None,
        incumbent: int | None,
        cached_tokens: int,
    ) -> QueryPredictions:
        """Predict quality, cost and latency of each model for a query.

        Args:
            pool: prepared.
            candidates: its models with their speed now.
            x: the query.
            max_output_tokens: the client's limit; None = none.
            incumbent: the index of the model that holds a cached prefix; None = none.
            cached_tokens: the length of that prefix.
        """

    def rank(self, pool: PreparedPool[T], predictions: QueryPredictions, seed: int) -> Ranking:
        """Rank the models by the objective. A policy that solves it over traffic overrides this."""
        utility, reason = utilities(pool, predictions, pool.objective)
        order = sorted(range(len(utility)), key=utility.__getitem__, reverse=True)
        return Ranking(order, reason)

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
        """Rank the candidates, at least one, and say what is predicted of each."""
        if not candidates:
            raise ValueError("candidates: expected at least one")
        if self.objective is not None and self.objective.kind != objective.kind:
            objective = self.objective
        pool = self._prepare(candidates, objective)
        names = pool.pool.names
        incumbent = find_incumbent(names, session)
        cached_tokens = 0 if session is None or incumbent is None else session.cached_tokens
        switching = 0.0  # USD
        if incumbent is not None:
            switching = priors.switching_cost_usd(candidates[incumbent].model, cached_tokens)
        predictions = self.predict(pool, candidates, x, max_output_tokens, incumbent, cached_tokens)
        ranking = self._rank_by_objective(pool, predictions, seed)
        reason = ""
        if session is not None:
            reason = self._keep_incumbent(
                x, pool, predictions, ranking, session, incumbent, switching
            )
        order = ranking.order
        top = order[0]
        propensities = ranking.propensities or [float(i == top) for i in range(len(order))]
        return Decision(
            id=id,
            model=names[top],
            plan=pool.plan(order),
            predictions=_to_predictions(names, predictions, propensities, switching, incumbent),
            reason=reason or self._reason(pool, predictions, top, ranking.reason, x),
            policy=self.name,
            policy_version=self.version,
            objective=objective,
            basis=predictions.basis,
            propensity=propensities[top],
            difficulty=predictions.difficulty,
            score=predictions.score,
            seed=seed,
        )

    def _rank_by_objective(
        self, pool: PreparedPool[T], predictions: QueryPredictions, seed: int
    ) -> Ranking:
        if pool.objective.kind == "max_quality_loss":
            return self.certification.rank(pool, predictions)
        return self.rank(pool, predictions, seed)

    def _prepare(self, candidates: tuple[Candidate, ...], objective: Objective) -> PreparedPool[T]:
        if isinstance(candidates, Candidates):
            pool = candidates.pool
        else:
            pool = self._intern(tuple([c.model for c in candidates]))
        key = (pool, objective)
        prepared = self._prepared.get(key)
        if prepared is None:
            if len(self._prepared) >= _MAX_CACHED:
                self._prepared.clear()
            prepared = self._prepared[key] = self.prepare_pool(pool, objective)
        return prepared

    def _intern(self, models: tuple[Model, ...]) -> Pool:
        """The pool of models that come without one: from a test, a replay, a caller in Python."""
        pool = self._pools.get(models)
        if pool is None:
            if len(self._pools) >= _MAX_CACHED:
                self._pools.clear()
            pool = self._pools[models] = Pool(models)
        return pool

    def _keep_incumbent(
        self,
        x: Features,
        pool: PreparedPool[T],
        predictions: QueryPredictions,
        ranking: Ranking,
        session: Session,
        incumbent: int | None,
        switching_cost_usd: float,
    ) -> str:
        """Apply what a conversation remembers to a ranking.

        Returns:
            Why the conversation keeps its model, as a sentence; "" if the ranking decides.
        """
        order, names = ranking.order, pool.pool.names
        if session.failed:
            order.sort(key=lambda i: names[i] in session.failed)
            ranking.propensities = None
        if incumbent is None:
            return ""
        ranking.propensities = None  # the conversation's past decides, not this draw
        certified = pool.objective.kind == "max_quality_loss"
        # After an alarm a conversation leaves a model that is no longer trusted.
        leaves = certified and self.alarm != "" and not x.in_tool_loop
        if order[0] == incumbent or leaves:
            return ""
        reason = sticky_reason(
            x, incumbent, order[0], predictions, switching_cost_usd, pool.objective
        )
        if reason:
            order.remove(incumbent)
            order.insert(0, incumbent)
        return reason

    def _reason(
        self,
        pool: PreparedPool[T],
        predictions: QueryPredictions,
        top: int,
        traded: str,
        x: Features,
    ) -> str:
        names = pool.pool.names
        cost, quality = predictions.cost_usd[top], _as_share(predictions.quality[top])
        price = "at an unknown price" if cost is None else f"at ${cost:.6f}"
        text = (
            f"{names[top]}: {self.difficulty_text(predictions, x)}predicted quality {quality:.2f} "
            f"({predictions.basis}) {price}, by {pool.objective_text}{traded}"
        )
        reference = pool.reference
        if reference != top:
            reference_cost = predictions.cost_usd[reference]
            if cost and reference_cost and reference_cost > cost:
                return f"{text}; {reference_cost / cost:.1f}x cheaper than {names[reference]}."
        elif pool.objective.kind == "keep_quality" and any(
            cost and other is not None and other < cost for other in predictions.cost_usd
        ):
            return f"{text}; a cheaper model would keep too little of the quality."
        return f"{text}."

    def difficulty_text(self, predictions: QueryPredictions, x: Features) -> str:
        """How hard the query is, for the reason; ends with a separator unless it is empty."""
        follow_up = " (inherited by a follow-up)" if x.follow_up else ""
        return f"harder than {predictions.difficulty:.0%} of traffic{follow_up}, "


def _as_share(quality: float) -> float:
    """A predicted quality as it is shown: a linear model can leave [0, 1], a quality cannot."""
    return 0.0 if quality < 0.0 else 1.0 if quality > 1.0 else quality


def _to_predictions(
    names: Sequence[str],
    predictions: QueryPredictions,
    propensities: Sequence[float],
    switching_cost_usd: float,
    incumbent: int | None,
) -> tuple[Prediction, ...]:
    shown = [_as_share(q) if q < 0.0 or q > 1.0 else q for q in predictions.quality]
    switching: list[float] = [switching_cost_usd] * len(shown)
    if incumbent is not None:
        switching[incumbent] = 0.0
    return tuple(
        map(
            Prediction,
            names,
            shown,
            predictions.cost_usd,
            predictions.latency_s,
            propensities,
            switching,
        )
    )
