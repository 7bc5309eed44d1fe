"""The pacer never passes its ceiling and spends what it should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.budgets.lagrange import solve
from suffice.budgets.pacer import Pacer
from suffice.budgets.traffic_forecast import DAY_S, TrafficForecast, seconds_to_midnight

MODELS = ("weak", "strong")


class Traffic:
    """Queries of two models, cost 1 and 10 a thousandth on average, a gain that differs."""

    def __init__(self, n: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.times = np.sort(rng.random(n)) * DAY_S
        size = rng.gamma(4.0, 0.25, n)
        self.cost = np.stack([size * 0.001, size * 0.01], axis=1)
        gain = rng.beta(1.0, 3.0, n)
        self.quality = np.stack([0.8 - gain, np.full(n, 0.85)], axis=1)


def run(pacer: Pacer, t: Traffic, day: int = 0, max_ratio: float = 4.0) -> tuple[float, float, int]:
    """(spend, mean quality, refused) of a day in which every call is settled at once."""
    spent = quality = 0.0
    refused = 0
    for i, now in enumerate((t.times + day * DAY_S).tolist()):
        p = pacer.decide(now, MODELS, t.quality[i], t.cost[i], t.cost[i] * max_ratio, seed=i)
        j = p.action
        if (
            j is None
            or pacer.reserve(str(i), MODELS[j], t.cost[i, j], t.cost[i, j] * max_ratio, now) is None
        ):
            refused += 1
            continue
        pacer.settle(str(i), t.cost[i, j])
        spent += t.cost[i, j]
        quality += t.quality[i, j]
    return spent, quality / len(t.times), refused


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 3.0 * DAY_S),
            st.lists(st.floats(0.0, 1.0), min_size=2, max_size=2),  # what each costs at most
            st.floats(0.0, 1.0),  # fraction of that maximum that it costs in the end
            st.floats(0.0, 5.0),  # of what is predicted, over what it will cost
            st.integers(0, 3),  # calls settled before it
        ),
        max_size=60,
    ),
    st.floats(0.01, 5.0),
)
def test_the_ceiling_holds_for_any_costs(
    calls: list[tuple[float, list[float], float, float, int]],
    budget: float,
) -> None:
    pacer = Pacer(budget)
    open_calls: list[tuple[str, float, int]] = []
    spent: dict[int, float] = {}
    for n, (now, max_cost, fraction, bias, settled) in enumerate(sorted(calls, key=lambda c: c[0])):
        for _ in range(min(settled, len(open_calls))):
            name, cost, day = open_calls.pop(0)
            pacer.settle(name, cost)
        actual = [usd * fraction for usd in max_cost]
        p = pacer.decide(now, MODELS, (0.5, 0.9), [bias * a for a in actual], max_cost, seed=n)
        day = int(now // DAY_S)
        if p.action is None:
            assert sum(p.propensities) == 0.0
            assert p.reason
        else:
            assert sum(p.propensities) == pytest.approx(1.0)
            reserved = pacer.reserve(
                str(n), MODELS[p.action], actual[p.action], max_cost[p.action], now
            )
            assert reserved is not None
            open_calls.append((str(n), actual[p.action], day))
            spent[day] = spent.get(day, 0.0) + actual[p.action]
            assert spent[day] <= budget + 1e-9
        total = pacer.totals()
        assert total.spent_usd + total.reserved_usd <= total.ceiling_usd
    for name, cost, _ in open_calls:
        pacer.settle(name, cost)
    assert pacer.totals().reserved_usd == 0.0


@pytest.mark.parametrize("budget", [4.0, 8.0, 16.0])
def test_a_day_spends_its_budget_on_the_queries_that_gain_most(budget: float) -> None:
    pacer = Pacer(budget)
    t = Traffic(2000, 1)
    run(pacer, t)
    t = Traffic(2000, 2)
    spent, quality, refused = run(pacer, t, 1)
    assert 0.98 * budget <= spent <= budget
    assert refused == 0
    low, high, mix, _ = solve(t.quality, t.cost, budget / 2000)
    best = [
        float(t.quality[np.arange(2000), np.argmax(t.quality - lam * t.cost, axis=1)].mean())
        for lam in (low, high)
    ]
    optimum = mix * best[0] + (1 - mix) * best[1]
    everywhere_alike = 0.8 - 0.25 + (budget / 2000 - 0.001) / 0.009 * 0.3
    assert quality > optimum - 0.01
    assert quality > everywhere_alike + 0.02


def bursts(n: int, seed: int) -> Traffic:
    """A day with a peak and four crowds of ten minutes each."""
    rng = np.random.default_rng(seed)
    crowds = (rng.random((4, n // 16)) * 600.0 + rng.random((4, 1)) * (DAY_S - 600.0)).ravel()
    calm = (rng.normal(0.6, 0.22, n - len(crowds)) % 1.0) * DAY_S
    t = Traffic(n, seed)
    t.times = np.sort(np.concatenate([calm, crowds]))
    return t


@pytest.mark.parametrize("max_ratio", [4.0, 15.0])  # of the strong model: .5 % and 2 % of the day
def test_a_day_of_bursts_spends_its_budget_within_two_percent(max_ratio: float) -> None:
    pacer, budget = Pacer(8.0), 8.0
    for day in range(3):
        t = bursts(2000, 20 + day)
        spent, _, refused = run(pacer, t, day, max_ratio)
        assert spent <= budget
        if day:
            assert spent >= 0.98 * budget
            assert refused < 0.04 * len(t.times)  # where a crowd comes late


@pytest.mark.parametrize("part", [1.0, 0.0])
def test_the_ceiling_holds_on_a_day_of_bursts_with_maximum_or_unknown_costs(
    part: float,
) -> None:
    pacer, t, spent = Pacer(4.0), bursts(1000, 30), 0.0
    open_calls: list[tuple[str, float]] = []
    for i, now in enumerate(t.times.tolist()):
        max_cost = t.cost[i] * 4.0
        j = pacer.decide(now, MODELS, t.quality[i], t.cost[i], max_cost, seed=i).action
        if j is None:
            continue
        assert pacer.reserve(str(i), MODELS[j], t.cost[i, j], max_cost[j], now) is not None
        open_calls.append((str(i), max_cost[j]))
        if len(open_calls) > 20:
            name, usd = open_calls.pop(0)
            pacer.settle(name, usd if part else None)
            spent += usd
        totals = pacer.totals()
        assert spent <= totals.spent_usd + 1e-9
        assert totals.spent_usd + totals.reserved_usd <= totals.ceiling_usd


def test_a_dry_run_changes_nothing_and_external_requests_count() -> None:
    pacer, other, t = Pacer(8.0), Pacer(8.0), Traffic(100, 12)
    run(pacer, t)
    run(other, t)
    before = pacer.totals()
    for i in range(20):
        pacer.decide(DAY_S + i, MODELS, (0.5, 0.9), (0.1, 0.2), (0.1, 0.2), seed=i, commit=False)
    assert pacer.totals() == before
    assert pacer.requests_today == 100
    for p in (pacer, other):
        p.count_external(7, t.times[-1])
    assert pacer.requests_today == 107
    late, cost = DAY_S - 1.0, (0.001, 0.01)
    decisions = [p.decide(late, MODELS, (0.5, 0.9), cost, cost, seed=3) for p in (pacer, other)]
    assert decisions[0] == decisions[1]


def test_free_calls_are_allowed_when_the_budget_is_spent() -> None:
    pacer = Pacer(1.0)
    pacer.count_external(1, 0.0)
    pacer.sync(2.0)  # the budget was lowered
    assert pacer.decide(0.0, MODELS, (0.5, 0.9), (0.0, 0.1), (0.0, 0.1), seed=0).action == 0
    assert pacer.reserve("a", "weak", 0.0, 0.0, 0.0) == 0
    assert pacer.reserve("b", "strong", 0.1, 0.1, 0.0) is None


def test_a_large_budget_takes_the_best_model_and_a_small_one_the_cheapest_until_spent() -> None:
    t = Traffic(500, 3)
    assert run(Pacer(1000.0), t)[1] == pytest.approx(t.quality.max(axis=1).mean())
    pacer = Pacer(0.25)  # half of what the cheapest costs
    spent, _, refused = run(pacer, t)
    assert 0.2 < spent <= 0.25
    assert 150 < refused < 350
    p = pacer.decide(DAY_S - 1.0, MODELS, (0.5, 0.9), (0.1, 0.2), (0.1, 0.2), seed=0)
    assert p.action is None
    assert "budget" in p.reason
    assert pacer.decide(DAY_S, MODELS, (0.5, 0.9), (0.1, 0.2), (0.1, 0.2), seed=0).action == 0


def test_biased_cost_predictions_are_corrected_by_settled_costs() -> None:
    t = Traffic(2000, 4)
    pacer = Pacer(8.0)
    spent = 0.0
    for i, now in enumerate(t.times.tolist()):
        predicted = t.cost[i] * (0.5, 0.4)
        p = pacer.decide(now, MODELS, t.quality[i], predicted, t.cost[i] * 4, seed=i)
        assert p.action is not None
        j = p.action
        assert pacer.reserve(str(i), MODELS[j], predicted[j], t.cost[i, j] * 4, now)
        pacer.settle(str(i), t.cost[i, j])
        spent += t.cost[i, j]
    assert 0.95 * 8.0 <= spent <= 8.0


def test_after_an_overrun_more_is_reserved() -> None:
    pacer = Pacer(10.0)
    assert pacer.reserve("a", "m", 0.1, 1.0, 0.0)
    pacer.settle("a", 2.0)
    assert pacer.reserve("b", "m", 0.1, 1.0, 1.0)
    assert pacer.totals().reserved_usd == pytest.approx(2.0)
    pacer.settle("b", None)  # not known: all that was reserved
    assert pacer.totals().spent_usd == pytest.approx(4.0)
    with pytest.raises(KeyError):
        pacer.settle("b", 1.0)
    assert pacer.reserve("c", "m", 0.1, 1.0, 2.0)
    with pytest.raises(ValueError, match="'c'"):
        pacer.reserve("c", "m", 0.1, 1.0, 2.0)


def test_a_call_over_midnight_belongs_to_the_day_it_was_made_in() -> None:
    pacer = Pacer(1.0)
    assert pacer.reserve("late", "m", 0.5, 0.9, DAY_S - 1.0)
    assert pacer.reserve("early", "m", 0.5, 0.9, DAY_S + 1.0)
    pacer.settle("late", 0.8)
    assert pacer.totals()[:2] == (0.0, 0.9)
    pacer.settle("early", 0.7)
    assert pacer.totals()[:2] == pytest.approx((0.7, 0.0))


def test_the_spend_of_other_workers_counts() -> None:
    pacer = Pacer(10.0)
    assert pacer.reserve("mine", "m", 1.0, 2.0, 0.0)
    pacer.sync(7.0, 0.5)
    assert None is pacer.reserve("more", "m", 0.1, 0.6, 1.0)
    assert pacer.reserve("more", "m", 0.1, 0.5, 1.0)


def test_an_unknown_maximum_cost_is_never_reserved() -> None:
    assert Pacer(1.0).reserve("a", "weak", 0.001, float("nan"), 0.0) is None


def test_the_next_day_begins_at_midnight_utc() -> None:
    assert seconds_to_midnight(DAY_S * 3 + 100.0) == DAY_S - 100.0


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(
            # Qualities nearer than rounding cannot be separated by any multiplier.
            st.lists(st.floats(0.0, 1.0, width=16), min_size=3 * n, max_size=3 * n),
            st.lists(st.floats(1e-6, 1.0), min_size=3 * n, max_size=3 * n),
        )
    ),
    st.floats(0.0, 1.0),
)
def test_the_mixture_of_two_multipliers_spends_the_requested_mean(
    table: tuple[list[float], list[float]], where: float
) -> None:
    q, c = (np.array(v).reshape(-1, 3) for v in table)
    at = np.arange(len(q))
    least = float(c.min(axis=1).mean())
    most = float(c[at, np.argmax(q, axis=1)].mean())
    each = least + where * (most - least)
    low, high, mix, _ = solve(q, c, each)
    assert 0.0 <= low <= high
    assert 0.0 <= mix <= 1.0
    if np.isinf(low):
        assert each <= least + 1e-12
        return

    def spend(lam: float) -> float:
        merit = q - lam * c
        alike = merit >= merit.max(axis=1, keepdims=True)  # then the cheapest
        return float(np.where(alike, c, np.inf).min(axis=1).mean())

    mixed = mix * spend(low) + (1 - mix) * spend(high)
    assert mixed <= each + 1e-9 or mixed == pytest.approx(each, rel=1e-6)


def test_traffic_is_forecast_from_the_day_before() -> None:
    rng = np.random.default_rng(6)
    day = TrafficForecast()
    for number in range(2):
        times = np.sort(rng.triangular(0, 20 * 3600, DAY_S, 3000)) + number * DAY_S
        for now in times.tolist():
            day.start_day(now)
            day.count(now)
            if number and rng.random() < 0.01:
                true = float((times > now).sum())
                assert abs(day.remaining(now).expected - true) < 0.15 * 3000
    assert day.has_profile
    assert day.remaining(2 * DAY_S - 1.0).expected < 5.0


def test_a_day_joined_in_the_middle_spends_its_share() -> None:
    pacer = Pacer(8.0)
    t = Traffic(2000, 7)
    keep = t.times > DAY_S / 2
    t.times, t.cost, t.quality = t.times[keep], t.cost[keep], t.quality[keep]
    spent, _, _ = run(pacer, t)
    assert spent == pytest.approx(4.0, rel=0.05)


def test_arguments_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="usd_per_day"):
        Pacer(0.0)
    with pytest.raises(ValueError, match="usd_per_day"):
        Pacer(1e8)
    with pytest.raises(ValueError, match="aim"):
        Pacer(1.0, aim=2.0)
