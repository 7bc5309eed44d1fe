"""An evaluation as files: complete, self-contained, all or nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.html_page import HtmlPage
from tests.support.tables import table

from suffice.errors import UsageError
from suffice.lab.evaluate.evaluate import evaluate
from suffice.lab.report import evaluation
from suffice.lab.report.charts import draw_evaluation

NASTY = "<script>alert('x')</script> & co"


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    made = table(120, ("lab/a", f"lab/{NASTY}", "lab/c"))
    made = replace(made, name=NASTY, warnings=(NASTY,))
    return evaluate(made, ["knn"], by=["benchmark"], leave_one_source_out=True, draws=100)


def test_the_page_is_self_contained_and_escapes_text(
    tmp_path: Path, result: dict[str, Any]
) -> None:
    paths = evaluation.write_report(result, tmp_path / "out")
    assert {p.name for p in paths} == {
        "results.json", "curves.png", "closeup.png", "gains.png", "report.html",
    }  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in paths)
    html = HtmlPage((tmp_path / "out" / "report.html").read_text())
    html.assert_self_contained(charts=3)
    for text in ("zero_router", "oracle", "knn", "APGR", "By benchmark", "Leave one source out",
                 evaluation.conclude(result), *result["notes"]):  # fmt: skip
        assert text in html.text
    assert NASTY in html.text


@pytest.mark.slow
def test_results_json_is_the_result(tmp_path: Path, result: dict[str, Any]) -> None:
    evaluation.write_report(result, tmp_path)
    read = json.loads((tmp_path / "results.json").read_text())
    assert read["policies"]["knn"]["area"] == pytest.approx(result["policies"]["knn"]["area"])
    assert set(read) == set(result)


@pytest.mark.slow
@pytest.mark.parametrize("pair", [True, False])
def test_charts_are_reproducible_png(pair: bool) -> None:
    models = ("a", "b") if pair else tuple(f"model-{j}" for j in range(12))
    charts = draw_evaluation(evaluate(table(60, models, costs=not pair), draws=100))
    for data in charts.values():
        assert data.startswith(b"\x89PNG")
        assert len(data) > 5000
    again = draw_evaluation(evaluate(table(60, models, costs=not pair), draws=100))
    assert charts == again


def test_a_failed_write_leaves_no_files(
    tmp_path: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def full(self: Path, data: Any) -> int:
        if self.name == "report.html":
            raise OSError(28, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match="No space left"):
        evaluation.write_report(result, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path, result: dict[str, Any]) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="there is a file of that name"):
        evaluation.write_report(result, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def policy(gain: float, low: float, high: float, qnc: float | None = None) -> dict[str, Any]:
    return {"gain_over_zero_router": gain, "gain_ci": (low, high), "qnc": qnc}


def test_the_verdict_claims_only_what_the_interval_and_the_coin_allow() -> None:
    plain = {"reference": "big", "policies": {"random": policy(0.002, -0.001, 0.004)}}

    def says(**named: dict[str, Any]) -> str:
        return evaluation.conclude({**plain, "policies": {**plain["policies"], **named}})  # type: ignore[dict-item]

    assert "No policy" in says(trained=policy(0.004, -0.001, 0.009))
    assert "No policy" in says(trained=policy(0.0015, 0.0005, 0.003)), "a coin gained as much"
    assert "No policy" in says(oracle=policy(0.1, 0.09, 0.11)), "the oracle is no policy"
    text = says(trained=policy(0.01, 0.004, 0.016, 0.4), knn=policy(0.005, 0.001, 0.01))
    assert text.startswith("trained is best")
    assert "at 40% of its cost" in text
