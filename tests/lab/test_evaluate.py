"""`evaluate`: what is judged, on what, against what, and that no label leaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from tests.support.tables import prompts, table

from suffice.errors import TableError, UsageError
from suffice.lab.data.costs import read_prices
from suffice.lab.data.splits import connected_groups, group_kfold
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.evaluate import frontier, metrics
from suffice.lab.evaluate.evaluate import evaluate
from suffice.lab.evaluate.frontier import random_mixtures, sweep_thresholds, sweep_tradeoffs
from suffice.lab.evaluate.result import BASELINES
from suffice.lab.evaluate.robustness import REWORDINGS, WHITE_SPACE, perturb
from suffice.lab.predictors import registry
from suffice.lab.predictors.base import Batch, Predictor, extract_table
from suffice.types import Message

FAST: dict[str, Any] = {"draws": 100}
KEYS = {
    "curve", "area", "area_ci", "gain_over_zero_router", "gain_ci", "qnc", "apgr", "cpt50",
    "cpt80", "apgr_ci",
}  # fmt: skip
THREE = ("lab/small", "lab/middle", "lab/large")


def said(result: dict[str, Any], *words: str) -> bool:
    return any(all(w in n for w in words) for n in (*result["notes"], *result["warnings"]))


# ── the surface ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("models", "costs"),
    [(("lab/weak", "lab/strong"), True), (("lab/weak", "lab/strong"), False), (THREE, True)],
)
def test_the_object_is_that_of_the_surface(models: tuple[str, ...], costs: bool) -> None:
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


def test_baselines_are_what_their_names_say() -> None:
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


def test_pair_metrics_are_those_of_the_protocol() -> None:
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


def test_the_same_seed_gives_the_same_object() -> None:
    made = table(150, THREE)

    def figures() -> dict[str, Any]:
        result = evaluate(made, ["knn"], seed=3, **FAST)
        for p in result["policies"].values():
            p.pop("overhead_us", None)  # measured
        return result

    assert figures() == figures()


# ── no label leaks ───────────────────────────────────────────────────────────────────────────────


class Spy(Predictor):
    """Learns by heart: it knows the scores of the very prompts it was fitted on."""

    name = "spy"
    seen: list[int] = []  # noqa: RUF012  (the test reads it)

    def fit(
        self,
        x: Batch,
        score: FloatArray,
        cost_usd: FloatArray | None,
        price: FloatArray,
        models: Sequence[str],
        sample_weight: FloatArray | None = None,
    ) -> Self:
        Spy.seen.append(len(score))
        self.k = len(models)
        self.known = dict(zip(self.marks(x), score, strict=True))
        self.price = price
        return self

    @staticmethod
    def marks(x: Batch) -> list[bytes]:
        return [v.tobytes() for v in np.round(x.vectors, 4)]

    def predict(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        blank = np.full(self.k, 0.5)
        quality = np.array([self.known.get(m, blank) for m in self.marks(x)])
        return quality, np.broadcast_to(self.price, quality.shape)

    def strong_score(self, x: Batch, strong: int, weak: int) -> FloatArray:
        quality, _ = self.predict(x)
        return np.asarray(quality[:, strong] - quality[:, weak])


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> type[Spy]:
    monkeypatch.setitem(registry.BUILT_IN, "spy", Spy)
    Spy.seen = []
    return Spy


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


def test_what_learns_by_heart_gains_nothing(spy: type[Spy]) -> None:
    made = twice(table(100))
    # It would know the other wording: a fold that split the two would be seen here.
    x = extract_table(made)
    cheat = Spy().fit(x.take(range(100)), made.score[:100], None, np.zeros(2), made.models)
    assert np.array_equal(cheat.predict(x.take(range(100, 200)))[0], made.score[100:])
    spy.seen = []
    result = evaluate(made, ["spy"], **FAST)
    p = result["policies"]["spy"]
    assert p["fitted"] == "cross-fitted, 5 folds"
    assert said(result, "cross-fitted", "share no prompt")
    assert p["apgr"] == pytest.approx(0.5), "a constant score: nothing was known of any query"
    assert len(spy.seen) == 5
    assert all(120 <= n <= 180 for n in spy.seen)


def test_fit_on_drops_judged_queries_and_says_so(spy: type[Spy]) -> None:
    made = table(60, seed=1)
    other = table(80, seed=2)
    both = replace(
        twice(other),
        query_ids=tuple(f"f{i}" for i in range(160)),
        messages=other.messages + tuple(made.messages[i % 60] for i in range(80)),
    )
    result = evaluate(made, ["spy"], fit_on=both, **FAST)
    assert spy.seen == [80]
    assert said(result, "80 of 160 queries", "dropped before fitting")
    assert result["policies"]["spy"]["apgr"] == pytest.approx(0.5)
    with pytest.raises(UsageError, match="every query of that table is also"):
        evaluate(made, ["spy"], fit_on=made, **FAST)


@pytest.mark.slow
def test_fitted_policies_find_the_topic() -> None:
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


def test_leave_one_source_out_fits_on_the_others(spy: type[Spy]) -> None:
    made = table(200, THREE)
    hard = sum(b == "hard" for b in made.benchmark or ())
    result = evaluate(made, ["spy"], leave_one_source_out=True, **FAST)
    parts = result["leave_one_source_out"]
    assert {p: v["n_queries"] for p, v in parts.items()} == {"hard": hard, "easy": 200 - hard}
    assert sorted(spy.seen[5:]) == sorted([hard, 200 - hard])
    assert set(parts["hard"]["policies"]) == {*BASELINES, "spy"}
    with pytest.raises(UsageError, match="fewer than two benchmarks"):
        evaluate(replace(made, benchmark=None), leave_one_source_out=True, **FAST)


def test_by_benchmark_judges_each_apart() -> None:
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


def test_queries_without_every_score_are_left_out_and_counted() -> None:
    made = table(100, THREE)
    score = made.score.copy()
    score[:7, 1] = np.nan
    result = evaluate(replace(made, score=score), **FAST)
    assert result["n_queries"] == 93
    assert result["n_queries_in_table"] == 100
    assert said(result, "7 of 100 queries lack a score")


def test_models_of_few_queries_give_way_unless_named() -> None:
    made = table(100, THREE)
    score = made.score.copy()
    score[10:, 2] = np.nan
    sparse = replace(made, score=score)
    result = evaluate(sparse, **FAST)
    assert set(result["models"]) == set(THREE[:2])
    assert said(result, "left out", "lab/large")
    named = evaluate(sparse, models=list(THREE), **FAST)
    assert named["n_queries"] == 10
    assert set(named["models"]) == set(THREE)


def test_tables_in_blocks_judge_the_largest_block() -> None:
    names = tuple(f"m{j}" for j in range(6))
    made = table(90, names)
    score = np.full_like(made.score, np.nan)
    for b, (rows, cols) in enumerate(((slice(0, 20), [0, 1]), (slice(20, 40), [2, 3]), (slice(40, 90), [4, 5]))):  # fmt: skip
        score[rows, cols] = made.score[rows, cols]
        assert b < 3
    result = evaluate(replace(made, score=score), **FAST)
    assert set(result["models"]) == {"m4", "m5"}
    assert result["n_queries"] == 50


def test_models_that_never_met_are_refused() -> None:
    made = table(40)
    score = made.score.copy()
    score[:20, 0] = np.nan
    score[20:, 1] = np.nan
    with pytest.raises(TableError, match="do not overlap"):
        evaluate(replace(made, score=score), **FAST)


def test_one_model_and_one_query_are_refused() -> None:
    with pytest.raises(TableError, match="one model, 'lab/weak'"):
        evaluate(table(40).select_models(["lab/weak"]), **FAST)
    with pytest.raises(TableError, match="Only one query"):
        evaluate(table(40).take([3]), **FAST)
    with pytest.raises(UsageError, match="alone leaves nothing"):
        evaluate(table(40), models=["weak"], **FAST)


def test_two_queries_do_not_fall_over() -> None:
    result = evaluate(table(2, THREE), **FAST)
    assert said(result, "2 queries are few")


def test_holes_in_costs_take_the_models_mean() -> None:
    made = table(100, THREE)
    usd = made.cost_usd
    assert usd is not None
    holed = usd.copy()
    holed[:5, 1] = np.nan
    result = evaluate(replace(made, cost_usd=holed), **FAST)
    assert said(result, "5 missing costs")
    assert result["models"]["lab/middle"]["cost"] == pytest.approx(usd[5:, 1].mean())


def test_three_models_without_costs_need_prices(tmp_path: Path) -> None:
    made = table(60, THREE, costs=False)
    with pytest.raises(TableError, match=r"No cost is known for.*--prices FILE.json.*--models a,b"):
        evaluate(made, **FAST)
    path = tmp_path / "prices.json"
    path.write_text(
        '{"small": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2},'
        ' "lab/middle": {"input_usd_per_mtok": 2, "output_usd_per_mtok": 4},'
        ' "large": {"input_usd_per_mtok": 3, "output_usd_per_mtok": 6}}'
    )
    result = evaluate(made, prices=read_prices(path), **FAST)
    cost = [m["cost"] for m in result["models"].values()]
    assert cost[1] == pytest.approx(2 * cost[0])
    assert said(result, "list prices", "300 output tokens")
    known = replace(made, output_tokens=np.full((60, 3), 1000.0))
    result = evaluate(known, prices=read_prices(path), **FAST)
    assert result["models"]["lab/small"]["cost"] > 2e-3


def test_list_prices_of_the_catalog_cost_what_they_know() -> None:
    models = ("openai/gpt-4o-mini", "openai/gpt-4o", "house/own")
    result = evaluate(table(60, models, costs=False), **FAST)
    assert set(result["models"]) == set(models[:2])
    assert said(result, "left out", "house/own")
    with pytest.raises(TableError, match="house/own"):
        evaluate(table(60, models, costs=False), models=list(models), **FAST)


@pytest.mark.parametrize("text", ["{", "[]", '{"m": 3}', '{"m": {"input_usd_per_mtok": -1, "output_usd_per_mtok": 1}}'])  # fmt: skip
def test_bad_prices_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="--prices"):
        read_prices(path)


def test_which_is_strong_is_read_off_the_fit_table() -> None:
    made, fit = table(100, seed=1), table(100, seed=2)
    turned = replace(fit, score=fit.score[:, ::-1].copy())
    result = evaluate(made, ["constant"], fit_on=turned, **FAST)
    assert result["strong"] == "lab/weak"
    assert said(result, "table it is fitted on")
    assert said(result, "pair metrics say little")


def test_models_are_matched_by_the_last_part_of_their_name() -> None:
    made, fit = table(100, seed=1), table(100, seed=2)
    renamed = replace(fit, models=("weak", "other/strong"))
    result = evaluate(made, ["trained"], fit_on=renamed, models=["weak", "strong"], **FAST)
    assert set(result["models"]) == {"lab/weak", "lab/strong"}
    with pytest.raises(TableError, match="do not overlap"):
        evaluate(made, ["trained"], fit_on=replace(fit, models=("a", "b")), **FAST)
    with pytest.raises(UsageError, match=r"no model 'wek'.*lab/weak"):
        evaluate(made, models=["wek", "strong"], **FAST)


def test_bad_policies_are_named() -> None:
    with pytest.raises(UsageError, match="trainde"):
        evaluate(table(50), ["trainde"], **FAST)


class Broken(Spy):
    name = "broken"

    def predict(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        return np.full((len(x), self.k), np.nan), np.zeros((len(x), self.k))


def test_a_policy_that_says_nan_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "broken", Broken)
    with pytest.raises(UsageError, match=r"broken.*NaN"):
        evaluate(table(50), ["broken"], **FAST)


def test_many_models_and_equal_prices() -> None:
    names = tuple(f"m{j}" for j in range(40))
    made = table(60, names)
    flat = replace(made, cost_usd=np.full((60, 40), 0.01))
    result = evaluate(flat, **FAST)
    best = made.score.mean(axis=0).max()
    assert result["policies"]["zero_router"]["area"] == pytest.approx(best)
    assert len(result["models"]) == 40


def test_an_artifact_judged_on_its_own_lessons_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from suffice.lab.data.keys import key_hashes

    made = table(60)

    class Remembers(Spy):
        training_keys_ = key_hashes(made.take(range(25)))

    monkeypatch.setitem(registry.BUILT_IN, "remembers", Remembers)
    result = evaluate(made, ["remembers"], **FAST)
    assert said(result, "remembers was trained on 25 of the 60 queries")


# ── choices ──────────────────────────────────────────────────────────────────────────────────────


def test_a_sweep_goes_from_the_best_to_the_cheapest() -> None:
    quality = np.array([[0.2, 0.9, 0.5], [0.7, 0.7, 0.1]])
    cost = np.tile([1.0, 10.0, 5.0], (2, 1))
    choices = sweep_tradeoffs(quality, cost)
    assert choices[0].tolist() == [1, 0], "the best, and of equals the cheapest"
    assert choices[-1].tolist() == [0, 0]
    assert [1, 0] in choices.tolist()


def test_thresholds_go_from_all_to_none() -> None:
    score = np.arange(50.0)
    choices = sweep_thresholds(score, strong=1, weak=0)
    share = choices.mean(axis=1)
    assert (share[0], share[-1]) == (1.0, 0.0)
    assert (np.diff(share) <= 0).all()
    # A new query is sent where its score would have been sent.
    new = sweep_thresholds(np.array([49.5, -1.0]), 1, 0, reference=score)
    assert new[50].tolist() == [1, 0]


def test_mixing_along_the_hull_meets_each_member() -> None:
    coin = np.random.default_rng(0).random(2000)
    choices = random_mixtures(coin, [4, 2, 7])
    assert set(choices[0]) == {4}
    assert set(choices[50]) == {2}
    assert set(choices[-1]) == {7}
    assert (choices[25] == 2).mean() == pytest.approx(0.5, abs=0.05)
    assert random_mixtures(coin, [3]).shape == (1, 2000)


# ── rewording ────────────────────────────────────────────────────────────────────────────────────


def test_rewordings_change_the_ask_and_nothing_else() -> None:
    text = "Why is the sky blue, and why does it turn red in the evening when the sun goes down?"
    talk = (Message("system", "Be brief."), Message("user", "Hi"), Message("user", text))
    for change in (*WHITE_SPACE.values(), *REWORDINGS.values()):
        other = perturb(talk, change)
        assert other[:2] == talk[:2]
        assert other[2].text != text
    for change in WHITE_SPACE.values():
        assert perturb(talk, change)[2].text.split() == text.split()


def test_flip_rates_and_overhead_are_reported() -> None:
    result = evaluate(table(80), ["default", "trained"], **FAST)
    for name in ("length", "default", "trained"):
        p = result["policies"][name]
        assert p["flip_rate"]["white_space"] == 0.0, name
        assert 0.0 <= p["flip_rate"]["rewording"] <= 1.0
        assert 1.0 < p["overhead_us"] < 1e6


class Jumpy(Spy):
    """Goes by the last character only."""

    name = "jumpy"

    def strong_score(self, x: Batch, strong: int, weak: int) -> FloatArray:
        return np.asarray(x.signals[:, 1] * 1e6 % 7.0, float)


def test_a_jumpy_policy_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "jumpy", Jumpy)
    rng = np.random.default_rng(0)
    texts, _ = prompts(80, rng)
    made = replace(table(80), messages=tuple((Message("user", t),) for t in texts))
    result = evaluate(made, ["jumpy"], **FAST)
    assert result["policies"]["jumpy"]["flip_rate"]["rewording"] > 0.1


@pytest.mark.slow
def test_operating_point_keeps_the_quality_it_names() -> None:
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
