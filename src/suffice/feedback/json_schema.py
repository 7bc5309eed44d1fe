"""Does a value break a JSON Schema? Reports only what is certain.

The keywords that structured outputs use are checked: type, enum, const, properties, required,
additionalProperties, items, prefixItems, minItems, maxItems, minLength, maxLength, minimum,
maximum, exclusiveMinimum, exclusiveMaximum, multipleOf of whole numbers, anyOf, oneOf, allOf, and
$ref within the schema (JSON Schema 2020-12). Others are passed over, `pattern` on purpose: a client
writes it, and a regular expression can be made to run for ever. So a value may break a schema in a
way that is not seen here, but what is reported does break it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_MAX_CHECKS = 5_000  # of one value, some 10 ms; past it nothing more is reported
_MAX_DEPTH = 64

TYPE_CHECKS: dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    "integer": lambda v: (
        (isinstance(v, int) and not isinstance(v, bool))
        or (isinstance(v, float) and v.is_integer())
    ),
}


class _CheckBudgetExceeded(Exception):
    """The budget is spent: nothing certain can be said any more."""


def first_violation(value: Any, schema: Any) -> str | None:
    """Where and how `value` breaks `schema`, e.g. "$.items[2].price: is no number"; None = it does
    not, as far as is checked. Names come from the schema, never from the value.

    >>> first_violation({"a": 1}, {"type": "object", "required": ["b"]})
    '$: lacks "b"'
    """
    try:
        return _Check(schema).first_violation(value, schema, "$", 0)
    except _CheckBudgetExceeded:
        return None


class _Check:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._left = _MAX_CHECKS

    def first_violation(self, value: Any, schema: Any, at: str, depth: int) -> str | None:
        self._left -= 1
        if self._left < 0 or depth > _MAX_DEPTH:
            raise _CheckBudgetExceeded
        if schema is False:
            return f"{at}: is not allowed"
        if not isinstance(schema, Mapping):
            return None
        return (
            self._referred(value, schema, at, depth)
            or _plain(value, schema, at)
            or self._composed(value, schema, at, depth)
            or (self._object(value, schema, at, depth) if isinstance(value, dict) else None)
            or (self._array(value, schema, at, depth) if isinstance(value, list) else None)
        )

    def _referred(self, value: Any, schema: Mapping[str, Any], at: str, depth: int) -> str | None:
        ref = schema.get("$ref")
        if not isinstance(ref, str) or not ref.startswith("#"):
            return None
        target = self._root
        for part in ref[1:].split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or name not in target:
                return None
            target = target[name]
        return self.first_violation(value, target, at, depth + 1)

    def _composed(self, value: Any, schema: Mapping[str, Any], at: str, depth: int) -> str | None:
        for part in _list(schema.get("allOf")):
            found = self.first_violation(value, part, at, depth + 1)
            if found is not None:
                return found
        for name in ("anyOf", "oneOf"):  # of oneOf only: that at least one fits
            parts = _list(schema.get(name))
            if parts and all(
                self.first_violation(value, p, at, depth + 1) is not None for p in parts
            ):
                return f"{at}: fits none of its {len(parts)} forms"
        return None

    def _object(
        self, value: dict[str, Any], schema: Mapping[str, Any], at: str, depth: int
    ) -> str | None:
        known = schema.get("properties")
        properties: Mapping[str, Any] = known if isinstance(known, Mapping) else {}
        for name in _list(schema.get("required")):
            if isinstance(name, str) and name not in value:
                return f'{at}: lacks "{name}"'
        for name, part in properties.items():
            if name in value:
                found = self.first_violation(value[name], part, f"{at}.{name}", depth + 1)
                if found is not None:
                    return found
        # Names may also come from patternProperties, which is not checked.
        if "additionalProperties" in schema and "patternProperties" not in schema:
            other = schema["additionalProperties"]
            for name in value.keys() - properties.keys():
                found = self.first_violation(value[name], other, f"{at}.*", depth + 1)
                if found is not None:
                    return found
        return None

    def _array(
        self, value: list[Any], schema: Mapping[str, Any], at: str, depth: int
    ) -> str | None:
        first = _list(schema.get("prefixItems"))
        for i, (item, part) in enumerate(zip(value, first, strict=False)):
            found = self.first_violation(item, part, f"{at}[{i}]", depth + 1)
            if found is not None:
                return found
        if "items" in schema and not isinstance(schema["items"], list):
            for i, item in enumerate(value[len(first) :], len(first)):
                found = self.first_violation(item, schema["items"], f"{at}[{i}]", depth + 1)
                if found is not None:
                    return found
        return None


def _plain(value: Any, schema: Mapping[str, Any], at: str) -> str | None:
    """What needs no look inside."""
    kind = schema.get("type")
    names = [k for k in (kind if isinstance(kind, list) else [kind]) if isinstance(k, str)]
    tests = [TYPE_CHECKS[k] for k in names if k in TYPE_CHECKS]
    if names and len(tests) == len(names) and not any(test(value) for test in tests):
        return f"{at}: is no {' or '.join(names)}"
    if "const" in schema and not json_equal(value, schema["const"]):
        return f"{at}: is not the one value it may be"
    options = schema.get("enum")
    if isinstance(options, list) and not any(json_equal(value, o) for o in options):
        return f"{at}: is none of its {len(options)} values"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(value, schema, at)
    if isinstance(value, (str, list)):
        names_of = (
            ("minLength", "maxLength") if isinstance(value, str) else ("minItems", "maxItems")
        )
        least, most = (_bound(schema.get(n)) for n in names_of)
        if least is not None and len(value) < least:
            return f"{at}: is shorter than {least:g}"
        if most is not None and len(value) > most:
            return f"{at}: is longer than {most:g}"
    return None


def _number(value: float, schema: Mapping[str, Any], at: str) -> str | None:
    bounds: Sequence[tuple[str, Callable[[float, float], bool], str]] = (
        ("minimum", lambda v, b: v < b, "below"),
        ("maximum", lambda v, b: v > b, "above"),
        ("exclusiveMinimum", lambda v, b: v <= b, "not above"),
        ("exclusiveMaximum", lambda v, b: v >= b, "not below"),
    )
    for name, broken, word in bounds:
        bound = _bound(schema.get(name))
        if bound is not None and broken(value, bound):
            return f"{at}: is {word} {bound:g}"
    step = schema.get("multipleOf")
    # Of fractions nothing is certain: 0.3 is no multiple of 0.1 in binary.
    if type(step) is int and step > 0 and type(value) is int and value % step:
        return f"{at}: is no multiple of {step}"
    return None


def _bound(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def json_equal(a: Any, b: Any) -> bool:
    """Equality of JSON values: 1 and 1.0 are one number, 1 and true are not one value."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(json_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(json_equal(a[k], b[k]) for k in a)
    return bool(a == b)
