"""Background work of a gateway process: a daemon thread, and leases that keep workers apart."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from suffice.errors import StoreError

if TYPE_CHECKING:
    from suffice.store.protocols import Leases

INTERVAL_S = 1.0


class LeasedWorker:
    """Calls `step(now_s)` in a daemon thread, and holds leases for the work that `step` does.

    All workers on a store run the same steps. A step asks `hold` for each piece of work, and does
    it only if this process holds the lease. Tests call `step` directly and start no thread.

    Args:
        name: Of the thread and in log lines, e.g. "learning".
        step: One round of work. `now_s` is unix time. A StoreError ends the round only.
        leases: The store's leases.
        owner: Unique to the process.
        lease_s: A lease expires after this many seconds; half-way `hold` extends it.
        log: Where problems with the store are logged, each once until a round succeeds.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[float], None],
        leases: Leases,
        *,
        owner: str,
        lease_s: float,
        log: logging.Logger,
    ) -> None:
        self._name = name
        self._step = step
        self._leases = leases
        self._owner = owner
        self._lease_s = lease_s
        self._log = log
        self._held_until_s: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether the thread was started."""
        return self._thread is not None

    def stopping(self) -> bool:
        """Whether `stop` was called. A long step should check this and return."""
        return self._stop.is_set()

    def hold(self, name: str, now_s: float) -> bool:
        """Take or extend a lease.

        Returns:
            False if another process holds it.

        Raises:
            StoreError: The store cannot be asked.
        """
        if now_s < self._held_until_s.get(name, 0.0) - self._lease_s / 2:
            return True
        if self._leases.acquire(name, self._owner, self._lease_s, now_s):
            self._held_until_s[name] = now_s + self._lease_s
            return True
        self._held_until_s.pop(name, None)
        return False

    def release(self) -> None:
        """Give all leases back, so that another worker need not wait until they expire."""
        for name in list(self._held_until_s):
            try:
                self._leases.release(name, self._owner)
            except StoreError as error:
                self._log.warning("lease %s is left to expire: %s", name, error)
        self._held_until_s.clear()

    def start(self, interval_s: float = INTERVAL_S, *, delay_s: float = 0.0) -> None:
        """Run steps in a daemon thread until `stop`. Does nothing if it runs already.

        Args:
            interval_s: Pause between two steps.
            delay_s: Pause before the first step.
        """
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(interval_s, delay_s), name=f"suffice-{self._name}"
            )
            self._thread.daemon = True
            self._thread.start()

    def _run(self, interval_s: float, delay_s: float) -> None:
        problem = ""
        pause_s = delay_s
        while not self._stop.wait(pause_s):
            pause_s = interval_s
            try:
                self._step(time.time())
                problem = ""
            except StoreError as error:
                if str(error) != problem:
                    problem = str(error)
                    self._log.warning("%s waits for the store: %s", self._name, error)

    def stop(self, timeout_s: float = 30.0) -> None:
        """End the thread after the step it is in, and give the leases back. Idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        self.release()
