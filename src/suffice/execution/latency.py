"""How fast each model has been lately on this gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from suffice.pool import Candidates, Pool
from suffice.types import Candidate, Model

_REFRESH_S = 1.0  # candidates are made at most this often per pool: making them is not free
_NEW_WEIGHT = 0.1  # of a new observation, once there are enough for a mean
_MAX_POOLS = 512
_MIN_WRITING_S = 1e-4

_Means = dict[str, tuple[float, int]]  # model -> mean, observations


class LatencyStats(TypedDict):
    """What is known of one model."""

    calls: int
    """Successful calls."""
    first_chunk_s: float | None
    """Mean seconds to the first chunk."""
    tokens_per_s: float | None
    """Mean output rate."""


class LatencyTracker:
    """Exponentially weighted time to first chunk and output rate, per model.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first_chunk_s: _Means = {}
        self._tokens_per_s: _Means = {}
        self._calls: dict[str, int] = {}
        self._candidates: dict[Pool, tuple[float, Candidates]] = {}  # with the time they were made

    def observe(
        self, model: str, first_chunk_s: float | None, latency_s: float, output_tokens: int | None
    ) -> None:
        """Record a successful call.

        Args:
            model: the model.
            first_chunk_s: None for a whole reply; then the known mean is subtracted, so that the
                rate is one of writing, not of waiting.
            latency_s: of the whole call.
            output_tokens: None if unknown.
        """
        self._calls[model] = self._calls.get(model, 0) + 1
        if first_chunk_s is not None:
            _update_mean(self._first_chunk_s, model, first_chunk_s)
            waiting_s = first_chunk_s
        else:
            # At most half: a quick reply would make the rate absurd.
            waiting_s = min(self._first_chunk_s.get(model, (0.0, 0))[0], latency_s / 2)
        writing_s = latency_s - waiting_s
        if output_tokens and writing_s > _MIN_WRITING_S:
            _update_mean(self._tokens_per_s, model, output_tokens / writing_s)

    def candidates(self, pool: Pool) -> Candidates:
        """The models of a pool with their observed speed; the same object for up to a second."""
        now_s = self._clock()
        cached = self._candidates.get(pool)
        if cached is not None and now_s - cached[0] < _REFRESH_S:
            return cached[1]
        candidates = Candidates.of(pool, [self._candidate(model) for model in pool.models])
        if cached is not None and cached[1] == candidates:
            candidates = cached[1]
        if len(self._candidates) >= _MAX_POOLS:
            self._candidates.clear()
        self._candidates[pool] = (now_s, candidates)
        return candidates

    def _candidate(self, model: Model) -> Candidate:
        first_chunk = self._first_chunk_s.get(model.name)
        rate = self._tokens_per_s.get(model.name)
        return Candidate(
            model,
            round(first_chunk[0], 3) if first_chunk is not None else model.first_chunk_s,
            round(rate[0], 1) if rate is not None else model.output_tokens_per_s,
        )

    def stats(self) -> dict[str, LatencyStats]:
        """What is known of each model that was called."""
        none = (None, 0)
        return {
            model: {
                "calls": calls,
                "first_chunk_s": self._first_chunk_s.get(model, none)[0],
                "tokens_per_s": self._tokens_per_s.get(model, none)[0],
            }
            for model, calls in self._calls.items()
        }


def _update_mean(means: _Means, model: str, value: float) -> None:
    """The plain mean of the first ten observations, then an exponentially weighted one.

    A cold first connection would otherwise weigh on the next forty.
    """
    mean, count = means.get(model, (0.0, 0))
    means[model] = (mean + max(_NEW_WEIGHT, 1 / (count + 1)) * (value - mean), count + 1)
