"""Wire formats, pure and in both directions: one file per dialect and direction."""

from __future__ import annotations

from collections.abc import Mapping

from suffice.dialects.base import (
    Dialect,
    Event,
    ParsedReply,
    StreamedReply,
    StreamParser,
    WholeReply,
    open_response,
)
from suffice.dialects.openai_chat import OpenAIChat

# A new dialect is one file and one row here. Values are factories, because a dialect caches parts
# of its deployments' requests: each router owns its dialects.
DIALECTS: Mapping[str, type[Dialect]] = {"openai": OpenAIChat}

__all__ = [
    "DIALECTS",
    "Dialect",
    "Event",
    "OpenAIChat",
    "ParsedReply",
    "StreamParser",
    "StreamedReply",
    "WholeReply",
    "open_response",
]
