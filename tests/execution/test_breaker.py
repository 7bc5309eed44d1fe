"""Breakers leave an ill model alone, and never take the last one away."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from suffice.errors import UpstreamError
from suffice.execution import Breaker, BreakerSettings, Health
from suffice.types import Model

POOL = tuple(Model(f"p/{n}", "p", n) for n in "abc")
ILL = UpstreamError("x", kind="server", status=500)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def breaker() -> tuple[Breaker, Clock]:
    clock = Clock()
    return Breaker(BreakerSettings(failures=3, cool_s=5.0), clock), clock


STEP = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from(["ok", "server", "connect", "rate_limit", "malformed", "bad_request", "auth"]),
    st.floats(0, 20),
)


@given(st.lists(STEP, max_size=80))
def test_something_is_always_offered(script: list[tuple[str, str, float]]) -> None:
    b, clock = breaker()
    for name, outcome, wait_s in script:
        kept, out = b.available(POOL)
        assert kept
        assert set(kept) | {m for m in POOL if m.name in {e.model for e in out}} == set(POOL)
        assert len(b.available(POOL[:1])[0]) == 1
        b.calling(f"p/{name}")
        if outcome == "ok":
            b.succeeded(f"p/{name}")
        else:
            b.failed(f"p/{name}", UpstreamError("x", kind=outcome, retry_after_s=3.0))  # type: ignore[arg-type]
        clock.now += wait_s


def test_one_malformed_answer_changes_nothing() -> None:
    b, _ = breaker()
    b.failed("p/a", UpstreamError("x", kind="malformed"))
    assert b.available(POOL) == (POOL, ())


def test_opens_probes_and_closes() -> None:
    b, clock = breaker()
    for _ in range(3):
        b.failed("p/a", ILL)
    kept, out = b.available(POOL)
    assert [m.name for m in kept] == ["p/b", "p/c"]
    assert "3 failures" in out[0].why
    clock.now += 5.1
    assert len(b.available(POOL)[0]) == 3
    b.calling("p/a")
    assert len(b.available(POOL)[0]) == 2, "one probe at a time"
    b.failed("p/a", ILL)
    clock.now += 5.1
    assert len(b.available(POOL)[0]) == 2, "a failed probe cools twice as long"
    clock.now += 5.0
    b.calling("p/a")
    b.succeeded("p/a")
    assert b.available(POOL) == (POOL, ())


def test_a_rate_limit_is_left_alone_for_as_long_as_it_asked() -> None:
    b, clock = breaker()
    b.failed("p/a", UpstreamError("x", kind="rate_limit", retry_after_s=2.0))
    assert len(b.available(POOL)[0]) == 2
    clock.now += 2.1
    assert len(b.available(POOL)[0]) == 3


def test_a_probe_whose_client_left_does_not_hang() -> None:
    b, clock = breaker()
    for _ in range(3):
        b.failed("p/a", ILL)
    clock.now += 6
    b.calling("p/a")
    b.left("p/a")
    assert len(b.available(POOL)[0]) == 3


def test_candidates_keep_their_identity_between_refreshes() -> None:
    clock = Clock()
    health = Health(clock)
    first = health.candidates(POOL)
    health.observe("p/a", 0.2, 1.2, 100)
    assert health.candidates(POOL) is first
    clock.now += 1.1
    fresh = health.candidates(POOL)
    assert fresh[0].first_chunk_s == 0.2
    assert fresh[0].output_tokens_per_s == 100.0
    clock.now += 1.1
    assert health.candidates(POOL) is fresh, "nothing new, so nothing to recompute"
