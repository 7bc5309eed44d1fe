"""The engine against scripted upstreams on a virtual clock: failover, backoff, records."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.scripted_calls import (
    DONE,
    HELLO,
    EngineHarness,
    Script,
    Upstreams,
    content,
    drain,
    read_events,
    run_virtual,
    upstream_error,
)

from suffice.errors import AllAttemptsFailedError, UpstreamError
from suffice.execution import sum_cost_usd
from suffice.types import PlanStep, RetryPolicy, Timeouts, Usage


def outcomes(harness: EngineHarness) -> list[tuple[str, str]]:
    return [(a.model, a.outcome) for a in harness.attempts]


def test_the_first_choice_answers() -> None:
    harness = EngineHarness()
    calls = Upstreams(a=Script(body=b"hello", delay_s=1.5))

    async def main() -> None:
        reply = await harness.run("ab", calls)
        assert (reply.model, reply.status, reply.body) == ("a", 200, b"hello")
        assert (reply.usage, reply.cost_usd) == (Usage(10, 5), 15.0)
        assert (reply.finish_reason, reply.first_chunk_s, reply.skipped) == ("stop", None, ())
        [attempt] = reply.attempts
        assert (attempt.number, attempt.outcome, attempt.started_s) == (1, "ok", 5.0)
        assert attempt.latency_s == pytest.approx(1.5)

    run_virtual(main)
    assert harness.latency.stats()["a"]["calls"] == 1


def test_failover_records_every_attempt_and_sums_their_cost() -> None:
    harness = EngineHarness()
    calls = Upstreams(a=Script(error=upstream_error("server", status=500)), b=Script())

    async def main() -> None:
        reply = await harness.run("ab", calls)
        assert reply.model == "b"
        first, second = reply.attempts
        assert (first.outcome, first.status, first.error) == ("server", 500, "it was server")
        assert (first.cost_usd, second.cost_usd, reply.cost_usd) == (0.0, 15.0, 15.0)
        assert second.number == 2

    run_virtual(main)


def test_the_last_available_model_is_retried_after_its_retry_after() -> None:
    harness = EngineHarness()
    busy = Script(error=upstream_error("rate_limit", status=429, retry_after_s=4.0))
    calls = Upstreams(a=[busy, Script()])

    async def main() -> None:
        started_s = asyncio.get_running_loop().time()
        assert (await harness.run("a", calls)).model == "a"
        assert asyncio.get_running_loop().time() - started_s == pytest.approx(4.0)

    run_virtual(main)


def test_an_exhausted_plan_carries_its_attempts_and_the_most_actionable_error() -> None:
    harness = EngineHarness()
    calls = Upstreams(
        a=Script(error=upstream_error("rate_limit", status=429, retry_after_s=33.0)),
        b=Script(error=upstream_error("auth", status=401)),
    )

    async def main() -> None:
        with pytest.raises(AllAttemptsFailedError) as caught:
            await harness.run("ab", calls)
        assert [a.model for a in caught.value.attempts] == ["a", "b"]
        assert caught.value.last.kind == "rate_limit"
        assert caught.value.last.retry_after_s == 33.0
        assert "2 attempts at 2 models failed (a, b)" in str(caught.value)

    run_virtual(main)


def test_a_bad_request_is_not_sent_to_another_model() -> None:
    calls = Upstreams(a=Script(error=upstream_error("bad_request", status=400)), b=Script())

    async def main() -> None:
        with pytest.raises(AllAttemptsFailedError) as caught:
            await EngineHarness().run("ab", calls)
        assert str(caught.value) == "it was bad_request"

    run_virtual(main)
    assert calls.calls == ["a"]


def test_all_attempts_share_one_total() -> None:
    slow = Script(error=upstream_error("timeout_total"), delay_s=25.0)
    calls = Upstreams(a=slow, b=slow, c=slow)

    async def main() -> None:
        with pytest.raises(AllAttemptsFailedError):
            await EngineHarness().run("abc", calls, timeouts=Timeouts(total_s=60.0))

    run_virtual(main)
    assert [round(t.total_s) for t in calls.timeouts] == [60, 35, 10]


def test_first_reply_s_leaves_time_for_the_next_model() -> None:
    calls = Upstreams(a=Script(error=upstream_error("timeout_total"), delay_s=8.0), b=Script())
    timeouts = Timeouts(total_s=60.0, first_reply_s=8.0)

    async def main() -> None:
        assert (await EngineHarness().run("ab", calls, timeouts=timeouts)).model == "b"

    run_virtual(main)
    assert [t.total_s for t in calls.timeouts] == [8.0, 8.0]


def test_a_step_that_the_guard_refuses_is_skipped_with_the_reason() -> None:
    harness = EngineHarness()
    calls = Upstreams(a=Script(error=upstream_error("server")), b=Script(), c=Script())
    asked: list[str] = []

    def guard(step: PlanStep) -> str | None:
        asked.append(step.model)
        return "too expensive" if step.model == "b" else None

    async def main() -> None:
        reply = await harness.run("abc", calls, guard=guard)
        assert reply.model == "c"
        assert [(e.model, e.reason) for e in reply.skipped] == [("b", "too expensive")]
        assert [a.number for a in reply.attempts] == [1, 2]
        calls.scripts["c"] = [Script(error=upstream_error("auth"))]
        with pytest.raises(AllAttemptsFailedError, match=r"Not called: b: too expensive\."):
            await harness.run("abc", calls, guard=guard, attempts=None)

    run_virtual(main)
    assert "b" not in calls.calls
    assert asked[:2] == ["b", "c"], "the choice itself was the policy's to price"
    assert "a" in asked, "a retry costs money once more"


def test_a_model_that_cools_down_is_tried_after_the_others() -> None:
    harness = EngineHarness()
    calls = Upstreams(a=Script(error=upstream_error("server")), b=Script(), c=Script())

    async def main() -> None:
        for _ in range(3):
            harness.breaker.on_failure("b", upstream_error("server"))
        assert (await harness.run("abc", calls)).model == "c"
        calls.scripts["c"] = [Script(error=upstream_error("auth"))]
        assert (await harness.run("abc", calls)).model == "b", "never dropped for cooling"

    run_virtual(main)


def test_a_disconnect_during_a_whole_reply_cancels_the_call() -> None:
    harness = EngineHarness()
    calls = Upstreams(a=Script(error=upstream_error("server")), b=Script(delay_s=10.0))

    async def main() -> None:
        task = asyncio.ensure_future(harness.run("ab", calls))
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main)
    assert calls.cancelled == 1
    assert outcomes(harness) == [("a", "server"), ("b", "cancelled")]
    left = harness.attempts[-1]
    assert left.usage == Usage(input_tokens=10, estimated=True)
    assert (left.cost_usd, left.latency_s) == (10.0, pytest.approx(1.0))


def test_a_disconnect_during_a_backoff_ends_the_request() -> None:
    harness = EngineHarness()
    calls = Upstreams(a=Script(error=upstream_error("rate_limit", retry_after_s=4.0)))

    async def main() -> None:
        task = asyncio.ensure_future(harness.run("a", calls))
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main)
    assert outcomes(harness) == [("a", "rate_limit")]


@pytest.mark.parametrize("stream", [False, True])
def test_an_internal_error_is_raised_and_releases_the_probe(stream: bool) -> None:
    harness = EngineHarness()
    calls = Upstreams(a=Script(error=ZeroDivisionError("oops")))

    async def main() -> None:
        for _ in range(3):
            harness.breaker.on_failure("a", upstream_error("server"))
        await asyncio.sleep(6.0)
        with pytest.raises(ZeroDivisionError):
            await harness.run("a", calls, stream=stream)
        assert harness.breaker.is_ready("a")

    run_virtual(main)
    assert harness.attempts[0].error == "ZeroDivisionError: oops"


def test_an_unknown_price_is_not_a_number() -> None:
    calls = Upstreams(a=Script())

    async def main() -> None:
        reply = await EngineHarness().run("a", calls, cost_of=lambda m, u: None)
        assert reply.cost_usd is None
        assert sum_cost_usd([*reply.attempts, *reply.attempts]) is None

    run_virtual(main)


KINDS = ["connect", "rate_limit", "server", "auth", "malformed", "cut", "timeout_first_chunk"]
ONE = st.one_of(
    st.just("ok"),
    st.just("stall"),
    st.sampled_from(KINDS),
    st.sampled_from(["late cut", "late stall", "slow"]),
)


def script_of(name: str) -> Script:
    if name == "ok":
        return Script(stream=[[HELLO], content("x", "y"), [DONE]])
    if name == "stall":
        return Script(stream=[[HELLO], 99.0])
    if name == "slow":
        return Script(delay_s=1.0, stream=[1.0, content("x"), 1.5, content("y"), 1.5, [DONE]])
    if name == "late cut":
        return Script(stream=[content("x"), upstream_error("cut")])
    if name == "late stall":
        return Script(stream=[content("x"), 99.0, [DONE]])
    return Script(error=upstream_error(name, retry_after_s=1.0 if name == "rate_limit" else None))


@given(
    st.lists(st.lists(ONE, min_size=1, max_size=4), min_size=1, max_size=4),
    st.none() | st.floats(0, 12),
    st.booleans(),
)
@settings(max_examples=400)
def test_any_script_closes_every_upstream_and_records_every_call(
    scripts: list[list[str]], leaves_s: float | None, breaks_off: bool
) -> None:
    """No task and no timer is left behind, every opened upstream is closed, every call comes to
    exactly one attempt, and a reader gets the words of one model in order."""
    models = "abcd"[: len(scripts)]
    calls = Upstreams(
        **{m: [script_of(n) for n in names] for m, names in zip(models, scripts, strict=True)}
    )
    harness = EngineHarness()
    words: list[str] = []

    async def client() -> None:
        reply: Any = None
        try:
            reply = await harness.run(
                models, calls, stream=True, retries=RetryPolicy(max_attempts=5)
            )
            async for event in read_events(reply):
                words.append(event.raw.decode())
                if breaks_off:
                    break
        except AllAttemptsFailedError:
            assert not words
        except UpstreamError:
            assert words, "an error is only shown once something was"
        finally:
            if reply is not None:
                await reply.aclose()

    async def main() -> None:
        task = asyncio.ensure_future(client())
        if leaves_s is not None:
            await asyncio.sleep(leaves_s)
            task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    run_virtual(main)
    assert all(o.closed for o in calls.opened)
    assert len(harness.attempts) == len(calls.calls)
    assert [a.model for a in harness.attempts] == calls.calls
    assert [a.outcome for a in harness.attempts[:-1]].count("ok") == 0
    assert "".join(words).removesuffix("[DONE]") in ("", "x", "xy", "role", "rolex", "rolexy")


def test_every_attempt_of_a_stream_is_priced() -> None:
    harness = EngineHarness()
    calls = Upstreams(
        a=Script(stream=[[HELLO], upstream_error("cut")]),
        b=Script(stream=[content("x", "y"), [DONE]]),
    )

    async def main() -> None:
        reply = await harness.run("ab", calls, stream=True)
        assert await drain(reply) == ["x", "y", "[DONE]"]
        assert outcomes(harness) == [("a", "cut"), ("b", "ok")]
        assert reply.cost_usd == 15.0

    run_virtual(main)
