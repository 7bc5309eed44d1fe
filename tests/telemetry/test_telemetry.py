"""Telemetry: a broken hook breaks nothing, and the numbers add up in Prometheus's own parser."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from suffice.telemetry import Metrics, Telemetry
from suffice.types import Attempt, Decision, Objective, Record, Step, Usage


def record(**more: Any) -> Record:
    decision = Decision(
        id="dec_1",
        model="p/a",
        plan=(Step("p/a"),),
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
    return Record(decision=decision, **{**fields, **more})


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.render().decode()
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_a_failing_hook_is_told_once_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Record] = []

    def broken(_: Record) -> None:
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
