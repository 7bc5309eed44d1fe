"""Whether a policy may become current: replayed on the recorded traffic, judged by one stated rule.

candidate(argument) -> Candidate -> decide(replay, margin) -> Ruling -> registry.promote
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from suffice import features
from suffice.artifacts import artifact as artifacts
from suffice.errors import ArtifactError, SufficeError, UsageError, nearest
from suffice.names import match_model
from suffice.policies import is_path
from suffice.types import PolicySnapshot

if TYPE_CHECKING:
    from suffice.lab.ope.replay import Replay
    from suffice.store.protocols import PolicyRegistry

MARGIN = 0.01
KIND = "brain"  # a snapshot whose content is an artifact's file
RULE = (
    "promoted where the 95 % interval of (its quality - that of what decided the recorded traffic) "
    "lies wholly above zero, or wholly above -margin at no higher predicted cost"
)
_ROUNDING = 1e-6  # of a cost: no difference


class PromotionDecision(msgspec.Struct, frozen=True):
    """passed: the rule holds. reason: why or why not, in words."""

    passed: bool
    reason: str
    margin: float


def check_rule(r: Replay, margin: float = MARGIN) -> PromotionDecision:
    """The rule, over the doubly robust estimate and the cost by predicted tokens."""
    v, c = r.verdict, r.cost
    if v.word == "cannot judge" or v.lower_bound is None:
        return PromotionDecision(False, v.why, margin)
    low, high = v.lower_bound, v.upper_bound
    said = f"quality {v.difference:+.4f} [{low:+.4f}, {high:+.4f}] against what happened"
    if low > 0:
        return PromotionDecision(True, f"Better: {said}.", margin)
    if low < -margin:
        return PromotionDecision(
            False,
            f"Not shown to be good enough: {said}, whose lower end is below {-margin:+.4f}.",
            margin,
        )
    if c["value"] is None or c["difference"] is None:
        return PromotionDecision(
            False,
            f"As good ({said}), but its cost is unknown, so that it is no dearer cannot be said.",
            margin,
        )
    change = c["difference"] / c["paid"] if c["paid"] else 0.0
    money = f"predicted cost {change:+.1%}" if c["paid"] else "nothing was paid"
    if c["difference"] > _ROUNDING * max(c["paid"], 0.0):
        return PromotionDecision(False, f"As good ({said}), but dearer: {money}.", margin)
    return PromotionDecision(True, f"As good ({said}) and no dearer: {money}.", margin)


# ── what is to be promoted ───────────────────────────────────────────────────────────────────────


def load_candidate(
    argument: str, registry: PolicyRegistry, route: str | None, settings: Any, now_s: float
) -> PolicySnapshot:
    """The snapshot that `argument` means: a version in the store, or an artifact's file, which is
    not stored yet. route: None = the snapshot's own, or the only one that there is.

    Raises ArtifactError for one that this version cannot serve, UsageError.
    """
    if is_path(argument) or Path(argument).exists():
        artifacts.load(argument)  # says what is wrong with the file
        content = Path(argument).read_bytes()
        card = artifacts.unpack(content, argument).card
        _servable(card, argument)
        found = snapshot_of_artifact(content, card, require_route(route, settings), now_s)
    else:
        try:
            found = registry.get(argument)
        except ArtifactError as error:
            raise _absent(argument, registry, error) from None
        if found.kind != KIND:
            raise UsageError(
                f"Snapshot {argument} is of the kind {found.kind!r}, which no route serves.",
                remedy=f"Promote one of the kind {KIND!r}: suffice snapshots lists them.",
            )
        if route is not None and route != found.route:
            raise UsageError(
                f"Snapshot {argument} was learned for route {found.route!r}, not {route!r}.",
                remedy=f"Promote it for {found.route!r}.",
            )
        require_route(found.route, settings)
        _servable(artifacts.unpack(found.content, argument).card, argument)
    _knows(found, settings)
    return found


def snapshot_of_artifact(
    content: bytes, card: artifacts.Card, route: str, now_s: float
) -> PolicySnapshot:
    """The snapshot that an artifact's bytes make."""
    from suffice.store import make_snapshot

    plain = msgspec.to_builtins(card)
    return make_snapshot(
        route=route, kind=KIND, content=content, created_s=now_s, card=plain, created_by="cli"
    )


def require_route(route: str | None, settings: Any) -> str:
    """The route meant. Raises UsageError that names those there are."""
    names = list(settings.routes)
    if route is None:
        if len(names) == 1:
            return str(names[0])
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


def _servable(card: artifacts.Card, name: str) -> None:
    artifacts.check_versions(card, features.SCHEMA, features.embedding_version(), name)


def _knows(found: PolicySnapshot, settings: Any) -> None:
    """Raises ArtifactError where the policy was trained on none of the route's models."""
    trained = artifacts.unpack(found.content, found.version).card.models
    pool = settings.routes[found.route].models
    if all(match_model(m, trained) is None for m in pool):
        raise ArtifactError(
            f"{found.version}: was trained on none of the models of route {found.route!r} "
            f"({', '.join(trained[:5])}{', ...' if len(trained) > 5 else ''}).",
            remedy="Train it on the route's own models.",
        )


def _absent(argument: str, registry: PolicyRegistry, error: ArtifactError) -> SufficeError:
    versions = [s["version"] for s in registry.snapshots()]
    if argument in versions:
        return error  # there, and damaged
    close = nearest(argument, versions, 1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return UsageError(
        f"There is no snapshot {argument!r} in the store, and no file of that name.",
        remedy=f"{hint}suffice snapshots lists those there are.",
    )


# ── evidence ─────────────────────────────────────────────────────────────────────────────────────


def replay_snapshot(
    found: PolicySnapshot,
    settings: Any,
    env: Mapping[str, str],
    *,
    since_s: float | None = None,
    progress: bool = False,
) -> Replay:
    """The snapshot replayed on its route's recorded traffic. Raises as `replay.run`."""
    from suffice.lab.ope import replay

    with _file(found) as path:
        return replay.run(
            settings.store.url,
            replay.load_evaluation_policy(settings, str(path), env),
            found.version,
            since_s=since_s,
            route=found.route,
            progress=progress,
        )


@contextmanager
def _file(found: PolicySnapshot) -> Iterator[Path]:
    """Its bytes as a file, for as long as it is asked."""
    with tempfile.TemporaryDirectory(prefix="suffice-") as folder:
        path = Path(folder) / f"{found.version}.npz"
        path.write_bytes(found.content)
        yield path


def build_evidence(r: Replay | None, ruling: PromotionDecision) -> dict[str, Any]:
    """What is kept with the promotion: the rule, what it came to, and the replay's figures."""
    out: dict[str, Any] = {
        "rule": RULE,
        "margin": ruling.margin,
        "passed": ruling.passed,
        "reason": ruling.reason,
    }
    if r is not None:
        out["replay"] = msgspec.to_builtins(r)
    return out
