"""A baseline: every candidate with the same probability."""

from __future__ import annotations

import random

import msgspec

from suffice.policies.default import DefaultPolicy
from suffice.types import Candidate, Decision, Features, Objective, PlanStep, Session


class RandomPolicy(DefaultPolicy):
    """Uniform over the candidates; the draw depends on `seed` alone."""

    def decide(
        self,
        x: Features,
        candidates: tuple[Candidate, ...],
        objective: Objective,
        session: Session | None = None,
        *,
        id: str = "",
        seed: int = 0,
        max_output_tokens: int | None = None,
    ) -> Decision:
        """Shuffle the candidates. A conversation does not keep its model."""
        base = super().decide(
            x, candidates, objective, None, id=id, seed=seed, max_output_tokens=max_output_tokens
        )
        names = [c.model.name for c in candidates]
        random.Random(seed).shuffle(names)
        share = 1.0 / len(names)
        return msgspec.structs.replace(
            base,
            model=names[0],
            plan=tuple(
                PlanStep(m, "choice" if i == 0 else "failover") for i, m in enumerate(names)
            ),
            predictions=tuple(
                msgspec.structs.replace(p, propensity=share) for p in base.predictions
            ),
            propensity=share,
            reason=f"{names[0]}: drawn at random from {len(names)} (policy random).",
        )
