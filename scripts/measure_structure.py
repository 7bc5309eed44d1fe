"""Measure the structure of a source tree: sizes, import circles, uses of `Any`, private access.

Usage: python scripts/measure_structure.py [SOURCE ...] [--json]

With one source folder it prints the figures and lists every offender. With several (for example the
`src/suffice` of two checkouts) it prints one column per folder.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_LINES = 400
MAX_CLASS_LINES = 250
MAX_FUNCTION_LINES = 50

_ANY = re.compile(r"\bAny\b")
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Size:
    """One definition or file and its length in lines."""

    path: str
    name: str
    lines: int

    def __str__(self) -> str:
        return f"{self.lines:5} {self.path} {self.name}".rstrip()


@dataclass
class Structure:
    """Figures of one source tree."""

    files: list[Size] = field(default_factory=list)
    classes: list[Size] = field(default_factory=list)
    functions: list[Size] = field(default_factory=list)
    any_uses: Counter[str] = field(default_factory=Counter)
    relative_imports: list[str] = field(default_factory=list)
    circles: list[tuple[str, ...]] = field(default_factory=list)
    lazy_circles: list[tuple[str, ...]] = field(default_factory=list)
    package_lines: Counter[str] = field(default_factory=Counter)
    code_lines: int = 0

    @property
    def long_files(self) -> list[Size]:
        return [size for size in self.files if size.lines > MAX_FILE_LINES]

    @property
    def long_classes(self) -> list[Size]:
        return [size for size in self.classes if size.lines > MAX_CLASS_LINES]

    @property
    def long_functions(self) -> list[Size]:
        return [size for size in self.functions if size.lines > MAX_FUNCTION_LINES]


def measure(source: Path) -> Structure:
    """Measure every Python file below `source`, which is the folder of the package itself."""
    result = Structure()
    trees: dict[str, ast.Module] = {}
    for path in sorted(source.rglob("*.py")):
        text = path.read_text("utf-8")
        relative = path.relative_to(source).as_posix()
        trees[_module_name(source, path)] = tree = ast.parse(text)
        lines = len(text.splitlines())
        result.files.append(Size(relative, "", lines))
        result.code_lines += _code_lines(tree, text)
        result.package_lines[relative.split("/")[0] if "/" in relative else "(modules)"] += lines
        if uses := len(_ANY.findall(text)):
            result.any_uses[relative] = uses
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                result.classes.append(Size(relative, node.name, _length(node)))
            elif isinstance(node, _Definition):
                result.functions.append(Size(relative, node.name, _length(node)))
            elif isinstance(node, ast.ImportFrom) and node.level:
                result.relative_imports.append(f"{relative}:{node.lineno}")
    packages = {_module_name(source, path) for path in source.rglob("__init__.py")}
    result.circles = _circles(_import_graph(trees, packages, lazy=False))
    result.lazy_circles = _circles(_import_graph(trees, packages, lazy=True))
    for sizes in (result.files, result.classes, result.functions):
        sizes.sort(key=lambda size: -size.lines)
    return result


def private_accesses(source: Path) -> int | None:
    """Count ruff's SLF001 findings; `None` if ruff is not installed."""
    beside = Path(sys.executable).with_name("ruff")
    ruff = str(beside) if beside.exists() else shutil.which("ruff")
    if ruff is None:
        return None
    command = [ruff, "check", "--isolated", "--no-cache", "--select=SLF001", "--output-format=json"]
    run = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    return len(json.loads(run.stdout))


def _module_name(source: Path, path: Path) -> str:
    parts = path.relative_to(source.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _code_lines(tree: ast.Module, text: str) -> int:
    """Lines that are neither blank nor part of a comment or a docstring."""
    prose: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | _Definition) and ast.get_docstring(node, clean=False):
            first = node.body[0]
            prose.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return sum(bool(line) and line[0] != "#" and number not in prose for number, line in lines)


def _length(node: _Definition) -> int:
    """Lines from `def` or `class` to the last line, without the docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def _imports(tree: ast.Module, lazy: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run when the module loads; with `lazy`, those inside functions too."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            pending += node.orelse
        elif isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case | ast.Module) and (
            lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ):
            pending += ast.iter_child_nodes(node)


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"


def _import_graph(
    trees: dict[str, ast.Module], packages: set[str], lazy: bool
) -> dict[str, set[str]]:
    """Module -> modules of this tree that it names in an import."""
    graph: dict[str, set[str]] = {}
    for module, tree in trees.items():
        targets = graph[module] = set()
        for node in _imports(tree, lazy):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                base = node.module or ""
                if node.level:
                    parts = module.split(".")
                    keep = len(parts) - node.level + (module in packages)
                    base = ".".join([*parts[:keep], *([base] if base else [])])
                names = []
                for alias in node.names:
                    submodule = f"{base}.{alias.name}"
                    names.append(submodule if submodule in trees else base)
            targets.update(name for name in names if name in trees and name != module)
    return graph


def _circles(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Strongly connected components with more than one module (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: list[tuple[str, ...]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(graph[module]):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            cut = stack.index(module)
            if len(stack) - cut > 1:
                circles.append(tuple(sorted(stack[cut:])))
            del stack[cut:]

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return circles


def _figures(source: Path, structure: Structure) -> dict[str, object]:
    longest = structure.functions[0].lines if structure.functions else 0
    largest = structure.classes[0].lines if structure.classes else 0
    return {
        "files": len(structure.files),
        "lines": sum(size.lines for size in structure.files),
        "lines of code, without docstrings, comments and blanks": structure.code_lines,
        "classes": len(structure.classes),
        "functions and methods": len(structure.functions),
        f"files over {MAX_FILE_LINES} lines": len(structure.long_files),
        f"classes over {MAX_CLASS_LINES} lines": len(structure.long_classes),
        f"functions over {MAX_FUNCTION_LINES} lines": len(structure.long_functions),
        "longest file": structure.files[0].lines,
        "largest class": largest,
        "longest function": longest,
        "uses of `Any`": sum(structure.any_uses.values()),
        "relative imports": len(structure.relative_imports),
        "import circles when loading": len(structure.circles),
        "import circles with imports in functions": len(structure.lazy_circles),
        "private accesses (ruff SLF001)": private_accesses(source),
    }


def _print_table(columns: dict[str, dict[str, object]]) -> None:
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    print("| | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for row in rows:
        cells = (str(column.get(row, "-")) for column in columns.values())
        print(f"| {row} | " + " | ".join(cells) + " |")


def _print_offenders(structure: Structure) -> None:
    groups: dict[str, list[object]] = {
        f"Files over {MAX_FILE_LINES} lines": [*structure.long_files],
        f"Classes over {MAX_CLASS_LINES} lines": [*structure.long_classes],
        f"Functions over {MAX_FUNCTION_LINES} lines": [*structure.long_functions],
        "Uses of `Any` per file": [f"{n:5} {path}" for path, n in structure.any_uses.most_common()],
        "Relative imports": [*structure.relative_imports],
        "Import circles when loading": [" <-> ".join(circle) for circle in structure.circles],
        "Import circles with imports in functions": [
            " <-> ".join(circle) for circle in structure.lazy_circles
        ],
    }
    for title, offenders in groups.items():
        if offenders:
            print(f"\n{title} ({len(offenders)})")
            for offender in offenders:
                print(f"  {offender}")


def main() -> None:
    """Print the figures of one or more source folders."""
    parser = argparse.ArgumentParser(description="Measure the structure of a source tree.")
    parser.add_argument("sources", nargs="*", type=Path, default=[ROOT / "src" / "suffice"])
    parser.add_argument("--names", help="column titles, comma-separated, one per source folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    names = args.names.split(",") if args.names else [str(source) for source in args.sources]
    figures: dict[str, dict[str, object]] = {}
    lines: dict[str, dict[str, object]] = {}
    structures = []
    for name, source in zip(names, args.sources, strict=True):
        structure = measure(source)
        structures.append(structure)
        figures[name] = _figures(source, structure)
        lines[name] = dict(sorted(structure.package_lines.items()))
    if args.json:
        print(json.dumps({"figures": figures, "lines": lines}, indent=1))
        return
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    _print_table(figures)
    print("\nLines per package\n")
    _print_table(lines)
    if len(structures) == 1:
        _print_offenders(structures[0])


if __name__ == "__main__":
    main()
