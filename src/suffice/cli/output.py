"""Output of numbers and JSON. An unknown number is shown as unknown, never as zero."""

from __future__ import annotations

import sys
from typing import Any

import msgspec


def print_json(value: Any) -> None:
    """Print one JSON object on standard output, indented."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    sys.stdout.write(text + "\n")


def usd(value: float | None) -> str:
    """US dollars, with more digits for small amounts."""
    if value is None:
        return "unknown"
    if value == 0:
        return "$0"
    digits = 6 if abs(value) < 0.01 else 4 if abs(value) < 1 else 2
    return f"${value:.{digits}f}"


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A number with its unit."""
    return "unknown" if value is None else f"{value:.{digits}f}{unit}"
