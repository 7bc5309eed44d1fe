"""What happened, handed to hooks. A hook that fails is logged once and never breaks a request."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any, Protocol, runtime_checkable

from suffice.types import Feedback, RequestRecord, TelemetryHook

_log = logging.getLogger("suffice.telemetry")


@runtime_checkable
class FeedbackHook(Protocol):
    """A hook that also wants to hear of scores, from whatever thread stored them."""

    def feedback(self, feedback: Feedback) -> None: ...


class Telemetry:
    """Hands each Record to every hook, and each score to those that have a method for it.

    Scores also go to OpenTelemetry, where its SDK is installed (extra `otel`).
    """

    def __init__(self, hooks: Iterable[TelemetryHook] = ()) -> None:
        self._hooks = list(hooks)
        self._feedback_hooks: list[FeedbackHook] | None = None
        self._told: set[int] = set()

    def emit(self, record: RequestRecord) -> None:
        for hook in self._hooks:
            self._hand(hook, hook, record)

    def feedback(self, feedback: Feedback) -> None:
        """Hand a stored score to the hooks that want it."""
        if self._feedback_hooks is None:
            # Now, not at start: OpenTelemetry takes 30 ms to import, and many send no feedback.
            hooks: list[object] = [*self._hooks, evaluations_hook()]
            self._feedback_hooks = [h for h in hooks if isinstance(h, FeedbackHook)]
        for hook in self._feedback_hooks:
            self._hand(hook, hook.feedback, feedback)

    def _hand(self, hook: object, call: Callable[[Any], None], what: Any) -> None:
        try:
            call(what)
        except Exception as error:  # a hook is foreign code; a request must not die of it
            if id(hook) not in self._told:
                self._told.add(id(hook))
                _log.error("telemetry hook %r failed: %s", hook, error, exc_info=error)


def evaluations_hook(logger_provider: Any = None) -> FeedbackHook | None:
    """A hook that sends each score as OpenTelemetry's event `gen_ai.evaluation.result`; None where
    its SDK is not installed.

    logger_provider: an `opentelemetry.sdk._logs.LoggerProvider`; None = the process's own, which
    `opentelemetry-instrument` sets up. Without one the events go nowhere.
    """
    try:
        if find_spec("opentelemetry.sdk") is None:  # the API alone sends nothing anywhere
            return None
        from opentelemetry._logs import get_logger
    except ImportError:
        return None
    return _Evaluations(get_logger("suffice", logger_provider=logger_provider))


class _Evaluations:
    """Names are those of the GenAI semantic conventions (status Development). A comment is what a
    person wrote, so it is not sent."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def feedback(self, f: Feedback) -> None:
        attributes = {
            "gen_ai.evaluation.name": f.source,
            "gen_ai.evaluation.score.value": f.score,
            "suffice.decision.id": f.decision_id,
            "suffice.feedback.kind": f.kind,
            "suffice.feedback.weight": f.weight,
        }
        if f.verdict is not None:
            attributes["gen_ai.evaluation.score.label"] = f.verdict
        self._logger.emit(
            event_name="gen_ai.evaluation.result",
            timestamp=int(f.created_s * 1e9) or None,
            attributes=attributes,
        )


_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
# A source is what a client says it is: others than these share one label, so that no client can
# fill the memory of whoever scrapes, or put a name of its users there.
_SOURCES = frozenset({"user", "test", "judge", "audit"})
_AUDITS = "audit:"  # before a route's name: calls that no client waited for
_OVERHEAD_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)


class _Histogram:
    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.sum += value
        for i, bound in enumerate(self.bounds):
            if value <= bound:
                self.counts[i] += 1
                return
        self.counts[-1] += 1


class Metrics:
    """A hook that counts, and renders Prometheus text at each scrape.

    Counting is plain dictionaries: prometheus-client, which costs 20 us a labelled observation, is
    asked only to render.
    """

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, str], int] = defaultdict(int)
        self._attempts: dict[tuple[str, str], int] = defaultdict(int)
        self._cost: dict[str, float] = defaultdict(float)
        self._unknown: dict[str, int] = defaultdict(int)
        self._tokens: dict[tuple[str, str], int] = defaultdict(int)
        self._feedback: dict[tuple[str, str], int] = defaultdict(int)
        self._scores: dict[tuple[str, str], float] = defaultdict(float)
        self._audits: dict[tuple[str, str], int] = defaultdict(int)
        # (name, help, value by route) of what is asked for at each scrape.
        self.gauges: Callable[[], Iterable[tuple[str, str, dict[str, float]]]] = tuple
        self._lock = threading.Lock()  # scores come from several threads, records from one
        self._duration = _Histogram(_BUCKETS_S)
        self._first_chunk = _Histogram(_BUCKETS_S)
        self._overhead = _Histogram(_OVERHEAD_S)

    def __call__(self, r: RequestRecord) -> None:
        model = r.model or "none"
        self._requests[r.decision.route, model, str(r.status)] += 1
        for a in r.attempts:
            self._attempts[a.model, a.outcome] += 1
        if r.cost_usd is None:
            self._unknown[model] += 1
        else:
            self._cost[model] += r.cost_usd
        u = r.usage
        if u is not None:
            self._tokens[model, "input"] += u.input_tokens
            self._tokens[model, "output"] += u.output_tokens
        if r.decision.route.startswith(_AUDITS):
            return
        self._duration.observe(r.latency_s)
        self._overhead.observe(r.overhead_ms / 1e3)
        if r.first_chunk_s is not None:
            self._first_chunk.observe(r.first_chunk_s)

    def audited(self, route: str, outcome: str) -> None:
        self._audits[route, outcome] += 1

    def feedback(self, f: Feedback) -> None:
        source = f.source if f.kind == "implicit" or f.source in _SOURCES else "other"
        with self._lock:
            self._feedback[source, f.kind] += 1
            self._scores[source, f.kind] += f.score

    def render(self) -> bytes:
        """Prometheus text format, version 0.0.4."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
            Metric,
        )

        counters = (
            ("suffice_requests", "Requests.", ("route", "model", "status"), self._requests),
            ("suffice_attempts", "Calls of models.", ("model", "outcome"), self._attempts),
            ("suffice_tokens", "Tokens.", ("model", "direction"), self._tokens),
            ("suffice_cost_usd", "USD at list prices.", ("model",), self._cost),
            ("suffice_cost_unknown", "Requests of unknown cost.", ("model",), self._unknown),
            ("suffice_feedback", "Scores received.", ("source", "kind"), self._feedback),
            ("suffice_feedback_score", "Sum of those scores.", ("source", "kind"), self._scores),
            ("suffice_audits", "Drawn for audit.", ("route", "outcome"), self._audits),
        )
        histograms = (
            ("suffice_request_duration_seconds", "Whole requests.", self._duration),
            ("suffice_first_chunk_seconds", "Time to the first chunk.", self._first_chunk),
            ("suffice_overhead_seconds", "Our own time before the upstream.", self._overhead),
        )

        gauges = self.gauges

        class Collector:
            def collect(self) -> Iterable[Metric]:
                for name, text, labels, values in counters:
                    family = CounterMetricFamily(name, text, labels=labels)
                    for key, value in list(values.items()):
                        family.add_metric([key] if isinstance(key, str) else list(key), value)
                    yield family
                for name, text, by_route in gauges():
                    gauge = GaugeMetricFamily(name, text, labels=("route",))
                    for route, number in by_route.items():
                        gauge.add_metric([route], number)
                    yield gauge
                for name, text, h in histograms:
                    total, buckets = 0, []
                    for bound, count in zip((*h.bounds, float("inf")), h.counts, strict=True):
                        total += count
                        buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
                    shown = HistogramMetricFamily(name, text)
                    shown.add_metric([], buckets, h.sum)
                    yield shown

        registry = CollectorRegistry()
        registry.register(Collector())
        return generate_latest(registry)
