"""Execution: walks a plan. The only room with a clock."""

from __future__ import annotations

from suffice.execution.attempt import Reply, sum_cost_usd
from suffice.execution.caller import Caller, StreamEvent, UpstreamReply
from suffice.execution.circuit_breaker import CircuitBreaker, CircuitBreakerSettings
from suffice.execution.engine import Engine
from suffice.execution.latency import LatencyTracker
from suffice.execution.retry import Call, Exhausted, FailoverFlow, Wait

__all__ = [
    "CircuitBreaker",
    "CircuitBreakerSettings",
    "Call",
    "Caller",
    "Engine",
    "FailoverFlow",
    "Exhausted",
    "LatencyTracker",
    "UpstreamReply",
    "Reply",
    "StreamEvent",
    "Wait",
    "sum_cost_usd",
]
