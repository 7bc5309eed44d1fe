"""Turns a query into float32 numbers. The only place where text becomes numbers.

Serving and training use the same functions.

>>> x = extract_text("What's the weather today?")
>>> dict(explain(x))["lookup"] > 0
True
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import expm1, log1p
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.features import embedding
from suffice.features.signals import (
    SIGNAL_NAMES,
    count_chunk,
    estimate_tokens,
    message_signals,
)
from suffice.features.user_message import UserMessage, messages_to_score
from suffice.features.wordpiece import WordPiece, load_vocabulary
from suffice.types import Features, Message

__all__ = [
    "DIMENSIONS",
    "SCHEMA",
    "SIGNAL_NAMES",
    "compile_heads",
    "embed",
    "embedding_version",
    "explain",
    "explain_vector",
    "extract",
    "extract_text",
    "feature_scaler",
    "scored_texts",
    "tokenizer",
    "vector_variance",
]

SCHEMA = "ask-5"  # changes whenever the same text would give other numbers
DIMENSIONS = embedding.DIMENSIONS

_PROMPT = SIGNAL_NAMES.index("log_prompt_tokens")
_TURNS = SIGNAL_NAMES.index("turns")
_TOOLS = SIGNAL_NAMES.index("tools")
# Left out of explanations: another length, and a share that is high in all prose.
_UNEXPLAINED = frozenset(("stem", "stop_words"))
_NO_MESSAGE = UserMessage("", 0, 0, 0, False, [])
_MAX_SCORED = 4  # messages: a follow-up and those before it
_MESSAGE_TOKENS = 4  # what the chat template adds to each message
_IMAGE_TOKENS = 800  # about what providers bill for a picture of medium size
_AUDIO_TOKENS = 1500


@cache
def tokenizer() -> WordPiece:
    """The tokenizer of the shipped embedding, which counts the signals of each chunk as well."""
    return WordPiece(load_vocabulary(), count_chunk)


def extract(messages: Sequence[Message], *, extra_tokens: int = 0, tools: int = 0) -> Features:
    """Features of a conversation.

    The signals are those of the last user message. A short follow-up inherits: each signal is the
    largest over this message and those before it, back to the last that is not a follow-up.

    Args:
        messages: canonical, oldest first.
        extra_tokens: estimate for what the messages do not hold (tool schemas, response format).
        tools: the number of tools offered.

    Returns:
        The features, without an embedding: `embed` makes it when it is needed.
    """
    human_turns = 0
    prompt_tokens = float(extra_tokens)
    total_chars = 0
    for m in messages:
        text = m.text
        total_chars += len(text)
        prompt_tokens += estimate_tokens(text) + _MESSAGE_TOKENS
        if m.images or m.audio:
            prompt_tokens += m.images * _IMAGE_TOKENS + m.audio * _AUDIO_TOKENS
        if m.role == "user" and not m.is_tool_result:
            human_turns += 1
    scored = messages_to_score(messages, _MAX_SCORED if human_turns > 1 else 1)
    message = scored[0] if scored else _NO_MESSAGE
    pieces = tokenizer()
    values, ids = message_signals(message, pieces)
    log_tokens = values[1]
    for earlier in scored[1:]:
        before, more = message_signals(earlier, pieces)
        values = list(map(max, values, before))
        ids += more
    values[_PROMPT] = log1p(prompt_tokens)
    values[_TURNS] = log1p(max(0, human_turns - 1))
    values[_TOOLS] = log1p(tools)
    return Features(
        signals=np.array(values, np.float32),
        user_message_chars=message.chars,
        user_message_tokens=int(expm1(log_tokens)),
        input_tokens=int(prompt_tokens) + 1,
        human_turns=max(1, human_turns),
        follow_up=len(scored) > 1,
        in_tool_loop=bool(messages) and messages[-1].is_tool_result,
        context_chars=max(0, total_chars - message.chars),
        token_ids=np.frombuffer(ids, np.int32),
        schema=SCHEMA,
    )


def extract_text(prompt: str) -> Features:
    """Features of a single prompt, as tables of queries hold them."""
    return extract((Message("user", prompt),))


def scored_texts(messages: Sequence[Message]) -> list[str]:
    """The texts that signals and token ids are made from, newest first."""
    human_turns = sum(1 for m in messages if m.role == "user" and not m.is_tool_result)
    scored = messages_to_score(messages, _MAX_SCORED if human_turns > 1 else 1)
    return [message.text for message in scored or (_NO_MESSAGE,)]


def embed(features: Features) -> NDArray[np.float32]:
    """The scored messages as a point.

    Returns:
        float32 (DIMENSIONS,).

    Raises:
        ValueError: the features were recorded with neither token ids nor an embedding.
    """
    if features.embedding is not None:
        return features.embedding
    if features.token_ids is None:
        raise ValueError("features: neither token ids nor an embedding were recorded")
    return embedding.load_default().embed(features.token_ids)


def compile_heads(heads: NDArray[np.floating]) -> NDArray[np.float32]:
    """Fold heads that are linear in `embed` into one row per token.

    A head's value is the sum of the rows of a text's ids over the sum of their weights.

    Args:
        heads: (DIMENSIONS, h).

    Returns:
        float32 (n_tokens, h + 1), with the token's weight in the last column.
    """
    return embedding.load_default().compile_heads(heads)


def embedding_version() -> str:
    """The version of the token table behind the embedding. Learned weights belong to one version."""
    return embedding.default_digest()[:16]


class _ScalerFile(msgspec.Struct):
    mean: list[float]
    deviation: list[float]
    vector_variance: list[float]


def _scaler_file() -> _ScalerFile:
    raw = Path(__file__).with_name("standard.json").read_bytes()
    return msgspec.json.decode(raw, type=_ScalerFile)


@cache
def feature_scaler() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each signal over training prompts.

    Everything that learns standardises by them. Made by scripts/build_standard.py.

    Returns:
        float32 (n_signals,) each.
    """
    file = _scaler_file()
    std = np.array(file.deviation, np.float32)
    # Heads are learned from single prompts, where the whole prompt is as long as the message. After a
    # long system prompt or an agent's history it is not, and does not show how hard the message is:
    # divided by a huge number, these signals cannot decide.
    std[[_PROMPT, _TURNS, _TOOLS]] = 1e9
    return np.array(file.mean, np.float32), std


def vector_variance() -> NDArray[np.float64]:
    """The variance of each dimension of the embedding over training prompts.

    Returns:
        float64 (DIMENSIONS,).
    """
    return np.array(_scaler_file().vector_variance, float)


def explain(features: Features, top: int = 5) -> tuple[tuple[str, float], ...]:
    """The `top` signals that stand out most.

    Returns:
        (name, value) pairs, strongest first, after the length, which always comes first because it
        carries most of what is known without labels.
    """
    return explain_vector(features.signals.tolist(), top)


def explain_vector(s: Sequence[float], top: int = 5) -> tuple[tuple[str, float], ...]:
    """`explain` for a stored vector, (n_signals,)."""
    pairs = [
        (n, round(v, 3))
        for n, v in zip(SIGNAL_NAMES[2:_PROMPT], s[2:_PROMPT], strict=True)
        if v and n not in _UNEXPLAINED
    ]
    pairs.sort(key=lambda p: -p[1])
    return ((SIGNAL_NAMES[0], round(s[0], 3)), *pairs[: top - 1])
