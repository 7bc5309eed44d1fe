"""Retry and failover, as thousands of random scripts without a network."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import UpstreamError, UpstreamKind
from suffice.execution import Call, Exhausted, FailoverFlow, Wait
from suffice.execution.retry import NON_RETRYABLE, RETRYABLE
from suffice.types import PlanStep, RetryPolicy

KINDS = list(get_args(UpstreamKind))
FAILURE = st.tuples(
    st.sampled_from(KINDS), st.none() | st.floats(0, 20), st.floats(0.001, 5.0), st.booleans()
)
PLANS = st.lists(st.sampled_from("abcde"), min_size=1, max_size=5, unique=True)
RETRIES = st.builds(
    RetryPolicy,
    per_model=st.integers(0, 3),
    max_attempts=st.integers(1, 8),
    backoff_base_s=st.floats(0, 1),
    max_wait_s=st.floats(0, 5),
)


CASES = st.tuples(
    PLANS,
    RETRIES,
    st.lists(FAILURE, max_size=60),
    st.integers(0, 9),
    st.floats(0.5, 60),
    st.sets(st.sampled_from("abcde")),
)


@given(CASES)
@settings(max_examples=300)
def test_any_script(case: tuple[Any, ...]) -> None:
    follow(*case)


@pytest.mark.slow
@given(CASES)
@settings(max_examples=3000)
def test_thousands_of_scripts(case: tuple[Any, ...]) -> None:
    follow(*case)


def follow(
    plan: list[str],
    retries: RetryPolicy,
    script: list[tuple[UpstreamKind, float | None, float, bool]],
    seed: int,
    total_s: float,
    cooling: set[str],
) -> None:
    """Drive one plan through one script of failures and check every promise of the flow."""
    flow = FailoverFlow(
        [PlanStep(m) for m in plan],
        retries,
        seed=seed,
        total_s=total_s,
        is_ready=lambda m: m not in cooling,
    )
    now_s, calls, tries = 0.0, [], dict.fromkeys(plan, 0)
    last_kind: dict[str, str] = {}
    may_retry_at: dict[str, float] = {}
    failures = iter([*script, *[("server", None, 0.1, False)] * 60])
    for _ in range(200):
        action = flow.next()
        if isinstance(action, Wait):
            assert 0 < action.seconds <= max(5.0, retries.max_wait_s) + 1e-9
            assert calls, "nothing is waited for before the first call"
            now_s += action.seconds
            assert now_s < total_s + 1e-6, "no wait goes past the total"
            flow.record_wait(now_s)
            continue
        if isinstance(action, Exhausted):
            break
        assert isinstance(action, Call)
        model = action.step.model
        calls.append(model)
        tries[model] += 1
        assert action.number == len(calls) <= retries.max_attempts
        assert tries[model] <= retries.per_model + 1
        if tries[model] > 1:
            assert last_kind[model] != "cut" or tries[model] == 2, "broken off: once more, no more"
            assert last_kind[model] in RETRYABLE
            assert now_s >= may_retry_at[model] - 1e-9, "Retry-After and backoff are honoured"
        kind, after_s, spent_s, good = next(failures)
        now_s += spent_s
        if good:
            return
        last_kind[model] = kind
        may_retry_at[model] = now_s + (after_s or 0.0)
        flow.record_failure(UpstreamError("x", kind=kind, retry_after_s=after_s), now_s)
        if kind in NON_RETRYABLE:
            assert isinstance(flow.next(), Exhausted)
    else:
        raise AssertionError("the flow did not end")
    ended_early = (
        len(calls) >= retries.max_attempts
        or now_s >= total_s
        or any(k in NON_RETRYABLE or k == "content_filter" for k in last_kind.values())
    )
    assert ended_early or set(calls) == set(plan), "every model is tried before giving up"
    # The choice first, then the order of the plan; those that cool down behind those that do not.
    order = [plan[0], *sorted(plan[1:], key=lambda m: m in cooling)]
    assert list(dict.fromkeys(calls)) == order[: len(set(calls))]


def drive(plan: list[str], errors: dict[str, UpstreamError], **more: object) -> list[str]:
    flow = FailoverFlow([PlanStep(m) for m in plan], RetryPolicy(), **more)  # type: ignore[arg-type]
    calls = []
    while isinstance(action := flow.next(), Call | Wait):
        if isinstance(action, Wait):
            flow.record_wait(0.0)  # a stopped clock must not make it wait without end
            continue
        calls.append(action.step.model)
        if action.step.model not in errors:
            return calls
        flow.record_failure(errors[action.step.model], 0.1 * len(calls))
    return calls


@given(PLANS, st.sets(st.sampled_from("abcde")), st.sampled_from(sorted(RETRYABLE)))
def test_skipped_steps_do_not_count_as_attempts(
    plan: list[str], expensive: set[str], kind: UpstreamKind
) -> None:
    flow = FailoverFlow(
        [PlanStep(m) for m in plan], RetryPolicy(per_model=0, max_attempts=len(plan))
    )
    called = []
    while isinstance(action := flow.next(), Call | Wait):
        assert isinstance(action, Call)
        if called and action.step.model in expensive:
            flow.skip()
            continue
        called.append(action.step.model)
        assert action.number == len(called) == flow.attempts
        flow.record_failure(UpstreamError("x", kind=kind), 0.1)
    assert called == [plan[0], *(m for m in plan[1:] if m not in expensive)]


def test_backoff_is_the_same_for_the_same_seed_only() -> None:
    def waits(seed: int) -> list[float]:
        flow = FailoverFlow([PlanStep("a")], RetryPolicy(per_model=3), seed=seed)
        found = []
        while not isinstance(action := flow.next(), Exhausted):
            if isinstance(action, Wait):
                found.append(action.seconds)
                flow.record_wait(0.0)
            else:
                flow.record_failure(UpstreamError("x", kind="server"), 0.0)
        return found

    assert waits(1) == waits(1) != waits(2)
    for n, seconds in enumerate(waits(1)):
        assert 0.125 * 2**n <= seconds <= 0.25 * 2**n


def test_a_retry_prefers_the_model_that_is_not_cooling_down() -> None:
    cooling: set[str] = set()
    flow = FailoverFlow(
        [PlanStep("a"), PlanStep("b")],
        RetryPolicy(backoff_base_s=0.001),
        is_ready=lambda m: m not in cooling,
    )
    calls = []
    while isinstance(action := flow.next(), Call | Wait):
        if isinstance(action, Wait):
            flow.record_wait(0.0)
            continue
        calls.append(action.step.model)
        cooling.add("a")
        flow.record_failure(UpstreamError("x", kind="server"), 1.0 * len(calls))
    assert calls == ["a", "b", "b", "a"], "last, but not never"


def test_the_error_shown_is_the_most_actionable_one() -> None:
    flow = FailoverFlow([PlanStep(m) for m in "abc"], RetryPolicy(per_model=0))
    for kind, after_s in (("rate_limit", 30.0), ("rate_limit", 7.0), ("server", None)):
        flow.next()
        flow.record_failure(UpstreamError(kind, kind=kind, retry_after_s=after_s), 0.1)  # type: ignore[arg-type]
    last = flow.next()
    assert isinstance(last, Exhausted)
    assert (last.error.kind, last.error.retry_after_s) == ("rate_limit", 7.0)


def test_a_filtered_prompt_is_not_sent_to_another_model() -> None:
    filtered = {"a": UpstreamError("x", kind="content_filter")}
    assert drive(["a", "b"], filtered) == ["a"]


def test_another_model_is_preferred_to_waiting() -> None:
    busy = UpstreamError("busy", kind="rate_limit", retry_after_s=2.0)
    assert drive(["a", "b"], {"a": busy}) == ["a", "b"]


def test_a_long_retry_after_is_not_waited_for() -> None:
    assert drive(["a"], {"a": UpstreamError("x", kind="rate_limit", retry_after_s=60.0)}) == ["a"]


def test_a_cut_stream_is_retried_once() -> None:
    flow = FailoverFlow([PlanStep("a")], RetryPolicy(per_model=3))
    calls = 0
    while not isinstance(action := flow.next(), Exhausted):
        if isinstance(action, Wait):
            flow.record_wait(0.0)
        else:
            calls += 1
            flow.record_failure(UpstreamError("x", kind="cut"), 0.0)
    assert calls == 2


def test_an_auth_failure_is_not_retried() -> None:
    assert drive(["a"], {"a": UpstreamError("x", kind="auth")}) == ["a"]


def test_an_exhausted_quota_is_not_retried() -> None:
    spent = UpstreamError("x", kind="rate_limit", code="insufficient_quota")
    assert drive(["a"], {"a": spent}) == ["a"]


def test_context_length_moves_to_a_larger_window_only() -> None:
    window = {"a": 8, "b": 4, "c": 16}
    tried = drive(
        ["a", "b", "c"],
        {"a": UpstreamError("x", kind="context_length")},
        has_larger_window=lambda m, than: window[m] > window[than],
    )
    assert tried == ["a", "c"]
