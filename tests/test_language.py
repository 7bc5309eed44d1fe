"""Names and prose use plain technical English: banned words stay out of code, help texts and docs."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from suffice.cli.app import build

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "suffice"

# Words that a reader must decode. They may not be a part of any identifier.
BANNED = frozenset(
    "told anew whoever whatever nobody somebody dear dearer dearest mend mends mended heed heeds "
    "heeded obey obeys obeyed hear hears heard purse court".split()
)
# Participles and adverbs that name nothing on their own. As a part of a longer name they are fine.
BANNED_ALONE = frozenset(
    "found kept held given asked drawn own said mine why beside rest at".split()
)
PHRASES = re.compile(
    r"\b(told|anew|whoever|whatever|nobody|somebody|dear|dearer|dearest|mend|mends|mended|heeds?|"
    r"heeded|obeys?|obeyed|hears?|heard|of its own|for ever|by itself|of necessity)\b",
    re.IGNORECASE,
)
# Fields that are keys of JSON reports or of a file format.
OUTSIDE_NAMES = {
    "lab/collect/journal.py": {"why"},
    "lab/collect/summary.py": {"asked"},
    "lab/evaluate/result.py": {"kept"},
    "lab/savings/quality.py": {"kept"},
}


def packages() -> list[str]:
    """Each package of `suffice`, and each module next to them."""
    names = (p.name for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists())
    return sorted(set(names))


def sources(package: str) -> list[Path]:
    path = SOURCE / package
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def identifiers(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every name that the code defines: functions, classes, arguments, attributes, variables."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node.lineno
            case ast.arg():
                yield node.arg, node.lineno
            case ast.Attribute(ctx=ast.Store()):
                yield node.attr, node.lineno
            case ast.Name(ctx=ast.Store()):
                yield node.id, node.lineno


def words(identifier: str) -> list[str]:
    """`maxCost_usd` -> ["max", "cost", "usd"]."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", identifier)
    return [word for word in spaced.lower().split("_") if word]


def prose(text: str) -> Iterator[tuple[str, int]]:
    """Docstrings, comments and the messages of raised errors."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if docstring := ast.get_docstring(node, clean=False):
                yield docstring, node.body[0].lineno
        elif isinstance(node, ast.Raise):
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value, part.lineno
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string, token.start[0]


@pytest.mark.parametrize("package", packages())
def test_identifiers_are_standard_terms(package: str) -> None:
    offenders = set()
    for path in sources(package):
        outside = OUTSIDE_NAMES.get(path.relative_to(SOURCE).as_posix(), set())
        for name, line in identifiers(ast.parse(path.read_text("utf-8"))):
            parts = [] if name in outside else words(name)
            if BANNED.intersection(parts) or (len(parts) == 1 and parts[0] in BANNED_ALONE):
                offenders.add(f"{path.relative_to(SOURCE)}:{line} {name}")
    assert not offenders, "\n".join(sorted(offenders))


@pytest.mark.parametrize("package", packages())
def test_docstrings_comments_and_errors_are_plain(package: str) -> None:
    offenders = []
    for path in sources(package):
        for text, line in prose(path.read_text("utf-8")):
            offenders += [
                f"{path.relative_to(SOURCE)}:{line} {match[0]}" for match in PHRASES.finditer(text)
            ]
    assert not offenders, "\n".join(offenders)


def help_texts(command: Any, path: str) -> Iterator[tuple[str, str]]:
    """The help of a Typer command, of its options and of its subcommands."""
    yield path, command.help or ""
    for parameter in command.params:
        yield f"{path} {parameter.name}", getattr(parameter, "help", None) or ""
    for name, child in getattr(command, "commands", {}).items():
        yield from help_texts(child, f"{path} {name}")


def test_help_texts_are_plain() -> None:
    texts = dict(help_texts(build(), "suffice"))
    assert len(texts) > 50
    offenders = [f"{where}: {text}" for where, text in texts.items() if PHRASES.search(text)]
    assert not offenders, "\n".join(offenders)


def documents() -> list[str]:
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted({path.relative_to(ROOT).as_posix() for path in paths})


@pytest.mark.parametrize("document", documents())
def test_documents_are_plain(document: str) -> None:
    offenders = [
        f"{document}:{number} {match[0]}"
        for number, line in enumerate((ROOT / document).read_text("utf-8").splitlines(), 1)
        for match in PHRASES.finditer(line)
    ]
    assert not offenders, "\n".join(offenders)
