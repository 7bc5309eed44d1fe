"""Checks answers against a JSON Schema, by the package `jsonschema`.

A schema that is wrong, misspells a keyword or refers to another document is refused before any call is
paid for. `format` and the other annotations do not affect validity, which is the specification's
default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from suffice.errors import UsageError, nearest

_ANNOTATIONS = frozenset(
    "$schema $id $comment $defs $anchor $ref definitions title description default examples example "
    "deprecated readOnly writeOnly format contentEncoding contentMediaType contentSchema "
    "then else minContains maxContains".split()
)
_ONE = frozenset(
    "not if then else contains propertyNames additionalProperties items additionalItems "
    "unevaluatedItems unevaluatedProperties".split()
)
_LISTS = frozenset("allOf anyOf oneOf prefixItems items".split())
_MAPPINGS = frozenset("properties patternProperties dependentSchemas $defs definitions".split())


def compile_schema(schema: Any) -> Callable[[Any], bool]:
    """Compile a JSON Schema (drafts 7 to 2020-12).

    Args:
        schema: The decoded schema.

    Returns:
        A function that says whether a decoded JSON document is valid. A document that is nested
        hundreds of levels deep is not.

    Raises:
        UsageError: If the schema is wrong; it names the place.
    """  # noqa: DOC501  # `_wrong` returns a UsageError
    from jsonschema import SchemaError, validators
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    if not isinstance(schema, (dict, bool)):
        raise _wrong("#", f"expected a schema (an object, true or false), got {schema!r}")
    try:
        places = list(_subschemas(schema, "#"))
    except RecursionError:
        raise UsageError("The JSON schema is nested too deeply.") from None
    base = validators.validator_for(schema, default=_default_validator(places))
    cls: Any = validators.extend(base, {"multipleOf": _multiple_of})  # type: ignore[no-untyped-call]  # its stub has no types
    for path, part in places:
        _check_keywords(path, part, frozenset(cls.VALIDATORS) | _ANNOTATIONS)
    try:
        cls.check_schema(schema)
    except SchemaError as error:
        path = "/".join(["#", *map(str, error.absolute_path)])
        raise _wrong(path, error.message) from None
    resolver = (
        Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
        if isinstance(schema, dict)
        else None
    )
    for path, part in places:
        reference = part.get("$ref")
        if isinstance(reference, str) and resolver is not None:
            if not reference.startswith("#"):
                raise _wrong(f"{path}/$ref", f"{reference!r} is not inside the schema")
            try:
                resolver.lookup(reference)
            except Unresolvable:
                raise _wrong(f"{path}/$ref", f"{reference!r} does not exist") from None
    validator = cls(schema, registry=Registry())
    try:
        samples: tuple[Any, ...] = (None, {}, [], "", 0)
        for value in samples:
            validator.is_valid(value)  # a $ref that leads to itself fails on any value
    except RecursionError:
        raise UsageError("The JSON schema has a $ref that leads back to itself.") from None

    def is_valid(value: Any) -> bool:
        try:
            return bool(validator.is_valid(value))
        except RecursionError:
            return False

    return is_valid


def _default_validator(places: list[tuple[str, dict[str, Any]]]) -> Any:
    """The newest draft, unless the schema uses the array form of `items` of older drafts."""
    from jsonschema import Draft7Validator, Draft202012Validator

    old = any(isinstance(part.get("items"), list) for _, part in places)
    return Draft7Validator if old else Draft202012Validator


def _subschemas(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (path, schema) of a schema and of all schemas in it, true and false left out."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for key, value in schema.items():
        if key in _LISTS and isinstance(value, list):
            for i, part in enumerate(value):
                yield from _subschemas(part, f"{path}/{key}/{i}")
        elif key in _MAPPINGS and isinstance(value, dict):
            for name, part in value.items():
                yield from _subschemas(part, f"{path}/{key}/{name}")
        elif key in _ONE:
            yield from _subschemas(value, f"{path}/{key}")


def _check_keywords(path: str, schema: dict[str, Any], known: frozenset[str]) -> None:
    import re

    for key, value in schema.items():
        if key not in known:
            close = nearest(key, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise _wrong(f"{path}/{key}", f"unknown keyword{hint}")
        if key in ("pattern", "patternProperties"):
            for pattern in value if isinstance(value, dict) else (value,):
                try:
                    re.compile(pattern)
                except (re.error, TypeError) as error:
                    message = f"{pattern!r} is not a regular expression: {error}"
                    raise _wrong(f"{path}/{key}", message) from None


def _multiple_of(
    validator: Any,
    factor: float,
    instance: Any,
    schema: Any,  # noqa: ARG001  # jsonschema passes it
) -> Iterator[Any]:
    """`multipleOf` in decimal arithmetic, so that 0.3 is a multiple of 0.1."""
    from jsonschema import ValidationError

    if validator.is_type(instance, "number") and Decimal(str(instance)) % Decimal(str(factor)):
        yield ValidationError(f"{instance!r} is not a multiple of {factor!r}")


def _wrong(path: str, message: str) -> UsageError:
    return UsageError(f"The JSON schema is wrong at {path}: {message}.")
