"""`suffice promote`: make a policy the current one of a route, on evidence."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from suffice.config import Settings
    from suffice.lab.ope.promotion import PromotionDecision
    from suffice.lab.ope.replay import Replay
    from suffice.store.records import PolicySnapshot, Promotion


def command(
    policy: str = typer.Argument(
        metavar="SNAPSHOT_OR_ARTIFACT",
        help="Version from suffice snapshots, or path of an artifact from suffice train.",
    ),
    config: Path = typer.Option(None, "--config", help="Path of suffice.toml."),
    route: str = typer.Option(
        None, "--route", help="Route; required if the config has several and it is an artifact."
    ),
    since: str = typer.Option(
        None, "--since", help="Replay decisions from this time on: 7d, 12h, 2026-11-01."
    ),
    margin: float = typer.Option(
        0.01, "--margin", help="Largest loss of mean score (0 to 1) allowed at no higher cost."
    ),
    force: bool = typer.Option(
        False, "--force", help="Promote it even if the replay refuses it; this is recorded."
    ),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Make a policy the current one of a route.

    The policy is replayed on the recorded traffic first. Let D be its mean score minus the mean
    score of what decided that traffic: the doubly robust estimate from feedback, with a 95 %
    interval over sessions. It is promoted if the lower end of D is above 0, or at least -margin at
    a predicted cost that is not higher than what was paid. Otherwise, and if the log cannot support
    an estimate (too few labels, no exploration), it is refused with exit code 1, and nothing
    changes. An artifact is stored as a snapshot first. Workers swap policies without a restart.
    """
    from suffice.cli.options import parse_since
    from suffice.config import load_settings, resolve
    from suffice.errors import UsageError

    if not 0.0 <= margin <= 1.0:  # also refuses NaN
        raise UsageError(f"--margin: expected a number from 0 to 1, got {margin}.")
    now_s = time.time()
    since_s = None if since is None else parse_since(since, now_s)
    settings = load_settings(config, os.environ)
    resolve(settings, os.environ, need_keys=False)  # an invalid config is reported first
    _promote(
        policy, settings, route=route, since_s=since_s, margin=margin, force=force, json=json,
        now_s=now_s,
    )  # fmt: skip


def _promote(
    policy: str,
    settings: Settings,
    *,
    route: str | None,
    since_s: float | None,
    margin: float,
    force: bool,
    json: bool,
    now_s: float,
) -> None:
    """Promote the policy or raise JobError, and print the result."""
    from suffice.cli.output import print_json
    from suffice.errors import JobError
    from suffice.lab.ope import promotion
    from suffice.store import reader

    with reader.open_registry(settings.store.url, create=force) as registry:
        snapshot = promotion.load_candidate(policy, registry, route, settings, now_s)
        registry.put(snapshot)
        current = registry.current(snapshot.route)
        if current == snapshot.version:
            _print_unchanged(snapshot, registry.promotions(snapshot.route, 1)[0], json=json)
            return
        replayed, decision = _judge(snapshot, settings, since_s, margin, progress=not json)
        evidence = promotion.build_evidence(replayed, decision)
        if not decision.passed and not force:
            if json:
                result = _result(snapshot, None, evidence, decision.reason)
                print_json(result | {"current": current})
            elif replayed is not None:
                _show(replayed)
            raise JobError(
                f"Not promoted: {decision.reason} Route {snapshot.route} is unchanged.",
                remedy=_remedy(replayed, snapshot),
            )
        entry = registry.promote(
            snapshot.route, snapshot.version, by="cli", now_s=now_s,
            forced=not decision.passed, evidence=evidence,
        )  # fmt: skip
    if json:
        print_json(_result(snapshot, entry, evidence, decision.reason))
        return
    if replayed is not None:
        _show(replayed)
    _print(_summary(entry, decision))


def _print_unchanged(snapshot: PolicySnapshot, entry: Promotion, *, json: bool) -> None:
    from suffice.cli.output import print_json

    if json:
        text = "It is the current one already; nothing was changed."
        print_json(_result(snapshot, entry, None, text) | {"unchanged": True})
    else:
        _print(f"{snapshot.version}: it is the current one already; nothing was changed.")


def _judge(
    snapshot: PolicySnapshot,
    settings: Settings,
    since_s: float | None,
    margin: float,
    *,
    progress: bool,
) -> tuple[Replay | None, PromotionDecision]:
    """Replay the snapshot and apply the rule; no replay if there is nothing to replay on."""
    from suffice.errors import JobError
    from suffice.lab.ope import promotion

    try:
        replayed = promotion.replay_snapshot(
            snapshot, settings, os.environ, since_s=since_s, progress=progress
        )
    except JobError as error:
        reason = f"Inconclusive: {error.message}"
        return None, promotion.PromotionDecision(False, reason, margin)
    return replayed, promotion.check_rule(replayed, margin)


def _result(
    snapshot: PolicySnapshot,
    entry: Promotion | None,
    evidence: Mapping[str, object] | None,
    reason: str,
) -> dict[str, object]:
    """Return the JSON object of the command."""
    return {
        "object": "promotion",
        "promoted": entry is not None,
        "unchanged": False,
        "forced": entry is not None and entry.forced,
        "route": snapshot.route,
        "version": snapshot.version,
        "previous": None if entry is None else entry.previous,
        "generation": None if entry is None else entry.generation,
        "reason": reason,
        "evidence": evidence,
    }


def _remedy(replayed: Replay | None, snapshot: PolicySnapshot) -> str:
    if replayed is None or replayed.verdict.word == "cannot judge":
        remedy = "Collect more feedback, or turn on some exploration"
    else:
        remedy = "Train on more labels, or allow a larger --margin"
    return f"{remedy}; suffice promote {snapshot.version} --force promotes it anyway."


def _summary(entry: Promotion, decision: PromotionDecision) -> str:
    before = entry.previous or "the configured policy"
    forced = " by force, against the rule" if entry.forced else ""
    return (
        f"Promoted{forced}: route {entry.route} uses {entry.version} (before: {before}). "
        f"{decision.reason} To undo it, run suffice rollback."
    )


def _print(text: str) -> None:
    from rich.console import Console

    Console().print(text, highlight=False, markup=False)


def _show(r: Replay) -> None:
    from suffice.cli import replay

    replay.show(r)
