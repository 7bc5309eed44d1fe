"""The commands as a user types them: output, exit codes, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.support.common import EASY, PROOF

from suffice.gateway import BackgroundServer
from suffice.providers.fake import FakeUpstream

# No key of the machine's own may change what a test sees.
CLEAN = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}


def suffice(*args: str, stdin: str | None = None, cwd: Path | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "suffice", *args],
        input=stdin, capture_output=True, text=True, timeout=100, cwd=cwd, env=CLEAN, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_route_explains_with_no_keys_at_all(tmp_path: Path) -> None:
    code, out, _ = suffice("route", EASY, cwd=tmp_path)
    assert code == 0
    for said in ("example pool", "quality", "propensity", "strongest features", "prior"):
        assert said in out
    code, out, _ = suffice("route", PROOF, "--json", cwd=tmp_path)
    decision = json.loads(out)
    assert (
        decision["model"] != json.loads(suffice("route", EASY, "--json", cwd=tmp_path)[1])["model"]
    )
    assert len(decision["predictions"]) == 3
    assert list(tmp_path.iterdir()) == [], "explaining touches no disk"


def test_route_reads_standard_input_and_files(tmp_path: Path, config: Callable[..., Path]) -> None:
    path = str(config())
    code, out, _ = suffice("route", "-", "--config", path, "--json", stdin=PROOF)
    assert (code, json.loads(out)["model"]) == (0, "p/strong")
    messages = tmp_path / "m.json"
    messages.write_text(json.dumps([{"role": "user", "content": EASY}]), "utf-8-sig")
    code, out, _ = suffice("route", "--messages", str(messages), "--config", path, "--json")
    assert json.loads(out)["model"] == "p/weak"
    code, out, _ = suffice("route", EASY, "--objective", "best", "--config", path, "--json")
    assert json.loads(out)["model"] == "p/strong"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("route",), "PROMPT"),
        (("route", "x", "--objective", "cheapst"), "cheapest"),
        (("route", "x", "--route", "atuo"), "auto"),
        (("route", "x", "--config", "none.toml"), "no such file"),
        (("route", "--messages", "none.json"), "none.json"),
        (("rout",), "route"),
        (("feedback", "dec_1", "much"), "valid number"),
        (("serve", "--port", "0"), "port"),
        (("demo", "--queries", "none.jsonl"), "none.jsonl"),
    ],
)
def test_bad_usage_is_code_2_with_the_remedy(
    tmp_path: Path, args: tuple[str, ...], said: str
) -> None:
    code, _, err = suffice(*args, cwd=tmp_path)
    assert code == 2
    assert said in err


@pytest.mark.slow
def test_models_and_doctor(config: Callable[..., Path], tmp_path: Path) -> None:
    path = str(config())
    code, out, _ = suffice("models", "--config", path, "--json")
    assert [m["name"] for m in json.loads(out)["data"]] == ["p/weak", "p/strong"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert len(json.loads(suffice("models", "--json", cwd=empty)[1])["data"]) > 50
    code, out, _ = suffice("doctor", "--config", path)
    assert code == 0
    assert "BROKEN" not in out
    Path(path).write_text(Path(path).read_text().replace("127.0.0.1", "127.0.0.2"))
    code, out, _ = suffice("doctor", "--config", path)
    assert code == 1
    assert "provider p" in out
    code, out, _ = suffice("doctor", cwd=empty)
    assert code == 1
    assert "suffice demo" in out


@pytest.mark.slow
def test_feedback_from_the_shell(config: Callable[..., Path], fake: FakeUpstream) -> None:
    path = config()
    with (
        BackgroundServer(path) as server,
        openai.OpenAI(base_url=server.base_url + "/v1", api_key="x") as client,
    ):
        raw = client.chat.completions.with_raw_response.create(
            model="auto", messages=[{"role": "user", "content": EASY}]
        )
        decision_id = raw.headers["x-suffice-decision-id"]
    code, out, _ = suffice(
        "feedback", decision_id, "0.5", "--source", "test", "--config", str(path)
    )
    assert code == 0
    assert decision_id in out
    assert suffice("feedback", decision_id, "1.5", "--config", str(path))[0] == 2
    assert suffice("feedback", "dec_none", "1", "--config", str(path))[0] == 2


@pytest.mark.slow
def test_the_demo_is_whole() -> None:
    code, out, err = suffice("demo", "--json")
    assert code == 0, err
    s: dict[str, Any] = json.loads(out)
    assert s["simulated"] is True
    assert s["answered"] == s["queries"] >= 80
    assert s["lost"] == 0
    assert s["failovers"] >= 1, "a provider was down for a quarter of it"
    assert s["attempts"] > s["queries"]
    assert s["feedback_posted"] == s["queries"]
    cheap, best = s["always_cheapest"], s["always_best"]
    assert cheap["cost_usd"] < s["cost_usd"] < best["cost_usd"]
    assert cheap["quality_of_the_simulation"] < s["quality_of_the_simulation"]
    assert sum(s["share"].values()) == pytest.approx(1.0)
    assert all(x > 0 for x in s["share"].values())
    assert Path(s["records"]).exists()


@pytest.mark.slow
def test_the_demo_on_own_queries(tmp_path: Path) -> None:
    own = tmp_path / "q.jsonl"
    own.write_text(
        '{"prompt": "hello"}\n\n{"messages": [{"role": "user", "content": "Prove it"}]}\n'
    )
    code, out, err = suffice("demo", "--json", "--queries", str(own))
    assert code == 0, err
    assert json.loads(out)["answered"] == 2
    own.write_text('{"prompt": "hello"}\n{"promt": "x"}\n')
    code, _, err = suffice("demo", "--queries", str(own))
    assert code == 2
    assert "row 2" in err


@pytest.mark.slow
def test_the_demo_on_screen() -> None:
    code, out, _ = suffice("demo")
    assert code == 0
    for said in ("SIMULATED", "is down now", "failed over", "0 lost", "/v1/decisions/dec_"):
        assert said in out


@pytest.mark.slow
def test_help_for_every_command() -> None:
    code, out, _ = suffice("--help")
    assert code == 0
    for name in ("demo", "serve", "route", "models", "doctor", "feedback"):
        assert name in out
        code, more, _ = suffice(name, "--help")
        assert code == 0
        assert "--" in more
