"""Quality in the savings report, against traffic whose scores are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.logged_traffic import (
    EVEN,
    FEATURES,
    STRONG,
    STRONG_ONLY,
    WEAK,
    WEAK_ONLY,
    Workspace,
    record,
    report,
)

from suffice.lab.ope.logged_choices import Turn
from suffice.lab.report import savings as page
from suffice.lab.savings import quality, traffic
from suffice.types import Feedback


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_quality_kept_is_estimated_if_there_are_enough_labels(workspace: Workspace) -> None:
    workspace.add_explored(800, weak=0.5, strong=0.9)
    q = report(workspace).routes["auto"].quality
    assert q.is_estimated
    assert q.kept is not None and q.kept_ci is not None
    assert q.always_reference == pytest.approx(0.9, abs=0.05)
    assert q.snips == pytest.approx(0.9, abs=0.05)
    assert q.happened == pytest.approx(0.7, abs=0.05)
    mean = q.models[STRONG].mean
    assert mean is not None and q.happened is not None
    assert q.kept == pytest.approx(q.happened / mean, rel=0.01)
    assert q.kept_ci[0] < q.kept < q.kept_ci[1] < 1.0
    assert q.lost is not None and q.lost_ci is not None and q.lost_ci[0] > 0.1
    assert (q.labelled, q.labelled_share, q.support) == (800, 1.0, 1.0)
    assert "was kept" in q.summary
    assert q.models[WEAK].mean == pytest.approx(0.5, abs=0.07)


@pytest.mark.slow
def test_intervals_of_quality_contain_the_true_value() -> None:
    """Sixty draws of 300 labels: misses of the 95 % interval beyond 8 would be chance in 1 of 300."""
    missed = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        route = traffic.RouteTraffic()
        route.decisions = route.answered = route.labelled = route.weighable = 300
        route.candidates[STRONG] = traffic.CandidateTotals(300, 600.0)
        for i in range(300):
            chosen = STRONG if rng.random() < 0.5 else WEAK
            good = float(rng.random() < (0.8 if chosen == STRONG else 0.6))
            route.turns.append(
                Turn(
                    chosen=chosen,
                    score=good,
                    propensities=EVEN,
                    session=i,
                    episode=i,
                    signals=FEATURES.signals,
                    embedding=None,
                )
            )
        q = quality.estimate_quality(route, route.requests.arrays(), STRONG)
        assert q.kept_ci is not None
        missed += not q.kept_ci[0] <= 0.7 / 0.8 <= q.kept_ci[1]
    assert missed <= 8


def test_with_too_few_labels_no_quality_is_stated(workspace: Workspace) -> None:
    workspace.add_explored(400, labelled=0.2)
    r = report(workspace)
    q = r.routes["auto"].quality
    assert not q.is_estimated
    assert (q.kept, q.kept_ci, q.always_reference, q.lost) == (None,) * 4
    assert f"Too few labels: {q.labelled} labels" in q.summary
    assert q.labels_needed == 200, "half of the labels are of the reference; 100 of it are needed"
    assert "about 200 are needed" in q.summary
    assert q.summary in r.headline
    assert "not known" in page.render_html(r, {})


def test_without_exploration_no_number_of_labels_is_named(workspace: Workspace) -> None:
    records = [
        record(i, WEAK if i % 2 else STRONG, WEAK_ONLY if i % 2 else STRONG_ONLY)
        for i in range(400)
    ]
    workspace.fill(records, [Feedback(decision_id=r.decision.id, score=1.0) for r in records])
    q = report(workspace).routes["auto"].quality
    assert not q.is_estimated
    assert q.labels_needed is None
    assert "only 50% of decisions could have gone to p/strong" in q.summary
    assert "does not explore" in q.summary
    assert q.predicted_kept == pytest.approx(0.75 / 0.9), "by the policy's predictions"


def test_without_labels_the_needed_number_is_stated(workspace: Workspace) -> None:
    workspace.add_explored(50, labelled=0.0)
    q = report(workspace).routes["auto"].quality
    assert (q.labelled, q.is_estimated, q.labels_needed) == (0, False, 200)
    assert "0 labels" in q.summary


def test_a_route_that_always_chooses_the_reference_keeps_all_quality(workspace: Workspace) -> None:
    workspace.fill(
        [record(i, STRONG, STRONG_ONLY) for i in range(200)],
        [Feedback(decision_id=f"dec_{i:011x}", score=float(i % 3 > 0)) for i in range(200)],
    )
    q = report(workspace).routes["auto"].quality
    assert q.is_estimated
    assert q.kept == pytest.approx(1.0)
    assert q.lost == pytest.approx(0.0, abs=1e-9)


def test_later_turns_inherit_the_propensity_of_the_first(workspace: Workspace) -> None:
    """Conversations of four turns: the first is a random choice, which the others keep."""
    rng = np.random.default_rng(0)
    records, scores = [], []
    for s in range(250):
        chosen = STRONG if rng.random() < 0.5 else WEAK
        for turn in range(4):
            shares = EVEN
            if turn:
                shares = STRONG_ONLY if chosen == STRONG else WEAK_ONLY
            n = 4 * s + turn
            records.append(record(n, chosen, shares, session=f"s{s}"))
            good = rng.random() < (0.9 if chosen == STRONG else 0.5)
            scores.append(Feedback(decision_id=records[-1].decision.id, score=float(good)))
    workspace.fill(records, scores)
    q = report(workspace).routes["auto"].quality
    assert q.is_estimated
    assert q.support == 1.0
    assert 100 < q.effective < 150, "250 free choices, half of them of the reference"
    assert q.kept_ci is not None and q.kept_ci[0] < 0.7 / 0.9 < q.kept_ci[1]


def test_implicit_signals_are_counted_but_not_used(workspace: Workspace) -> None:
    records = [record(i, STRONG, STRONG_ONLY) for i in range(150)]
    scores = [
        Feedback(decision_id=r.decision.id, score=0.0, source="implicit:retried", kind="implicit")
        for r in records
    ]
    scores += [Feedback(decision_id=records[0].decision.id, score=1.0, source="judge")]
    workspace.fill(records, scores)
    r = report(workspace)
    assert r.feedback["implicit:retried"].decisions == 150
    assert r.feedback["judge"].decisions == 1
    assert r.routes["auto"].quality.labelled == 1


def test_labels_that_depend_on_the_model_cause_a_warning(workspace: Workspace) -> None:
    rng = np.random.default_rng(0)
    records, scores = [], []
    for i in range(400):
        chosen = STRONG if rng.random() < 0.5 else WEAK
        records.append(record(i, chosen, EVEN))
        if chosen == STRONG or rng.random() < 0.2:
            scores.append(Feedback(decision_id=records[-1].decision.id, score=1.0))
    workspace.fill(records, scores)
    assert any("not a fair sample" in w for w in report(workspace).warnings)


@given(n=st.integers(2, 400), good=st.floats(0.0, 1.0))
def test_a_mean_score_is_inside_its_interval(n: int, good: float) -> None:
    right = round(good * n)
    ones = np.array([1.0] * right + [0.0] * (n - right))
    mean, (low, high) = quality.mean_score(np.ones(n), ones)
    assert 0.0 <= low <= mean <= high <= 1.0
    assert high - low > 0.9 / n, "even if all scores are equal"
