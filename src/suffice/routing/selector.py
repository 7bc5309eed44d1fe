"""Selection: a query and a route in, one final Decision out. Nothing is called."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from suffice import features as feature_extraction
from suffice.errors import NoEligibleModelError
from suffice.types import (
    NO_OPTIONS,
    Decision,
    ExcludedModel,
    Features,
    Model,
    PlanStep,
    Prediction,
    Query,
    RoutingOptions,
    Session,
)

if TYPE_CHECKING:
    from suffice.budgets import AnyReservation, Budgets
    from suffice.catalog import Catalog
    from suffice.execution import Engine
    from suffice.learning.frozen_posterior import FrozenPosterior
    from suffice.pool import Pool
    from suffice.routing.routes import Route, RouteTable
    from suffice.routing.sessions import SessionStore
    from suffice.store.protocols import Store

_MAX_SPLITS = 1024
_BYTES_PER_TOKEN = 4  # of JSON schemas


class Selection:
    """What was selected for one query.

    Attributes:
        features: the query as numbers.
        decision: final: what is recorded and carried out.
        reservation: the money that carrying it out may spend.
    """

    __slots__ = ("decision", "features", "reservation")

    def __init__(self, features: Features, decision: Decision, reservation: AnyReservation) -> None:
        self.features = features
        self.decision = decision
        self.reservation = reservation


class DecisionIds:
    """Makes the ids of decisions: the time in milliseconds, then 64 random bits, in hexadecimal."""

    def __init__(self, random: random.Random) -> None:
        self._bits = random.getrandbits

    def new(self) -> str:
        """A new id. Ids sort by the time they were made."""
        return f"dec_{int(time.time() * 1000):011x}{self._bits(64):016x}"


class Selector:
    """Chooses the models for queries of all routes."""

    def __init__(
        self,
        routes: RouteTable,
        catalog: Catalog,
        engine: Engine,
        sessions: SessionStore,
        budgets: Budgets,
        random: random.Random,
        *,
        posterior: Callable[[str], FrozenPosterior | None],
        store: Callable[[], Store],
    ) -> None:
        """Keep what selection reads.

        Args:
            routes: where clients may name models.
            catalog: which models can take a query.
            engine: knows which models cool down and how fast models are.
            sessions: the conversations under way.
            budgets: the money limits of all routes.
            random: of seeds and ids.
            posterior: what a route explores by, by its name.
            store: knows what was spent before this process started.
        """
        self._routes = routes
        self._catalog = catalog
        self._breaker = engine.breaker
        self._latency = engine.latency
        self._sessions = sessions
        self._budgets = budgets
        self._random = random
        self._ids = DecisionIds(random)
        self._posterior = posterior
        self._store = store
        self._splits: dict[tuple[Pool, Pool], tuple[Pool, tuple[PlanStep, ...]]] = {}

    def new_id(self) -> str:
        """The id of a new decision."""
        return self._ids.new()

    def new_seed(self) -> int:
        """A seed of 32 bits."""
        return self._random.getrandbits(32)

    def select(self, query: Query, route: Route, *, commit: bool = False) -> Selection:
        """Choose the models that are tried for a query, and their order.

        Args:
            query: what the client asks.
            route: of the query.
            commit: the selection will be carried out, so budgets and exploration count it.

        Returns:
            The features, the final Decision, and the money that it may spend.
        """
        x = feature_extraction.extract(query.messages, extra_tokens=schema_tokens(query.fields))
        options = query.options
        pool, fallbacks, excluded = self._eligible(query, route, x)
        objective = route.objective if options is NO_OPTIONS else route.objective_for(options)
        session = (
            self._sessions.get(query.session, time.time()) if len(query.messages) > 1 else None
        )
        reservation = self._budgets.reserve(route.name, objective, query, x)
        serving = route.serving
        decision = serving.policy.decide(
            x,
            self._latency.candidates(pool),
            objective,
            session,
            id=self._ids.new(),
            seed=self._random.getrandbits(32),
            max_output_tokens=query.max_output_tokens,
        )
        route.observe(decision, serving)
        is_free = objective is route.objective and not options.order
        if reservation.is_limited:
            if commit:
                reservation.restore(self._store())
            decision = reservation.rerank(decision, session, paced=is_free, commit=commit)
        elif route.explore_share and is_free and _may_explore(decision, query, x, session):
            decision = route.explore(decision, self._posterior(route.name))
        if route.explore_share and commit:
            route.update_mean_cost(decision)
        if options.order or not options.allow_fallbacks:
            decision = apply_client_order(decision, options, pool.models)
        decision = msgspec.structs.replace(
            decision,
            route=route.name,
            plan=decision.plan + fallbacks if fallbacks else decision.plan,
            excluded=excluded,
            snapshot=serving.version,
        )
        return Selection(x, reservation.filter_plan(decision), reservation)

    def _eligible(
        self, query: Query, route: Route, x: Features
    ) -> tuple[Pool, tuple[PlanStep, ...], tuple[ExcludedModel, ...]]:
        """The models that can take the query, the fallbacks that can, and those left out."""
        options = query.options
        pool = route.pool if options.models is None else self._routes.pool_of(options.models)
        with_fallbacks = route.has_fallbacks and options.allow_fallbacks
        eligible, excluded = self._catalog.eligible(
            self._with_fallbacks(pool, route) if with_fallbacks else pool,
            required_capabilities=query.required_capabilities,
            input_tokens=x.input_tokens,
            max_output_tokens=query.max_output_tokens,
            options=None if options is NO_OPTIONS else options,
        )
        steps: tuple[PlanStep, ...] = ()
        if with_fallbacks:
            eligible, steps = self._split(eligible, pool)
        if not eligible.models:
            raise _no_eligible_model(route.name, excluded)
        eligible, cooling = self._breaker.available(eligible)
        return eligible, steps, excluded + cooling

    def _with_fallbacks(self, pool: Pool, route: Route) -> Pool:
        if pool is route.pool:
            return route.reachable
        return self._catalog.pool(dict.fromkeys((*pool.models, *route.fallbacks.models)))

    def _split(self, eligible: Pool, pool: Pool) -> tuple[Pool, tuple[PlanStep, ...]]:
        """The part of `eligible` that is of `pool`, and the others as steps of a plan."""
        key = (eligible, pool)
        split = self._splits.get(key)
        if split is None:
            names = frozenset(pool.names)
            chosen = self._catalog.pool(m for m in eligible.models if m.name in names)
            steps = tuple(PlanStep(n, "fallback") for n in eligible.names if n not in names)
            if len(self._splits) >= _MAX_SPLITS:
                self._splits.clear()
            split = self._splits[key] = (chosen, steps)
        return split


def schema_tokens(fields: Mapping[str, msgspec.Raw]) -> int:
    """About how many tokens tools and a response format add to the prompt."""
    total = 0
    for name in ("tools", "functions", "response_format"):
        raw = fields.get(name)
        if raw is not None:
            total += memoryview(raw).nbytes // _BYTES_PER_TOKEN
    return total


def _may_explore(decision: Decision, query: Query, x: Features, session: Session | None) -> bool:
    """Whether another model may take the query: it begins a conversation, and nothing else chose."""
    return (
        x.human_turns == 1
        and decision.propensity == 1.0
        and decision.basis != "certified"  # exploring would break what is certified
        and query.options.models is None
        and session is None
        and not x.in_tool_loop
    )


def apply_client_order(
    decision: Decision, options: RoutingOptions, models: tuple[Model, ...]
) -> Decision:
    """Put the plan in the client's order of providers.

    Args:
        decision: the policy's.
        options: the client's.
        models: the candidates.

    Returns:
        The decision with its plan in that order, cut to one step if the client allows no fallbacks.
        If another model than the policy's comes first, the reason names the client's order, and the
        propensities are those of the policy among the models of its provider.
    """
    rank = {provider: i for i, provider in enumerate(options.order)}
    provider_of = {m.name: m.provider for m in models}
    ordered = sorted(decision.plan, key=lambda s: rank.get(provider_of[s.model], len(rank)))
    if not options.allow_fallbacks:
        del ordered[1:]
    plan = tuple([PlanStep(s.model, "failover" if i else "choice") for i, s in enumerate(ordered)])
    top = plan[0].model
    if top == decision.model:
        return msgspec.structs.replace(decision, plan=plan)
    group = frozenset(m.name for m in models if m.provider == provider_of[top])
    predictions = _conditional(decision.predictions, top, group)
    return msgspec.structs.replace(
        decision,
        model=top,
        plan=plan,
        predictions=predictions,
        propensity=next((p.propensity for p in predictions if p.model == top), 1.0),
        reason=f"{top}: first in the client's order of providers, instead of {decision.model}.",
        explored=False,
    )


def _conditional(
    predictions: tuple[Prediction, ...], top: str, group: frozenset[str]
) -> tuple[Prediction, ...]:
    """The predictions with their propensities given that a model of `group` is chosen."""
    share = sum(p.propensity for p in predictions if p.model in group)
    chosen = next((p.propensity for p in predictions if p.model == top), 0.0)

    def propensity(p: Prediction) -> float:
        if chosen > 0.0:
            return p.propensity / share if p.model in group else 0.0
        return 1.0 if p.model == top else 0.0

    return tuple([msgspec.structs.replace(p, propensity=propensity(p)) for p in predictions])


def _no_eligible_model(route: str, excluded: tuple[ExcludedModel, ...]) -> NoEligibleModelError:
    reasons = {e.model: e.reason for e in excluded}
    listed = "; ".join(f"{m}: {reason}" for m, reason in reasons.items()) or "its pool is empty"
    return NoEligibleModelError(
        f"No model of {route!r} can take this query. {listed}.",
        reasons=reasons,
        permanent=all(e.permanent for e in excluded),
    )
