"""`suffice train`, as a user runs it, and the gateway that serves what it made."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest
from tests.support.tables import table, write_folder, write_jsonl

from suffice.cli import main
from suffice.gateway import BackgroundServer
from suffice.providers.fake import FakeUpstream


@pytest.mark.slow
def test_a_trained_artifact_routes_each_topic_to_its_model(
    tmp_path: Path, fake: FakeUpstream, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folder(table(400, ("p/weak", "p/strong")), tmp_path / "labels")
    out = tmp_path / "router.npz"
    assert main(["train", str(data), "--out", str(out), "--licence", "CC0"]) == 0
    said = capsys.readouterr().out
    assert "zero router" in said
    assert "router.npz" in said
    config = tmp_path / "suffice.toml"
    config.write_text(
        f"""
[store]
url = "sqlite:///{(tmp_path / "s.db").as_posix()}"
[providers.p]
dialect = "openai"
base_url = "{fake.base_url}"
[models."p/weak"]
input_usd_per_mtok = 0.1
output_usd_per_mtok = 0.4
[models."p/strong"]
input_usd_per_mtok = 2.0
output_usd_per_mtok = 8.0
[routes.auto]
models = ["p/weak", "p/strong"]
policy = "router.npz"
objective = {{ keep_quality = 0.95 }}
"""
    )
    easy = "what is the capital city of x please tell me number 77"
    hard = "prove that the integral of the polynomial x converges and derive its limit number 77"
    models = {}
    with (
        BackgroundServer(config) as server,
        openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none") as client,
    ):
        for ask in (easy, hard):
            raw = client.chat.completions.with_raw_response.create(
                model="auto", messages=[{"role": "user", "content": ask}]
            )
            models[ask] = raw.headers["x-suffice-model"]
            assert "(trained)" in raw.headers["x-suffice-reason"]
    assert models == {easy: "p/weak", hard: "p/strong"}
    assert main(["route", hard, "--config", str(config), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["basis"] == "trained"
    assert told["model"] == "p/strong"


def test_json_is_one_object_with_the_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(table(80), tmp_path / "t.jsonl")
    out = tmp_path / "a.npz"
    assert main(["train", str(data), "--out", str(out), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert sorted(card["models"]) == ["lab/strong", "lab/weak"]
    assert card["schema"] == "artifact-1"
    assert len(card["digest"]) == 64


def test_a_bad_table_leaves_an_old_artifact_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.npz"
    out.write_bytes(b"old")
    bad = tmp_path / "t.jsonl"
    bad.write_text('{"query_id": "1", "prompt": "x", "model": "a", "score": 7}\n')
    assert main(["train", str(bad), "--out", str(out)]) == 2
    assert "score" in capsys.readouterr().err
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "t.jsonl"]


def test_a_missing_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(table(80), tmp_path / "t.jsonl")
    assert main(["train", str(data), "--out", str(tmp_path / "no" / "a.npz")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_config_with_a_missing_artifact_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "suffice.toml"
    config.write_text('[routes.auto]\nmodels = ["openai/gpt-5"]\npolicy = "router.npz"\n')
    assert main(["route", "hi", "--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert "router.npz" in said
    assert "suffice train" in said


def test_extend_adds_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three = ("lab/small", "lab/middle", "lab/large")
    pair = write_jsonl(
        table(200, three).select_models([three[0], three[2]]), tmp_path / "pair.jsonl"
    )
    whole = write_jsonl(table(200, three), tmp_path / "whole.jsonl")
    old, new = tmp_path / "old.npz", tmp_path / "new.npz"
    assert main(["train", str(pair), "--out", str(old), "--policy", "trained"]) == 0
    assert main(["train", str(whole), "--out", str(new), "--extend", str(old), "--json"]) == 0
    out = capsys.readouterr().out
    models = json.loads(out[out.index("{") :])["models"]
    assert sorted(models[:2]) == ["lab/large", "lab/small"]
    assert models[2] == "lab/middle"
