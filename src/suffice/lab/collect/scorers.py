"""Scorers: an answer and what was expected -> a score in [0, 1].

| scorer | 1 where |
|---|---|
| exact | the answer is the expected one, but for case, white space and how a number is written |
| contains | the expected text stands in it as whole words, or the expected number is one of its own |
| regex | the pattern is found in the answer (Python's `re.search`) |
| json_schema | the answer is JSON, bare or in one code fence, and valid under the schema |

`module:function` is called as `function(prompt, answer, expected)` and returns a number in [0, 1], a
bool, or None for 'cannot say'.
A first parameter named `messages` gets the conversation as a list instead of the last prompt.
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
from suffice.lab.collect import schema as json_schema
from suffice.lab.collect.queries import Pool, read_pool

NAMES = ("exact", "contains", "regex", "json_schema")
_COLUMNS = {
    "exact": ("expected", "answer"),
    "contains": ("expected", "answer"),
    "regex": ("pattern", "expected", "answer"),
    "json_schema": ("schema", "expected"),
}


class Scorer(Protocol):
    """name: as it was given. score: of an answer to query i of the pool; None = cannot say."""

    name: str

    def score(self, i: int, answer: str) -> float | None: ...


# ── exact and contains ───────────────────────────────────────────────────────────────────────────

_SIZE = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,4})?"
_ONE_NUMBER = re.compile(rf"([-+]?)\s*[$€£¥]?\s*({_SIZE})")
# Not inside a word or a version such as 3.11.4; "5 kg", "$5." and "x=5" all hold a 5.
_NUMBERS = re.compile(rf"(?<![\w.])([-+]?)[$€£¥]?({_SIZE})(?!\.?\d)")


def number_of(text: str) -> Decimal | None:
    """The number that `text` is, with or without thousands' commas, sign or currency."""
    bare = text.strip(WRAPPING).removesuffix(".").strip(WRAPPING)
    match = _ONE_NUMBER.fullmatch(bare)
    return None if match is None else _decimal(match)


def _decimal(match: re.Match[str]) -> Decimal:
    return Decimal(match[1] + match[2].replace(",", ""))


def exact(answer: str, expected: Any) -> float:
    """1.0 where `answer` is `expected`, or one of them where it is a list."""
    if isinstance(expected, list):
        return max((exact(answer, e) for e in expected), default=0.0)
    want = _text(expected)
    a, b = number_of(answer), number_of(want)
    if a is not None and b is not None:
        return float(a == b)
    return float(normalize(answer) == normalize(want))


def contains(answer: str, expected: Any) -> float:
    """1.0 where `expected`, or one of them where it is a list, stands in `answer`."""
    if isinstance(expected, list):
        return max((contains(answer, e) for e in expected), default=0.0)
    want = _text(expected)
    number = number_of(want)
    if number is not None:
        return float(any(_decimal(m) == number for m in _NUMBERS.finditer(answer)))
    text, part = normalize(answer), normalize(want)
    at = text.find(part)
    while at >= 0:
        end = at + len(part)
        inside = at > 0 and _wordy(text[at - 1]) and _wordy(part[0])
        runs_on = end < len(text) and _wordy(text[end]) and _wordy(part[-1])
        if not inside and not runs_on:
            return 1.0
        at = text.find(part, at + 1)
    return 0.0


def _wordy(char: str) -> bool:
    """Part of a word, in scripts that set words apart."""
    return char.isalnum() and char < "\u0e00"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value) if isinstance(value, (bool, dict)) else str(value)


class _Compared:
    def __init__(
        self, name: str, compare: Callable[[str, Any], float], expected: tuple[Any, ...]
    ) -> None:
        self.name = name
        self._compare = compare
        self._expected = expected

    def score(self, i: int, answer: str) -> float | None:
        return self._compare(answer, self._expected[i])


# ── regex and json_schema ────────────────────────────────────────────────────────────────────────


def _pattern(text: Any, where: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, TypeError) as error:
        raise UsageError(f"{where}: {text!r} is no regular expression: {error}.") from None


def found(answer: str, pattern: re.Pattern[str]) -> float:
    return float(pattern.search(answer) is not None)


_FENCE = re.compile(r"```[\w-]*\s*\n(.*?)\n?\s*```", re.DOTALL)


def json_in(answer: str) -> Any:
    """The JSON document that an answer is, bare or in its one code fence; `ValueError` else."""
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


def valid(answer: str, schema: Any) -> float:
    try:
        value = json_in(answer)
    except ValueError:
        return 0.0
    return float(json_schema.fits(value, schema))


def _schema(raw: Any, where: str) -> Any:
    if isinstance(raw, (str, bytes)):
        try:
            raw = json.loads(raw)
        except ValueError as error:  # UnicodeDecodeError is one
            raise UsageError(f"{where}: the schema is not valid JSON: {error}.") from None
    try:
        json_schema.check(raw)
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", remedy=error.remedy) from None
    return raw


# ── a function of the user's ─────────────────────────────────────────────────────────────────────


class FunctionScorer:
    """`module:function`, found on the import path, on which the working directory comes first."""

    def __init__(self, name: str, pool: Pool) -> None:
        self.name = name
        self._pool = pool
        self._function = _function(name)
        self._takes_messages = _check_signature(name, self._function)

    def score(self, i: int, answer: str) -> float | None:
        pool = self._pool
        asked: Any = pool.table.prompts[i]
        if self._takes_messages:
            asked = msgspec.json.decode(pool.messages[i])
        try:
            value = self._function(asked, answer, pool.expected[i])
        except Exception as error:  # noqa: BLE001  a user's function may raise anything
            raise UsageError(
                f"--scorer {self.name} raised {type(error).__name__}: {error} on query "
                f"{pool.ids[i]!r}.",
                remedy="Answers are kept: mend it and run the same command again.",
            ) from None
        if value is None:
            return None
        if not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
            raise UsageError(
                f"--scorer {self.name} returned {value!r} on query {pool.ids[i]!r}.",
                remedy="Return a number from 0 to 1, a bool, or None where it cannot say.",
            )
        return float(value)


def _function(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
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
    """Whether it wants messages. Raises UsageError where it cannot be called with three values."""
    if inspect.iscoroutinefunction(function):
        raise UsageError(f"--scorer {name}: it is async.", remedy="Give a plain function.")
    try:
        signature = inspect.signature(function)
    except ValueError:
        return False  # a built-in that does not say
    try:
        signature.bind("", "", None)
    except TypeError as error:
        raise UsageError(
            f"--scorer {name}: it cannot be called with (prompt, answer, expected): {error}."
        ) from None
    return next(iter(signature.parameters), "") == "messages"


# ── which one ────────────────────────────────────────────────────────────────────────────────────


def make(
    name: str,
    source: str,
    *,
    expected_column: str | None = None,
    pattern: str | None = None,
    schema: Path | None = None,
) -> tuple[Pool, Scorer]:
    """The queries with what they expect, and the scorer by its name. Everything that could be wrong
    with it is found here, before a call is paid for. Raises UsageError, TableError."""
    own = (expected_column,) if expected_column else None
    _check_options(name, pattern, schema)
    if ":" in name:
        pool = read_pool(source, own or ("expected", "answer"), must=own is not None)
        return pool, FunctionScorer(name, pool)
    columns = own or _COLUMNS[name]
    for_all = pattern if name == "regex" else schema if name == "json_schema" else None
    if for_all is not None:
        pool = read_pool(source)
        return pool, _Compared(name, *_for_all(name, for_all, len(pool)))
    pool = read_pool(source, columns, must=True, every=True)
    if name in ("exact", "contains"):
        return pool, _Compared(name, exact if name == "exact" else contains, pool.expected)
    where = [f"{source}, column {pool.column!r}, query {q!r}" for q in pool.ids]
    if name == "regex":
        patterns = tuple(_pattern(e, w) for e, w in zip(pool.expected, where, strict=True))
        return pool, _Compared(name, found, patterns)
    schemas = tuple(_schema(e, w) for e, w in zip(pool.expected, where, strict=True))
    return pool, _Compared(name, valid, schemas)


def _check_options(name: str, pattern: str | None, schema: Path | None) -> None:
    if name not in NAMES and not re.fullmatch(r"[\w.]+:\w+", name):
        close = nearest(name, NAMES, 1)
        raise UsageError(
            f"--scorer {name!r} is not known.",
            remedy=f"{f'Did you mean {close[0]!r}? ' if close else ''}Known: {', '.join(NAMES)}, "
            "module:function.",
        )
    if pattern is not None and name != "regex":
        raise UsageError("--pattern belongs to --scorer regex.")
    if schema is not None and name != "json_schema":
        raise UsageError("--schema belongs to --scorer json_schema.")


def _for_all(
    name: str, given: str | Path, n: int
) -> tuple[Callable[[str, Any], float], tuple[Any, ...]]:
    if name == "regex":
        return found, (_pattern(given, "--pattern"),) * n
    try:
        raw = Path(given).read_bytes()
    except OSError as error:
        raise UsageError(f"--schema {given}: {error.strerror}.") from None
    return valid, (_schema(raw, f"--schema {given}"),) * n
