"""A spending cap that holds under concurrency: reserve the worst case before a call, settle after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from suffice.types import Model

_EPSILON_USD = 1e-12  # rounding of sums of floats
_TEMPLATE_TOKENS = 32  # at most, that a chat template adds to each message


class Budget:
    """A cap on what a table may cost.

    Every reserved amount is at least what its calls can cost, and spent + reserved never exceeds the
    limit. So the money spent never exceeds it either.

    Args:
        limit_usd: The cap; None = no cap.
        spent_usd: Returns what is spent so far.
    """

    def __init__(self, limit_usd: float | None, spent_usd: Callable[[], float]) -> None:
        self.limit_usd = limit_usd
        self.exhausted = False
        self._spent_usd = spent_usd
        self._reserved_usd = 0.0
        self._changed = asyncio.Condition()

    @property
    def reserved_usd(self) -> float:
        """What is reserved now."""
        return self._reserved_usd

    def _fits(self, usd: float) -> bool:
        if self.limit_usd is None:
            return True
        return self._spent_usd() + self._reserved_usd + usd <= self.limit_usd + _EPSILON_USD

    def try_reserve(self, usd: float) -> bool:
        """Reserve `usd` now if it fits; whether it did."""
        if not self._fits(usd):
            return False
        self._reserved_usd += usd
        return True

    async def reserve(self, usd: float) -> bool:
        """Reserve `usd`, waiting for others to settle if that may make room.

        Returns:
            False if it can never fit; from then on no new reservation is made.
        """
        async with self._changed:
            while True:
                if self.exhausted:
                    return False
                if self.try_reserve(usd):
                    return True
                if self._reserved_usd <= _EPSILON_USD:
                    self.exhausted = True
                    self._changed.notify_all()
                    return False
                await self._changed.wait()

    async def release(self, usd: float) -> None:
        """Release a reservation; what was really spent is counted in `spent_usd` by now."""
        async with self._changed:
            self._reserved_usd = max(0.0, self._reserved_usd - usd)
            self._changed.notify_all()


class QueryReservation:
    """The money reserved for one query.

    Its calls draw their worst case from it, or slightly more from the budget if they cost more than
    expected.
    """

    def __init__(self, budget: Budget, usd: float) -> None:
        self._budget = budget
        self._free_usd = usd
        self._drawn_usd = 0.0

    def draw(self, usd: float) -> bool:
        """Draw the worst case of one call; False if the cap does not cover it."""
        if self._free_usd < usd:
            if not self._budget.try_reserve(usd - self._free_usd):
                return False
            self._free_usd = usd
        self._free_usd -= usd
        self._drawn_usd += usd
        return True

    async def settle(self, usd: float) -> None:
        """Release the worst case of a call that has ended and whose cost is counted as spent."""
        self._drawn_usd -= usd
        await self._budget.release(usd)

    async def close(self) -> None:
        """Release the remaining reservations."""
        remaining_usd = self._free_usd + self._drawn_usd
        self._free_usd = self._drawn_usd = 0.0
        await self._budget.release(remaining_usd)


def max_cost_usd(model: Model, input_bytes: int, n_messages: int, max_output_tokens: int) -> float:
    """Returns the most a call can cost at list price, in USD; 0 if the price is unknown.

    A token is at least one byte of the text, and a chat template adds a few tokens per message, so
    bytes bound tokens for any tokenizer. The highest of the input rates counts: a write to the
    provider's cache costs more than plain input.
    """
    p = model.price
    rates = (p.input_usd_per_mtok, p.cache_write_usd_per_mtok)
    rate = max((r for r in rates if r is not None), default=0.0)
    tokens = input_bytes + _TEMPLATE_TOKENS * (n_messages + 1)
    return (tokens * rate + max_output_tokens * (p.output_usd_per_mtok or 0.0)) / 1e6


def has_price(model: Model) -> bool:
    """Whether both list prices of the model are known."""
    price = model.price
    return price.input_usd_per_mtok is not None and price.output_usd_per_mtok is not None
