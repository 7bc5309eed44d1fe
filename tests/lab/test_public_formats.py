"""Public originals, each in the format its project publishes, as small files written here."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from suffice.errors import TableError
from suffice.lab.data.load import load_table


def write_csv(path: Path, head: list[str], rows: list[list[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


BENCH = ["sample_id", "prompt", "eval_name", "gpt-4", "yi", "gpt-4|model_response",
         "yi|model_response", "gpt-4|total_cost", "yi|total_cost", "oracle_model_to_route_to"]  # fmt: skip


def test_routerbench_csv(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "routerbench_0shot.csv",
        BENCH,
        [
            ["mmlu-law.val.1", "['Pick one.\\nA) x\\nB) y']", "mmlu-law", 1.0, 0.0, "['A']",
             "['B']", 0.002, 0.0001, "gpt-4"],
            ["mtbench.2", "['Turn one', 'Turn two']", "mtbench", 0.9, 0.55, "['..']", "['..']",
             0.01, 0.0004, "gpt-4"],
        ],
    )  # fmt: skip
    got = load_table(path)
    assert got.models == ("gpt-4", "yi")
    assert got.prompts == ("Pick one.\nA) x\nB) y", "Turn one")
    assert got.score.tolist() == [[1.0, 0.0], [0.9, 0.55]]
    assert got.cost_usd is not None
    assert got.cost_usd.tolist() == [[0.002, 0.0001], [0.01, 0.0004]]
    assert got.benchmark == ("mmlu-law", "mtbench")


def test_routerbench_parquet_with_lists(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        dict(zip(BENCH, ["a.1", ["One", "Two"], "a", 1.0, 0.0, ["x"], ["y"], 0.1, 0.01, "gpt-4"],
                 strict=True))
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rb.parquet")
    got = load_table(tmp_path / "rb.parquet")
    assert got.prompts == ("One",)
    assert got.models == ("gpt-4", "yi")


def test_routerbench_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "routerbench_0shot.pkl").write_bytes(b"\x80\x04N.")
    with pytest.raises(TableError, match=r"can run code.*Convert it"):
        load_table(tmp_path / "routerbench_0shot.pkl")


PAIR = ["prompt", "mixtral-8x7b-instruct-v0.1", "gpt-4-1106-preview"]


def test_routellm_mmlu_folder_without_contaminated(tmp_path: Path) -> None:
    folder = tmp_path / "mmlu"
    for domain, prompt in (("anatomy", "Which bone?\nAnswer:"), ("law", "Which law?\nAnswer:")):
        write_csv(
            folder / "responses" / f"mmlu_{domain}.csv",
            PAIR,
            [
                [prompt, True, True],
                ["Seen in training", False, True],
                ["Other " + domain, False, True],
            ],
        )
    write_jsonl(
        folder / "contaminated_prompts.jsonl",
        [{"train_prompt": "..", "eval_prompt": "Seen in training", "train_idx": 1, "eval_idx": 1}],
    )
    got = load_table(folder)
    assert len(got) == 4
    assert got.models == ("gpt-4-1106-preview", "mixtral-8x7b-instruct-v0.1")
    assert got.benchmark is not None
    assert set(got.benchmark) == {"mmlu_anatomy", "mmlu_law"}
    assert got.score.sum(axis=0).tolist() == [4.0, 2.0]
    assert any("contaminated" in w for w in got.warnings)
    # One file of the folder by itself knows the same list.
    assert len(load_table(folder / "responses" / "mmlu_law.csv")) == 2


def test_routellm_gsm8k_with_responses(tmp_path: Path) -> None:
    head = [*PAIR, *(f"{m}_response" for m in PAIR[1:])]
    write_csv(
        tmp_path / "gsm8k" / "gsm8k_responses.csv",
        head,
        [["Ducks?", True, True, "18", "18"], ["Robe?", False, True, "2.5", "3"]],
    )
    write_jsonl(tmp_path / "gsm8k" / "contaminated_prompts.jsonl", [{"eval_prompt": "Ducks?"}])
    (tmp_path / "gsm8k" / "generate_responses.py").write_text("print()")
    for path in (tmp_path / "gsm8k", tmp_path / "gsm8k" / "gsm8k_responses.csv"):
        got = load_table(path)
        assert got.prompts == ("Robe?",)
        assert set(got.models) == set(PAIR[1:])


def test_mt_bench_scores_two_turns_and_routes_on_one(tmp_path: Path) -> None:
    folder = tmp_path / "mt_bench"
    write_jsonl(
        folder / "question.jsonl",
        [
            {"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]},
            {"question_id": 82, "category": "math", "turns": ["Seen", "Again"]},
        ],
    )
    grades = [(81, "gpt-4", 9, 1), (81, "gpt-4", 10, 2), (81, "mixtral", 6, 1), (81, "mixtral", -1, 2),
              (82, "gpt-4", 9, 1)]  # fmt: skip
    write_jsonl(
        folder / "judgements.jsonl",
        [
            {"question_id": q, "model": m, "judge": ["gpt-4", "single-v1"], "score": s, "turn": t}
            for q, m, s, t in grades
        ],
    )
    write_jsonl(folder / "contaminated_prompts.jsonl", [{"eval_prompt": "Seen"}])
    got = load_table(folder)
    assert got.prompts == ("Write.",)
    assert dict(zip(got.models, got.score[0], strict=True)) == {"gpt-4": 0.95, "mixtral": 0.6}


def answer(i: int, pred: str | None, right: str = "B") -> dict[str, Any]:
    return {
        "question_id": i, "question": f"Q{i}?", "options": ["x", "y", "N/A"], "answer": right,
        "answer_index": 1, "category": "math", "src": "ori", "cot_content": "", "pred": pred,
        "model_outputs": "The answer is (B).",
    }  # fmt: skip


def test_mmlu_pro_results_by_file_and_by_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    name = tmp_path / "a" / "model_outputs_Llama-3-8B_5shots.json"
    name.write_text(json.dumps([answer(1, "B"), answer(2, None)]))
    (tmp_path / "a" / "model_outputs_GPT-4o_5shots.json").write_text(
        json.dumps([answer(1, "B"), {**answer(2, "B"), "options": ["x", "y"]}])
    )
    got = load_table(tmp_path / "a")
    assert dict(zip(got.models, got.score.T.tolist(), strict=True)) == {
        "GPT-4o": [1.0, 1.0],
        "Llama-3-8B": [1.0, 0.0],
    }
    assert got.prompts[0] == "Q1?\nA. x\nB. y"
    assert got.category == ("math", "math")
    for model, pred in (("gpt4o", "B"), ("deepseek", "C")):
        folder = tmp_path / "b" / model
        folder.mkdir(parents=True)
        (folder / "math_result.json").write_text(json.dumps([answer(7, pred)]))
        (folder / "math_summary.json").write_text(json.dumps({"total": {"corr": 1, "acc": 1.0}}))
    got = load_table(tmp_path / "b")
    assert dict(zip(got.models, got.score[0], strict=True)) == {"gpt4o": 1.0, "deepseek": 0.0}


def test_questions_alone_are_queries_without_outcomes(tmp_path: Path) -> None:
    gsm8k = write_jsonl(
        tmp_path / "test.jsonl", [{"question": "How many eggs?", "answer": "... #### 18"}]
    )
    got = load_table(gsm8k, need_scores=False)
    assert got.prompts == ("How many eggs?",)
    assert got.models == ()
    with pytest.raises(TableError, match="suffice collect"):
        load_table(gsm8k)


def evals_log(model: str, right: bool, metrics: dict[str, Any] | None = None) -> list[Any]:
    events: list[Any] = [
        {"spec": {"completion_fns": [model], "eval_name": "test-match.s1.dev",
                  "base_eval": "test-match", "split": "s1", "run_id": "r1"}},
        {"final_report": {"accuracy": 0.5}},
        {"run_id": "r1", "event_id": 0, "sample_id": "test-match.s1.0", "type": "sampling",
         "data": {"prompt": [{"role": "system", "content": "Be brief."},
                             {"role": "user", "content": "2 + 2?"}], "sampled": ["4"]}},
        {"run_id": "r1", "event_id": 1, "sample_id": "test-match.s1.0", "type": "match",
         "data": {"correct": right, "expected": "4", "picked": "4"}},
    ]  # fmt: skip
    if metrics is not None:
        events[3] = {**events[3], "type": "metrics", "data": metrics}
        judge = {**events[2], "data": {"prompt": "Is this right?", "sampled": ["Y"]}}
        events.insert(3, judge)
    return events


def test_openai_evals_logs(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "logs" / "a.jsonl", evals_log("gpt-4o", True))
    write_jsonl(tmp_path / "logs" / "b.jsonl", evals_log("gpt-4o-mini", False))
    write_jsonl(
        tmp_path / "logs" / "c.jsonl", evals_log("graded", True, {"choice": "Y", "score": 0.75})
    )
    got = load_table(tmp_path / "logs")
    assert dict(zip(got.models, got.score[0], strict=True)) == {
        "gpt-4o": 1.0,
        "gpt-4o-mini": 0.0,
        "graded": 0.75,
    }
    assert got.prompts == ("2 + 2?",)
    assert got.benchmark == ("test-match",)


SPEND = ["request_id", "call_type", "api_key", "spend", "total_tokens", "prompt_tokens",
         "completion_tokens", "startTime", "model", "messages", "session_id",
         "proxy_server_request"]  # fmt: skip


def test_litellm_spend_logs(tmp_path: Path) -> None:
    asked = json.dumps([{"role": "user", "content": "Hello there"}])
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "Bye"}]})
    path = write_csv(
        tmp_path / "spend.csv",
        SPEND,
        [
            ["r1", "acompletion", "h", 0.0021, 30, 10, 20, "2025-01-01", "gpt-4o", asked, "s1", "{}"],
            ["r2", "acompletion", "h", 0.0, 30, 10, 20, "2025-01-01", "local", "{}", "s1", body],
            ["r3", "aembedding", "h", 0.0, 30, 10, 0, "2025-01-01", "embed", "{}", "", "{}"],
        ],
    )  # fmt: skip
    got = load_table(path, need_scores=False)
    assert got.prompts == ("Hello there", "Bye")
    assert got.group == ("s1", "s1")
    assert got.cost_usd is not None
    assert got.cost_usd[0, 0] == 0.0021
    assert np.isnan(got.cost_usd[1, 1]), "LiteLLM's 0 is a price it does not know"
    assert any("1 log rows without messages" in w for w in got.warnings)


def test_litellm_logs_without_messages_name_the_setting(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "spend.csv", SPEND,
        [["r1", "acompletion", "h", 0.1, 3, 1, 2, "2025-01-01", "gpt-4o", "{}", "", "{}"]],
    )  # fmt: skip
    with pytest.raises(TableError, match="store_prompts_in_spend_logs"):
        load_table(path, need_scores=False)
    path = write_csv(
        tmp_path / "bad.csv", SPEND,
        [["r1", "acompletion", "h", 0.1, 3, 1, 2, "2025-01-01", "gpt-4o", "[{", "", "{}"]],
    )  # fmt: skip
    with pytest.raises(TableError, match=r"column 'messages', row 1: not valid JSON"):
        load_table(path, need_scores=False)
