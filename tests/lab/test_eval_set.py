"""The evaluation set: which models and queries are compared, and what they cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.tables import table

from suffice.errors import TableError, UsageError
from suffice.lab.data.costs import read_prices
from suffice.lab.evaluate.evaluate import evaluate

FAST: dict[str, Any] = {"draws": 100}
THREE = ("lab/small", "lab/middle", "lab/large")


def has_note(result: dict[str, Any], *words: str) -> bool:
    return any(all(w in n for w in words) for n in (*result["notes"], *result["warnings"]))


def test_queries_without_every_score_are_left_out_and_counted() -> None:
    made = table(100, THREE)
    score = made.score.copy()
    score[:7, 1] = np.nan
    result = evaluate(replace(made, score=score), **FAST)
    assert result["n_queries"] == 93
    assert result["n_queries_in_table"] == 100
    assert has_note(result, "7 of 100 queries lack a score")


def test_models_of_few_queries_are_dropped_unless_named() -> None:
    made = table(100, THREE)
    score = made.score.copy()
    score[10:, 2] = np.nan
    sparse = replace(made, score=score)
    result = evaluate(sparse, **FAST)
    assert set(result["models"]) == set(THREE[:2])
    assert has_note(result, "left out", "lab/large")
    named = evaluate(sparse, models=list(THREE), **FAST)
    assert named["n_queries"] == 10
    assert set(named["models"]) == set(THREE)


def test_a_table_in_blocks_is_evaluated_on_the_largest_block() -> None:
    names = tuple(f"m{j}" for j in range(6))
    made = table(90, names)
    score = np.full_like(made.score, np.nan)
    for b, (rows, cols) in enumerate(((slice(0, 20), [0, 1]), (slice(20, 40), [2, 3]), (slice(40, 90), [4, 5]))):  # fmt: skip
        score[rows, cols] = made.score[rows, cols]
        assert b < 3
    result = evaluate(replace(made, score=score), **FAST)
    assert set(result["models"]) == {"m4", "m5"}
    assert result["n_queries"] == 50


def test_models_without_common_queries_are_refused() -> None:
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


def test_two_queries_can_be_evaluated() -> None:
    result = evaluate(table(2, THREE), **FAST)
    assert has_note(result, "2 queries are few")


def test_missing_costs_are_the_models_mean_cost() -> None:
    made = table(100, THREE)
    usd = made.cost_usd
    assert usd is not None
    holed = usd.copy()
    holed[:5, 1] = np.nan
    result = evaluate(replace(made, cost_usd=holed), **FAST)
    assert has_note(result, "5 missing costs")
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
    assert has_note(result, "list prices", "300 output tokens")
    known = replace(made, output_tokens=np.full((60, 3), 1000.0))
    result = evaluate(known, prices=read_prices(path), **FAST)
    assert result["models"]["lab/small"]["cost"] > 2e-3


def test_models_in_the_catalog_are_priced_by_list_prices() -> None:
    models = ("openai/gpt-4o-mini", "openai/gpt-4o", "house/own")
    result = evaluate(table(60, models, costs=False), **FAST)
    assert set(result["models"]) == set(models[:2])
    assert has_note(result, "left out", "house/own")
    with pytest.raises(TableError, match="house/own"):
        evaluate(table(60, models, costs=False), models=list(models), **FAST)


@pytest.mark.parametrize("text", ["{", "[]", '{"m": 3}', '{"m": {"input_usd_per_mtok": -1, "output_usd_per_mtok": 1}}'])  # fmt: skip
def test_bad_prices_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="--prices"):
        read_prices(path)


def test_the_fit_table_decides_which_model_is_strong() -> None:
    made, fit = table(100, seed=1), table(100, seed=2)
    turned = replace(fit, score=fit.score[:, ::-1].copy())
    result = evaluate(made, ["constant"], fit_on=turned, **FAST)
    assert result["strong"] == "lab/weak"
    assert has_note(result, "table it is fitted on")
    assert has_note(result, "pair metrics say little")


def test_models_are_matched_by_the_last_part_of_their_name() -> None:
    made, fit = table(100, seed=1), table(100, seed=2)
    renamed = replace(fit, models=("weak", "other/strong"))
    result = evaluate(made, ["trained"], fit_on=renamed, models=["weak", "strong"], **FAST)
    assert set(result["models"]) == {"lab/weak", "lab/strong"}
    with pytest.raises(TableError, match="do not overlap"):
        evaluate(made, ["trained"], fit_on=replace(fit, models=("a", "b")), **FAST)
    with pytest.raises(UsageError, match=r"no model 'wek'.*lab/weak"):
        evaluate(made, models=["wek", "strong"], **FAST)


def test_many_models_and_equal_prices() -> None:
    names = tuple(f"m{j}" for j in range(40))
    made = table(60, names)
    flat = replace(made, cost_usd=np.full((60, 40), 0.01))
    result = evaluate(flat, **FAST)
    best = made.score.mean(axis=0).max()
    assert result["policies"]["zero_router"]["area"] == pytest.approx(best)
    assert len(result["models"]) == 40
