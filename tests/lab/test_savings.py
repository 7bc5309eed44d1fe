"""Costs of single models in the savings report, against traffic whose costs are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.logged_traffic import (
    PREDICTED_USD,
    STRONG,
    STRONG_ONLY,
    WEAK,
    WEAK_ONLY,
    Workspace,
    record,
    report,
)

from suffice.lab.report import savings as page
from suffice.lab.savings import traffic
from suffice.types import RequestRecord


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def unpredicted_lengths(n: int, seed: int = 0) -> tuple[list[RequestRecord], dict[str, float]]:
    """Records of a router without exploration, and the true cost of each model alone.

    The easy half goes to the weak model, the hard half to the strong route. Answers to hard requests
    are four times as long as predicted, so each model's ratio of paid to predicted cost is biased.
    """
    rng = np.random.default_rng(seed)
    records, true = [], {WEAK: 0.0, STRONG: 0.0}
    for i in range(n):
        hard = bool(rng.random() < 0.5)
        length = (4.0 if hard else 1.0) * float(rng.lognormal(0.0, 0.3))
        cost = {m: PREDICTED_USD[m] * length for m in PREDICTED_USD}
        for m in true:
            true[m] += cost[m]
        chosen = STRONG if hard else WEAK
        shares = STRONG_ONLY if hard else WEAK_ONLY
        difficulty = 0.5 + 0.4 * rng.random() if hard else 0.4 * rng.random()
        records.append(
            record(i, chosen, shares, cost_usd=cost[chosen], difficulty=float(difficulty))
        )
    return records, true


def test_a_model_alone_is_priced_on_all_requests_not_on_those_it_answered(
    workspace: Workspace,
) -> None:
    records, true = unpredicted_lengths(600)
    workspace.fill(records, [])
    route = report(workspace).routes["auto"]
    spent = sum(r.cost_usd or 0.0 for r in records)
    assert route.spent_usd == pytest.approx(spent)
    assert route.compared == 600
    for model, cost in true.items():
        s = route.singles[model]
        assert s.usd == pytest.approx(cost, rel=0.05)
        assert s.usd_ci is not None and s.usd_ci[0] < cost < s.usd_ci[1]
        assert s.saved == pytest.approx(1 - spent / cost, abs=0.1 * spent / cost)
    # By the ratio of the hard half alone it would be 1.6 times the truth.
    assert route.singles[STRONG].usd < 1.1 * true[STRONG]  # type: ignore[operator]
    assert route.reference == STRONG
    assert "less." in report(workspace).headline[1]


def test_longer_answers_of_a_model_are_learned_from_traffic(workspace: Workspace) -> None:
    rng = np.random.default_rng(1)
    records = []
    for i in range(1500):  # random choices; the strong model's answers are three times as long
        chosen = STRONG if rng.random() < 0.5 else WEAK
        longer = 3.0 if chosen == STRONG else 1.0
        records.append(
            record(i, chosen, {WEAK: 0.5, STRONG: 0.5}, cost_usd=PREDICTED_USD[chosen] * longer)
        )
    workspace.fill(records, [])
    route = report(workspace).routes["auto"]
    assert route.singles[STRONG].usd == pytest.approx(1500 * 3 * PREDICTED_USD[STRONG], rel=0.05)
    assert route.singles[WEAK].usd == pytest.approx(1500 * PREDICTED_USD[WEAK], rel=0.05)
    assert route.singles[STRONG].paid_over_predicted == pytest.approx(3.0)


def test_an_unknown_cost_is_counted_and_never_zero(workspace: Workspace) -> None:
    even = {WEAK: 0.5, STRONG: 0.5}
    records = [record(i, WEAK, even) for i in range(40)]
    records += [record(i, WEAK, even, cost_usd=None) for i in range(40, 50)]
    workspace.fill(records, [])
    r = report(workspace)
    assert (r.requests, r.cost_unknown) == (50, 10)
    assert r.spent_usd == pytest.approx(40 * PREDICTED_USD[WEAK])
    assert r.routes["auto"].compared == 40
    assert "not counting 10 of them of unknown cost" in r.headline[0]
    assert any("cost of 10 of 50 requests is unknown" in w for w in r.warnings)


def test_no_saving_is_stated_without_a_predicted_cost(workspace: Workspace) -> None:
    only_weak = {WEAK: PREDICTED_USD[WEAK]}
    even = {WEAK: 0.5, STRONG: 0.5}
    workspace.fill([record(i, WEAK, even, predicted=only_weak) for i in range(30)], [])
    r = report(workspace)
    s = r.routes["auto"].singles[STRONG]
    assert (s.requests, s.usd, s.saved, s.usd_ci) == (0, None, None, None)
    assert "unknown" in r.headline[1]
    assert "unknown" in page.render_html(r, {})


def test_a_model_is_compared_on_the_requests_that_it_could_take(workspace: Workspace) -> None:
    both, strong = {WEAK: 0.5, STRONG: 0.5}, {STRONG: 1.0}
    records = [record(i, WEAK, both) for i in range(60)]
    records += [record(i, STRONG, strong) for i in range(60, 80)]  # too long for the weak one
    workspace.fill(records, [])
    route = report(workspace).routes["auto"]
    weak = route.singles[WEAK]
    assert (weak.requests, weak.coverage) == (60, 0.75)
    assert weak.spent_usd == pytest.approx(60 * PREDICTED_USD[WEAK])
    assert weak.saved == pytest.approx(0.0, abs=0.01)
    assert route.singles[STRONG].coverage == 1.0


def test_a_free_answer_uses_the_predicted_cost_of_other_models(workspace: Workspace) -> None:
    """A local model is free; the cost of the paid one is its prediction."""
    predicted = {WEAK: 0.0, STRONG: 0.002}
    even = {WEAK: 0.5, STRONG: 0.5}
    workspace.fill([record(i, WEAK, even, predicted=predicted) for i in range(50)], [])
    route = report(workspace).routes["auto"]
    assert route.singles[STRONG].usd == pytest.approx(0.1)
    assert route.singles[STRONG].saved == pytest.approx(1.0)
    assert (route.singles[WEAK].usd, route.singles[WEAK].saved) == (0.0, None)


def test_turns_of_a_session_widen_the_interval(tmp_path: Path) -> None:
    def width(turns: int) -> float:
        folder = tmp_path / str(turns)
        folder.mkdir()
        workspace = Workspace(folder)
        rng = np.random.default_rng(0)
        records = []
        for i in range(400):
            if i % turns == 0:
                long = float(rng.lognormal(0.0, 1.0))
            records.append(
                record(i, WEAK, {WEAK: 0.5, STRONG: 0.5}, cost_usd=PREDICTED_USD[WEAK] * long,
                        session=f"s{i // turns}")
            )  # fmt: skip
        workspace.fill(records, [])
        s = report(workspace).routes["auto"].singles[WEAK]
        assert s.usd is not None and s.usd_ci is not None
        return (s.usd_ci[1] - s.usd_ci[0]) / s.usd

    assert width(20) > 2 * width(1)


def test_a_model_that_never_answers_has_a_wider_interval(workspace: Workspace) -> None:
    """The length of its answers is unknown; there is only its prediction."""
    workspace.fill([record(i, WEAK, {WEAK: 0.5, STRONG: 0.5}) for i in range(200)], [])
    r = report(workspace)
    weak, strong = (r.routes["auto"].singles[m] for m in (WEAK, STRONG))
    assert strong.calibrated_on == 0
    assert "It was never chosen" in r.headline[1]

    def width(s: Any) -> float:
        return float((s.usd_ci[1] - s.usd_ci[0]) / s.usd)

    assert width(weak) == pytest.approx(0.0, abs=1e-6)
    assert width(strong) > 0.5
    assert strong.usd == pytest.approx(200 * PREDICTED_USD[STRONG], rel=0.01)


def test_grouping_of_sessions_keeps_estimates_and_intervals(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, _ = unpredicted_lengths(500)
    workspace.fill(records, [])
    whole = report(workspace).routes["auto"]
    monkeypatch.setattr(traffic, "MAX_GROUPS", 100)
    few = report(workspace).routes["auto"]
    assert few.sessions == 100
    for model, s in whole.singles.items():
        other = few.singles[model]
        assert other.usd == pytest.approx(s.usd)
        assert other.usd_ci is not None and s.usd_ci is not None
        wide = s.usd_ci[1] - s.usd_ci[0]
        assert other.usd_ci[1] - other.usd_ci[0] == pytest.approx(wide, rel=0.4)


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_totals_are_the_sums_of_the_rows(
    data: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Requests, costs and statuses add up, and every share is in [0, 1]."""
    workspace = Workspace(tmp_path_factory.mktemp("sums"))
    records = []
    for i in range(data.draw(st.integers(1, 25))):
        chosen = data.draw(st.sampled_from([WEAK, STRONG]))
        p = data.draw(st.floats(0.0, 1.0))
        shares = {chosen: p, WEAK if chosen == STRONG else STRONG: 1 - p}
        status = data.draw(st.sampled_from([200, 200, 499, 502]))
        records.append(
            record(
                i, chosen, shares, status=status,
                model=chosen if status == 200 else data.draw(st.sampled_from([None, WEAK])),
                cost_usd=data.draw(st.none() | st.floats(0.0, 1.0)),
                session=data.draw(st.sampled_from([None, "a", "b"])),
                difficulty=data.draw(st.none() | st.floats(0.0, 1.0)),
                basis=data.draw(st.sampled_from(["prior", "bypass"])),
                predicted=data.draw(
                    st.dictionaries(st.sampled_from([WEAK, STRONG]), st.floats(0.0, 1.0))
                ),
            )
        )  # fmt: skip
    workspace.fill(records, [])
    r = report(workspace)
    assert r.requests == len(records)
    assert r.spent_usd == pytest.approx(sum(x.cost_usd or 0.0 for x in records))
    assert r.cost_unknown == sum(x.cost_usd is None for x in records)
    assert sum(r.statuses.values()) == len(records)
    answered = sum(sum(n) for n in r.mix.models.values())
    assert answered + r.failed + r.client_disconnects == len(records)
    assert r.bypass + sum(route.decisions for route in r.routes.values()) == len(records)
    assert sum(r.mix.spent_usd) == pytest.approx(r.spent_usd)
    for route in r.routes.values():
        for s in route.singles.values():
            assert 0.0 <= s.coverage <= 1.0
            assert s.usd is None or (np.isfinite(s.usd) and s.usd >= 0.0)
    assert json.loads(msgspec.json.encode(r))["requests"] == len(records)
    page.render_html(r, {})
