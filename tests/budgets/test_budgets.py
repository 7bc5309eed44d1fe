"""Budgets: a day is spent as meant, no call is made that it does not cover, each call is settled
once, and all of it survives a restart, a second worker and a kill."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice import Router
from suffice.budgets import Ledger, RequestSize, cost_bound, shared_ledger
from suffice.config import parse_settings
from suffice.dialects.openai_request import parse_chat
from suffice.errors import (
    AllAttemptsFailedError,
    BadRequestError,
    BudgetExceededError,
    ConfigError,
    NoEligibleModelError,
    UpstreamError,
)
from suffice.types import Attempt, Decision, Model, Price, Query, RequestRecord, Usage

DAY_S = 86400.0
MONDAY = 20_000 * DAY_S  # a midnight
WORDS = "river stone copper lantern meadow thunder velvet orchard puzzle harbour".split()

Answers = Callable[[str, dict[str, Any]], Any]


class Reply:
    """A whole reply as the transport gives it."""

    status = 200

    def __init__(self, prompt: int, output: int | None) -> None:
        message = {"role": "assistant", "content": "yes"}
        body: dict[str, Any] = {"choices": [{"index": 0, "message": message}]}
        if output is not None:
            body["usage"] = {"prompt_tokens": prompt, "completion_tokens": output}
        self._body = msgspec.json.encode(body)

    def header(self, name: str) -> str | None:
        return "application/json" if name == "content-type" else None

    async def read(self, limit: int | None = None) -> bytes:
        return self._body

    async def aclose(self) -> None: ...


class Upstream:
    """A transport that answers as it is told; `sent` holds the bodies."""

    def __init__(self, answer: Answers) -> None:
        self.answer = answer
        self.sent: list[dict[str, Any]] = []

    def prepare(self, connect_s: float) -> None: ...

    async def send(self, url: str, headers: Any, body: bytes, **_: Any) -> Any:
        told = msgspec.json.decode(body)
        self.sent.append(told)
        found = self.answer(told["model"], told)
        if asyncio.isfuture(found):
            found = await found
        if isinstance(found, BaseException):
            raise found
        return found

    async def aclose(self) -> None: ...


class Clock:
    def __init__(self, now_s: float = MONDAY) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def settings(tmp_path: Path, objective: Any, **route: Any) -> dict[str, Any]:
    return {
        "store": {"url": f"sqlite:///{(tmp_path / 's.db').as_posix()}"},
        "providers": {"p": {"dialect": "openai", "base_url": "http://127.0.0.1:9/v1"}},
        "models": {
            "p/weak": {"input_usd_per_mtok": 0.2, "output_usd_per_mtok": 1.0, "quality": 0.6},
            "p/mid": {"input_usd_per_mtok": 0.8, "output_usd_per_mtok": 4.0, "quality": 0.8},
            "p/strong": {"input_usd_per_mtok": 2.5, "output_usd_per_mtok": 10.0, "quality": 0.95},
            "p/free": {"input_usd_per_mtok": 0.0, "output_usd_per_mtok": 0.0, "quality": 0.4},
            "p/odd": {"quality": 0.99},
        },
        "routes": {
            "auto": {
                "models": ["p/weak", "p/mid", "p/strong"],
                "objective": objective,
                "learning": "off",
                "retries": {"backoff_base_s": 0.0},
                **route,
            },
        },
    }


@contextlib.contextmanager
def routed(
    tmp_path: Path,
    objective: Any,
    answer: Answers | None = None,
    *,
    clock: Clock | None = None,
    env: dict[str, str] | None = None,
    **route: Any,
) -> Iterator[Router]:
    made = Router(
        parse_settings(settings(tmp_path, objective, **route)),
        env=env or {},
        seed=1,
        clock=clock or Clock(MONDAY + 3600.0),
        transport=Upstream(answer or (lambda m, b: Reply(50, 40))),
    )
    try:
        yield made
    finally:
        asyncio.run(made.aclose())


def asking(text: str = "What is a river?", **fields: Any) -> Query:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
    return parse_chat(msgspec.json.encode(body), {})


def spent(router: Router) -> tuple[float, float]:
    told = router.ready()["budgets"]["auto"]
    return told["spent_usd"], told["reserved_usd"]


def failing(kind: Any) -> UpstreamError:
    return UpstreamError(f"simulated {kind}", kind=kind)


# ── the worst case ───────────────────────────────────────────────────────────────────────────────

PRICES = st.floats(0.0, 100.0)


@given(
    PRICES,
    PRICES,
    st.none() | st.floats(0.0, 200.0),
    st.none() | st.integers(1, 10**6),
    st.none() | st.integers(1, 10**6),
    st.none() | st.integers(1, 10**6),
    st.integers(1, 4),
    st.floats(1e-4, 1e3),
    st.floats(0.0, 1e3),
    st.text(max_size=200),
)
def test_no_usage_within_its_limits_costs_more_than_the_worst(
    read: float,
    write: float,
    cache: float | None,
    asked: int | None,
    longest: int | None,
    window: int | None,
    n: int,
    day: float,
    left: float,
    text: str,
) -> None:
    price = Price(read, write, None, cache)
    model = Model("p/m", "p", "m", price, context_tokens=window, max_output_tokens=longest)
    limit = {} if asked is None else {"max_tokens": asked}
    from suffice import features

    query = asking(text, n=n, **limit)
    size = RequestSize.of(query, features.extract(query.messages))
    found = cost_bound(model, size, usd_per_day=day, remaining_usd=left)
    given = (asked, longest, window, found.output_limit)
    most = min(t for t in given if t is not None)
    tokens = len(text.encode("utf-8", "surrogatepass")) + 20
    usd = tokens * max(read, cache or 0.0) + n * most * write
    assert usd / 1e6 <= found.max_cost_usd * (1 + 1e-9)
    assert asked is None or found.output_limit is None, "the client's own limit is not touched"


def test_an_answer_without_any_limit_gets_one_where_money_is_limited(tmp_path: Path) -> None:
    with routed(tmp_path, {"usd_per_day": 20.0}) as r:
        asyncio.run(r.answer(asking()))
        asyncio.run(r.answer(asking(max_tokens=77)))
        first, second = r.transport.sent
    assert first["max_tokens"] == 16_384
    assert second["max_tokens"] == 77
    with routed(tmp_path, "best") as r:
        asyncio.run(r.answer(asking()))
        assert "max_tokens" not in r.transport.sent[0]


def test_towards_the_end_of_the_money_answers_are_bounded_sooner_than_refused(
    tmp_path: Path,
) -> None:
    with routed(tmp_path, {"usd_per_day": 1.0}) as r:
        asyncio.run(r.answer(asking()))
        budget = r.budgets.of("auto")
        assert budget is not None
        for left, tokens in ((500_000_000, 16_384), (10_000_000, 2400), (1_200_000, 1024)):
            with budget._row as row:
                row.spent = 1_000_000_000 - left
            assert asyncio.run(r.answer(asking())).model == "p/weak"
            assert r.transport.sent[-1]["max_tokens"] == pytest.approx(tokens, rel=0.05)


def test_openai_is_sent_the_name_that_its_models_know(tmp_path: Path) -> None:
    told = settings(tmp_path, {"usd_per_day": 20.0})
    told["routes"]["auto"]["models"] = ["openai/gpt-5-nano"]
    r = Router(
        parse_settings(told),
        env={"OPENAI_API_KEY": "k"},
        clock=Clock(),
        transport=Upstream(lambda m, b: Reply(50, 40)),
    )
    asyncio.run(r.answer(asking()))
    assert r.transport.sent[0]["max_completion_tokens"] == 16_384
    assert "max_tokens" not in r.transport.sent[0]
    asyncio.run(r.aclose())


# ── a limit for each query ───────────────────────────────────────────────────────────────────────


def test_a_model_whose_worst_cost_is_above_the_limit_is_never_called(tmp_path: Path) -> None:
    with routed(tmp_path, {"max_usd_per_query": 0.005}) as r:
        d = r.decide(asking(max_tokens=1000))
        assert d.model == "p/mid"
        assert "p/strong" not in [s.model for s in d.plan]
        assert "above $0.005" in next(e.reason for e in d.excluded if e.model == "p/strong")
        assert r.decide(asking(max_tokens=300)).model == "p/strong"
        with pytest.raises(NoEligibleModelError, match="money limits") as caught:
            r.decide(asking(max_tokens=50_000))
        assert caught.value.status == 400


def test_without_a_limit_of_the_client_the_call_is_sent_with_what_the_money_pays(
    tmp_path: Path,
) -> None:
    with routed(tmp_path, {"max_usd_per_query": 0.008}) as r:
        asyncio.run(r.answer(asking("Prove that there are infinitely many primes.")))
        sent = r.transport.sent[0]
    assert sent["model"] == "mid", "a long answer of the strong one would cost more"
    assert 1900 < sent["max_tokens"] <= 2000
    assert 4.0 * sent["max_tokens"] / 1e6 < 0.008


def test_a_client_may_set_a_limit_and_cannot_lift_the_routes(tmp_path: Path) -> None:
    with routed(tmp_path, {"max_usd_per_query": 0.005}) as r:
        best = asking(max_tokens=1000, suffice={"objective": "best"})
        assert r.decide(best).model == "p/mid"
        less = asking(max_tokens=1000, suffice={"objective": {"max_usd_per_query": 0.002}})
        assert r.decide(less).model == "p/weak"
        more = asking(max_tokens=1000, suffice={"objective": {"max_usd_per_query": 1.0}})
        assert r.decide(more).model == "p/mid"
    with routed(tmp_path, "best") as r:
        assert r.decide(asking(max_tokens=1000)).model == "p/strong"
        assert r.decide(less).model == "p/weak"


def test_failover_and_fallback_keep_the_limit(tmp_path: Path) -> None:
    def answer(model: str, _: Any) -> Any:
        return failing("server") if model in ("weak", "mid") else Reply(50, 40)

    with routed(
        tmp_path, {"max_usd_per_query": 0.005}, answer, fallbacks=["p/strong", "p/odd", "p/free"]
    ) as r:
        done = asyncio.run(r.answer(asking(max_tokens=1000)))
        assert done.model == "p/free"
        assert {e.model for e in done.decision.excluded} == {"p/strong", "p/odd"}


# ── the day ──────────────────────────────────────────────────────────────────────────────────────


def test_a_budget_that_is_none_is_said_at_the_start(tmp_path: Path) -> None:
    for usd in (0.0, 1e8):
        with pytest.raises(ConfigError, match=r"routes\.auto\.objective\.usd_per_day"):
            Router(parse_settings(settings(tmp_path, {"usd_per_day": usd})), env={})


def test_a_request_cannot_bring_a_budget(tmp_path: Path) -> None:
    with (
        routed(tmp_path, "best") as r,
        pytest.raises(BadRequestError, match="usd_per_day") as caught,
    ):
        r.decide(asking(suffice={"objective": {"usd_per_day": 5}}))
    assert caught.value.param == "suffice.objective"


def test_a_decision_says_what_is_left_and_carries_the_pacers_probabilities(
    tmp_path: Path,
) -> None:
    with routed(tmp_path, {"usd_per_day": 20.0}) as r:
        d = r.decide(asking())
        assert "$20.00 of today's $20.00 left" in d.reason
        assert sum(p.propensity for p in d.predictions) == pytest.approx(1.0)
        assert d.propensity == next(p.propensity for p in d.predictions if p.model == d.model)
        assert "no pacing" not in d.reason


def test_explaining_changes_nothing(tmp_path: Path) -> None:
    with routed(tmp_path, {"usd_per_day": 20.0}) as r:
        budget = r.budgets.of("auto")
        assert budget is not None
        for _ in range(5):
            r.decide(asking())
        assert budget.requests_today == 0
        assert not (tmp_path / "s.db").exists(), "nor touches a disk"
        asyncio.run(r.answer(asking()))
        assert budget.requests_today == 1


def test_an_unknown_price_is_never_called_under_a_budget(tmp_path: Path) -> None:
    with routed(tmp_path, {"usd_per_day": 20.0}, models=["p/odd", "p/weak"]) as r:
        done = asyncio.run(r.answer(asking()))
        assert done.model == "p/weak"
        assert [s.model for s in done.decision.plan] == ["p/weak"]
        assert "price is unknown" in done.decision.excluded[0].reason
    with (
        routed(tmp_path, {"usd_per_day": 20.0}, models=["p/odd"]) as r,
        pytest.raises(NoEligibleModelError, match="price is unknown"),
    ):
        asyncio.run(r.answer(asking()))


def test_a_wish_of_the_client_is_followed_as_far_as_the_money_goes(tmp_path: Path) -> None:
    best = {"objective": "best"}
    with routed(tmp_path, {"usd_per_day": 0.05}, lambda m, b: Reply(50, b["max_tokens"])) as r:
        seen = [
            asyncio.run(r.answer(asking(max_tokens=1000, suffice=best))).model for _ in range(6)
        ]
        assert seen[:4] == ["p/strong"] * 4
        assert "p/strong" not in seen[5:]
        assert spent(r)[0] <= 0.05
        r.route("to hear of the last")
        asyncio.run(r.answer(asking(max_tokens=1000)))
        budget = r.budgets.of("auto")
        assert budget is not None
        assert budget.requests_today == 7, "they count in the forecast as well"


def test_a_spent_budget_refuses_until_midnight_and_free_models_go_on(tmp_path: Path) -> None:
    clock = Clock(MONDAY + 82_800.0)
    dear = lambda m, b: Reply(50, b["max_tokens"])  # noqa: E731
    with routed(tmp_path, {"usd_per_day": 0.01}, dear, clock=clock) as r:
        done = 0
        with pytest.raises(BudgetExceededError) as caught:
            for _ in range(50):
                asyncio.run(r.answer(asking(max_tokens=1000)))
                done += 1
        assert done >= 3
        assert caught.value.retry_after_s == pytest.approx(3600.0)
        assert caught.value.final
        assert caught.value.code == "budget_exceeded"
        assert spent(r) == (pytest.approx(0.01, rel=0.2), 0.0)
        with pytest.raises(BudgetExceededError):
            r.decide(asking(max_tokens=1000))
        clock.now_s = MONDAY + DAY_S
        assert asyncio.run(r.answer(asking(max_tokens=1000))).status == 200
    for place in ({"fallbacks": ["p/free"]}, {"models": ["p/weak", "p/free"]}):
        free = tmp_path / next(iter(place))
        free.mkdir()
        with routed(free, {"usd_per_day": 0.003}, dear, clock=Clock(MONDAY + 1.0), **place) as r:
            answers = [asyncio.run(r.answer(asking(max_tokens=1000))) for _ in range(12)]
            assert answers[-1].model == "p/free"
            assert answers[-1].decision.predictions
            assert spent(r)[0] <= 0.003


def test_money_that_is_only_reserved_is_worth_a_retry_soon(tmp_path: Path) -> None:
    async def main(r: Router, gate: asyncio.Future[Any]) -> None:
        first = asyncio.ensure_future(r.answer(asking(max_tokens=1000)))
        await asyncio.sleep(0)
        assert spent(r)[1] > 0.0
        with pytest.raises(BudgetExceededError, match="in flight") as caught:
            await r.answer(asking(max_tokens=9000))
        assert not caught.value.final
        assert caught.value.retry_after_s == 5.0
        gate.set_result(Reply(50, 40))
        await first
        assert (await r.answer(asking(max_tokens=9000))).status == 200

    async def whole() -> None:
        gate: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with contextlib.ExitStack() as stack:
            r = stack.enter_context(
                _open(tmp_path, {"usd_per_day": 0.0097}, lambda m, b: gate, models=["p/weak"])
            )
            await main(r, gate)

    asyncio.run(whole())


@contextlib.contextmanager
def _open(
    tmp_path: Path,
    objective: Any,
    answer: Answers,
    *,
    clock: Clock | None = None,
    env: dict[str, str] | None = None,
    **route: Any,
) -> Iterator[Router]:
    """`routed` for use inside a running loop."""
    made = Router(
        parse_settings(settings(tmp_path, objective, **route)),
        env=env or {},
        seed=1,
        clock=clock or Clock(),
        transport=Upstream(answer),
    )
    try:
        yield made
    finally:
        made.close()


# ── every attempt is reserved, and settled once ──────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "billed"),
    [
        ("connect", False),
        ("timeout_connect", False),
        ("rate_limit", False),
        ("auth", False),
        ("not_found", False),
        ("server", True),
        ("overloaded", True),
        ("timeout_total", True),
        ("malformed", True),
        ("cut", True),
    ],
)
def test_a_failed_attempt_counts_in_full_unless_it_certainly_was_not_billed(
    tmp_path: Path, kind: str, billed: bool
) -> None:
    def answer(model: str, _: Any) -> Any:
        return failing(kind) if model == "weak" else Reply(50, 40)

    with routed(
        tmp_path,
        {"usd_per_day": 20.0},
        answer,
        models=["p/weak", "p/mid"],
        retries={"per_model": 0},
    ) as r:
        weak = {"objective": "cheapest"}
        done = asyncio.run(r.answer(asking(max_tokens=1000, suffice=weak)))
        assert done.model == "p/mid"
        usd, held = spent(r)
    mid = (50 * 0.8 + 40 * 4.0) / 1e6
    assert held == 0.0
    if billed:
        assert usd >= mid + 1000 * 1.0 / 1e6
    else:
        assert usd == pytest.approx(mid)


def test_a_retry_and_a_failover_are_not_made_where_the_money_is_gone(tmp_path: Path) -> None:
    # The first attempt may have been billed; the second would pass the ceiling.
    with routed(
        tmp_path, {"usd_per_day": 0.0015}, lambda m, b: failing("server"), models=["p/weak"]
    ) as r:
        with pytest.raises(AllAttemptsFailedError, match=r"Not called: p/weak: it may cost"):
            asyncio.run(r.answer(asking(max_tokens=1000)))
        assert len(r.transport.sent) == 1
        usd, held = spent(r)
    assert held == 0.0
    assert 0.001 <= usd <= 0.0015


def test_each_way_to_end_settles_once(tmp_path: Path) -> None:
    class Bug(Exception): ...

    ends: list[Any] = [Reply(50, 40), Reply(50, None), failing("auth"), Bug("ours"), None]

    async def main(r: Router) -> None:
        nonlocal gate
        gate = asyncio.get_running_loop().create_future()
        for end in ends:
            now[0] = end
            before = spent(r)[0]
            if end is None:
                task = asyncio.ensure_future(r.answer(asking(max_tokens=1000)))
                await asyncio.sleep(0)
                assert spent(r)[1] > 0.0
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                with contextlib.suppress(Bug, AllAttemptsFailedError):
                    await r.answer(asking(max_tokens=1000))
            after, held = spent(r)
            assert held == 0.0, end
            cost[str(type(end).__name__) + str(len(cost))] = after - before

    now: list[Any] = [None]
    gate: Any = None
    cost: dict[str, float] = {}
    with _open(
        tmp_path,
        {"usd_per_day": 20.0},
        lambda m, b: gate if now[0] is None else now[0],
        models=["p/weak"],
    ) as r:
        asyncio.run(main(r))
    whole, unknown, unbilled, bug, left = cost.values()
    assert whole == pytest.approx((50 * 0.2 + 40 * 1.0) / 1e6)
    assert unknown >= 1000 / 1e6, "nobody counted its tokens: all that was reserved"
    assert unbilled == 0.0
    assert bug == pytest.approx(left), "what was recorded: about the prompt"
    assert 0.0 < left < whole


def test_a_stream_may_end_after_the_gateway_has_let_go_of_the_ledger(tmp_path: Path) -> None:
    async def main() -> None:
        gate: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with shared_ledger(2) as path:
            env = {"SUFFICE_LEDGER": path}
            with _open(tmp_path, {"usd_per_day": 1.0}, lambda m, b: gate, env=env) as r:
                task = asyncio.ensure_future(r.answer(asking(max_tokens=1000)))
                await asyncio.sleep(0)
                held = spent(r)[1]
                r.budgets.close()
                assert spent(r) == (held, 0.0), "it may be billed, and nobody will hear of it"
                gate.set_result(Reply(50, 40))
                assert (await task).status == 200
                assert spent(r) == (held, 0.0)

    asyncio.run(main())


# ── conversations ────────────────────────────────────────────────────────────────────────────────


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
    with routed(tmp_path, {"usd_per_day": 5.0}, clock=clock) as r:

        def say(**fields: Any) -> Decision:
            body = {"model": "auto", **fields}
            done = asyncio.run(r.answer(parse_chat(msgspec.json.encode(body), {})))
            clock.now_s += 60.0
            return done.decision

        for n in range(30):
            say(messages=[{"role": "user", "content": f"Say {n}."}], max_tokens=500)
        first = say(**talk(0))
        assert first.model == "p/strong", "there is plenty"
        budget = r.budgets.of("auto")
        assert budget is not None
        with budget._row as row:
            row.spent = 4_999_000_000  # another worker has
        late = say(**talk(2))
        assert late.model == "p/weak", "its worst cost does not fit any more"


def test_a_conversation_stays_within_the_pace(tmp_path: Path) -> None:
    clock = Clock(MONDAY + 43_200.0)
    with routed(tmp_path, {"usd_per_day": 5.0}, clock=clock) as r:
        budget = r.budgets.of("auto")
        assert budget is not None

        def say(**fields: Any) -> Decision:
            query = parse_chat(msgspec.json.encode({"model": "auto", **fields}), {})
            clock.now_s += 60.0
            return asyncio.run(r.answer(query)).decision

        for n in range(30):
            say(messages=[{"role": "user", "content": f"Say {n}."}], max_tokens=500)
        first = say(**talk(0))
        assert first.model == "p/strong"

        class Tight:
            """The pacer, having come to prefer the cheapest by quality - lambda * cost."""

            def __getattr__(self, name: str) -> Any:
                return getattr(was, name)

            def decide(self, *args: Any, **kwargs: Any) -> Any:
                return was.decide(*args, **kwargs)._replace(
                    action=0, propensities=(1.0, 0.0, 0.0), quality_per_usd=lam
                )

        was, lam = budget._pacer, 1000.0
        budget._pacer = Tight()  # type: ignore[assignment]
        stayed = say(**talk(1, "ok"))
        assert stayed.model == "p/strong"
        assert "stays on its model" in stayed.reason
        assert stayed.propensity == 1.0
        lam = math.inf  # only the cheapest is within the pace
        assert say(**talk(2, "ok")).model == "p/weak"


# ── after a restart ──────────────────────────────────────────────────────────────────────────────


def recorded(
    r: Router, at_s: float, usd: float | None, route: str = "auto", request: str = "r"
) -> None:
    d = msgspec.structs.replace(r.decide(asking()), route=route)
    r.store.append(
        RequestRecord(
            decision=d,
            attempts=(Attempt(d.model, 1, "ok", at_s, 0.1, usage=Usage(1, 1), cost_usd=usd),),
            created_s=at_s,
            request_id=request,
            status=200,
            model=d.model,
            cost_usd=usd,
        )
    )


def test_a_restart_knows_what_today_has_cost_and_how_the_traffic_ran(tmp_path: Path) -> None:
    noon = MONDAY + DAY_S / 2
    with routed(tmp_path, {"usd_per_day": 1.0}, clock=Clock(noon)) as r:
        for n in range(96):
            recorded(r, MONDAY - DAY_S + n * 900.0 + 1.0, 0.01)  # yesterday
        for n in range(48):
            recorded(r, MONDAY + n * 900.0 + 1.0, 0.01 if n else None)
        recorded(r, noon - 60.0, 100.0, route="another")
    with routed(tmp_path, {"usd_per_day": 1.0}, clock=Clock(noon)) as r:
        r.budgets.restore(r.store)
        assert spent(r)[0] == pytest.approx(0.48), "one of them at the mean of the others"
        budget = r.budgets.of("auto")
        assert budget is not None
        day = budget._pacer._forecast
        assert day.has_profile or day.observed_fraction < 1.0
        assert day.requests == pytest.approx(48, abs=1)
        assert day.remaining(noon).expected == pytest.approx(48, rel=0.15)
    with routed(tmp_path, {"usd_per_day": 0.2}, clock=Clock(noon)) as r:
        with pytest.raises(BudgetExceededError, match="midnight"):
            asyncio.run(r.answer(asking()))
        assert asyncio.run(r.answer(asking(model="p/weak"))).status == 200, "a bypass has no budget"


def test_a_restarted_day_goes_on_where_it_was(tmp_path: Path) -> None:
    """Not as a day that began at the restart, whose share of the budget is the afternoon's."""
    noon = MONDAY + DAY_S / 2
    with routed(tmp_path, {"usd_per_day": 1.0}, clock=Clock(noon)) as r:
        for n in range(96 + 48):
            recorded(r, MONDAY - DAY_S + n * 900.0 + 1.0, 0.01)
    with routed(tmp_path, {"usd_per_day": 1.0}, clock=Clock(noon)) as r:
        d = asyncio.run(r.answer(asking("What is a river?"))).decision
        assert d.model == "p/strong"
        assert "$0.52 of today's" in d.reason


def test_a_lowered_budget_keeps_no_free_model_out(tmp_path: Path) -> None:
    with routed(tmp_path, {"usd_per_day": 1.0}) as r:
        recorded(r, MONDAY + 10.0, 0.9)
    with routed(tmp_path, {"usd_per_day": 0.5}, models=["p/weak", "p/free"]) as r:
        assert asyncio.run(r.answer(asking())).model == "p/free"


# ── several workers ──────────────────────────────────────────────────────────────────────────────


def test_two_workers_see_what_each_has_reserved_and_spent(tmp_path: Path) -> None:
    with shared_ledger(2) as path:
        env = {"SUFFICE_LEDGER": path}
        dear = lambda m, b: Reply(50, b["max_tokens"])  # noqa: E731
        with (
            routed(tmp_path, {"usd_per_day": 0.01}, dear, env=env) as one,
            routed(tmp_path, {"usd_per_day": 0.01}, dear, env=env) as two,
        ):
            done = 0
            with contextlib.suppress(BudgetExceededError):
                for _ in range(20):
                    asyncio.run(one.answer(asking(max_tokens=1000)))
                    done += 1
            assert done
            assert spent(one) == spent(two)
            with pytest.raises(BudgetExceededError):
                asyncio.run(two.answer(asking(max_tokens=1000)))
            assert spent(two)[0] <= 0.01
    assert not os.path.exists(path)


def test_the_pacer_counts_the_requests_of_the_other_workers(tmp_path: Path) -> None:
    with shared_ledger(2) as path:
        env = {"SUFFICE_LEDGER": path}
        with (
            routed(tmp_path, {"usd_per_day": 1.0}, env=env) as one,
            routed(tmp_path, {"usd_per_day": 1.0}, env=env) as two,
        ):
            for r in (one, two):
                r.budgets.restore(r.store)  # as the gateway does before it listens
            for _ in range(7):
                asyncio.run(one.answer(asking()))
            asyncio.run(two.answer(asking()))
            budget = two.budgets.of("auto")
            assert budget is not None
            assert budget.requests_today == 8


def test_without_locks_between_processes_each_worker_gets_its_part(tmp_path: Path) -> None:
    with routed(tmp_path, {"usd_per_day": 8.0}, env={"SUFFICE_LEDGER": "4"}) as r:
        assert r.ready()["budgets"]["auto"]["ceiling_usd"] == 2.0


def test_a_ledger_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SUFFICE_LEDGER"):
        Ledger(str(tmp_path / "missing"))
    short = tmp_path / "short"
    short.write_bytes(b"x")
    with pytest.raises(ConfigError, match="SUFFICE_LEDGER"):
        Ledger(str(short))


def _spend(path: str, ceiling: int, calls: int, seed: int) -> None:
    """What a worker does with its row, as fast as it can. Runs in a process of its own."""
    rng = np.random.default_rng(seed)
    row = Ledger(path).row("auto")
    held: list[int] = []
    for _ in range(calls):
        worst = int(rng.integers(1, 50))
        with row:
            if row.spent + row.reserved + worst <= ceiling:
                row.reserved_here += worst
                held.append(worst)
        while len(held) > 3:
            with row:
                worst = held.pop(0)
                row.spent += int(rng.integers(0, worst + 1))
                row.reserved_here -= worst
    while True:
        time.sleep(0.01)  # until it is killed, with what it holds


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs signals of POSIX")
def test_processes_never_pass_the_ceiling_and_a_kill_loses_nothing_reserved() -> None:
    context = multiprocessing.get_context("spawn")
    with shared_ledger(4) as path:
        ledger = Ledger(path)
        row = ledger.row("auto")
        with row:
            row.start_day(20_000)
        workers = [
            context.Process(target=_spend, args=(path, 5000, 100_000, n), daemon=True)
            for n in range(3)
        ]
        for worker in workers:
            worker.start()
        deadline = time.monotonic() + 60.0
        while time.monotonic() < deadline:
            with row:
                total = row.spent + row.reserved
            assert total <= 5000
            if total > 4900:
                break
            time.sleep(0.002)
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        with row:
            before = row.spent + row.reserved
        assert before > 4900
        late = Ledger(path)  # who comes next clears up after them
        with row:
            assert row.reserved == 0
            assert row.spent == before
        late.close()
        ledger.close()


# ── whole days ───────────────────────────────────────────────────────────────────────────────────


class World:
    """Days of requests through the router, with calls that take seconds of a virtual clock."""

    def __init__(self, seed: int, requests: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.requests = requests
        self.clock = Clock(MONDAY)
        self.refused = 0
        self.costs: list[float] = []
        self.models: list[str] = []
        self.over = 0

    def times(self) -> list[float]:
        """A day with a peak in the afternoon and four bursts of five to ten times the rate."""
        rng = self.rng
        minutes = np.arange(1440)
        rate = 1.0 + 0.6 * np.cos((minutes / 60.0 - 15.0) / 24.0 * 2 * np.pi)
        rate /= rate.sum()
        for _ in range(4):
            start = rng.integers(0, 1430)
            rate[start : start + rng.integers(5, 16)] *= rng.uniform(5.0, 10.0)
        counts = rng.poisson(rate * self.requests)
        return sorted((np.repeat(minutes * 60.0, counts) + rng.random(counts.sum()) * 60).tolist())

    def query(self) -> Query:
        words = self.rng.choice(WORDS, int(self.rng.integers(3, 60)))
        return asking(" ".join(words) + "?", max_tokens=2000)

    async def day(self, workers: list[Router], midnight_s: float) -> float:
        """One day; returns what it has cost. The ceiling is looked at after every event. Of two
        workers the first gets four of five requests."""
        loop = asyncio.get_running_loop()
        flying: list[tuple[float, int, asyncio.Future[Any], asyncio.Task[Any]]] = []
        gates: list[asyncio.Future[Any]] = []
        rng, clock = self.rng, self.clock
        n_before = len(self.costs)

        def answer(model: str, body: dict[str, Any]) -> asyncio.Future[Any]:
            gates.append(loop.create_future())
            return gates[-1]

        for r in workers:
            r.transport.answer = answer
        arrivals = [midnight_s + t for t in self.times()]
        for at_s in [*arrivals, math.inf]:
            while flying and flying[0][0] <= at_s:
                clock.now_s, _, gate, task = heapq.heappop(flying)
                gate.set_result(Reply(40, int(rng.gamma(2.0, 200.0)) % 2000 + 1))
                done = await task
                assert done.cost_usd is not None
                self.costs.append(done.cost_usd)
                self.models.append(done.model)
                self._look(r)
            if at_s == math.inf:
                break
            clock.now_s = at_s
            r = workers[int(rng.random() > 0.8) % len(workers)]
            task = loop.create_task(r.answer(self.query()))
            before = len(gates)
            await asyncio.sleep(0)
            if task.done():
                assert isinstance(task.exception(), BudgetExceededError)
                self.refused += 1
                continue
            assert len(gates) == before + 1
            took_s = float(rng.gamma(2.0, 4.0))
            heapq.heappush(flying, (at_s + took_s, len(gates), gates[-1], task))
            self._look(r)
        return sum(self.costs[n_before:])

    def _look(self, r: Router) -> None:
        told = r.ready()["budgets"]["auto"]
        self.over += told["spent_usd"] + told["reserved_usd"] > told["ceiling_usd"] + 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "workers"), [(2.5, 1), (4.0, 2)])
def test_days_with_bursts_spend_their_budget_and_never_more(
    tmp_path: Path, budget: float, workers: int
) -> None:
    async def main() -> None:
        world = World(int(budget * 10), 1500)
        with contextlib.ExitStack() as stack:
            env = {"SUFFICE_LEDGER": stack.enter_context(shared_ledger(workers))}
            of = [
                stack.enter_context(
                    _open(
                        tmp_path,
                        {"usd_per_day": budget},
                        lambda m, b: None,
                        clock=world.clock,
                        env=env,
                    )
                )
                for _ in range(workers)
            ]
            for r in of:
                r.budgets.restore(r.store)
            first = await world.day(of, MONDAY)
            shares = [world.models.count(m) for m in ("p/weak", "p/mid", "p/strong")]
            second = await world.day(of, MONDAY + DAY_S)
        print(budget, first / budget, second / budget, world.refused, shares)
        assert world.over == 0
        assert first <= budget
        assert 0.98 * budget <= second <= budget
        assert world.refused == 0
        assert shares[1] + shares[2] > 0.1 * sum(shares), "what is left over buys quality"

    asyncio.run(main())
