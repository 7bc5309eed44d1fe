"""Builds src/suffice/catalog/models.json: the names below joined with genai-prices.

Prices and windows come from genai-prices alone. Capabilities are read from the providers' model
pages. Quality and speed are rough priors by tier, so that a router without labels has an order to
start from. They are not measurements and are called priors wherever they are shown.

Usage: python scripts/build_catalog.py   (rewrites the file; prints what it could not price)
"""

from __future__ import annotations

import datetime as dt
import json
from importlib.metadata import version
from pathlib import Path

from suffice.catalog import prices

# tier -> (quality prior, first chunk s, output tokens per s)
TIERS = {
    "frontier": (0.93, 1.2, 70.0),
    "strong": (0.88, 0.9, 80.0),
    "middle": (0.80, 0.6, 120.0),
    "light": (0.70, 0.4, 180.0),
    "tiny": (0.58, 0.3, 220.0),
}
ALL = "tools vision json_schema"
TEXT = "tools json_schema"

# provider: {upstream name: (tier, capabilities)}
MODELS: dict[str, dict[str, tuple[str, str]]] = {
    "openai": {
        "gpt-6-astra": ("frontier", ALL),
        "gpt-6.1-sol": ("strong", ALL),
        "gpt-6.1-terra": ("middle", ALL),
        "gpt-6-luna": ("light", ALL),
        "gpt-5.4": ("strong", ALL),
        "gpt-5.4-mini": ("middle", ALL),
        "gpt-5.4-nano": ("light", ALL),
        "gpt-5": ("strong", ALL),
        "gpt-5-mini": ("middle", ALL),
        "gpt-5-nano": ("light", ALL),
        "gpt-4.1": ("middle", ALL),
        "gpt-4.1-mini": ("light", ALL),
        "gpt-4.1-nano": ("tiny", ALL),
        "gpt-4o": ("middle", ALL),
        "gpt-4o-mini": ("light", ALL),
        "o3": ("strong", ALL),
        "o4-mini": ("middle", ALL),
    },
    "anthropic": {
        "claude-opus-5-5": ("frontier", ALL),
        "claude-sonnet-5-5": ("strong", ALL),
        "claude-haiku-5-5": ("middle", ALL),
        "claude-opus-4-8": ("frontier", ALL),
        "claude-sonnet-4-6": ("strong", ALL),
        "claude-haiku-4-5": ("middle", ALL),
    },
    "google": {
        "gemini-3.1-pro-preview": ("frontier", ALL),
        "gemini-3.8-flash": ("strong", ALL),
        "gemini-3.5-flash": ("middle", ALL),
        "gemini-3.5-flash-lite": ("light", ALL),
        "gemini-2.5-pro": ("strong", ALL),
        "gemini-2.5-flash": ("middle", ALL),
        "gemini-2.5-flash-lite": ("light", ALL),
    },
    "mistral": {
        "mistral-large-4": ("strong", ALL),
        "mistral-medium-3-5": ("middle", ALL),
        "mistral-small-2603": ("light", ALL),
        "ministral-8b-2512": ("tiny", ALL),
        "codestral-2508": ("middle", TEXT),
    },
    "deepseek": {
        "deepseek-v4-pro": ("strong", TEXT),
        "deepseek-v4-flash": ("middle", TEXT),
        "deepseek-reasoner": ("strong", TEXT),
        "deepseek-chat": ("middle", TEXT),
    },
    "groq": {
        "openai/gpt-oss-120b": ("middle", TEXT),
        "openai/gpt-oss-20b": ("light", TEXT),
        "qwen/qwen3.8-27b": ("middle", TEXT),
        "llama-3.3-70b-versatile": ("light", "tools"),
        "llama-3.1-8b-instant": ("tiny", "tools"),
    },
    "together": {
        "moonshotai/Kimi-K3": ("strong", TEXT),
        "deepseek-ai/DeepSeek-V4.1-Flash": ("middle", TEXT),
        "Qwen/Qwen3.8-Flash": ("light", TEXT),
        "meta-llama/Llama-3.3-70B-Instruct-Turbo": ("light", TEXT),
    },
    "fireworks": {
        "kimi-k3": ("strong", TEXT),
        "glm-5p3": ("strong", TEXT),
        "gpt-oss-120b": ("middle", TEXT),
        "gpt-oss-20b": ("light", TEXT),
    },
    "xai": {
        "grok-4.7": ("frontier", ALL),
        "grok-4.5": ("strong", ALL),
        "grok-4-1-fast-reasoning": ("middle", ALL),
        "grok-4-1-fast-non-reasoning": ("light", ALL),
    },
    "cohere": {
        "command-a": ("middle", TEXT),
        "command-r7b": ("tiny", TEXT),
    },
    "openrouter": {
        "openai/gpt-oss-120b": ("middle", TEXT),
        "moonshotai/kimi-k3": ("strong", TEXT),
        "qwen/qwen3.8-27b": ("middle", TEXT),
        "qwen/qwen3-8b": ("tiny", TEXT),
    },
    "azure": {
        "gpt-6.1-sol": ("strong", ALL),
        "gpt-5-mini": ("middle", ALL),
        "gpt-4o": ("middle", ALL),
        "gpt-4o-mini": ("light", ALL),
    },
    "bedrock": {
        "openai.gpt-oss-120b-1:0": ("middle", TEXT),
        "openai.gpt-oss-20b-1:0": ("light", TEXT),
    },
}


def main() -> None:
    """Rewrite the file."""
    when = dt.datetime.now(dt.UTC)
    rows, missing = [], []
    for provider, models in MODELS.items():
        for upstream, (tier, capabilities) in models.items():
            info = prices.find(provider, upstream)
            if info is None:
                missing.append(f"{provider}/{upstream}")
                continue
            price = prices.price_of(info, when)
            quality, first_chunk_s, rate = TIERS[tier]
            rows.append(
                {
                    "name": f"{provider}/{upstream}",
                    "provider": provider,
                    "upstream": upstream,
                    "input": price.input_usd_per_mtok,
                    "output": price.output_usd_per_mtok,
                    "cached": price.cached_input_usd_per_mtok,
                    "cache_write": price.cache_write_usd_per_mtok,
                    "context_tokens": info.context_window,
                    "capabilities": capabilities.split(),
                    "quality": quality,
                    "first_chunk_s": first_chunk_s,
                    "output_tokens_per_s": rate,
                }
            )
    catalog = {
        "about": "USD per million tokens, base tier. quality, first_chunk_s and output_tokens_per_s "
        "are rough priors by tier, not measurements. Built by scripts/build_catalog.py.",
        "source": f"genai-prices {version('genai-prices')} (MIT)",
        "dated": when.date().isoformat(),
        "models": rows,
    }
    target = Path(__file__).parents[1] / "src/suffice/catalog/models.json"
    target.write_text(json.dumps(catalog, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} models written; not known to genai-prices: {missing or 'none'}")


if __name__ == "__main__":
    main()
