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
from tests.support.logged_traffic import STRONG, WEAK, House, decided

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
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    made = House(tmp_path_factory.mktemp("report"))
    made.explore(500)
    return made


@pytest.mark.slow
def test_a_person_can_read_it(house: House) -> None:
    code, out, err = suffice("report", cwd=house.folder)
    assert (code, err) == (0, "")
    words = " ".join(out.split())
    for said in ("spent on 500 requests", "p/strong alone would have cost about", "less.",
                 "quality of p/strong was kept", "reference: p/strong", "Router overhead",
                 "0 of 500 requests failed", "Feedback: user 500"):  # fmt: skip
        assert said in words


def test_one_json_object_and_the_files(house: House) -> None:
    code, out, err = suffice("report", "--json", "--out", "made", cwd=house.folder)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["requests"] == 500
    assert found["routes"]["auto"]["singles"][STRONG]["usd"] == pytest.approx(1.0, rel=0.01)
    assert found["routes"]["auto"]["quality"]["said"] is True
    made = house.folder / "made"
    assert json.loads((made / "savings.json").read_text()) == found
    assert (made / "report.html").read_text().startswith("<!doctype html>")
    assert (made / "mix.png").read_bytes().startswith(b"\x89PNG")
    assert not list(made.glob(".suffice-*"))


@pytest.mark.parametrize(
    ("args", "said", "want"),
    [
        (("--since", "1m"), "holds no request in that time", 1),
        (("--route", "atuo"), "auto", 2),
        (("--since", "yesterday"), "7d", 2),
        (("--config", "none.toml"), "no such file", 2),
        (("--out", "suffice.toml"), "file of that name", 2),
    ],
)
def test_bad_usage_has_a_remedy(house: House, args: tuple[str, ...], said: str, want: int) -> None:
    code, out, err = suffice("report", *args, cwd=house.folder)
    assert (code, out) == (want, "")
    assert said in err


def test_an_empty_store_and_none_at_all(tmp_path: Path) -> None:
    house = House(tmp_path)
    code, _, err = suffice("report", cwd=tmp_path)
    assert code == 1 and "nothing has been recorded" in err
    assert not house.file.exists()
    house.fill([], [])
    code, _, err = suffice("report", cwd=tmp_path)
    assert code == 1 and "holds no request" in err and "suffice serve" in err


def test_a_route_that_is_no_longer_configured_is_still_reported(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.fill([decided(i, WEAK, {WEAK: 0.5, STRONG: 0.5}, route="gone") for i in range(5)], [])
    code, out, _ = suffice("report", "--json", "--route", "gone", cwd=tmp_path)
    assert code == 0
    gone = json.loads(out)["routes"]["gone"]
    assert (gone["decisions"], gone["reference"]) == (5, STRONG)


def test_what_the_gateway_served_adds_up(config: Callable[..., Path], tmp_path: Path) -> None:
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
    found = json.loads(out)
    assert found["requests"] == 4
    assert found["spent_usd"] == pytest.approx(spent, rel=1e-3)
    assert sum(sum(n) for n in found["mix"]["models"].values()) == 4
    assert found["routes"]["auto"]["quality"]["said"] is False
