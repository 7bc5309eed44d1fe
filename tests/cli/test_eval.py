"""`suffice eval` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.tables import table, write_folder, write_jsonl

from suffice.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def suffice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs a command in an empty folder and gives (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*args: str) -> tuple[int, str, str]:
        code = main(list(args))
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


FAST = ("--draws", "100")


@pytest.fixture
def pair(tmp_path: Path) -> str:
    return str(write_folder(table(120, costs=False), tmp_path / "pair"))


@pytest.mark.slow
def test_json_is_one_object_and_nothing_else(suffice: Run, pair: str) -> None:
    code, out, err = suffice("eval", pair, "--json", *FAST)
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["table"] == "pair"
    assert result["n_queries"] == 120
    assert result["cost_unit"] == "strong_share"
    assert result["models"]["lab/strong"]["cost"] == 1.0
    assert {"cheapest", "best", "random", "length", "zero_router", "oracle", "default"} == set(
        result["policies"]
    )
    assert 0 < result["policies"]["default"]["apgr"] < 1


def test_the_terminal_shows_policies_intervals_and_notes(
    suffice: Run, tmp_path: Path, pair: str
) -> None:
    fit = write_jsonl(table(300, costs=False, seed=5), tmp_path / "fit.jsonl")
    out_dir = tmp_path / "made" / "out"
    code, out, _ = suffice(
        "eval", pair, "--fit-on", str(fit), "--policy", "trained", "--policy", "knn,constant",
        "--models", "weak,strong", "--by", "benchmark", "--out", str(out_dir), *FAST,
    )  # fmt: skip
    assert code == 0
    for said in ("APGR", "CPT50", "zero_router", "trained", "knn", "constant", "[", "a coin",
                 "fitted on 300 queries", "by benchmark", "report.html"):  # fmt: skip
        assert said in out
    assert max(len(x) for x in out.splitlines() if "zero_router" in x) <= 80
    assert sorted(p.name for p in out_dir.iterdir()) == [
        "closeup.png", "curves.png", "gains.png", "report.html", "results.json",
    ]  # fmt: skip


def test_more_than_two_models_show_area(suffice: Run, tmp_path: Path) -> None:
    path = write_jsonl(table(150, ("a", "b", "c")), tmp_path / "three.jsonl")
    code, out, _ = suffice("eval", str(path), "--leave-one-source-out", *FAST)
    assert code == 0
    assert "area" in out
    assert "APGR" not in out
    assert "leave one source out" in out


def test_help_describes_the_tables(suffice: Run) -> None:
    code, out, _ = suffice("eval", "--help")
    assert code == 0
    for said in ("queries.parquet", "outcomes.parquet", "score from 0 to 1", "cost_usd",
                 "RouterBench", "MT-Bench", "LiteLLM", "share of strong calls", "--fit-on"):  # fmt: skip
        assert said in " ".join(out.split())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("none",), "no such file"),
        (("pair", "--policy", "trainde"), "trained"),
        (("pair", "--policy", "none.npz"), "none.npz"),
        (("pair", "--models", "weak"), "at least two"),
        (("pair", "--models", "weak,stronk"), "lab/strong"),
        (("pair", "--models", ""), "--models"),
        (("pair", "--fit-on", "pair"), "Leave it out"),
        (("pair", "--fit-on", "none"), "no such file"),
        (("pair", "--by", "colour"), "benchmark or category"),
        (("pair", "--by", "category"), "no category"),
        (("pair", "--prices", "none.json"), "--prices"),
        (("pair", "--draws", "3"), "100"),
        (("pair", "--out", "taken"), "file of that name"),
        (("three.jsonl",), "--prices"),
        (("one.jsonl",), "at least two"),
        (("bad.jsonl",), "column 'score', row 1"),
        (("garbage.jsonl",), "not valid JSON"),
        (("empty.csv",), "empty"),
    ],
)
def test_bad_input_is_code_2_with_the_remedy(
    suffice: Run, tmp_path: Path, pair: str, args: tuple[str, ...], said: str
) -> None:
    (tmp_path / "taken").write_text("x")
    write_jsonl(table(20, ("a", "b", "c"), costs=False), tmp_path / "three.jsonl")
    write_jsonl(table(20).select_models(["lab/weak"]), tmp_path / "one.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x", "model": "m", "score": 3}\n')
    (tmp_path / "garbage.jsonl").write_text("{{{\n")
    (tmp_path / "empty.csv").write_text("")
    out = () if "--out" in args else ("--out", "made")
    code, _, err = suffice("eval", *args, *out)
    assert code == 2, err
    assert said in " ".join(err.split())
    assert not (tmp_path / "made").exists(), "nothing half-written"
