"""Decisions that were explored, and those that must not be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.feedback import router, teach

from suffice import Router
from suffice.learning.exploration import ThompsonSampler


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Router]:
    r = router(tmp_path)
    yield r
    r.close()


def test_exploring_is_narrow_and_logs_its_probability(made: Router) -> None:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 60)
    learning.step(1010.0)
    explored = [d for d in (made.route(f"hello {i}") for i in range(4000)) if d.explored]
    assert 1 <= len(explored) <= 4000 * 0.03
    for d in explored:
        assert 0.0 < d.propensity < 0.03
        assert "explored" in d.reason
        assert sum(p.propensity for p in d.predictions) == pytest.approx(1.0)
    talk = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "tell me more about the weather in Norway"},
    ]
    assert not any(made.route(talk).explored for _ in range(500))


def test_requests_of_a_client_and_running_conversations_are_not_explored(made: Router) -> None:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 60)
    learning.step(1010.0)
    assert made.route("hello").propensity < 1.0
    called = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    asked = {"role": "user", "content": "hello"}
    loop = [
        asked,
        {"role": "assistant", "content": None, "tool_calls": called},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ]
    sure = [
        made.route(loop),
        made.route("hello", models=["p/writer", "p/coder"]),
        made.route("hello", objective="cheapest"),
        made.route("hello", route="p/coder"),
        made.decide(_asked({"provider": {"order": ["p"]}})),
    ]
    for d in sure:
        assert d.propensity == 1.0
        assert sorted(p.propensity for p in d.predictions)[-1] == 1.0
    assert made.decide(_asked({})).propensity < 1.0


def _asked(more: dict[str, Any]) -> Any:
    from suffice.dialects.openai_request import parse_chat

    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], **more}
    return parse_chat(msgspec.json.encode(body), {})


def test_a_route_sets_how_much_is_explored(tmp_path: Path) -> None:
    explored = {}
    for share in (0.004, 0.03):
        folder = tmp_path / str(share)
        folder.mkdir()
        r = router(folder, explore_share=share)
        learning = r.start_learning(thread=False)
        learning.step(1000.0)
        teach(r, 60)
        learning.step(1010.0)
        explored[share] = 1.0 - max(p.propensity for p in r.route("hello").predictions)
        r.close()
        again = router(folder, explore_share=0.01)  # what was saved does not outlive the setting
        learning = again.start_learning(thread=False)
        learning.step(2000.0)
        assert 1.0 - max(p.propensity for p in again.route("hello").predictions) <= 0.01
        again.close()
    assert 0.0 < explored[0.004] <= 0.004 < explored[0.03] <= 0.03


def test_exploring_is_paid_for_by_what_the_route_spends(made: Router) -> None:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    route = made.resolve("auto")
    plain = made.route("hello")
    usd = plain.predictions[0].cost_usd
    assert usd is not None
    route.mean_cost_usd = usd / 1000.0
    poor = made.route("hello")
    assert 0.0 < 1.0 - poor.propensity < 0.1 * (1.0 - plain.propensity)
    for _ in range(2000):
        route.update_mean_cost(made.route("hi"))
    assert route.mean_cost_usd == pytest.approx(usd, rel=0.1)


def test_an_explored_decision_can_be_reproduced_from_the_saved_state(made: Router) -> None:
    learning = made.start_learning(thread=False)
    learning.step(1000.0)
    teach(made, 30)  # too few for a refit
    learning.step(1010.0)
    saved = learning.learners["auto"].sampler.state()
    decided = [made.route(f"hello {i}") for i in range(300)]
    belief = ThompsonSampler.from_state(saved).posterior()
    for d in decided:
        predictions = d.predictions
        names = [p.model for p in predictions]
        chosen = max(range(len(predictions)), key=lambda i: predictions[i].propensity)
        again = belief.sample(
            names,
            [p.quality or 0.0 for p in predictions],
            [p.cost_usd or 0.0 for p in predictions],
            chosen,
            seed=d.seed,
        )
        assert again.propensities == tuple(p.propensity for p in predictions)
        assert names[again.action] == d.model
