"""Loads public data sets in the formats in which their projects publish them.

| data set | detected by |
|---|---|
| RouterBench (withmartian/routerbench) | a wide file with `<model>|total_cost` columns |
| RouteLLM's MMLU and GSM8K responses | a CSV, or a folder of them, with `prompt` and a true/false
  column per model; prompts of a contaminated_prompts.jsonl next to it or above it are dropped |
| RouteLLM's MT-Bench | a folder with question.jsonl and judgements.jsonl |
| MMLU-Pro results (TIGER-AI-Lab) | a folder of JSON files with `question`, `options`, `pred` |
| MMLU-Pro questions | `question`, `options`, no `pred`: queries without outcomes |
| GSM8K (openai/grade-school-math) | `question` and `answer`: queries without outcomes |
| OpenAI evals logs | JSONL whose first object holds `spec` |
| LiteLLM spend logs | `spend`, `model`, `prompt_tokens` with stored messages; no scores |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from suffice.errors import TableError
from suffice.lab.data.builder import TableBuilder, table_from_rows
from suffice.lab.data.readers import Row, first_rows, read_rows
from suffice.lab.data.spend_logs import load_spend_logs
from suffice.lab.data.table import Table

_META = {  # columns that are not models
    "query_id", "sample_id", "id", "question_id", "prompt", "eval_name", "benchmark", "category",
    "group", "oracle_model_to_route_to", "question", "answer", "source", "n_turns", "contaminated",
    "index", "subject", "domain", "", "Unnamed: 0",
}  # fmt: skip


def detect(path: Path) -> Table | None:
    """Load `path` if it has one of the public formats; None if it has not."""
    if path.is_dir():
        return _detect_folder(path)
    first = _first(path)
    if "spec" in first:
        return table_from_rows(path.stem, _evals_logs([path]), str(path))
    if any(str(c).endswith("|total_cost") for c in first):
        return load_routerbench(path, first)
    if {"pred", "options", "question"} <= set(first):
        return table_from_rows(path.stem, _mmlu_pro_results([path]), str(path))
    if "spend" in first and "model" in first:
        return load_spend_logs(path)
    if "question" in first and "prompt" not in first and "messages" not in first:
        return table_from_rows(path.stem, _questions(path), str(path))
    if _is_wide(path, first):
        return _wide_files(path.stem, [path])
    return None


def _detect_folder(folder: Path) -> Table | None:
    if (folder / "queries.parquet").exists():
        return None
    if (folder / "question.jsonl").exists():
        return load_mt_bench(folder)
    files = _data_files(folder)
    first_of = {f: _first(f) for f in files}
    logs = [f for f in files if "spec" in first_of[f]]
    if logs:
        return table_from_rows(folder.name, _evals_logs(logs), str(folder))
    results = [f for f in files if {"pred", "options", "question"} <= set(first_of[f])]
    if results:
        return table_from_rows(folder.name, _mmlu_pro_results(results), str(folder))
    wide = [f for f in files if _is_wide(f, first_of[f])]
    return _wide_files(folder.name, wide) if wide else None


def _data_files(folder: Path) -> list[Path]:
    """Files of rows in a folder, without lists of contaminated prompts and summaries."""
    return sorted(
        f
        for f in folder.rglob("*")
        if f.suffix in (".json", ".jsonl", ".csv")
        and f.name != _CONTAMINATED
        and not f.stem.endswith("_summary")
    )


_CONTAMINATED = "contaminated_prompts.jsonl"


def _contaminated(*folders: Path) -> set[str]:
    """Prompts that RouteLLM found in its training data, from the lists next to its responses."""
    prompts: set[str] = set()
    for folder in folders:
        path = folder / _CONTAMINATED
        if path.exists():
            for i, row in enumerate(read_rows(path), 1):
                prompt = row.get("eval_prompt")
                if not isinstance(prompt, str):
                    raise TableError(
                        "expected the text of a prompt.", path=str(path), column="eval_prompt",
                        row=i,
                    )  # fmt: skip
                prompts.add(prompt)
    return prompts


def _first(path: Path) -> Row:
    return next(iter(first_rows(path)), {})


def _is_wide(path: Path, first: Row) -> bool:
    if "model" in first or not ({"prompt"} & set(first)):
        return False
    return len(_model_columns(first_rows(path, 50))) >= 2


def _model_columns(rows: Sequence[Row]) -> list[str]:
    """Columns that can only be a model's scores: true/false or numbers from 0 to 1 throughout."""
    columns = []
    for column in rows[0]:
        if column in _META or column.endswith(("|total_cost", "|model_response", "_response")):
            continue
        values = [r.get(column) for r in rows if r.get(column) not in (None, "")]
        if values and all(_unit(v) is not None for v in values):
            columns.append(column)
    return columns


def _unit(value: object) -> float | None:
    """A score in [0, 1], None if `value` is not one."""
    if value in (True, "True", "true", "TRUE"):
        return 1.0
    if value in (False, "False", "false", "FALSE"):
        return 0.0
    try:
        score = float(str(value))
    except ValueError:
        return None
    return score if 0.0 <= score <= 1.0 else None


def _wide_files(name: str, files: Iterable[Path]) -> Table:
    builder = TableBuilder(name, "")
    for path in files:
        builder.path = str(path)
        columns = _model_columns(first_rows(path, 200))
        contaminated = _contaminated(path.parent, path.parent.parent)
        for i, row in enumerate(read_rows(path), 1):
            # The same question may be in two files: each keeps its own row.
            query_id = f"{path.stem}-{i}" if not row.get("query_id") else str(row["query_id"])
            marked = row.get("prompt") in contaminated or row.get("contaminated")
            builder.add_query(
                {"benchmark": path.stem, **row, "query_id": query_id, "contaminated": marked}, i
            )
            for column in columns:
                builder.add_outcome(
                    {"query_id": query_id, "model": column, "score": row.get(column)}, i
                )
    return builder.build()


def load_routerbench(path: Path, first: Row) -> Table:
    """Load RouterBench's wide table, whose prompts are lists of turns in Python's notation."""
    models = [c.removesuffix("|total_cost") for c in first if str(c).endswith("|total_cost")]
    builder = TableBuilder(path.stem, str(path))
    for i, row in enumerate(read_rows(path), 1):
        prompt = row.get("prompt")
        query = {
            "query_id": row.get("sample_id"),
            "prompt": _turns(prompt) if isinstance(prompt, str) else _first_turn(prompt),
            "benchmark": row.get("eval_name"),
        }
        query_id = builder.add_query(query, i)
        for m in models:
            cost = row.get(f"{m}|total_cost")
            builder.add_outcome(
                {"query_id": query_id, "model": m, "score": row.get(m), "cost_usd": cost}, i
            )
    return builder.build()


def _turns(text: str) -> str:
    """`['first turn', ...]` -> the first turn, which is what a router sees when it decides."""
    if not text.startswith(("['", '["')):
        return text
    import ast

    try:
        turns = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return str(_first_turn(turns))


def _first_turn(turns: object) -> object:
    return turns[0] if isinstance(turns, list) and turns else turns


def load_mt_bench(folder: Path) -> Table:
    """Load MT-Bench by RouteLLM's protocol: routed on turn one, scored by the mean of two turns.

    Args:
        folder: With question.jsonl and judgements.jsonl.

    Returns:
        The table, with grades divided by ten.

    Raises:
        TableError: If a file or a value is wrong.
    """
    builder = TableBuilder(folder.name, str(folder / "question.jsonl"))
    contaminated = _contaminated(folder)
    for i, row in enumerate(read_rows(folder / "question.jsonl"), 1):
        turns = row.get("turns")
        if not isinstance(turns, list) or not turns:
            raise TableError("expected a list of turns.", path=builder.path, column="turns", row=i)
        builder.add_query(
            {"query_id": row.get("question_id"), "prompt": turns[0], "category": row.get("category"),
             "benchmark": "mt_bench", "contaminated": any(t in contaminated for t in turns)},
            i,
        )  # fmt: skip
    graded: dict[tuple[str, str], list[float]] = {}
    name = next(
        (n for n in ("judgements.jsonl", "gpt-4_single.jsonl") if (folder / n).exists()), ""
    )
    if not name:
        raise TableError("Expected judgements.jsonl next to question.jsonl.", path=str(folder))
    builder.path = str(folder / name)
    for i, row in enumerate(read_rows(folder / name), 1):
        score = row.get("score")
        if not isinstance(score, (int, float)) or not -1 <= score <= 10:
            raise TableError(
                f"expected a grade from 1 to 10, got {score!r}.", path=builder.path,
                column="score", row=i,
            )  # fmt: skip
        if score >= 0:  # -1: the judge gave none
            graded.setdefault((str(row.get("question_id")), str(row.get("model"))), []).append(
                score
            )
    known = {str(r.get("question_id")) for r in read_rows(folder / "question.jsonl")}
    for i, ((query_id, model), scores) in enumerate(graded.items(), 1):
        if query_id in known:
            builder.add_outcome(
                {"query_id": query_id, "model": model, "score": sum(scores) / len(scores) / 10}, i
            )
    return builder.build()


def _mmlu_pro_results(files: Iterable[Path]) -> Iterator[Row]:
    """Rows of MMLU-Pro's result files.

    Answers that could not be parsed (`pred` null) count as wrong; the project's script guesses at
    random instead.

    Yields:
        One row per answer.

    Raises:
        TableError: If a question has no right option.
    """
    for path in files:
        for i, row in enumerate(read_rows(path), 1):
            if row.get("answer") in (None, ""):
                raise TableError(
                    "expected the right option's letter, got nothing.", path=str(path),
                    column="answer", row=i,
                )  # fmt: skip
            yield {
                "query_id": row.get("question_id"),
                "prompt": _with_options(row),
                "category": row.get("category"),
                "benchmark": "mmlu_pro",
                "model": row.get("model") or _model_of(path),
                "score": float(row.get("pred") == row["answer"]),
            }


def _model_of(path: Path) -> str:
    """model_outputs_<model>_5shots.json, or <model>/<subject>_result.json."""
    if path.stem.endswith("_result"):
        return path.parent.name
    return path.stem.removeprefix("model_outputs_").removesuffix("_5shots")


def _questions(path: Path) -> Iterator[Row]:
    for row in read_rows(path):
        yield {
            "query_id": row.get("question_id") or row.get("id"),
            "prompt": _with_options(row),
            "category": row.get("category") or row.get("subject"),
            "benchmark": path.stem,
        }


def _with_options(row: Row) -> str:
    options = row.get("options") or row.get("choices")
    question = str(row.get("question"))
    if not isinstance(options, list):
        return question
    # The data set pads to ten options with "N/A", its result files mostly do not.
    real = [o for o in options if o != "N/A"]
    return "\n".join([question, *(f"{chr(65 + i)}. {o}" for i, o in enumerate(real))])


_METRICS = ("score", "accuracy", "correct", "f1_score")  # of a `metrics` event, first found


def _evals_logs(files: Iterable[Path]) -> Iterator[Row]:
    """Rows of OpenAI evals logs, one log per run.

    Its `spec` names the model, `match` and `metrics` events score each sample, and the first
    `sampling` event of a sample holds its prompt (later ones are calls of the judge).

    Yields:
        One row per sample.

    Raises:
        TableError: If a log does not begin with its `spec`.
    """
    for path in files:
        model: str | None = None
        benchmark = path.stem
        prompts: dict[object, object] = {}
        scores: dict[object, list[float]] = {}
        for i, row in enumerate(read_rows(path), 1):
            spec = row.get("spec")
            if isinstance(spec, Mapping):
                names = spec.get("completion_fns") or spec.get("model_name") or path.stem
                model = str(names[0] if isinstance(names, list) else names)
                benchmark = str(spec.get("base_eval") or spec.get("eval_name") or path.stem)
                continue
            if model is None:
                raise TableError("expected the run's `spec` first.", path=str(path), row=i)
            data, sample = row.get("data"), row.get("sample_id")
            if not isinstance(data, Mapping) or sample is None:
                continue
            kind = row.get("type")
            if kind == "sampling":
                prompts.setdefault(sample, data.get("prompt"))
            elif kind == "match" and "correct" in data:
                scores.setdefault(sample, []).append(float(bool(data["correct"])))
            elif kind == "metrics":
                values = (_unit(data[k]) for k in _METRICS if k in data)
                score = next((v for v in values if v is not None), None)
                if score is not None:
                    scores.setdefault(sample, []).append(score)
        for sample, prompt in prompts.items():
            query = {"messages": prompt} if isinstance(prompt, list) else {"prompt": str(prompt)}
            of_sample = scores.get(sample)
            yield {"query_id": sample, **query, "benchmark": benchmark, "model": model,
                   "score": sum(of_sample) / len(of_sample) if of_sample else None}  # fmt: skip
