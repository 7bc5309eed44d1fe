"""Execution: walks a plan with failover. The only package with a clock."""

from __future__ import annotations

from suffice.execution.attempt import CLIENT_DISCONNECTED, sum_cost_usd
from suffice.execution.caller import Caller, StreamEvent, UpstreamReply
from suffice.execution.circuit_breaker import CircuitBreaker, CircuitBreakerSettings
from suffice.execution.engine import Engine
from suffice.execution.latency import LatencyTracker
from suffice.execution.reply import Reply
from suffice.execution.retry import Call, Exhausted, FailoverFlow, Wait

__all__ = [
    "CLIENT_DISCONNECTED",
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
