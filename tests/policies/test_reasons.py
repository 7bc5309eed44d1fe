"""The reason of a decision claims only what is true of the candidates."""

from __future__ import annotations

import pytest

from suffice import Router
from suffice.config import parse_settings

CLAIM = "a cheaper model would keep too little"


def reason(models: dict[str, float], keep: float) -> str:
    """The reason for a hard query. models: USD per million tokens, in and out, by name."""
    settings = {
        "providers": {"p": {"dialect": "openai", "base_url": "http://127.0.0.1:9/v1"}},
        "models": {
            f"p/{name}": {
                "input_usd_per_mtok": usd,
                "output_usd_per_mtok": usd,
                "quality": 0.5 + 0.1 * i,
            }
            for i, (name, usd) in enumerate(models.items())
        },
        "routes": {
            "auto": {
                "models": [f"p/{name}" for name in models],
                "objective": {"keep_quality": keep},
            }
        },
    }
    router = Router(parse_settings(settings), env={})
    return router.route("Prove that there are infinitely many primes.").reason


@pytest.mark.parametrize(
    ("models", "claimed"),
    [
        ({"weak": 0.1, "strong": 9.0}, True),
        ({"only": 1.0}, False),
        ({"one": 1.0, "same_price": 1.0}, False),
    ],
)
def test_a_reason_names_a_cheaper_model_only_if_there_is_one(
    models: dict[str, float], claimed: bool
) -> None:
    assert (CLAIM in reason(models, 0.999)) is claimed
