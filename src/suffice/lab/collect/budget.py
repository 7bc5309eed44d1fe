"""A cap on money that holds under concurrency: reserve the worst case before, settle after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from suffice.types import Model

_EPSILON_USD = 1e-12  # sums of floats


class Budget:
    """limit_usd: the cap, None = none. spent: tells what is spent so far, in USD.

    Every amount held is at least what its calls can come to, and spent + held never exceeds the
    limit: so neither does what is spent.
    """

    def __init__(self, limit_usd: float | None, spent: Callable[[], float]) -> None:
        self.limit_usd = limit_usd
        self.exhausted = False
        self._spent = spent
        self._held = 0.0
        self._changed = asyncio.Condition()

    def _fits(self, usd: float) -> bool:
        if self.limit_usd is None:
            return True
        return self._spent() + self._held + usd <= self.limit_usd + _EPSILON_USD

    def try_hold(self, usd: float) -> bool:
        """Hold `usd` now, or not."""
        if not self._fits(usd):
            return False
        self._held += usd
        return True

    async def hold(self, usd: float) -> bool:
        """Hold `usd`, waiting for others to settle where that may make room. False where it will
        not: from then on nothing that has not begun begins."""
        async with self._changed:
            while True:
                if self.exhausted:
                    return False
                if self.try_hold(usd):
                    return True
                if self._held <= _EPSILON_USD:
                    self.exhausted = True
                    self._changed.notify_all()
                    return False
                await self._changed.wait()

    async def release(self, usd: float) -> None:
        """Give back what was held; what came of it is in `spent` by now."""
        async with self._changed:
            self._held = max(0.0, self._held - usd)
            self._changed.notify_all()


class Hold:
    """What one query holds. Its calls take their worst case out of it, or a little more from the
    budget where they come to more than was foreseen."""

    def __init__(self, budget: Budget, usd: float) -> None:
        self._budget = budget
        self._free = usd
        self._taken = 0.0

    def take(self, usd: float) -> bool:
        """For one call about to be made. False where the cap does not cover it."""
        if self._free < usd:
            if not self._budget.try_hold(usd - self._free):
                return False
            self._free = usd
        self._free -= usd
        self._taken += usd
        return True

    async def settle(self, usd: float) -> None:
        """A call is over, and what it came to is spent: its worst case is free again."""
        self._taken -= usd
        await self._budget.release(usd)

    async def close(self) -> None:
        free, self._free = self._free, 0.0
        await self._budget.release(free + self._taken)
        self._taken = 0.0


def worst_usd(model: Model, input_bytes: int, n_messages: int, max_output_tokens: int) -> float:
    """What a call can cost at most at list price; 0 where the price is unknown.

    A token is at least one byte of the text, and a chat template adds some tokens to each message,
    so that bytes bound tokens, whatever the tokenizer. The dearest of the input rates counts: a
    write to the provider's cache costs more than plain input.
    """
    p = model.price
    rates = (p.input_usd_per_mtok, p.cache_write_usd_per_mtok)
    rate = max((r for r in rates if r is not None), default=0.0)
    tokens = input_bytes + 32 * (n_messages + 1)
    return (tokens * rate + max_output_tokens * (p.output_usd_per_mtok or 0.0)) / 1e6


def priced(model: Model) -> bool:
    return (
        model.price.input_usd_per_mtok is not None and model.price.output_usd_per_mtok is not None
    )
