"""The savings report as frozen records: the shape of `suffice report --json`."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from suffice.lab.savings.counterfactual_cost import SingleModelCost
from suffice.lab.savings.quality import Quality


class Percentiles(msgspec.Struct, frozen=True):
    """Percentiles of n values."""

    n: int
    p50: float
    p90: float
    p95: float
    p99: float


class TrafficMix(msgspec.Struct, frozen=True):
    """Requests over t time buckets.

    Attributes:
        bucket_s: Length of a bucket in seconds.
        starts_s: (t,) Unix time of each bucket's start.
        models: Model -> (t,) requests that it answered.
        spent_usd, failed: (t,) USD and failed requests.
    """

    bucket_s: float
    starts_s: tuple[float, ...]
    models: Mapping[str, tuple[int, ...]]
    spent_usd: tuple[float, ...]
    failed: tuple[int, ...]


class CallTotals(msgspec.Struct, frozen=True):
    """Calls of one model.

    Attributes:
        calls, failed: Numbers of calls.
        wasted_usd: Cost of failed calls; `None` if some of them are of unknown cost.
        outcomes: "ok" or the kind of failure -> calls.
    """

    calls: int
    failed: int
    wasted_usd: float | None
    outcomes: Mapping[str, int]


class NamedModelTotals(msgspec.Struct, frozen=True):
    """Requests that named one model; `spent_usd` is without the `cost_unknown` ones."""

    requests: int
    spent_usd: float
    cost_unknown: int


class FeedbackTotals(msgspec.Struct, frozen=True):
    """Current feedback of one source: decisions that it scored, and its mean score."""

    kind: str
    decisions: int
    mean: float


class PolicyChange(msgspec.Struct, frozen=True):
    """A promotion or a rollback. `version`: current from then on; `None` = the configured policy."""

    at_s: float
    route: str
    kind: str
    version: str | None
    previous: str | None
    by: str
    forced: bool


class RouteReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one route's policy decided.

    Attributes:
        decisions, answered: Numbers of requests.
        compared: Answered requests of known cost, which `singles` are about.
        sessions: Number of sessions; large stores count up to 2048.
        spent_usd: Without the `cost_unknown` requests.
        reference, reference_reason: The reference model, and why (JSON key `reference_why`).
        singles: Model -> its cost alone.
        quality: Against the reference.
        policies: Name and version -> decisions.
    """

    decisions: int
    answered: int
    compared: int
    sessions: int
    spent_usd: float
    cost_unknown: int
    reference: str
    reference_reason: str = msgspec.field(name="reference_why")
    singles: Mapping[str, SingleModelCost]
    quality: Quality
    policies: Mapping[str, int]

    @property
    def has_partial_coverage(self) -> bool:
        """Whether some model could have taken only part of the requests."""
        return any(s.coverage > 0 and not s.covers_all for s in self.singles.values())


class SavingsReport(msgspec.Struct, frozen=True, kw_only=True):
    """The object that `suffice report --json` prints.

    Costs are in USD, times are Unix times, durations are in seconds unless the name says otherwise.

    Attributes:
        headline: The result in sentences.
        made_s, since_s, route: When the report was made, and its filters.
        first_s, last_s: First and last request.
        spent_usd: Without the `cost_unknown` requests.
        bypass, bypass_usd: Requests that named a model; no policy decided them.
        bypass_models: Model -> the requests that named it.
        audits, audits_usd: Calls that audited some requests; not part of requests and spend.
        routes: By name.
        mix, latency_s, first_chunk_s, overhead_ms: Over time and by model.
        failed, client_disconnects, failovers, retried, statuses: Numbers of requests.
        calls: Model -> its calls.
        feedback: Source -> its feedback.
        events: Promotions and rollbacks, oldest first.
        skipped, skipped_rows: Rows that cannot be read; the first few with the reason.
        warnings: What limits the figures.
    """

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
    bypass_models: Mapping[str, NamedModelTotals]
    audits: int
    audits_usd: float
    routes: Mapping[str, RouteReport]
    mix: TrafficMix
    latency_s: Mapping[str, Percentiles]
    first_chunk_s: Mapping[str, Percentiles]
    overhead_ms: Percentiles
    failed: int
    client_disconnects: int = msgspec.field(name="client_left")
    failovers: int
    retried: int
    statuses: Mapping[str, int]
    calls: Mapping[str, CallTotals]
    feedback: Mapping[str, FeedbackTotals]
    events: tuple[PolicyChange, ...]
    skipped: int
    skipped_rows: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
