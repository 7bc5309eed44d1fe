"""Builds the savings report of a store."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping

import msgspec
import numpy as np

from suffice.errors import JobError
from suffice.lab.savings.counterfactual_cost import single_model_costs
from suffice.lab.savings.headline import headline
from suffice.lab.savings.quality import estimate_quality
from suffice.lab.savings.records import (
    CallTotals,
    FeedbackTotals,
    NamedModelTotals,
    Percentiles,
    PolicyChange,
    RouteReport,
    SavingsReport,
    TrafficMix,
)
from suffice.lab.savings.references import Reference, best_predicted
from suffice.lab.savings.traffic import RouteTraffic, Traffic, read_traffic
from suffice.store import reader
from suffice.store.engine import spool_base

_MAX_PROMOTIONS = 1000  # per route, the newest


def build_report(
    url: str,
    *,
    now_s: float,
    since_s: float | None = None,
    route: str | None = None,
    references: Mapping[str, Reference] | None = None,
) -> SavingsReport:
    """Return the report on what a store holds.

    Args:
        url: Of the store.
        now_s: Unix time at which the report is made.
        since_s: Unix time of the oldest request; `None` for no limit.
        route: Only this route.
        references: Route -> reference model, from `reference_models`; other routes use the best
            model by their recorded predictions.

    Raises:
        JobError: If there is nothing to report.
        StoreError: If there is no store, or it cannot be read.
    """
    traffic = read_traffic(url, since_s=since_s, route=route)
    if traffic.requests == 0:
        on_route = f" on route {route!r}" if route else ""
        in_time = " in that time" if since_s is not None else ""
        raise JobError(
            f"There is nothing to report: the store holds no request{on_route}{in_time}.",
            remedy="Send some traffic through suffice serve, or give another --since or --route.",
        )
    configured = references or {}
    routes = {
        name: _report_route(traffic.routes[name], configured.get(name))
        for name in sorted(traffic.routes)
    }
    changed = sorted({*traffic.routes, *configured}) if route is None else [route]
    report = _assemble(
        traffic,
        routes,
        made_s=now_s,
        since_s=since_s,
        route=route,
        events=_policy_changes(url, changed, traffic.first_s),
        warnings=_warnings(url, traffic, routes),
    )
    return msgspec.structs.replace(report, headline=headline(report))


def _assemble(
    traffic: Traffic,
    routes: Mapping[str, RouteReport],
    *,
    made_s: float,
    since_s: float | None,
    route: str | None,
    events: tuple[PolicyChange, ...],
    warnings: tuple[str, ...],
) -> SavingsReport:
    """Return the report without its headline."""
    return SavingsReport(
        made_s=made_s,
        since_s=since_s,
        route=route,
        first_s=traffic.first_s,
        last_s=traffic.last_s,
        requests=traffic.requests,
        spent_usd=traffic.spent_usd,
        cost_unknown=traffic.cost_unknown,
        bypass=sum(m.requests for m in traffic.named.values()),
        bypass_usd=float(sum(m.spent_usd for m in traffic.named.values())),
        bypass_models={
            model: NamedModelTotals(m.requests, m.spent_usd, m.cost_unknown)
            for model, m in sorted(traffic.named.items(), key=lambda item: -item[1].spent_usd)
        },
        audits=traffic.audits,
        audits_usd=traffic.audits_usd,
        routes=routes,
        mix=_mix(traffic),
        latency_s=_percentiles_by_model(traffic.latency_s),
        first_chunk_s=_percentiles_by_model(traffic.first_chunk_s),
        overhead_ms=_percentiles(traffic.overhead_ms),
        failed=traffic.failed,
        client_disconnects=traffic.client_disconnects,
        failovers=traffic.failovers,
        retried=traffic.retried,
        statuses={str(s): n for s, n in sorted(traffic.statuses.items())},
        calls=_calls(traffic),
        feedback={
            source: FeedbackTotals(s.kind, s.decisions, s.total / s.scores)
            for source, s in sorted(traffic.sources.items())
        },
        events=events,
        skipped=traffic.skipped,
        skipped_rows=tuple(traffic.skipped_rows),
        warnings=warnings,
    )


def _report_route(route: RouteTraffic, reference: Reference | None) -> RouteReport:
    requests = route.requests.arrays()
    reference = reference or best_predicted(route.models, requests)
    return RouteReport(
        decisions=route.decisions,
        answered=route.answered,
        compared=int((~np.isnan(requests.paid_usd)).sum()),
        sessions=route.groups,
        spent_usd=route.spent_usd,
        cost_unknown=route.cost_unknown,
        reference=reference.model,
        reference_reason=reference.reason,
        singles=single_model_costs(requests, route.models),
        quality=estimate_quality(route, requests, reference.model),
        policies=dict(route.policies.most_common()),
    )


def _percentiles(values: array[float]) -> Percentiles:
    numbers = np.array(values if len(values) else [0.0], np.float32)
    p50, p90, p95, p99 = (float(v) for v in np.percentile(numbers, [50, 90, 95, 99]))
    return Percentiles(len(values), p50, p90, p95, p99)


def _percentiles_by_model(values: Mapping[str, array[float]]) -> dict[str, Percentiles]:
    """Return the percentiles of each model, that with most values first."""
    ordered = sorted(values.items(), key=lambda item: -len(item[1]))
    return {model: _percentiles(v) for model, v in ordered}


def _mix(t: Traffic) -> TrafficMix:
    n = int((t.last_s - t.first_s) // t.bucket_s) + 1
    starts = [t.first_s + i * t.bucket_s for i in range(n)]
    models = sorted(t.latency_s, key=lambda m: -len(t.latency_s[m]))
    none: Counter[str] = Counter()
    return TrafficMix(
        t.bucket_s,
        tuple(starts),
        {m: tuple(t.answers.get(s, none)[m] for s in starts) for m in models},
        tuple(t.spent_usd_by_bucket.get(s, 0.0) for s in starts),
        tuple(t.failures[s] for s in starts),
    )


def _calls(t: Traffic) -> dict[str, CallTotals]:
    calls = {}
    for model in dict.fromkeys(a.model for a in t.attempts):
        attempts = [a for a in t.attempts if a.model == model]
        failed = [a for a in attempts if a.outcome not in ("ok", "cancelled")]
        known = all(a.attempts == a.cost_known for a in failed)
        calls[model] = CallTotals(
            sum(a.attempts for a in attempts),
            sum(a.attempts for a in failed),
            float(sum(a.cost_usd for a in failed)) if known else None,
            {a.outcome: a.attempts for a in sorted(attempts, key=lambda a: a.outcome)},
        )
    return dict(sorted(calls.items(), key=lambda item: -item[1].calls))


def _policy_changes(url: str, routes: list[str], since_s: float) -> tuple[PolicyChange, ...]:
    """Return promotions and rollbacks since the report's first request, oldest first."""
    with reader.open_registry(url) as registry:
        promotions = [
            p
            for route in routes
            for p in registry.promotions(route, _MAX_PROMOTIONS)
            if p.promoted_at_s >= since_s
        ]
    return tuple(
        PolicyChange(p.promoted_at_s, p.route, p.kind, p.version, p.previous, p.by, p.forced)
        for p in sorted(promotions, key=lambda p: p.generation)
    )


def _warnings(url: str, t: Traffic, routes: Mapping[str, RouteReport]) -> tuple[str, ...]:
    warnings = []
    spools = _spool_files(url)
    if spools:
        warnings.append(
            f"Records wait in files next to the store and are not in this report: "
            f"{', '.join(spools)}. The next start of suffice serve writes them."
        )
    if t.cost_unknown:
        warnings.append(
            f"The cost of {t.cost_unknown:,} of {t.requests:,} requests is unknown: at least the "
            "stated amount was spent."
        )
    if t.overruled:
        warnings.append(
            f"{t.overruled:,} decisions are in no estimate of quality: another model was put in "
            "front of the policy's choice."
        )
    warnings += [f"{name}: {w}" for name, r in routes.items() for w in r.quality.warnings]
    return tuple(warnings)


def _spool_files(url: str) -> list[str]:
    base = spool_base(url)
    if base is None:
        return []
    return sorted(
        p.name
        for p in base.parent.glob(f"{base.name}.*spool.jsonl")
        if p.is_file() and p.stat().st_size > 0
    )
