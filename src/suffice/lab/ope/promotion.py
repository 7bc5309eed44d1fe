"""Promotes a policy if its replay on the recorded traffic satisfies one stated rule.

load_candidate(argument) -> replay_snapshot -> check_rule(replay, margin) -> registry.promote
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from suffice import features
from suffice.artifacts import artifact as artifacts
from suffice.config import Settings
from suffice.errors import ArtifactError, UsageError, nearest
from suffice.lab.ope import replay
from suffice.lab.ope.replay import Replay
from suffice.names import match_model
from suffice.policies import is_path
from suffice.store import make_snapshot
from suffice.store.records import PolicySnapshot

if TYPE_CHECKING:
    from suffice.store.protocols import PolicyRegistry

MARGIN = 0.01
KIND = "policy"  # a snapshot whose content is the file of an artifact
_SERVED_KINDS = (KIND, "brain")  # "brain": written by versions before 0.2
RULE = (
    "promoted if the 95 % interval of (its quality - the quality of what decided the recorded "
    "traffic) is above zero, or above -margin at a predicted cost that is not higher"
)
_ROUNDING = 1e-6  # relative difference of costs that counts as none


class PromotionDecision(msgspec.Struct, frozen=True):
    """Whether the rule is satisfied, and why in words."""

    passed: bool
    reason: str
    margin: float


def check_rule(r: Replay, margin: float = MARGIN) -> PromotionDecision:
    """Apply `RULE` to the doubly robust estimate and the predicted cost of a replay."""
    verdict, cost = r.verdict, r.cost
    low, high = verdict.lower_bound, verdict.upper_bound
    if verdict.word == "cannot judge" or low is None:
        return PromotionDecision(False, verdict.reason, margin)
    quality = f"quality {verdict.difference:+.4f} [{low:+.4f}, {high:+.4f}] against what happened"
    if low > 0:
        return PromotionDecision(True, f"Better: {quality}.", margin)
    if low < -margin:
        reason = f"Not shown to be good enough: {quality}, whose lower end is below {-margin:+.4f}."
        return PromotionDecision(False, reason, margin)
    if cost.value is None or cost.difference is None:
        reason = f"As good ({quality}), but its cost is unknown and may be higher."
        return PromotionDecision(False, reason, margin)
    paid = cost.paid or 0.0
    money = f"predicted cost {cost.difference / paid:+.1%}" if paid else "nothing was paid"
    if cost.difference > _ROUNDING * max(paid, 0.0):
        return PromotionDecision(False, f"As good ({quality}), but costlier: {money}.", margin)
    return PromotionDecision(True, f"As good ({quality}) and not costlier: {money}.", margin)


# ── what is to be promoted ───────────────────────────────────────────────────────────────────────


def load_candidate(
    argument: str, registry: PolicyRegistry, route: str | None, settings: Settings, now_s: float
) -> PolicySnapshot:
    """Return the snapshot that `argument` names; that of an artifact's file is not stored yet.

    Args:
        argument: Version of a snapshot in the registry, or path of an artifact.
        registry: Of the store.
        route: The route; `None` for the snapshot's own, or the only one that is configured.
        settings: The config.
        now_s: Unix time.

    Raises:
        ArtifactError: If this version cannot serve it on the route.
        UsageError: If there is no such snapshot or route.
    """
    if is_path(argument) or Path(argument).exists():
        artifacts.load(argument)  # raises with the reason if the file is not an artifact
        content = Path(argument).read_bytes()
        card = artifacts.unpack(content, argument).card
        _check_servable(card, argument)
        candidate = snapshot_of_artifact(content, card, require_route(route, settings), now_s)
    else:
        try:
            candidate = registry.get(argument)
        except ArtifactError:
            versions = [s["version"] for s in registry.snapshots()]
            if argument in versions:
                raise  # the snapshot exists and is damaged
            close = nearest(argument, versions, 1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise UsageError(
                f"There is no snapshot {argument!r} in the store, and no file of that name.",
                remedy=f"{hint}suffice snapshots lists those there are.",
            ) from None
        if candidate.kind not in _SERVED_KINDS:
            raise UsageError(
                f"Snapshot {argument} is of the kind {candidate.kind!r}, which no route serves.",
                remedy=f"Promote one of the kind {KIND!r}: suffice snapshots lists them.",
            )
        if route is not None and route != candidate.route:
            raise UsageError(
                f"Snapshot {argument} was learned for route {candidate.route!r}, not {route!r}.",
                remedy=f"Promote it for {candidate.route!r}.",
            )
        require_route(candidate.route, settings)
        _check_servable(artifacts.unpack(candidate.content, argument).card, argument)
    _check_models(candidate, settings)
    return candidate


def snapshot_of_artifact(
    content: bytes, card: artifacts.Card, route: str, now_s: float
) -> PolicySnapshot:
    """Return the snapshot of an artifact's bytes."""
    return make_snapshot(
        route=route,
        kind=KIND,
        content=content,
        created_s=now_s,
        card=msgspec.to_builtins(card),
        created_by="cli",
    )


def require_route(route: str | None, settings: Settings) -> str:
    """Return `route`, or the only configured one if it is `None`.

    Raises:
        UsageError: If the route is not configured, or several are and none is named.
    """
    names = list(settings.routes)
    if route is None:
        if len(names) == 1:
            return names[0]
        raise UsageError(
            "--route: there is more than one route.", remedy=f"Give one of: {', '.join(names)}."
        )
    if route not in names:
        close = nearest(route, names, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UsageError(
            f"--route: there is no route {route!r}.{hint}", remedy=f"Known: {', '.join(names)}."
        )
    return route


def _check_servable(card: artifacts.Card, name: str) -> None:
    artifacts.check_versions(card, features.SCHEMA, features.embedding_version(), name)


def _check_models(candidate: PolicySnapshot, settings: Settings) -> None:
    trained = artifacts.unpack(candidate.content, candidate.version).card.models
    pool = settings.routes[candidate.route].models
    if all(match_model(m, trained) is None for m in pool):
        raise ArtifactError(
            f"{candidate.version}: was trained on none of the models of route "
            f"{candidate.route!r} ({', '.join(trained[:5])}{', ...' if len(trained) > 5 else ''}).",
            remedy="Train it on the models of the route.",
        )


# ── evidence ─────────────────────────────────────────────────────────────────────────────────────


def replay_snapshot(
    snapshot: PolicySnapshot,
    settings: Settings,
    env: Mapping[str, str],
    *,
    since_s: float | None = None,
    progress: bool = False,
) -> Replay:
    """Return the replay of a snapshot on its route's recorded traffic, as `replay.run` does.

    Raises:
        JobError: If there is nothing to replay on.
        StoreError: If the store cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="suffice-") as folder:
        path = Path(folder) / f"{snapshot.version}.npz"
        path.write_bytes(snapshot.content)
        return replay.run(
            settings.store.url,
            replay.load_evaluation_policy(settings, str(path), env),
            snapshot.version,
            since_s=since_s,
            route=snapshot.route,
            progress=progress,
        )


def build_evidence(r: Replay | None, decision: PromotionDecision) -> dict[str, object]:
    """Return what is stored with the promotion: the rule, its result, and the replay's figures."""
    evidence: dict[str, object] = {
        "rule": RULE,
        "margin": decision.margin,
        "passed": decision.passed,
        "reason": decision.reason,
    }
    if r is not None:
        evidence["replay"] = msgspec.to_builtins(r)
    return evidence
