"""Execution: walks a plan. The only room with a clock."""

from __future__ import annotations

from .attempt import Reply, total_usd
from .breaker import Breaker, BreakerSettings
from .caller import Caller, OpenedReply, StreamEvent
from .engine import Engine
from .flow import Call, Flow, GiveUp, Wait
from .health import Health
from .implicit import WEIGHTS, Repeats, implicit_feedback

__all__ = [
    "Breaker",
    "BreakerSettings",
    "Call",
    "Caller",
    "Engine",
    "Flow",
    "GiveUp",
    "WEIGHTS",
    "Health",
    "OpenedReply",
    "Repeats",
    "Reply",
    "StreamEvent",
    "Wait",
    "implicit_feedback",
    "total_usd",
]
