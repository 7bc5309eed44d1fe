"""Telemetry: a broken hook breaks nothing, and the numbers add up in Prometheus's own parser."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from importlib.util import find_spec
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.common import require

from suffice.telemetry import FeedbackHook, Metrics, Telemetry, evaluations_hook
from suffice.types import Attempt, Decision, Feedback, Objective, PlanStep, RequestRecord, Usage


def record(**more: Any) -> RequestRecord:
    decision = Decision(
        id="dec_1",
        model="p/a",
        plan=(PlanStep("p/a"),),
        predictions=(),
        reason="p/a: because.",
        policy="default",
        policy_version="1",
        objective=Objective(kind="best"),
        basis="prior",
        route='au"to\n',
    )
    fields: dict[str, Any] = {
        "attempts": (
            Attempt("p/a", 1, "overloaded", 1.0, 0.1, status=503),
            Attempt("p/b", 2, "ok", 1.1, 0.2, status=200),
        ),
        "created_s": 1.0,
        "request_id": "r",
        "status": 200,
        "model": "p/b",
        "usage": Usage(input_tokens=10, output_tokens=5),
        "cost_usd": 0.25,
        "latency_s": 0.3,
        "overhead_ms": 0.2,
    }
    return RequestRecord(decision=decision, **{**fields, **more})


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.render().decode()
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_a_failing_hook_is_told_once_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[RequestRecord] = []

    def broken(_: RequestRecord) -> None:
        raise RuntimeError("the collector is away")

    telemetry = Telemetry([broken, seen.append])
    with caplog.at_level(logging.ERROR, logger="suffice.telemetry"):
        for _ in range(3):
            telemetry.emit(record())
    assert len(seen) == 3
    assert caplog.text.count("telemetry hook") == 1
    assert "the collector is away" in caplog.text


def test_counters_add_up() -> None:
    metrics = Metrics()
    metrics(record())
    metrics(record())
    metrics(record(model=None, status=502, usage=None, cost_usd=None))
    got = samples(metrics)
    route = ("route", 'au"to\n')
    assert got["suffice_requests_total", (("model", "p/b"), route, ("status", "200"))] == 2
    assert got["suffice_requests_total", (("model", "none"), route, ("status", "502"))] == 1
    assert got["suffice_attempts_total", (("model", "p/a"), ("outcome", "overloaded"))] == 3
    assert got["suffice_tokens_total", (("direction", "input"), ("model", "p/b"))] == 20
    assert got["suffice_cost_usd_total", (("model", "p/b"),)] == pytest.approx(0.5)
    assert got["suffice_cost_unknown_total", (("model", "none"),)] == 1


def test_an_unknown_cost_is_never_counted_as_zero() -> None:
    metrics = Metrics()
    metrics(record(cost_usd=None))
    assert not any(name == "suffice_cost_usd_total" for name, _ in samples(metrics))


def test_histograms_are_cumulative_and_hold_every_observation() -> None:
    metrics = Metrics()
    for latency_s in (0.05, 0.3, 7.0, 10_000.0):  # on a bound, between, above all
        metrics(record(latency_s=latency_s, first_chunk_s=None))
    got = samples(metrics)

    def bucket(le: str) -> float:
        return got["suffice_request_duration_seconds_bucket", (("le", le),)]

    assert bucket("0.05") == 1
    assert bucket("0.5") == 2
    assert bucket("10.0") == 3
    assert bucket("600.0") == 3
    assert bucket("+Inf") == 4
    assert got["suffice_request_duration_seconds_count", ()] == 4
    assert got["suffice_request_duration_seconds_sum", ()] == pytest.approx(10_007.35)
    assert got["suffice_first_chunk_seconds_count", ()] == 0, "no chunk, no observation"
    assert got["suffice_overhead_seconds_bucket", (("le", "0.00025"),)] == 4


def test_a_scrape_before_any_request_is_valid() -> None:
    got = samples(Metrics())
    assert got["suffice_request_duration_seconds_count", ()] == 0


def score(value: float, **more: Any) -> Feedback:
    return Feedback(decision_id="dec_1", score=value, created_s=5.0, **more)


def test_scores_go_to_the_hooks_that_want_them(caplog: pytest.LogCaptureFixture) -> None:
    class Listens:
        def __init__(self) -> None:
            self.heard: list[Feedback] = []

        def __call__(self, record: RequestRecord) -> None:
            pass

        def feedback(self, f: Feedback) -> None:
            self.heard.append(f)
            if f.score < 0.5:
                raise RuntimeError("deaf now")

    first, second, deaf = Listens(), Listens(), list[RequestRecord]()
    telemetry = Telemetry([first, deaf.append, second])
    with caplog.at_level(logging.ERROR, logger="suffice.telemetry"):
        for value in (1.0, 0.0, 0.25):
            telemetry.feedback(score(value))
    assert [f.score for f in first.heard] == [f.score for f in second.heard] == [1.0, 0.0, 0.25]
    assert caplog.text.count("deaf now") >= 2, "told once for each"
    assert deaf == []


def test_sources_are_counted_and_unknown_ones_share_a_label() -> None:
    metrics = Metrics()
    for i in range(1000):
        metrics.feedback(score(1.0, source=f"user-{i}"))
    metrics.feedback(score(0.25))
    metrics.feedback(score(0.5))
    metrics.feedback(score(0.0, source="implicit:schema", kind="implicit"))
    got = {k: v for k, v in samples(metrics).items() if k[0].startswith("suffice_feedback")}

    def labels(source: str, kind: str = "explicit") -> tuple[tuple[str, str], ...]:
        return (("kind", kind), ("source", source))

    assert got == {
        ("suffice_feedback_total", labels("other")): 1000,
        ("suffice_feedback_total", labels("user")): 2,
        ("suffice_feedback_total", labels("implicit:schema", "implicit")): 1,
        ("suffice_feedback_score_total", labels("other")): 1000,
        ("suffice_feedback_score_total", labels("user")): 0.75,
        ("suffice_feedback_score_total", labels("implicit:schema", "implicit")): 0,
    }


def test_scores_from_many_threads_are_all_counted() -> None:
    metrics = Metrics()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda: [metrics.feedback(score(1.0)) for _ in range(2000)])
            for _ in range(4)
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(before)
    key = (("kind", "explicit"), ("source", "user"))
    assert samples(metrics)["suffice_feedback_total", key] == 8000


def test_without_opentelemetry_there_is_no_hook_and_no_complaint() -> None:
    code = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
from suffice.telemetry import Metrics, Telemetry, evaluations_hook
from suffice.types import Feedback
assert evaluations_hook() is None
metrics = Metrics()
Telemetry([metrics]).feedback(Feedback(decision_id="d", score=1.0))
assert b"suffice_feedback_total" in metrics.render()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_score_is_an_opentelemetry_evaluation_result() -> None:
    require("otel", find_spec("opentelemetry.sdk") is not None if find_spec("opentelemetry") else False,
            "opentelemetry-sdk is not installed")  # fmt: skip
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import (
        InMemoryLogRecordExporter,
        SimpleLogRecordProcessor,
    )

    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    hook = evaluations_hook(provider)
    assert isinstance(hook, FeedbackHook)
    hook.feedback(score(0.0, source="judge", verdict="bad", comment="what a person wrote"))
    hook.feedback(score(0.5))
    provider.shutdown()
    first, second = (r.log_record for r in exporter.get_finished_logs())
    assert first.event_name == "gen_ai.evaluation.result"
    assert first.timestamp == 5_000_000_000
    assert dict(first.attributes) == {
        "gen_ai.evaluation.name": "judge",
        "gen_ai.evaluation.score.value": 0.0,
        "gen_ai.evaluation.score.label": "bad",
        "suffice.decision.id": "dec_1",
        "suffice.feedback.kind": "explicit",
        "suffice.feedback.weight": 1.0,
    }
    assert "gen_ai.evaluation.score.label" not in second.attributes
