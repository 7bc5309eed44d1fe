"""`evaluate`: what is judged, on what, against what, and that no label leaks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.support.predictors import MemorizingPredictor
from tests.support.tables import table

from suffice.errors import TableError, UsageError
from suffice.lab.data.splits import connected_groups, group_kfold
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.evaluate import frontier, metrics
from suffice.lab.evaluate.evaluate import evaluate
from suffice.lab.evaluate.result import BASELINES
from suffice.lab.predictors import registry
from suffice.lab.predictors.base import Batch, extract_table
from suffice.types import Message

FAST: dict[str, Any] = {"draws": 100}
KEYS = {
    "curve", "area", "area_ci", "gain_over_zero_router", "gain_ci", "qnc", "apgr", "cpt50",
    "cpt80", "apgr_ci",
}  # fmt: skip
THREE = ("lab/small", "lab/middle", "lab/large")


def has_note(result: dict[str, Any], *words: str) -> bool:
    return any(all(w in n for w in words) for n in (*result["notes"], *result["warnings"]))


# ── the surface ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("models", "costs"),
    [(("lab/weak", "lab/strong"), True), (("lab/weak", "lab/strong"), False), (THREE, True)],
)
def test_the_result_has_every_public_key(models: tuple[str, ...], costs: bool) -> None:
    result = evaluate(table(120, models, costs=costs), **FAST)
    assert set(result["models"]) == set(models)
    assert result["n_queries"] == 120
    assert result["cost_unit"] == ("usd" if costs else "strong_share")
    assert {*BASELINES, "default"} <= set(result["policies"])
    for name, p in result["policies"].items():
        assert set(p) >= KEYS, name
        assert all(len(point) == 2 for point in p["curve"])
        assert [c for c, _ in p["curve"]] == sorted(c for c, _ in p["curve"])
        low, high = p["area_ci"]
        assert low <= high
    pair = len(models) == 2
    for name in ("random", "length", "default", "oracle", "zero_router"):
        assert (result["policies"][name]["apgr"] is not None) is pair


def test_baselines_have_the_expected_figures() -> None:
    made = table(500, THREE)
    result = evaluate(made, **FAST)
    p = result["policies"]
    means = made.score.mean(axis=0)
    usd = made.cost_usd
    assert usd is not None
    assert p["cheapest"]["curve"] == [[pytest.approx(usd[:, 0].mean()), pytest.approx(means[0])]]
    best = int(np.argmax(means))
    assert p["best"]["curve"] == [[pytest.approx(usd[:, best].mean()), pytest.approx(means[best])]]
    assert p["best"]["qnc"] == pytest.approx(1.0)
    singles = np.stack([usd.mean(axis=0), means], axis=1)
    assert p["zero_router"]["curve"] == pytest.approx(frontier.zero_router_hull(singles))
    assert p["zero_router"]["gain_over_zero_router"] == 0.0
    # The oracle's best point takes the best of every query.
    assert max(q for _, q in p["oracle"]["curve"]) == pytest.approx(made.score.max(axis=1).mean())
    assert p["oracle"]["area"] == max(x["area"] for x in p.values())
    # A coin that mixes single models is the zero router, but for chance.
    assert abs(p["random"]["gain_over_zero_router"]) < 0.02
    assert p["random"]["gain_ci"][0] < 0.004


def test_pair_metrics_follow_the_protocol() -> None:
    made = table(300, costs=False)
    result = evaluate(made, **FAST)
    score = registry.make_predictor("length")
    x = extract_table(made)
    score.fit(x.take([]), np.empty((0, 2)), None, np.array([0.0, 1.0]), made.models)
    p = metrics.pair_curve(score.strong_score(x, 1, 0), made.score[:, 1], made.score[:, 0])
    got = result["policies"]["length"]
    assert got["apgr"] == pytest.approx(p.apgr)
    assert (got["cpt50"], got["cpt80"]) == (p.cpt(0.5), p.cpt(0.8))
    assert result["strong"] == "lab/strong"
    assert result["policies"]["zero_router"]["apgr"] == 0.5
    assert result["policies"]["cheapest"]["apgr"] is None, "one model has no trade-off"


def test_the_same_seed_gives_the_same_result() -> None:
    made = table(150, THREE)

    def figures() -> dict[str, Any]:
        result = evaluate(made, ["knn"], seed=3, **FAST)
        for p in result["policies"].values():
            p.pop("overhead_us", None)  # measured
        return result

    assert figures() == figures()


# ── no label leaks ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> type[MemorizingPredictor]:
    monkeypatch.setitem(registry.BUILT_IN, "spy", MemorizingPredictor)
    MemorizingPredictor.seen = []
    return MemorizingPredictor


def twice(made: Table) -> Table:
    """Every question a second time, under other wrapping."""
    n = len(made)
    double = made.take(list(range(n)) * 2)
    said = tuple((Message("user", f"Question: {c[-1].text.upper()}"),) for c in made.messages)
    return replace(
        double,
        query_ids=tuple(f"r{i}" for i in range(2 * n)),
        messages=made.messages + said,
    )


def test_a_memorizing_predictor_gains_nothing(spy: type[MemorizingPredictor]) -> None:
    made = twice(table(100))
    # It would know the other wording: a fold that split the two would be seen here.
    x = extract_table(made)
    cheat = MemorizingPredictor().fit(
        x.take(range(100)), made.score[:100], None, np.zeros(2), made.models
    )
    assert np.array_equal(cheat.predict(x.take(range(100, 200)))[0], made.score[100:])
    spy.seen = []
    result = evaluate(made, ["spy"], **FAST)
    p = result["policies"]["spy"]
    assert p["fitted"] == "cross-fitted, 5 folds"
    assert has_note(result, "cross-fitted", "share no prompt")
    assert p["apgr"] == pytest.approx(0.5), "a constant score: nothing was known of any query"
    assert len(spy.seen) == 5
    assert all(120 <= n <= 180 for n in spy.seen)


def test_fit_on_drops_evaluated_queries_with_a_note(spy: type[MemorizingPredictor]) -> None:
    made = table(60, seed=1)
    other = table(80, seed=2)
    both = replace(
        twice(other),
        query_ids=tuple(f"f{i}" for i in range(160)),
        messages=other.messages + tuple(made.messages[i % 60] for i in range(80)),
    )
    result = evaluate(made, ["spy"], fit_on=both, **FAST)
    assert spy.seen == [80]
    assert has_note(result, "80 of 160 queries", "dropped before fitting")
    assert result["policies"]["spy"]["apgr"] == pytest.approx(0.5)
    with pytest.raises(UsageError, match="every query of that table is also"):
        evaluate(made, ["spy"], fit_on=made, **FAST)


@pytest.mark.slow
def test_fitted_policies_learn_the_topic() -> None:
    # A topic decides; lengths say nothing.
    result = evaluate(table(400, seed=1), fit_on=table(1200, seed=2), **FAST)
    p = result["policies"]
    assert set(p) == {*BASELINES, "default", "trained", "knn", "cluster", "ridge", "constant"}
    assert p["trained"]["fitted"] == "fitted on 1,200 queries"
    assert p["trained"]["apgr"] > 0.65
    assert p["trained"]["gain_ci"][0] > 0
    assert abs(p["length"]["apgr"] - 0.5) < 0.12


def test_groups_stay_together_in_folds_and_intervals() -> None:
    made = table(200)
    alone = evaluate(made, **FAST)
    grouped = evaluate(replace(made, group=tuple(f"s{i // 20}" for i in range(200))), **FAST)
    assert alone["n_clusters"] == 200
    assert grouped["n_clusters"] == 10
    clusters = connected_groups(replace(made, group=tuple(f"s{i % 7}" for i in range(200))))
    fold = group_kfold(clusters, 5, 0)
    for c in range(7):
        assert len(set(fold[clusters == c])) == 1
    sizes = np.bincount(fold)
    assert len(sizes) == 5
    assert sizes.max() <= 60


def test_one_cluster_cannot_be_cross_fitted() -> None:
    made = replace(table(30), group=("same",) * 30)
    with pytest.raises(TableError, match=r"cannot be cross-fitted.*--fit-on"):
        evaluate(made, ["trained"], **FAST)


def test_leave_one_source_out_fits_on_the_others(spy: type[MemorizingPredictor]) -> None:
    made = table(200, THREE)
    hard = sum(b == "hard" for b in made.benchmark or ())
    result = evaluate(made, ["spy"], leave_one_source_out=True, **FAST)
    parts = result["leave_one_source_out"]
    assert {p: v["n_queries"] for p, v in parts.items()} == {"hard": hard, "easy": 200 - hard}
    assert sorted(spy.seen[5:]) == sorted([hard, 200 - hard])
    assert set(parts["hard"]["policies"]) == {*BASELINES, "spy"}
    with pytest.raises(UsageError, match="fewer than two benchmarks"):
        evaluate(replace(made, benchmark=None), leave_one_source_out=True, **FAST)


def test_by_benchmark_scores_each_separately() -> None:
    made = table(200)
    result = evaluate(made, by=["benchmark"], **FAST)
    parts = result["by"]["benchmark"]
    rows = np.array([b == "hard" for b in made.benchmark or ()])
    apart = evaluate(made.take(rows), **FAST)
    assert parts["hard"]["n_queries"] == rows.sum()
    for name in ("length", "default"):
        assert parts["hard"]["policies"][name]["apgr"] == pytest.approx(
            apart["policies"][name]["apgr"]
        )
    with pytest.raises(UsageError, match="no category"):
        evaluate(made, by=["category"], **FAST)
    with pytest.raises(UsageError, match="benchmark or category"):
        evaluate(made, by=["colour"], **FAST)


# ── unknown scores and costs ─────────────────────────────────────────────────────────────────────


def test_bad_policies_are_named() -> None:
    with pytest.raises(UsageError, match="trainde"):
        evaluate(table(50), ["trainde"], **FAST)


class Broken(MemorizingPredictor):
    name = "broken"

    def predict(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        return np.full((len(x), self.k), np.nan), np.zeros((len(x), self.k))


def test_a_policy_that_predicts_nan_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "broken", Broken)
    with pytest.raises(UsageError, match=r"broken.*NaN"):
        evaluate(table(50), ["broken"], **FAST)


def test_an_artifact_evaluated_on_its_training_queries_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from suffice.lab.data.keys import key_hashes

    made = table(60)

    class Remembers(MemorizingPredictor):
        training_keys_ = key_hashes(made.take(range(25)))

    monkeypatch.setitem(registry.BUILT_IN, "remembers", Remembers)
    result = evaluate(made, ["remembers"], **FAST)
    assert has_note(result, "remembers was trained on 25 of the 60 queries")


# ── choices ──────────────────────────────────────────────────────────────────────────────────────


# ── rewording ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_operating_point_keeps_its_quality() -> None:
    made = table(400, THREE)
    result = evaluate(made, fit_on=table(600, THREE, seed=9), **FAST)
    best = max(m["quality"] for m in result["models"].values())
    for name, p in result["policies"].items():
        o = p["operating_point"]
        assert sum(o["share"].values()) == pytest.approx(1.0)
        assert o["net_loss"] == pytest.approx(best - o["quality"])
        assert o["gross_loss"] >= o["net_loss"] - 1e-12
        if o["kept"]:
            assert o["quality"] >= 0.95 * best - 1e-12, name
        at = {e["of_best"]: e for e in p["at_equal_quality"]}
        if p["qnc"] is not None:
            dear = result["models"][result["reference"]]["cost"]
            assert at[1.0]["cost"] == pytest.approx(p["qnc"] * dear)
