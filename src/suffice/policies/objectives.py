"""What the operator wants, parsed from any of the forms a config, a header or a body may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from suffice.errors import nearest
from suffice.types import Objective, ObjectiveKind

KINDS: tuple[str, ...] = get_args(ObjectiveKind)
_PLAIN = ("cheapest", "best", "fastest", "balanced")
# kind -> (lowest, highest) value allowed, both inclusive
_RANGES: dict[str, tuple[float, float]] = {
    "keep_quality": (0.0, 1.0),
    "max_quality_loss": (0.0, 1.0),
    "max_usd_per_query": (0.0, 1e6),
    "usd_per_day": (0.0, 1e9),
    "max_latency_s": (0.001, 86400.0),
    "worth_usd": (0.0, 1e6),
}


def _number(field: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"objective.{field}: expected a number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"objective.{field}: expected {low:g} to {high:g}, got {value!r}")
    return float(value)


def _unknown(kind: object) -> ValueError:
    close = nearest(str(kind), KINDS, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ValueError(f"objective: {kind!r} is not known{hint} Known: {', '.join(KINDS)}")


def parse_objective(value: Any) -> Objective:
    """An Objective from `"cheapest"`, `"keep_quality=0.95"`, a JSON object as text, or a mapping.

    Raises ValueError that names the field, what is allowed and the nearest known kind.
    """
    if isinstance(value, Objective):
        return value
    if isinstance(value, str):
        text = value.strip()
        if text in _PLAIN:
            return Objective(kind=text)  # type: ignore[arg-type]
        if text.startswith("{"):
            try:
                return parse_objective(msgspec.json.decode(text))
            except msgspec.DecodeError as error:
                raise ValueError(f"objective: not valid JSON: {error}") from None
        kind, equals, number = text.partition("=")
        if not equals:
            raise _unknown(text)
        try:
            return parse_objective({kind.strip(): float(number)})
        except ValueError as error:
            if str(error).startswith("objective"):
                raise
            raise ValueError(f"objective.{kind.strip()}: {number!r} is not a number") from None
    if not isinstance(value, Mapping):
        raise ValueError(f"objective: expected a name or a table, got {value!r}")
    given = dict(value)
    confidence = given.pop("confidence", None)
    if len(given) != 1:
        raise ValueError(f"objective: expected exactly one kind, got {sorted(given) or 'none'}")
    kind, x = next(iter(given.items()))
    if confidence is not None and kind != "max_quality_loss":
        raise ValueError("objective.confidence: goes with max_quality_loss only")
    if kind == "weights":
        return _weights(x)
    if kind not in _RANGES:
        raise _unknown(kind)
    number_ = _number(kind, x, *_RANGES[kind])
    if kind == "max_quality_loss":
        sure = 0.9 if confidence is None else _number("confidence", confidence, 0.5, 0.9999)
        return Objective(kind="max_quality_loss", value=number_, confidence=sure)
    return Objective(kind=kind, value=number_)


def _weights(x: Any) -> Objective:
    if not isinstance(x, Mapping):
        raise ValueError(f"objective.weights: expected a table of cost, speed, quality, got {x!r}")
    unknown = set(x) - {"cost", "speed", "quality"}
    if unknown:
        raise ValueError(
            f"objective.weights: unknown {sorted(unknown)}; known: cost, speed, quality"
        )
    w = {k: _number(f"weights.{k}", v, 0.0, 1e6) for k, v in x.items()}
    if not any(w.values()):
        raise ValueError("objective.weights: at least one weight must be above 0")
    return Objective(kind="weights", **w)


def describe(o: Objective) -> str:
    """In a few words, for reasons and tables."""
    if o.kind == "weights":
        return f"weights cost {o.cost:g}, speed {o.speed:g}, quality {o.quality:g}"
    if o.kind == "max_quality_loss":
        return f"max_quality_loss {o.value:g} at confidence {o.confidence:g}"
    return o.kind if o.value is None else f"{o.kind} {o.value:g}"
