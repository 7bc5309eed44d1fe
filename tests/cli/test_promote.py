"""`suffice promote`, `rollback` and `snapshots` as a user types them, over a store that has traffic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.support.logged_traffic import STRONG, WEAK, Workspace, record
from tests.support.trained_artifacts import artifact

from suffice import features
from suffice.artifacts import artifact as artifacts
from suffice.artifacts.artifact import Artifact
from suffice.artifacts.estimators import ConstantEstimator
from suffice.errors import ArtifactError
from suffice.lab.ope import promotion
from suffice.lab.ope.replay import Replay, ReplayCost
from suffice.lab.ope.verdict import Verdict
from suffice.store import make_snapshot, open_store
from suffice.types import Feedback

pytestmark = pytest.mark.slow

CLEAN = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}


def suffice(*args: str, cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "suffice", *args],
        capture_output=True, text=True, timeout=100, cwd=cwd, env=CLEAN, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, " ".join(done.stdout.split()), " ".join(done.stderr.split())


def leaning(weak: float, strong: float) -> Artifact:
    """An artifact that expects the same of every query."""
    made = artifact("constant")
    e = ConstantEstimator(
        (WEAK, STRONG), np.array([weak, strong]), np.array([1e-4, 2e-3]), np.array([200.0, 200.0])
    )
    m = len(made.sample_input)
    made = msgspec.structs.replace(
        made, estimator=e, sample_quality=np.tile([weak, strong], (m, 1)),
        sample_cost=np.tile([1e-4, 2e-3], (m, 1)),
    )  # fmt: skip
    return artifacts.unpack(artifacts.pack(made))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """600 decisions drawn evenly and labelled: strong right at 95 %, weak at 40 %. The files best.npz
    and worst.npz send everything to the one and to the other."""
    made = Workspace(tmp_path)
    made.add_explored(600, weak=0.4, strong=0.95)
    artifacts.save(leaning(0.3, 0.95), tmp_path / "best.npz")
    artifacts.save(leaning(0.95, 0.3), tmp_path / "worst.npz")
    return made


def test_a_better_policy_is_promoted_listed_and_rolled_back(workspace: Workspace) -> None:
    code, out, err = suffice("promote", "best.npz", "--json", cwd=workspace.folder)
    assert (code, err) == (0, "")
    result = json.loads(out)
    version = result["version"]
    assert result["promoted"] and not result["forced"]
    assert (result["route"], result["previous"], result["generation"]) == ("auto", None, 1)
    assert result["reason"].startswith("Better")
    assert result["evidence"]["replay"]["verdict"]["lower_bound"] > 0.1
    assert result["evidence"]["rule"] == promotion.RULE

    store = open_store(workspace.url)
    assert store.registry.current("auto") == version
    kept = store.registry.get(version)
    assert kept.content == (workspace.folder / "best.npz").read_bytes()
    assert (kept.kind, kept.created_by, kept.card["kind"]) == ("policy", "cli", "constant")
    assert store.registry.promotions("auto")[0].evidence["passed"] is True  # type: ignore[index]
    store.close()

    code, out, _ = suffice("snapshots", cwd=workspace.folder)
    assert code == 0
    assert f"Route auto uses {version}" in out
    assert "promoted" in out and "Better" in out
    assert out.count("→") == 1
    code, out, err = suffice("promote", version, "--json", cwd=workspace.folder)
    assert code == 0, err
    assert json.loads(out)["unchanged"], "it is current already"

    code, out, _ = suffice("rollback", cwd=workspace.folder)
    assert code == 0
    assert "the configured policy (default)" in out
    code, out, _ = suffice("snapshots", "--json", cwd=workspace.folder)
    result = json.loads(out)["routes"]["auto"]
    assert result["current"] is None
    assert [p["kind"] for p in result["history"]] == ["rollback", "promote"]
    assert [s["version"] for s in result["snapshots"]] == [version]
    assert "content" not in result["snapshots"][0]
    code, _, err = suffice("rollback", cwd=workspace.folder)
    assert code == 2 and "nothing to undo" in err


def test_a_worse_policy_is_refused_and_forced_only_on_record(workspace: Workspace) -> None:
    code, out, err = suffice("promote", "worst.npz", "--json", cwd=workspace.folder)
    assert code == 1
    result = json.loads(out)
    assert (result["promoted"], result["generation"], result["current"]) == (False, None, None)
    assert "Not promoted" in err and "--force" in err and result["version"] in err
    store = open_store(workspace.url)
    assert store.registry.current("auto") is None
    assert store.registry.generation() == 0
    store.close()
    code, out, _ = suffice("promote", result["version"], "--force", "--json", cwd=workspace.folder)
    assert code == 0
    forced = json.loads(out)
    assert forced["promoted"] and forced["forced"]
    assert forced["evidence"]["passed"] is False
    code, out, _ = suffice("snapshots", cwd=workspace.folder)
    assert "forced" in out
    code, out, _ = suffice("promote", "best.npz", "--force", "--json", cwd=workspace.folder)
    assert code == 0 and json.loads(out)["forced"] is False, "it passes the rule"


def test_an_inconclusive_replay_is_refused_with_the_reason(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    artifacts.save(leaning(0.3, 0.95), tmp_path / "best.npz")
    code, _, err = suffice("promote", "best.npz", cwd=tmp_path)
    assert code == 1 and "nothing has been recorded" in err
    assert not workspace.file.exists()
    workspace.add_explored(80)
    code, _, err = suffice("promote", "best.npz", cwd=tmp_path)
    assert code == 1
    assert "Inconclusive" in err and "100 are needed" in err and "is unchanged" in err
    # Without exploration: what the log never did, it cannot tell of.
    folder = tmp_path / "certain"
    folder.mkdir()
    certain = Workspace(folder)
    records = [record(i, WEAK, {WEAK: 1.0, STRONG: 0.0}) for i in range(300)]
    certain.fill(records, [Feedback(decision_id=r.decision.id, score=1.0) for r in records])
    code, _, err = suffice("promote", "../best.npz", cwd=folder)
    assert code == 1 and "never explored" in err


def test_a_first_policy_can_be_forced_before_there_is_traffic(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    artifacts.save(leaning(0.3, 0.95), tmp_path / "best.npz")
    code, out, _ = suffice("promote", "best.npz", "--force", cwd=tmp_path)
    assert code == 0
    assert "by force" in out and "Inconclusive" in out
    store = open_store(workspace.url)
    assert store.registry.promotions("auto")[0].forced
    store.close()


@pytest.mark.parametrize(
    ("args", "text", "want"),
    [
        (("promote", "none.npz"), "none.npz", 2),
        (("promote", "brain-0000"), "no snapshot 'brain-0000'", 2),
        (("promote", "best.npz", "--route", "atuo"), "auto", 2),
        (("promote", "best.npz", "--margin", "2"), "--margin", 2),
        (("promote", "best.npz", "--margin", "nan"), "--margin", 2),
        (("promote", "best.npz", "--since", "yesterday"), "7d", 2),
        (("promote", "best.npz", "--config", "none.toml"), "no such file", 2),
        (("promote", "suffice.toml"), "not an artifact", 2),
        (("promote", "best.npz", "--since", "1m"), "no decision to replay", 1),
        (("rollback", "--route", "atuo"), "auto", 2),
        (("snapshots", "--route", "atuo"), "auto", 2),
    ],
)
def test_bad_usage_has_a_remedy(
    workspace: Workspace, args: tuple[str, ...], text: str, want: int
) -> None:
    code, _, err = suffice(*args, cwd=workspace.folder)
    assert code == want
    assert text in err
    store = open_store(workspace.url)
    assert store.registry.generation() == 0
    store.close()


def test_an_artifact_of_other_features_is_refused(workspace: Workspace) -> None:
    made = leaning(0.3, 0.95)
    for name, card in (
        ("old", msgspec.structs.replace(made.card, features="0")),
        ("table", msgspec.structs.replace(made.card, table="0" * 12)),
    ):
        artifacts.save(msgspec.structs.replace(made, card=card), workspace.folder / f"{name}.npz")
        code, _, err = suffice("promote", f"{name}.npz", "--force", cwd=workspace.folder)
        assert code == 2
        assert "was trained on" in err and "suffice train" in err
    others = artifact("constant", ("x/one", "x/two"))
    artifacts.save(others, workspace.folder / "others.npz")
    code, _, err = suffice("promote", "others.npz", "--force", cwd=workspace.folder)
    assert code == 2 and "none of the models of route 'auto'" in err
    whole = (workspace.folder / "best.npz").read_bytes()
    (workspace.folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    code, _, err = suffice("promote", "cut.npz", "--force", cwd=workspace.folder)
    assert code == 2 and "cut" in err
    assert (
        json.loads(suffice("snapshots", "--json", cwd=workspace.folder)[1])["routes"]["auto"][
            "snapshots"
        ]
        == []
    )


def test_snapshots_that_no_route_can_serve_are_refused(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, '[routes.other]\nmodels = ["p/weak", "p/strong"]\n')
    workspace.add_explored(10)
    store = open_store(workspace.url)
    content = artifacts.pack(leaning(0.3, 0.95))
    learner = make_snapshot(route="auto", kind="learner", content=b"x", created_s=1.0)
    other = make_snapshot(route="other", kind="brain", content=content, created_s=1.0)
    damaged = make_snapshot(route="auto", kind="brain", content=content, created_s=1.0)
    for s in (learner, other, damaged):
        store.registry.put(s)
    store.close()
    workspace.execute("UPDATE snapshots SET content = X'00' WHERE version = ?", damaged.version)
    for version, route, text in (
        (learner.version, "auto", "no route serves"),
        (other.version, "auto", "learned for route 'other'"),
        (damaged.version, "auto", "damaged or changed"),
    ):
        code, _, err = suffice("promote", version, "--route", route, "--force", cwd=tmp_path)
        assert code == 2, version
        assert text in err
    code, _, err = suffice("promote", "nothing.npz", cwd=tmp_path)
    assert code == 2
    (tmp_path / "best.npz").write_bytes(content)
    code, _, err = suffice("promote", "best.npz", "--force", cwd=tmp_path)
    assert code == 2 and "more than one route" in err and "auto, other" in err
    code, out, _ = suffice("promote", other.version, "--force", "--json", cwd=tmp_path)
    assert code == 0 and json.loads(out)["route"] == "other", "a snapshot knows its route"


# ── the rule ─────────────────────────────────────────────────────────────────────────────────────


def replayed(low: float | None, high: float | None, cost: float | None, word: str = "") -> Replay:
    middle = None if low is None or high is None else (low + high) / 2
    plain: dict[str, Any] = dict.fromkeys(Replay.__struct_fields__)
    plain |= {
        "verdict": Verdict(word or "cannot tell", "Inconclusive: no labels.", middle, low, high),  # type: ignore[arg-type]
        "cost": ReplayCost(
            cost, None, None, 1.0, None if cost is None else cost - 1.0, None, None, 1, {}
        ),
    }
    return Replay(**plain)


@pytest.mark.parametrize(
    ("low", "high", "cost", "passes"),
    [
        (0.001, 0.1, 5.0, True),  # better, whatever it costs
        (0.001, 0.1, None, True),
        (-0.005, 0.1, 0.9, True),  # as good, cheaper
        (-0.01, 0.1, 1.0, True),  # at the margin, as dear
        (-0.005, 0.1, 1.01, False),  # as good, dearer
        (-0.005, 0.1, None, False),  # as good, of unknown cost
        (-0.0101, 0.1, 0.1, False),  # perhaps worse, however cheap
        (0.0, 0.1, 1.01, False),  # zero is not above zero
    ],
)
def test_the_rule(low: float, high: float, cost: float | None, passes: bool) -> None:
    ruling = promotion.check_rule(replayed(low, high, cost))
    assert ruling.passed is passes
    assert f"{low:+.4f}" in ruling.reason


def test_the_rule_refuses_a_replay_without_a_conclusion() -> None:
    assert not promotion.check_rule(replayed(0.5, 0.6, 0.1, "cannot judge")).passed
    assert not promotion.check_rule(replayed(None, None, 0.1)).passed
    assert promotion.check_rule(replayed(-0.05, 0.1, 0.9), margin=0.05).passed
    assert not promotion.check_rule(replayed(-0.05, 0.1, 0.9), margin=0.04).passed


def test_a_snapshot_of_another_features_schema_is_refused_too(tmp_path: Path) -> None:
    from suffice.config import load_settings
    from suffice.store import reader

    workspace = Workspace(tmp_path)
    made = leaning(0.3, 0.95)
    old = msgspec.structs.replace(made, card=msgspec.structs.replace(made.card, features="0"))
    with reader.open_registry(workspace.url, create=True) as registry:
        s = make_snapshot(route="auto", kind="brain", content=artifacts.pack(old), created_s=1.0)
        registry.put(s)
        with pytest.raises(ArtifactError, match=f"this version makes {features.SCHEMA!r}"):
            promotion.load_candidate(
                s.version, registry, None, load_settings(workspace.config, {}), 2.0
            )
