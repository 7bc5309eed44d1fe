"""Execution: walks a plan. The only room with a clock."""

from __future__ import annotations

from .breaker import Breaker, BreakerSettings
from .engine import Caller, Engine, OpenedReply, Reply, total_usd
from .flow import Call, Flow, GiveUp, Wait
from .health import Health

__all__ = [
    "Breaker",
    "BreakerSettings",
    "Call",
    "Caller",
    "Engine",
    "Flow",
    "GiveUp",
    "Health",
    "OpenedReply",
    "Reply",
    "Wait",
    "total_usd",
]
