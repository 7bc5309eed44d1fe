"""Tables from files: what is read, and what is said of a file that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.tables import table, write_folder, write_jsonl

from suffice.errors import TableError
from suffice.lab.data import readers
from suffice.lab.data.load import load_table

ROW = {"query_id": "a", "prompt": "What is 2 + 2?", "model": "m", "score": 1.0}


def rows(path: Path, *given: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in given))
    return path


def test_every_format_gives_the_same_table(tmp_path: Path) -> None:
    made = table(30, ("x/a", "x/b", "x/c"))
    long = write_jsonl(made, tmp_path / "long.jsonl")
    lines = [json.loads(x) for x in long.read_text().splitlines()]
    (tmp_path / "long.json").write_text(json.dumps(lines))
    head = list(lines[0])
    import csv

    for name, delimiter in (("long.csv", ","), ("long.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, head, delimiter=delimiter)
            writer.writeheader()
            writer.writerows(lines)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "long.parquet")
    folder = write_folder(made, tmp_path / "folder")
    for path in (*sorted(tmp_path.glob("long.*")), folder):
        got = load_table(path)
        assert got.models == made.models, path
        assert got.query_ids == made.query_ids
        assert got.prompts == made.prompts
        assert np.array_equal(got.score, made.score)
        assert got.cost_usd == pytest.approx(made.cost_usd)
        assert got.benchmark == made.benchmark


def test_messages_null_scores_and_missing_cells(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": [{"type": "text", "text": "Why?"}]}]  # fmt: skip
    path = rows(
        tmp_path / "t.jsonl",
        {"query_id": "a", "messages": talk, "model": "m", "score": None},
        {"query_id": "a", "messages": talk, "model": "n", "score": 0.5, "group": "g"},
        {"query_id": "b", "prompt": "x", "model": "n", "score": 1, "latency_s": 2.5},
    )
    got = load_table(path)
    assert got.prompts == ("Why?", "x")
    assert len(got.messages[0]) == 3
    assert np.isnan(got.score[0, 0])
    assert got.score[:, 1].tolist() == [0.5, 1.0]
    assert got.latency_s is not None
    assert got.latency_s[1, 1] == 2.5


def test_byte_order_marks_and_blank_lines_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\n\n")
    assert len(load_table(path)) == 1
    path = tmp_path / "t.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([ROW], indent=1).encode())
    assert len(load_table(path)) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score": 1.5}, "column 'score', row 1: expected a score from 0 to 1, got 1.5"),
        ({"score": -0.1}, "from 0 to 1"),
        ({"score": "good"}, "expected a number, got 'good'"),
        ({"score": "inf"}, "finite"),
        ({"cost_usd": -1}, "column 'cost_usd'"),
        ({"prompt": 7}, "column 'prompt'"),
        ({"prompt": None}, "column 'prompt'"),
        ({"messages": "[{"}, "not valid JSON"),
        ({"messages": [{"text": "x"}]}, "role, content"),
        ({"model": None}, "score without a model"),
    ],
)
def test_a_bad_value_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = rows(tmp_path / "t.jsonl", {**ROW, **change})
    with pytest.raises(TableError) as caught:
        load_table(path)
    assert said in str(caught.value)
    assert "t.jsonl" in str(caught.value)


def test_a_score_above_one_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = rows(tmp_path / "t.jsonl", {**ROW, "score": 8})
    with pytest.raises(TableError, match="Divide by the scale's largest score"):
        load_table(path)


@pytest.mark.parametrize("lacking", ["prompt", "score", "model", "query_id"])
def test_a_missing_column_of_a_folder_is_named(tmp_path: Path, lacking: str) -> None:
    import pyarrow.parquet as pq

    folder = write_folder(table(5), tmp_path / "t")
    for file in ("queries", "outcomes"):
        path = folder / f"{file}.parquet"
        columns = pq.read_table(path)
        if lacking in columns.schema.names:
            pq.write_table(columns.drop([lacking]), path)
    with pytest.raises(TableError, match=lacking):
        load_table(folder)


def test_the_nearest_column_is_suggested(tmp_path: Path) -> None:
    path = rows(tmp_path / "t.jsonl", {"query_id": "a", "promt": "x", "model": "m", "score": 1})
    with pytest.raises(TableError, match="Is it 'promt'"):
        load_table(path)


def test_duplicates_are_refused(tmp_path: Path) -> None:
    path = rows(tmp_path / "t.jsonl", ROW, {**ROW, "score": 0.0})
    with pytest.raises(TableError, match="appear twice"):
        load_table(path)
    path = rows(tmp_path / "u.jsonl", ROW, {**ROW, "model": "n", "prompt": "Other?"})
    with pytest.raises(TableError, match="another prompt"):
        load_table(path)


def test_nan_and_mixed_scales_warn(tmp_path: Path) -> None:
    many = [
        {"query_id": f"q{i}", "prompt": f"p {i}", "model": m, "score": s}
        for i in range(30)
        for m, s in (("right", i % 2), ("graded", i / 30))
    ]
    text = "".join(json.dumps(r) + "\n" for r in many).replace('"score": 1}', '"score": "NaN"}', 1)
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    warnings = load_table(path).warnings
    assert any("NaN" in w for w in warnings)
    assert any("mixed scales" in w and "right" in w and "graded" in w for w in warnings)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.jsonl", b"", "empty"),
        ("t.jsonl", b"\n\n", "no query"),
        ("t.jsonl", b'{"query_id": 1,\n', "row 1: not valid JSON"),
        ("t.jsonl", b"[1, 2]\n", "expected a JSON object"),
        ("t.json", b"garbage", "not valid JSON"),
        ("t.jsonl", json.dumps(ROW).encode().replace(b"What", b"Wh\xe4t"), "UTF-8"),
        ("t.csv", b"query_id,prompt,model,score\na,M\xfcnchen,m,1\n", "UTF-8"),
        ("t.csv", b"query_id,prompt,model,score\na,b,c,1,2\n", "more values than columns"),
        ("t.parquet", b"PAR1 not really", "not a Parquet file"),
        ("t.pkl", b"\x80\x04.", "can run code"),
        ("t.zip", b"PK", "not supported"),
        ("t", b"x", "not supported"),
    ],
)
def test_unreadable_files_are_refused_with_a_reason(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TableError) as caught:
        load_table(path)
    assert said in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_a_file_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).write_bytes(b"x" * 2000)
    monkeypatch.setattr(readers, "MAX_TEXT_BYTES", 1000)
    monkeypatch.setattr(readers, "MAX_PARQUET_BYTES", 1000)
    with pytest.raises(TableError, match="the limit is"):
        load_table(tmp_path / name)


def test_missing_and_unscored_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no such file"):
        load_table(tmp_path / "none.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match=r"queries\.parquet"):
        load_table(tmp_path / "empty")
    path = rows(tmp_path / "t.jsonl", {**ROW, "score": None})
    with pytest.raises(TableError, match="No outcome has a score"):
        load_table(path)
    assert len(load_table(path, need_scores=False)) == 1


def test_an_outcome_of_an_unknown_query_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = write_folder(table(3), tmp_path / "t")
    pq.write_table(
        pa.table({"query_id": ["ghost"], "model": ["m"], "score": [1.0]}),
        folder / "outcomes.parquet",
    )
    with pytest.raises(TableError, match="'ghost' is not among the queries"):
        load_table(folder)
