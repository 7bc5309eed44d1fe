"""`suffice assess`: clusters that a reader recognises, and only claims that the labels support."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import UsageError
from suffice.lab.assess import assess, cluster_names
from suffice.lab.assess.adjusted_means import adjusted_means
from suffice.lab.assess.clustering import cluster
from suffice.lab.assess.comparison import common_queries, compare, hull_area, pool_value
from suffice.lab.assess.costs import costs_of, price_of
from suffice.lab.assess.pools import PoolResult, pool_summary
from suffice.lab.assess.traffic_profile import difficulty, script_shares
from suffice.lab.data.table import Table
from suffice.lab.predictors.base import extract_table
from suffice.lab.stats import ClusterBootstrap
from suffice.types import Message, Model, Price

# Four topics, each in varied words, so that a cluster is a topic and a name can be checked.
TOPICS: dict[str, list[str]] = {
    "code": [
        "Write a python function that {} a linked list of integers",
        "Debug this python code: the loop {} the wrong index of the array",
        "How do I {} a string in javascript with a regular expression?",
    ],
    "law": [
        "The defendant was {} by the court; may the attorney appeal the verdict?",
        "Under contract law, is the seller {} when the buyer breaks the contract?",
        "Can the court admit testimony that was {} before the trial?",
    ],
    "cooking": [
        "Give me a recipe for a soup with {} carrots, onions and garlic",
        "How long is chicken {} in the oven with butter and rosemary?",
        "What dessert can be {} from flour, sugar, eggs and chocolate?",
    ],
    "sky": [
        "Why is the planet Jupiter {} by so many moons in its orbit?",
        "How was the distance of the star {} by astronomers with a telescope?",
        "When will the comet be {} again from Earth near the sun?",
    ],
}
VERBS = "sorted seen baked held moved called split heard cut named joined kept".split()


def prompts(n: int, topics: Sequence[str] = tuple(TOPICS), seed: int = 0) -> list[tuple[str, str]]:
    """n pairs of (topic, prompt), topics in turn."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        topic = topics[i % len(topics)]
        line = TOPICS[topic][int(rng.integers(3))]
        two = " and ".join(rng.choice(VERBS, 2, replace=False))
        out.append((topic, f"{line.format(two)} ({i})"))
    return out


def table(
    texts: Sequence[str],
    score: Any = None,
    models: Sequence[str] = (),
    cost: Any = None,
    **more: Any,
) -> Table:
    n, k = len(texts), len(models)
    return Table(
        "t",
        tuple(f"q{i}" for i in range(n)),
        tuple((Message("user", p),) for p in texts),
        tuple(models),
        np.full((n, k), np.nan) if score is None else np.asarray(score, float),
        cost_usd=None if cost is None else np.broadcast_to(np.asarray(cost, float), (n, k)).copy(),
        **more,
    )


def answers(n: int, *shares: float, seed: int = 0) -> np.ndarray:
    """(n, k) right or wrong, independent of each other and of what `prompts` draws."""
    return (np.random.default_rng([seed, 7]).random((n, len(shares))) < shares).astype(float)


# ── what is asked ────────────────────────────────────────────────────────────────────────────────


def test_clusters_are_the_topics_and_are_named_by_their_words() -> None:
    made = prompts(320)
    found = cluster(extract_table(table([p for _, p in made])).vectors)
    for c in range(int(found.labels.max()) + 1):
        topics = [t for (t, _), x in zip(made, found.labels, strict=True) if x == c]
        assert max(topics.count(t) for t in TOPICS) >= 0.9 * len(topics), "a cluster is one topic"
    result = assess(table([p for _, p in made]))
    assert 4 <= len(result.clusters) <= 16
    assert sum(c.size for c in result.clusters) == 320
    assert [c.size for c in result.clusters] == sorted(
        (c.size for c in result.clusters), reverse=True
    )
    words = " ".join(c.name for c in result.clusters)
    for known in ("python", "court", "telescope"):
        assert known in words or any(known in " ".join(c.words) for c in result.clusters)
    assert len({c.name for c in result.clusters}) == len(result.clusters)
    for c in result.clusters:
        assert c.examples and all(len(e) <= 110 for e in c.examples)
        assert not any(w.isdigit() for w in c.words)


@pytest.mark.slow
def test_the_same_table_gives_the_same_answer() -> None:
    texts = [p for _, p in prompts(120)]
    scores = answers(120, 0.5, 0.9)
    one = assess(table(texts, scores, "ab", [1.0, 9.0]))
    assert one == assess(table(texts, scores, "ab", [1.0, 9.0]))


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (["What is the capital of France?"], "capital"),
        ([""] * 50, "empty prompts"),
        ([f"{i} + {7919 * i}" for i in range(100)], "numbers and symbols"),
        (["Write a poem about the sea"] * 90, "poem"),
    ],
)
def test_one_kind_of_query_is_one_cluster(texts: list[str], name: str) -> None:
    result = assess(table(texts))
    assert len(result.clusters) == 1
    assert name in result.clusters[0].name
    assert result.clusters[0].share == 1.0
    assert result.mix.duplicate_share == pytest.approx(
        1 - len(set(texts)) / len(texts), abs=0.02
    ) or (texts[0] == "")


def test_names_work_in_every_script() -> None:
    texts = [
        f"{p} {i}"
        for i in range(30)
        for p in ("请写一首关于大海的诗", "今日の東京の天気は", "मौसम कैसा है आज दिल्ली में",
                  "Напиши сказку про дракона", "اكتب قصيدة عن البحر", "바다에 대한 시를 써 주세요")
    ]  # fmt: skip
    result = assess(table(texts))
    names = " ".join(c.name for c in result.clusters)
    for word in ("大海", "天気", "मौसम", "дракона", "البحر", "바다에"):
        assert word in names
    assert set(result.mix.scripts) == {
        "Han",
        "Japanese",
        "Devanagari",
        "Cyrillic",
        "Arabic",
        "Korean",
    }


def test_scripts_are_recognised_by_letters() -> None:
    assert script_shares(["12 + 3", "¿Qué?", "Москва", "漢字とかな", "漢字"]) == {
        "none": 0.2, "Latin": 0.2, "Cyrillic": 0.2, "Japanese": 0.2, "Han": 0.2,
    }  # fmt: skip


def test_examples_leave_out_a_shared_template() -> None:
    head = "You are a careful assistant. Answer the following request of a customer as well as you can: "
    made = [head + p + " Thank you in advance for your help." for _, p in prompts(100)]
    for c in assess(table(made)).clusters:
        assert all(e.startswith("…") and "careful" not in e for e in c.examples)


def test_the_profile_counts_code_mathematics_and_duplicates() -> None:
    texts = ["def f(x): return x  # fix this python function, the code raises an exception"] * 10
    texts += ["Prove that the integral of this polynomial equation converges, by a theorem"] * 20
    texts += ["hi"] * 10
    many = (
        Message("user", "hello"),
        Message("assistant", "yes?"),
        Message("user", "And in French?"),
    )
    made = table([*texts, ""])
    messages = (*made.messages[:-1], many)
    result = assess(Table(made.name, made.query_ids, messages, (), made.score)).mix
    assert result.code_share == pytest.approx(10 / 41)
    assert result.math_share == pytest.approx(20 / 41)
    assert result.multi_turn_share == pytest.approx(1 / 41)
    assert result.duplicate_share == pytest.approx(1 - 4 / 41)
    assert sum(result.lengths) == pytest.approx(1.0)
    assert sum(result.difficulty) == pytest.approx(1.0)


@settings(max_examples=30)
@given(st.lists(st.text(max_size=80), min_size=1, max_size=30), st.integers(1, 5))
def test_any_text_can_be_named(texts: list[str], k: int) -> None:
    labels = np.arange(len(texts)) % k
    words = cluster_names.name_clusters(texts, labels, k)
    names = cluster_names.unique_names(words, ["none"] * k)
    assert len(set(names)) == k
    for terms in words:
        assert len(terms) <= cluster_names.MAX_WORDS
        assert not any(t.isdigit() or t in cluster_names.stop_words() for t in terms)


def test_the_number_of_clusters_can_be_given() -> None:
    texts = [p for _, p in prompts(60)]
    assert len(assess(table(texts), clusters=7).clusters) == 7
    assert len(assess(table(["a b", "c d"]), clusters=7).clusters) == 2
    with pytest.raises(UsageError, match="at least 1"):
        assess(table(texts), clusters=0)


# ── which models ─────────────────────────────────────────────────────────────────────────────────


def test_without_labels_only_the_queries_are_described() -> None:
    result = assess(table([p for _, p in prompts(50)]))
    assert result.pool is None and result.models == {}
    assert "suffice collect" in result.recommendation[0]


@pytest.mark.slow
def test_a_topic_that_needs_the_strong_model_is_found_and_routed() -> None:
    made = prompts(600)
    law = np.array([t == "law" for t, _ in made])
    rng = np.random.default_rng(1)
    weak = rng.random(600) < np.where(law, 0.1, 0.9)
    strong = rng.random(600) < 0.93
    score = np.stack([weak, strong], axis=1).astype(float)
    result = assess(table([p for _, p in made], score, ["weak", "strong"], [1.0, 20.0]))
    assert result.pool is not None
    assert result.pool.recommended == ("weak", "strong")
    assert result.pool.strong == "strong" and result.pool.cheap == ("weak",)
    gain = result.pool.pairs[0].routing_gain
    assert gain is not None and gain.ci is not None and gain.ci[0] > 0.03
    assert any("Routing pays" in s for s in result.recommendation)
    needs = {c.name: c.needs_strong for c in result.clusters}
    hard = max(needs, key=lambda n: needs[n].value if needs[n] else 0)  # type: ignore[union-attr]
    assert any(w in hard for w in ("court", "contract", "law", "attorney", "testimony"))
    assert needs[hard].value > 0.6  # type: ignore[union-attr]
    whole = result.pool.needs_strong
    assert whole is not None
    assert whole.value == pytest.approx(((~weak) & strong).mean())
    kept = result.pool.pairs[0].cost_to_keep["0.95"]
    assert kept.value < 0.6


@pytest.mark.slow
def test_a_copy_at_twice_the_price_adds_nothing() -> None:
    texts = [p for _, p in prompts(600)]
    score = answers(600, 0.5, 0.9)
    score = np.column_stack([score, score[:, 1]])
    result = assess(table(texts, score, ["weak", "strong", "copy"], [1.0, 10.0, 20.0]))
    assert result.pool is not None
    assert set(result.pool.recommended) == {"weak", "strong"}
    assert result.pool.hull == ("weak", "strong")
    copy = result.models["copy"]
    assert copy.on_hull is False
    assert copy.verdict == "nothing measurable"
    assert "copy" in result.pool.ties


def test_few_labels_claim_little() -> None:
    texts = [p for _, p in prompts(60)]
    result = assess(table(texts, answers(60, 0.6, 0.65, 0.7), "abc", [1.0, 1.5, 2.0]))
    assert result.pool is not None
    assert result.pool.basis == "shrunken means"
    assert all(x.routing_gain is None for x in result.pool.pairs)
    assert any("too few labels" in s for s in result.recommendation)
    assert len(result.pool.recommended) <= 2
    assert all(c.too_few for c in result.clusters if c.n_labelled < 30)


@pytest.mark.slow
def test_best_and_cheapest_runs_alone() -> None:
    result = assess(table([p for _, p in prompts(400)], answers(400, 0.9, 0.6), "ab", [1.0, 5.0]))
    assert result.pool is not None
    assert result.pool.recommended == ("a",)
    assert result.pool.cheap == () and result.pool.needs_strong is None
    assert result.recommendation[0].startswith("Run a")


def test_equal_scores_are_reported_as_equal() -> None:
    texts = [p for _, p in prompts(80)]
    result = assess(table(texts, np.ones((80, 3)), "xyz", [1.0, 2.0, 3.0]))
    assert result.pool is not None and result.pool.identical
    assert result.pool.recommended == ("x",)
    assert "same" in result.recommendation[0] and "x" in result.recommendation[0]
    assert set(result.pool.ties) | {result.pool.strong} == {"x", "y", "z"}


@pytest.mark.slow
def test_without_costs_only_quality_is_compared_and_it_says_so() -> None:
    texts = [p for _, p in prompts(400)]
    result = assess(table(texts, answers(400, 0.5, 0.9), ["house-a", "house-b"]))
    assert result.cost_unit is None
    assert result.pool is not None and result.pool.strong == "house-b"
    assert result.pool.recommended == ("house-b",)
    assert all(x.on_hull is None for x in result.models.values())
    assert any("Cost is unknown" in s for s in result.recommendation)


@pytest.mark.parametrize(
    ("score", "result"),
    [
        ([[1.0]] * 30, "only model with scores"),
        ([[1.0, np.nan], [np.nan, 0.0]] * 15, "No query was answered by two models"),
        ([[1.0, 0.0]] * 5, "Too few labels to say which models to run"),
    ],
)
def test_models_that_cannot_be_compared(score: list[list[float]], result: str) -> None:
    n, k = np.shape(score)
    found = assess(table([p for _, p in prompts(n)], score, "ab"[:k]))
    assert found.pool is None
    assert result in found.recommendation[0]
    assert set(found.models) == set("ab"[:k])
    assert all(not x.compared for x in found.models.values())


@pytest.mark.slow
def test_intervals_are_clustered_by_group() -> None:
    """Ten copies of each query in one group must not look like ten times the evidence."""
    base = answers(40, 0.5, 0.8, seed=3)
    texts = [p for _, p in prompts(40)]
    alone = assess(table(texts, base, "ab", [1.0, 9.0]))
    groups = tuple(f"g{i}" for i in np.repeat(np.arange(40), 10))
    copies = assess(
        table(
            list(np.repeat(texts, 10)), np.repeat(base, 10, axis=0), "ab", [1.0, 9.0], group=groups
        )
    )

    def width(x: Any) -> float:
        ci = x.models["a"].quality.ci
        return float(ci[1] - ci[0])

    assert width(copies) == pytest.approx(width(alone), rel=0.3)


def test_graded_scores_need_a_clear_difference() -> None:
    texts = [p for _, p in prompts(60)]
    near = np.column_stack([np.full(60, 0.45), np.full(60, 0.55)])
    far = np.column_stack([np.full(60, 0.30), np.full(60, 0.90)])
    for score, share in ((near, 0.0), (far, 1.0)):
        result = assess(table(texts, score, "ab", [1.0, 9.0]))
        assert result.pool is not None and result.pool.needs_strong is not None
        assert result.pool.needs_strong.value == share


def test_unknown_models_and_too_many_are_refused() -> None:
    made = table(["a", "b"], np.ones((2, 2)), ["gpt-4o", "claude"])
    with pytest.raises(UsageError, match="gpt-4o"):
        assess(made, models=["gpt4o"])
    wide = table(["a"], np.ones((1, 101)), [f"m{i}" for i in range(101)])
    with pytest.raises(UsageError, match="at most 100"):
        assess(wide)


@pytest.mark.slow
def test_many_models_are_compared() -> None:
    texts = [p for _, p in prompts(400)]
    shares = np.linspace(0.3, 0.9, 60)
    names = [f"m{i:02}" for i in range(60)]
    result = assess(table(texts, answers(400, *shares), names, np.geomspace(0.001, 1, 60)))
    assert result.pool is not None
    assert 2 <= len(result.pool.recommended) <= 3
    assert len(result.models) == 60


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def test_means_are_adjusted_for_the_queries_each_model_was_asked() -> None:
    rng = np.random.default_rng(0)
    n = 2000
    ease = rng.normal(0.5, 0.2, (n, 1))
    score = ease + np.array([0.0, 0.05, 0.1]) + rng.normal(0, 0.05, (n, 3))
    whole, _ = adjusted_means(score, ClusterBootstrap(np.arange(n), 50, 0))
    assert whole == pytest.approx(score.mean(axis=0))
    gaps = score.copy()
    gaps[ease[:, 0] > 0.5, 0] = np.nan  # model 0 was asked the hard half only
    gaps[rng.random((n, 3)) < 0.2] = np.nan
    mean, draws = adjusted_means(gaps, ClusterBootstrap(np.arange(n), 200, 0))
    assert np.nanmean(gaps, axis=0)[1] - np.nanmean(gaps, axis=0)[0] > 0.15, "plain means mislead"
    assert mean - mean[0] == pytest.approx([0.0, 0.05, 0.1], abs=0.01)
    assert draws.mean(axis=0) == pytest.approx(mean, abs=0.005)


def test_models_with_few_labels_in_common_are_left_out() -> None:
    score = answers(100, 0.5, 0.6, 0.7)
    score[5:, 2] = np.nan
    models, rows = common_queries(score)
    assert models == [0, 1] and len(rows) == 100
    result = assess(table([p for _, p in prompts(100)], score, "abc", [1.0, 2.0, 3.0]))
    assert not result.models["c"].compared
    assert any("too few labels in common" in w for w in result.warnings)


def test_hull_area_is_the_area_under_the_hull_with_nothing_answered() -> None:
    # (0, 0) to (1, .5): the first half of [0.5, 1] is under the line; then to (2, 1); the mean
    # height over [0.5, 2] of the line y = x / 2 is 0.625.
    assert hull_area(np.array([1.0, 2.0]), np.array([0.5, 1.0]), 0.5, 2.0) == pytest.approx(0.625)
    # A useless dear model changes nothing.
    assert hull_area(np.array([1.0]), np.array([0.5]), 1.0, 2.0) == pytest.approx(0.5)


def test_costs_come_from_the_best_source_there_is() -> None:
    texts = ["one", "two words", "three words here"]
    shape = (3, 2)
    own = table(texts, np.ones(shape), "ab", [1.0, 2.0])
    batch = extract_table(own)
    hard = difficulty(batch)
    found = costs_of(own, batch, hard)
    assert found.unit == "usd" and found.cost is not None
    assert found.cost.mean(axis=0).tolist() == [1.0, 2.0]
    listed = table(texts, np.ones(shape), ["openai/gpt-4o-mini", "gpt-4o"])
    found = costs_of(listed, batch, hard)
    assert found.unit == "usd" and "estimated" in found.source and found.cost is not None
    assert (found.cost[:, 0] < found.cost[:, 1]).all()
    tokens = table(texts, np.ones(shape), "ab", output_tokens=np.array([[10.0, 20.0]] * 3))
    assert costs_of(tokens, batch, hard).unit == "output_tokens"
    assert costs_of(table(texts, np.ones(shape), "ab"), batch, hard).unit is None
    mine = Model("local/b", "local", "b", Price(0.1, 0.2))
    assert price_of("b", [mine]) == (0.1, 0.2)
    assert price_of("no-such-model-anywhere") is None


@pytest.mark.slow
def test_a_router_without_signal_is_not_reported_to_pay() -> None:
    """On labels that no word explains, routing must not be called a gain more often than chance."""
    paid = 0
    for seed in range(12):
        texts = [p for _, p in prompts(300, seed=seed)]
        made = table(texts, answers(300, 0.6, 0.8, seed=seed), "ab", [1.0, 9.0])
        c = compare(made, extract_table(made), made.cost_usd, [0, 1], np.arange(300))
        e = pool_summary(c, PoolResult((0, 1), pool_value(c, (0, 1)))).routing_gain
        assert e is not None and e.ci is not None
        paid += e.ci[0] > 0
    assert paid <= 2
