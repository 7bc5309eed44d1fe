"""Features and decisions on the demo's queries equal the recorded ones: a refactoring changes none.

After an intended change: python -m tests.policies.test_recorded_decisions
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from tests.support.trained_artifacts import KINDS, artifact

from suffice import features, policies
from suffice.pool import Candidates, Pool
from suffice.types import Candidate, Message, Model, Policy, Price

RECORD = Path(__file__).with_name("recorded_decisions.json")
OBJECTIVES: tuple[Any, ...] = (
    {"keep_quality": 0.9},
    {"worth_usd": 0.01},
    {"max_latency_s": 3.0},
    "balanced",
)
NAMES = ("p/small", "p/middle", "p/large")
MODELS = tuple(
    Model(name, "p", name[2:], price=Price(usd, 4 * usd, usd / 10), quality=quality)
    for name, usd, quality in zip(NAMES, (0.1, 0.8, 4.0), (0.6, 0.75, 0.95), strict=True)
)
SPEEDS = ((0.2, 120.0), (0.4, 90.0), (0.9, 60.0))


def conversations() -> list[tuple[Message, ...]]:
    """The messages of the demo's queries."""
    lines = files("suffice.cli").joinpath("demo_queries.jsonl").read_text("utf-8").splitlines()
    return [
        tuple(Message(m["role"], m.get("content") or "") for m in json.loads(line)["messages"])
        for line in lines
    ]


def candidates() -> tuple[Candidate, ...]:
    return tuple(Candidate(m, *speed) for m, speed in zip(MODELS, SPEEDS, strict=True))


def policies_under_test() -> dict[str, Policy]:
    return {
        "default": policies.make("default", features.SIGNAL_NAMES),
        **{kind: policies.TrainedPolicy(artifact(kind, NAMES)) for kind in KINDS},
    }


def record() -> dict[str, Any]:
    """What the code does now.

    features: per conversation the sums of its signals and of its token ids. decisions: per policy
    and objective, per conversation, the order of the plan and the quality and cost of its first model.
    """
    queries = [features.extract(messages) for messages in conversations()]
    decisions: dict[str, list[list[float]]] = {}
    for name, policy in policies_under_test().items():
        for objective in OBJECTIVES if name in ("default", "linear") else OBJECTIVES[:1]:
            rows = []
            for seed, x in enumerate(queries):
                o = policies.parse_objective(objective)
                d = policy.decide(x, candidates(), o, id="d", seed=seed)
                chosen = next(p for p in d.predictions if p.model == d.model)
                assert chosen.quality is not None
                assert chosen.cost_usd is not None
                order = "".join(str(NAMES.index(s.model)) for s in d.plan)
                cost = round(chosen.cost_usd * 1e6, 2)
                rows.append([int(order), round(chosen.quality, 3), cost])
            decisions[f"{name} {json.dumps(objective)}"] = rows
    return {
        "features": [
            [round(float(x.signals.sum()), 3), int(x.token_ids.sum()), x.input_tokens]  # type: ignore[union-attr]
            for x in queries
        ],
        "decisions": decisions,
    }


def test_features_and_decisions_equal_the_recorded_ones() -> None:
    recorded, now = json.loads(RECORD.read_text()), record()
    assert now["decisions"].keys() == recorded["decisions"].keys()
    for x, expected in zip(now["features"], recorded["features"], strict=True):
        assert x == pytest.approx(expected, abs=2e-3)
    for name, rows in now["decisions"].items():
        for row, expected in zip(rows, recorded["decisions"][name], strict=True):
            assert row == pytest.approx(expected, rel=1e-3, abs=2e-3), name


def test_a_known_pool_decides_like_its_plain_candidates() -> None:
    pool = Candidates.of(Pool(MODELS), candidates())
    x = features.extract_text("Explain how a B-tree splits its pages.")
    for policy in policies_under_test().values():
        for objective in OBJECTIVES:
            o = policies.parse_objective(objective)
            plain = policy.decide(x, candidates(), o, id="d", seed=1)
            assert policy.decide(x, pool, o, id="d", seed=1) == plain


if __name__ == "__main__":
    text = json.dumps(record(), separators=(",", ":")).replace('],"', '],\n"')
    RECORD.write_text(text + "\n")
