"""Replay: from recorded decisions to what a policy P would have scored and cost.

read(store) -> roll_out(rows, P) -> off-policy estimates -> verdict
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError, JobError, UsageError
from suffice.lab.data.decisions import DecisionLog, LoggedDecision, read_decisions
from suffice.lab.data.table import FloatArray
from suffice.lab.ope import estimators
from suffice.lab.ope.estimators import Estimate, LoggedData
from suffice.lab.ope.rollout import CERTAIN, EvaluationPolicySetup, Rollout, roll_out
from suffice.lab.predictors.bayes import BayesianModelAveragingRegression

_FOLDS = 5
_DIMENSIONS = 32  # of the embedding that the reward model looks at
_OFF = 4.0  # standard deviations by which propensities and choices may differ

Word = Literal["better", "worse", "cannot tell", "cannot judge"]


class Verdict(msgspec.Struct, frozen=True):
    """P against what happened, on score: the difference by the doubly robust estimate with its
    95 % interval; None where there is none. word: 'better' or 'worse' where the interval excludes
    zero, 'cannot judge' where the log cannot carry an estimate, whatever it says."""

    word: Word
    why: str
    difference: float | None = None
    lower_bound: float | None = None
    upper_bound: float | None = None


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """What `suffice replay --json` prints. Scores in [0, 1], costs in USD a decision. `happened`:
    over labelled decisions (score) and those of known cost. labels: model -> decisions, labelled,
    share. ess: effective number of free choices among the labelled. support: share of P's choices
    that the log could have made."""

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
    cost: Mapping[str, Any]
    shares: Mapping[str, Mapping[str, float]]
    labels: Mapping[str, Mapping[str, float]]
    sources: Mapping[str, int]
    skipped: int
    skipped_rows: tuple[tuple[str, str], ...]
    left_out: Mapping[str, int]
    verdict: Verdict
    warnings: tuple[str, ...]


# ── the policy ───────────────────────────────────────────────────────────────────────────────────


def load_evaluation_policy(
    settings: Any, policy: str, env: Mapping[str, str], objective: Any = None
) -> EvaluationPolicySetup:
    """P as the routes of `settings` would have it: their pools and objectives, P's name or the path
    of its artifact. objective: for every route, in any form that a config may hold; None = theirs.
    Raises ConfigError for the settings, UsageError for P, ArtifactError."""
    from suffice.config import resolve
    from suffice.policies import is_path
    from suffice.router import Router

    base = resolve(settings, env, need_keys=False)
    # From where we are, not from beside the config.
    name = str(Path(policy).absolute()) if is_path(policy) else policy

    def changed(route: Any) -> Any:
        update: dict[str, Any] = {"policy": name}
        if route.policy != policy:
            update["certificate"] = None  # it was made for another
        if objective is not None:
            update["objective"] = objective
        return route.model_copy(update=update)

    routes = {r: changed(route) for r, route in settings.routes.items()}
    try:
        other = resolve(settings.model_copy(update={"routes": routes}), env, need_keys=False)

        def routers() -> Mapping[str, Any]:
            return Router(other, env=env).routes

        found = routers()
    except ConfigError as error:
        raise UsageError(f"--policy: {error.message}", remedy=error.remedy) from None
    return EvaluationPolicySetup(
        {r: spec.policy for r, spec in found.items() if spec.policy is not None},
        {r: spec.objective for r, spec in found.items()},
        {m.name: m for m in base.models},
        {r: tuple(m.name for m in spec.models) for r, spec in found.items()},
        lambda: next(iter(routers().values())).policy,
    )


# ── the reward model ─────────────────────────────────────────────────────────────────────────────


def cross_fit_q_hat(
    log: LoggedData, signals: NDArray[np.floating], vectors: FloatArray | None
) -> FloatArray:
    """(n, k) predicted scores: the lab's Bayesian head on each model's labelled decisions, fitted
    on other sessions than it predicts (`_FOLDS` folds). Unbiasedness does not depend on it; the
    better it is, the narrower the doubly robust interval.

    signals: (n, s). vectors: (n, d), None where not recorded for all.
    """
    n = len(log)
    k = log.propensities.shape[1] if log.propensities is not None else int(log.action.max()) + 1
    x = signals.astype(float)
    spread = x.std(axis=0)
    x = np.clip((x - x.mean(axis=0)) / np.where(spread > 1e-6, spread, 1.0), -4.0, 4.0)
    s = x.shape[1]
    if vectors is not None:
        x = np.concatenate([x, 4.0 * vectors[:, :_DIMENSIONS]], axis=1)
    _, unit = np.unique(log.sessions, return_inverse=True)
    # By position, scattered: neighbours in time must not all fall into one fold.
    fold = np.random.default_rng(0).permutation(int(unit.max(initial=-1)) + 1)[unit] % _FOLDS
    out = np.zeros((n, k))
    for f in range(_FOLDS):
        fit = (fold != f) & log.labelled
        target = np.full((int(fit.sum()), k), np.nan)
        target[np.arange(len(target)), log.action[fit]] = log.reward[fit]
        mean = float(log.reward[fit].mean()) if len(target) else 0.5
        # The head's priors are stated for right/wrong scores.
        scale = float(
            np.sqrt(max(float(log.reward[fit].var()) if len(target) else 0.0, 1e-4) / 0.3)
        )
        known = ~np.isnan(target)
        level = (np.where(known, target, 0.0).sum(axis=0) + 20 * mean) / (known.sum(axis=0) + 20)
        head = BayesianModelAveragingRegression(s - 1).fit(
            x[fit], target / scale, level / scale, np.zeros(k), np.full(k, 0.3)
        )
        out[fold == f] = head.predict(x[fold == f]) * scale
    return np.clip(out, 0.0, 1.0)


# ── the estimates ────────────────────────────────────────────────────────────────────────────────


def judge(
    estimate: Estimate, *, ess: float, support: float, sessions: int, explored: bool
) -> Verdict:
    """The plain verdict. estimate: doubly robust, already widened by what has no support. ess,
    support, sessions: over labelled decisions. Whoever promotes asks for `lower_bound`."""
    bounds = (estimate.difference, estimate.difference_low, estimate.difference_high)
    told = [None if np.isnan(v) else float(v) for v in bounds]
    why = None
    if support < estimators.MIN_SUPPORT:
        why = f"the log could have made only {support:.0%} of the policy's choices"
        if not explored:
            why += (
                ": it never explored (every propensity is 1), so only decisions on which both "
                "agree count, and for the others only the direct method's guess remains"
            )
        why += f"; at least {estimators.MIN_SUPPORT:.0%} is needed"
    elif ess < estimators.MIN_ESS:
        why = (
            f"the labelled decisions are worth {ess:.0f} of the policy's own, "
            f"{estimators.MIN_ESS:.0f} are needed"
        )
    elif sessions < estimators.MIN_SESSIONS:
        why = f"they come from {sessions} sessions, {estimators.MIN_SESSIONS} are needed"
    elif None in told:
        why = "no interval can be formed"
    if why is not None:
        return Verdict("cannot judge", f"Cannot judge: {why}.", *told)
    d, low, high = bounds
    said = f"scores {d:+.4f} [{low:+.4f}, {high:+.4f}] against what happened"
    if low > 0:
        return Verdict("better", f"Better: it {said}.", *told)
    if high < 0:
        return Verdict("worse", f"Worse: it {said}.", *told)
    return Verdict("cannot tell", f"Cannot tell: it {said}.", *told)


def run(
    url: str,
    setting: EvaluationPolicySetup,
    policy: str,
    *,
    since_s: float | None = None,
    route: str | None = None,
    sources: frozenset[str] | None = None,
    progress: bool = False,
) -> Replay:
    """Replay P on what the store at `url` holds. policy: its name, for the report. since_s: unix
    time. sources: of feedback, None = all. Raises StoreError, and JobError where there is nothing
    to replay."""
    reading = read_decisions(url, since_s=since_s, route=route, sources=sources)
    found = roll_out(reading.rows, setting, progress)
    if not found.rows:
        parts = [f"{n} {why}" for why, n in {**reading.left_out, **found.refused}.items()]
        parts += [f"{reading.n_skipped} cannot be read"] if reading.n_skipped else []
        raise JobError(
            "The store holds no decision to replay on"
            + (f" route {route!r}" if route else "")
            + (" in that time" if since_s is not None else "")
            + (f" ({'; '.join(parts)})." if parts else "."),
            remedy="Come back after some traffic, or give another --since or --route.",
        )
    return evaluate(reading, found, setting, policy, since_s=since_s, route=route)


def evaluate(
    reading: DecisionLog,
    c: Rollout,
    setting: EvaluationPolicySetup,
    policy: str,
    *,
    since_s: float | None = None,
    route: str | None = None,
) -> Replay:
    """Estimates and verdict from what was read and asked."""
    log, pi = c.log, c.pi
    seen = log.labelled
    assert log.propensities is not None
    q = _predicted_scores(c.rows, log)
    w = estimators.importance_weights(log, pi)
    ess = estimators.effective_sample_size(w[seen], log.episodes[seen])
    supported = estimators.support(log.propensities, pi)
    share = float(supported[seen].mean()) if seen.any() else float(supported.mean())
    explored = float((log.propensity < CERTAIN).mean())
    terms = {
        "ips": estimators.ips(log, pi),
        "snips": estimators.snips(log, pi),
        "doubly_robust": estimators.doubly_robust(log, pi, q),
    }
    made = {
        name: estimators.widen(e, 1.0 - share)
        for name, e in estimators.estimate_policy_values(terms, log).items()
    }
    word = estimators.direct(log, pi, q).value
    happened = estimators.on_policy_value(log).value
    sessions = len(np.unique(log.sessions[seen]))
    usd = estimators.estimate_cost(log, pi, c.predicted, c.paid)
    estimates = {name: _plain(e) for name, e in made.items()}
    estimates["direct"] = {"value": _number(word), "difference": _number(word - happened)}
    return Replay(
        policy=policy,
        policy_version=c.version,
        route=route,
        since_s=since_s,
        decisions=len(log),
        labelled=int(seen.sum()),
        labelled_share=float(seen.mean()),
        sessions=len(np.unique(log.sessions)),
        free_choices=len(np.unique(log.episodes)),
        explored=explored,
        agreement=float(pi[np.arange(len(log)), log.action].mean()),
        ess=ess,
        support=share,
        largest_weight=float(w[seen].max(initial=0.0)),
        happened={"score": _number(happened), "cost_usd": _number(usd.paid)},
        estimates=estimates,
        cost=_plain_cost(usd, c.models),
        shares={
            m: {"happened": float((log.action == i).mean()), "policy": float(pi[:, i].mean())}
            for i, m in enumerate(c.models)
        },
        labels=_labels(log, c.models),
        sources=reading.sources,
        skipped=reading.n_skipped,
        skipped_rows=tuple(reading.skipped),
        left_out={**reading.left_out, **c.refused},
        verdict=judge(
            made["doubly_robust"], ess=ess, support=share, sessions=sessions,
            explored=explored > 0,
        ),
        warnings=_warnings(reading, c, _pool(setting, route)),
    )  # fmt: skip


def _predicted_scores(rows: Sequence[LoggedDecision], log: LoggedData) -> FloatArray:
    signals = np.stack([r.signals for r in rows])
    points = [r.embedding for r in rows]
    whole = [p for p in points if p is not None]
    vectors = np.stack(whole).astype(float) if len(whole) == len(rows) else None
    return cross_fit_q_hat(log, signals, vectors)


def _pool(setting: EvaluationPolicySetup, route: str | None) -> list[str]:
    """The models of the route now, of all routes where none is named."""
    pools = setting.pools.values() if route is None else [setting.pools.get(route, ())]
    return list(dict.fromkeys(m for pool in pools for m in pool))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _plain(e: Estimate) -> dict[str, float | None]:
    names = ("value", "low", "high", "difference", "difference_low", "difference_high")
    return {n: _number(getattr(e, n)) for n in names}


def _plain_cost(c: estimators.CostEstimate, models: Sequence[str]) -> dict[str, Any]:
    names = ("value", "low", "high", "paid", "difference", "difference_low", "difference_high")
    out: dict[str, Any] = {n: _number(getattr(c, n)) for n in names}
    out["decisions"] = c.counted
    out["paid_over_predicted"] = {
        m: _number(float(r)) for m, r in zip(models, c.ratio, strict=True)
    }
    return out


def _labels(log: LoggedData, models: Sequence[str]) -> dict[str, dict[str, float]]:
    out = {}
    for i, m in enumerate(models):
        taken = log.action == i
        n, scored = int(taken.sum()), int((taken & log.labelled).sum())
        out[m] = {"decisions": n, "labelled": scored, "share": scored / n if n else 0.0}
    return out


def _warnings(reading: DecisionLog, c: Rollout, pool: Sequence[str]) -> tuple[str, ...]:
    log = c.log
    out = []
    if reading.cut:
        out.append(f"Only the newest {len(log)} decisions were read.")
    if estimators.labels_missing_not_at_random(log.action, log.labelled, len(c.models)):
        out.append(
            "Labelling depends on the model: the share of labelled decisions differs between "
            "models by more than chance, so the labelled are no fair sample and the estimates lean."
        )
    assert log.propensities is not None
    free = np.unique(log.episodes, return_index=True)[1]
    off = estimators.propensity_z_scores(log.action[free], log.propensities[free])
    for m, z in zip(c.models, off.tolist(), strict=True):
        if abs(z) > _OFF:
            out.append(
                f"{m} was chosen {abs(z):.0f} standard deviations {'more' if z > 0 else 'less'} "
                "often than the recorded propensities say: they are not what was drawn from."
            )
    if c.unknown:
        out.append(
            f"No longer in the catalog: {', '.join(c.unknown)}; the policy was asked without their "
            "price and quality."
        )
    new = [m for m in pool if m not in c.models]
    if new:
        out.append(f"Never a candidate in the log, so nothing is said of: {', '.join(new)}.")
    failovers = sum(1 for r in c.rows if r.model is not None and r.model != r.chosen)
    if failovers:
        out.append(
            f"{failovers} decisions were answered by another model than the chosen one; they count "
            "as what choosing it led to."
        )
    return tuple(out)
