"""Markdown tables of docs/benchmarks/quality.md."""

from __future__ import annotations

from collections.abc import Sequence

Lines = list[str]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: bool = False) -> Lines:
    """A Markdown table, the first column to the left, the others to the right. left: all of them."""
    marks = ["---"] + ["---" if left else "---:"] * (len(head) - 1)
    return ["| " + " | ".join(r) + " |" for r in (head, marks, *rows)] + [""]
