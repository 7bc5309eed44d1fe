"""The daily budget of the audits of one route, checked against what the store has recorded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from suffice.errors import StoreError
from suffice.monitoring.labelling import AuditFailedError
from suffice.store.protocols import AUDIT_ROUTE_PREFIX
from suffice.store.records import Spend

DAY_S = 86400.0
_RETRY_S = 0.1

_log = logging.getLogger("suffice.monitoring")


class AuditBudget:
    """The budget of one route. All workers share it through the store.

    Args:
        route: The route's name.
        usd_per_day: The cap.
        spend: (route, since_s): what was spent; blocks, and may raise StoreError.
        clock: Returns unix seconds.
    """

    def __init__(
        self,
        route: str,
        usd_per_day: float,
        spend: Callable[[str, float], Spend],
        clock: Callable[[], float],
    ) -> None:
        self._route = route
        self._usd_per_day = usd_per_day
        self._spend = spend
        self._clock = clock
        self._reserved_usd = 0.0
        self._capped: tuple[float, str] | None = None  # day and reason

    def pause_reason(self) -> str | None:
        """Why nothing can be reserved until midnight UTC."""
        if self._capped is None or self._clock() // DAY_S > self._capped[0]:
            return None
        return self._capped[1]

    @asynccontextmanager
    async def reserve(self, usd: float) -> AsyncIterator[None]:
        """Reserve `usd` as soon as it is free, for the time of the block.

        Args:
            usd: What the audit is expected to cost.

        Yields:
            Once, when the money is reserved.

        Raises:
            AuditFailedError: The budget is spent, or the store cannot be read.
        """
        await self._wait(usd)
        try:
            yield
        finally:
            self._reserved_usd -= usd

    async def _wait(self, usd: float) -> None:
        cap = self._usd_per_day
        while self.pause_reason() is None:
            day = self._clock() // DAY_S
            try:
                spent = await asyncio.to_thread(
                    self._spend, AUDIT_ROUTE_PREFIX + self._route, day * DAY_S
                )
            except StoreError as error:
                raise AuditFailedError("store", str(error)) from None
            if spent.usd + usd > cap:
                reason = (
                    f"max_usd_per_day = {cap:g} of its audits is reached (${spent.usd:.4f} spent)"
                )
                self._capped = (day, reason)
                _log.info("route %s: %s: audits continue after midnight UTC", self._route, reason)
                break
            if spent.usd + self._reserved_usd + usd <= cap:
                self._reserved_usd += usd
                return
            await asyncio.sleep(_RETRY_S)  # others mostly reserve more than they spend
        raise AuditFailedError("capped", "the daily budget of audits is spent")
