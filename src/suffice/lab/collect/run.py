"""The run itself: queries in random order, a few at once, each wholly or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from suffice.errors import SufficeError
from suffice.lab.collect.budget import Budget, Hold
from suffice.lab.collect.calls import Ask, Asker
from suffice.lab.collect.forecast import verdict_usd
from suffice.lab.collect.run_state import RunState
from suffice.types import Model

Stopped = Literal["max_usd", "interrupted"]


class Run:
    """Asks what the book lacks of `rows`, and has it judged.

    step(n, note): called as calls come to their end; n of the forecast's calls are done with.

    A query is begun only where the cap covers the worst case of all its models and what the judge
    is expected to cost, so that money does not go into queries with half their answers. The order is
    random, so that a run that ends early has asked a fair sample.
    """

    def __init__(
        self,
        book: RunState,
        rows: Sequence[int],
        asker: Asker,
        budget: Budget,
        step: Callable[[int], None],
        say: Callable[[str], None],
        seed: int,
    ) -> None:
        self.book = book
        self.asker = asker
        self.budget = budget
        self.stopped: Stopped | None = None
        self._step = step
        self._say = say
        self._fault: SufficeError | None = None
        todo = [i for i in rows if not book.done(i)]
        random.Random(seed).shuffle(todo)
        self._todo = todo
        self._tasks: list[asyncio.Task[None]] = []

    async def all(self) -> None:
        """Until all is asked, the cap is reached, or the user stops it. Raises SufficeError where the
        ledger cannot be written or a user's scorer fails; calls under way are waited for first."""
        queue = iter(self._todo)
        n = min(self.asker.concurrency, len(self._todo))
        self._tasks = [asyncio.create_task(self._work(queue)) for _ in range(n)]
        with self._interruptible():
            results = await asyncio.gather(*self._tasks, return_exceptions=True)
        self.book.ledger.write_off()
        if self._fault is not None:
            raise self._fault
        for r in results:
            if isinstance(r, BaseException) and not isinstance(r, asyncio.CancelledError):
                raise r
        if self.stopped is None and (self.budget.exhausted or self.asker.capped):
            self.stopped = "max_usd"

    async def _work(self, queue: Iterator[int]) -> None:
        for i in queue:
            if self.asker.stop.is_set() or self.budget.exhausted:
                return
            try:
                await self._query(i)
            except SufficeError as error:
                self._fault = self._fault or error
                self.asker.stop.set()

    async def _query(self, i: int) -> None:
        book = self.book
        missing = book.missing(i)
        planned = book.verdict_count() if missing else len(book.unjudged(i))
        able = [m for m in missing if self.asker.tally(m.name).given_up is None]
        usd = sum(book.ask(i, m).worst_usd for m in able) + verdict_usd(book, i)
        if not await self.budget.hold(usd):
            return
        hold = Hold(self.budget, usd)
        try:
            await asyncio.gather(*(self._model(i, m, hold) for m in missing))
            verdicts = book.unjudged(i)  # the reference has answered by now
            await asyncio.gather(*(self._verdict(a, hold) for a in verdicts))
            self._step(planned - len(verdicts))  # those that nobody had to be asked for
        finally:
            await hold.close()

    async def _model(self, i: int, model: Model, hold: Hold) -> None:
        answer = await self.asker.ask(self.book.ask(i, model), hold)
        self._step(1)
        if answer is not None and self.book.scorer is not None:
            # As answers come, so that a scorer that fails does so before all is paid for; in a
            # thread, because it may take its time.
            await asyncio.to_thread(self.book.score, i, model)

    async def _verdict(self, ask: Ask, hold: Hold) -> None:
        await self.asker.ask(ask, hold)
        self._step(1)

    # ── stopping ─────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C: begin nothing more, wait for what is under way. Once more: drop that too."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if self.stopped == "interrupted":
                for task in self._tasks:
                    task.cancel()
                return
            self.stopped = "interrupted"
            self.asker.stop.set()
            self._say("stopping: calls under way are paid for and waited for; Ctrl-C drops them")

        caught = []
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, stop)
                caught.append(number)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)
