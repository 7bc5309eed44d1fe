"""Decisions under rewordings, and the time per decision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.support.predictors import MemorizingPredictor
from tests.support.tables import prompts, table

from suffice.lab.data.table import FloatArray
from suffice.lab.evaluate.evaluate import evaluate
from suffice.lab.evaluate.robustness import REWORDINGS, WHITE_SPACE, perturb
from suffice.lab.predictors import registry
from suffice.lab.predictors.base import Batch
from suffice.types import Message

FAST: dict[str, Any] = {"draws": 100}


def test_rewordings_change_the_last_user_message_only() -> None:
    text = "Why is the sky blue, and why does it turn red in the evening when the sun goes down?"
    talk = (Message("system", "Be brief."), Message("user", "Hi"), Message("user", text))
    for change in (*WHITE_SPACE.values(), *REWORDINGS.values()):
        other = perturb(talk, change)
        assert other[:2] == talk[:2]
        assert other[2].text != text
    for change in WHITE_SPACE.values():
        assert perturb(talk, change)[2].text.split() == text.split()


def test_flip_rates_and_overhead_are_reported() -> None:
    result = evaluate(table(80), ["default", "trained"], **FAST)
    for name in ("length", "default", "trained"):
        p = result["policies"][name]
        assert p["flip_rate"]["white_space"] == 0.0, name
        assert 0.0 <= p["flip_rate"]["rewording"] <= 1.0
        assert 1.0 < p["overhead_us"] < 1e6


class Jumpy(MemorizingPredictor):
    """Goes by the last character only."""

    name = "jumpy"

    def strong_score(self, x: Batch, strong: int, weak: int) -> FloatArray:
        return np.asarray(x.signals[:, 1] * 1e6 % 7.0, float)


def test_a_policy_that_changes_with_the_last_character_has_flips(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "jumpy", Jumpy)
    rng = np.random.default_rng(0)
    texts, _ = prompts(80, rng)
    made = replace(table(80), messages=tuple((Message("user", t),) for t in texts))
    result = evaluate(made, ["jumpy"], **FAST)
    assert result["policies"]["jumpy"]["flip_rate"]["rewording"] > 0.1
