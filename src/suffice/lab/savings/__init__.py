"""Savings that are true: what was spent, what each single model would have cost on the same
requests, and what quality was kept, each with its interval or with the reason why it is unknown.

read(store) -> Traffic (sums) -> report() -> Report -> terminal, report.html, savings.json, PNGs
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from suffice.errors import ArtifactError, JobError
from suffice.lab.savings.counterfactual_cost import SingleModelCost, single_model_costs
from suffice.lab.savings.headline import headline
from suffice.lab.savings.quality import Quality, estimate_quality
from suffice.lab.savings.reading import read
from suffice.lab.savings.traffic import RouteTotals, Traffic
from suffice.store import reader

__all__ = ["Report", "RouteReport", "build_report", "reference_models"]


class Percentiles(msgspec.Struct, frozen=True):
    n: int
    p50: float
    p90: float
    p95: float
    p99: float


class Mix(msgspec.Struct, frozen=True):
    """Over time. starts_s: (t,) unix time of each interval of `bucket_s` seconds; models: answered
    requests of each; spent_usd, failed: (t,)."""

    bucket_s: float
    starts_s: tuple[float, ...]
    models: Mapping[str, tuple[int, ...]]
    spent_usd: tuple[float, ...]
    failed: tuple[int, ...]


class Calls(msgspec.Struct, frozen=True):
    """Of one model. outcomes: "ok" or what went wrong -> calls; wasted_usd: cost of calls that
    failed, None where some of theirs is unknown."""

    calls: int
    failed: int
    wasted_usd: float | None
    outcomes: Mapping[str, int]


class Told(msgspec.Struct, frozen=True):
    """Feedback of one source as it stands now: decisions it scored, its mean score."""

    kind: str
    decisions: int
    mean: float


class Event(msgspec.Struct, frozen=True):
    """A promotion or a rollback. version: current from then on, None = the configured policy."""

    at_s: float
    route: str
    kind: str
    version: str | None
    previous: str | None
    by: str
    forced: bool


class RouteReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one route's policy decided. compared: answered requests of known cost, which singles are
    about. policies: name and version -> decisions."""

    decisions: int
    answered: int
    compared: int
    sessions: int
    spent_usd: float
    cost_unknown: int
    reference: str
    reference_why: str
    singles: Mapping[str, SingleModelCost]
    quality: Quality
    policies: Mapping[str, int]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `suffice report --json` prints. Costs in USD, times in seconds unless the name says
    otherwise, moments in unix time. spent_usd leaves out the `cost_unknown` requests. bypass:
    requests for a concrete model, which no policy decided. audits: calls that audited some of the
    requests; they are no requests, and what they cost is not in spent_usd."""

    object: str = "report"
    headline: tuple[str, ...] = ()
    made_s: float
    since_s: float | None
    route: str | None
    first_s: float
    last_s: float
    requests: int
    spent_usd: float
    cost_unknown: int
    bypass: int
    bypass_usd: float
    audits: int
    audits_usd: float
    routes: Mapping[str, RouteReport]
    mix: Mix
    latency_s: Mapping[str, Percentiles]
    first_chunk_s: Mapping[str, Percentiles]
    overhead_ms: Percentiles
    failed: int
    client_left: int
    failovers: int
    retried: int
    statuses: Mapping[str, int]
    calls: Mapping[str, Calls]
    feedback: Mapping[str, Told]
    events: tuple[Event, ...]
    skipped: int
    skipped_rows: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def build_report(
    url: str,
    *,
    now_s: float,
    since_s: float | None = None,
    route: str | None = None,
    known: Mapping[str, tuple[str, str]] | None = None,
) -> Report:
    """The report on what the store at `url` holds. now_s, since_s: unix time. known: route ->
    (reference model, why that), as `reference_models` gives it.

    Raises StoreError, and JobError where there is nothing to report.
    """
    t = read(url, since_s=since_s, route=route)
    if t.requests == 0:
        where = f" on route {route!r}" if route else ""
        when = " in that time" if since_s is not None else ""
        raise JobError(
            f"There is nothing to report: the store holds no request{where}{when}.",
            remedy="Send some traffic through suffice serve, or give another --since or --route.",
        )
    routes = {
        name: _route(name, t.routes[name], (known or {}).get(name)) for name in sorted(t.routes)
    }
    made = Report(
        made_s=now_s,
        since_s=since_s,
        route=route,
        first_s=t.first_s,
        last_s=t.last_s,
        requests=t.requests,
        spent_usd=t.spent_usd,
        cost_unknown=t.cost_unknown,
        bypass=t.bypass,
        bypass_usd=t.bypass_usd,
        audits=t.audits,
        audits_usd=t.audits_usd,
        routes=routes,
        mix=_mix(t),
        latency_s=_by_model(t.latency_s),
        first_chunk_s=_by_model(t.first_chunk_s),
        overhead_ms=_percentiles(t.overhead_ms),
        failed=t.failed,
        client_left=t.client_left,
        failovers=t.failovers,
        retried=t.retried,
        statuses={str(s): n for s, n in sorted(t.statuses.items())},
        calls=_calls(t),
        feedback={
            source: Told(s.kind, s.decisions, s.total / s.scores)
            for source, s in sorted(t.sources.items())
        },
        events=_events(url, sorted({*t.routes, *(known or {})} if route is None else {route}), t),
        skipped=t.n_skipped,
        skipped_rows=tuple(t.skipped),
        warnings=_warnings(url, t, routes),
    )
    return msgspec.structs.replace(made, headline=headline(made))


def _route(name: str, r: RouteTotals, told: tuple[str, str] | None) -> RouteReport:
    alone = single_model_costs(r)
    reference, why = told or _likeliest(r)
    return RouteReport(
        decisions=r.decisions,
        answered=r.answered,
        compared=int(r.requests.sum()),
        sessions=r.groups,
        spent_usd=r.spent_usd,
        cost_unknown=r.cost_unknown,
        reference=reference,
        reference_why=why,
        singles=alone,
        quality=estimate_quality(r, reference),
        policies=dict(r.policies.most_common()),
    )


def _likeliest(r: RouteTotals) -> tuple[str, str]:
    """The reference where the config names none: the best by the recorded predictions."""
    best = max(
        r.models, key=lambda m: r.expected[m].quality / max(1, r.expected[m].known)
        if m in r.expected else -1.0, default="unknown",
    )  # fmt: skip
    return best, "the best by the recorded predictions"


def reference_models(settings: Any, env: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Route -> (its reference model, why that), as the config and the promoted snapshots have it.
    Raises ConfigError."""
    from suffice.artifacts import artifact
    from suffice.config import resolve
    from suffice.names import match_model
    from suffice.policies import is_path

    promoted = _promoted(settings.store.url, tuple(settings.routes))
    out = {}
    for name, spec in resolve(settings, env, need_keys=False).routes.items():
        names = [m.name for m in spec.models]
        trained = promoted.get(name)
        if trained is None and is_path(spec.policy):
            beside = Path(str(settings.source)).parent / spec.policy
            try:
                trained = artifact.load(beside if beside.exists() else spec.policy).card.reference
            except ArtifactError:
                trained = None  # a report is about the past, which needs no artifact
        at = None if trained is None else match_model(trained, names)
        if at is not None:
            out[name] = (names[at], "the reference of the trained policy")
            continue
        # Ties go to the dearest; an unknown price is not taken for a high one.
        best = max(
            spec.models,
            key=lambda m: (
                -1.0 if m.quality is None else m.quality,
                m.price.output_usd_per_mtok or 0.0,
            ),
        )
        why = "the best by its prior" if best.quality is not None else "the dearest"
        out[name] = (best.name, why)
    return out


def _promoted(url: str, routes: tuple[str, ...]) -> dict[str, str]:
    """Route -> the reference that its current snapshot's card names."""
    if not reader.exists(url):
        return {}
    out = {}
    with reader.open_registry(url) as registry:
        for name in routes:
            version = registry.current(name)
            cards = [s["card"] for s in registry.snapshots(name) if s["version"] == version]
            found = cards[0].get("reference") if cards else None
            if isinstance(found, str):
                out[name] = found
    return out


def _percentiles(values: array[float]) -> Percentiles:
    found = np.frombuffer(values, np.float32) if len(values) else np.zeros(1, np.float32)
    marks = (float(v) for v in np.percentile(found, [50, 90, 95, 99]))
    return Percentiles(len(values), *marks)


def _by_model(found: Mapping[str, array[float]]) -> dict[str, Percentiles]:
    return {m: _percentiles(v) for m, v in sorted(found.items(), key=lambda i: -len(i[1]))}


def _mix(t: Traffic) -> Mix:
    n = int((t.last_s - t.first_s) // t.bucket_s) + 1
    starts = [t.first_s + i * t.bucket_s for i in range(n)]
    models = sorted(t.latency_s, key=lambda m: -len(t.latency_s[m]))
    empty: Mapping[str, int] = {}
    return Mix(
        t.bucket_s,
        tuple(starts),
        {m: tuple(t.mix.get(s, empty).get(m, 0) for s in starts) for m in models},
        tuple(t.spent[s] for s in starts),
        tuple(t.failures[s] for s in starts),
    )


def _calls(t: Traffic) -> dict[str, Calls]:
    out = {}
    for model, outcomes in t.attempts.items():
        bad = [v for o, v in outcomes.items() if o not in ("ok", "cancelled")]
        out[model] = Calls(
            sum(n for n, *_ in outcomes.values()),
            sum(n for n, *_ in bad),
            sum(usd for _, usd, _ in bad) if all(n == known for n, _, known in bad) else None,
            {o: n for o, (n, *_) in sorted(outcomes.items())},
        )
    return dict(sorted(out.items(), key=lambda i: -i[1].calls))


def _events(url: str, routes: list[str], t: Traffic) -> tuple[Event, ...]:
    """Oldest first, from the report's first request on."""
    with reader.open_registry(url) as registry:
        found = [
            p for r in routes for p in registry.promotions(r, 1000) if p.promoted_at_s >= t.first_s
        ]
    return tuple(
        Event(p.promoted_at_s, p.route, p.kind, p.version, p.previous, p.by, p.forced)
        for p in sorted(found, key=lambda p: p.generation)
    )


def _warnings(url: str, t: Traffic, routes: Mapping[str, RouteReport]) -> tuple[str, ...]:
    out = []
    waiting = _spooled(url)
    if waiting:
        out.append(
            f"Records wait beside the store and are not in this report: {', '.join(waiting)}. The "
            "next start of suffice serve writes them."
        )
    if t.cost_unknown:
        out.append(
            f"The cost of {t.cost_unknown:,} of {t.requests:,} requests is unknown: what was spent "
            "is at least what is stated."
        )
    if t.overruled:
        out.append(
            f"{t.overruled:,} decisions are in no estimate of quality: another model was put in "
            "front of the policy's choice."
        )
    out += [f"{name}: {w}" for name, r in routes.items() for w in r.quality.warnings]
    return tuple(out)


def _spooled(url: str) -> list[str]:
    from suffice.store.engine import spool_base

    base = spool_base(url)
    if base is None:
        return []
    return sorted(
        p.name
        for p in base.parent.glob(f"{base.name}.*spool.jsonl")
        if p.is_file() and p.stat().st_size > 0
    )
