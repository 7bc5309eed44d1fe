"""Features: a query as float32 numbers. The one place where text becomes numbers, for serving and
training alike.

>>> x = extract_text("What's the weather today?")
>>> dict(explain(x))["lookup"] > 0
True
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from math import log1p
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.features import embedding, wordpiece
from suffice.features.signals import SIGNAL_NAMES, ask_signals, estimate_tokens, to_array
from suffice.features.user_message import Ask, human_asks, is_follow_up
from suffice.types import Features, Message

__all__ = [
    "DIMENSIONS",
    "SCHEMA",
    "SIGNAL_NAMES",
    "scored_texts",
    "compile_heads",
    "embed",
    "explain",
    "explain_vector",
    "extract",
    "extract_text",
    "feature_scaler",
    "embedding_version",
    "vector",
    "vector_variance",
]

SCHEMA = "ask-5"  # changes whenever the same text would give other numbers
DIMENSIONS = embedding.DIMENSIONS

_PROMPT = SIGNAL_NAMES.index("log_prompt_tokens")
_TURNS = SIGNAL_NAMES.index("turns")
_TOOLS = SIGNAL_NAMES.index("tools")
# Not told of: another length, and a share that all prose has much of.
_UNTOLD = frozenset(("stem", "stop_words"))
_NO_ASK = Ask("", 0, 0, 0, False)
_MESSAGE_TOKENS = 4  # what the chat template adds to each message
_IMAGE_TOKENS = 800  # about what providers bill for a picture of medium size
_AUDIO_TOKENS = 1500


def extract(messages: Sequence[Message], *, extra_tokens: int = 0, tools: int = 0) -> Features:
    """Features of a conversation.

    messages: canonical, oldest first. extra_tokens: estimate for what is not in them (tool schemas,
    response format). tools: how many tools are offered.

    The signals are those of the last human ask. A short follow-up inherits: each signal is the
    larger of its own and those of the asks before it, back to the last that stands by itself.
    """
    human_turns = 0
    prompt_tokens = float(extra_tokens)
    total_chars = 0
    for m in messages:
        total_chars += len(m.text)
        prompt_tokens += estimate_tokens(m.text) + _MESSAGE_TOKENS
        if m.images or m.audio:
            prompt_tokens += m.images * _IMAGE_TOKENS + m.audio * _AUDIO_TOKENS
        if m.role == "user" and not m.is_tool_result:
            human_turns += 1
    asks = _standing(messages, human_turns)
    ask = asks[0]
    pieces = wordpiece.load_default()
    values, ids = ask_signals(ask, pieces)
    ask_tokens = values[1]
    for earlier in asks[1:]:
        before, more = ask_signals(earlier, pieces)
        values = list(map(max, values, before))
        ids += more
    values[_PROMPT] = log1p(prompt_tokens)
    values[_TURNS] = log1p(max(0, human_turns - 1))
    values[_TOOLS] = log1p(tools)
    last = messages[-1] if messages else None
    return Features(
        signals=to_array(values),
        user_message_chars=ask.chars,
        user_message_tokens=int(np.expm1(ask_tokens)) if ask_tokens else 0,
        input_tokens=int(prompt_tokens) + 1,
        human_turns=max(1, human_turns),
        follow_up=len(asks) > 1,
        in_tool_loop=last is not None and last.is_tool_result,
        context_chars=max(0, total_chars - ask.chars),
        # By way of array: a third of what NumPy takes to read a list.
        token_ids=np.frombuffer(array("i", ids), np.int32),
        schema=SCHEMA,
    )


def _standing(messages: Sequence[Message], human_turns: int) -> list[Ask]:
    """The last human ask and, where it only makes sense with them, those before it, newest first,
    back to one that stands by itself."""
    asks = human_asks(messages, 4 if human_turns > 1 else 1)
    if not asks:
        return [_NO_ASK]
    for n, ask in enumerate(asks):
        if n == len(asks) - 1 or not is_follow_up(ask):
            return asks[: n + 1]
    return asks


def scored_texts(messages: Sequence[Message]) -> list[str]:
    """The texts that signals and token ids are made from, newest first."""
    human_turns = sum(1 for m in messages if m.role == "user" and not m.is_tool_result)
    return [ask.text for ask in _standing(messages, human_turns)]


def embed(features: Features) -> NDArray[np.float32]:
    """float32 (DIMENSIONS,): the ask as a point. Raises ValueError for features that were recorded
    without it."""
    if features.embedding is not None:
        return features.embedding
    if features.token_ids is None:
        raise ValueError("features: hold neither token ids nor an embedding")
    return embedding.load_default().embed(features.token_ids)


def compile_heads(heads: NDArray[np.floating]) -> NDArray[np.float32]:
    """heads (DIMENSIONS, h), linear in `embed`, as one row a token: float32 (n_tokens, h + 1), the
    token's weight in the last column. A head's value is the sum of the rows of an ask's ids over
    the sum of their weights."""
    return embedding.load_default().compile_heads(heads)


def extract_text(prompt: str) -> Features:
    """Features of a single prompt, as tables of queries hold them."""
    return extract((Message("user", prompt),))


@cache
def feature_scaler() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(mean, deviation) of each signal over training prompts, float32 (n_signals,) each: what
    everything that learns standardises by (scripts/build_standard.py)."""
    raw = _scaler_file()
    deviation = np.array(raw["deviation"], np.float32)
    # Heads are learned from single prompts, where the whole prompt is as long as the ask. Behind a
    # long system prompt or an agent's history it is not, and says nothing of how hard the ask is:
    # standardised to nothing, these cannot decide.
    deviation[[_PROMPT, _TURNS, _TOOLS]] = 1e9
    return np.array(raw["mean"], np.float32), deviation


def vector_variance() -> NDArray[np.float64]:
    """(DIMENSIONS,) variance of each dimension of the embedding over training prompts."""
    return np.array(_scaler_file()["vector_variance"], float)


def _scaler_file() -> Any:
    return msgspec.json.decode(files(__package__).joinpath("standard.json").read_bytes())


def embedding_version() -> str:
    """Which token table the embedding comes from: learned weights belong to one."""
    return embedding.load_default().digest[:16]


def vector(features: Features) -> NDArray[np.float32]:
    """float32 (n_signals,): what is stored with a decision and learned from."""
    return features.signals


def explain(features: Features, top: int = 5) -> tuple[tuple[str, float], ...]:
    """The `top` signals that stand out most, as (name, value), strongest first. The length always
    leads, because it carries most of what is known without labels."""
    return explain_vector(features.signals.tolist(), top)


def explain_vector(s: Sequence[float], top: int = 5) -> tuple[tuple[str, float], ...]:
    """`explain` for a stored vector, (n_signals,)."""
    pairs = [
        (n, round(v, 3))
        for n, v in zip(SIGNAL_NAMES[2:_PROMPT], s[2:_PROMPT], strict=True)
        if v and n not in _UNTOLD
    ]
    pairs.sort(key=lambda p: -p[1])
    return ((SIGNAL_NAMES[0], round(s[0], 3)), *pairs[: top - 1])
