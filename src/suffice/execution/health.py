"""How fast each model has been lately on this gateway."""

from __future__ import annotations

from collections.abc import Callable

from ..types import Candidate, Model

_REFRESH_S = 1.0  # policies cache by the identity of the candidates, so it changes this seldom
_HALF = 0.1  # weight of a new observation
_POOLS = 512


class Health:
    """Exponentially weighted time to first chunk and output rate, per model."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first: dict[str, float] = {}
        self._rate: dict[str, float] = {}
        self._seen: dict[str, int] = {}
        self._by_id: dict[int, tuple[tuple[Model, ...], float, tuple[Candidate, ...]]] = {}

    def observe(
        self, model: str, first_chunk_s: float | None, latency_s: float, output_tokens: int | None
    ) -> None:
        """One successful call. first_chunk_s None: the reply came whole, so only its sum is known."""
        self._seen[model] = self._seen.get(model, 0) + 1
        if first_chunk_s is not None:
            before = self._first.get(model)
            self._first[model] = (
                first_chunk_s if before is None else before + _HALF * (first_chunk_s - before)
            )
        after_s = latency_s - (first_chunk_s if first_chunk_s is not None else 0.0)
        if output_tokens and after_s > 1e-4:
            rate = output_tokens / after_s
            known = self._rate.get(model)
            self._rate[model] = rate if known is None else known + _HALF * (rate - known)

    def candidates(self, models: tuple[Model, ...]) -> tuple[Candidate, ...]:
        """The models with what is known of their speed; the same tuple for up to a second."""
        now_s = self._clock()
        found = self._by_id.get(id(models))
        if found is not None and found[0] is models and now_s - found[1] < _REFRESH_S:
            return found[2]
        fresh = tuple([self._candidate(m) for m in models])
        if found is not None and found[0] is models and found[2] == fresh:
            fresh = found[2]
        if len(self._by_id) >= _POOLS:
            self._by_id.clear()
        self._by_id[id(models)] = (models, now_s, fresh)
        return fresh

    def _candidate(self, m: Model) -> Candidate:
        first, rate = self._first.get(m.name), self._rate.get(m.name)
        return Candidate(
            m,
            round(first, 3) if first is not None else m.first_chunk_s,
            round(rate, 1) if rate is not None else m.output_tokens_per_s,
        )

    def observed(self) -> dict[str, dict[str, float | int | None]]:
        return {
            m: {"calls": n, "first_chunk_s": self._first.get(m), "tokens_per_s": self._rate.get(m)}
            for m, n in self._seen.items()
        }
