"""Quality kept against the reference model: from labels, by off-policy estimates, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, sqrt

import msgspec
import numpy as np
from msgspec.structs import replace

from suffice import features
from suffice.lab.data.table import FloatArray
from suffice.lab.ope import estimators
from suffice.lab.ope.estimators import EstimatorTerms, LoggedData
from suffice.lab.ope.intervals import Estimate, estimate_policy_values, widen
from suffice.lab.ope.reward_model import cross_fit_q_hat
from suffice.lab.ope.verdict import MIN_ESS, MIN_SESSIONS, MIN_SUPPORT
from suffice.lab.savings.traffic import SCORE, SCORED, Labelled, RouteTotals

MIN_LABELS = 30  # of one model, below which its mean score is not stated
_Z = 1.959964  # of a two-sided 95 % interval
_SIGNALS_BYTES = 4 * len(features.SIGNAL_NAMES)
_VECTOR_BYTES = 2 * features.DIMENSIONS

Interval = tuple[float, float]


class ModelScore(msgspec.Struct, frozen=True, kw_only=True):
    """What a model that answered was scored. mean: None below `MIN_LABELS` labels."""

    requests: int
    labelled: int
    mean: float | None = None
    mean_ci: Interval | None = None
    needed: int | None = None


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """Of a route, over explicit feedback. labelled_share: of its decisions. effective: what the
    labels are worth as labels of the reference alone; support: share of labelled decisions that
    could have gone to it; explored: share of free choices that were drawn.

    said: whether anything is claimed; why: in words, always. labels_needed: about how many, None
    where no number would do or enough are there. happened: mean score; always_reference: doubly
    robust estimate of what it would have been, snips: the same by self-normalised weights;
    kept: happened over always_reference; lost: always_reference less happened.

    predicted_kept: by the policy's own predictions, of which `basis` says what they rest on (prior,
    trained, certified): decisions. It measures nothing.
    """

    reference: str
    said: bool
    why: str
    labelled: int
    labelled_share: float
    effective: float
    support: float
    explored: float
    sessions: int
    labels_needed: int | None = None
    happened: float | None = None
    always_reference: float | None = None
    always_reference_ci: Interval | None = None
    snips: float | None = None
    snips_ci: Interval | None = None
    kept: float | None = None
    kept_ci: Interval | None = None
    lost: float | None = None
    lost_ci: Interval | None = None
    predicted_kept: float | None = None
    basis: Mapping[str, int] = {}
    models: Mapping[str, ModelScore] = {}
    warnings: tuple[str, ...] = ()


def estimate_quality(route: RouteTotals, reference: str) -> Quality:
    """What can be said of the route's quality against `reference`, and what cannot."""
    rows = [r for r in route.quality if _whole(r)]
    e = route.expected.get(reference)
    support = e.drawable / max(1, route.weighable) if e is not None else 0.0
    # What a label is worth on average as one of the reference: inverse of the mean weight.
    weight = e.inverse / e.drawable if e is not None and e.drawable else None
    told = Quality(
        reference=reference,
        said=False,
        why="",
        labelled=route.labelled,
        labelled_share=route.labelled / route.decisions if route.decisions else 0.0,
        effective=0.0,
        support=support,
        explored=route.drawn / route.free if route.free else 0.0,
        sessions=0,
        predicted_kept=e.beside / e.quality if e is not None and e.quality > 0 else None,
        basis=dict(route.basis),
        models=_by_model(route),
    )
    if _uneven(told.models):
        lean = (
            "The share of labelled answers differs between models by more than chance, so the "
            "labelled are no fair sample and mean scores lean."
        )
        told = replace(told, warnings=(lean,))
    if not rows:
        return _unsaid(told, route, weight)
    log, models = _log(rows, reference)
    target = np.zeros((len(log), len(models)))
    target[:, models.index(reference)] = 1.0
    assert log.propensities is not None
    told = replace(
        told,
        support=float(estimators.support(log.propensities, target).mean()),
        effective=estimators.effective_sample_size(
            estimators.importance_weights(log, target), log.episodes
        ),
        sessions=len(np.unique(log.sessions)),
    )
    enough = (
        told.support >= MIN_SUPPORT and told.effective >= MIN_ESS and told.sessions >= MIN_SESSIONS
    )
    if not enough:
        return _unsaid(told, route, weight)
    return _estimated(told, log, target, _predicted(log, rows))


def _unsaid(told: Quality, route: RouteTotals, weight: float | None) -> Quality:
    """Why nothing is claimed, and about how many labels would change that. A label of a decision
    that goes to the reference with probability p is worth p of one of its own. weight: mean 1 / p."""
    n = f"{told.labelled:,} label" + ("" if told.labelled == 1 else "s")
    needed = None
    if told.support < MIN_SUPPORT or weight is None:
        why = (
            f"Cannot say, from {n}: only {told.support:.0%} of decisions could have gone to "
            f"{told.reference}, and what it would have scored on the others was never seen"
        )
        if not route.drawn:
            why += " (no decision was drawn: the route does not explore)"
        why += (
            ". More labels alone would not help; exploring a few per cent of traffic would (at "
            f"least {MIN_SUPPORT:.0%} is needed)."
        )
    elif told.effective < MIN_ESS:
        needed = ceil(MIN_ESS * weight)
        why = (
            f"Too few labels to say: {n}, worth {told.effective:.0f} of {told.reference}'s own; "
            f"about {max(needed, told.labelled + 1):,} are needed "
            f"({MIN_ESS:.0f} of its own)."
        )
    else:
        why = (
            f"Too few labels to say: {n} from {told.sessions} sessions; "
            f"{MIN_SESSIONS} sessions are needed."
        )
    return replace(told, why=why, labels_needed=needed)


def _estimated(told: Quality, log: LoggedData, target: FloatArray, q: FloatArray) -> Quality:
    dr = estimators.doubly_robust(log, target, q)
    # Both are means over the same labelled decisions, so their ratio is one of two sums.
    kept = EstimatorTerms(estimators.on_policy_value(log).numerator, dr.numerator)
    terms = {"dr": dr, "snips": estimators.snips(log, target), "kept": kept}
    made = estimate_policy_values(terms, log)
    unseen = 1.0 - told.support
    e, s = (widen(made[name], unseen) for name in ("dr", "snips"))
    ratio = _ratio(made["kept"], e.value, unseen)
    why = (
        f"{ratio[0]:.1%} of the quality of {told.reference} was kept (95 %: {ratio[1]:.1%} to "
        f"{ratio[2]:.1%}), from {told.labelled:,} labels on {told.labelled_share:.0%} of decisions"
    )
    why += "." if len(log) == told.labelled else f", of which {len(log):,} could be used."
    return replace(
        told,
        said=True,
        why=why,
        happened=estimators.on_policy_value(log).value,
        always_reference=e.value,
        always_reference_ci=(e.low, e.high),
        snips=s.value,
        snips_ci=(s.low, s.high),
        kept=ratio[0],
        kept_ci=ratio[1:],
        lost=e.difference,
        lost_ci=(e.difference_low, e.difference_high),
    )


def _ratio(kept: Estimate, reference: float, unseen: float) -> tuple[float, float, float]:
    """(kept, low, high), wider by what the reference's score may be where it was never possible."""
    if unseen <= 0.0 or reference <= unseen:
        return kept.value, kept.low, kept.high
    less, more = reference / (reference + unseen), reference / (reference - unseen)
    return kept.value, kept.low * less, kept.high * more


def _whole(r: Labelled) -> bool:
    return r.signals is not None and len(r.signals) == _SIGNALS_BYTES


def _log(rows: list[Labelled], reference: str) -> tuple[LoggedData, list[str]]:
    models = list(dict.fromkeys([reference, *(m for r in rows for m in r.shares)]))
    at = {m: i for i, m in enumerate(models)}
    p = np.zeros((len(rows), len(models)))
    for i, r in enumerate(rows):
        for m, share in r.shares.items():
            p[i, at[m]] = share
    action = np.array([at[r.chosen] for r in rows], np.intp)
    return (
        LoggedData(
            action,
            p[np.arange(len(rows)), action],
            np.array([r.score for r in rows]),
            p,
            np.array([r.session for r in rows], np.intp),
            np.array([r.episode for r in rows], np.intp),
        ),
        models,
    )


def _predicted(log: LoggedData, rows: list[Labelled]) -> FloatArray:
    """(n, k) scores by a reward model, fitted on other sessions than it predicts."""
    signals = np.stack([np.frombuffer(r.signals or b"", "<f4") for r in rows])
    points = [r.embedding for r in rows]
    vectors = None
    if all(b is not None and len(b) == _VECTOR_BYTES for b in points):
        vectors = np.stack([np.frombuffer(b or b"", "<f2") for b in points]).astype(float)
    return cross_fit_q_hat(log, signals, vectors)


def _uneven(models: Mapping[str, ModelScore]) -> bool:
    requests = [m.requests for m in models.values()]
    labelled = [np.arange(m.requests) < m.labelled for m in models.values()]
    if not requests:
        return False
    action = np.repeat(np.arange(len(requests)), requests)
    return estimators.labels_missing_not_at_random(action, np.concatenate(labelled), len(requests))


def _by_model(route: RouteTotals) -> dict[str, ModelScore]:
    sums = route.sums
    out = {}
    for model, requests in route.by_model.most_common():
        j = route.models.get(model)
        n, total = (sums[i, :, j] if j is not None else np.zeros(1) for i in (SCORED, SCORE))
        labelled = int(n.sum())
        if labelled < MIN_LABELS or np.count_nonzero(n) < 2:
            score = ModelScore(requests=requests, labelled=labelled, needed=MIN_LABELS)
        else:
            mean, interval = _mean(n, total)
            score = ModelScore(requests=requests, labelled=labelled, mean=mean, mean_ci=interval)
        out[model] = score
    return out


def _mean(n: FloatArray, total: FloatArray) -> tuple[float, Interval]:
    """Mean score with Wilson's interval (Wilson 1927, "Probable inference, the law of succession,
    and statistical inference") at the size that sessions leave: n over the design effect."""
    n, total = n[n > 0], total[n > 0]
    size, g = float(n.sum()), len(n)
    mean = float(total.sum()) / size
    plain = mean * (1 - mean) / size
    if plain > 0:
        robust = float(((total - mean * n) ** 2).sum()) / size**2 * g / (g - 1)
        size /= max(1.0, robust / plain)
    else:
        size = min(size, g)  # all alike: sessions may be all that differs
    z = _Z * _Z / size
    middle = (mean + z / 2) / (1 + z)
    half = _Z * sqrt(max(0.0, mean * (1 - mean)) / size + z / (4 * size)) / (1 + z)
    # By rounding alone the mean can lie outside at 0 and 1.
    return mean, (max(0.0, min(mean, middle - half)), min(1.0, max(mean, middle + half)))
