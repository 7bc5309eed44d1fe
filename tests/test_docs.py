"""Docs that cannot lie: snippets run, references are current, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPET = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def snippets(language: str) -> list[tuple[str, str]]:
    return [
        (f"{page.name}-{i}", code)
        for page in PAGES
        for i, (kind, code) in enumerate(SNIPPET.findall(page.read_text()))
        if kind == language
    ]


OFFLINE = [s for s in snippets("python") if "openai.OpenAI(" not in s[1]]


@pytest.mark.parametrize("code", [c for _, c in OFFLINE], ids=[n for n, _ in OFFLINE])
def test_python_snippets_run(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr


def test_there_are_snippets_to_run() -> None:
    assert len(OFFLINE) >= 2


@pytest.mark.parametrize("code", [c for _, c in snippets("toml")])
def test_toml_snippets_load(code: str, tmp_path: Path) -> None:
    from suffice.config import load_settings, resolve

    path = tmp_path / "suffice.toml"
    path.write_text(code)
    env = {"OPENAI_API_KEY": "x"}
    assert resolve(load_settings(path, env), env).routes


@pytest.mark.parametrize("page", PAGES, ids=[p.name for p in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_the_reference_is_current() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import build_reference
    finally:
        sys.path.pop(0)
    folder = ROOT / "docs" / "reference"
    assert (folder / "cli.md").read_text() == build_reference.cli()
    assert (folder / "config.md").read_text() == build_reference.settings()
