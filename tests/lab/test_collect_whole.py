"""collect as a whole, in-process, against a scripted upstream over real sockets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from suffice.errors import ConfigError, JobError, UsageError
from suffice.lab.collect import Forecast, Options, Summary, collect
from suffice.lab.data.load import load_table
from suffice.providers.fake import FakeModel, FakeUpstream, ReceivedRequest

# 100 output tokens at most cost 0.06 mUSD with weak, 1 mUSD with strong, 0.4 mUSD with judge.
MORE = """
[models."p/judge"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 4.0
[models."p/free"]
input_usd_per_mtok = 0.0
output_usd_per_mtok = 0.0
[models."p/unpriced"]
"""


class Silent:
    def __init__(self) -> None:
        self.notices: list[str] = []
        self.forecasts: list[Forecast] = []
        self.steps = 0

    def notify(self, text: str) -> None:
        self.notices.append(text)

    def confirm(self, forecast: Forecast) -> bool:
        self.forecasts.append(forecast)
        return True

    def start(self, calls: int) -> None: ...
    def advance(self, calls: int, spent_usd: float) -> None:
        self.steps += calls

    def stop(self) -> None: ...


class Bench:
    """A folder with a config and queries, an upstream, and `collect` over both."""

    def __init__(self, folder: Path, fake: FakeUpstream, config: Path) -> None:
        self.folder = folder
        self.fake = fake
        self.ui = Silent()
        self.config = config

    def queries(self, n: int, **columns: Any) -> str:
        rows = [
            {"query_id": f"q{i:03}", "prompt": f"Question number {i}?",
             **{k: v[i] if isinstance(v, list) else v for k, v in columns.items()}}
            for i in range(n)
        ]  # fmt: skip
        path = self.folder / "q.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return str(path)

    def run(self, queries: str, models: str = "p/weak,p/strong", **options: Any) -> Summary:
        self.ui = Silent()
        given: dict[str, Any] = {
            "out": self.folder / "labels", "config": str(self.config), "max_output_tokens": 100,
            "models": tuple(models.split(",")), **options,
        }  # fmt: skip
        return collect(Options(queries=queries, **given), self.ui, {})

    def calls(self) -> Counter[str]:
        return Counter(s.model for s in self.fake.requests)

    def table(self, name: str = "labels") -> dict[tuple[str, str], float | None]:
        t = load_table(self.folder / name, need_scores=False)
        return {
            (q, m): None if t.score[i, j] != t.score[i, j] else float(t.score[i, j])
            for i, q in enumerate(t.query_ids)
            for j, m in enumerate(t.models)
        }


@pytest.fixture
def bench(tmp_path: Path, fake: FakeUpstream, config: Callable[..., Path]) -> Bench:
    fake.set_model("weak", FakeModel(reply="It is 4."))
    fake.set_model("judge", FakeModel(reply="Equal.\nVERDICT: TIE"))
    for name in ("strong", "free", "unpriced"):
        fake.set_model(name, FakeModel(reply="4"))
    return Bench(tmp_path, fake, config(models=MORE))


def body(seen: ReceivedRequest) -> dict[str, Any]:
    found = json.loads(seen.body)
    assert isinstance(found, dict)
    return found


def reply(text: str) -> dict[str, Any]:
    """An action of the fake: exactly this answer, with 10 tokens in and 5 out."""
    return {"status": 200, "body": {
        "id": "x", "object": "chat.completion", "model": "x",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text},
                     "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5}}}  # fmt: skip


# ── scores and tables ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("out", ["labels", "labels.jsonl", "labels.csv", "labels.parquet"])
def test_answers_become_a_table_that_the_lab_reads(bench: Bench, out: str) -> None:
    queries = bench.queries(6, expected="4", category="sums")
    s = bench.run(queries, scorer="exact", out=bench.folder / out)
    t = load_table(bench.folder / out)
    assert t.models == ("p/strong", "p/weak")
    assert t.score.tolist() == [[1.0, 0.0]] * 6
    assert t.query_ids == tuple(f"q{i:03}" for i in range(6)), "in the order of the file"
    assert t.prompts[3] == "Question number 3?"
    assert t.category == ("sums",) * 6
    assert t.cost_usd is not None
    assert t.input_tokens is not None
    assert t.latency_s is not None
    per_call = (t.input_tokens[0, 1] * 0.15 + 2 * 0.6) / 1e6  # "It is 4." counts as two tokens
    assert t.cost_usd[0, 1] == pytest.approx(per_call)
    assert s.spent_usd == pytest.approx(t.cost_usd.sum())
    assert s.models["p/strong"].quality == 1.0
    assert bench.ui.steps == bench.ui.forecasts[0].calls == 12
    assert not [p for p in bench.folder.rglob("*") if p.name.endswith(".tmp")]


def test_nothing_is_paid_for_twice_whatever_scores_it(bench: Bench) -> None:
    queries = bench.queries(5, expected="4")
    bench.run(queries, scorer="exact")
    first = bench.calls()
    s = bench.run(queries, scorer="contains")
    assert bench.calls() == first
    assert s.run_usd == 0.0
    assert bench.ui.forecasts[0].calls == 0
    assert set(bench.table().values()) == {1.0}
    s = bench.run(queries, models="p/weak,p/strong,p/free", scorer="contains")
    assert bench.calls() - first == Counter(free=5), "a new model is one column"
    bench.run(queries, scorer="contains", temperature=1.0)
    assert bench.calls()["weak"] == 10, "other parameters are other answers"
    assert any("its answers are not reused" in x for x in bench.ui.notices)


def test_the_same_question_twice_in_a_table_is_asked_once(bench: Bench) -> None:
    path = bench.folder / "q.jsonl"
    path.write_text("".join(f'{{"query_id": "{i}", "prompt": "Same?"}}\n' for i in range(5)))
    bench.run(str(path), models="p/weak")
    assert bench.calls() == Counter(weak=1)
    assert len(bench.table()) == 5


def test_what_is_sent(bench: Bench) -> None:
    path = bench.folder / "q.jsonl"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
    path.write_text(json.dumps({"messages": messages, "expected": "x"}))
    bench.run(str(path), models="p/weak")
    assert body(bench.fake.requests[0]) == {
        "model": "weak", "messages": messages, "max_tokens": 100, "temperature": 0.0
    }  # fmt: skip
    bench.run(str(path), models="p/strong", temperature=None, out=bench.folder / "b")
    assert "temperature" not in body(bench.fake.requests[1])
    assert not (bench.folder / "s.db").exists(), "labels are no traffic"


def test_a_parameter_that_a_model_refuses_is_renamed_or_left_out(bench: Bench) -> None:
    def refusal(text: str, param: str) -> dict[str, Any]:
        error = {"message": text, "type": "invalid_request_error", "param": param}
        return {"status": 400, "body": {"error": error}}

    actions = (
        refusal("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'.", "max_tokens"),
        refusal("Unsupported value: 'temperature' does not support 0.", "temperature"),
    )
    bench.fake.set_model("weak", FakeModel(reply="4", actions=actions))
    s = bench.run(bench.queries(3), models="p/weak", concurrency=1)
    assert s.models["p/weak"].answers == 3
    assert bench.calls()["weak"] == 5, "learned once"
    last = body(bench.fake.requests[-1])
    assert last["max_completion_tokens"] == 100
    assert not {"max_tokens", "temperature"} & set(last)
    assert any("accepts no temperature" in w for w in s.warnings)


# ── failures ─────────────────────────────────────────────────────────────────────────────────────


def test_a_cell_that_fails_is_null_and_asked_again_on_the_next_run(bench: Bench) -> None:
    bench.fake.set_model("weak", FakeModel(reply="4", actions=({"status": 400},)))
    queries = bench.queries(4, expected="4")
    s = bench.run(queries, scorer="exact", concurrency=1)
    values = bench.table()
    assert sorted(values.values(), key=str) == [1.0] * 7 + [None]
    assert (s.models["p/weak"].failed, s.models["p/weak"].scored) == (1, 3)
    assert "simulated 400" in str(s.models["p/weak"].first_failure)
    bench.run(queries, scorer="exact")
    assert set(bench.table().values()) == {1.0}
    assert bench.calls() == Counter(weak=5, strong=4)


def test_a_passing_failure_is_retried(bench: Bench) -> None:
    bench.fake.set_model("weak", FakeModel(actions=({"status": 503}, "ok")))
    s = bench.run(bench.queries(1), models="p/weak")
    assert s.models["p/weak"].answers == 1
    assert bench.calls() == Counter(weak=2)
    assert s.uncertain_usd == 0.0, "a 503 costs nothing"


def test_what_may_have_been_charged_counts_against_the_cap(bench: Bench) -> None:
    bench.fake.set_model("weak", FakeModel(actions=("malformed",)))
    s = bench.run(bench.queries(2), models="p/weak", concurrency=1)
    assert s.models["p/weak"].failed == 1
    assert s.uncertain_usd >= 100 * 0.6 / 1e6
    assert s.spent_usd > s.uncertain_usd


def test_a_model_that_cannot_answer_is_given_up(bench: Bench) -> None:
    bench.fake.set_model("weak", FakeModel(actions=({"status": 401, "repeat": True},)))
    s = bench.run(bench.queries(30, expected="4"), scorer="exact", concurrency=2)
    assert bench.calls()["weak"] <= 2
    assert bench.calls()["strong"] == 30
    assert any("p/weak was not asked any further" in w and "401" in w for w in s.warnings)
    bench.fake.set_model("weak", FakeModel(actions=({"status": 422, "repeat": True},)))
    bench.fake.requests.clear()
    bench.run(bench.queries(30, expected="4"), scorer="exact", concurrency=1)
    assert bench.calls() == Counter(weak=8)


def test_no_answer_at_all_is_a_failed_job(bench: Bench) -> None:
    for name in ("weak", "strong"):
        bench.fake.set_model(name, FakeModel(actions=({"status": 401, "repeat": True},)))
    with pytest.raises(JobError, match=r"No model gave any answer.*answered 401"):
        bench.run(bench.queries(3))
    assert not (bench.folder / "labels" / "queries.parquet").exists()


def test_a_query_that_fits_no_window_is_null(bench: Bench) -> None:
    path = bench.folder / "q.jsonl"
    long = "many words " * 12_000  # weak holds 16,000 tokens
    path.write_text(
        "".join(json.dumps({"query_id": p[:4], "prompt": p}) + "\n" for p in (long, "x"))
    )
    s = bench.run(str(path), concurrency=1)
    assert bench.calls() == Counter(weak=1, strong=2)
    assert "do not fit its window" in str(s.models["p/weak"].first_failure)


def test_a_scorer_that_fails_stops_the_run_and_keeps_the_answers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.folder)
    monkeypatch.syspath_prepend(str(bench.folder))
    scorer = bench.folder / "fragile_scorer.py"
    scorer.write_text("def score(prompt, answer, expected): return 1 / 0\n")
    queries = bench.queries(50)
    with pytest.raises(UsageError, match="fragile_scorer:score raised ZeroDivisionError"):
        bench.run(queries, models="p/weak", scorer="fragile_scorer:score", concurrency=2)
    calls = bench.calls()["weak"]
    assert calls <= 4, "found out early"
    monkeypatch.delitem(__import__("sys").modules, "fragile_scorer")
    scorer.write_text("def score(prompt, answer, expected): return 0.25  # mended\n")
    s = bench.run(queries, models="p/weak", scorer="fragile_scorer:score")
    assert s.models["p/weak"].quality == 0.25
    assert bench.calls()["weak"] == 50


# ── money ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("judge", [None, "p/judge"])
def test_the_cap_holds_under_concurrency_at_the_worst_case(bench: Bench, judge: str | None) -> None:
    """Every answer is as long as it may be, sixteen are asked for at once: the money that the
    upstream counts stays below the cap, and most of it is used."""
    for name, text in (("weak", "yes"), ("strong", "no"), ("judge", "VERDICT: TIE")):
        bench.fake.set_model(name, FakeModel(reply=text, output_tokens=100, first_chunk_s=0.01))
    cap = 0.02
    s = bench.run(
        bench.queries(60), judge=judge, max_usd=cap, concurrency=16, judge_max_output_tokens=100
    )
    prices = {"weak": (0.15, 0.6), "strong": (2.5, 10.0), "judge": (1.0, 4.0)}
    paid = 0.0
    for seen in bench.fake.requests:
        tokens = len(json.dumps(body(seen)["messages"], separators=(",", ":"))) // 4
        paid += (tokens * prices[seen.model][0] + 100 * prices[seen.model][1]) / 1e6
    assert paid <= cap
    assert paid == pytest.approx(s.spent_usd, rel=0.01)
    assert paid > 0.7 * cap
    assert s.stopped == "max_usd"
    assert 0 < s.asked < 60
    values = list(bench.table().values()) if judge else []
    assert values.count(None) <= 2, "a query that was begun is ended"
    again = bench.run(
        bench.queries(60), judge=judge, max_usd=cap, concurrency=16, judge_max_output_tokens=100
    )
    assert again.spent_usd <= cap, "the cap is of the table, not of a run"


def test_a_cap_below_one_query_says_so(bench: Bench) -> None:
    with pytest.raises(JobError, match="does not cover the maximum cost of a single query"):
        bench.run(bench.queries(3), max_usd=0.0001)
    assert not bench.fake.requests


def test_unknown_prices_are_refused_under_a_cap(bench: Bench) -> None:
    queries = bench.queries(2)
    with pytest.raises(UsageError, match="price of p/unpriced is unknown"):
        bench.run(queries, models="p/weak,p/unpriced", max_usd=1.0)
    assert not bench.fake.requests
    s = bench.run(queries, models="p/weak,p/unpriced", max_usd=1.0, allow_unknown_price=True)
    assert bench.ui.forecasts[0].usd is None
    assert s.models["p/unpriced"].mean_usd is None
    assert load_table(bench.folder / "labels", need_scores=False).cost_usd is not None


def test_tokens_that_the_upstream_does_not_tell_are_unknown_and_bounded(bench: Bench) -> None:
    bench.fake.set_model("weak", FakeModel(reply="four words of text", usage=False))
    s = bench.run(bench.queries(3), models="p/weak", max_usd=1.0)
    assert s.models["p/weak"].mean_usd is None
    assert 0 < s.spent_usd == s.uncertain_usd < 3 * 200 * 0.6 / 1e6


def test_the_forecast_learns_from_the_ledger(bench: Bench) -> None:
    bench.fake.set_model("weak", FakeModel(output_tokens=90))
    queries = bench.queries(10)
    bench.run(bench.queries(6), models="p/weak")
    bench.run(bench.queries(10), models="p/weak")
    (row,) = bench.ui.forecasts[0].rows
    assert (row.calls, row.known, row.output_tokens) == (4, 6, 360)
    assert row.usd == pytest.approx((row.input_tokens * 0.15 + 360 * 0.6) / 1e6)
    assert row.most_usd == pytest.approx((row.input_tokens * 0.15 + 400 * 0.6) / 1e6)
    assert queries


# ── the judge ────────────────────────────────────────────────────────────────────────────────────


def test_the_judge_is_asked_both_ways_round(bench: Bench) -> None:
    """Four queries, judged by script: candidate wins both, loses both, contradiction, tie + loss."""
    script = ["A", "B", "B", "A", "A", "A", "TIE", "A"]
    actions = tuple(reply(f"Because.\nVERDICT: {v}") for v in script)
    bench.fake.set_model("judge", FakeModel(actions=actions))
    bench.fake.set_model("strong", FakeModel(reply="four"))
    s = bench.run(bench.queries(4), judge="p/judge", concurrency=1)
    values = bench.table()
    assert Counter(v for (_, m), v in values.items() if m == "p/strong") == {1.0: 4}
    assert Counter(v for (_, m), v in values.items() if m == "p/weak") == {1.0: 1, 0.0: 1, 0.5: 2}
    assert (s.judged_pairs, s.judge_contradicts) == (4, 1)
    assert (s.reference, s.judge_prompt) == ("p/strong", "judge-1")
    asked = [body(x)["messages"][1]["content"] for x in bench.fake.requests if x.model == "judge"]
    assert len(asked) == 8
    for one, other in zip(asked[::2], asked[1::2], strict=True):
        assert one.index("It is 4.") < one.index("four")
        assert other.index("four") < other.index("It is 4.")
    assert all(body(x)["temperature"] == 0 for x in bench.fake.requests if x.model == "judge")
    before = bench.calls()
    bench.run(bench.queries(4), judge="p/judge")
    assert bench.calls() == before, "verdicts are kept too"


def test_plain_cases_need_no_judge(bench: Bench) -> None:
    bench.fake.set_model("weak", FakeModel(reply=" 4. "))
    bench.run(bench.queries(3), judge="p/judge")
    assert bench.calls()["judge"] == 0
    assert set(bench.table().values()) == {1.0}
    assert bench.ui.steps == bench.ui.forecasts[0].calls


def test_an_unreadable_verdict_is_null_and_not_bought_again(bench: Bench) -> None:
    bench.fake.set_model("judge", FakeModel(reply="Both have their merits."))
    queries = bench.queries(2)
    for _ in range(2):
        s = bench.run(queries, judge="p/judge")
        assert [v for (_, m), v in bench.table().items() if m == "p/weak"] == [None, None]
        assert any("could not be read" in w for w in s.warnings)
    assert bench.calls()["judge"] == 4


def test_a_judge_that_fails_leaves_nulls_and_is_asked_again(bench: Bench) -> None:
    bench.fake.set_model("judge", FakeModel(actions=({"status": 401, "repeat": True},)))
    queries = bench.queries(3)
    s = bench.run(queries, judge="p/judge")
    assert any("p/judge was not asked any further" in w for w in s.warnings)
    assert Counter(bench.table().values()) == {None: 3, 1.0: 3}
    bench.fake.set_model("judge", FakeModel(reply="VERDICT: TIE"))
    bench.run(queries, judge="p/judge")
    assert set(bench.table().values()) == {1.0}
    assert bench.calls()["weak"] == 3


def test_without_the_references_answer_nothing_can_be_said(bench: Bench) -> None:
    bench.fake.set_model("strong", FakeModel(actions=({"status": 400},)))
    bench.run(bench.queries(2), judge="p/judge", concurrency=1)
    by_query: dict[str, set[float | None]] = {}
    for (q, _), v in bench.table().items():
        by_query.setdefault(q, set()).add(v)
    assert sorted(by_query.values(), key=str) == [{1.0}, {None}]


def test_one_model_alone_is_graded(bench: Bench) -> None:
    bench.fake.set_model("judge", FakeModel(reply="Nearly.\nGRADE: 3"))
    s = bench.run(
        bench.queries(2, key="4"), models="p/weak", judge="p/judge", expected_column="key"
    )
    assert s.reference is None
    assert set(bench.table().values()) == {0.75}
    asked = body(bench.fake.requests[-1])["messages"]
    assert "GRADE: 4" in asked[0]["content"]
    assert "<known-good-answer-" in asked[1]["content"]


def test_the_judges_family_and_the_reference_are_said(bench: Bench) -> None:
    bench.run(bench.queries(1), models="p/weak,p/strong", judge="p/weak", reference="p/weak")
    assert any("judges its own answers" in x for x in bench.ui.notices)
    assert bench.calls() == Counter(weak=3, strong=1)
    with pytest.raises(UsageError, match="not among --models"):
        bench.run(bench.queries(1), judge="p/judge", reference="p/judge")


# ── the sample ───────────────────────────────────────────────────────────────────────────────────


def test_a_sample_is_remembered_and_grows(bench: Bench) -> None:
    queries = bench.queries(40, expected=["4"] * 20 + ["It is 4."] * 20)
    first = bench.run(queries, scorer="exact", sample=10)
    ids = {q for q, _ in bench.table()}
    assert len(ids) == 10
    assert first.sampled
    assert bench.run(queries, scorer="exact", sample=10).run_usd == 0.0
    bench.run(queries, scorer="exact", sample=16)
    assert len({q for q, _ in bench.table()}) == 16
    assert ids < {q for q, _ in bench.table()}
    assert bench.calls() == Counter(weak=16, strong=16)
    import pyarrow.parquet as pq

    rows = pq.read_table(bench.folder / "labels" / "queries.parquet").to_pylist()
    assert sum(r["sampling_weight"] for r in rows) == pytest.approx(40)
    bench.run(queries, scorer="exact", sample=10)
    assert {q for q, _ in bench.table()} == ids, "a smaller wish is the sample it was"
    bench.run(queries, scorer="exact", sample=40)
    assert len({q for q, _ in bench.table()}) == 40
    bench.run(queries, scorer="exact", sample=10, seed=1, out=bench.folder / "other")
    assert {q for q, _ in bench.table("other")} != ids


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


def test_bad_options_are_found_before_a_call(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = bench.queries(2, expected="4")

    def refused(error: type[Exception], said: str, **options: Any) -> None:
        with pytest.raises(error) as found:
            bench.run(queries, **options)
        assert said in str(found.value)

    refused(ConfigError, "Nearest known: p/weak", models="p/waek,p/strong")
    refused(UsageError, "twice", models="p/weak,p/weak")
    refused(UsageError, "exclude each other", judge="p/judge", scorer="exact")
    refused(UsageError, "--pattern needs a --scorer", pattern="x")
    refused(UsageError, "unsupported table format", out=bench.folder / "t.xlsx")
    refused(UsageError, "at least 1", sample=0)
    refused(UsageError, "more than 0", max_usd=float("nan"))
    (bench.folder / "mine.csv").write_text("a,b\n1,2\n")
    refused(UsageError, "not written by suffice collect", out=bench.folder / "mine.csv")
    bench.config.write_text(
        bench.config.read_text().replace(
            'dialect = "openai"', 'dialect = "openai"\napi_key_env = "P_KEY"'
        )
    )
    refused(ConfigError, "P_KEY")
    assert not bench.fake.requests
    assert (bench.folder / "mine.csv").read_text() == "a,b\n1,2\n"


def test_queries_from_a_store(bench: Bench, tmp_path: Path) -> None:
    import openai

    from suffice.gateway import BackgroundServer

    bench.config.write_text(
        bench.config.read_text().replace("[store]", "[store]\nkeep_prompts = true")
    )
    with (
        BackgroundServer(bench.config) as server,
        openai.OpenAI(base_url=server.base_url + "/v1", api_key="x") as client,
    ):
        for i in range(3):
            client.chat.completions.create(
                model="auto",
                messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"Hi {i}"}],
            )  # fmt: skip
    bench.fake.requests.clear()
    bench.run(f"sqlite:///{(tmp_path / 's.db').as_posix()}", judge="p/judge")
    assert bench.calls() == Counter(weak=3, strong=3, judge=6)
    weak = [body(s)["messages"] for s in bench.fake.requests if s.model == "weak"]
    assert sorted(m[1]["content"] for m in weak) == ["Hi 0", "Hi 1", "Hi 2"]
    assert all(m[0] == {"role": "system", "content": "Be kind."} for m in weak)
    t = load_table(bench.folder / "labels")
    assert all(len(c) == 2 for c in t.messages)
