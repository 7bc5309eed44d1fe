"""A baseline: every candidate with the same probability."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from suffice.policies.default import DefaultPolicy
from suffice.types import Candidate, Decision, Features, Objective, PlanStep, Session


class RandomPolicy(DefaultPolicy):
    """Uniform over the candidates; the draw comes from `seed` alone."""

    name = "random"

    def __init__(
        self, signal_names: Sequence[str], quantiles: Sequence[float] | None = None
    ) -> None:
        super().__init__(signal_names, quantiles, None)

    def with_quantiles(self, quantiles: Sequence[float]) -> RandomPolicy:
        return RandomPolicy(self.signal_names, quantiles)

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
