"""The programs in examples/ run and print what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
OUTPUTS = {
    "in_process.py": ("acme/small: Sunny.", "acme/large: Suppose"),
    "gateway.py": ("x-suffice-model: acme/small", "stream of acme/large: One two three."),
    "feedback.py": ("scored 1.0", "acme/large: predicted quality"),
    "train_and_evaluate.py": ("zero_router", "oracle", "router"),
    "custom_policy/by_length.py": ("acme/small: the query has", "acme/large: the query has"),
}


def test_every_example_is_tested_and_listed() -> None:
    programs = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")}
    assert programs == set(OUTPUTS)
    readme = (EXAMPLES / "README.md").read_text("utf-8")
    assert all(program.partition("/")[0] in readme for program in programs)


@pytest.mark.slow
@pytest.mark.parametrize("program", OUTPUTS)
def test_the_example_runs(program: str, tmp_path: Path) -> None:
    # The metadata that `pip install ./examples/custom_policy` would write.
    metadata = tmp_path / "suffice_by_length-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: suffice-by-length\nVersion: 0.1.0\n"
    )
    (metadata / "entry_points.txt").write_text(
        "[suffice.policies]\nby-length = by_length:ByLength\n"
    )
    path = os.pathsep.join([str(tmp_path), str(EXAMPLES / "custom_policy")])
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / program)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for text in OUTPUTS[program]:
        assert text in done.stdout
