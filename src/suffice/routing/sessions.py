"""What the router remembers of conversations."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from suffice.types import RequestRecord, Session

MAX_IDLE_S = 3600.0
PREFIX_CACHE_S = 300.0  # how long a provider is assumed to keep a prompt's prefix
MAX_SESSIONS = 20_000


class _Conversation(NamedTuple):
    model: str
    input_tokens: int
    seen_s: float  # unix time of the last answer
    failed: frozenset[str]  # models that failed in it


class SessionStore:
    """The last model of each conversation, bounded in number and in idle time."""

    def __init__(self) -> None:
        self._conversations: OrderedDict[str, _Conversation] = OrderedDict()

    def get(self, key: str | None, now_s: float) -> Session | None:
        """The conversation called `key`, or None if it is unknown or was idle too long."""
        conversation = self._conversations.get(key) if key is not None else None
        if conversation is None or key is None:
            return None
        idle_s = now_s - conversation.seen_s
        if idle_s > MAX_IDLE_S:
            del self._conversations[key]
            return None
        cached_tokens = conversation.input_tokens if idle_s <= PREFIX_CACHE_S else 0
        return Session(key, conversation.model, cached_tokens, conversation.failed)

    def observe(self, record: RequestRecord) -> None:
        """Remember the model that answered, and the models that failed before it."""
        key, model, features = record.session, record.model, record.features
        if key is None or model is None or features is None or record.status >= 400:
            return
        previous = self._conversations.get(key)
        failed = previous.failed if previous is not None else frozenset()
        if len(record.attempts) > 1:
            failed |= {a.model for a in record.attempts if a.outcome not in ("ok", "cancelled")}
        if failed:
            failed -= {model}
        self._conversations[key] = _Conversation(
            model, features.input_tokens, record.created_s, failed
        )
        if previous is not None:
            self._conversations.move_to_end(key)
        elif len(self._conversations) > MAX_SESSIONS:
            self._conversations.popitem(last=False)
