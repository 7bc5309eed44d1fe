"""Sampling weights: a table sampled with known weights estimates the population."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.support.tables import table

from suffice.artifacts import artifact as artifacts
from suffice.errors import TableError
from suffice.lab.calibrate.calibrate import calibrate
from suffice.lab.data.load import load_table
from suffice.lab.data.table import Table
from suffice.lab.evaluate.evaluate import evaluate
from suffice.lab.predictors.base import extract_table
from suffice.lab.predictors.registry import BUILT_IN, make_predictor
from suffice.lab.stats import ClusterBootstrap, effective_weights
from suffice.lab.train.add_model import add_models
from suffice.lab.train.train import train

THREE = ("lab/small", "lab/middle", "lab/large")


def sample(population: Table, share_of_easy: float, seed: int = 99) -> Table:
    """All hard queries of a population, and some of the easy ones, with weights."""
    easy = np.array([b == "easy" for b in population.benchmark or ()])
    chosen = ~easy | (np.random.default_rng(seed).random(len(easy)) < share_of_easy)
    weight = np.where(easy, easy.sum() / (easy & chosen).sum(), 1.0)
    return replace(population, sampling_weight=weight).take(chosen)


def unweighted(t: Table) -> Table:
    return replace(t, sampling_weight=None)


# ── evaluation ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("models", [("lab/weak", "lab/strong"), THREE])
def test_a_weighted_evaluation_estimates_the_population(models: tuple[str, ...]) -> None:
    population = table(4000, models)
    part = sample(population, 0.2)
    whole, weighted, plain = (evaluate(t, draws=100) for t in (population, part, unweighted(part)))
    for model in models:
        quality = whole["models"][model]["quality"]
        assert weighted["models"][model]["quality"] == pytest.approx(quality, abs=0.015)
        assert plain["models"][model]["quality"] < quality or model == models[-1]
    assert plain["models"][models[0]]["quality"] < whole["models"][models[0]]["quality"] - 0.1
    for policy in ("default", "oracle", "random"):
        expected, got = whole["policies"][policy], weighted["policies"][policy]
        assert got["area"] == pytest.approx(expected["area"], abs=0.025)
        if len(models) == 2:
            assert got["apgr"] == pytest.approx(expected["apgr"], abs=0.03)
    share = whole["policies"]["oracle"]["operating_point"]["share"]
    assert weighted["policies"]["oracle"]["operating_point"]["share"] == pytest.approx(
        share, abs=0.05
    )
    assert any("weighted by sampling_weight" in n for n in weighted["notes"])


@pytest.mark.parametrize("models", [("lab/weak", "lab/strong"), THREE])
def test_an_integer_weight_is_that_many_copies(models: tuple[str, ...]) -> None:
    """In every mean; copies share a cluster, so that even the bootstrap is the same."""
    t = table(60, models)
    times = np.random.default_rng(0).integers(1, 4, 60)
    copies = t.take(np.repeat(np.arange(60), times))
    copies = replace(copies, query_ids=tuple(f"c{i}" for i in range(len(copies))))
    one = evaluate(replace(t, sampling_weight=times.astype(float)), draws=100)
    other = evaluate(copies, draws=100)
    assert one["models"] == {m: pytest.approx(v) for m, v in other["models"].items()}
    for name in ("cheapest", "best", "zero_router"):
        a, b = one["policies"][name], other["policies"][name]
        assert a["area"] == pytest.approx(b["area"])
        assert a["area_ci"] == pytest.approx(b["area_ci"])


def test_equal_weights_change_nothing() -> None:
    t = table(120, THREE)
    plain = evaluate(t, ["trained"], draws=100)
    equal = evaluate(replace(t, sampling_weight=np.full(120, 3.0)), ["trained"], draws=100)
    for name, p in plain["policies"].items():
        assert equal["policies"][name]["area"] == pytest.approx(p["area"])
        assert equal["policies"][name]["gain_ci"] == pytest.approx(p["gain_ci"])


def test_unequal_weights_widen_the_bootstrap() -> None:
    values = np.random.default_rng(0).normal(size=(400, 1))
    weight = np.where(np.arange(400) < 40, 9.1, 0.1)
    plain = ClusterBootstrap(np.arange(400), 400, 0).means(values).std()
    weighted = ClusterBootstrap(np.arange(400), 400, 0, weight).means(values).std()
    scaled = effective_weights(weight)
    assert scaled is not None
    assert weighted == pytest.approx(plain * np.sqrt(400 / scaled.sum()), rel=0.2)


# ── training ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {"default", "length"}))
def test_weighted_fits_estimate_the_population(name: str) -> None:
    population = table(3000, THREE)
    part = sample(population, 0.2)
    x = extract_table(part)
    price = np.array([1e-5, 1e-4, 1e-3])
    weight = effective_weights(part.sampling_weight)
    fitted = make_predictor(name).fit(
        x, part.score, part.cost_usd, price, part.models, sample_weight=weight
    )
    predicted = fitted.predict(extract_table(population))[0].mean(axis=0)
    assert predicted == pytest.approx(population.score.mean(axis=0), abs=0.03)


def test_an_artifact_of_a_weighted_table_expects_the_population(tmp_path: Path) -> None:
    population = table(1500, THREE)
    part = sample(population, 0.2)
    weighted, _ = train(part, policy="constant")
    plain, _ = train(unweighted(part), policy="constant")
    truth = population.score.mean(axis=0)
    assert weighted.estimator.quality == pytest.approx(truth, abs=0.03)
    assert plain.estimator.quality[0] < truth[0] - 0.1
    linear, _ = train(part, policy="trained")
    artifacts.save(linear, tmp_path / "a.npz")
    sampled = artifacts.load(tmp_path / "a.npz").sample_quality.mean(axis=0)
    assert sampled == pytest.approx(truth, abs=0.04)


def test_an_added_model_has_the_gap_of_the_population() -> None:
    population = table(3000, THREE)
    part = sample(population, 0.2)
    old, _ = train(population.select_models([THREE[0], THREE[2]]), policy="constant")
    gap = population.score[:, 1].mean() - population.score[:, 2].mean()
    weighted, plain = (
        add_models(old, t).estimator.quality[2] - old.estimator.quality[1]
        for t in (part, unweighted(part))
    )
    assert weighted == pytest.approx(gap, abs=0.04)
    assert abs(plain - gap) > 0.08


def test_a_certificate_from_a_weighted_sample_says_what_it_holds_for() -> None:
    part = sample(table(600, seed=1), 0.5)
    told = calibrate(part, "default", max_loss=0.3, confidence=0.9, date="2026-02-03")
    assert any("unequal sampling_weight" in n for n in told.notes)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def write(path: Path, weights: list[object]) -> Path:
    rows = [
        {"query_id": i, "prompt": f"p {i}", "model": m, "score": 1, "sampling_weight": w}
        for i, w in enumerate(weights)
        for m in "ab"
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_weights_are_read_per_query(tmp_path: Path) -> None:
    t = load_table(write(tmp_path / "t.jsonl", [1.5, 2, 0]))
    assert t.sampling_weight is not None
    assert t.sampling_weight.tolist() == [1.5, 2.0, 0.0]
    assert load_table(write(tmp_path / "u.jsonl", [None, None])).sampling_weight is None


def test_a_query_without_a_weight_counts_once_with_a_warning(tmp_path: Path) -> None:
    t = load_table(write(tmp_path / "t.jsonl", [3, None]))
    assert t.sampling_weight is not None
    assert t.sampling_weight.tolist() == [3.0, 1.0]
    assert any("1 queries have no sampling_weight" in w for w in t.warnings)


@pytest.mark.parametrize(
    ("weights", "error"),
    [([-1], "at least 0"), (["much"], "expected a number"), ([0, 0], "every sampling_weight is 0")],
)
def test_bad_weights_are_named(tmp_path: Path, weights: list[object], error: str) -> None:
    with pytest.raises(TableError, match=error) as caught:
        load_table(write(tmp_path / "t.jsonl", weights))
    assert "sampling_weight" in str(caught.value)


def test_two_weights_of_one_query_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [1])
    path.write_text(path.read_text().replace('"sampling_weight": 1', '"sampling_weight": 2', 1))
    with pytest.raises(TableError, match="another sampling_weight above"):
        load_table(path)
