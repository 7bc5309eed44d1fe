"""How figures and intervals are written on docs/benchmarks/quality.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def ci(interval: Sequence[float] | None, digits: int = 3, sign: bool = False) -> str:
    """`[low, high]`."""
    if interval is None:
        return "[unknown]"
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    return f"[{form.format(interval[0])}, {form.format(interval[1])}]"


def percent(interval: Sequence[float]) -> str:
    """`[low %, high %]`."""
    return f"[{interval[0]:.1%}, {interval[1]:.1%}]"


def over_seeds(each: Sequence[float]) -> tuple[float, float]:
    """95% interval of a mean over seeds, normal."""
    n = len(each)
    mean = sum(each) / n
    spread = (sum((v - mean) ** 2 for v in each) / max(1, n - 1) / n) ** 0.5
    return mean - 1.96 * spread, mean + 1.96 * spread


def cell(v: Mapping[str, float | None], digits: int = 3) -> str:
    """A mean and its interval; empty if it is not a number."""
    mean, low, high = v["mean"], v["low"], v["high"]
    if mean is None or low is None or high is None:
        return ""
    return f"{mean:.{digits}f} {ci((low, high), digits)}"
