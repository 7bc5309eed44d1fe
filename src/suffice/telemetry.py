"""What happened, handed to hooks. A hook that fails is logged once and never breaks a request."""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from suffice.types import Feedback, RequestRecord, TelemetryHook

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import LoggerProvider
    from prometheus_client.core import Metric

_log = logging.getLogger("suffice.telemetry")


@runtime_checkable
class FeedbackHook(Protocol):
    """A hook that also receives scores, on whichever thread stored them."""

    def feedback(self, feedback: Feedback) -> None:
        """A score was stored."""


class Telemetry:
    """Hands each record to every hook, and each score to the hooks that take scores.

    Scores also go to OpenTelemetry if its SDK is installed (extra `otel`).
    """

    def __init__(self, hooks: Iterable[TelemetryHook] = ()) -> None:
        self._hooks = list(hooks)
        self._feedback_hooks: list[FeedbackHook] | None = None
        self._failed: set[str] = set()

    def emit(self, record: RequestRecord) -> None:
        """Hand a record to every hook."""
        for hook in self._hooks:
            try:
                hook(record)
            except Exception as error:  # noqa: BLE001  a hook is foreign code; a request must not fail
                self._report(hook, error)

    def feedback(self, feedback: Feedback) -> None:
        """Hand a stored score to the hooks that take scores."""
        if self._feedback_hooks is None:
            # Now, not at start: OpenTelemetry takes 30 ms to import, and many send no feedback.
            hooks: list[object] = [*self._hooks, evaluations_hook()]
            self._feedback_hooks = [h for h in hooks if isinstance(h, FeedbackHook)]
        for hook in self._feedback_hooks:
            try:
                hook.feedback(feedback)
            except Exception as error:  # noqa: BLE001  a hook is foreign code; a request must not fail
                self._report(hook, error)

    def _report(self, hook: object, error: Exception) -> None:
        """Log the first failure of a hook."""
        name = repr(hook)
        if name not in self._failed:
            self._failed.add(name)
            _log.error("telemetry hook %s failed: %s", name, error, exc_info=error)


def evaluations_hook(logger_provider: LoggerProvider | None = None) -> FeedbackHook | None:
    """A hook that sends each score as OpenTelemetry's event `gen_ai.evaluation.result`.

    Args:
        logger_provider: None = the process's own, which `opentelemetry-instrument` sets up. Without
            one the events go nowhere.

    Returns:
        None if OpenTelemetry's SDK is not installed.
    """
    try:
        if find_spec("opentelemetry.sdk") is None:  # the API alone sends nothing anywhere
            return None
    except ImportError:
        return None
    return _Evaluations(logger_provider)


class _Evaluations:
    """Sends scores under the names of the GenAI semantic conventions (status Development).

    A comment is what a person wrote, so it is not sent.
    """

    def __init__(self, logger_provider: LoggerProvider | None) -> None:
        from opentelemetry._logs import get_logger

        self._logger = get_logger("suffice", logger_provider=logger_provider)

    def feedback(self, feedback: Feedback) -> None:
        attributes: dict[str, str | float] = {
            "gen_ai.evaluation.name": feedback.source,
            "gen_ai.evaluation.score.value": feedback.score,
            "suffice.decision.id": feedback.decision_id,
            "suffice.feedback.kind": feedback.kind,
            "suffice.feedback.weight": feedback.weight,
        }
        if feedback.verdict is not None:
            attributes["gen_ai.evaluation.score.label"] = feedback.verdict
        self._logger.emit(
            event_name="gen_ai.evaluation.result",
            timestamp=int(feedback.created_s * 1e9) or None,
            attributes=attributes,
        )


_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_OVERHEAD_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
# A source is what a client calls itself: others than these share one label, so that no client can
# fill the memory of the metrics server, or put a name of its users there.
_SOURCES = frozenset({"user", "test", "judge", "audit"})
_AUDIT_PREFIX = "audit:"  # before a route's name: calls that no client waited for
_BATCH = 64  # records that are counted together, while the code that counts is in the CPU's cache

Labels = tuple[str, ...]
Gauge = tuple[str, str, Mapping[str, float]]  # name, help, value by route


class Histogram:
    """Counts of observations by upper bound."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.sum += value
        self.counts[bisect_left(self.bounds, value)] += 1

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), as Prometheus has them."""
        buckets, total = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class Metrics:
    """A hook that counts, and renders Prometheus text at each scrape.

    Counting is plain dictionaries, in batches: prometheus-client, which costs 20 us per labelled
    observation, only renders.

    Attributes:
        gauges: asked at each scrape.
    """

    def __init__(self) -> None:
        self.gauges: Callable[[], Iterable[Gauge]] = tuple
        self._requests: dict[Labels, float] = defaultdict(float)
        self._attempts: dict[Labels, float] = defaultdict(float)
        self._cost_usd: dict[Labels, float] = defaultdict(float)
        self._cost_unknown: dict[Labels, float] = defaultdict(float)
        self._tokens: dict[Labels, float] = defaultdict(float)
        self._feedback: dict[Labels, float] = defaultdict(float)
        self._scores: dict[Labels, float] = defaultdict(float)
        self._audits: dict[Labels, float] = defaultdict(float)
        self._duration = Histogram(_BUCKETS_S)
        self._first_chunk = Histogram(_BUCKETS_S)
        self._overhead = Histogram(_OVERHEAD_BUCKETS_S)
        self._pending: deque[RequestRecord] = deque()
        self._lock = threading.Lock()  # scores and scrapes come from several threads

    def __call__(self, record: RequestRecord) -> None:
        """Take a record; it is counted before the next scrape."""
        self._pending.append(record)
        if len(self._pending) >= _BATCH:
            with self._lock:
                self._count_pending()

    def _count_pending(self) -> None:
        try:
            while True:
                self._count(self._pending.popleft())
        except IndexError:  # counted all; others may append meanwhile
            return

    def _count(self, record: RequestRecord) -> None:
        model, route = record.model or "none", record.decision.route
        self._requests[route, model, str(record.status)] += 1
        for attempt in record.attempts:
            self._attempts[attempt.model, attempt.outcome] += 1
        if record.cost_usd is None:
            self._cost_unknown[(model,)] += 1
        else:
            self._cost_usd[(model,)] += record.cost_usd
        usage = record.usage
        if usage is not None:
            self._tokens[model, "input"] += usage.input_tokens
            self._tokens[model, "output"] += usage.output_tokens
        if route.startswith(_AUDIT_PREFIX):
            return
        self._duration.observe(record.latency_s)
        self._overhead.observe(record.overhead_ms / 1e3)
        if record.first_chunk_s is not None:
            self._first_chunk.observe(record.first_chunk_s)

    def audited(self, route: str, outcome: str) -> None:
        """Count a decision that was sampled for an audit."""
        with self._lock:
            self._audits[route, outcome] += 1

    def feedback(self, feedback: Feedback) -> None:
        """Count a score."""
        listed = feedback.kind == "implicit" or feedback.source in _SOURCES
        source = feedback.source if listed else "other"
        with self._lock:
            self._feedback[source, feedback.kind] += 1
            self._scores[source, feedback.kind] += feedback.score

    def render(self) -> bytes:
        """Prometheus text format, version 0.0.4."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.registry import Collector

        with self._lock:
            self._count_pending()
        families = self._families

        class Families(Collector):
            def collect(self) -> Iterator[Metric]:
                return families()

        registry = CollectorRegistry()
        registry.register(Families())
        return generate_latest(registry)

    def _families(self) -> Iterator[Metric]:
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        for name, text, labels, values in self._counters():
            counter = CounterMetricFamily(name, text, labels=labels)
            for key, value in list(values.items()):
                counter.add_metric(key, value)
            yield counter
        for name, text, by_route in self.gauges():
            gauge = GaugeMetricFamily(name, text, labels=("route",))
            for route, number in by_route.items():
                gauge.add_metric([route], number)
            yield gauge
        for name, text, histogram in self._histograms():
            family = HistogramMetricFamily(name, text)
            family.add_metric([], histogram.buckets(), histogram.sum)
            yield family

    def _counters(self) -> tuple[tuple[str, str, Labels, dict[Labels, float]], ...]:
        """(name, help, names of labels, value by labels)."""
        return (
            ("suffice_requests", "Requests.", ("route", "model", "status"), self._requests),
            ("suffice_attempts", "Calls of models.", ("model", "outcome"), self._attempts),
            ("suffice_tokens", "Tokens.", ("model", "direction"), self._tokens),
            ("suffice_cost_usd", "USD at list prices.", ("model",), self._cost_usd),
            ("suffice_cost_unknown", "Requests of unknown cost.", ("model",), self._cost_unknown),
            ("suffice_feedback", "Scores received.", ("source", "kind"), self._feedback),
            ("suffice_feedback_score", "Sum of those scores.", ("source", "kind"), self._scores),
            ("suffice_audits", "Sampled for audit.", ("route", "outcome"), self._audits),
        )

    def _histograms(self) -> tuple[tuple[str, str, Histogram], ...]:
        """(name, help, histogram)."""
        return (
            ("suffice_request_duration_seconds", "Whole requests.", self._duration),
            ("suffice_first_chunk_seconds", "Time to the first chunk.", self._first_chunk),
            ("suffice_overhead_seconds", "Our own time before the upstream.", self._overhead),
        )
