"""What a route serves at one moment, and the policy of a request that names its model."""

from __future__ import annotations

import msgspec

from suffice.artifacts.certificate import Certificate
from suffice.policies.base import Certifiable, TrafficAware, TrafficWindow
from suffice.types import (
    Candidate,
    Decision,
    Features,
    Objective,
    PlanStep,
    Policy,
    Prediction,
    Session,
)


class Serving(msgspec.Struct, frozen=True):
    """What a route serves now.

    Attributes:
        policy: decides the next request.
        certificate: what `max_quality_loss` relies on.
        alarm: why the certificate is not relied on now; empty = it is.
        version: the snapshot that `policy` was loaded from; None = the configured policy.
        adaptive: `policy` itself if it solves its objective over the route's traffic, else None.
        traffic: the recent decisions that `adaptive` adapts to.
    """

    policy: Policy
    certificate: Certificate | None = None
    alarm: str = ""
    version: str | None = None
    adaptive: TrafficAware | None = None
    traffic: TrafficWindow | None = None

    @classmethod
    def configured(cls, policy: Policy) -> Serving:
        """A policy as `load_policy` returns it, under its own certificate."""
        return cls.of(policy, policy.certificate if isinstance(policy, Certifiable) else None)

    @classmethod
    def of(
        cls,
        policy: Policy,
        certificate: Certificate | None = None,
        alarm: str = "",
        version: str | None = None,
        traffic: TrafficWindow | None = None,
    ) -> Serving:
        """Check once what the policy can do.

        Args:
            policy: the policy as it was loaded.
            certificate: put in force if the policy is certifiable.
            alarm: see the class.
            version: see the class.
            traffic: goes on with this window; None = starts a new one.

        Returns:
            What a route serves.
        """
        if isinstance(policy, Certifiable):
            policy = policy.with_certificate(certificate, alarm)
        else:
            certificate, alarm = None, ""
        adaptive = policy if isinstance(policy, TrafficAware) else None
        if adaptive is not None and traffic is None:
            traffic = adaptive.traffic_window()
        return cls(policy, certificate, alarm, version, adaptive, traffic)


class PinnedModel:
    """The policy of a request for one model by name: recorded, not routed."""

    name = "bypass"
    version = "bypass-1"

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
        """Choose the first candidate and predict nothing."""
        model = candidates[0].model.name
        return Decision(
            id=id,
            model=model,
            plan=(PlanStep(model),),
            predictions=(Prediction(model, None, None, None, 1.0),),
            reason=f"{model} was asked for by name: recorded, not routed.",
            policy=self.name,
            policy_version=self.version,
            objective=objective,
            basis="bypass",
        )
