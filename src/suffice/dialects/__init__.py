"""Wire formats, pure and in both directions: one file per dialect and direction."""

from __future__ import annotations

from collections.abc import Mapping

from suffice.dialects.base import (
    Dialect,
    Event,
    ParsedReply,
    StreamParser,
    UpstreamResponse,
    open_response,
)
from suffice.dialects.openai_chat import OpenAIChat

# A new dialect is one file and one line here. Values are factories: a dialect keeps the static
# part of its targets' requests, so that each router owns its own.
DIALECTS: Mapping[str, type[Dialect]] = {"openai": OpenAIChat}

__all__ = [
    "DIALECTS",
    "Dialect",
    "Event",
    "OpenAIChat",
    "UpstreamResponse",
    "ParsedReply",
    "StreamParser",
    "open_response",
]
