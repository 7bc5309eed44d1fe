"""What an evaluation says in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def verdict(result: Mapping[str, Any]) -> str:
    """One or two sentences: which policy beats mixing single models at random, if any does."""
    from suffice.lab.evaluate.evaluate import BASELINES

    policies = result["policies"]
    coin = policies["random"]["gain_over_zero_router"]
    rivals = {n: p for n, p in policies.items() if n not in BASELINES or n == "length"}
    better = {
        n: p
        for n, p in rivals.items()
        if p["gain_ci"] is not None
        and p["gain_ci"][0] > 0
        and p["gain_over_zero_router"] > max(0.0, coin)
    }
    if not better:
        return (
            "No policy is certain to beat mixing single models at random here: its interval holds "
            "zero, or a coin gains as much. A constant model, or a mix of two, does as well."
        )
    name, best = max(better.items(), key=lambda i: i[1]["gain_over_zero_router"])
    low, high = best["gain_ci"]
    text = (
        f"{name} is best: mean quality {best['gain_over_zero_router']:+.4f} [{low:+.4f}, "
        f"{high:+.4f}] over the zero router at equal cost (a coin: {coin:+.4f})."
    )
    if best["qnc"] is not None and best["qnc"] < 0.995:
        text += (
            f" It reaches the quality of {result['reference']} at {best['qnc']:.0%} of its cost."
        )
    return text
