"""How fast each model has been lately on this gateway."""

from __future__ import annotations

from collections.abc import Callable

from suffice.pool import Candidates, Pool
from suffice.types import Candidate, Model

_REFRESH_S = (
    1.0  # of the candidates of a pool: making them costs more than a second's news is worth
)
_NEW = 0.1  # weight of a new observation, once there are enough of them for a mean
_POOLS = 512


class LatencyTracker:
    """Exponentially weighted time to first chunk and output rate, per model."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first: dict[str, tuple[float, int]] = {}  # mean, observations
        self._rate: dict[str, tuple[float, int]] = {}
        self._seen: dict[str, int] = {}
        self._candidates: dict[Pool, tuple[float, Candidates]] = {}  # with the time they were made

    def observe(
        self, model: str, first_chunk_s: float | None, latency_s: float, output_tokens: int | None
    ) -> None:
        """One successful call. first_chunk_s None: the reply came whole; then what is known of the
        model's first chunk is taken off, so that the rate is one of writing, not of waiting."""
        self._seen[model] = self._seen.get(model, 0) + 1
        waited_s = first_chunk_s
        if first_chunk_s is not None:
            _update_mean(self._first, model, first_chunk_s)
        else:
            # Never more than half: a quick reply would make the rate absurd.
            waited_s = min(self._first.get(model, (0.0, 0))[0], latency_s / 2)
        writing_s = latency_s - (waited_s or 0.0)
        if output_tokens and writing_s > 1e-4:
            _update_mean(self._rate, model, output_tokens / writing_s)

    def candidates(self, pool: Pool) -> Candidates:
        """The models of a pool with their observed speed; the same object for up to a second."""
        now_s = self._clock()
        cached = self._candidates.get(pool)
        if cached is not None and now_s - cached[0] < _REFRESH_S:
            return cached[1]
        candidates = Candidates.of(pool, [self._candidate(m) for m in pool.models])
        if cached is not None and cached[1] == candidates:
            candidates = cached[1]
        if len(self._candidates) >= _POOLS:
            self._candidates.clear()
        self._candidates[pool] = (now_s, candidates)
        return candidates

    def _candidate(self, m: Model) -> Candidate:
        first, rate = self._first.get(m.name), self._rate.get(m.name)
        return Candidate(
            m,
            round(first[0], 3) if first is not None else m.first_chunk_s,
            round(rate[0], 1) if rate is not None else m.output_tokens_per_s,
        )

    def stats(self) -> dict[str, dict[str, float | int | None]]:
        """Successful calls, mean time to first chunk and output rate of each model seen."""
        none = (None, 0)
        return {
            m: {
                "calls": n,
                "first_chunk_s": self._first.get(m, none)[0],
                "tokens_per_s": self._rate.get(m, none)[0],
            }
            for m, n in self._seen.items()
        }


def _update_mean(means: dict[str, tuple[float, int]], model: str, value: float) -> None:
    """The plain mean of the first ten, from then on an exponentially weighted one, so that a cold
    first connection does not colour the next forty."""
    mean, n = means.get(model, (0.0, 0))
    means[model] = (mean + max(_NEW, 1 / (n + 1)) * (value - mean), n + 1)
