"""Docs that cannot lie: snippets run, references are current, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from suffice.gateway import BackgroundServer

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


@pytest.mark.slow
@pytest.mark.parametrize("code", [c for _, c in OFFLINE], ids=[n for n, _ in OFFLINE])
def test_python_snippets_run(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr


ONLINE = [s for s in snippets("python") if "openai.OpenAI(" in s[1]]
ADDRESS = "http://127.0.0.1:8484"


@pytest.mark.slow
@pytest.mark.parametrize("code", [c for _, c in ONLINE], ids=[n for n, _ in ONLINE])
def test_client_snippets_run_against_a_gateway(code: str, gateway: BackgroundServer) -> None:
    assert ADDRESS in code
    names: dict[str, object] = {}
    exec(code.replace(ADDRESS, gateway.base_url), names)
    client = names["client"]
    assert isinstance(client, openai.OpenAI)
    client.close()


def commands() -> list[str]:
    """The lines of shell snippets that call nothing and need no key."""
    lines = [line for _, code in snippets("sh") for line in code.splitlines()]
    return [x for x in lines if x.startswith(("suffice route ", "suffice models"))]


@pytest.mark.slow
@pytest.mark.parametrize("line", commands())
def test_shell_snippets_run(line: str, tmp_path: Path) -> None:
    args = shlex.split(line, comments=True)[1:]
    done = subprocess.run(
        [sys.executable, "-m", "suffice", *args],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_every_command_in_the_docs_is_one() -> None:
    known = set(re.findall(r"^## suffice (\w+)$", reference("cli.md"), re.M))
    said = {m for _, code in snippets("sh") for m in re.findall(r"\bsuffice (\w+)", code)}
    assert said
    assert said <= known


def reference(name: str) -> str:
    return (ROOT / "docs" / "reference" / name).read_text()


def test_there_are_snippets_to_run() -> None:
    assert len(OFFLINE) >= 2
    assert len(ONLINE) >= 2
    assert len(commands()) >= 3


def test_the_picture_asks_nobody_for_anything() -> None:
    svg = (ROOT / "docs" / "img" / "demo.svg").read_text()
    assert "SIMULATED" in svg
    assert "@font-face" not in svg
    assert "url(http" not in svg
    assert "href=" not in svg


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


@pytest.mark.slow
def test_the_reference_is_current() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import build_reference
    finally:
        sys.path.pop(0)
    folder = ROOT / "docs" / "reference"
    assert (folder / "cli.md").read_text() == build_reference.cli()
    assert (folder / "config.md").read_text() == build_reference.settings()
    assert (folder / "api.md").read_text() == build_reference.api()
