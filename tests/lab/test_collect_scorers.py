"""Scorers: what counts as right, and everything that is wrong with them found before money goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.errors import TableError, UsageError
from suffice.lab.collect import scorers
from suffice.lab.collect.schema import compile_schema


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("Paris", "paris", 1),
        ("  The\n Capital ", "the capital", 1),
        ("**Paris.**", "Paris", 1),
        ("Paris, France", "Paris", 0),
        ("1,234.50", "1234.5", 1),
        ("$ 42", 42, 1),
        ("42.0", 42, 1),
        ("-3", "3", 0),
        ("42 apples", "42", 0),
        ("yes", ["no", "yes"], 1),
        ("ﬁne", "fine", 1),
        ("", "x", 0),
        ("true", True, 1),
    ],
)
def test_exact(answer: str, expected: Any, score: int) -> None:
    assert scorers.exact_match(answer, expected) == score


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("The capital is Paris.", "paris", 1),
        ("The Parisian way", "Paris", 0),
        ("compare", "par", 0),
        ("It costs $1,250.", "1250", 1),
        ("14 days", "4", 0),
        ("Python 3.11.4", "3.11", 0),
        ("so x=-7, done", "-7", 1),
        ("so x=-7, done", "7", 0),
        ("10-7 is 3", "7", 1),
        ("about 4.50 each", "4.5", 1),
        ("首都是东京。", "东京", 1),
        ("nothing here", ["no", "nothing"], 1),
        ("nothing here", [], 0),
    ],
)
def test_contains(answer: str, expected: Any, score: int) -> None:
    assert scorers.contains(answer, expected) == score


words = st.text(st.characters(categories=("L", "N", "P", "Zs")), min_size=1).filter(str.strip)


@given(words)
def test_an_answer_is_itself_whatever_its_case_and_spacing(text: str) -> None:
    assert scorers.exact_match(text, text) == 1.0
    assert scorers.exact_match(f"\n  {text} \t", text) == 1.0
    spaced = "  ".join(text.split(" "))
    assert scorers.exact_match(spaced, text) == 1.0


@given(words, words)
def test_exact_is_symmetric_and_implies_contains(a: str, b: str) -> None:
    assert scorers.exact_match(a, b) == scorers.exact_match(b, a)
    if scorers.exact_match(a, b):
        assert scorers.contains(a, b) == 1.0


@given(st.integers(-(10**12), 10**12), st.sampled_from(["", ".0", ".000"]))
def test_numbers_are_equal_however_they_are_written(n: int, tail: str) -> None:
    assert scorers.exact_match(f"{n:,}{tail}", n) == 1.0
    assert scorers.contains(f"I make it {n:,}{tail}.", str(n)) == 1.0
    assert scorers.contains(f"I make it {n:,}{tail}.", str(n + 1)) == 0.0


@given(words)
def test_a_text_is_found_by_its_own_pattern(text: str) -> None:
    import re

    assert scorers.regex_match(f"so: {text}", re.compile(re.escape(text))) == 1.0


# ── JSON schema ──────────────────────────────────────────────────────────────────────────────────

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "age": {"$ref": "#/$defs/age"}},
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"age": {"type": ["integer", "null"], "minimum": 0}},
}


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"name": "Ada", "age": 36}', 1),
        ('{"name": "Ada", "age": 36.0}', 1),
        ('Here it is:\n```json\n{"name": "Ada"}\n```\nGood?', 1),
        ('{"name": "Ada", "age": true}', 0),
        ('{"name": ""}', 0),
        ('{"age": 3}', 0),
        ('{"name": "Ada", "more": 1}', 0),
        ('{"name": "Ada"} and more', 0),
        ('```\n{"name": "A"}\n```\n```\n{"name": "B"}\n```', 0),
        ('{"name": NaN}', 0),
        ("[" * 5000, 0),
        ("", 0),
    ],
)
def test_json_answers_are_held_to_the_schema(answer: str, score: int) -> None:
    assert scorers.schema_match(answer, compile_schema(PERSON)) == score


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"enum": [1, "a", None]}, [1, 1.0, None], [True, "b"]),
        ({"const": False}, [False], [0, None]),
        ({"type": "number", "multipleOf": 0.1}, [0.3, 7], [0.35]),
        ({"exclusiveMinimum": 0, "maximum": 1}, [1, 0.5, "x"], [0, 2]),
        ({"pattern": "^a+$"}, ["aa", 3], ["ab"]),
        ({"items": {"type": "integer"}, "uniqueItems": True}, [[1, 2]], [[1, 1], ["a"], [0, 0.0]]),
        ({"prefixItems": [{"const": 1}], "items": False}, [[1], []], [[1, 2]]),
        ({"items": [{"const": 1}], "additionalItems": {"const": 2}}, [[1, 2]], [[1, 3]]),
        ({"contains": {"const": 1}, "maxContains": 1}, [[1, 2]], [[2], [1, 1]]),
        ({"anyOf": [{"type": "string"}, {"minimum": 5}]}, ["x", 5], [4]),
        ({"oneOf": [{"multipleOf": 2}, {"multipleOf": 3}]}, [2, 3], [6, 7]),
        ({"not": {"type": "null"}}, [0], [None]),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, [{}, {"a": 1, "b": 1}], [{"a": 1}]),
        ({"patternProperties": {"^x": {"type": "null"}}, "additionalProperties": False}, [{"xy": None}], [{"y": None}, {"x": 1}]),
        ({"propertyNames": {"maxLength": 1}}, [{"a": 1}], [{"ab": 1}]),
        ({"dependentRequired": {"a": ["b"]}}, [{"b": 1}], [{"a": 1}]),
        ({"items": {"$ref": "#"}, "maxItems": 1}, [[[[]]]], [[[[], []]]]),
        ({"properties": {"a": True}, "unevaluatedProperties": False}, [{"a": 1}], [{"b": 1}]),
        (True, [1], []),
        (False, [], [1]),
    ],
)  # fmt: skip
def test_keywords(schema: Any, good: list[Any], bad: list[Any]) -> None:
    is_valid = compile_schema(schema)
    assert [is_valid(v) for v in good] == [True] * len(good)
    assert [is_valid(v) for v in bad] == [False] * len(bad)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"properties": {"a": {"tpye": "string"}}}, "'type'"),
        ({"type": "text"}, "#/type"),
        ({"$ref": "https://example.com/x.json"}, "inside the schema"),
        ({"$ref": "#/$defs/none"}, "does not exist"),
        ({"allOf": [{"$ref": "#"}]}, "leads back to itself"),
        ({"pattern": "("}, "regular expression"),
        ({"anyOf": {}}, "#/anyOf"),
        ({"minimum": "1"}, "#/minimum"),
        ([], "expected a schema"),
    ],
)
def test_a_schema_that_cannot_be_checked_is_refused(schema: Any, said: str) -> None:
    with pytest.raises(UsageError, match="The JSON schema") as error:
        compile_schema(schema)
    assert said in str(error.value)


# ── making them ──────────────────────────────────────────────────────────────────────────────────


def table(path: Path, **columns: list[Any]) -> str:
    rows = [dict(zip(columns, v, strict=True)) for v in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_expected_answers_come_from_the_queries(tmp_path: Path) -> None:
    source = table(tmp_path / "q.jsonl", prompt=["2+2?", "3+3?"], answer=["4", ["6", "six"]])
    pool, scorer = scorers.make_scorer("exact", source)
    assert [scorer.score(i, "six") for i in range(2)] == [0.0, 1.0]
    assert pool.column == "answer"
    source = table(tmp_path / "r.jsonl", prompt=["a", "b"], key=[r"^\d$", "x"])
    _, scorer = scorers.make_scorer("regex", source, expected_column="key")
    assert [scorer.score(0, "5"), scorer.score(1, "5")] == [1.0, 0.0]
    _, scorer = scorers.make_scorer("regex", source, pattern="5")
    assert scorer.score(1, "15") == 1.0
    file = tmp_path / "schema.json"
    file.write_text('{"type": "array"}')
    _, scorer = scorers.make_scorer("json_schema", source, schema=file)
    assert [scorer.score(0, "[]"), scorer.score(0, "{}")] == [1.0, 0.0]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    source = table(tmp_path / "q.jsonl", prompt=["a", "b"], expectd=["1", "2"], half=["1", None])
    with pytest.raises(TableError, match="expected"):
        scorers.make_scorer("exact", source)
    with pytest.raises(TableError, match="1 of 2 queries have no expected answer") as error:
        scorers.make_scorer("contains", source, expected_column="half")
    assert error.value.column == "half"
    with pytest.raises(TableError, match="'none'"):
        scorers.make_scorer("exact", source, expected_column="none")
    with pytest.raises(UsageError, match=r"column 'half'.*regular expression"):
        bad = table(tmp_path / "b.jsonl", prompt=["a"], half=["("])
        scorers.make_scorer("regex", bad, expected_column="half")
    with pytest.raises(UsageError, match="Did you mean 'exact'"):
        scorers.make_scorer("exct", source)
    with pytest.raises(UsageError, match="--pattern belongs"):
        scorers.make_scorer("exact", source, pattern="x")
    with pytest.raises(UsageError, match=r"none\.json"):
        scorers.make_scorer("json_schema", source, schema=tmp_path / "none.json")


def test_a_function_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_scorer.py").write_text(
        "def good(prompt, answer, expected): return answer == f'{prompt}{expected}'\n"
        "def talk(messages, answer, expected): return len(messages) / 4\n"
        "def unsure(prompt, answer, expected): return None\n"
        "def wild(prompt, answer, expected): return 3\n"
        "def broken(prompt, answer, expected): return answer['x']\n"
        "def two(prompt, answer): return 1\n"
        "async def later(prompt, answer, expected): return 1\n"
    )
    source = table(tmp_path / "q.jsonl", prompt=["a"], expected=["b"])

    def score(name: str) -> float | None:
        return scorers.make_scorer(f"own_scorer:{name}", source)[1].score(0, "ab")

    assert score("good") == 1.0
    assert score("talk") == 0.25
    assert score("unsure") is None
    for name, said in (
        ("wild", "returned 3 on query"),
        ("broken", "raised TypeError"),
        ("two", "cannot be called with"),
        ("later", "async"),
        ("godo", "Did you mean 'good'"),
    ):
        with pytest.raises(UsageError, match=said) as error:
            score(name)
        assert f"own_scorer:{name}" in str(error.value)
    with pytest.raises(UsageError, match="no_such_module_here"):
        scorers.make_scorer("no_such_module_here:f", source)
