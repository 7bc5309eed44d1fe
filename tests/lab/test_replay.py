"""Replay over a real store: decisions and feedback in, the policy's own course, estimates, verdict."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from suffice import features
from suffice.errors import ConfigError, JobError, StoreError, UsageError
from suffice.gateway import BackgroundServer
from suffice.lab.data.decisions import read_decisions
from suffice.lab.ope import replay
from suffice.lab.ope.intervals import Estimate
from suffice.lab.ope.reward_model import cross_fit_q_hat
from suffice.lab.ope.rollout import roll_out
from suffice.lab.ope.verdict import Evidence, decide_verdict
from suffice.providers.fake import FakeUpstream
from suffice.store import open_store
from suffice.types import (
    Decision,
    Features,
    Feedback,
    Message,
    Objective,
    PlanStep,
    Prediction,
    RequestRecord,
)

WEAK, STRONG = "p/weak", "p/strong"
CONFIG = """
[store]
url = "{url}"
[providers.p]
dialect = "openai"
base_url = "http://127.0.0.1:9/v1"
[models."p/weak"]
input_usd_per_mtok = 0.15
output_usd_per_mtok = 0.6
quality = 0.6
[models."p/strong"]
input_usd_per_mtok = 2.5
cached_input_usd_per_mtok = 0.25
output_usd_per_mtok = 10.0
quality = 0.95
[routes.auto]
models = ["p/weak", "p/strong"]
objective = {{ keep_quality = 0.95 }}
"""


def decided(
    n: int,
    chosen: str,
    shares: Mapping[str, float],
    x: Features | None = None,
    **more: Any,
) -> RequestRecord:
    """Decision number n, a second after the one before, which took `chosen` with these
    propensities."""
    usd = {WEAK: 0.0001, STRONG: 0.002}
    order = [chosen, *(m for m in shares if m != chosen)]
    decision = Decision(
        id=f"dec_{n:011x}",
        model=chosen,
        plan=tuple(PlanStep(m) for m in order),
        predictions=tuple(
            Prediction(m, 0.7, usd.get(m), None, share) for m, share in shares.items()
        ),
        reason="because.",
        policy="random",
        policy_version="random-1",
        objective=Objective(kind="keep_quality", value=0.95),
        basis=more.pop("basis", "prior"),
        route=more.pop("route", "auto"),
        propensity=shares.get(chosen, 0.0),
    )
    fields: dict[str, Any] = {
        "attempts": (),
        "created_s": 1_000_000.0 + n,
        "request_id": f"req_{n}",
        "status": 200,
        "model": chosen,
        "cost_usd": 2 * usd.get(chosen, 0.001),
        "features": features.extract_text("Say hello.") if x is None else x,
    }
    return RequestRecord(decision=decision, **{**fields, **more})


def asked(*texts: str) -> Features:
    """A conversation of human turns, each answered but the last."""
    out: list[Message] = []
    for text in texts:
        out += [Message("user", text), Message("assistant", "An answer of some length to it.")]
    return features.extract(tuple(out[:-1]))


class House:
    """A store with a config over it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "s.db"
        self.url = f"sqlite:///{self.file.as_posix()}"
        self.store = open_store(self.url)
        self.toml = folder / "suffice.toml"
        self.toml.write_text(CONFIG.format(url=self.url))

    def add(self, record: RequestRecord, score: float | None = None, source: str = "user") -> None:
        self.store.append(record)
        if score is not None:
            self.scores = getattr(self, "scores", [])
            self.scores.append(Feedback(decision_id=record.decision.id, score=score, source=source))

    def settle(self) -> None:
        assert self.store.flush()
        for f in getattr(self, "scores", []):
            assert self.store.feedback.add(f)
        self.scores = []

    def sql(self, statement: str, *values: Any) -> None:
        with sqlite3.connect(self.file) as connection:
            connection.execute(statement, values)

    def setting(self, policy: str, objective: Any = None) -> replay.EvaluationPolicySetup:
        from suffice.config import load_settings

        return replay.load_evaluation_policy(load_settings(self.toml, {}), policy, {}, objective)

    def replay(self, policy: str, **more: Any) -> replay.Replay:
        self.settle()
        return replay.run(
            self.url, self.setting(policy, more.pop("objective", None)), policy, **more
        )


@pytest.fixture
def house(tmp_path: Path) -> Any:
    made = House(tmp_path)
    yield made
    made.store.close()


def explored(house: House, n: int, seed: int = 0, labelled: float = 1.0) -> dict[str, float]:
    """n decisions drawn evenly; the weak model suffices at 50 %, the strong at 90 %. Returns the
    mean scores that were given."""
    rng = np.random.default_rng(seed)
    given: dict[str, list[float]] = {WEAK: [], STRONG: []}
    for i in range(n):
        chosen = STRONG if rng.random() < 0.5 else WEAK
        score = float(rng.random() < (0.9 if chosen == STRONG else 0.5))
        show = rng.random() < labelled
        house.add(
            decided(i, chosen, {WEAK: 0.5, STRONG: 0.5}, session=f"s{i}"), score if show else None
        )
        if show:
            given[chosen].append(score)
    return {m: float(np.mean(v)) for m, v in given.items()}


# ── what comes out ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_better_policy_a_worse_one_and_the_logs_own(house: House) -> None:
    given = explored(house, 600)
    best = house.replay("best")
    assert best.verdict.word == "better"
    assert best.estimates["snips"]["value"] == pytest.approx(given[STRONG], abs=1e-9)
    for name in ("ips", "snips", "doubly_robust"):
        e = best.estimates[name]
        assert e["low"] < 0.9 < e["high"], name
        assert e["difference_low"] > 0.05
    assert best.verdict.lower_bound == best.estimates["doubly_robust"]["difference_low"]
    assert best.support == 1.0 and best.explored == 1.0
    assert best.ess == pytest.approx(best.shares[STRONG]["happened"] * 600)
    assert (best.shares[STRONG]["policy"], best.shares[WEAK]["policy"]) == (1.0, 0.0)
    # Twice the prediction was paid throughout, and weights have no part in it.
    assert best.cost.value == pytest.approx(0.004)
    assert best.cost.paid_over_predicted == pytest.approx({WEAK: 2.0, STRONG: 2.0})
    cheapest = house.replay("cheapest")
    assert cheapest.verdict.word == "worse"
    assert cheapest.cost.value == pytest.approx(0.0002)
    same = house.replay("random")
    assert same.verdict.word == "cannot tell"
    assert abs(same.verdict.difference or 0.0) < 0.02
    assert same.estimates["ips"]["value"] == pytest.approx(same.happened["score"])


def test_too_few_labels_cannot_be_judged(house: House) -> None:
    explored(house, 150)
    found = house.replay("best")
    assert found.verdict.word == "cannot judge"
    assert f"{found.ess:.0f}" in found.verdict.reason and "100" in found.verdict.reason
    assert found.estimates["snips"]["value"] is not None, "the figures are shown all the same"


def test_missing_feedback_is_not_negative(house: House) -> None:
    given = explored(house, 900, labelled=0.5)
    found = house.replay("best")
    assert found.labelled == pytest.approx(450, abs=60)
    assert found.labelled_share == found.labelled / 900
    assert found.estimates["snips"]["value"] == pytest.approx(given[STRONG], abs=1e-9)
    assert not any("Labelling depends" in w for w in found.warnings)
    assert found.cost.decisions == 900, "costs are known of the others too"


def test_labelling_that_depends_on_the_model_is_said(house: House) -> None:
    rng = np.random.default_rng(0)
    for i in range(400):
        chosen = (WEAK, STRONG)[i % 2]
        score = 1.0 if rng.random() < (0.9 if chosen == STRONG else 0.3) else None
        house.add(decided(i, chosen, {WEAK: 0.5, STRONG: 0.5}, session=f"s{i}"), score)
    found = house.replay("best")
    assert any("Labelling depends on the model" in w for w in found.warnings)
    assert found.labels[STRONG]["share"] > 0.8 > 0.4 > found.labels[WEAK]["share"]


def test_without_exploration_only_agreement_counts(house: House) -> None:
    for i in range(300):
        house.add(decided(i, WEAK, {WEAK: 1.0, STRONG: 0.0}, session=f"s{i}"), float(i % 2))
    found = house.replay("best")
    assert found.verdict.word == "cannot judge"
    assert "never explored" in found.verdict.reason and "0%" in found.verdict.reason
    assert (found.support, found.explored, found.agreement) == (0.0, 0.0, 0.0)
    assert found.estimates["ips"]["value"] == 0.0
    assert found.estimates["snips"]["value"] is None
    agreeing = house.replay("cheapest")
    assert agreeing.verdict.word == "cannot tell"
    assert agreeing.agreement == 1.0
    assert agreeing.verdict.difference == pytest.approx(0.0, abs=1e-12)
    assert agreeing.cost.difference == pytest.approx(0.0, abs=1e-12)


def test_propensities_that_lie_are_said(house: House) -> None:
    rng = np.random.default_rng(0)
    for i in range(300):
        chosen = STRONG if rng.random() < 0.5 else WEAK
        house.add(decided(i, chosen, {WEAK: 0.9, STRONG: 0.1}, session=f"s{i}"), 1.0)
    found = house.replay("best")
    assert any(STRONG in w and "propensities" in w for w in found.warnings)


# ── conversations ────────────────────────────────────────────────────────────────────────────────


def test_turns_that_kept_to_a_choice_have_its_propensity(house: House) -> None:
    n = 0
    for s in range(30):
        chosen = STRONG if s % 3 == 0 else WEAK
        house.add(
            decided(n, chosen, {WEAK: 0.8, STRONG: 0.2}, asked("Hello."), session=f"s{s}"), 1.0
        )
        other = WEAK if chosen == STRONG else STRONG
        for t in (1, 2):
            talk = asked(*["Hello."] * (t + 1))
            house.add(decided(n + t, chosen, {chosen: 1.0, other: 0.0}, talk, session=f"s{s}"), 1.0)
        n += 3
    house.settle()
    found = roll_out(read_decisions(house.url).rows, house.setting("best"))
    assert found.log.propensity == pytest.approx(
        [0.2 if s % 3 == 0 else 0.8 for s in range(30) for _ in range(3)]
    )
    assert len(np.unique(found.log.episodes)) == len(np.unique(found.log.sessions)) == 30
    strong = found.models.index(STRONG)
    assert found.action_dist[:, strong] == pytest.approx(np.ones(90))
    w = found.action_dist[np.arange(90), found.log.action] / found.log.propensity
    assert w.reshape(30, 3)[0] == pytest.approx([5.0, 5.0, 5.0])
    assert w.reshape(30, 3)[1] == pytest.approx([0.0, 0.0, 0.0])


def test_the_policy_follows_its_own_course(house: House) -> None:
    """The log was on the strong model; the policy would have begun on the weak one and stays there
    in the tools' loop, although the log's incumbent was another."""
    house.add(decided(0, STRONG, {WEAK: 0.5, STRONG: 0.5}, asked("Hello."), session="s"), 1.0)
    first = Message("user", "Hello.")
    loop = features.extract(
        (
            first,
            Message("assistant", "", tool_calls=1),
            Message("tool", "42 " * 50, is_tool_result=True),
        )
    )
    house.add(decided(1, STRONG, {WEAK: 0.0, STRONG: 1.0}, loop, session="s"), 1.0)
    house.settle()
    found = roll_out(read_decisions(house.url).rows, house.setting("default"))
    weak = found.models.index(WEAK)
    assert found.action_dist[:, weak] == pytest.approx([1.0, 1.0])
    assert found.log.propensity == pytest.approx([0.5, 0.5])


def test_a_mixed_policy_keeps_its_mix_through_a_conversation(house: House) -> None:
    """Half of its conversations are on each model: so are half of all their turns."""
    house.add(decided(0, WEAK, {WEAK: 0.5, STRONG: 0.5}, asked("Hello."), session="s"))
    house.add(decided(1, WEAK, {WEAK: 1.0, STRONG: 0.0}, asked("Hello.", "Go on."), session="s"))
    house.settle()
    setting = house.setting("default")

    class Half:
        name = "half"
        version = "half-1"

        def decide(self, x: Any, pool: Any, objective: Any, session: Any = None, **_: Any) -> Any:
            on = session.incumbent if session else None
            shares = {c.model.name: 0.5 if on is None else float(c.model.name == on) for c in pool}
            return decided(0, WEAK, shares).decision

    half = replay.EvaluationPolicySetup(
        {"auto": Half()}, setting.objectives, setting.catalog, {}, Half
    )
    found = roll_out(read_decisions(house.url).rows, half)
    assert found.action_dist == pytest.approx(np.full((2, 2), 0.5))
    liar = Half()
    liar.decide = lambda x, pool, objective, session=None, **_: (
        decided(  # type: ignore[method-assign]
            0, WEAK, {WEAK: 1.0, STRONG: 1.0}
        ).decision
    )
    with pytest.raises(JobError, match="sum to 1"):
        roll_out(
            read_decisions(house.url).rows,
            replay.EvaluationPolicySetup(
                {"auto": liar}, setting.objectives, setting.catalog, {}, Half
            ),
        )


def test_the_same_question_again_is_a_new_conversation(house: House) -> None:
    """Its key is the hash of its first message: both begin, and both were drawn."""
    for i in range(4):
        house.add(decided(i, (WEAK, STRONG)[i % 2], {WEAK: 0.5, STRONG: 0.5}, session="hash"), 1.0)
    house.settle()
    found = roll_out(read_decisions(house.url).rows, house.setting("best"))
    assert len(np.unique(found.log.episodes)) == 4
    assert len(np.unique(found.log.sessions)) == 1
    assert found.log.propensity == pytest.approx([0.5] * 4)


def test_an_idle_conversation_begins_anew(house: House) -> None:
    talk = asked("Hello.", "Go on.")
    house.add(decided(0, WEAK, {WEAK: 0.5, STRONG: 0.5}, session="s"))
    house.add(decided(1, WEAK, {WEAK: 1.0, STRONG: 0.0}, talk, session="s", created_s=1_010_000.0))
    house.settle()
    found = roll_out(read_decisions(house.url).rows, house.setting("best"))
    assert found.log.propensity == pytest.approx([0.5, 1.0])


# ── the real line ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_log_of_the_real_gateway_replays_to_what_happened(
    config: Callable[..., Path], fake: FakeUpstream
) -> None:
    """Requests over sockets, feedback over HTTP, then the same policy on the log, and another."""
    from suffice.config import load_settings

    path = config('[routes.drawn]\nmodels = ["p/weak", "p/strong"]\npolicy = "random"\n')
    with (
        BackgroundServer(path) as server,
        openai.OpenAI(base_url=server.base_url + "/v1", api_key="x") as client,
    ):
        for i in range(260):
            raw = client.chat.completions.with_raw_response.create(
                model="drawn", messages=[{"role": "user", "content": f"Question number {i}"}]
            )
            model = raw.headers["x-suffice-model"]
            client.post(
                "/feedback",
                body={
                    "decision_id": raw.headers["x-suffice-decision-id"],
                    "score": 1.0 if model == STRONG else float(i % 2),
                },
                cast_to=object,
            )
    settings = load_settings(path, {})

    def found(policy: str) -> replay.Replay:
        setting = replay.load_evaluation_policy(settings, policy, {})
        return replay.run(settings.store.url, setting, policy, route="drawn")

    same = found("random")
    assert (same.decisions, same.labelled, same.skipped) == (260, 260, 0)
    for e in (same.estimates["ips"], same.estimates["snips"]):
        assert e["value"] == pytest.approx(same.happened["score"], abs=1e-9)
    # It knows how lucky the draws were (0.016 a deviation), so of a hundred runs a few tell apart
    # what the policy is worth from what it happened to earn.
    doubly = same.estimates["doubly_robust"]["value"]
    assert doubly == pytest.approx(same.happened["score"], abs=0.1)
    low, high = same.cost.difference_low, same.cost.difference_high
    assert low <= 0.0 <= high, "predicted tokens, scaled by what was paid, give what was paid"
    best = found("best")
    assert best.verdict.word == "better"
    assert best.estimates["snips"]["value"] == pytest.approx(1.0)
    assert best.cost.difference_low > 0


# ── what cannot be read ──────────────────────────────────────────────────────────────────────────


def test_corrupt_rows_are_named_skipped_and_counted(house: House) -> None:
    explored(house, 300)
    house.settle()
    before = house.replay("best")
    spoiled = {
        "detail": (0, "{broken", "JSON"),
        "features": (1, b"\0" * 7, "feature vector"),
        "features_schema": (2, "ask-0", "ask-0"),
        "chosen": (3, "p/other", "p/other"),
        "cost_usd": (4, -1.0, "cost"),
    }
    for column, (n, value, _) in spoiled.items():
        house.sql(f"UPDATE decisions SET {column} = ? WHERE id = ?", value, f"dec_{n:011x}")
    house.sql(  # no UTF-8
        "UPDATE decisions SET detail = CAST(x'7b22ff' AS TEXT) WHERE id = ?", "dec_00000000005"
    )
    house.sql(
        "UPDATE decisions SET detail = replace(detail, '\"propensity\":0.5', '\"propensity\":0.9')"
        " WHERE id = ?",
        "dec_00000000006",
    )
    house.sql("UPDATE feedback SET score = 7 WHERE decision_id = ?", "dec_00000000007")
    found = house.replay("best")
    assert found.skipped == 8
    named = dict(found.skipped_rows)
    for n, _, said in spoiled.values():
        assert said in named[f"dec_{n:011x}"]
    assert "do not sum to 1" in named["dec_00000000006"]
    assert "score 7" in named["dec_00000000007"]
    assert set(named) == {f"dec_{n:011x}" for n in range(8)}
    assert found.decisions == before.decisions - 7
    assert found.labelled == before.labelled - 8


def test_what_no_policy_decided_is_left_out(house: House) -> None:
    explored(house, 300)
    house.add(decided(900, STRONG, {STRONG: 1.0}, basis="bypass"), 0.0)
    house.add(decided(901, STRONG, {WEAK: 1.0, STRONG: 0.0}), 0.0)
    found = house.replay("best")
    assert found.decisions == 300
    assert sorted(found.left_out.values()) == [1, 1]
    assert found.skipped == 0


def test_what_the_policy_cannot_be_asked_is_left_out(house: House) -> None:
    """A trained policy needs the ask's embedding, which earlier versions did not record."""
    explored(house, 250)
    house.settle()
    setting = house.setting("best")
    best: Any = setting.policies["auto"]

    class Picky:
        name, version = "picky", "picky-1"

        def decide(self, x: Features, *args: Any, id: str = "", **more: Any) -> Decision:
            if int(id[4:], 16) % 5 == 0:
                raise ValueError("features: hold neither token ids nor an embedding")
            decision: Decision = best.decide(x, *args, id=id, **more)
            return decision

    picky = replay.EvaluationPolicySetup(
        {"auto": Picky()}, setting.objectives, setting.catalog, {}, Picky
    )
    found = replay.run(house.url, picky, "picky")
    assert found.decisions == 200
    ((why, n),) = found.left_out.items()
    assert n == 50 and "embedding" in why


def test_nothing_to_replay_is_said(house: House) -> None:
    with pytest.raises(JobError, match="no decision to replay"):
        house.replay("best")
    house.add(decided(0, STRONG, {STRONG: 1.0}, basis="bypass"))
    with pytest.raises(JobError, match="asked for by name"):
        house.replay("best")


def test_reading_makes_no_store(house: House, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing has been recorded"):
        replay.run(f"sqlite:///{tmp_path}/none.db", house.setting("best"), "best")
    assert not (tmp_path / "none.db").exists()


def test_routes_times_and_sources_are_kept_apart(house: House) -> None:
    for i in range(40):
        house.add(decided(i, WEAK, {WEAK: 0.5, STRONG: 0.5}, route="auto"), 1.0)
    for i in range(40, 50):
        house.add(decided(i, WEAK, {WEAK: 0.5, STRONG: 0.5}, route="gone"), 0.0, source="judge")
    assert house.replay("best").decisions == 50
    assert house.replay("best", route="auto").decisions == 40
    assert house.replay("best", since_s=1_000_045.0).decisions == 5
    judged = house.replay("best", sources=frozenset({"judge"}))
    assert (judged.labelled, judged.sources) == (10, {"judge": 10})
    assert judged.happened["score"] == 0.0


def test_several_sources_of_one_decision_make_one_score(house: House) -> None:
    house.add(decided(0, WEAK, {WEAK: 0.5, STRONG: 0.5}), 1.0)
    house.settle()
    house.store.feedback.add(
        Feedback(decision_id="dec_00000000000", score=0.0, source="judge", weight=3.0)
    )
    (row,) = read_decisions(house.url).rows
    assert row.score == pytest.approx(0.25)


def test_models_that_came_and_went(house: House) -> None:
    for i in range(200):
        names = ("p/gone", WEAK)
        house.add(decided(i, names[i % 2], dict.fromkeys(names, 0.5), session=f"s{i}"), 1.0)
    found = house.replay("cheapest")
    assert any("p/gone" in w and "catalog" in w for w in found.warnings)
    assert any(STRONG in w and "Never a candidate" in w for w in found.warnings)
    assert found.shares[WEAK]["policy"] == 1.0
    assert found.cost.value is not None


def test_a_policy_that_does_not_exist(house: House) -> None:
    with pytest.raises(UsageError, match="cheapest"):
        house.setting("cheapst")
    with pytest.raises(ConfigError):
        from suffice.config import parse_settings

        replay.load_evaluation_policy(parse_settings({"routes": {}}), "best", {})


def test_the_objective_may_be_another(house: House) -> None:
    explored(house, 300)
    dear = house.replay("default", objective="best")
    cheap = house.replay("default", objective="cheapest")
    assert (dear.shares[STRONG]["policy"], cheap.shares[STRONG]["policy"]) == (1.0, 0.0)


# ── the verdict ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("low", "high", "more", "word"),
    [
        (0.01, 0.2, {}, "better"),
        (-0.2, -0.01, {}, "worse"),
        (-0.1, 0.1, {}, "cannot tell"),
        (0.01, 0.2, {"ess": 99.0}, "cannot judge"),
        (0.01, 0.2, {"support": 0.94}, "cannot judge"),
        (0.01, 0.2, {"sessions": 19}, "cannot judge"),
        (float("nan"), float("nan"), {}, "cannot judge"),
    ],
)
def test_verdicts(low: float, high: float, more: dict[str, Any], word: str) -> None:
    middle = (low + high) / 2
    e = Estimate(0.5, 0.5 + low, 0.5 + high, middle, low, high)
    evidence = Evidence(**{"ess": 100.0, "support": 0.95, "sessions": 20, **more})
    found = decide_verdict(e, evidence, explored=True)
    assert found.word == word
    if low == low:
        assert found.lower_bound == low


def test_the_reward_model_never_sees_what_it_predicts(house: House) -> None:
    """Scores that are pure noise: fitted on their own rows it would follow them."""
    explored(house, 400, seed=3)
    house.settle()
    found = roll_out(read_decisions(house.url).rows, house.setting("best"))
    signals = np.random.default_rng(0).normal(size=(400, 200))
    q = cross_fit_q_hat(found.log, signals, None)
    at = np.arange(400)
    told = q[at, found.log.action]
    for a in (0, 1):
        rows = found.log.action == a
        assert abs(np.corrcoef(told[rows], found.log.reward[rows])[0, 1]) < 0.2
    assert ((q >= 0) & (q <= 1)).all()
