"""Scorers: from an answer and the expected answer to a score in [0, 1].

| scorer | 1 if |
|---|---|
| exact | the answer equals the expected one, except for case, white space and number format |
| contains | the answer contains the expected text as whole words, or the expected number |
| regex | the pattern is found in the answer (Python's `re.search`) |
| json_schema | the answer is JSON, bare or in one code fence, and valid under the schema |

`module:function` is called as `function(prompt, answer, expected)` and returns a number in [0, 1], a
bool, or None for an unknown score. If its first parameter is named `messages`, it gets the
conversation as a list instead of the last prompt.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import msgspec

from suffice.errors import UsageError, nearest
from suffice.judging import WRAPPING, normalize
from suffice.lab.collect.queries import QueryPool, read_queries
from suffice.lab.collect.schema import compile_schema

SCORERS = ("exact", "contains", "regex", "json_schema")
_COLUMNS = {
    "exact": ("expected", "answer"),
    "contains": ("expected", "answer"),
    "regex": ("pattern", "expected", "answer"),
    "json_schema": ("schema", "expected"),
}


class Scorer(Protocol):
    """Scores answers to the queries of a pool."""

    name: str  # as on the command line

    def score(self, i: int, answer: str) -> float | None:
        """The score of an answer to query i; None = unknown."""


# ── exact and contains ───────────────────────────────────────────────────────────────────────────

_MAGNITUDE = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,4})?"
_ONE_NUMBER = re.compile(rf"([-+]?)\s*[$€£¥]?\s*({_MAGNITUDE})")
# Not inside a word or a version such as 3.11.4; "5 kg", "$5." and "x=5" all contain a 5.
_NUMBERS = re.compile(rf"(?<![\w.])([-+]?)[$€£¥]?({_MAGNITUDE})(?!\.?\d)")


def parse_number(text: str) -> Decimal | None:
    """The number that the whole text represents; None if it is not a number."""
    bare = text.strip(WRAPPING).removesuffix(".").strip(WRAPPING)
    match = _ONE_NUMBER.fullmatch(bare)
    return None if match is None else _decimal(match)


def _decimal(match: re.Match[str]) -> Decimal:
    return Decimal(match[1] + match[2].replace(",", ""))


def exact_match(answer: str, expected: Any) -> float:
    """1.0 if `answer` equals `expected`, or one of its items if it is a list."""
    if isinstance(expected, list):
        return max((exact_match(answer, e) for e in expected), default=0.0)
    expected_text = _text(expected)
    a, b = parse_number(answer), parse_number(expected_text)
    if a is not None and b is not None:
        return float(a == b)
    return float(normalize(answer) == normalize(expected_text))


def contains(answer: str, expected: Any) -> float:
    """1.0 if `answer` contains `expected`, or one of its items if it is a list."""
    if isinstance(expected, list):
        return max((contains(answer, e) for e in expected), default=0.0)
    expected_text = _text(expected)
    number = parse_number(expected_text)
    if number is not None:
        return float(any(_decimal(m) == number for m in _NUMBERS.finditer(answer)))
    text, part = normalize(answer), normalize(expected_text)
    start = text.find(part)
    while start >= 0:
        end = start + len(part)
        continues_before = start > 0 and _is_word_char(text[start - 1]) and _is_word_char(part[0])
        continues_after = end < len(text) and _is_word_char(text[end]) and _is_word_char(part[-1])
        if not continues_before and not continues_after:
            return 1.0
        start = text.find(part, start + 1)
    return 0.0


def _is_word_char(char: str) -> bool:
    """Whether a character is part of a word, in scripts with spaces between words."""
    return char.isalnum() and char < "\u0e00"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value) if isinstance(value, (bool, dict)) else str(value)


class ComparisonScorer:
    """Compares each answer with the expected value of its query."""

    def __init__(
        self, name: str, compare: Callable[[str, Any], float], expected: tuple[Any, ...]
    ) -> None:
        self.name = name
        self._compare = compare
        self._expected = expected

    def score(self, i: int, answer: str) -> float | None:
        """The score of an answer to query i."""
        return self._compare(answer, self._expected[i])


# ── regex and json_schema ────────────────────────────────────────────────────────────────────────


def _pattern(text: Any, source: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, TypeError) as error:
        raise UsageError(f"{source}: {text!r} is not a regular expression: {error}.") from None


def regex_match(answer: str, pattern: re.Pattern[str]) -> float:
    """1.0 if the pattern is found in the answer."""
    return float(pattern.search(answer) is not None)


_FENCE = re.compile(r"```[\w-]*\s*\n(.*?)\n?\s*```", re.DOTALL)


def parse_json_answer(answer: str) -> Any:
    """Parse the JSON document of an answer, bare or in its only code fence.

    Args:
        answer: The answer.

    Returns:
        The decoded document.

    Raises:
        ValueError: If the answer is not JSON.
    """
    text = answer.strip()
    fences = _FENCE.findall(text)
    if len(fences) == 1 and not text.startswith(("{", "[")):
        text = fences[0]

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def schema_match(answer: str, is_valid: Callable[[Any], bool]) -> float:
    """1.0 if the answer is JSON and valid. is_valid: as `compile_schema` returns it."""
    try:
        value = parse_json_answer(answer)
    except ValueError:
        return 0.0
    return float(is_valid(value))


def _schema(raw: Any, source: str) -> Callable[[Any], bool]:
    if isinstance(raw, (str, bytes)):
        try:
            raw = json.loads(raw)
        except ValueError as error:  # UnicodeDecodeError is one
            raise UsageError(f"{source}: the schema is not valid JSON: {error}.") from None
    try:
        return compile_schema(raw)
    except UsageError as error:
        raise UsageError(f"{source}: {error.message}", remedy=error.remedy) from None


# ── a user's function ─────────────────────────────────────────────────────────────────────


class FunctionScorer:
    """Calls a user's `module:function`; the working directory is first on the import path."""

    def __init__(self, name: str, pool: QueryPool) -> None:
        self.name = name
        self._pool = pool
        self._function = _function(name)
        self._takes_messages = _check_signature(name, self._function)

    def score(self, i: int, answer: str) -> float | None:
        """Returns the score of an answer to query i; None = unknown.

        Raises:
            UsageError: If the function raises, or returns something else than a score.
        """
        pool = self._pool
        prompt: Any = pool.table.prompts[i]
        if self._takes_messages:
            prompt = msgspec.json.decode(pool.messages[i])
        try:
            value = self._function(prompt, answer, pool.expected[i])
        except Exception as error:  # noqa: BLE001  a user's function may raise anything
            raise UsageError(
                f"--scorer {self.name} raised {type(error).__name__}: {error} on query "
                f"{pool.ids[i]!r}.",
                remedy="Answers are kept: fix the function and run the same command again.",
            ) from None
        if value is None:
            return None
        if not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
            raise UsageError(
                f"--scorer {self.name} returned {value!r} on query {pool.ids[i]!r}.",
                remedy="Return a number from 0 to 1, a bool, or None for an unknown score.",
            )
        return float(value)


def _function(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # noqa: BLE001  a user's module may raise anything
        raise UsageError(
            f"--scorer {name}: the module {module_name!r} cannot be imported: "
            f"{type(error).__name__}: {error}."
        ) from None
    function = getattr(module, attribute, None)
    if not callable(function):
        close = nearest(attribute, [n for n in vars(module) if callable(vars(module)[n])], 1)
        raise UsageError(
            f"--scorer {name}: there is no function {attribute!r} in {module_name}.",
            remedy=f"Did you mean {close[0]!r}?" if close else None,
        )
    return function  # type: ignore[no-any-return]


def _check_signature(name: str, function: Callable[..., Any]) -> bool:
    """Returns whether the function takes messages.

    Raises:
        UsageError: If it cannot be called with three values.
    """
    if inspect.iscoroutinefunction(function):
        raise UsageError(
            f"--scorer {name}: async functions are not supported.", remedy="Give a plain function."
        )
    try:
        signature = inspect.signature(function)
    except ValueError:
        return False  # a built-in without a signature
    try:
        signature.bind("", "", None)
    except TypeError as error:
        raise UsageError(
            f"--scorer {name}: it cannot be called with (prompt, answer, expected): {error}."
        ) from None
    return next(iter(signature.parameters), "") == "messages"


# ── selection ────────────────────────────────────────────────────────────────────────────────────


def make_scorer(
    name: str,
    source: str,
    *,
    expected_column: str | None = None,
    pattern: str | None = None,
    schema: Path | None = None,
) -> tuple[QueryPool, Scorer]:
    """Read the queries with their expected answers, and make the scorer.

    Everything that can be wrong with it is found here, before any call is paid for.

    Args:
        name: Name of the scorer, or module:function.
        source: Where the queries are.
        expected_column: Column of the expected answer, pattern or schema.
        pattern: One pattern for all queries.
        schema: File of one schema for all queries.

    Returns:
        The queries and the scorer.

    Raises:
        UsageError: If an option is wrong.
        TableError: If the queries cannot be used.
    """
    named_columns = (expected_column,) if expected_column else None
    _check_options(name, pattern, schema)
    if ":" in name:
        pool = read_queries(
            source, named_columns or ("expected", "answer"), required=named_columns is not None
        )
        return pool, FunctionScorer(name, pool)
    columns = named_columns or _COLUMNS[name]
    shared = pattern if name == "regex" else schema if name == "json_schema" else None
    if shared is not None:
        pool = read_queries(source)
        return pool, ComparisonScorer(name, *_shared_value(name, shared, len(pool)))
    pool = read_queries(source, columns, required=True, every=True)
    if name in ("exact", "contains"):
        return pool, ComparisonScorer(
            name, exact_match if name == "exact" else contains, pool.expected
        )
    places = [f"{source}, column {pool.column!r}, query {q!r}" for q in pool.ids]
    if name == "regex":
        patterns = tuple(_pattern(e, w) for e, w in zip(pool.expected, places, strict=True))
        return pool, ComparisonScorer(name, regex_match, patterns)
    schemas = tuple(_schema(e, w) for e, w in zip(pool.expected, places, strict=True))
    return pool, ComparisonScorer(name, schema_match, schemas)


def _check_options(name: str, pattern: str | None, schema: Path | None) -> None:
    if name not in SCORERS and not re.fullmatch(r"[\w.]+:\w+", name):
        close = nearest(name, SCORERS, 1)
        raise UsageError(
            f"Unknown --scorer {name!r}.",
            remedy=f"{f'Did you mean {close[0]!r}? ' if close else ''}Known: {', '.join(SCORERS)}, "
            "module:function.",
        )
    if pattern is not None and name != "regex":
        raise UsageError("--pattern belongs to --scorer regex.")
    if schema is not None and name != "json_schema":
        raise UsageError("--schema belongs to --scorer json_schema.")


def _shared_value(
    name: str, value: str | Path, n: int
) -> tuple[Callable[[str, Any], float], tuple[Any, ...]]:
    if name == "regex":
        return regex_match, (_pattern(value, "--pattern"),) * n
    try:
        raw = Path(value).read_bytes()
    except OSError as error:
        raise UsageError(f"--schema {value}: {error.strerror}.") from None
    return schema_match, (_schema(raw, f"--schema {value}"),) * n
