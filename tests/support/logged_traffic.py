"""A workspace with recorded traffic whose costs and scores are all known."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tests.support.common import toml

from suffice import features
from suffice.config import load_settings
from suffice.lab import savings
from suffice.store import open_store
from suffice.types import (
    Attempt,
    Decision,
    Features,
    Feedback,
    Objective,
    PlanStep,
    Prediction,
    RequestRecord,
    Usage,
)

WEAK, STRONG = "p/weak", "p/strong"
NOW_S = 1_790_000_000.0
PREDICTED_USD = {WEAK: 0.0001, STRONG: 0.002}


def record(n: int, chosen: str, shares: Mapping[str, float], **more: Any) -> RequestRecord:
    """A request, one minute after the one before.

    Args:
        n: Number of the decision.
        chosen: The model that was chosen.
        shares: Model -> propensity.
        **more: Fields of the record or the decision; `predicted`: model -> predicted USD.
    """
    predicted = more.pop("predicted", PREDICTED_USD)
    decision = Decision(
        id=f"dec_{n:011x}",
        model=chosen,
        plan=(PlanStep(chosen), *(PlanStep(m, "failover") for m in shares if m != chosen)),
        predictions=tuple(
            Prediction(m, {WEAK: 0.6, STRONG: 0.9}.get(m), predicted.get(m), None, share)
            for m, share in shares.items()
        ),
        reason="because.",
        policy=more.pop("policy", "random"),
        policy_version="random-1",
        objective=Objective(kind="balanced"),
        basis=more.pop("basis", "prior"),
        route=more.pop("route", "auto"),
        propensity=shares.get(chosen, 0.0),
        difficulty=more.pop("difficulty", 0.5),
    )
    fields: dict[str, Any] = {
        "attempts": (),
        "created_s": NOW_S + 60 * n,
        "request_id": f"req_{n}",
        "status": 200,
        "model": chosen,
        "cost_usd": predicted.get(chosen),
        "features": FEATURES,
        "latency_s": 0.5,
        "overhead_ms": 0.2,
        "session": f"s{n}",
    }
    fields |= more
    if fields["attempts"] == ():
        fields["attempts"] = (attempt(fields["model"] or chosen, usd=fields["cost_usd"]),)
    return RequestRecord(decision=decision, **fields)


def attempt(model: str, outcome: str = "ok", usd: float | None = None, number: int = 1) -> Attempt:
    return Attempt(model, number, outcome, NOW_S, 0.5, usage=Usage(10, 10), cost_usd=usd)


FEATURES: Features = features.extract_text("Say hello, please.")


WEAK_ONLY = {WEAK: 1.0, STRONG: 0.0}
STRONG_ONLY = {WEAK: 0.0, STRONG: 1.0}
EVEN = {WEAK: 0.5, STRONG: 0.5}


class Workspace:
    """A folder with suffice.toml and the file of a store."""

    def __init__(self, folder: Path, routes: str = "") -> None:
        self.folder = folder
        self.file = folder / "s.db"
        self.url = f"sqlite:///{self.file.as_posix()}"
        self.config = folder / "suffice.toml"
        self.config.write_text(toml("http://127.0.0.1:9/v1", self.file, routes))

    def fill(self, records: list[RequestRecord], scores: list[Feedback]) -> None:
        store = open_store(self.url, embed=features.embed)
        try:
            for r in records:
                store.append(r)
            assert store.flush()
            for i in range(0, len(scores), 1000):
                assert all(store.feedback.add_batch(scores[i : i + 1000]))
        finally:
            store.close()

    def execute(self, statement: str, *values: Any) -> None:
        with sqlite3.connect(self.file) as connection:
            connection.execute(statement, values)
        connection.close()

    def add_explored(
        self,
        n: int,
        *,
        seed: int = 0,
        labelled: float = 1.0,
        weak: float = 0.5,
        strong: float = 0.9,
        share: float = 0.5,
    ) -> None:
        """Add n random choices, a part of them labelled.

        Args:
            n: Number of requests, each a session.
            seed: Of choices and scores.
            labelled: Share of requests with a score.
            weak, strong: Probability that each model's score is 1; else it is 0.
            share: Propensity of the strong model.
        """
        rng = np.random.default_rng(seed)
        records, scores = [], []
        for i in range(n):
            chosen = STRONG if rng.random() < share else WEAK
            good = rng.random() < (strong if chosen == STRONG else weak)
            records.append(record(i, chosen, {WEAK: 1 - share, STRONG: share}))
            if rng.random() < labelled:
                scores.append(Feedback(decision_id=records[-1].decision.id, score=float(good)))
        self.fill(records, scores)


def report(workspace: Workspace, **filters: Any) -> savings.SavingsReport:
    """The report on a workspace's store, a million seconds after its first request."""
    settings = load_settings(workspace.config, {})
    return savings.build_report(
        workspace.url,
        now_s=NOW_S + 1e6,
        references=savings.reference_models(settings, {}),
        **filters,
    )
