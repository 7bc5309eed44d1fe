"""What the operator wants, parsed from the forms that a config, a header or a body can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast, get_args

import msgspec

from suffice.errors import nearest
from suffice.types import Objective, ObjectiveKind

KINDS: tuple[str, ...] = get_args(ObjectiveKind)
DEFAULT_CONFIDENCE = 0.9  # of `max_quality_loss`
_WITHOUT_VALUE = ("cheapest", "best", "fastest", "balanced")
_WEIGHTS = ("cost", "speed", "quality")
# kind -> lowest and highest value allowed, both inclusive
_RANGES: dict[str, tuple[float, float]] = {
    "keep_quality": (0.0, 1.0),
    "max_quality_loss": (0.0, 1.0),
    "max_usd_per_query": (0.0, 1e6),
    "usd_per_day": (0.0, 1e9),
    "max_latency_s": (0.001, 86400.0),
    "worth_usd": (0.0, 1e6),
}


def parse_objective(value: object) -> Objective:
    """Parse an objective.

    Args:
        value: `"cheapest"`, `"keep_quality=0.95"`, a JSON object as text, or a mapping.

    Returns:
        The objective.

    Raises:
        ValueError: with the field, what is allowed and the nearest known kind.
    """
    if isinstance(value, Objective):
        return value
    if isinstance(value, str):
        return _parse_text(value.strip())
    if isinstance(value, Mapping):
        return _parse_mapping(value)
    raise ValueError(f"objective: expected a name or a table, got {value!r}")


def describe(o: Objective) -> str:
    """The objective in a few words, for reasons and tables."""
    if o.kind == "weights":
        return f"weights cost {o.cost:g}, speed {o.speed:g}, quality {o.quality:g}"
    if o.kind == "max_quality_loss":
        return f"max_quality_loss {o.value:g} at confidence {o.confidence:g}"
    return o.kind if o.value is None else f"{o.kind} {o.value:g}"


def _parse_text(text: str) -> Objective:
    if text in _WITHOUT_VALUE:
        return Objective(kind=cast(ObjectiveKind, text))
    if text.startswith("{"):
        try:
            return parse_objective(msgspec.json.decode(text))
        except msgspec.DecodeError as error:
            raise ValueError(f"objective: not valid JSON: {error}") from None
    kind, equals, number = text.partition("=")
    kind = kind.strip()
    if not equals:
        raise ValueError(_unknown_kind(text))
    try:
        value = float(number)
    except ValueError:
        raise ValueError(f"objective.{kind}: {number!r} is not a number") from None
    return _parse_mapping({kind: value})


def _parse_mapping(table: Mapping[str, object]) -> Objective:
    fields = dict(table)
    confidence = fields.pop("confidence", None)
    if len(fields) != 1:
        raise ValueError(f"objective: expected exactly one kind, got {sorted(fields) or 'none'}")
    kind, value = next(iter(fields.items()))
    if confidence is not None and kind != "max_quality_loss":
        raise ValueError("objective.confidence: goes with max_quality_loss only")
    if kind == "weights":
        return _parse_weights(value)
    if kind not in _RANGES:
        raise ValueError(_unknown_kind(kind))
    number = _number(kind, value, *_RANGES[kind])
    if kind == "max_quality_loss":
        share = DEFAULT_CONFIDENCE
        if confidence is not None:
            share = _number("confidence", confidence, 0.5, 0.9999)
        return Objective(kind="max_quality_loss", value=number, confidence=share)
    return Objective(kind=cast(ObjectiveKind, kind), value=number)


def _parse_weights(value: object) -> Objective:
    if isinstance(value, Mapping):
        unknown = set(value) - set(_WEIGHTS)
        if unknown:
            raise ValueError(
                f"objective.weights: unknown {sorted(unknown)}; known: {', '.join(_WEIGHTS)}"
            )
        weights = {k: _number(f"weights.{k}", v, 0.0, 1e6) for k, v in value.items()}
        if not any(weights.values()):
            raise ValueError("objective.weights: at least one weight must be above 0")
        return Objective(kind="weights", **weights)
    raise ValueError(f"objective.weights: expected a table of cost, speed, quality, got {value!r}")


def _number(field: str, value: object, low: float, high: float) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if low <= value <= high:
            return float(value)
        raise ValueError(f"objective.{field}: expected {low:g} to {high:g}, got {value!r}")
    raise ValueError(f"objective.{field}: expected a number, got {value!r}")


def _unknown_kind(kind: object) -> str:
    close = nearest(str(kind), KINDS, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"objective: {kind!r} is not known{hint} Known: {', '.join(KINDS)}"
