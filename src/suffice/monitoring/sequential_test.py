"""A sequential test of a certified loss on a trickle of labelled decisions.

The test is anytime-valid: it may be read after every label, without end. While the expected loss of every
decision stays at most `max_loss`, the probability that a test ever raises an alarm is at most
`false_alarm`. That is a rate per test (per certificate), not per look. How long a real change stays
unseen is measured (docs/concepts), not promised.

Wealth is bet against 'the loss is at most max_loss': a label multiplies it by 1 + bet x (loss - max_loss),
whose expectation is at most 1 while the hypothesis holds, so wealth reaches 1 / false_alarm with
probability at most false_alarm (Ville 1939; Waudby-Smith & Ramdas 2024, section 4). A long good time would
lose all wealth. So the starting wealth of 1 is spread over every label at which the change may come (an
e-process made of e-detectors that start one after another: Shin, Ramdas & Rinaldo 2023, "E-detectors"),
and over a few bets fixed in advance, each best for one size of change.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import e, log

import msgspec

# Sizes of change, in multiples of max_loss, for which the bets are best.
_GROWTH = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
MAX_BET = 0.9  # share of a bet's wealth at stake on one label
WEALTH_CAP = 1e12  # keeps wealth finite; beyond it nothing more is learned
_RECENT_WEIGHT = 0.01  # of a label in the recent mean: about the last hundred labels


class SequentialTest(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one test. Make one with `start`, get the next with `update`."""

    max_loss: float
    false_alarm: float
    wealth: tuple[float, ...]
    """(n_bets,)"""
    labels: int = 0
    loss: float = 0.0
    """Mean loss of all labels."""
    recent: float | None = None
    """Mean loss of about the last hundred labels; `None` before any."""
    alarm_at: int | None = None
    """The label, counted from 1, at which the alarm was raised. It does not end."""

    @property
    def alarmed(self) -> bool:
        """Whether the alarm was raised."""
        return self.alarm_at is not None

    @property
    def evidence(self) -> float:
        """Wealth now: 1 at the start, `1 / false_alarm` at the alarm."""
        return sum(self.wealth) / len(self.wealth) + _reserve(self.labels)

    @property
    def reason(self) -> str:
        """The state of the test in one sentence."""
        if self.recent is None:
            return f"No label yet; a loss of at most {self.max_loss:g} is certified."
        losses = f"{self.recent:.3f} lately, {self.loss:.3f} over {self.labels} labels"
        if self.alarm_at is None:
            return f"The loss is {losses}; nothing contradicts at most {self.max_loss:g}."
        return (
            f"The loss is {losses}, more than the certified {self.max_loss:g}: shown at label "
            f"{self.alarm_at} with a false-alarm probability of {self.false_alarm:g}."
        )

    def update(self, loss: float) -> SequentialTest:
        """The state after one label.

        Args:
            loss: In [0, 1]: max(0, score of the reference - score served). A decision that the
                reference itself served is a label of loss 0, which must be given as often as others are
                sampled.

        Returns:
            The next state.

        Raises:
            ValueError: The loss is out of range.
        """
        if not 0.0 <= loss <= 1.0:
            raise ValueError(f"loss: expected 0 to 1, got {loss!r}")
        n = self.labels + 1
        released = _reserve(n - 1) - _reserve(n)
        step = loss - self.max_loss
        wealth = tuple(
            min(WEALTH_CAP, (before + released) * (1.0 + bet * step))
            for before, bet in zip(self.wealth, _bets(self.max_loss), strict=True)
        )
        # A plain mean until a hundred labels are there, so that the first does not linger.
        share = max(_RECENT_WEIGHT, 1.0 / n)
        recent = loss if self.recent is None else self.recent + (loss - self.recent) * share
        evidence = sum(wealth) / len(wealth) + _reserve(n)
        alarm_at = self.alarm_at
        if alarm_at is None and evidence >= 1.0 / self.false_alarm:
            alarm_at = n
        return SequentialTest(
            max_loss=self.max_loss,
            false_alarm=self.false_alarm,
            wealth=wealth,
            labels=n,
            loss=self.loss + (loss - self.loss) / n,
            recent=recent,
            alarm_at=alarm_at,
        )

    def to_dict(self) -> dict[str, object]:
        """The state as JSON holds it."""
        return {
            **msgspec.structs.asdict(self),
            "wealth": list(self.wealth),
            # Read by releases that weighted labels.
            "max_weight": 1.0,
            "weight_sum": float(self.labels),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, object]) -> SequentialTest:
        """Read the state that `to_dict` returned.

        Returns:
            The test.

        Raises:
            ValueError: It is not such a state.
        """
        try:
            test = msgspec.convert(dict(state), cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"not a sequential test: {error}") from None
        fresh = start(test.max_loss, test.false_alarm)
        if len(test.wealth) != len(fresh.wealth) or not all(
            0.0 <= w <= WEALTH_CAP for w in test.wealth
        ):
            raise ValueError(f"wealth: expected {len(fresh.wealth)} amounts, got {test.wealth}")
        if test.labels < 0:
            raise ValueError(f"labels: expected at least 0, got {test.labels}")
        return test


def start(max_loss: float, false_alarm: float = 0.05) -> SequentialTest:
    """Start a test of a certified loss.

    Args:
        max_loss: The certified loss.
        false_alarm: Probability that the test ever raises an alarm although the loss stays at most
            `max_loss`.

    Returns:
        The first state.

    Raises:
        ValueError: An argument is out of range.
    """
    for name, value in (("max_loss", max_loss), ("false_alarm", false_alarm)):
        if not 0.0 < value < 1.0:
            raise ValueError(f"{name}: expected above 0 and below 1, got {value!r}")
    return SequentialTest(max_loss=max_loss, false_alarm=false_alarm, wealth=(0.0,) * len(_GROWTH))


def _reserve(labels: int) -> float:
    """The part of the starting wealth that is kept for changes after so many labels."""
    # It falls as slowly as 1 / log, so that some is left for a change after a long good time.
    return 1.0 / log(labels + e)


def _bets(max_loss: float) -> tuple[float, ...]:
    """(n_bets,) stakes per label."""
    # For a right/wrong loss, g / (1 - max_loss) is the best bet on growth from max_loss to
    # (1 + g) max_loss. It is capped, so that one label cannot take all wealth.
    cap = MAX_BET / max_loss
    return tuple(min(g / (1.0 - max_loss), cap) for g in _GROWTH)
