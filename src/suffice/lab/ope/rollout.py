"""Rolls a policy out over recorded decisions, next to what the logging policy did.

The evaluation policy decides every recorded query, with the candidates of that time at today's
prices. In a conversation its incumbent is what it chose before, not what the log chose. This is
exact if the next message does not depend on which model answered the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import expm1

import msgspec
import numpy as np

from suffice import features
from suffice.errors import JobError
from suffice.lab.data.decisions import LoggedDecision
from suffice.lab.data.table import FloatArray
from suffice.lab.ope.estimators import LoggedData
from suffice.lab.ope.logged_choices import (
    FreeChoices,
    Turn,
    by_model,
    logged_data,
)
from suffice.lab.predictors.base import track
from suffice.policies.base import TrafficAware
from suffice.routing.sessions import MAX_IDLE_S, PREFIX_CACHE_S
from suffice.types import Candidate, Features, Model, Objective, Policy, Session

_PROMPT = features.SIGNAL_NAMES.index("log_prompt_tokens")
_TURNS = features.SIGNAL_NAMES.index("turns")
_CHARS = features.SIGNAL_NAMES.index("log_chars")
_TOKENS = features.SIGNAL_NAMES.index("log_tokens")


class EvaluationPolicySetup(msgspec.Struct, frozen=True):
    """The evaluation policy on the configured routes.

    Attributes:
        policies: Route -> the policy.
        objectives: Route -> its objective.
        catalog: Model name -> model.
        pools: Route -> names of its models.
        make_policy: Makes the policy for a route that is no longer configured.
    """

    policies: Mapping[str, Policy]
    objectives: Mapping[str, Objective]
    catalog: Mapping[str, Model]
    pools: Mapping[str, tuple[str, ...]]
    make_policy: Callable[[], Policy]


class Rollout(msgspec.Struct, frozen=True):
    """The log and the evaluation policy's choices as arrays over n decisions and k models.

    Attributes:
        decisions: The n decisions that the policy could decide.
        turns: The same n decisions with their free choices.
        excluded: Reason -> number of decisions that the policy could not decide.
        models: The k models.
        log: What the logging policy did.
        action_dist: (n, k) probabilities of the evaluation policy, 0 for a model that was not a
            candidate.
        predicted_usd: (n, k) predicted cost; NaN for a model that was not a candidate.
        paid_usd: (n,) cost paid; NaN if unknown.
        unknown_models: Candidates that are not in the catalog any more.
        policy_version: Version of the evaluation policy.
    """

    decisions: tuple[LoggedDecision, ...]
    turns: tuple[Turn, ...]
    excluded: Mapping[str, int]
    models: tuple[str, ...]
    log: LoggedData
    action_dist: FloatArray
    predicted_usd: FloatArray
    paid_usd: FloatArray
    unknown_models: tuple[str, ...]
    policy_version: str


class SessionState(msgspec.Struct, frozen=True):
    """The last turn of a conversation.

    Attributes:
        created_s: Unix time of the turn.
        prompt_tokens: Length of its prompt.
        turns: The signal `turns`, which grows with each human message.
        failed: Models that failed in this conversation.
        policy: Model -> probability that the evaluation policy is on it.
    """

    created_s: float
    prompt_tokens: int
    turns: float
    failed: frozenset[str]
    policy: dict[str, float]


class RoutePolicy:
    """A policy on one route. It learns the route's traffic as it does in the router."""

    def __init__(self, policy: Policy, objective: Objective | None) -> None:
        self.policy = policy
        self.objective = objective
        self._window = policy.traffic_window() if isinstance(policy, TrafficAware) else None

    def distribution(
        self, x: Features, pool: tuple[Candidate, ...], row: LoggedDecision, session: Session | None
    ) -> dict[str, float]:
        """Return the policy's probabilities over the candidates.

        Raises:
            JobError: If they do not sum to 1 over the candidates.
        """
        objective = self.objective or row.objective
        decision = self.policy.decide(x, pool, objective, session, id=row.id)
        shares = {p.model: float(p.propensity) for p in decision.predictions if p.propensity > 0}
        names = {c.model.name for c in pool}
        if abs(sum(shares.values()) - 1.0) > 1e-6 or not set(shares) <= names:
            raise JobError(
                f"The policy {self.policy.name!r} gives {row.id} the propensities {shares}: over "
                "the candidates they must sum to 1.",
                remedy="A policy that does not state its probabilities cannot be replayed.",
            )
        if self._window is not None and session is None and self._window.add(decision):
            assert isinstance(self.policy, TrafficAware)
            self.policy = self.policy.with_traffic(self._window)
        return shares


def roll_out(
    decisions: Sequence[LoggedDecision], setup: EvaluationPolicySetup, progress: bool = False
) -> Rollout:
    """Return the policy's decisions on every recorded query, oldest first.

    Routes that are no longer configured keep their recorded objective.

    Raises:
        JobError: If the policy's probabilities are not a distribution over the candidates.
    """
    return _Rollouts(setup).run(decisions, progress)


class _Rollouts:
    """The state of one `roll_out`."""

    def __init__(self, setup: EvaluationPolicySetup) -> None:
        self._setup = setup
        self._routes = {
            name: RoutePolicy(policy, setup.objectives.get(name))
            for name, policy in setup.policies.items()
        }
        self._pools: dict[tuple[str, ...], tuple[Candidate, ...]] = {}
        self._sessions: dict[str, SessionState] = {}
        self._session_numbers: dict[str, int] = {}
        self._choices = FreeChoices()
        self._unknown: set[str] = set()

    def run(self, decisions: Sequence[LoggedDecision], progress: bool) -> Rollout:
        decided: list[LoggedDecision] = []
        turns: list[Turn] = []
        distributions: list[Mapping[str, float]] = []
        excluded: dict[str, int] = {}
        version = ""
        for row in track(decisions, "replaying decisions", progress):
            route = self._route(row.route)
            version = version or route.policy.version
            try:
                turn, distribution = self._turn(route, row)
            except ValueError as error:  # a trained policy and a decision without an embedding
                reason = f"the policy cannot decide it: {error}"
                excluded[reason] = excluded.get(reason, 0) + 1
                continue
            decided.append(row)
            turns.append(turn)
            distributions.append(distribution)
        models = tuple(dict.fromkeys(p.model for row in decided for p in row.predictions))
        log, action_dist = logged_data(turns, models), by_model(distributions, models)
        predicted_usd, paid_usd = _costs(decided, models)
        return Rollout(
            tuple(decided), tuple(turns), excluded, models, log, action_dist,
            predicted_usd, paid_usd, tuple(sorted(self._unknown)), version,
        )  # fmt: skip

    def _route(self, name: str) -> RoutePolicy:
        if name not in self._routes:
            self._routes[name] = RoutePolicy(self._setup.make_policy(), None)
        return self._routes[name]

    def _turn(self, route: RoutePolicy, row: LoggedDecision) -> tuple[Turn, Mapping[str, float]]:
        """Return the logged turn, and the policy's probabilities at it."""
        before = self._sessions.get(row.session) if row.session is not None else None
        if before is not None and row.created_s - before.created_s > MAX_IDLE_S:
            before = None
        policy = _policy_distribution(route, row, self._pool(row), before)
        answered_by = row.model if row.model is not None and row.status < 400 else None
        logged = {p.model: p.propensity for p in row.predictions}
        choice = self._choices.assign(row.session, row.created_s, row.chosen, answered_by, logged)
        if row.session is not None:
            self._sessions[row.session] = _after(row, before, policy)
        # A request without a session is a session of one turn.
        key = row.session or f"\0{row.id}"
        turn = Turn(
            chosen=row.chosen,
            score=row.score,
            propensities=choice.propensities,
            session=self._session_numbers.setdefault(key, len(self._session_numbers)),
            episode=choice.episode,
            signals=row.signals,
            embedding=row.embedding,
        )
        return turn, policy

    def _pool(self, row: LoggedDecision) -> tuple[Candidate, ...]:
        names = tuple(p.model for p in row.predictions)
        if names not in self._pools:
            self._pools[names] = tuple(self._candidate(name) for name in names)
        return self._pools[names]

    def _candidate(self, name: str) -> Candidate:
        model = self._setup.catalog.get(name)
        if model is None:
            self._unknown.add(name)
            provider, _, upstream = name.partition("/")
            model = Model(name, provider, upstream)
        return Candidate(model, model.first_chunk_s, model.output_tokens_per_s)


def _policy_distribution(
    route: RoutePolicy,
    row: LoggedDecision,
    pool: tuple[Candidate, ...],
    before: SessionState | None,
) -> dict[str, float]:
    """Return the policy's probability of each candidate at this turn.

    The sum is over all models that the policy could have been on before.
    """
    signals = row.signals
    prompt_tokens = round(expm1(float(signals[_PROMPT])))
    turns = float(signals[_TURNS])
    # The same human turn with a longer prompt: the results of an agent's tools were added.
    in_loop = before is not None and turns == before.turns and prompt_tokens > before.prompt_tokens
    x = Features(
        signals=signals,
        user_message_chars=round(expm1(float(signals[_CHARS]))),
        user_message_tokens=round(expm1(float(signals[_TOKENS]))),
        input_tokens=prompt_tokens + 1,
        human_turns=round(expm1(turns)) + 1,
        in_tool_loop=in_loop,
        embedding=row.embedding,
        schema=features.SCHEMA,
    )
    # The first message of a conversation has no past, for any session key.
    if before is None or row.session is None or (turns == 0 and not in_loop):
        return route.distribution(x, pool, row, None)
    idle_s = row.created_s - before.created_s
    cached_tokens = before.prompt_tokens if idle_s <= PREFIX_CACHE_S else 0
    mixture: dict[str, float] = {}
    for incumbent, weight in before.policy.items():
        session = Session(row.session, incumbent, cached_tokens, before.failed - {incumbent})
        for model, p in route.distribution(x, pool, row, session).items():
            mixture[model] = mixture.get(model, 0.0) + weight * p
    return mixture


def _after(
    row: LoggedDecision, before: SessionState | None, policy: dict[str, float]
) -> SessionState:
    failed = before.failed if before else frozenset()
    if row.model is not None and row.status < 400:
        if row.model != row.chosen and row.model in row.plan:
            failed |= set(row.plan[: row.plan.index(row.model)])
        failed -= {row.model}
    return SessionState(
        row.created_s,
        round(expm1(float(row.signals[_PROMPT]))),
        float(row.signals[_TURNS]),
        failed,
        policy,
    )


def _costs(
    decisions: Sequence[LoggedDecision], models: Sequence[str]
) -> tuple[FloatArray, FloatArray]:
    """Return (n, k) predicted USD and (n,) paid USD, NaN if unknown."""
    column = {m: j for j, m in enumerate(models)}
    predicted = np.full((len(decisions), len(models)), np.nan)
    for i, row in enumerate(decisions):
        for p in row.predictions:
            if p.cost_usd is not None:
                predicted[i, column[p.model]] = p.cost_usd
    paid = [np.nan if row.cost_usd is None else row.cost_usd for row in decisions]
    return predicted, np.array(paid, float)
