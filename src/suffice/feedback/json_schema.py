"""Checks a value against a JSON Schema. Reports only violations that are certain.

The keywords of structured outputs are checked: type, enum, const, properties, required,
additionalProperties, items, prefixItems, minItems, maxItems, minLength, maxLength, minimum,
maximum, exclusiveMinimum, exclusiveMaximum, multipleOf of whole numbers, anyOf, oneOf, allOf, and
$ref within the schema (JSON Schema 2020-12). Others are ignored. `pattern` is ignored on purpose: a
client writes it, and a regular expression can take unbounded time. So a value may violate a schema
in a way that is not reported, but what is reported is a violation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

_MAX_CHECKS = 5_000  # of one value, about 10 ms; past it nothing is reported
_MAX_DEPTH = 64


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


TYPE_CHECKS: dict[str, Callable[[object], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": _is_number,
    "integer": _is_integer,
}


class _CheckBudgetExceededError(Exception):
    """Too many checks: nothing certain can be said."""


def first_violation(value: object, schema: object) -> str | None:
    """Find where and how `value` violates `schema`.

    >>> first_violation({"a": 1}, {"type": "object", "required": ["b"]})
    '$: lacks "b"'

    Returns:
        A path and a reason, or None if no violation is found. Names come from the schema, never
        from the value.
    """
    try:
        return _Check(schema).first_violation(value, schema, "$", 0)
    except _CheckBudgetExceededError:
        return None


class _Check:
    def __init__(self, root: object) -> None:
        self._root = root
        self._remaining_checks = _MAX_CHECKS

    def first_violation(self, value: object, schema: object, path: str, depth: int) -> str | None:
        self._remaining_checks -= 1
        if self._remaining_checks < 0 or depth > _MAX_DEPTH:
            raise _CheckBudgetExceededError
        if schema is False:
            return f"{path}: is not allowed"
        if not isinstance(schema, Mapping):
            return None
        violation = (
            self._check_reference(value, schema, path, depth)
            or _check_scalar(value, schema, path)
            or self._check_composition(value, schema, path, depth)
        )
        if violation is not None:
            return violation
        parts: Iterator[tuple[object, object, str]] = iter(())
        if isinstance(value, dict):
            for name in _list(schema.get("required")):
                if isinstance(name, str) and name not in value:
                    return f'{path}: lacks "{name}"'
            parts = _properties(value, schema, path)
        elif isinstance(value, list):
            parts = _items(value, schema, path)
        violations = (self.first_violation(*part, depth + 1) for part in parts)
        return next((violation for violation in violations if violation is not None), None)

    def _check_reference(
        self, value: object, schema: Mapping[str, object], path: str, depth: int
    ) -> str | None:
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        target = self._root
        for part in reference[1:].split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or name not in target:
                return None
            target = target[name]
        return self.first_violation(value, target, path, depth + 1)

    def _check_composition(
        self, value: object, schema: Mapping[str, object], path: str, depth: int
    ) -> str | None:
        for part in _list(schema.get("allOf")):
            violation = self.first_violation(value, part, path, depth + 1)
            if violation is not None:
                return violation
        for keyword in ("anyOf", "oneOf"):  # of oneOf only: at least one matches
            options = _list(schema.get(keyword))
            if options and all(
                self.first_violation(value, option, path, depth + 1) is not None
                for option in options
            ):
                return f"{path}: matches none of its {len(options)} forms"
        return None


def _properties(
    value: dict[str, object], schema: Mapping[str, object], path: str
) -> Iterator[tuple[object, object, str]]:
    """(value, schema, path) of each property."""
    declared = schema.get("properties")
    properties = declared if isinstance(declared, Mapping) else {}
    for name, part in properties.items():
        if name in value:
            yield value[name], part, f"{path}.{name}"
    # Names may also come from patternProperties, which is not checked.
    if "additionalProperties" in schema and "patternProperties" not in schema:
        for name in value.keys() - properties.keys():
            yield value[name], schema["additionalProperties"], f"{path}.*"


def _items(
    value: list[object], schema: Mapping[str, object], path: str
) -> Iterator[tuple[object, object, str]]:
    """(value, schema, path) of each item."""
    prefix = _list(schema.get("prefixItems"))
    for index, item in enumerate(value):
        if index < len(prefix):
            yield item, prefix[index], f"{path}[{index}]"
        elif "items" in schema and not isinstance(schema["items"], list):
            yield item, schema["items"], f"{path}[{index}]"


def _check_scalar(value: object, schema: Mapping[str, object], path: str) -> str | None:
    """Check what needs no look inside the value."""
    kind = schema.get("type")
    names = [name for name in (kind if isinstance(kind, list) else [kind]) if isinstance(name, str)]
    checks = [TYPE_CHECKS[name] for name in names if name in TYPE_CHECKS]
    if names and len(checks) == len(names) and not any(check(value) for check in checks):
        return f"{path}: is not {' or '.join([_ARTICLES.get(name, '') + name for name in names])}"
    if "const" in schema and not json_equal(value, schema["const"]):
        return f"{path}: is not the one value it may be"
    options = schema.get("enum")
    if isinstance(options, list) and not any(json_equal(value, option) for option in options):
        return f"{path}: is none of its {len(options)} values"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _check_number(value, schema, path)
    if isinstance(value, (str, list)):
        unit = "Length" if isinstance(value, str) else "Items"
        least, most = _bound(schema.get(f"min{unit}")), _bound(schema.get(f"max{unit}"))
        if least is not None and len(value) < least:
            return f"{path}: is shorter than {least:g}"
        if most is not None and len(value) > most:
            return f"{path}: is longer than {most:g}"
    return None


_ARTICLES = {
    "object": "an ",
    "array": "an ",
    "integer": "an ",
    "string": "a ",
    "boolean": "a ",
    "number": "a ",
}
_BOUNDS: tuple[tuple[str, Callable[[float, float], bool], str], ...] = (
    ("minimum", lambda value, bound: value < bound, "below"),
    ("maximum", lambda value, bound: value > bound, "above"),
    ("exclusiveMinimum", lambda value, bound: value <= bound, "not above"),
    ("exclusiveMaximum", lambda value, bound: value >= bound, "not below"),
)


def _check_number(value: float, schema: Mapping[str, object], path: str) -> str | None:
    for keyword, is_violated, word in _BOUNDS:
        bound = _bound(schema.get(keyword))
        if bound is not None and is_violated(value, bound):
            return f"{path}: is {word} {bound:g}"
    step = schema.get("multipleOf")
    # Fractions are not checked: in binary, 0.3 is not a multiple of 0.1.
    if type(step) is int and step > 0 and type(value) is int and value % step:
        return f"{path}: is not a multiple of {step}"
    return None


def _bound(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return None


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def json_equal(a: object, b: object) -> bool:
    """Whether two JSON values are equal: 1 equals 1.0, but 1 is not true."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(json_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(json_equal(a[key], b[key]) for key in a)
    return bool(a == b)
