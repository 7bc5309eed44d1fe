"""`suffice collect` as a user runs it, and as the machine kills it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from suffice.lab.data.load import load_table
from suffice.providers.fake import FakeModel, FakeUpstream

# No key of the machine's own may change what a test sees.
CLEAN = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
CONCURRENCY = 4
QUERIES = 30


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "suffice", "collect", *args]


def suffice(cwd: Path, *args: str) -> tuple[int, str, str]:
    done = subprocess.run(
        command(*args), cwd=cwd, capture_output=True, text=True, timeout=100, env=CLEAN,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path: Path, fake: FakeUpstream, config: Callable[..., Path]) -> Path:
    judge = '[models."p/judge"]\ninput_usd_per_mtok = 1.0\noutput_usd_per_mtok = 4.0\n'
    config(models=judge)
    fake.set_model("weak", FakeModel(reply="It is 4.", first_chunk_s=0.02))
    fake.set_model("strong", FakeModel(reply="4", first_chunk_s=0.04))
    fake.set_model("judge", FakeModel(reply="Same.\nVERDICT: TIE", first_chunk_s=0.02))
    rows = [{"query_id": f"q{i}", "prompt": f"What is 2 + 2, take {i}?", "expected": 4}
            for i in range(QUERIES)]  # fmt: skip
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


BOTH = ("q.jsonl", "--models", "p/weak,p/strong", "--out", "labels")


def calls(fake: FakeUpstream) -> Counter[tuple[str, str]]:
    """(model, what it was asked) -> how often."""
    return Counter((s.model, json.loads(s.body)["messages"][-1]["content"]) for s in fake.requests)


def wait_for(fake: FakeUpstream, n: int, process: subprocess.Popen[Any]) -> None:
    end_s = time.monotonic() + 60
    while len(fake.requests) < n:
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < end_s
        time.sleep(0.005)


def test_labels_in_one_command(folder: Path) -> None:
    code, out, err = suffice(folder, *BOTH, "--scorer", "exact", "--json")
    assert code == 0
    summary = json.loads(out)
    assert summary["models"]["p/strong"]["quality"] == 1.0
    assert summary["models"]["p/weak"]["quality"] == 0.0
    assert summary["stopped"] is None
    for said in ("forecast", "30 queries, 60 calls, about $", "60/60", "mean score"):
        assert said in err
    assert json.loads((folder / "labels" / "collect.json").read_text()) == summary
    table = load_table(folder / "labels")
    assert table.score.shape == (QUERIES, 2)
    code, out, err = suffice(folder, *BOTH, "--scorer", "contains")
    assert (code, out) == (0, ""), "without --json standard output is left alone"
    assert "60 queries" not in err


def test_the_forecast_alone_asks_nobody(folder: Path, fake: FakeUpstream) -> None:
    code, out, _ = suffice(folder, *BOTH, "--judge", "p/judge", "--dry-run", "--json")
    assert code == 0
    rows = json.loads(out)["forecast"]["rows"]
    assert [(r["model"], r["calls"]) for r in rows] == [
        ("p/weak", 30), ("p/strong", 30), ("p/judge", 60)
    ]  # fmt: skip
    assert not fake.requests
    assert sorted(p.name for p in folder.iterdir()) == ["q.jsonl", "suffice.toml"]


@pytest.mark.parametrize(("typed", "code"), [(b"n\n", 1), (b"y\n", 0)])
def test_on_a_terminal_it_asks_before_it_spends(
    folder: Path, fake: FakeUpstream, typed: bytes, code: int
) -> None:
    ours, theirs = os.openpty()
    try:
        process = subprocess.Popen(
            command(*BOTH, "--scorer", "exact"), cwd=folder, env=CLEAN,
            stdin=theirs, stderr=theirs, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # a terminal raises it when the other side has closed
            while piece := os.read(ours, 65536):
                if b"Continue?" not in shown and b"Continue?" in shown + piece:
                    assert not fake.requests
                    os.write(ours, typed)
                shown += piece
        assert process.wait(60) == code
    finally:
        os.close(ours)
    assert b"never more" not in shown
    assert b"about $" in shown
    assert len(fake.requests) == (0 if code else 60)


@pytest.mark.slow
def test_killed_and_run_again_nothing_is_paid_for_twice(folder: Path, fake: FakeUpstream) -> None:
    """SIGKILL at three moments, among them while it judges. What was under way at a kill is all that
    is asked again: the upstream saw each other call once."""
    args = (*BOTH, "--judge", "p/judge", "--concurrency", str(CONCURRENCY))
    kills = 0
    for wait in (15, 20, 40):
        process = subprocess.Popen(
            command(*args), cwd=folder, env=CLEAN, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for(fake, len(fake.requests) + wait, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        time.sleep(0.2)  # the fake ends what it was serving
    assert not (folder / "labels" / "queries.parquet").exists(), "no half table"
    # A power cut may tear the last line as well.
    with (folder / "labels" / "ledger.jsonl").open("ab") as ledger:
        ledger.write(b'{"kind":"answer","key":"to')
    code, out, err = suffice(folder, *args, "--json")
    assert code == 0
    assert "calls in flight" in err
    seen = calls(fake)
    distinct = QUERIES * 2 + QUERIES * 2  # answers, and verdicts both ways round
    assert len(seen) == distinct
    assert sum(seen.values()) - distinct <= kills * CONCURRENCY
    assert set(load_table(folder / "labels").score.ravel()) == {1.0}
    summary = json.loads(out)
    table = load_table(folder / "labels")
    assert table.cost_usd is not None
    assert summary["spent_usd"] > table.cost_usd.sum(), "lost calls and the judge are counted"
    assert summary["uncertain_usd"] > 0
    before = len(fake.requests)
    assert suffice(folder, *args)[0] == 0
    assert len(fake.requests) == before


@pytest.mark.slow
def test_ctrl_c_waits_for_what_is_paid_and_writes_the_table(
    folder: Path, fake: FakeUpstream
) -> None:
    args = (*BOTH, "--scorer", "exact", "--concurrency", str(CONCURRENCY), "--json")
    process = subprocess.Popen(
        command(*args), cwd=folder, env=CLEAN, stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for(fake, 12, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "calls in flight are paid for" in err
    summary = json.loads(out)
    assert summary["stopped"] == "interrupted"
    assert summary["uncertain_usd"] == 0.0, "nothing was dropped"
    seen = len(fake.requests)
    table = load_table(folder / "labels")
    assert 0 < len(table) < QUERIES
    assert sum(m["answers"] for m in summary["models"].values()) == seen
    assert suffice(folder, *args)[0] == 0
    assert set(calls(fake).values()) == {1}, "no call was made twice"
    assert len(load_table(folder / "labels")) == QUERIES


@pytest.mark.slow
def test_a_second_ctrl_c_drops_them(folder: Path, fake: FakeUpstream) -> None:
    fake.set_model("strong", FakeModel(reply="4", actions=("ok",) * 5 + ("stall",) * 20))
    args = (*BOTH, "--scorer", "exact", "--concurrency", str(CONCURRENCY), "--json")
    process = subprocess.Popen(
        command(*args), cwd=folder, env=CLEAN, stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for(fake, 12, process)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert json.loads(out)["uncertain_usd"] > 0
    assert len(load_table(folder / "labels")) >= 5


@pytest.mark.slow
def test_the_cap_ends_it_with_a_note(folder: Path) -> None:
    args = (*BOTH, "--max-usd", "0.002", "--max-output-tokens", "100", "--scorer", "exact")
    code, _, err = suffice(folder, *args, "--concurrency", "1")
    assert code == 0
    assert "--max-usd 0.002 stopped it after" in err
    assert 0 < len(load_table(folder / "labels")) < QUERIES
    code, _, err = suffice(folder, *BOTH, "--max-usd", "1", "--max-output-tokens", "100")
    assert code == 0
    assert len(load_table(folder / "labels", need_scores=False)) == QUERIES


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("none.jsonl", "--models", "p/weak", "--out", "t"), "none.jsonl"),
        (("q.jsonl", "--models", "p/weka", "--out", "t"), "p/weak"),
        (("q.jsonl", "--models", ",", "--out", "t"), "--models"),
        (("q.jsonl", "--models", "p/weak"), "--out"),
        ((*BOTH, "--scorer", "exact", "--expected-column", "key"), "'key'"),
        ((*BOTH, "--scorer", "no.such:thing"), "no.such"),
        ((*BOTH, "--max-usd", "-1"), "--max-usd"),
        ((*BOTH, "--concurrency", "0"), "concurrency"),
    ],
)
def test_bad_usage_is_code_2_with_the_remedy(
    folder: Path, fake: FakeUpstream, args: tuple[str, ...], said: str
) -> None:
    code, out, err = suffice(folder, *args)
    assert (code, out) == (2, "")
    assert said in err
    assert not fake.requests
    assert not (folder / "labels").exists()


def test_no_answer_is_code_1_with_the_reason(folder: Path, fake: FakeUpstream) -> None:
    for name in ("weak", "strong"):
        fake.set_model(name, FakeModel(actions=({"status": 401, "repeat": True},)))
    code, _, err = suffice(folder, *BOTH, "--scorer", "exact")
    assert code == 1
    assert "answered 401" in err
