"""The sequential test: no alarm while the loss holds, an alarm after it grew, the same after a restart."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.monitoring import sequential_test
from suffice.monitoring.sequential_test import SequentialTest

LOSSES = st.lists(st.floats(0, 1), min_size=1, max_size=60)


def run(losses: np.ndarray, max_loss: float = 0.05, false_alarm: float = 0.05) -> SequentialTest:
    w = sequential_test.start(max_loss, false_alarm)
    for x in losses.tolist():
        w = w.update(x)
        if w.alarmed:
            break
    return w


def test_false_alarms_stay_below_the_stated_rate_at_the_very_bound() -> None:
    rng = np.random.default_rng(3)
    streams = 200
    alarms = sum(
        run((rng.random(600) < 0.1).astype(float), 0.1, 0.2).alarmed for _ in range(streams)
    )
    # Three deviations above what 20 % would give; betting on the truth being worse fails this.
    assert alarms / streams <= 0.2 + 3 * (0.2 * 0.8 / streams) ** 0.5
    assert alarms > 0, "a watch that never moves would pass too"


@pytest.mark.parametrize("before", [0, 1000])
def test_a_doubled_loss_raises_an_alarm(before: int) -> None:
    rng = np.random.default_rng(4)
    delays = []
    for _ in range(12):
        good = (rng.random(before) < 0.04).astype(float)
        bad = (rng.random(4000) < 0.12).astype(float)
        w = run(np.concatenate([good, bad]))
        assert w.alarm_at is not None
        delays.append(w.alarm_at - before)
    assert 0 < np.median(delays) < 1000


def test_graded_losses_are_tested_too() -> None:
    rng = np.random.default_rng(5)
    assert not run(rng.beta(1, 39, 2000)).alarmed
    assert run(rng.beta(1, 6, 2000)).alarmed


@given(LOSSES)
def test_expected_wealth_never_grows_at_the_bound(losses: list[float]) -> None:
    """One step of the e-process by its definition: over a loss whose mean is exactly the bound, the
    expected evidence is no more than before."""
    w = sequential_test.start(0.1)
    for loss in losses:
        w = w.update(loss)
    after = 0.1 * w.update(1.0).evidence + 0.9 * w.update(0.0).evidence
    assert after <= w.evidence * (1 + 1e-9)
    assert min(w.update(1.0).wealth + w.update(0.0).wealth) >= 0


@given(LOSSES)
def test_a_state_round_trips_through_json(losses: list[float]) -> None:
    w = sequential_test.start(0.05, 0.01)
    for loss in losses:
        w = w.update(loss)
        back = SequentialTest.from_dict(json.loads(json.dumps(w.to_dict())))
        assert back == w
    assert back.update(1.0) == w.update(1.0)


def test_a_state_of_an_earlier_release_is_read() -> None:
    """Earlier releases stored weights, which were always 1."""
    w = sequential_test.start(0.05).update(1.0).update(0.0)
    state = w.to_dict()
    assert (state["max_weight"], state["weight_sum"]) == (1.0, 2.0)
    assert SequentialTest.from_dict(state) == w


@given(LOSSES)
def test_the_loss_is_the_mean_and_the_alarm_does_not_end(losses: list[float]) -> None:
    w = sequential_test.start(0.05)
    first = None
    for i, loss in enumerate(losses, 1):
        w = w.update(loss)
        if first is None and w.alarmed:
            first = i
        assert w.alarm_at == first
    assert w.loss == pytest.approx(sum(losses) / len(losses), abs=1e-9)
    assert 0 <= (w.recent or 0) <= 1


def test_the_reason_states_the_losses() -> None:
    w = sequential_test.start(0.05)
    assert "No label yet" in w.reason
    assert "nothing contradicts" in w.update(0.0).reason
    bad = run(np.ones(50))
    assert bad.alarmed and "more than the certified 0.05" in bad.reason and "0.05" in bad.reason


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sequential_test.start(0.0), "max_loss"),
        (lambda: sequential_test.start(0.1, 1.0), "false_alarm"),
        (lambda: sequential_test.start(0.1).update(1.01), "loss"),
        (lambda: sequential_test.start(0.1).update(float("nan")), "loss"),
        (lambda: SequentialTest.from_dict({"max_loss": 0.1}), "not a sequential test"),
        (
            lambda: SequentialTest.from_dict(
                {**sequential_test.start(0.1).to_dict(), "wealth": [1.0]}
            ),
            "wealth",
        ),
        (
            lambda: SequentialTest.from_dict(
                {**sequential_test.start(0.1).to_dict(), "labels": -1}
            ),
            "labels",
        ),
    ],
)
def test_arguments_out_of_range_are_named(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()
