"""`suffice calibrate` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from suffice.artifacts import certificate as certificates
from suffice.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def suffice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """The command in a folder of its own: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        code = main(list(args))
        out, err = capsys.readouterr()
        return code, " ".join(out.split()), " ".join(err.split())

    return run


@pytest.fixture
def traffic(tmp_path: Path) -> Path:
    """400 queries: the weak model fails the long ones, the strong one nothing."""
    rng = np.random.default_rng(0)
    path = tmp_path / "traffic.jsonl"
    with path.open("w") as file:
        for i in range(400):
            words = int(rng.integers(30, 200))
            prompt = f"case {i}: " + "some words of the ask " * (words // 5)
            for model, right, usd in (
                ("weak", rng.random() > words / 400, 1e-4),
                ("strong", 1, 1e-3),
            ):
                row = {"query_id": i, "prompt": prompt, "model": model, "score": float(right)}
                file.write(json.dumps({**row, "cost_usd": usd}) + "\n")
    return path


def test_a_threshold_is_certified_and_written(suffice: Run, tmp_path: Path, traffic: Path) -> None:
    args = ("calibrate", str(traffic), "--policy", "default", "--max-loss", "0.1")
    code, out, err = suffice(*args, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["certified"] is True and told["file"] == "default.certificate.json"
    c = certificates.load(tmp_path / "default.certificate.json")
    assert told["certificate"]["digest"] == c.digest
    assert (c.reference, c.cheap, c.max_loss, c.confidence) == ("strong", ("weak",), 0.1, 0.9)
    assert 0.3 < c.cheap_share < 0.9 and told["usd_per_query"]["certified"] < 1e-3
    code, out, _ = suffice(*args, "--confidence", "0.99", "--out", "sure.json")
    assert code == 0 and "certified" in out and "99% confidence" in out
    assert certificates.load(tmp_path / "sure.json").threshold < c.threshold


def test_a_failed_calibration_leaves_an_old_certificate_unchanged(
    suffice: Run, tmp_path: Path, traffic: Path
) -> None:
    args = ("calibrate", str(traffic), "--policy", "default", "--max-loss")
    code, out, err = suffice(*args, "0.002", "--json")
    told = json.loads(out)
    assert code == 1 and "Cannot certify" in err and "nothing was written" in err
    assert told["certified"] is False and told["labels_needed"] == 1151
    assert not (tmp_path / "default.certificate.json").exists()
    assert suffice(*args, "0.1")[0] == 0
    before = (tmp_path / "default.certificate.json").read_bytes()
    code, out, err = suffice(*args, "0.002")
    assert code == 1 and "is unchanged" in err and "about 1151" in err
    assert "at the easiest step" in out
    assert (tmp_path / "default.certificate.json").read_bytes() == before


def test_the_certificate_has_the_prices_of_the_config(
    suffice: Run, tmp_path: Path, traffic: Path
) -> None:
    (tmp_path / "mine.toml").write_text(
        '[providers.p]\nbase_url = "http://127.0.0.1:9/v1"\n'
        '[models."p/weak"]\ninput_usd_per_mtok = 0.15\noutput_usd_per_mtok = 0.6\n'
        '[models."p/strong"]\ninput_usd_per_mtok = 2.5\noutput_usd_per_mtok = 10.0\n'
        '[routes.auto]\nmodels = ["p/weak", "p/strong"]\n'
    )
    code, out, err = suffice(
        "calibrate", str(traffic), "--policy", "default", "--max-loss", "0.1", "--config",
        "mine.toml", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["certificate"]["prices"] == {"strong": [2.5, 10.0], "weak": [0.15, 0.6]}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--policy", "default", "--max-loss", "2"), "--max-loss"),
        (("--policy", "trained", "--max-loss", "0.1"), "suffice train"),
        (("--policy", "none.npz", "--max-loss", "0.1"), "none.npz"),
        (("--policy", "default", "--max-loss", "0.1", "--out", "no/c.json"), "folder"),
        (("--policy", "default", "--max-loss", "0.1", "--out", "."), "folder"),
        (("--policy", "default", "--max-loss", "0.1", "--models", "weak,nope"), "nope"),
        (("--policy", "default", "--max-loss", "0.1", "--config", "none.toml"), "none.toml"),
        (("--max-loss", "0.1"), "--policy"),
    ],
)
def test_bad_usage_is_named_and_nothing_is_written(
    suffice: Run, tmp_path: Path, traffic: Path, args: tuple[str, ...], said: str
) -> None:
    code, out, err = suffice("calibrate", str(traffic), *args)
    assert code == 2 and said in err and out == ""
    assert list(tmp_path.glob("*certificate*")) == []
