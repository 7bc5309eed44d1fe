"""`suffice replay` as a user types it, over a store that a real SqlStore wrote."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.support.common import toml

from suffice import features
from suffice.cli.options import parse_since
from suffice.errors import UsageError
from suffice.store import open_store
from suffice.types import Decision, Feedback, Objective, PlanStep, Prediction, RequestRecord

CLEAN = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
NOW_S = 1_790_000_000.0


def suffice(*args: str, cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "suffice", *args],
        capture_output=True, text=True, timeout=100, cwd=cwd, env=CLEAN, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with suffice.toml and a store: 500 decisions drawn evenly, the strong model right
    every time and the weak one half of the time; one bypass; one row that is no JSON."""
    folder = tmp_path_factory.mktemp("replay")
    (folder / "suffice.toml").write_text(toml("http://127.0.0.1:9/v1", folder / "s.db"))
    store = open_store(f"sqlite:///{(folder / 's.db').as_posix()}")
    rng = np.random.default_rng(0)
    x = features.extract_text("hello there")
    usd = {"p/weak": 0.0001, "p/strong": 0.002}
    scores = []
    for n in range(502):
        chosen = "p/strong" if rng.random() < 0.5 else "p/weak"
        other = "p/weak" if chosen == "p/strong" else "p/strong"
        decision = Decision(
            id=f"dec_{n:011x}",
            model=chosen,
            plan=(PlanStep(chosen), PlanStep(other, "failover")),
            predictions=tuple(Prediction(m, 0.7, u, None, 0.5) for m, u in usd.items()),
            reason="drawn.",
            policy="random",
            policy_version="random-1",
            objective=Objective(kind="balanced"),
            basis="bypass" if n == 501 else "prior",
            propensity=0.5,
            route="auto",
        )
        store.append(
            RequestRecord(
                decision=decision,
                attempts=(),
                created_s=NOW_S + n,
                request_id=f"req_{n}",
                status=200,
                model=chosen,
                cost_usd=usd[chosen],
                features=x,
                session=f"s{n}",
            )
        )
        good = chosen == "p/strong" or rng.random() < 0.5
        scores.append(Feedback(decision_id=decision.id, score=float(good)))
    assert store.flush()
    for f in scores:
        assert store.feedback.add(f)
    store.close()
    with sqlite3.connect(folder / "s.db") as connection:
        connection.execute("UPDATE decisions SET detail = '{' WHERE id = 'dec_00000000007'")
    return folder


def test_json_is_one_object(workspace: Path) -> None:
    code, out, err = suffice("replay", "--policy", "best", "--json", cwd=workspace)
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["decisions"] == result["labelled"] == 500
    assert result["skipped"] == 1
    assert result["skipped_rows"][0][0] == "dec_00000000007"
    assert list(result["left_out"].values()) == [1]
    assert set(result["estimates"]) == {"ips", "snips", "doubly_robust", "direct"}
    assert result["estimates"]["snips"]["value"] == pytest.approx(1.0)
    assert result["verdict"]["word"] == "better"
    assert result["verdict"]["lower_bound"] > 0.15
    assert result["cost"]["value"] == pytest.approx(0.002)


@pytest.mark.slow
def test_the_output_for_people_has_every_part(workspace: Path) -> None:
    code, out, _ = suffice("replay", "--policy", "cheapest", cwd=workspace)
    assert code == 0
    for text in ("Worse", "doubly robust", "self-normalised", "IPS", "direct", "dec_00000000007",
                 "asked for by name", "cost per decision", "would choose"):  # fmt: skip
        assert text in out
    code, out, _ = suffice(
        "replay", "--policy", "best", "--since", "2026-09-21T18:00Z", cwd=workspace
    )
    assert code == 1, "nothing is that young"


def test_an_inconclusive_log_gives_the_reason(workspace: Path) -> None:
    late = str(int(NOW_S) + 402)
    code, out, _ = suffice(
        "replay", "--policy", "best", "--json", "--since", iso(late), cwd=workspace
    )
    assert code == 0
    result = json.loads(out)
    assert result["decisions"] < 100
    assert result["verdict"]["word"] == "cannot judge"
    assert "100 are needed" in result["verdict"]["why"]


def iso(unix_s: str) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(float(unix_s), UTC).isoformat()


@pytest.mark.parametrize(
    ("args", "text", "want"),
    [
        ((), "--policy", 2),
        (("--policy", "bset"), "best", 2),
        (("--policy", "none.npz"), "none.npz", 2),
        (("--policy", "best", "--since", "yesterday"), "7d", 2),
        (("--policy", "best", "--route", "atuo"), "auto", 2),
        (("--policy", "best", "--objective", "cheapst"), "cheapest", 2),
        (("--policy", "best", "--config", "none.toml"), "no such file", 2),
        (("--policy", "best", "--since", "1m"), "no decision to replay", 1),
    ],
)
def test_bad_usage_has_a_remedy(
    workspace: Path, args: tuple[str, ...], text: str, want: int
) -> None:
    code, out, err = suffice("replay", *args, cwd=workspace)
    assert (code, out) == (want, "")
    assert text in err


def test_a_missing_store_is_an_error_and_none_is_created(tmp_path: Path) -> None:
    (tmp_path / "suffice.toml").write_text(toml("http://127.0.0.1:9/v1", tmp_path / "s.db"))
    code, _, err = suffice("replay", "--policy", "best", cwd=tmp_path)
    assert code == 1
    assert "nothing has been recorded" in err
    assert not (tmp_path / "s.db").exists()


def test_since_accepts_ages_and_times() -> None:
    assert parse_since("7d", 1e9) == 1e9 - 7 * 86400
    assert parse_since("12h", 1e9) == 1e9 - 12 * 3600
    assert parse_since("30m", 1e9) == 1e9 - 1800
    assert parse_since("2w", 1e9) == 1e9 - 14 * 86400
    assert parse_since("1970-01-02", 0.0) == 86400.0
    assert parse_since("1970-01-01T01:00Z", 0.0) == 3600.0
    assert parse_since("1970-01-01T02:00+01:00", 0.0) == 3600.0
    for wrong in ("", "d", "-1d", "7", "7y", "soon", "2026-13-01", "²d"):
        with pytest.raises(UsageError, match="--since"):
            parse_since(wrong, 1e9)
