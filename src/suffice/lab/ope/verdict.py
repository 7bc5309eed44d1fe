"""How much a log can say about a policy, and the verdict on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from suffice.lab.data.table import FloatArray
from suffice.lab.ope import estimators
from suffice.lab.ope.estimators import LoggedData
from suffice.lab.ope.intervals import Estimate

MIN_ESS = 100.0  # effective decisions; below this nothing is concluded
MIN_SUPPORT = 0.95  # share of the policy's choices that the log could have made
MIN_SESSIONS = 20  # below this an interval over sessions is not reliable

Shortfall = Literal["support", "ess", "sessions"]
Word = Literal["better", "worse", "cannot tell", "cannot judge"]


@dataclass(frozen=True)
class Evidence:
    """What the labelled decisions of a log are worth for one evaluation policy.

    Attributes:
        ess: Effective sample size over free choices.
        support: Share of the policy's choices that the log could have made.
        sessions: Number of sessions.
    """

    ess: float
    support: float
    sessions: int

    @property
    def shortfall(self) -> Shortfall | None:
        """The first requirement that is not met; `None` if the evidence suffices."""
        if self.support < MIN_SUPPORT:
            return "support"
        if self.ess < MIN_ESS:
            return "ess"
        return "sessions" if self.sessions < MIN_SESSIONS else None


def measure_evidence(log: LoggedData, action_dist: FloatArray) -> Evidence:
    """Return the evidence of the labelled decisions.

    The support of a log without labels is that of all its decisions.

    Args:
        log: n decisions with the propensities of all k models.
        action_dist: (n, k) probabilities of the evaluation policy.
    """
    assert log.propensities is not None
    labelled = log.labelled
    weights = estimators.importance_weights(log, action_dist)[labelled]
    supported = estimators.support(log.propensities, action_dist)
    return Evidence(
        ess=estimators.effective_sample_size(weights, log.episodes[labelled]),
        support=float((supported[labelled] if labelled.any() else supported).mean()),
        sessions=len(np.unique(log.sessions[labelled])),
    )


class Verdict(msgspec.Struct, frozen=True):
    """The policy's score against the score of the logging policy.

    Attributes:
        word: "better" or "worse" if the 95 % interval of the doubly robust difference excludes 0,
            "cannot tell" if it includes 0, "cannot judge" if the evidence does not suffice.
        reason: The verdict as a sentence (JSON key `why`).
        difference: Doubly robust difference; `None` if there is none.
        lower_bound, upper_bound: Of its interval; `None` if there is none.
    """

    word: Word
    reason: str = msgspec.field(name="why")
    difference: float | None = None
    lower_bound: float | None = None
    upper_bound: float | None = None


def decide_verdict(estimate: Estimate, evidence: Evidence, *, explored: bool) -> Verdict:
    """Return the verdict on a policy.

    Args:
        estimate: Doubly robust, already widened by the missing support.
        evidence: Of the labelled decisions.
        explored: Whether any logged decision was a random choice.
    """
    bounds = (estimate.difference, estimate.difference_low, estimate.difference_high)
    difference, low, high = (None if np.isnan(v) else float(v) for v in bounds)
    reason = _insufficient(evidence, explored)
    if reason is None and (difference is None or low is None or high is None):
        reason = "no interval can be formed"
    if reason is not None:
        return Verdict("cannot judge", f"Inconclusive: {reason}.", difference, low, high)
    assert difference is not None and low is not None and high is not None
    text = f"scores {difference:+.4f} [{low:+.4f}, {high:+.4f}] against what happened"
    if low > 0:
        return Verdict("better", f"Better: it {text}.", difference, low, high)
    if high < 0:
        return Verdict("worse", f"Worse: it {text}.", difference, low, high)
    return Verdict("cannot tell", f"No difference shown: it {text}.", difference, low, high)


def _insufficient(evidence: Evidence, explored: bool) -> str | None:
    match evidence.shortfall:
        case "support":
            reason = f"the log could have made only {evidence.support:.0%} of the policy's choices"
            if not explored:
                reason += (
                    ": it never explored (every propensity is 1), so only decisions on which both "
                    "policies agree count, and the others have only the direct method's prediction"
                )
            return f"{reason}; at least {MIN_SUPPORT:.0%} is needed"
        case "ess":
            return (
                f"the labelled decisions are worth {evidence.ess:.0f} decisions of the policy, "
                f"{MIN_ESS:.0f} are needed"
            )
        case "sessions":
            return f"they come from {evidence.sessions} sessions, {MIN_SESSIONS} are needed"
        case None:
            return None
