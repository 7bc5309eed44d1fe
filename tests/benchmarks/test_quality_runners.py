"""The quality runners on a made-up table, and the page generated from the committed results."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
QUALITY = ROOT / "benchmarks" / "quality"
SYNTHETIC = QUALITY / "synthetic"
DOCS = ROOT / "docs" / "benchmarks"


def run(runner: str, out: Path, *options: str) -> dict[str, Any]:
    """Run a runner as a user does and return what it wrote."""
    done = subprocess.run(
        [sys.executable, str(QUALITY / f"{runner}.py"), *options, "--out", str(out)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(out.glob(".*")), "a half-written file was left behind"
    results: dict[str, Any] = json.loads((out / f"{runner}.json").read_text())
    for key in ("machine", "packages", "date", "method"):
        assert results[key], key
    return results


ON_SYNTHETIC = ("--data", str(SYNTHETIC), "--quick")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def pool(out: Path) -> dict[str, Any]:
    return run("pool", out, *ON_SYNTHETIC)


@pytest.fixture(scope="module")
def robustness(out: Path) -> dict[str, Any]:
    return run("robustness", out, *ON_SYNTHETIC)


@pytest.fixture
def quality() -> Iterator[dict[str, ModuleType]]:
    """The runners' own modules, importable as they import each other."""
    sys.path.insert(0, str(QUALITY))
    try:
        import figures
        import page
        import synthetic
        import targets

        yield {"page": page, "targets": targets, "figures": figures, "synthetic": synthetic}
    finally:
        sys.path.remove(str(QUALITY))


# ── runners ──────────────────────────────────────────────────────────────────────────────────────


def test_a_pool_whose_models_differ_by_topic_is_learned(pool: dict[str, Any]) -> None:
    for case in pool["cases"]:
        p = case["policies"]
        # Cheap is as good at two of four topics: who looks at prompts gains, who mixes does not.
        assert p["trained"]["gain"] > p["random"]["gain"] + 0.005
        assert p["trained"]["ci"][0] > 0
        assert p["constant"]["gain"] <= 1e-9
        assert p["trained"]["lowest_seed"] <= p["trained"]["gain"] <= p["trained"]["highest_seed"]
        assert 0 < p["trained"]["qnc"] < 1
        for v in p.values():
            assert v["ci"][0] <= v["gain"] + 1e-9 and v["gain"] - 1e-9 <= v["ci"][1]


def test_more_labels_gain_more(pool: dict[str, Any]) -> None:
    labels = next(c["labels"] for c in pool["cases"] if "labels" in c)
    few, more = labels["100"], labels["300"]
    assert more["trained"]["gain"] > few["trained"]["gain"]


def test_targets_are_judged_by_the_figures(pool: dict[str, Any]) -> None:
    assert len(pool["targets"]) == 2
    for target in pool["targets"]:
        assert target["met"] == (target["gain"] >= target["target"])


def test_the_zero_router_is_the_hull_of_the_models(pool: dict[str, Any]) -> None:
    for case in pool["cases"]:
        points = [(m["usd_per_query"], m["quality"]) for m in case["models"].values()]
        for point in case["zero_router_hull"]:
            assert any(np.allclose(point, p) for p in points)


def test_robustness_counts_prompts(robustness: dict[str, Any]) -> None:
    assert set(robustness["policies"]) == {"default", "trained"}
    for p in robustness["policies"].values():
        assert p["prompts"] == sum(robustness["prompts"].values()) > 0
        for share in p["share"].values():
            assert sum(share.values()) == pytest.approx(1.0)
        assert any(max(share.values()) < 1.0 for share in p["share"].values()), "nothing could flip"
        for kind in p["changes"].values():
            most = max(row["changed"] for row in kind["each"].values())
            assert most <= kind["any"]["changed"] <= p["prompts"]
            for row in (kind["any"], *kind["each"].values()):
                assert row["ci"][0] <= row["rate"] <= row["ci"][1]


def test_white_space_changes_next_to_no_decision(robustness: dict[str, Any]) -> None:
    for p in robustness["policies"].values():
        for change in ("trailing space", "wrapped at 60 columns", "wrapped at 40 columns"):
            assert p["changes"]["white space"]["each"][change]["rate"] <= 0.02


def test_the_test_only_table_is_never_asked(robustness: dict[str, Any]) -> None:
    assert "routellm" not in robustness["prompts"]


def test_a_source_is_left_out_and_judged(robustness: dict[str, Any]) -> None:
    (results,) = robustness["left_out"]
    assert set(results["sources"]) == {"arithmetic", "code", "summary", "lookup"}
    for column, m in results["mean"].items():
        low, high = m["ci"]
        assert low <= m["mean"] <= high, column


@pytest.mark.parametrize("runner", ["pool", "robustness"])
def test_a_folder_without_tables_is_refused(runner: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(QUALITY / f"{runner}.py"), "--data", str(tmp_path), "--out",
         str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "paretobandit_val" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_certificates_and_drift_detection_run_on_made_up_queries(tmp_path: Path) -> None:
    certificates = run("certificates", tmp_path, "--synthetic", "--splits", "2")
    assert {c["rule"] for case in certificates["cases"] for c in case["cells"]} >= {
        "certified",
        "naive",
    }
    drift = run("drift_detection", tmp_path, "--synthetic", "--streams", "2")
    assert all(0 <= r["no_drift"]["watch"]["false_alarms"] <= 1 for r in drift["rows"])


# ── the made-up table ────────────────────────────────────────────────────────────────────────────


def test_the_made_up_table_is_what_its_script_makes(quality: dict[str, ModuleType]) -> None:
    import pyarrow.parquet as pq

    for folder, parts in quality["synthetic"].tables().items():
        for name, rows in zip(("queries", "outcomes"), parts, strict=True):
            assert pq.read_table(SYNTHETIC / folder / f"{name}.parquet").to_pylist() == rows


def test_the_made_up_table_is_small() -> None:
    assert sum(p.stat().st_size for p in SYNTHETIC.rglob("*.parquet")) < 300_000


# ── the page ─────────────────────────────────────────────────────────────────────────────────────


def test_the_page_is_what_the_committed_results_make(quality: dict[str, ModuleType]) -> None:
    page = quality["page"]
    results = page.load(QUALITY / "results")
    assert (DOCS / "quality.md").read_text() == page.build(results), "run `make quality-page`"
    assert page.stale(results, DOCS / "img") == [], "run `make quality-page`"


def test_pictures_are_small_and_shown() -> None:
    text = (DOCS / "quality.md").read_text()
    for picture in (DOCS / "img").glob("*.png"):
        assert picture.stat().st_size < 60_000, picture
        assert f"](img/{picture.name})" in text


def test_no_figure_on_the_page_comes_from_made_up_queries(quality: dict[str, ModuleType]) -> None:
    for name, results in quality["page"].load(QUALITY / "results").items():
        assert not results.get("quick"), name
        assert "synthetic" not in json.dumps(results.get("cases", [])), name


def test_a_page_of_other_results_states_and_draws_them(
    quality: dict[str, ModuleType], pool: dict[str, Any], robustness: dict[str, Any], tmp_path: Path
) -> None:
    page, figures = quality["page"], quality["figures"]
    results = {"pool": pool, "robustness": robustness}
    text = page.build(results)
    gain = pool["cases"][0]["policies"]["trained"]["gain"]
    assert f"{gain:+.4f}" in text
    assert "not measured yet" in text  # of all that is not there
    for name, drawing in figures.needs(results).items():
        assert page.stale(results, tmp_path) == [name]
        (tmp_path / name).write_bytes(figures.draw(drawing))
    assert page.stale(results, tmp_path) == []
    pool["cases"][0]["policies"]["trained"]["hull_first_seed"][0][1] += 0.01
    assert page.stale(results, tmp_path) == ["pareto.png"]
    pool["cases"][0]["policies"]["trained"]["hull_first_seed"][0][1] -= 0.01


def test_a_miss_is_called_a_miss(quality: dict[str, ModuleType]) -> None:
    target = quality["targets"].Target
    assert target("x", ">= 0.6", "0.590", 0.590 - 0.6, "", "").met == "**no**, by 0.0100"
    assert target("x", ">= 0.6", "0.610", 0.610 - 0.6, "", "").met == "yes, by 0.0100"
    assert target("x", "none", "0 of 9", -0.0, "%", "").met == "yes"
    assert target("x", "", "9 us", None, "us", "").met == "reported"
