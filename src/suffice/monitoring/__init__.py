"""Is what was certified still true? A trickle of labelled decisions, a watch over them, and the
reference model where the watch raises an alarm.

`auditing` makes labels in the gateway's event loop, `watching` reads them back from the store in a
thread, and `CertificateMonitor` joins the two. Built by the router, for routes with a table `audit`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from suffice.artifacts.certificate import Certificate
from suffice.errors import StoreError
from suffice.monitoring.certificate_monitor import (
    CertificateWatcher,
    ServedCertificate,
    WatchedRoute,
)
from suffice.monitoring.labelling import ROUTE, SOURCE, AuditedRoute, MonitorDependencies
from suffice.monitoring.sampling import AuditSample, AuditSampler, is_sampled
from suffice.store.protocols import Store

__all__ = [
    "ROUTE",
    "SOURCE",
    "CertificateMonitor",
    "AuditedRoute",
    "AuditSampler",
    "MonitorDependencies",
    "AuditSample",
    "ServedCertificate",
    "WatchedRoute",
    "CertificateWatcher",
    "is_sampled",
]

EVERY_S = 1.0  # between two looks at the store

_log = logging.getLogger("suffice.audit")


class CertificateMonitor:
    """All watched routes of one process. `step` does one round of the watch and is what tests call;
    `start` repeats it in a daemon thread."""

    def __init__(
        self,
        routes: Mapping[str, tuple[AuditedRoute, WatchedRoute]],
        store: Store,
        calls: MonitorDependencies,
        serving: Callable[[str], ServedCertificate],
        rely: Callable[[str, Certificate | None, str], None],
        *,
        owner: str,
        seed: int,
    ) -> None:
        self._serving = serving
        self._watching = CertificateWatcher(
            {n: w for n, (_, w) in routes.items()}, store, serving, rely, owner=owner
        )
        self._sampler = AuditSampler(
            {n: a for n, (a, _) in routes.items()},
            lambda route: serving(route).certificate,
            calls,
            seed=seed,
        )
        self._routes = {n: a for n, (a, _) in routes.items()}
        self.sample = self._sampler.sample
        self.submit = self._sampler.submit
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Audits that are under way or wait."""
        return self._sampler.waiting

    def step(self, now_s: float) -> None:
        """One round of the watch: labels taken in, alarms obeyed. Raises StoreError."""
        self._watching.step(now_s)

    def start(self, every_s: float = EVERY_S) -> None:
        """Run in a daemon thread until `stop`. An alarm of before is obeyed at once."""
        if self._thread is None:
            try:
                self._watching.recall()
            except StoreError as error:
                _log.warning("the watch waits for the store: %s", error)
            self._thread = threading.Thread(
                target=self._forever, args=(every_s,), name="suffice-watch", daemon=True
            )
            self._thread.start()

    def _forever(self, every_s: float) -> None:
        while not self._stop.is_set():
            try:
                self.step(time.time())
            except StoreError as error:
                _log.warning("the watch waits for the store: %s", error)
            self._stop.wait(every_s)

    def stop(self) -> None:
        """End the thread, after the round it is in, and give the leases back."""
        if self._stop.is_set():
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join(30.0)
        try:
            self._watching.release()
        except StoreError as error:
            _log.warning("leases of the watch run out by themselves: %s", error)

    async def aclose(self) -> None:
        """End the audits under way; from the loop that they run in."""
        await self._sampler.aclose()

    # ── what is said of it ───────────────────────────────────────────────────────────────────────

    def state(self) -> dict[str, Any]:
        """Of each watched route, as /readyz shows it."""
        out = {}
        for name, route in self._routes.items():
            now = self._serving(name)
            watch = self._watching.watches.get(name)
            says = "Not calibrated: there is no certificate to watch."
            if now.certificate is not None:
                says = "The watch has not begun." if watch is None else watch.reason
            problem = self._watching.problems.get(name)
            out[name] = {
                "alarm": bool(now.alarm),
                "says": says,
                "certificate": None if now.certificate is None else now.certificate.digest[:16],
                "labels": 0 if watch is None else watch.labels,
                "loss": None if watch is None else watch.recent,
                "max_loss": None if watch is None else watch.max_loss,
                "audits": dict(self._sampler.outcomes.get(name, {})),
                "waits": self._sampler.waits(name) or _idle(route),
                **({} if problem is None else {"problem": problem}),
            }
        return out

    def gauges(self) -> Iterable[tuple[str, str, dict[str, float]]]:
        """(name, help, value by route) for Prometheus."""
        serving = {n: self._serving(n) for n in self._routes}
        watches = dict(self._watching.watches)
        yield (
            "suffice_watch_alarm",
            "1 while a route's certificate is not relied on.",
            {n: float(bool(s.alarm)) for n, s in serving.items()},
        )
        yield (
            "suffice_watch_loss",
            "Mean loss of about the last hundred labels.",
            {n: w.recent for n, w in watches.items() if w.recent is not None},
        )
        yield (
            "suffice_watch_labels",
            "Labels that the watch has seen.",
            {n: float(w.labels) for n, w in watches.items()},
        )


def _idle(route: AuditedRoute) -> str | None:
    if route.spec.sample_rate > 0.0 and route.spec.judge is None:
        return "its judge cannot be called"
    return None
