"""Replay: what a policy would have scored and cost on recorded decisions.

read(store) -> roll_out(decisions, policy) -> off-policy estimates -> verdict
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from suffice.config import RouteSettings, Settings, resolve
from suffice.errors import ConfigError, JobError, UsageError
from suffice.lab.data.decisions import DecisionLog, read_decisions
from suffice.lab.ope import estimators
from suffice.lab.ope.estimators import LoggedData
from suffice.lab.ope.intervals import (
    CostEstimate,
    Estimate,
    estimate_cost,
    estimate_policy_values,
    widen,
)
from suffice.lab.ope.logged_choices import CERTAIN
from suffice.lab.ope.reward_model import predict_scores
from suffice.lab.ope.rollout import EvaluationPolicySetup, Rollout, roll_out
from suffice.lab.ope.verdict import Verdict, decide_verdict, measure_evidence
from suffice.policies import is_path
from suffice.routing.policy_loader import load_policy

_MAX_Z = 4.0  # standard deviations by which choices and propensities may differ


class ReplayCost(msgspec.Struct, frozen=True):
    """Mean USD per decision, on the `decisions` of known cost; `None` if unknown.

    `paid_over_predicted`: model -> ratio by which its predictions were scaled.
    """

    value: float | None
    low: float | None
    high: float | None
    paid: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    decisions: int
    paid_over_predicted: Mapping[str, float | None]


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """The object that `suffice replay --json` prints. Scores are in [0, 1], costs in USD per decision.

    Attributes:
        policy, policy_version: The evaluation policy.
        route, since_s: The filters of the log.
        decisions, labelled, labelled_share, sessions, free_choices: Sizes of the log.
        explored: Share of decisions that follow a random choice.
        agreement: Mean probability that the policy makes the logged choice.
        ess: Effective number of free choices among the labelled decisions.
        support: Share of the policy's choices that the log could have made.
        largest_weight: Of a labelled decision.
        happened: Logged mean `score` of labelled decisions and mean `cost_usd`.
        estimates: Estimator -> value and difference to what happened, with intervals.
        cost: Predicted cost.
        shares: Model -> share of decisions, logged (`happened`) and under the policy (`policy`).
        labels: Model -> number of decisions, labelled decisions, and their share.
        sources: Source of feedback -> number of decisions.
        skipped, skipped_rows: Rows that cannot be read; the first few with the reason.
        left_out: Reason -> number of decisions that are not evaluated.
        verdict: The conclusion.
        warnings: What may bias the estimates.
    """

    policy: str
    policy_version: str
    route: str | None
    since_s: float | None
    decisions: int
    labelled: int
    labelled_share: float
    sessions: int
    free_choices: int
    explored: float
    agreement: float
    ess: float
    support: float
    largest_weight: float
    happened: Mapping[str, float | None]
    estimates: Mapping[str, Mapping[str, float | None]]
    cost: ReplayCost
    shares: Mapping[str, Mapping[str, float]]
    labels: Mapping[str, Mapping[str, float]]
    sources: Mapping[str, int]
    skipped: int
    skipped_rows: tuple[tuple[str, str], ...]
    left_out: Mapping[str, int]
    verdict: Verdict
    warnings: tuple[str, ...]


def load_evaluation_policy(
    settings: Settings, policy: str, env: Mapping[str, str], objective: object = None
) -> EvaluationPolicySetup:
    """Return the setup of a policy on the routes of a config.

    Args:
        settings: The config.
        policy: Name of the policy, or path of its artifact (relative to the working directory).
        env: Environment variables.
        objective: For every route, in any form that a config accepts; `None` for the routes' own.

    Raises:
        ArtifactError: If the artifact cannot be served.
        ConfigError: If the config is invalid.
        UsageError: If the policy is invalid.
    """
    base = resolve(settings, env, need_keys=False)
    name = str(Path(policy).absolute()) if is_path(policy) else policy

    def with_policy(route: RouteSettings) -> RouteSettings:
        update: dict[str, object] = {"policy": name}
        if route.policy != policy:
            update["certificate"] = None  # it is for another policy
        if objective is not None:
            update["objective"] = objective
        return route.model_copy(update=update)

    routes = {r: with_policy(route) for r, route in settings.routes.items()}
    try:
        specs = resolve(settings.model_copy(update={"routes": routes}), env, need_keys=False).routes
        policies = {r: load_policy(spec, settings.source) for r, spec in specs.items()}
    except ConfigError as error:
        raise UsageError(f"--policy: {error.message}", remedy=error.remedy) from None
    first = next(iter(specs.values()))
    return EvaluationPolicySetup(
        policies,
        {r: spec.objective for r, spec in specs.items()},
        {m.name: m for m in base.models},
        {r: tuple(m.name for m in spec.models) for r, spec in specs.items()},
        lambda: load_policy(first, settings.source),
    )


def run(
    url: str,
    setup: EvaluationPolicySetup,
    policy: str,
    *,
    since_s: float | None = None,
    route: str | None = None,
    sources: frozenset[str] | None = None,
    progress: bool = False,
) -> Replay:
    """Return the replay of a policy on what a store holds.

    Args:
        url: Of the store.
        setup: The evaluation policy.
        policy: Its name, for the report.
        since_s: Unix time of the oldest decision; `None` for no limit.
        route: Only decisions of this route.
        sources: Only feedback of these sources; `None` for all.
        progress: Whether to show a progress bar.

    Raises:
        JobError: If there is nothing to replay on.
        StoreError: If the store cannot be read.
    """
    decision_log = read_decisions(url, since_s=since_s, route=route, sources=sources)
    rollout = roll_out(decision_log.rows, setup, progress)
    if not rollout.decisions:
        reasons = {**decision_log.excluded, **rollout.excluded}
        parts = [f"{n} {reason}" for reason, n in reasons.items()]
        parts += [f"{decision_log.n_skipped} cannot be read"] if decision_log.n_skipped else []
        raise JobError(
            "The store holds no decision to replay on"
            + (f" route {route!r}" if route else "")
            + (" in that time" if since_s is not None else "")
            + (f" ({'; '.join(parts)})." if parts else "."),
            remedy="Come back after some traffic, or give another --since or --route.",
        )
    return evaluate(decision_log, rollout, setup, policy, since_s=since_s, route=route)


def evaluate(
    decision_log: DecisionLog,
    rollout: Rollout,
    setup: EvaluationPolicySetup,
    policy: str,
    *,
    since_s: float | None = None,
    route: str | None = None,
) -> Replay:
    """Return estimates and verdict of a rollout. Arguments as in `run`."""
    log, action_dist, models = rollout.log, rollout.action_dist, rollout.models
    labelled = log.labelled
    weights = estimators.importance_weights(log, action_dist)
    evidence = measure_evidence(log, action_dist)
    explored = float((log.propensity < CERTAIN).mean())
    estimates, direct = _estimate_scores(rollout, evidence.support)
    on_policy = estimators.on_policy_value(log).value
    cost = estimate_cost(log, action_dist, rollout.predicted_usd, rollout.paid_usd)
    figures = {name: _figures(e) for name, e in estimates.items()}
    figures["direct"] = {"value": _finite(direct), "difference": _finite(direct - on_policy)}
    return Replay(
        policy=policy,
        policy_version=rollout.policy_version,
        route=route,
        since_s=since_s,
        decisions=len(log),
        labelled=int(labelled.sum()),
        labelled_share=float(labelled.mean()),
        sessions=len(np.unique(log.sessions)),
        free_choices=len(np.unique(log.episodes)),
        explored=explored,
        agreement=float(action_dist[np.arange(len(log)), log.action].mean()),
        ess=evidence.ess,
        support=evidence.support,
        largest_weight=float(weights[labelled].max(initial=0.0)),
        happened={"score": _finite(on_policy), "cost_usd": _finite(cost.paid)},
        estimates=figures,
        cost=_replay_cost(cost, models),
        shares={
            m: {"happened": float((log.action == j).mean()), "policy": float(p)}
            for j, (m, p) in enumerate(zip(models, action_dist.mean(axis=0), strict=True))
        },
        labels=_labels_by_model(log, models),
        sources=decision_log.sources,
        skipped=decision_log.n_skipped,
        skipped_rows=tuple(decision_log.skipped),
        left_out={**decision_log.excluded, **rollout.excluded},
        verdict=decide_verdict(estimates["doubly_robust"], evidence, explored=explored > 0),
        warnings=_warnings(decision_log, rollout, _pool(setup, route)),
    )


def _estimate_scores(rollout: Rollout, support: float) -> tuple[dict[str, Estimate], float]:
    """Return the estimates with intervals, widened by the missing support, and the direct one."""
    log, action_dist = rollout.log, rollout.action_dist
    q_hat = predict_scores(rollout.turns, log)
    terms = {
        "ips": estimators.ips(log, action_dist),
        "snips": estimators.snips(log, action_dist),
        "doubly_robust": estimators.doubly_robust(log, action_dist, q_hat),
    }
    estimates = estimate_policy_values(terms, log)
    widened = {name: widen(e, 1.0 - support) for name, e in estimates.items()}
    return widened, estimators.direct(log, action_dist, q_hat).value


def _pool(setup: EvaluationPolicySetup, route: str | None) -> list[str]:
    """Return the models of the route, or of all routes."""
    pools = setup.pools.values() if route is None else [setup.pools.get(route, ())]
    return list(dict.fromkeys(m for pool in pools for m in pool))


def _finite(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _figures(e: Estimate) -> dict[str, float | None]:
    return {
        "value": _finite(e.value),
        "low": _finite(e.low),
        "high": _finite(e.high),
        "difference": _finite(e.difference),
        "difference_low": _finite(e.difference_low),
        "difference_high": _finite(e.difference_high),
    }


def _replay_cost(c: CostEstimate, models: Sequence[str]) -> ReplayCost:
    return ReplayCost(
        value=_finite(c.value),
        low=_finite(c.low),
        high=_finite(c.high),
        paid=_finite(c.paid),
        difference=_finite(c.difference),
        difference_low=_finite(c.difference_low),
        difference_high=_finite(c.difference_high),
        decisions=c.decisions,
        paid_over_predicted={m: _finite(float(r)) for m, r in zip(models, c.ratio, strict=True)},
    )


def _labels_by_model(log: LoggedData, models: Sequence[str]) -> dict[str, dict[str, float]]:
    labels = {}
    for j, m in enumerate(models):
        chosen = log.action == j
        n, n_labelled = int(chosen.sum()), int((chosen & log.labelled).sum())
        share = n_labelled / n if n else 0.0
        labels[m] = {"decisions": n, "labelled": n_labelled, "share": share}
    return labels


def _warnings(decision_log: DecisionLog, rollout: Rollout, pool: Sequence[str]) -> tuple[str, ...]:
    log, models = rollout.log, rollout.models
    warnings = []
    if decision_log.truncated:
        warnings.append(f"Only the newest {len(log)} decisions were read.")
    if estimators.labels_missing_not_at_random(log.action, log.labelled, len(models)):
        warnings.append(
            "Labelling depends on the model: the share of labelled decisions differs between "
            "models by more than chance, so the labelled decisions are not a fair sample and the "
            "estimates are biased."
        )
    warnings += _propensity_warnings(log, models)
    if rollout.unknown_models:
        warnings.append(
            f"No longer in the catalog: {', '.join(rollout.unknown_models)}; the policy decided "
            "without their price and quality."
        )
    new = [m for m in pool if m not in models]
    if new:
        warnings.append(f"Never a candidate in the log, so not evaluated: {', '.join(new)}.")
    failovers = sum(r.model is not None and r.model != r.chosen for r in rollout.decisions)
    if failovers:
        warnings.append(
            f"{failovers} decisions were answered by another model than the chosen one; they count "
            "as the result of the choice."
        )
    return tuple(warnings)


def _propensity_warnings(log: LoggedData, models: Sequence[str]) -> list[str]:
    """Name the models that were chosen much more or less often than the propensities say."""
    assert log.propensities is not None
    free = np.unique(log.episodes, return_index=True)[1]
    z_scores = estimators.propensity_z_scores(log.action[free], log.propensities[free])
    return [
        f"{m} was chosen {abs(z):.0f} standard deviations {'more' if z > 0 else 'less'} often than "
        "the recorded propensities say: choices were not drawn from them."
        for m, z in zip(models, z_scores.tolist(), strict=True)
        if abs(z) > _MAX_Z
    ]
