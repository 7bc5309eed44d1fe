"""Execution: walks a plan. The only room with a clock."""

from __future__ import annotations

from .attempt import Reply, total_usd
from .breaker import Breaker, BreakerSettings
from .caller import Caller, OpenedReply, StreamEvent
from .engine import Engine
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
    "StreamEvent",
    "Wait",
    "total_usd",
]
