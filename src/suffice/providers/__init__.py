"""Providers: wire dialects and the transport beneath them. Providers themselves are data rows."""

from __future__ import annotations

from collections.abc import Mapping

from .dialect import Dialect, Event, Opened, ReplyFacts, StreamParser, opened
from .openai_chat import OpenAIChat
from .registry import KNOWN

# A new dialect is one file and one line here. Values are factories: a dialect keeps the static
# part of its targets' requests, so that each router owns its own.
DIALECTS: Mapping[str, type[Dialect]] = {"openai": OpenAIChat}

__all__ = [
    "DIALECTS",
    "KNOWN",
    "Dialect",
    "Event",
    "OpenAIChat",
    "Opened",
    "ReplyFacts",
    "StreamParser",
    "opened",
]
