"""Posteriors are computed in a child process, or in this one if that fails."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.support.feedback import router, teach

from suffice import Router
from suffice.learning import refit_process
from suffice.learning.posterior import Posterior
from suffice.learning.regression import OnlineRegression


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Router]:
    r = router(tmp_path)
    yield r
    r.close()


def never() -> bool:
    return False


@pytest.fixture
def learner(made: Router) -> OnlineRegression:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 30)
    learning.step(1010.0)
    return learning.learners["auto"].regression


def same(one: Posterior | None, other: Posterior) -> bool:
    """Equal but for rounding, which depends on the number of BLAS threads."""
    assert one is not None
    return all(np.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(one, other, strict=True))


def test_a_refit_process_gives_the_same_posterior_and_imports_nothing_local(
    learner: OnlineRegression,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("numpy", "msgspec", "subprocess"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not me')")
    monkeypatch.chdir(tmp_path)
    here = learner.posterior()
    monkeypatch.setattr(
        OnlineRegression, "posterior", lambda _: pytest.fail("made in this process")
    )
    assert same(refit_process.posterior_in_subprocess(learner, learner.state(), never), here)
    assert same(refit_process.unpack_posterior(refit_process.pack_posterior(here)), here)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("child", "said"),
    [
        ("raise SystemExit('no')", "a refit process failed: no"),
        ("print('no fit')", "a refit process failed: fit state"),
        ("import time; time.sleep(60)", "got too little CPU time in 0.2 s"),
        (None, "in the gateway's process: "),
    ],
    ids=str,
)
def test_a_failed_refit_process_is_replaced_by_this_process(
    learner: OnlineRegression,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    child: str | None,
    said: str,
) -> None:
    if child is None:
        monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    else:
        monkeypatch.setattr(refit_process, "CHILD_PROGRAM", child)
    monkeypatch.setattr(refit_process, "TIMEOUT_S", 0.2 if "sleep" in str(child) else 60.0)
    with caplog.at_level("INFO", "suffice.learning"):
        assert same(
            refit_process.posterior_in_subprocess(learner, learner.state(), never),
            learner.posterior(),
        )
    assert said in caplog.text
    if child is not None:
        monkeypatch.setattr(
            OnlineRegression, "posterior", lambda _: pytest.fail("computed after all")
        )
        assert refit_process.posterior_in_subprocess(learner, learner.state(), lambda: True) is None


@pytest.mark.slow
def test_a_refit_process_imports_nothing_of_serving() -> None:
    code = (
        "import sys\n"
        "from suffice.learning import refit_process, regression\n"
        "print(sorted(m for m in sys.modules if m.startswith('suffice.')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(run.stdout) == [
        "suffice.artifacts",
        "suffice.artifacts.npz",
        "suffice.errors",
        "suffice.learning",
        "suffice.learning.label_limits",
        "suffice.learning.posterior",
        "suffice.learning.refit_process",
        "suffice.learning.regression",
    ]
