"""Streams: the first content, three timeouts, and clients that disconnect or are slow."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from tests.support.scripted_calls import (
    DONE,
    HELLO,
    EngineHarness,
    Event,
    Script,
    Upstreams,
    content,
    drain,
    read_events,
    run_virtual,
    upstream_error,
)

from suffice.errors import AllAttemptsFailedError, UpstreamError
from suffice.execution import CircuitBreaker, CircuitBreakerSettings, Engine, LatencyTracker
from suffice.types import PlanStep, RetryPolicy, Timeouts, Usage

GOOD = Script(stream=[[HELLO], content("x"), content("y"), [Event(b"u", "usage")], [DONE]])


def now_s() -> float:
    return asyncio.get_running_loop().time()


def test_a_stream_from_its_first_event_to_its_last() -> None:
    harness = EngineHarness()
    calls = Upstreams(a=Script(delay_s=0.5, stream=[[HELLO], 1.0, *GOOD.stream[1:]]))

    async def main() -> None:
        reply = await harness.run("a", calls, stream=True)
        assert reply.first_chunk_s == pytest.approx(1.5)
        assert not harness.attempts, "not finished yet"
        assert await drain(reply) == ["role", "x", "y", "u", "[DONE]"]
        assert (reply.usage, reply.cost_usd, reply.finish_reason) == (Usage(10, 5), 15.0, "stop")
        [attempt] = reply.attempts
        assert (attempt.outcome, attempt.first_chunk_s) == ("ok", reply.first_chunk_s)
        await reply.aclose()
        assert len(reply.attempts) == 1, "closing a finished stream changes nothing"

    run_virtual(main)
    assert calls.opened[0].closed


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (Script(error=upstream_error("connect")), "connect"),
        (Script(delay_s=50.0), "timeout_first_chunk"),
        (Script(stream=[50.0]), "timeout_first_chunk"),
        (Script(stream=[[HELLO], *[1.0, [HELLO]] * 60]), "timeout_first_chunk"),
        (Script(stream=[[HELLO], upstream_error("cut")]), "cut"),
        (Script(stream=[[HELLO], upstream_error("overloaded")]), "overloaded"),
        (Script(stream=[[Event(b" " * 70_000, "preamble")]] * 20), "malformed"),
    ],
)
def test_before_the_first_content_a_failure_is_invisible(script: Script, kind: str) -> None:
    harness = EngineHarness()
    calls = Upstreams(a=script, b=GOOD)

    async def main() -> None:
        started_s = now_s()
        reply = await harness.run("ab", calls, stream=True)
        assert now_s() - started_s <= 3.0 + 1e-6
        assert await drain(reply) == ["role", "x", "y", "u", "[DONE]"], "nothing of the first one"
        assert [a.outcome for a in reply.attempts] == [kind, "ok"]
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0, "our own timer leaves no cancellation behind"

    run_virtual(main)
    assert all(o.closed for o in calls.opened)


@pytest.mark.parametrize(
    ("rest", "kind", "after_s"),
    [
        ([upstream_error("cut")], "cut", 0.0),
        ([upstream_error("server", status=500)], "server", 0.0),
        ([1.0, content("y"), 99.0, [DONE]], "timeout_idle", 3.0),
        ([1.5, content("y")] * 99, "timeout_total", 60.0),
    ],
)
def test_after_the_first_content_a_failure_ends_the_stream_with_its_error(
    rest: list[Any], kind: str, after_s: float
) -> None:
    harness = EngineHarness()
    calls = Upstreams(a=Script(stream=[content("x"), *rest]), b=GOOD)

    async def main() -> None:
        started_s = now_s()
        reply = await harness.run("ab", calls, stream=True)
        got = []
        with pytest.raises(UpstreamError) as caught:
            async for event in read_events(reply):
                got.append(event.raw)
        assert got[0] == b"x"
        assert caught.value.kind == kind
        assert now_s() - started_s == pytest.approx(after_s)
        [attempt] = reply.attempts
        assert attempt.outcome == kind
        assert reply.usage == Usage(input_tokens=10, output_tokens=len(got), estimated=True)
        assert reply.cost_usd == 10.0 + len(got)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run_virtual(main)
    assert calls.calls == ["a"], "what the client has read is not started again"
    assert calls.opened[0].closed


def test_events_that_arrive_with_a_failure_reach_the_client() -> None:
    calls = Upstreams(
        a=Script(stream=[[*content("x", "y"), Event(b"", "error")], upstream_error("server")])
    )

    async def main() -> None:
        reply = await EngineHarness().run("a", calls, stream=True)
        got = []
        with pytest.raises(UpstreamError):
            async for event in read_events(reply):
                got.append(event.raw)
        assert got == [b"x", b"y"]

    run_virtual(main)


def test_a_slow_client_is_not_a_silent_upstream() -> None:
    calls = Upstreams(a=GOOD)

    async def main() -> None:
        reply = await EngineHarness().run("a", calls, stream=True)
        got = []
        async for event in read_events(reply):
            got.append(event.raw)
            await asyncio.sleep(5.0)
        assert len(got) == 5

    run_virtual(main)


def test_a_client_that_takes_longer_than_the_total() -> None:
    calls = Upstreams(a=GOOD)

    async def main() -> None:
        reply = await EngineHarness().run("a", calls, stream=True)
        with pytest.raises(UpstreamError) as caught:
            async for _ in read_events(reply):
                await asyncio.sleep(45.0)
        assert caught.value.kind == "timeout_total"

    run_virtual(main)


def test_a_shorter_silence_is_allowed_after_the_first_chunk_than_before() -> None:
    calls = Upstreams(a=Script(delay_s=25.0, stream=[content("x"), 1.5, [DONE]]))
    stuck = Upstreams(a=Script(delay_s=25.0, stream=[content("x"), 2.5, [DONE]]))
    timeouts = Timeouts(first_chunk_s=30.0, idle_s=2.0, total_s=60.0)

    async def main() -> None:
        reply = await EngineHarness().run("a", calls, stream=True, timeouts=timeouts)
        assert await drain(reply) == ["x", "[DONE]"]
        reply = await EngineHarness().run("a", stuck, stream=True, timeouts=timeouts)
        started_s = now_s()
        with pytest.raises(UpstreamError, match="no further chunk within 2 s"):
            await drain(reply)
        assert now_s() - started_s == pytest.approx(2.0)

    run_virtual(main)


def test_the_usage_of_a_stream_without_one_is_marked_as_estimated() -> None:
    joined = Event(b"yyy", "content", chunks=3)
    calls = Upstreams(a=Script(usage=None, stream=[content("x"), [joined], [DONE]]))

    async def main() -> None:
        reply = await EngineHarness().run("a", calls, stream=True)
        await drain(reply)
        assert reply.usage == Usage(input_tokens=10, output_tokens=4, estimated=True)

    run_virtual(main)


@pytest.mark.parametrize("how", ["aclose", "cancel"])
def test_a_disconnect_in_a_stream_prices_what_was_produced(how: str) -> None:
    harness = EngineHarness()
    calls = Upstreams(a=Script(usage=None, stream=[content("x", "y"), *[1.0, content("z")] * 9]))

    async def client(left: asyncio.Event) -> None:
        reply = await harness.run("a", calls, stream=True)
        n = 0
        async for _ in read_events(reply):
            n += 1
            if n == 3 and how == "aclose":
                break
            if n == 3:
                left.set()
        await reply.aclose()
        assert reply.cost_usd == 13.0

    async def main() -> None:
        left = asyncio.Event()
        task = asyncio.ensure_future(client(left))
        if how == "cancel":
            await left.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await task

    run_virtual(main)
    [attempt] = harness.attempts
    assert (attempt.outcome, attempt.error) == ("cancelled", "client disconnected")
    assert attempt.usage == Usage(input_tokens=10, output_tokens=3, estimated=True)
    assert attempt.first_chunk_s == 0.0
    assert calls.opened[0].closed
    assert harness.breaker.is_ready("a"), "a disconnect says nothing about the model"


def test_a_disconnect_before_the_first_content_closes_the_upstream() -> None:
    harness = EngineHarness()
    calls = Upstreams(a=Script(stream=[[HELLO], 99.0]), b=GOOD)

    async def main() -> None:
        task = asyncio.ensure_future(harness.run("ab", calls, stream=True))
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main)
    assert [(a.model, a.outcome) for a in harness.attempts] == [("a", "cancelled")]
    assert calls.opened[0].closed


def test_a_disconnect_wins_over_a_timeout_in_the_same_turn() -> None:
    """Both cancel the task in the same turn of the loop; it counts as a disconnect."""
    harness = EngineHarness()
    calls = Upstreams(a=Script(stream=[99.0]), b=GOOD)

    async def main() -> None:
        task = asyncio.ensure_future(harness.run("ab", calls, stream=True))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_at(now_s() + 3.0, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main)
    assert [a.outcome for a in harness.attempts] == ["cancelled"]


def test_a_stream_that_is_never_read_leaves_no_timer_after_its_total() -> None:
    async def main() -> None:
        reply = await EngineHarness().run("a", Upstreams(a=GOOD), stream=True)
        del reply
        gc.collect()
        await asyncio.sleep(61.0)

    run_virtual(main)


def test_an_internal_error_in_a_stream_is_recorded_and_closes_it() -> None:
    harness = EngineHarness()
    calls = Upstreams(a=Script(stream=[content("x"), ZeroDivisionError("oops")]))

    async def main() -> None:
        reply = await harness.run("a", calls, stream=True)
        with pytest.raises(ZeroDivisionError):
            await drain(reply)

    run_virtual(main)
    assert harness.attempts[0].error == "ZeroDivisionError: oops"
    assert calls.opened[0].closed


def test_an_outer_timeout_counts_as_a_disconnect() -> None:
    """An outer asyncio.timeout that fires during a stream is a disconnect, not our timer."""
    harness = EngineHarness()
    calls = Upstreams(a=Script(stream=[content("x"), *[1.0, content("y")] * 50]))

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(4.5):
                reply = await harness.run("a", calls, stream=True)
                try:
                    await drain(reply)
                finally:
                    await reply.aclose()

    run_virtual(main)
    assert [a.outcome for a in harness.attempts] == ["cancelled"]


def test_timeouts_work_in_real_time_on_both_event_loops() -> None:
    """The loop that serves: timers of its own precision, no virtual clock."""
    import time

    engine = Engine(
        CircuitBreaker(CircuitBreakerSettings(), time.monotonic),
        LatencyTracker(time.monotonic),
        clock=time.monotonic,
    )
    calls = Upstreams(
        a=Script(stream=[[HELLO], 30.0]), b=Script(stream=[content("x"), 0.05, content("y"), 30.0])
    )
    timeouts = Timeouts(first_chunk_s=0.2, idle_s=0.3, total_s=20.0)

    async def main() -> None:
        reply = await engine.run(
            (PlanStep("a"), PlanStep("b")),
            calls,
            stream=True,
            timeouts=timeouts,
            retries=RetryPolicy(),
            cost_of=lambda m, u: 0.0,
        )
        got = []
        with pytest.raises(UpstreamError) as caught:
            async for event in read_events(reply):
                got.append(event.raw)
        assert got == [b"x", b"y"]
        assert caught.value.kind == "timeout_idle"
        assert [a.outcome for a in reply.attempts] == ["timeout_first_chunk", "timeout_idle"]

    started_s = time.monotonic()
    asyncio.run(main())
    assert 0.4 < time.monotonic() - started_s < 10.0
    asyncio_loop = pytest.importorskip("uvloop")
    asyncio_loop.run(main())


def test_each_model_gets_its_own_first_chunk_timeout() -> None:
    harness = EngineHarness()

    async def main() -> None:
        with pytest.raises(AllAttemptsFailedError) as caught:
            await harness.run(
                "ab", Upstreams(a=Script(stream=[99.0]), b=Script(stream=[99.0])), stream=True
            )
        assert caught.value.last.kind == "timeout_first_chunk"
        assert [a.latency_s for a in caught.value.attempts] == [pytest.approx(3.0)] * 2

    run_virtual(main)
