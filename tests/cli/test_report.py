"""`suffice report` as a user types it, over a store that has traffic, and over the gateway's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from tests.support.common import EASY, PROOF
from tests.support.logged_traffic import STRONG, WEAK, Workspace, record

from suffice.gateway import BackgroundServer

CLEAN = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}


def suffice(*args: str, cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "suffice", *args],
        capture_output=True, text=True, timeout=100, cwd=cwd, env=CLEAN, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("report"))
    made.add_explored(500)
    return made


@pytest.mark.slow
def test_the_output_for_people_has_every_part(workspace: Workspace) -> None:
    code, out, err = suffice("report", cwd=workspace.folder)
    assert (code, err) == (0, "")
    words = " ".join(out.split())
    for text in ("spent on 500 requests", "p/strong alone would have cost about", "less.",
                 "quality of p/strong was kept", "reference: p/strong", "Router overhead",
                 "0 of 500 requests failed", "Feedback: user 500"):  # fmt: skip
        assert text in words


def test_json_and_files_have_the_same_content(workspace: Workspace) -> None:
    code, out, err = suffice("report", "--json", "--out", "made", cwd=workspace.folder)
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["requests"] == 500
    assert result["routes"]["auto"]["singles"][STRONG]["usd"] == pytest.approx(1.0, rel=0.01)
    assert result["routes"]["auto"]["quality"]["said"] is True
    made = workspace.folder / "made"
    assert json.loads((made / "savings.json").read_text()) == result
    assert (made / "report.html").read_text().startswith("<!doctype html>")
    assert (made / "mix.png").read_bytes().startswith(b"\x89PNG")
    assert not list(made.glob(".suffice-*"))


@pytest.mark.parametrize(
    ("args", "text", "want"),
    [
        (("--since", "1m"), "holds no request in that time", 1),
        (("--route", "atuo"), "auto", 2),
        (("--since", "yesterday"), "7d", 2),
        (("--config", "none.toml"), "no such file", 2),
        (("--out", "suffice.toml"), "file of that name", 2),
    ],
)
def test_bad_usage_has_a_remedy(
    workspace: Workspace, args: tuple[str, ...], text: str, want: int
) -> None:
    code, out, err = suffice("report", *args, cwd=workspace.folder)
    assert (code, out) == (want, "")
    assert text in err


def test_an_empty_or_missing_store_is_an_error(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    code, _, err = suffice("report", cwd=tmp_path)
    assert code == 1 and "nothing has been recorded" in err
    assert not workspace.file.exists()
    workspace.fill([], [])
    code, _, err = suffice("report", cwd=tmp_path)
    assert code == 1 and "holds no request" in err and "suffice serve" in err


def test_a_route_that_is_no_longer_configured_is_still_reported(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.fill([record(i, WEAK, {WEAK: 0.5, STRONG: 0.5}, route="gone") for i in range(5)], [])
    code, out, _ = suffice("report", "--json", "--route", "gone", cwd=tmp_path)
    assert code == 0
    gone = json.loads(out)["routes"]["gone"]
    assert (gone["decisions"], gone["reference"]) == (5, STRONG)


def test_the_report_adds_up_to_what_the_gateway_served(
    config: Callable[..., Path], tmp_path: Path
) -> None:
    path = config()
    with BackgroundServer(path) as server:
        client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="x", max_retries=0)
        spent = 0.0
        for text in (EASY, PROOF, EASY, PROOF):
            raw = client.chat.completions.with_raw_response.create(
                model="auto", messages=[{"role": "user", "content": text}]
            )
            spent += float(raw.headers["x-suffice-cost-usd"])
        client.close()
    code, out, err = suffice("report", "--json", "--config", str(path), cwd=tmp_path)
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["requests"] == 4
    assert result["spent_usd"] == pytest.approx(spent, rel=1e-3)
    assert sum(sum(n) for n in result["mix"]["models"].values()) == 4
    assert result["routes"]["auto"]["quality"]["said"] is False
