"""Files around the code: locks, workflows, templates, the image."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
YAML = sorted([*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"])
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_files_load(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text("utf-8")), dict)


def test_workflows_pin_no_permission_beyond_reading() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        assert yaml.safe_load(path.read_text("utf-8"))["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_locks_have_versions_and_hashes_and_no_address(path: Path) -> None:
    entries = path.read_text("utf-8").replace("\\\n", " ").splitlines()
    assert len(entries) > 20
    for entry in entries:
        assert re.fullmatch(
            r"[a-z0-9._-]+==\S+( ; [^-]+)?(\s+--hash=sha256:[0-9a-f]{64})+", entry
        ), entry


def test_every_dependency_is_locked_and_has_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    project = tomllib.loads(text)["project"]
    locked = (ROOT / "requirements" / "base.txt").read_text("utf-8")
    for dependency in project["dependencies"]:
        name = re.split(r"[><=;\[ ]", dependency)[0]
        assert f"\n{name}==" in f"\n{locked}", f"{name} is not locked: run scripts/lock.sh"
        assert re.search(rf'^  "{re.escape(name)}[^\n]*",\s*# \S', text, re.MULTILINE), name


def test_the_version_is_stated_once() -> None:
    import suffice

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == suffice.__version__


def test_the_image_copies_files_that_exist_and_runs_unprivileged() -> None:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    allowed = (ROOT / ".dockerignore").read_text("utf-8").split()
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert f"!{source}" in allowed, source
    assert re.search(r"^USER (?!root)\w+$", text, re.MULTILINE)
    assert "/healthz" in text
