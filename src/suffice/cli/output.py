"""How commands show numbers: unknown is said, never zero."""

from __future__ import annotations

import sys
from typing import Any

import msgspec


def print_json(value: Any) -> None:
    """One JSON object on standard output, indented."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    sys.stdout.write(text + "\n")


def usd(value: float | None) -> str:
    if value is None:
        return "unknown"
    if value == 0:
        return "$0"
    return (
        f"${value:.6f}"
        if abs(value) < 0.01
        else f"${value:.4f}"
        if abs(value) < 1
        else f"${value:.2f}"
    )


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    return "unknown" if value is None else f"{value:.{digits}f}{unit}"
