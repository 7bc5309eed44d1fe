"""Named routes: which models each may use, and what it serves now.

Everything about a route that may change while it serves is in one frozen `Serving`, which is replaced
as a whole under a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import nan
from typing import TYPE_CHECKING

import msgspec

from suffice import policies
from suffice.artifacts.certificate import Certificate
from suffice.errors import BadRequestError, ModelNotFoundError
from suffice.routing.policy_loader import load_policy
from suffice.routing.serving import PinnedModel, Serving
from suffice.types import (
    Decision,
    Model,
    Objective,
    PlanStep,
    Policy,
    RoutingOptions,
)

if TYPE_CHECKING:
    from suffice.catalog import Catalog
    from suffice.config import RouteSpec
    from suffice.learning.frozen_posterior import FrozenPosterior
    from suffice.pool import Pool

_MEAN_COST_WEIGHT = 0.01  # of a new query in a route's mean predicted cost
_MAX_CLIENT_POOLS = 1024
_OBJECTIVE, _INVALID = "suffice.objective", "invalid_value"
_PINNED = Serving(PinnedModel())


class Route:
    """A named pool of models with a policy and an objective.

    Attributes:
        name: what clients ask for.
        pool: the models that the policy chooses from.
        reachable: `pool` and `fallbacks`.
        fallbacks: models that are tried after the plan of the policy.
        has_fallbacks: whether there are any.
        objective: the operator's.
        fallback_max_usd_per_query: the ceiling for a fallback's predicted cost; None = no ceiling.
        timeouts: of every attempt.
        retries: of every request.
        explore_share: share of new conversations that explore; 0 = never.
        implicit_feedback: weight of each implicit signal that is enabled.
        is_pinned: one model that a client named instead of a route.
        serving: what decides now. Read it once per request.
        mean_cost_usd: mean predicted cost of a query, while the route explores.
    """

    def __init__(
        self, spec: RouteSpec, serving: Serving, catalog: Catalog, *, is_pinned: bool = False
    ) -> None:
        self.name = spec.name
        self.pool = catalog.pool(spec.models)
        self.fallbacks = catalog.pool(spec.fallbacks)
        self.has_fallbacks = bool(spec.fallbacks)
        self.reachable = catalog.pool(dict.fromkeys((*spec.models, *spec.fallbacks)))
        self.objective = spec.objective
        self.fallback_max_usd_per_query = spec.fallback_max_usd_per_query
        self.timeouts = spec.timeouts
        self.retries = spec.retries
        self.explore_share = spec.explore_share if spec.learning == "on" else 0.0
        self.implicit_feedback: Mapping[str, float] = spec.implicit_feedback
        self.is_pinned = is_pinned
        self.serving = serving
        self.mean_cost_usd: float | None = None
        self._configured = serving.policy
        self._lock = threading.Lock()

    @property
    def models(self) -> tuple[Model, ...]:
        """The models that the policy chooses from."""
        return self.pool.models

    @property
    def configured_policy(self) -> Policy:
        """The policy that the configuration names."""
        return self._configured

    def objective_for(self, options: RoutingOptions) -> Objective:
        """The objective of one request.

        Args:
            options: the client's.

        Returns:
            The client's objective if it has one and did not name a model, else the route's.

        Raises:
            BadRequestError: the client's objective is not valid.
        """
        if self.is_pinned or (options.objective is None and options.sort is None):
            return self.objective
        if options.objective is None:
            return Objective(kind="cheapest" if options.sort == "price" else "fastest")
        try:
            objective = policies.parse_objective(options.objective)
        except ValueError as error:
            raise BadRequestError(f"{error}.", param=_OBJECTIVE, code=_INVALID) from None
        if objective.kind == "usd_per_day":
            message = "objective.usd_per_day: a budget is the route's, not a request's."
            raise BadRequestError(message, param=_OBJECTIVE, code=_INVALID)
        return objective

    # ── what changes while serving ───────────────────────────────────────────────────────────────

    def set_policy(
        self, policy: Policy | None, version: str | None, prepare: Callable[[Policy], None]
    ) -> None:
        """Serve another policy from the next request on, under the same certificate and alarm.

        Args:
            policy: None = the configured one.
            version: the snapshot that it was loaded from.
            prepare: warms the policy up before any request meets it.
        """
        while version != (now := self.serving).version:
            serving = Serving.of(policy or self._configured, now.certificate, now.alarm, version)
            prepare(serving.policy)
            with self._lock:
                if self.serving.certificate is now.certificate and self.serving.alarm == now.alarm:
                    self.serving = serving

    def set_certificate(self, certificate: Certificate | None, alarm: str = "") -> None:
        """Serve under another certificate, or under an alarm, from the next request on."""
        with self._lock:
            now = self.serving
            self.serving = Serving.of(now.policy, certificate, alarm, now.version, now.traffic)

    def observe(self, decision: Decision, serving: Serving) -> None:
        """Add a decision to the traffic that the policy adapts to.

        Args:
            decision: as the policy made it.
            serving: what it was made under. If that was replaced meanwhile, the policy that
                replaced it stays.
        """
        traffic, adaptive = serving.traffic, serving.adaptive
        if traffic is None or adaptive is None or not traffic.add(decision):
            return
        policy = adaptive.with_traffic(traffic)
        with self._lock:
            now = self.serving
            if now is serving:
                self.serving = Serving.of(
                    policy, now.certificate, now.alarm, now.version, now.traffic
                )

    # ── exploration ──────────────────────────────────────────────────────────────────────────────

    def update_mean_cost(self, decision: Decision) -> None:
        """Add the predicted cost of the chosen model to the mean of about the last hundred."""
        model = decision.model
        usd = next((p.cost_usd for p in decision.predictions if p.model == model), None)
        if usd is not None:
            mean = usd if self.mean_cost_usd is None else self.mean_cost_usd
            self.mean_cost_usd = mean + _MEAN_COST_WEIGHT * (usd - mean)

    def explore(self, decision: Decision, posterior: FrozenPosterior | None) -> Decision:
        """Now and then put another model first, to learn how well it does.

        Args:
            decision: the policy's, made without randomness.
            posterior: what is known of the models' quality; None = nothing yet.

        Returns:
            The decision with the probability of each model, and the sampled model first.
        """
        predictions = decision.predictions
        quality = [p.quality for p in predictions if p.quality is not None]
        if posterior is None or len(quality) < len(predictions):
            return decision
        names = [p.model for p in predictions]
        objective = self.objective
        worth = objective.value if objective.kind == "worth_usd" else None
        sampled = posterior.sample(
            names,
            quality,
            [nan if p.cost_usd is None else p.cost_usd for p in predictions],
            names.index(decision.model),
            seed=decision.seed,
            quality_per_usd=1.0 / worth if worth else 0.0,
            spend_usd=self.mean_cost_usd,
        )
        propensity = sampled.propensities[sampled.action]
        if propensity == 1.0:
            return decision
        model = names[sampled.action]
        explored = tuple(
            [
                msgspec.structs.replace(p, propensity=share)
                for p, share in zip(predictions, sampled.propensities, strict=True)
            ]
        )
        if not sampled.explored:
            return msgspec.structs.replace(decision, predictions=explored, propensity=propensity)
        others = [PlanStep(s.model, "failover") for s in decision.plan if s.model != model]
        return msgspec.structs.replace(
            decision,
            model=model,
            plan=(PlanStep(model, "choice"), *others),
            predictions=explored,
            propensity=propensity,
            reason=f"{model}: explored (one of {propensity:.2%} of new conversations) instead of "
            f"{decision.model}, to learn how well it does.",
            explored=True,
        )


class RouteTable:
    """All routes by name, and the models that a client may name instead."""

    def __init__(self, specs: Iterable[RouteSpec], catalog: Catalog, source: str) -> None:
        """Load the policy of each route.

        Args:
            specs: the routes of the configuration.
            catalog: the models in use.
            source: the file of the configuration; paths are relative to it.

        Raises:
            ConfigError: a policy is unknown or cannot be certified.
            ArtifactError: an artifact or a certificate cannot be used.
        """
        specs = tuple(specs)
        self._catalog = catalog
        self._routes = {
            spec.name: Route(spec, Serving.configured(load_policy(spec, source)), catalog)
            for spec in specs
        }
        self._pinned_spec = msgspec.structs.replace(
            specs[0],
            objective=Objective(kind="best"),
            fallbacks=(),
            learning="off",
            implicit_feedback={},
        )
        self._pinned: dict[str, Route] = {}
        self._pools: dict[tuple[str, ...], Pool] = {}

    def __getitem__(self, name: str) -> Route:
        return self._routes[name]

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes.values())

    @property
    def by_name(self) -> Mapping[str, Route]:
        """The configured routes by name."""
        return self._routes

    def get(self, name: str) -> Route | None:
        """A configured route, or None."""
        return self._routes.get(name)

    def resolve(self, name: str) -> Route:
        """The route of a request.

        Args:
            name: a route, `suffice/` and a route, or a model.

        Returns:
            The route; a pinned one for a model.

        Raises:
            ModelNotFoundError: neither a route nor a model; offers the nearest names.
        """
        route = self._routes.get(name)
        if route is None:
            route = self._routes.get(name.removeprefix("suffice/"))
        if route is None:
            route = self._pinned.get(name)
        return self._pin(name) if route is None else route

    def pool_of(self, names: tuple[str, ...]) -> Pool:
        """The models that a client names for one request; a route means its models.

        Args:
            names: models or routes.

        Returns:
            The models in this order.

        Raises:
            ModelNotFoundError: a name is unknown.
        """
        pool = self._pools.get(names)
        if pool is None:
            models = dict.fromkeys(m for name in names for m in self._models_of(name))
            pool = self._catalog.pool(models)
            if len(self._pools) >= _MAX_CLIENT_POOLS:
                self._pools.clear()
            self._pools[names] = pool
        return pool

    def _models_of(self, name: str) -> tuple[Model, ...]:
        try:
            return self.resolve(name).models
        except ModelNotFoundError as error:
            error.param = "models"
            raise

    def _pin(self, name: str) -> Route:
        try:
            model = self._catalog.get(name)
        except ModelNotFoundError:
            raise ModelNotFoundError(name, [*self._routes, *self._catalog.names()]) from None
        spec = msgspec.structs.replace(self._pinned_spec, name=model.name, models=(model,))
        route = self._pinned[name] = Route(spec, _PINNED, self._catalog, is_pinned=True)
        return route
