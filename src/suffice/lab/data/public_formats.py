"""Loaders for public originals, in the formats their projects publish, and for a store.

| what | told by |
|---|---|
| RouterBench (withmartian/routerbench) | a wide file with `<model>|total_cost` columns |
| RouteLLM's MMLU and GSM8K responses | a CSV, or a folder of them, with `prompt` and a true/false
  column per model; prompts of a contaminated_prompts.jsonl beside or above are dropped |
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
from typing import Any

import msgspec

from suffice.errors import StoreError, TableError
from suffice.lab.data.builder import TableBuilder, table_from_rows
from suffice.lab.data.readers import Row, first_rows, read_rows
from suffice.lab.data.table import Table

_META = {
    "query_id", "sample_id", "id", "question_id", "prompt", "eval_name", "benchmark", "category",
    "group", "oracle_model_to_route_to", "question", "answer", "source", "n_turns", "contaminated",
    "index", "subject", "domain", "", "Unnamed: 0",
}  # fmt: skip


def detect(path: Path) -> Table | None:
    """The table where `path` is one of the originals; None where it is not."""
    if path.is_dir():
        if (path / "queries.parquet").exists():
            return None
        if (path / "question.jsonl").exists():
            return mt_bench(path)
        files = _data_files(path)
        firsts = {f: _first(f) for f in files}
        logs = [f for f in files if "spec" in firsts[f]]
        if logs:
            return table_from_rows(path.name, _evals_logs(logs), str(path))
        results = [f for f in files if {"pred", "options", "question"} <= set(firsts[f])]
        if results:
            return table_from_rows(path.name, _mmlu_pro_results(results), str(path))
        wide = [f for f in files if _is_wide(f, firsts[f])]
        if wide:
            return _wide_files(path.name, wide)
        return None
    first = _first(path)
    if "spec" in first:
        return table_from_rows(path.stem, _evals_logs([path]), str(path))
    if any(str(c).endswith("|total_cost") for c in first):
        return routerbench(path, first)
    if {"pred", "options", "question"} <= set(first):
        return table_from_rows(path.stem, _mmlu_pro_results([path]), str(path))
    if "spend" in first and "model" in first:
        return spend_logs(path)
    if "question" in first and "prompt" not in first and "messages" not in first:
        return table_from_rows(path.stem, _questions(path), str(path))
    if _is_wide(path, first):
        return _wide_files(path.stem, [path])
    return None


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
    """Prompts that RouteLLM found in its own training data, from the lists beside its responses."""
    out: set[str] = set()
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
                out.add(prompt)
    return out


def _first(path: Path) -> Row:
    found = first_rows(path)
    return found[0] if found else {}


def _is_wide(path: Path, first: Row) -> bool:
    if "model" in first or not ({"prompt"} & set(first)):
        return False
    return len(_model_columns(first_rows(path, 50))) >= 2


def _model_columns(rows: Sequence[Row]) -> list[str]:
    """Columns that can only be a model's scores: true/false or numbers from 0 to 1 throughout."""
    out = []
    for column in rows[0]:
        if column in _META or column.endswith(("|total_cost", "|model_response", "_response")):
            continue
        values = [r.get(column) for r in rows if r.get(column) not in (None, "")]
        if values and all(_unit(v) is not None for v in values):
            out.append(column)
    return out


def _unit(value: Any) -> float | None:
    if value in (True, "True", "true", "TRUE"):
        return 1.0
    if value in (False, "False", "false", "FALSE"):
        return 0.0
    try:
        x = float(value)
    except (TypeError, ValueError):
        return None
    return x if 0.0 <= x <= 1.0 else None


def _wide_files(name: str, files: Iterable[Path]) -> Table:
    builder = TableBuilder(name, "")
    for path in files:
        builder.path = str(path)
        columns = _model_columns(first_rows(path, 200))
        bad = _contaminated(path.parent, path.parent.parent)
        for i, row in enumerate(read_rows(path), 1):
            # The same question may stand in two files: each keeps its own row.
            query_id = f"{path.stem}-{i}" if not row.get("query_id") else str(row["query_id"])
            marked = row.get("prompt") in bad or row.get("contaminated")
            builder.add_query(
                {"benchmark": path.stem, **row, "query_id": query_id, "contaminated": marked}, i
            )
            for column in columns:
                builder.add_outcome(
                    {"query_id": query_id, "model": column, "score": row.get(column)}, i
                )
    return builder.build()


def routerbench(path: Path, first: Row) -> Table:
    """RouterBench's wide table. Its prompts are lists of turns in Python's own notation."""
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
    """`['first turn', ...]` -> the first turn: what a router sees when it decides."""
    if not text.startswith(("['", '["')):
        return text
    import ast

    try:
        turns = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return str(_first_turn(turns))


def _first_turn(turns: Any) -> Any:
    return turns[0] if isinstance(turns, list) and turns else turns


def mt_bench(folder: Path) -> Table:
    """RouteLLM's protocol: routed on turn one, scored by the mean of two turns, of ten."""
    builder = TableBuilder(folder.name, str(folder / "question.jsonl"))
    bad = _contaminated(folder)
    for i, row in enumerate(read_rows(folder / "question.jsonl"), 1):
        turns = row.get("turns")
        if not isinstance(turns, list) or not turns:
            raise TableError("expected a list of turns.", path=builder.path, column="turns", row=i)
        builder.add_query(
            {"query_id": row.get("question_id"), "prompt": turns[0], "category": row.get("category"),
             "benchmark": "mt_bench", "contaminated": any(t in bad for t in turns)},
            i,
        )  # fmt: skip
    graded: dict[tuple[str, str], list[float]] = {}
    name = next(
        (n for n in ("judgements.jsonl", "gpt-4_single.jsonl") if (folder / n).exists()), ""
    )
    if not name:
        raise TableError("Expected judgements.jsonl beside question.jsonl.", path=str(folder))
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
    """Answers that could not be read (`pred` null) count as wrong; the project's own script guesses
    at random there."""
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
    """One log a run: its `spec` names the model, `match` and `metrics` events score each sample,
    `sampling` events hold the prompt (the first of a sample: later ones ask the judge)."""
    for path in files:
        model: str | None = None
        benchmark = path.stem
        prompts: dict[Any, Any] = {}
        scores: dict[Any, list[float]] = {}
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
                found = (_unit(data[k]) for k in _METRICS if k in data)
                unit = next((u for u in found if u is not None), None)
                if unit is not None:
                    scores.setdefault(sample, []).append(unit)
        for sample, prompt in prompts.items():
            asked = {"messages": prompt} if isinstance(prompt, list) else {"prompt": str(prompt)}
            given = scores.get(sample)
            yield {"query_id": sample, **asked, "benchmark": benchmark, "model": model,
                   "score": sum(given) / len(given) if given else None}  # fmt: skip


def spend_logs(path: Path) -> Table:
    """LiteLLM's LiteLLM_SpendLogs, exported as CSV or JSON: what was asked, of whom, for how much.
    No scores. A spend of 0 means that LiteLLM knew no price."""
    builder = TableBuilder(path.stem, str(path))
    silent = 0
    for i, row in enumerate(read_rows(path), 1):
        messages = _asked(row, path, i)
        if not messages:
            silent += 1
            continue
        query_id = builder.add_query(
            {"query_id": row.get("request_id"), "messages": messages,
             "group": row.get("session_id")},
            i,
        )  # fmt: skip
        builder.add_outcome(
            {"query_id": query_id, "model": row.get("model"),
             "cost_usd": row.get("spend") if row.get("spend") not in (0, 0.0, "0", "0.0") else None,
             "input_tokens": row.get("prompt_tokens"),
             "output_tokens": row.get("completion_tokens")},
            i,
        )  # fmt: skip
    table = builder.build()
    if not len(table):
        raise TableError(
            "this log holds no messages.", path=str(path), column="messages",
            remedy="Turn on store_prompts_in_spend_logs in LiteLLM and export again.",
        )  # fmt: skip
    if silent:
        builder.warnings.append(f"{silent} log rows without messages were left out")
        table = builder.build()
    return table


def _asked(row: Row, path: Path, number: int) -> Any:
    """The messages of a log row: their own column, or the request's body."""
    for column in ("messages", "proxy_server_request"):
        value = row.get(column)
        if isinstance(value, str) and value.strip():
            try:
                value = msgspec.json.decode(value)
            except msgspec.DecodeError as error:
                raise TableError(
                    f"not valid JSON: {error}.", path=str(path), column=column, row=number
                ) from None
        if isinstance(value, Mapping):
            value = value.get("messages")
        if isinstance(value, list) and value:
            return value
    return None


def from_store(url: str) -> Table:
    """Recorded decisions whose prompts were kept, with the weighted mean of their feedback as score."""
    from suffice.store.reader import mean_score, open_reader

    columns = (
        "session", "route", "model", "cost_usd", "input_tokens", "output_tokens", "latency_s", "prompt",
    )  # fmt: skip
    try:
        with open_reader(url) as store:
            found = list(store.decisions(columns, audits=True, newest_first=True, limit=200_000))
    except StoreError as error:
        raise TableError(str(error), path=url) from None
    kept = [d for d in reversed(found) if d.row["prompt"]]
    if not kept:
        raise TableError(
            f"The store holds {len(found)} decisions and no prompt.",
            path=url,
            remedy="Set keep_prompts = true under [store], and come back after some traffic.",
        )
    builder = TableBuilder("store", url)
    for i, (row, scores) in enumerate(kept, 1):
        query_id = builder.add_query(
            {"query_id": row["id"], "messages": msgspec.json.decode(row["prompt"]),
             "group": row["session"], "category": row["route"]},
            i,
        )  # fmt: skip
        if row["model"]:
            builder.add_outcome(
                {
                    "query_id": query_id,
                    "model": row["model"],
                    "score": mean_score(scores),
                    "cost_usd": row["cost_usd"],
                    "input_tokens": row["input_tokens"],
                    "output_tokens": row["output_tokens"],
                    "latency_s": row["latency_s"],
                },
                i,
            )
    if len(kept) < len(found):
        builder.warnings.append(
            f"{len(found) - len(kept)} decisions without a prompt were left out"
        )
    return builder.build()
