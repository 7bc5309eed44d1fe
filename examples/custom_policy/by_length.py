"""A policy of your own: long queries go to the best model, short ones to the cheapest.

Run: pip install ./examples/custom_policy && python examples/custom_policy/by_length.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from suffice import Decision, Features, Objective, Router
from suffice.types import Candidate, PlanStep, Prediction, Session


class ByLength:
    """Decides by the number of input tokens alone."""

    name = "by-length"
    version = "1"

    def __init__(self, signal_names: Sequence[str], limit_tokens: int = 20) -> None:
        self.signal_names = signal_names
        self.limit_tokens = limit_tokens

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
        """Rank the candidates: by price for a short query, by quality for a long one."""
        long = x.input_tokens > self.limit_tokens

        def rank(candidate: Candidate) -> float:
            model = candidate.model
            price = model.price.input_usd_per_mtok or 0.0
            return -(model.quality or 0.0) if long else price

        ranked = sorted(candidates, key=rank)
        names = [candidate.model.name for candidate in ranked]
        return Decision(
            id=id,
            model=names[0],
            plan=tuple(
                PlanStep(name, "failover" if place else "choice")
                for place, name in enumerate(names)
            ),
            predictions=tuple(
                Prediction(
                    model=candidate.model.name,
                    quality=candidate.model.quality,
                    cost_usd=None,
                    latency_s=candidate.first_chunk_s,
                    propensity=float(candidate.model.name == names[0]),
                )
                for candidate in candidates
            ),
            reason=f"{names[0]}: the query has {x.input_tokens} tokens.",
            policy=self.name,
            policy_version=self.version,
            objective=objective,
            basis="prior",
            seed=seed,
        )


CONFIG = """
[store]
url = "sqlite:///{folder}/suffice.db"

[providers.acme]
dialect = "openai"
base_url = "http://127.0.0.1:9/v1"

[models."acme/small"]
input_usd_per_mtok = 0.15
output_usd_per_mtok = 0.60
quality = 0.6

[models."acme/large"]
input_usd_per_mtok = 2.50
output_usd_per_mtok = 10.0
quality = 0.95

[routes.auto]
models = ["acme/small", "acme/large"]
policy = "by-length"
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "suffice.toml"
        config.write_text(CONFIG.format(folder=Path(folder).as_posix()))
        router = Router.from_config(config)
        for query in ("Hi!", "Please compare these two contracts clause by clause. " * 5):
            print(router.route(query).reason)
        router.close()


if __name__ == "__main__":
    main()
