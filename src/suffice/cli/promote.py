"""`suffice promote`: make a policy the current one of a route, on evidence."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from suffice.lab.ope.promotion import PromotionDecision
    from suffice.lab.ope.replay import Replay
    from suffice.types import PolicySnapshot, Promotion


def command(
    policy: str = typer.Argument(
        metavar="SNAPSHOT_OR_ARTIFACT",
        help="A version that suffice snapshots lists, or the file that suffice train wrote.",
    ),
    config: Path = typer.Option(None, "--config", help="A suffice.toml."),
    route: str = typer.Option(None, "--route", help="Of this route; needed where there are many."),
    since: str = typer.Option(
        None, "--since", help="Replay traffic from then on: 7d, 12h, 2026-11-01."
    ),
    margin: float = typer.Option(
        0.01, "--margin", help="How much quality it may at worst lose where it is no dearer."
    ),
    force: bool = typer.Option(
        False, "--force", help="Promote it whatever the replay says; that is recorded."
    ),
    json: bool = typer.Option(False, "--json", help="One JSON object."),
) -> None:
    """Make a policy the current one of a route.

    It is replayed on the recorded traffic first. The rule: let D be its mean quality less that of
    what decided the traffic, by the doubly robust estimate from feedback, with its 95 % interval over
    sessions. It is promoted where the lower end of D is above 0, or at least
    -margin at a predicted cost no higher than what was paid. Otherwise, and where the log cannot
    carry an estimate (too few labels, no exploration), it is refused with exit code 1, and nothing
    changes. An artifact's file is stored as a snapshot first. Workers swap without a restart.
    """
    from suffice.cli.options import parse_since
    from suffice.cli.output import print_json
    from suffice.config import load_settings, resolve
    from suffice.errors import JobError, UsageError
    from suffice.lab.ope import promotion
    from suffice.store import reader

    if not 0.0 <= margin <= 1.0:  # also catches NaN
        raise UsageError(f"--margin: expected a number from 0 to 1, got {margin}.")
    now_s = time.time()
    since_s = None if since is None else parse_since(since, now_s)
    settings = load_settings(config, os.environ)
    resolve(settings, os.environ, need_keys=False)  # a config that is wrong is said first
    with reader.open_registry(settings.store.url, create=force) as registry:
        found = promotion.load_candidate(policy, registry, route, settings, now_s)
        registry.put(found)
        before = registry.current(found.route)
        if before == found.version:
            entry = registry.promotions(found.route, 1)[0]
            told = _told(found, entry, None, "It is current already; nothing was changed.")
            if json:
                print_json(told | {"unchanged": True})
            else:
                _say(f"{found.version}: it is current already; nothing was changed.")
            return
        replayed: Replay | None = None
        try:
            replayed = promotion.replay_snapshot(
                found, settings, os.environ, since_s=since_s, progress=not json
            )
            ruling = promotion.check_rule(replayed, margin)
        except JobError as error:
            ruling = promotion.PromotionDecision(False, f"Cannot judge: {error.message}", margin)
        evidence = promotion.build_evidence(replayed, ruling)
        if not ruling.passed and not force:
            if json:
                print_json(_told(found, None, evidence, ruling.reason) | {"current": before})
            elif replayed is not None:
                _show(replayed)
            raise JobError(
                f"Not promoted: {ruling.reason} Route {found.route} stays as it is.",
                remedy=_remedy(ruling, found),
            )
        entry = registry.promote(
            found.route,
            found.version,
            by="cli",
            now_s=now_s,
            forced=not ruling.passed,
            evidence=evidence,
        )
    if json:
        print_json(_told(found, entry, evidence, ruling.reason))
        return
    if replayed is not None:
        _show(replayed)
    _say(_done(entry, ruling))


def _told(
    found: PolicySnapshot, entry: Promotion | None, evidence: dict[str, Any] | None, reason: str
) -> dict[str, Any]:
    return {
        "object": "promotion",
        "promoted": entry is not None,
        "unchanged": False,
        "forced": entry is not None and entry.forced,
        "route": found.route,
        "version": found.version,
        "previous": None if entry is None else entry.previous,
        "generation": None if entry is None else entry.generation,
        "reason": reason,
        "evidence": evidence,
    }


def _remedy(ruling: PromotionDecision, found: PolicySnapshot) -> str:
    if ruling.reason.startswith("Cannot judge"):
        way = "Come back with more feedback or some exploration"
    else:
        way = "Train on more labels, or allow a larger --margin"
    return f"{way}; suffice promote {found.version} --force promotes it all the same."


def _done(entry: Promotion, ruling: PromotionDecision) -> str:
    before = entry.previous or "the configured policy"
    forced = " by force, against the rule" if entry.forced else ""
    return (
        f"Promoted{forced}: route {entry.route} uses {entry.version} (before: {before}). "
        f"{ruling.reason} suffice rollback undoes it."
    )


def _say(text: str) -> None:
    from rich.console import Console

    Console().print(text, highlight=False, markup=False)


def _show(r: Replay) -> None:
    from suffice.cli import replay

    replay.show(r)
