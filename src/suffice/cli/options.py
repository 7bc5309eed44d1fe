"""Parse and check command-line options that several commands share."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from suffice.errors import UsageError, nearest

_UNITS_S = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def parse_since(text: str, now_s: float) -> float:
    """Return the Unix time that a value of `--since` means.

    Args:
        text: An age (`30m`, `12h`, `7d`, `2w`) or an ISO date or time, in UTC unless it has a zone.
        now_s: Unix time from which an age is subtracted.

    Raises:
        UsageError: If `text` is neither.

    >>> parse_since("12h", 100_000.0)
    56800.0
    """
    value = text.strip()
    if value[-1:] in _UNITS_S and value[:-1].isdecimal():
        return now_s - int(value[:-1]) * _UNITS_S[value[-1]]
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        raise UsageError(
            f"--since: {text!r} is not a time.",
            remedy="Give 7d, 12h, 30m, 2w, a date as 2026-11-01, or a time as 2026-11-01T08:00Z.",
        ) from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def require_known_route(route: str, known: Iterable[str], detail: str = "") -> None:
    """Raise UsageError with the closest name if `route` is not one of `known`."""
    names = list(known)
    if route in names:
        return
    close = nearest(route, names, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UsageError(
        f"--route: there is no route {route!r}{detail}.{hint}",
        remedy=f"Known: {', '.join(names)}.",
    )
