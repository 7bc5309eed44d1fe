"""A conversation keeps its model while the budget allows."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from tests.support.budgets import MONDAY, Clock, with_other_worker

from suffice.dialects.openai_request import parse_chat
from suffice.types import Decision


def talk(turns: int, text: str = "And then?") -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me of a river."}]
    for _ in range(turns):
        messages += [
            {"role": "assistant", "content": "It runs."},
            {"role": "user", "content": text},
        ]
    return {"messages": messages, "suffice": {"session": "s"}, "max_tokens": 500}


def test_a_conversation_keeps_its_model_unless_it_is_unaffordable(tmp_path: Path) -> None:
    clock = Clock(MONDAY + 3600.0)
    with with_other_worker(tmp_path, {"usd_per_day": 5.0}, clock=clock) as (r, row):

        def say(**fields: Any) -> Decision:
            body = {"model": "auto", **fields}
            done = asyncio.run(r.answer(parse_chat(msgspec.json.encode(body), {})))
            clock.now_s += 60.0
            return done.decision

        for n in range(30):
            say(messages=[{"role": "user", "content": f"Say {n}."}], max_tokens=500)
        first = say(**talk(0))
        assert first.model == "p/strong", "there is plenty"
        with row:
            row.spent = 4_999_000_000  # another worker has
        late = say(**talk(2))
        assert late.model == "p/weak", "its maximum cost does not fit any more"


def test_a_conversation_stays_within_the_pace(tmp_path: Path) -> None:
    clock = Clock(MONDAY + 43_200.0)
    with with_other_worker(tmp_path, {"usd_per_day": 5.0}, clock=clock) as (r, row):

        def say(**fields: Any) -> Decision:
            query = parse_chat(msgspec.json.encode({"model": "auto", **fields}), {})
            clock.now_s += 60.0
            return asyncio.run(r.answer(query)).decision

        for n in range(30):
            say(messages=[{"role": "user", "content": f"Say {n}."}], max_tokens=500)
        assert say(**talk(0)).model == "p/strong"
        # The day was joined at noon: half of its budget may be spent, and another worker did.
        with row:
            row.spent = 2_350_000_000
        fresh = say(messages=[{"role": "user", "content": "Say a word."}], max_tokens=500)
        assert fresh.model == "p/weak", "the pace prefers the cheaper model"
        sticky = say(**talk(1, "ok"))
        assert sticky.model == "p/strong"
        assert "stays on its model" in sticky.reason
        assert sticky.propensity == 1.0
        with row:
            row.spent = 2_500_000_000  # only the cheapest is within the pace
        assert say(**talk(2, "ok")).model == "p/weak"
