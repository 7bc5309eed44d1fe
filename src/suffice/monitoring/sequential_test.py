"""Watches a certified loss on a trickle of labelled decisions: an alarm when it has grown.

Anytime-valid: look after every label, for ever. While the expected loss of every decision stays at
most `max_loss`, the probability that this watch ever raises an alarm is at most `false_alarm`; that
is a rate per watch (per certificate), not per look. How long a real change stays unseen is measured
(docs/concepts/certified-thresholds.md), not promised.

Wealth is bet against 'the loss is at most max_loss': a label multiplies it by 1 + bet x (loss -
max_loss), whose expectation is at most 1 while that holds, so that wealth reaches 1 / false_alarm
with probability at most false_alarm (Ville 1939; Waudby-Smith & Ramdas 2024, section 4). Since a
long good time would eat all wealth, the starting wealth of 1 is spread over every label at which
the change may come (an e-process made of e-detectors that start one after another: Shin, Ramdas &
Rinaldo 2023, "E-detectors") and over a few bets fixed in advance, each best for one size of change.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import e, isfinite, log
from typing import Any

import msgspec

# Sizes of change, in multiples of max_loss, for which the bets are best.
_GROWTH = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_BOLDEST = 0.9  # of a bet's wealth at stake on one label, at most
_RICH = 1e12  # wealth beyond which nothing more is learned, kept finite
_MEMORY = 0.01  # of the running mean that is shown: about the last hundred labels


class SequentialTest(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one watch. Make one with `begin`, get the next with `update`.

    max_weight: the largest weight a label may have. wealth: (n_bets,). labels: seen so far.
    loss: weighted mean loss of all labels; recent: of about the last hundred, None before any.
    alarm_at: the label, counted from 1, at which the alarm was raised; it stays.
    """

    max_loss: float
    false_alarm: float
    max_weight: float
    wealth: tuple[float, ...]
    labels: int = 0
    weight_sum: float = 0.0
    loss: float = 0.0
    recent: float | None = None
    alarm_at: int | None = None

    @property
    def alarmed(self) -> bool:
        return self.alarm_at is not None

    @property
    def evidence(self) -> float:
        """Wealth now: 1 at the start, `1 / false_alarm` is the alarm."""
        return sum(self.wealth) / len(self.wealth) + _unspent(self.labels)

    @property
    def reason(self) -> str:
        """What it sees, in one sentence."""
        if self.recent is None:
            return f"No label yet; a loss of at most {self.max_loss:g} is certified."
        seen = f"{self.recent:.3f} lately, {self.loss:.3f} over {self.labels} labels"
        if self.alarm_at is None:
            return f"The loss is {seen}; nothing speaks against at most {self.max_loss:g}."
        return (
            f"The loss is {seen}, more than the certified {self.max_loss:g}: shown at label "
            f"{self.alarm_at} with a false-alarm probability of {self.false_alarm:g}."
        )

    def update(self, loss: float, weight: float = 1.0) -> SequentialTest:
        """The state after one label.

        loss: in [0, 1], max(0, score of the reference - score served); a decision that the
        reference itself served is a label of loss 0 that nobody has to pay for, and must be given
        as often as others are drawn. weight: what makes up for unequal chances of being labelled,
        proportional to 1 / that chance; above 0, at most `max_weight`. Raises ValueError.
        """
        if not 0.0 <= loss <= 1.0:
            raise ValueError(f"loss: expected 0 to 1, got {loss!r}")
        if not 0.0 < weight <= self.max_weight:
            raise ValueError(f"weight: expected above 0, at most {self.max_weight:g}: {weight!r}")
        n = self.labels + 1
        fresh = _unspent(n - 1) - _unspent(n)
        step = weight * (loss - self.max_loss)
        wealth = tuple(
            min(_RICH, (had + fresh) * (1.0 + bet * step))
            for had, bet in zip(self.wealth, _bets(self.max_loss, self.max_weight), strict=True)
        )
        total = self.weight_sum + weight
        mean = self.loss + (loss - self.loss) * weight / total
        # A plain mean until the memory is full, so that the first label does not linger.
        share = max(_MEMORY, weight / total)
        recent = loss if self.recent is None else self.recent + (loss - self.recent) * share
        evidence = sum(wealth) / len(wealth) + _unspent(n)
        alarm_at = self.alarm_at
        if alarm_at is None and evidence >= 1.0 / self.false_alarm:
            alarm_at = n
        return SequentialTest(
            max_loss=self.max_loss,
            false_alarm=self.false_alarm,
            max_weight=self.max_weight,
            wealth=wealth,
            labels=n,
            weight_sum=total,
            loss=mean,
            recent=recent,
            alarm_at=alarm_at,
        )

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON holds it."""
        out: dict[str, Any] = msgspec.to_builtins(self)
        return {**out, "wealth": list(self.wealth)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> SequentialTest:
        """The state that `to_dict` gave. Raises ValueError where it is not one."""
        try:
            found = msgspec.convert(dict(state), cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"no state of a watch: {error}") from None
        fresh = begin(found.max_loss, found.false_alarm, found.max_weight)
        if len(found.wealth) != len(fresh.wealth) or not all(
            0.0 <= w <= _RICH for w in found.wealth
        ):
            raise ValueError(f"wealth: expected {len(fresh.wealth)} amounts, got {found.wealth}")
        if found.labels < 0 or not isfinite(found.weight_sum):
            raise ValueError(f"labels: expected at least 0, got {found.labels}")
        return found


def begin(max_loss: float, false_alarm: float = 0.05, max_weight: float = 1.0) -> SequentialTest:
    """A watch over a certified loss. false_alarm: probability that it ever raises an alarm although
    the loss stays at most `max_loss`. Raises ValueError."""
    for name, value in (("max_loss", max_loss), ("false_alarm", false_alarm)):
        if not 0.0 < value < 1.0:
            raise ValueError(f"{name}: expected above 0 and below 1, got {value!r}")
    if not (isfinite(max_weight) and max_weight > 0.0):
        raise ValueError(f"max_weight: expected above 0, got {max_weight!r}")
    return SequentialTest(
        max_loss=max_loss,
        false_alarm=false_alarm,
        max_weight=max_weight,
        wealth=(0.0,) * len(_GROWTH),
    )


def _unspent(labels: int) -> float:
    """The part of the starting wealth kept for changes after so many labels. It falls as slowly as
    1 / log, so that a change after a long good time still finds some."""
    return 1.0 / log(labels + e)


def _bets(max_loss: float, max_weight: float) -> tuple[float, ...]:
    """(n_bets,): growth from max_loss to (1 + g) max_loss of a right/wrong loss is bet on best with
    g / (1 - max_loss); never so much that one label could take all."""
    most = _BOLDEST / (max_loss * max_weight)
    return tuple(min(g / (1.0 - max_loss), most) for g in _GROWTH)
