"""Known providers, one data row each; others are a few lines in the configuration.

Base URLs are the OpenAI-compatible surfaces that each provider documents. `azure` and `bedrock`
have none that is the same for all: the operator sets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from suffice.types import Provider


def _row(
    name: str,
    base_url: str,
    key: str | None,
    *,
    auth: Literal["bearer", "api-key", "none"] = "bearer",
    local: bool = False,
) -> tuple[str, Provider]:
    return name, Provider(
        name=name,
        dialect="openai",
        base_url=base_url,
        api_key_env=key,
        auth=auth,
        local=local,
    )


PROVIDERS: Mapping[str, Provider] = dict(
    [
        _row("openai", "https://api.openai.com/v1", "OPENAI_API_KEY"),
        # Anthropic's own OpenAI-compatible surface; its native dialect keeps more (cache marks).
        _row("anthropic", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY"),
        _row(
            "google",
            "https://generativelanguage.googleapis.com/v1beta/openai",
            "GEMINI_API_KEY",
        ),
        _row("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
        _row("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
        _row("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
        _row("together", "https://api.together.xyz/v1", "TOGETHER_API_KEY"),
        _row("fireworks", "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
        _row("xai", "https://api.x.ai/v1", "XAI_API_KEY"),
        _row("cohere", "https://api.cohere.ai/compatibility/v1", "COHERE_API_KEY"),
        _row("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
        _row("azure", "", "AZURE_OPENAI_API_KEY", auth="api-key"),
        _row("bedrock", "", "AWS_BEARER_TOKEN_BEDROCK"),
        _row("ollama", "http://127.0.0.1:11434/v1", None, auth="none", local=True),
        _row("vllm", "http://127.0.0.1:8000/v1", None, auth="none", local=True),
        _row("llamacpp", "http://127.0.0.1:8080/v1", None, auth="none", local=True),
        _row("lmstudio", "http://127.0.0.1:1234/v1", None, auth="none", local=True),
    ]
)
