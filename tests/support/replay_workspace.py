"""A workspace whose store is open, for replays of policies on hand-made decisions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tests.support.logged_traffic import (
    EVEN,
    FEATURES,
    PREDICTED_USD,
    STRONG,
    WEAK,
    Workspace,
    record,
)

from suffice import features
from suffice.config import load_settings
from suffice.lab.data.decisions import read_decisions
from suffice.lab.ope import replay
from suffice.lab.ope.rollout import EvaluationPolicySetup, Rollout, roll_out
from suffice.store import open_store
from suffice.types import Features, Feedback, Message, RequestRecord


def request(
    n: int, chosen: str, shares: Mapping[str, float], x: Features = FEATURES, **more: Any
) -> RequestRecord:
    """A request one second after the one before; it costs twice what was predicted."""
    fields: dict[str, Any] = {
        "created_s": 1_000_000.0 + n,
        "cost_usd": 2 * PREDICTED_USD.get(chosen, 0.001),
        "features": x,
        "session": None,
    }
    return record(n, chosen, shares, **{**fields, **more})


def conversation(*texts: str) -> Features:
    """Features of a conversation of human turns; all but the last have an answer."""
    messages: list[Message] = []
    for text in texts:
        messages += [Message("user", text), Message("assistant", "An answer of some length.")]
    return features.extract(tuple(messages[:-1]))


class ReplayWorkspace(Workspace):
    """Adds decisions one by one and replays policies on them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.store = open_store(self.url)
        self._feedback: list[Feedback] = []

    def add(
        self, decision: RequestRecord, score: float | None = None, source: str = "user"
    ) -> None:
        """Add a decision, with a score or without one."""
        self.store.append(decision)
        if score is not None:
            self._feedback.append(
                Feedback(decision_id=decision.decision.id, score=score, source=source)
            )

    def add_even(self, n: int, seed: int = 0, labelled: float = 1.0) -> dict[str, float]:
        """Add n even random choices; weak is right at 50 %, strong at 90 %. Returns mean scores."""
        rng = np.random.default_rng(seed)
        scores: dict[str, list[float]] = {WEAK: [], STRONG: []}
        for i in range(n):
            chosen = STRONG if rng.random() < 0.5 else WEAK
            score = float(rng.random() < (0.9 if chosen == STRONG else 0.5))
            has_label = rng.random() < labelled
            self.add(request(i, chosen, EVEN, session=f"s{i}"), score if has_label else None)
            if has_label:
                scores[chosen].append(score)
        return {model: float(np.mean(values)) for model, values in scores.items()}

    def flush(self) -> None:
        """Write everything that was added."""
        assert self.store.flush()
        for feedback in self._feedback:
            assert self.store.feedback.add(feedback)
        self._feedback = []

    def setup(self, policy: str, objective: object = None) -> EvaluationPolicySetup:
        """The policy on the workspace's routes."""
        settings = load_settings(self.config, {})
        return replay.load_evaluation_policy(settings, policy, {}, objective)

    def roll_out(self, setup: EvaluationPolicySetup) -> Rollout:
        """Let a policy decide everything that was added."""
        self.flush()
        return roll_out(read_decisions(self.url).rows, setup)

    def replay(self, policy: str, objective: object = None, **filters: Any) -> replay.Replay:
        """Replay a policy on everything that was added."""
        self.flush()
        return replay.run(self.url, self.setup(policy, objective), policy, **filters)
