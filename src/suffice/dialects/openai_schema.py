"""What we decode of OpenAI chat completions: only the fields that routing and accounting need."""

from __future__ import annotations

import msgspec

from suffice.types import Usage


class PromptTokensDetails(msgspec.Struct):
    """Parts of the prompt's tokens."""

    cached_tokens: int | None = None


class CompletionTokensDetails(msgspec.Struct):
    """Parts of the completion's tokens."""

    reasoning_tokens: int | None = None


class CompletionUsage(msgspec.Struct):
    """The `usage` object."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek's name for cached tokens


class Choice(msgspec.Struct):
    """One answer of a whole reply; its message stays undecoded."""

    finish_reason: str | None = None


class Completion(msgspec.Struct):
    """A whole reply."""

    choices: list[Choice]
    usage: CompletionUsage | None = None


class Delta(msgspec.Struct):
    """What a chunk adds to the message: only whether each field holds something matters here."""

    content: object = None
    refusal: object = None
    reasoning_content: object = None
    reasoning: object = None
    tool_calls: object = None
    function_call: object = None
    audio: object = None

    def has_content(self) -> bool:
        """Whether a reader would see something of it."""
        return bool(
            self.content
            or self.tool_calls
            or self.refusal
            or self.reasoning_content
            or self.reasoning
            or self.function_call
            or self.audio
        )


class ChunkChoice(msgspec.Struct):
    """One answer's part of a chunk."""

    delta: Delta | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct):
    """One event of a stream."""

    choices: list[ChunkChoice] | None = None
    usage: CompletionUsage | None = None
    error: object = None


decode_completion = msgspec.json.Decoder(Completion).decode
decode_chunk = msgspec.json.Decoder(Chunk).decode
decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def to_usage(usage: CompletionUsage | None) -> Usage | None:
    """The upstream's token counts as ours; None if it counted nothing."""
    if usage is None or (usage.prompt_tokens is None and usage.completion_tokens is None):
        return None
    prompt_details, details = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = (prompt_details and prompt_details.cached_tokens) or usage.prompt_cache_hit_tokens or 0
    input_tokens = max(0, usage.prompt_tokens or 0)
    return Usage(
        input_tokens=input_tokens,
        output_tokens=max(0, usage.completion_tokens or 0),
        cached_input_tokens=min(input_tokens, max(0, cached)),
        reasoning_tokens=max(0, (details and details.reasoning_tokens) or 0),
    )
