"""What a learned policy would have decided on routes where it only looks on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from suffice.types import Policy, RequestRecord, Session

if TYPE_CHECKING:
    from suffice.catalog import Catalog
    from suffice.config import RouteSpec
    from suffice.execution import LatencyTracker


class ShadowDecider:
    """Asks the shadow policy of a route about recorded requests, on the store's thread."""

    def __init__(
        self, specs: Iterable[RouteSpec], catalog: Catalog, latency: LatencyTracker
    ) -> None:
        self.policies: Mapping[str, Policy] = {}  # by route; filled by the learning worker
        self._routes = frozenset(s.name for s in specs if s.learning == "shadow")
        self._catalog = catalog
        self._latency = latency

    def decide(self, record: RequestRecord) -> dict[str, object] | None:
        """The shadow's choice for a recorded request; None if the route has no shadow policy."""
        decision, x = record.decision, record.features
        policy = self.policies.get(decision.route)
        if policy is None or x is None or decision.route not in self._routes:
            return None
        pool = self._catalog.pool(self._catalog.get(p.model) for p in decision.predictions)
        # A conversation counts as begun by the model that it has.
        session = Session("", decision.model) if x.human_turns > 1 or x.in_tool_loop else None
        choice = policy.decide(
            x, self._latency.candidates(pool), decision.objective, session, seed=decision.seed
        )
        return {
            "model": choice.model,
            "policy_version": choice.policy_version,
            "propensity": choice.propensity,
            "quality": next(p.quality for p in choice.predictions if p.model == choice.model),
        }
