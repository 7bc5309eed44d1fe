"""Formats of amounts, shares, times and durations in reports. Unknown is never shown as zero."""

from __future__ import annotations

from datetime import UTC, datetime


def format_usd(value: float | None) -> str:
    """Return an amount with at least three significant digits."""
    if value is None:
        return "unknown"
    size = abs(value)
    digits = 2 if size >= 1 or size == 0 else 4 if size >= 0.01 else 6
    return f"{'-' if value < 0 else ''}${size:,.{digits}f}"


def format_usd_interval(interval: tuple[float, float] | None) -> str:
    """Return an interval of amounts in brackets; an empty string if there is none."""
    if interval is None:
        return ""
    return f"[{format_usd(interval[0])}, {format_usd(interval[1])}]"


def format_percent(value: float | None, sign: bool = False) -> str:
    """Return a share in per cent, with one decimal below 10 %."""
    if value is None:
        return "unknown"
    digits = 0 if abs(value) >= 0.1 or value == 0 else 1
    return f"{value:{'+' if sign else ''}.{digits}%}"


def format_number(value: float | None, digits: int = 4, sign: bool = False) -> str:
    """Return a number with a fixed number of decimals; a dash if it is unknown."""
    if value is None:
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}"


def format_thousands(value: int) -> str:
    """Return a count with separators between thousands."""
    return f"{value:,}"


def format_time(unix_s: float) -> str:
    """Return a Unix time in UTC, to the minute."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M")


def format_duration(seconds: float) -> str:
    """Return a duration in the largest unit of which it is a whole number.

    >>> format_duration(7200.0)
    '2 hours'
    """
    for unit, size in (("week", 604800), ("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds % size == 0:
            n = int(seconds // size)
            return f"{n} {unit}{'s' * (n > 1)}"
    return f"{seconds:g} s"


def short_name(name: str, max_chars: int = 28) -> str:
    """Return the name of a model or policy without its provider, as a label of at most 28 characters."""
    label = name.rsplit("/", 1)[-1]
    return label if len(label) <= max_chars else label[: max_chars - 1] + "…"
