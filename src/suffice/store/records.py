"""Records that a store keeps besides decisions: changes of scores, policy snapshots, spend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from suffice.types import Float32Array, Prediction


class FeedbackEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a decision's score, with the decision as it was made.

    When summing `weight * score`, subtract `previous_score * previous_weight`: the score that the
    same (decision, source, key) had before.

    Attributes:
        seq: rises in the order in which changes were stored; never reused, with gaps.
        created_s: of the decision, unix time.
        scored_model: the model that the score is about: the one that answered, but the one that
            failed if the first attempt failed.
        propensity: of `chosen`.
        signals: (n_signals,); None = not recorded.
        embedding: (n_dimensions,); None = not recorded.
        feedback_at_s: when it was scored, unix time.
    """

    seq: int
    decision_id: str
    created_s: float  # of the decision, unix time
    route: str
    chosen: str
    model: str | None  # that answered
    scored_model: str | None
    policy: str
    policy_version: str
    snapshot: str | None
    basis: str
    propensity: float
    predictions: tuple[Prediction, ...]
    difficulty: float | None
    cost_usd: float | None
    latency_s: float
    status: int
    session: str | None
    key_id: str | None
    features_schema: str | None
    signals: Float32Array | None
    embedding: Float32Array | None
    score: float
    weight: float
    source: str
    kind: Literal["explicit", "implicit"]
    key: str
    feedback_at_s: float  # unix time
    previous_seq: int | None = None
    previous_score: float | None = None
    previous_weight: float | None = None


class PolicySnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable state of a policy; `suffice.store.snapshot` makes one.

    Attributes:
        version: hash of route, kind and content.
        digest: SHA-256 of `content`, hexadecimal.
        parent: the version that it was learned from.
        card: how it was made, as JSON holds it.
    """

    version: str
    route: str
    kind: str
    created_s: float
    content: bytes
    digest: str
    parent: str | None = None
    card: Mapping[str, Any] = {}
    created_by: str = ""


class Promotion(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a route's history.

    Attributes:
        version: current from then on; None = the configured policy.
        evidence: the figures of the decision.
        forced: promoted although the evidence was not sufficient.
    """

    generation: int
    route: str
    version: str | None
    previous: str | None
    promoted_at_s: float = msgspec.field(name="at_s")
    by: str
    kind: Literal["promote", "rollback"]
    forced: bool = False
    evidence: Mapping[str, Any] | None = None


class LearnerState(msgspec.Struct, frozen=True):
    """The state of a route's learner."""

    cursor: int = 0  # all changes of scores up to this `seq` are in `states`
    states: Mapping[str, bytes] = {}


class Spend(msgspec.Struct, frozen=True):
    """Cost of a route's requests."""

    usd: float  # of the requests whose cost is known
    requests: int
    unknown: int  # requests of unknown cost


class StoreHealth(msgspec.Struct, frozen=True):
    """How the last write went, and what waits."""

    ok: bool  # the last write succeeded
    pending: int = 0  # records in memory
    spooled: int = 0  # records in the spool file
    lost: int = 0  # records dropped since start; 0 unless the spool failed too
    error: str | None = None
