"""JSON Schema, as far as answers of models are held to it: the keywords of drafts 7 to 2020-12 that
describe one document. A schema that uses anything else is refused before a call is paid for, rather
than half checked.

>>> fits({"n": 3}, {"type": "object", "required": ["n"], "properties": {"n": {"minimum": 1}}})
True

`format` and the other annotations say nothing about validity, which is the specification's default.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from suffice.errors import UsageError, nearest
from suffice.feedback.json_schema import TYPE_CHECKS, json_equal

Schema = Any  # a mapping of keywords, or True / False

_ANNOTATIONS = frozenset(
    "$schema $id $comment $defs definitions title description default examples example deprecated "
    "readOnly writeOnly format contentEncoding contentMediaType contentSchema".split()
)


def check(schema: Schema) -> None:
    """Raises UsageError that names the place where `schema` is wrong or goes beyond this file."""
    try:
        _check(schema, schema, "#")
        samples: tuple[Any, ...] = (None, {}, [], "", 0)
        for value in samples:
            _fits(value, schema, schema)  # a $ref that leads to itself shows on any value
    except RecursionError:
        raise UsageError(
            "The JSON schema is nested too deeply, or a $ref leads back to itself."
        ) from None


def fits(value: Any, schema: Schema) -> bool:
    """Whether a decoded JSON document is valid under a checked schema; one that is nested hundreds
    of levels deep is not."""
    try:
        return _fits(value, schema, schema)
    except RecursionError:
        return False


def _number(v: Any) -> bool:
    return isinstance(v, (int, float)) and not isinstance(v, bool)


# ── checking a schema ────────────────────────────────────────────────────────────────────────────


def _is_count(v: Any) -> bool:
    return _number(v) and v >= 0 and float(v).is_integer()


def _is_names(v: Any) -> bool:
    return isinstance(v, list) and all(isinstance(x, str) for x in v)


def _is_types(v: Any) -> bool:
    return (isinstance(v, str) and v in TYPE_CHECKS) or (
        _is_names(v) and all(x in TYPE_CHECKS for x in v)
    )


_Rule = tuple[Callable[[Any], bool], str]  # (is a good value, what one is in words)
_NUMBER: _Rule = (_number, "a number")
_COUNT: _Rule = (_is_count, "a whole number from 0")
_SCALARS: Mapping[str, _Rule] = {
    "type": (_is_types, f"one of {', '.join(TYPE_CHECKS)}, or a list of them"),
    "enum": (lambda v: isinstance(v, list), "a list"),
    "const": (lambda v: True, ""),
    "required": (_is_names, "a list of names"),
    "uniqueItems": (lambda v: isinstance(v, bool), "true or false"),
    "multipleOf": (lambda v: _number(v) and v > 0, "a number above 0"),
    "dependentRequired": (
        lambda v: isinstance(v, dict) and all(map(_is_names, v.values())),
        "a mapping to lists of names",
    ),
    **dict.fromkeys("minimum maximum exclusiveMinimum exclusiveMaximum".split(), _NUMBER),
    **dict.fromkeys(
        "minLength maxLength minItems maxItems minProperties maxProperties minContains "
        "maxContains".split(),
        _COUNT,
    ),
}
_ONE = frozenset("not if then else contains propertyNames additionalProperties".split())
_MANY = frozenset("allOf anyOf oneOf prefixItems".split())
_NAMED = frozenset("properties patternProperties dependentSchemas".split())
_OTHERS = frozenset(("items", "additionalItems", "pattern", "$ref"))
_KNOWN = frozenset(_SCALARS) | _ONE | _MANY | _NAMED | _OTHERS | _ANNOTATIONS


def _check(schema: Schema, root: Schema, at: str) -> None:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise _wrong(at, f"expected a schema (an object, true or false), got {schema!r}")
    for key, value in schema.items():
        here = f"{at}/{key}"
        if key not in _KNOWN or (key == "$id" and at != "#"):
            close = nearest(key, _KNOWN, 1)
            hint = f"Did you mean {close[0]!r}? " if close and key not in _KNOWN else ""
            raise UsageError(
                f"The JSON schema at {at}: the keyword {key!r} is not checked here.",
                remedy=f"{hint}Leave it out, or score with a function: --scorer module:function.",
            )
        if key in _SCALARS:
            good, words = _SCALARS[key]
            if not good(value):
                raise _wrong(here, f"expected {words}, got {value!r}")
        elif key in _ONE or key == "additionalItems":
            _check(value, root, here)
        elif key in _MANY or (key == "items" and isinstance(value, list)):
            if not isinstance(value, list) or not value:
                raise _wrong(here, f"expected a list of schemas, got {value!r}")
            for i, sub in enumerate(value):
                _check(sub, root, f"{here}/{i}")
        elif key == "items":
            _check(value, root, here)
        elif key in _NAMED or key in ("$defs", "definitions"):
            if not isinstance(value, dict):
                raise _wrong(here, f"expected a mapping of schemas, got {value!r}")
            for name, sub in value.items():
                if key == "patternProperties":
                    _pattern(name, here)
                _check(sub, root, f"{here}/{name}")
        elif key == "pattern":
            _pattern(value, here)
        elif key == "$ref":
            _resolve(value, root, here)


def _pattern(value: Any, at: str) -> None:
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise _wrong(at, f"{value!r} is no regular expression: {error}") from None


def _resolve(ref: Any, root: Schema, at: str = "") -> Schema:
    """The schema that a pointer inside the same document names."""
    if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
        raise _wrong(at, f"expected a $ref inside the schema, such as '#/$defs/item', got {ref!r}")
    found = root
    for part in ref[1:].split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict) and name in found:
            found = found[name]
        else:
            raise _wrong(at, f"{ref!r} leads nowhere")
    return found


def _wrong(at: str, what: str) -> UsageError:
    return UsageError(f"The JSON schema at {at}: {what}.")


# ── checking a value ─────────────────────────────────────────────────────────────────────────────


def _fits(v: Any, schema: Schema, root: Schema) -> bool:
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and not _fits(v, _resolve(schema["$ref"], root), root):
        return False
    kinds = schema.get("type")
    if kinds is not None:
        if not any(TYPE_CHECKS[k](v) for k in ([kinds] if isinstance(kinds, str) else kinds)):
            return False
    if "enum" in schema and not any(json_equal(v, x) for x in schema["enum"]):
        return False
    if "const" in schema and not json_equal(v, schema["const"]):
        return False
    if not _combined(v, schema, root):
        return False
    if isinstance(v, dict):
        return _object(v, schema, root)
    if isinstance(v, list):
        return _array(v, schema, root)
    if isinstance(v, str):
        n = len(v)
        pattern = schema.get("pattern")
        return schema.get("minLength", 0) <= n <= schema.get("maxLength", n) and (
            pattern is None or re.search(pattern, v) is not None
        )
    return not _number(v) or _amount(v, schema)


def _combined(v: Any, schema: Schema, root: Schema) -> bool:
    def good(sub: Schema) -> bool:
        return _fits(v, sub, root)

    if "allOf" in schema and not all(map(good, schema["allOf"])):
        return False
    if "anyOf" in schema and not any(map(good, schema["anyOf"])):
        return False
    if "oneOf" in schema and sum(map(good, schema["oneOf"])) != 1:
        return False
    if "not" in schema and good(schema["not"]):
        return False
    if "if" in schema:
        return good(schema.get("then" if good(schema["if"]) else "else", True))
    return True


def _amount(v: float, s: Mapping[str, Any]) -> bool:
    if "minimum" in s and v < s["minimum"]:
        return False
    if "maximum" in s and v > s["maximum"]:
        return False
    if "exclusiveMinimum" in s and v <= s["exclusiveMinimum"]:
        return False
    if "exclusiveMaximum" in s and v >= s["exclusiveMaximum"]:
        return False
    step = s.get("multipleOf")
    if step is None:
        return True
    if isinstance(v, int) and isinstance(step, int):
        return v % step == 0
    times = v / step
    # 0.3 is a multiple of 0.1, whatever binary fractions say.
    return math.isfinite(times) and math.isclose(times, round(times), rel_tol=1e-9, abs_tol=1e-9)


def _object(v: dict[str, Any], s: Mapping[str, Any], root: Schema) -> bool:
    if not s.get("minProperties", 0) <= len(v) <= s.get("maxProperties", len(v)):
        return False
    if any(k not in v for k in s.get("required", ())):
        return False
    if any(
        k in v and any(n not in v for n in ns) for k, ns in s.get("dependentRequired", {}).items()
    ):
        return False
    if any(k in v and not _fits(v, sub, root) for k, sub in s.get("dependentSchemas", {}).items()):
        return False
    own, patterns = s.get("properties", {}), s.get("patternProperties", {})
    others = s.get("additionalProperties", True)
    for key, value in v.items():
        if not _fits(key, s.get("propertyNames", True), root):
            return False
        subs = [own[key]] if key in own else []
        subs += [sub for p, sub in patterns.items() if re.search(p, key)]
        if not all(_fits(value, sub, root) for sub in subs or [others]):
            return False
    return True


def _array(v: list[Any], s: Mapping[str, Any], root: Schema) -> bool:
    if not s.get("minItems", 0) <= len(v) <= s.get("maxItems", len(v)):
        return False
    if s.get("uniqueItems") and any(json_equal(a, b) for i, a in enumerate(v) for b in v[:i]):
        return False
    items = s.get("items", True)
    # Up to draft 2019-09 a list of `items` is what `prefixItems` is since.
    first = items if isinstance(items, list) else s.get("prefixItems", [])
    rest = s.get("additionalItems", True) if isinstance(items, list) else items
    if not all(_fits(x, first[i] if i < len(first) else rest, root) for i, x in enumerate(v)):
        return False
    if "contains" in s:
        n = sum(_fits(x, s["contains"], root) for x in v)
        return bool(s.get("minContains", 1) <= n <= s.get("maxContains", n))
    return True
