"""`suffice assess` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from suffice.cli import main

Run = Callable[..., tuple[int, str, str]]

TEXTS = (
    "Write a python function that sorts a list of integers",
    "Can the court admit the testimony of the defendant?",
    "A recipe for soup with carrots and onions",
    "Why does Jupiter have so many moons?",
)


@pytest.fixture
def suffice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*args: str) -> tuple[int, str, str]:
        code = main(["assess", *args])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


def rows(n: int, models: dict[str, float], labels: bool = True) -> list[dict[str, Any]]:
    """The cheap model fails on law; costs as given."""
    out: list[dict[str, Any]] = []
    for i in range(n):
        query = {"query_id": f"q{i}", "prompt": f"{TEXTS[i % 4]} ({i})"}
        if not labels:
            out.append(query)
        for j, (name, cost) in enumerate(models.items()) if labels else ():
            right = j > 0 or i % 4 != 1
            out.append({**query, "model": name, "score": float(right), "cost_usd": cost})
    return out


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return str(path)


def test_the_report_starts_with_what_to_do(suffice: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", rows(200, {"weak": 0.001, "strong": 0.02}))
    code, out, err = suffice(path)
    assert code == 0, err
    head = out.split("What you ask")[0]
    assert "Run weak and strong." in head
    assert "95 % of strong's score" in head
    for said in ("python function", "Which models to run", "hull", "oracle", "$0.001"):
        assert said in out
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.slow
def test_json_is_one_object_and_nothing_else(suffice: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", rows(200, {"weak": 0.001, "strong": 0.02}))
    code, out, _ = suffice(path, "--json", "--out", "seen")
    assert code == 0
    said = json.loads(out)
    assert said["pool"]["recommended"] == ["weak", "strong"]
    assert said["pool"]["needs_strong"]["value"] == 0.25
    assert said["cost_unit"] == "usd"
    assert {"name", "share", "examples", "needs_strong"} <= set(said["clusters"][0])
    assert json.loads(Path("seen/assess.json").read_text()) == said
    assert Path("seen/cost-quality.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in Path("seen").iterdir()) == ["assess.json", "cost-quality.png"]


def test_logs_without_labels_give_the_first_half(suffice: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", rows(60, {}, labels=False))
    code, out, _ = suffice(path)
    assert code == 0
    assert "suffice collect" in out
    assert "What you ask" in out
    assert "Which models to run" not in out


def test_models_can_be_named(suffice: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", rows(60, {"a": 1.0, "b": 2.0, "c": 3.0}))
    code, out, _ = suffice(path, "--models", "a,c", "--json")
    assert code == 0
    assert set(json.loads(out)["models"]) == {"a", "c"}


def test_prices_come_from_a_config(
    suffice: Run, tmp_path: Path, config: Callable[..., Path]
) -> None:
    lines = [
        {k: v for k, v in r.items() if k != "cost_usd"} for r in rows(80, {"weak": 1, "strong": 1})
    ]
    path = write(tmp_path / "t.jsonl", lines)
    assert json.loads(suffice(path, "--json")[1])["cost_unit"] is None
    said = json.loads(suffice(path, "--json", "--config", str(config()))[1])
    assert said["cost_unit"] == "usd"
    assert said["models"]["weak"]["cost"] < said["models"]["strong"]["cost"]


def test_a_store_is_read_by_url_and_by_path(suffice: Run, tmp_path: Path) -> None:
    from suffice.store import open_store
    from suffice.types import Attempt, Decision, Feedback, Objective, PlanStep, RequestRecord, Usage

    url = f"sqlite:///{(tmp_path / 's.db').as_posix()}"
    store = open_store(url, keep_prompts=True)
    for i in range(30):
        prompt = json.dumps([{"role": "user", "content": f"{TEXTS[i % 4]} ({i})"}]).encode()
        decision = Decision(
            id=f"dec_{i:011x}", model="p/a", plan=(PlanStep("p/a"),), predictions=(), reason="p/a: so.",
            policy="default", policy_version="default-1", objective=Objective(kind="best"),
            basis="prior", route="auto",
        )  # fmt: skip
        store.append(
            RequestRecord(
                decision=decision, attempts=(Attempt("p/a", 1, "ok", 1000.0, 0.2, cost_usd=0.01),),
                created_s=1000.0 + i, request_id=f"r{i}", status=200, model="p/a",
                usage=Usage(10, 5), cost_usd=0.01, prompt=prompt,
            )
        )  # fmt: skip
    assert store.flush()
    for i in range(15):
        store.feedback.add(Feedback(decision_id=f"dec_{i:011x}", score=1.0, created_s=2000.0))
    store.close()
    for where in (url, "s.db"):
        code, out, err = suffice(where, "--json")
        assert code == 0, err
        said = json.loads(out)
        assert said["n_queries"] == 30
        assert sum(c["size"] for c in said["clusters"]) == 30
        assert said["n_labelled"] in (0, 15)  # 15 where the store hands its feedback on


@pytest.mark.parametrize(
    ("name", "text", "args", "said"),
    [
        ("none.jsonl", None, (), "no such file"),
        ("t.jsonl", '{"query_id": "1"}\n', (), "prompt"),
        ("t.jsonl", '{"query_id": "1", "prompt": "x"}\n', ("--models", "gpt-9"), "gpt-9"),
        ("t.jsonl", '{"query_id": "1", "prompt": "x"}\n', ("--clusters", "0"), "--clusters"),
        ("t.jsonl", '{"query_id": "1", "prompt": "x"}\n', ("--out", "t.jsonl"), "--out"),
        ("t.jsonl", '{"query_id": "1", "prompt": "x"}\n', ("--config", "no.toml"), "no.toml"),
    ],
)
def test_bad_input_is_code_2_with_the_remedy(
    suffice: Run, name: str, text: str | None, args: tuple[str, ...], said: str
) -> None:
    if text is not None:
        Path(name).write_text(text)
    code, out, err = suffice(name, *args)
    assert code == 2
    assert said in err
    assert out == ""
