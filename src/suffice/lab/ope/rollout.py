"""A policy P on its own course through recorded decisions, and the log beside it as arrays.

P is asked on every recorded decision, with the candidates of then at today's prices. In a
conversation it follows its own course: its incumbent is what it chose before, not what the log did.
This is exact as long as what people ask next does not depend on who answered them. The propensity
of a turn that only kept to an earlier choice is that choice's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import expm1
from typing import Any

import msgspec
import numpy as np

from suffice import features
from suffice.errors import JobError
from suffice.lab.data.decisions import LoggedDecision
from suffice.lab.data.table import FloatArray
from suffice.lab.ope.estimators import LoggedData
from suffice.lab.predictors.base import track
from suffice.policies.base import TrafficAware
from suffice.types import Candidate, Features, Model, Objective, Policy, Session

_CACHE_S = 300.0  # as the router: how long a provider keeps a prefix,
_SESSION_S = 3600.0  # and how long an idle conversation is remembered
_PROMPT = features.SIGNAL_NAMES.index("log_prompt_tokens")
_TURNS = features.SIGNAL_NAMES.index("turns")
_CHARS = features.SIGNAL_NAMES.index("log_chars")
_TOKENS = features.SIGNAL_NAMES.index("log_tokens")
CERTAIN = 1.0 - 1e-9  # a propensity from which nothing was drawn


class EvaluationPolicySetup(msgspec.Struct, frozen=True):
    """P in a configured house. policies: P by route; objectives: of the routes; catalog: models by
    name; pools: the routes' models now; make: P for a route that is no more."""

    policies: Mapping[str, Policy]
    objectives: Mapping[str, Objective]
    catalog: Mapping[str, Model]
    pools: Mapping[str, tuple[str, ...]]
    make: Callable[[], Policy]


class Rollout(msgspec.Struct, frozen=True):
    """The log as arrays, and P on its own course through it. rows: (n,) those on which P could be
    asked; refused: why not -> how many. models: (k,). pi, predicted: (n, k), 0 and NaN where a
    model was no candidate; predicted and paid (n,) in USD. unknown: models no longer in the
    catalog. version: of P."""

    rows: tuple[LoggedDecision, ...]
    refused: Mapping[str, int]
    models: tuple[str, ...]
    log: LoggedData
    pi: FloatArray
    predicted: FloatArray
    paid: FloatArray
    unknown: tuple[str, ...]
    version: str


class SessionState(msgspec.Struct):
    """The last turn of a session: what the log did and where P's own course stands."""

    created_s: float
    incumbent: str | None
    prompt_tokens: int
    turns: float
    failed: frozenset[str]
    shares: dict[str, float]  # the log's propensities of the free choice that is in force
    own: dict[str, float]  # P's probabilities of being on each model
    episode: int


class RoutePolicy:
    """One policy on one route: it learns the route's traffic as the router would let it."""

    def __init__(self, policy: Any, objective: Objective | None) -> None:
        self.policy = policy
        self.objective = objective
        self._sketch = policy.traffic_window() if isinstance(policy, TrafficAware) else None

    def shares(
        self, x: Features, pool: tuple[Candidate, ...], row: LoggedDecision, session: Session | None
    ) -> dict[str, float]:
        """P's probabilities over the candidates. Raises JobError where they are none."""
        objective = self.objective or row.objective
        decision = self.policy.decide(x, pool, objective, session, id=row.id)
        found = {p.model: float(p.propensity) for p in decision.predictions if p.propensity > 0}
        if abs(sum(found.values()) - 1.0) > 1e-6 or not set(found) <= {c.model.name for c in pool}:
            raise JobError(
                f"The policy {self.policy.name!r} gives {row.id} the propensities {found}: over "
                "the candidates they must sum to 1.",
                remedy="A policy that does not state its probabilities cannot be replayed.",
            )
        if self._sketch is not None and session is None and self._sketch.add(decision):
            self.policy = self.policy.with_traffic(self._sketch)
        return found


def roll_out(
    rows: Sequence[LoggedDecision], setting: EvaluationPolicySetup, progress: bool = False
) -> Rollout:
    """Ask P on every row, oldest first. Routes that are no more are asked with the objective that
    was recorded. Raises JobError where P's probabilities are none."""
    asked = {r: RoutePolicy(p, setting.objectives.get(r)) for r, p in setting.policies.items()}
    pools: dict[tuple[str, ...], tuple[Candidate, ...]] = {}
    last: dict[str, SessionState] = {}
    unknown: set[str] = set()
    refused: dict[str, int] = {}
    kept: list[tuple[LoggedDecision, dict[str, float], dict[str, float], int]] = []
    version, episodes = "", 0
    for row in track(rows, "replaying decisions", progress):
        offered = tuple(p.model for p in row.predictions)
        if offered not in pools:
            pools[offered] = tuple(_candidate(n, setting.catalog, unknown) for n in offered)
        if row.route not in asked:
            asked[row.route] = RoutePolicy(setting.make(), None)
        p = asked[row.route]
        version = version or p.policy.version
        before = _before(row, last)
        try:
            own = _own(p, row, pools[offered], before)
        except ValueError as error:  # a trained policy on a decision without an embedding
            why = f"the policy cannot be asked: {error}"
            refused[why] = refused.get(why, 0) + 1
            continue
        shares, episode = _in_force(row, before), episodes
        if shares is None:
            shares = {p.model: p.propensity for p in row.predictions}
            episodes += 1
        elif before is not None:
            episode = before.episode
        kept.append((row, shares, own, episode))
        if row.session is not None:
            last[row.session] = _after(row, before, shares, own, episode)
    return _arrays(kept, refused, version, tuple(sorted(unknown)))


def _in_force(row: LoggedDecision, before: SessionState | None) -> dict[str, float] | None:
    """The propensities of the free choice that this turn only kept to; None where it chose anew."""
    if before is None or row.chosen != before.incumbent:
        return None
    certain = any(p.model == row.chosen and p.propensity >= CERTAIN for p in row.predictions)
    return before.shares if certain and before.shares.get(row.chosen, 0.0) > 0.0 else None


def _before(row: LoggedDecision, last: Mapping[str, SessionState]) -> SessionState | None:
    found = last.get(row.session) if row.session is not None else None
    return found if found and row.created_s - found.created_s <= _SESSION_S else None


def _own(
    asked: RoutePolicy,
    row: LoggedDecision,
    pool: tuple[Candidate, ...],
    before: SessionState | None,
) -> dict[str, float]:
    """P's probability of being on each candidate at this turn, over all that it could have been on
    before."""
    s = row.signals
    prompt_tokens = round(expm1(float(s[_PROMPT])))
    turns = float(s[_TURNS])
    # The same human turn again with a longer prompt: an agent's tools have answered.
    in_loop = before is not None and turns == before.turns and prompt_tokens > before.prompt_tokens
    x = Features(
        signals=s,
        user_message_chars=round(expm1(float(s[_CHARS]))),
        user_message_tokens=round(expm1(float(s[_TOKENS]))),
        input_tokens=prompt_tokens + 1,
        human_turns=round(expm1(turns)) + 1,
        in_tool_loop=in_loop,
        embedding=row.embedding,
        schema=features.SCHEMA,
    )
    # The first message of a conversation is decided without its past, under whatever key it comes.
    if before is None or row.session is None or (turns == 0 and not in_loop):
        return asked.shares(x, pool, row, None)
    idle_s = row.created_s - before.created_s
    held = before.prompt_tokens if idle_s <= _CACHE_S else 0
    out: dict[str, float] = {}
    for model, p in before.own.items():
        session = Session(row.session, model, held, before.failed - {model})
        for m, q in asked.shares(x, pool, row, session).items():
            out[m] = out.get(m, 0.0) + p * q
    return out


def _after(
    row: LoggedDecision,
    before: SessionState | None,
    shares: dict[str, float],
    own: dict[str, float],
    episode: int,
) -> SessionState:
    failed = before.failed if before else frozenset()
    incumbent = before.incumbent if before else None
    if row.model is not None and row.status < 400:
        incumbent = row.model
        if row.model != row.chosen and row.model in row.plan:
            failed |= set(row.plan[: row.plan.index(row.model)])
        failed -= {row.model}
    return SessionState(
        row.created_s,
        incumbent,
        round(expm1(float(row.signals[_PROMPT]))),
        float(row.signals[_TURNS]),
        failed,
        shares,
        own,
        episode,
    )


def _candidate(name: str, catalog: Mapping[str, Model], unknown: set[str]) -> Candidate:
    model = catalog.get(name)
    if model is None:
        unknown.add(name)
        provider, _, upstream = name.partition("/")
        model = Model(name, provider, upstream)
    return Candidate(model, model.first_chunk_s, model.output_tokens_per_s)


def _arrays(
    kept: Sequence[tuple[LoggedDecision, dict[str, float], dict[str, float], int]],
    refused: Mapping[str, int],
    version: str,
    unknown: tuple[str, ...],
) -> Rollout:
    rows = tuple(row for row, *_ in kept)
    models = tuple(dict.fromkeys(p.model for row in rows for p in row.predictions))
    n, k = len(rows), len(models)
    at = {m: i for i, m in enumerate(models)}
    p, pi, predicted = np.zeros((n, k)), np.zeros((n, k)), np.full((n, k), np.nan)
    session = np.zeros(n, np.intp)
    keys: dict[str, int] = {}
    for i, (row, shares, own, _) in enumerate(kept):
        for m, share in shares.items():
            if m in at:
                p[i, at[m]] = share
        for m, share in own.items():
            pi[i, at[m]] = share
        for one in row.predictions:
            if one.cost_usd is not None:
                predicted[i, at[one.model]] = one.cost_usd
        # A request without a session is one of its own.
        session[i] = keys.setdefault(row.session or f"\0{i}", len(keys))
    action = np.array([at[r.chosen] for r in rows], np.intp)
    log = LoggedData(
        action,
        p[np.arange(n), action],
        np.array([r.score for r in rows], float),
        p,
        session,
        np.array([episode for *_, episode in kept], np.intp),
    )
    paid = np.array([np.nan if r.cost_usd is None else r.cost_usd for r in rows], float)
    return Rollout(rows, refused, models, log, pi, predicted, paid, unknown, version)
