"""Circuit breakers stop calls to an unhealthy model, but never to the last one available."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from suffice.errors import UpstreamError
from suffice.execution import CircuitBreaker, CircuitBreakerSettings, LatencyTracker
from suffice.pool import Pool
from suffice.types import Model

POOL = Pool(tuple(Model(f"p/{n}", "p", n) for n in "abc"))
ILL = UpstreamError("x", kind="server", status=500)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def breaker() -> tuple[CircuitBreaker, Clock]:
    clock = Clock()
    return CircuitBreaker(CircuitBreakerSettings(failures=3, cooldown_s=5.0), clock), clock


STEP = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from(["ok", "server", "connect", "rate_limit", "malformed", "bad_request", "auth"]),
    st.floats(0, 20),
)


@given(st.lists(STEP, max_size=80))
def test_some_model_is_always_available(script: list[tuple[str, str, float]]) -> None:
    b, clock = breaker()
    for name, outcome, wait_s in script:
        kept, out = b.available(POOL)
        assert kept
        assert sorted((*kept.names, *(e.model for e in out))) == sorted(POOL.names)
        assert len(b.available(POOL.subset(POOL.models[:1]))[0]) == 1
        b.on_call(f"p/{name}")
        if outcome == "ok":
            b.on_success(f"p/{name}")
        else:
            b.on_failure(f"p/{name}", UpstreamError("x", kind=outcome, retry_after_s=3.0))  # type: ignore[arg-type]
        clock.now += wait_s


def test_one_malformed_reply_opens_no_circuit() -> None:
    b, _ = breaker()
    b.on_failure("p/a", UpstreamError("x", kind="malformed"))
    assert b.available(POOL) == (POOL, ())


def test_a_circuit_opens_probes_and_closes() -> None:
    b, clock = breaker()
    for _ in range(3):
        b.on_failure("p/a", ILL)
    kept, out = b.available(POOL)
    assert kept.names == ("p/b", "p/c")
    assert "3 failures" in out[0].reason
    clock.now += 5.1
    assert len(b.available(POOL)[0]) == 3
    b.on_call("p/a")
    assert len(b.available(POOL)[0]) == 2, "one probe at a time"
    b.on_failure("p/a", ILL)
    clock.now += 5.1
    assert len(b.available(POOL)[0]) == 2, "a failed probe cools twice as long"
    clock.now += 5.0
    b.on_call("p/a")
    b.on_success("p/a")
    assert b.available(POOL) == (POOL, ())


def test_a_rate_limited_model_cools_down_for_its_retry_after() -> None:
    b, clock = breaker()
    b.on_failure("p/a", UpstreamError("x", kind="rate_limit", retry_after_s=2.0))
    assert len(b.available(POOL)[0]) == 2
    clock.now += 2.1
    assert len(b.available(POOL)[0]) == 3


def test_a_probe_whose_client_disconnected_allows_another() -> None:
    b, clock = breaker()
    for _ in range(3):
        b.on_failure("p/a", ILL)
    clock.now += 6
    b.on_call("p/a")
    b.on_abandoned("p/a")
    assert len(b.available(POOL)[0]) == 3


def test_candidates_keep_their_identity_between_refreshes() -> None:
    clock = Clock()
    latency = LatencyTracker(clock)
    first = latency.candidates(POOL)
    latency.observe("p/a", 0.2, 1.2, 100)
    assert latency.candidates(POOL) is first
    clock.now += 1.1
    fresh = latency.candidates(POOL)
    assert fresh[0].first_chunk_s == 0.2
    assert fresh[0].output_tokens_per_s == 100.0
    clock.now += 1.1
    assert latency.candidates(POOL) is fresh, "nothing new, so nothing to recompute"


def test_concurrent_failures_cause_one_cooldown() -> None:
    b, clock = breaker()
    for _ in range(100):
        b.on_failure("p/a", ILL, started_s=clock.now)
    clock.now += 5.1
    assert b.is_ready("p/a"), "it cools for 5 s, not for as long as there were calls under way"
    b.on_failure("p/a", ILL, started_s=clock.now - 5.1 - 30.0)
    assert b.is_ready("p/a"), "a call from long before says nothing about now"


def test_a_success_of_an_earlier_call_does_not_end_a_rate_limit() -> None:
    b, clock = breaker()
    b.on_failure("p/a", UpstreamError("x", kind="rate_limit", retry_after_s=30.0))
    b.on_success("p/a", started_s=clock.now - 1.0)
    assert not b.is_ready("p/a")
    clock.now += 1.0
    b.on_success("p/a", started_s=clock.now)
    assert b.is_ready("p/a"), "a success from since then does"


def test_calls_to_the_last_candidate_do_not_extend_its_cooldown() -> None:
    b, clock = breaker()
    for _ in range(50):
        b.on_call("p/a")
        b.on_failure("p/a", ILL, started_s=clock.now)
        clock.now += 0.1
    clock.now += 5.0
    assert b.is_ready("p/a")


def test_a_circuit_opens_at_half_of_the_last_twenty_calls() -> None:
    b, _ = breaker()
    b.on_failure("p/a", ILL)
    for _ in range(10):
        b.on_success("p/a")
        b.on_failure("p/a", ILL)
    assert not b.is_ready("p/a")


def test_a_retry_after_is_respected_up_to_an_hour() -> None:
    for asked_s in (1e9, float("inf"), float("nan")):
        b, clock = breaker()
        b.on_failure("p/a", UpstreamError("x", kind="rate_limit", retry_after_s=asked_s))
        assert not b.is_ready("p/a")
        clock.now += 3601.0
        assert b.is_ready("p/a")


def test_another_probe_is_allowed_after_the_probe_timeout() -> None:
    b, clock = breaker()
    for _ in range(3):
        b.on_failure("p/a", ILL)
    clock.now += 6.0
    b.on_call("p/a")
    kept, out = b.available(POOL)
    assert len(kept) == 2
    assert "one probe at a time" in out[0].reason
    clock.now += 60.1
    assert b.available(POOL)[0] == POOL


def test_if_all_circuits_are_open_the_first_to_recover_is_in_front() -> None:
    b, _ = breaker()
    for name, after_s in (("a", 9.0), ("b", 3.0), ("c", 6.0)):
        b.on_failure(f"p/{name}", UpstreamError("x", kind="rate_limit", retry_after_s=after_s))
    kept, out = b.available(POOL)
    assert (kept.names, out) == (("p/b", "p/c", "p/a"), ())


def test_the_same_available_models_are_the_same_pool() -> None:
    b, clock = breaker()
    b.on_failure("p/a", UpstreamError("x", kind="rate_limit", retry_after_s=9.0))
    first = b.available(POOL)[0]
    clock.now += 1.0
    assert b.available(POOL)[0] is first, "caches use the pool as their key"


def test_latency_is_a_plain_mean_first_and_then_exponentially_weighted() -> None:
    clock = Clock()
    latency = LatencyTracker(clock)
    for seconds in (3.0, 1.0, 0.5, 0.5):  # a cold connection first
        latency.observe("p/a", seconds, seconds + 1.0, 50)
    assert latency.stats()["p/a"] == {"calls": 4, "first_chunk_s": 1.25, "tokens_per_s": 50.0}
    for _ in range(60):
        latency.observe("p/a", 9.0, 10.0, 50)
    assert 8.9 < (latency.stats()["p/a"]["first_chunk_s"] or 0.0) < 9.0


def test_the_output_rate_of_a_whole_reply_leaves_out_the_wait() -> None:
    latency = LatencyTracker(Clock())
    latency.observe("p/a", 1.0, 2.0, 100)
    latency.observe("p/a", None, 3.0, 200)
    latency.observe("p/a", None, 0.5, 25)
    assert latency.stats()["p/a"]["tokens_per_s"] == 100.0
    assert latency.candidates(POOL)[0].output_tokens_per_s == 100.0
    assert latency.candidates(POOL)[1].output_tokens_per_s is None, "never seen: unknown"
