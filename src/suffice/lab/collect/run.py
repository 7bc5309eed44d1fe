"""One run of `suffice collect`: queries in random order, several at a time, each as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from suffice.errors import SufficeError
from suffice.lab.collect.budget import Budget, QueryReservation
from suffice.lab.collect.calls import BatchCaller, PlannedCall
from suffice.lab.collect.forecast import expected_judge_usd
from suffice.lab.collect.run_state import RunState
from suffice.types import Model

Stopped = Literal["max_usd", "interrupted"]


class CollectRun:
    """Makes the calls that are missing for `rows`, and has the answers judged.

    A query starts only if the cap covers the worst case of all its models and the expected cost of
    the judge, so that no money goes into half-answered queries. The order is random, so that a run
    that ends early has asked a fair sample.

    Args:
        state: What is known of each query.
        rows: Rows to ask.
        caller: Makes the calls.
        budget: The spending cap.
        advance: Called with the number of planned calls that are done.
        notify: Called with a line for the user.
        seed: Seed of the order.
    """

    def __init__(
        self,
        state: RunState,
        rows: Sequence[int],
        caller: BatchCaller,
        budget: Budget,
        advance: Callable[[int], None],
        notify: Callable[[str], None],
        seed: int,
    ) -> None:
        self.state = state
        self.caller = caller
        self.budget = budget
        self.stopped: Stopped | None = None
        self._advance = advance
        self._notify = notify
        self._error: SufficeError | None = None
        self._rows = [i for i in rows if not state.is_complete(i)]
        random.Random(seed).shuffle(self._rows)
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Run until everything is asked, the cap is reached, or the user interrupts.

        Raises:
            SufficeError: If the journal cannot be written or a user's scorer fails. Calls in flight
                are waited for first.
        """
        queue = iter(self._rows)
        n = min(self.caller.concurrency, len(self._rows))
        self._tasks = [asyncio.create_task(self._work(queue)) for _ in range(n)]
        with self._interruptible():
            results = await asyncio.gather(*self._tasks, return_exceptions=True)
        self.state.journal.close_unfinished()
        if self._error is not None:
            raise self._error
        for r in results:
            if isinstance(r, BaseException) and not isinstance(r, asyncio.CancelledError):
                raise r
        if self.stopped is None and (self.budget.exhausted or self.caller.capped):
            self.stopped = "max_usd"

    async def _work(self, queue: Iterator[int]) -> None:
        for i in queue:
            if self.caller.stop.is_set() or self.budget.exhausted:
                return
            try:
                await self._query(i)
            except SufficeError as error:  # the journal or the scorer: nothing more is started
                self._error = self._error or error
                self.caller.stop.set()
                return

    async def _query(self, i: int) -> None:
        state = self.state
        missing = state.unanswered_models(i)
        planned = state.max_judge_calls() if missing else len(state.pending_judge_calls(i))
        callable_models = [m for m in missing if self.caller.tally(m.name).given_up is None]
        usd = sum(state.model_call(i, m).max_cost_usd for m in callable_models)
        usd += expected_judge_usd(state, i)
        if not await self.budget.reserve(usd):
            return
        reservation = QueryReservation(self.budget, usd)
        try:
            await asyncio.gather(*(self._ask_model(i, m, reservation) for m in missing))
            calls = state.pending_judge_calls(i)  # the reference has answered by now
            await asyncio.gather(*(self._ask_judge(call, reservation) for call in calls))
            self._advance(planned - len(calls))  # those that turned out to be unnecessary
        finally:
            await reservation.close()

    async def _ask_model(self, i: int, model: Model, reservation: QueryReservation) -> None:
        answer = await self.caller.ask(self.state.model_call(i, model), reservation)
        self._advance(1)
        if answer is not None and self.state.scorer is not None:
            # Scored as answers arrive, so that a scorer that fails does so before everything is paid
            # for; in a thread, because it may be slow.
            await asyncio.to_thread(self.state.score, i, model)

    async def _ask_judge(self, call: PlannedCall, reservation: QueryReservation) -> None:
        await self.caller.ask(call, reservation)
        self._advance(1)

    # ── interruption ─────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C starts no new call and waits for those in flight; a second one abandons them."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if self.stopped == "interrupted":
                for task in self._tasks:
                    task.cancel()
                return
            self.stopped = "interrupted"
            self.caller.stop.set()
            self._notify("stopping: calls in flight are paid for and waited for; Ctrl-C drops them")

        signals = []
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, stop)
                signals.append(number)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
