"""The monitor of one process: the audits, the tests they feed, and the state that is shown of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from suffice.artifacts.certificate import Certificate
from suffice.background import INTERVAL_S
from suffice.monitoring.certificate_watcher import (
    CertificateWatcher,
    ServedCertificate,
    WatchedRoute,
)
from suffice.monitoring.labelling import AuditedRoute, MonitorDependencies
from suffice.monitoring.sampling import AuditSampler
from suffice.monitoring.sequential_test import SequentialTest
from suffice.store.protocols import Store


class CertificateMonitor:
    """Monitors the certificates of one process.

    `start` runs a step per second in a daemon thread. Tests call `step` instead.

    Args:
        routes: The monitored routes.
        store: The store that all workers share.
        dependencies: What audits need of the router.
        serving: Returns what a route is served under now.
        set_certificate: (route, certificate, alarm): serve the route under these.
        owner: Unique to the process.
        seed: Of the sampler.
    """

    def __init__(
        self,
        routes: Mapping[str, tuple[AuditedRoute, WatchedRoute]],
        store: Store,
        dependencies: MonitorDependencies,
        serving: Callable[[str], ServedCertificate],
        set_certificate: Callable[[str, Certificate | None, str], None],
        *,
        owner: str,
        seed: int,
    ) -> None:
        self._serving = serving
        self._routes = {name: audited for name, (audited, _) in routes.items()}
        self._watcher = CertificateWatcher(
            {name: watched for name, (_, watched) in routes.items()},
            store,
            serving,
            set_certificate,
            owner=owner,
        )
        self._sampler = AuditSampler(
            self._routes, lambda route: serving(route).certificate, dependencies, seed=seed
        )
        self.sample = self._sampler.sample
        self.submit = self._sampler.submit

    @property
    def pending(self) -> int:
        """Audits that are under way or wait."""
        return self._sampler.pending

    @property
    def tests(self) -> Mapping[str, SequentialTest]:
        """Route -> the test of its certificate, as of the last step."""
        return self._watcher.tests

    def step(self, now_s: float) -> None:
        """Run one round: ingest labels, apply alarms. Raises StoreError."""
        self._watcher.step(now_s)

    def start(self, interval_s: float = INTERVAL_S) -> None:
        """Apply alarms that are in the store already, then run steps in a daemon thread."""
        self._watcher.start(interval_s)

    def stop(self) -> None:
        """End the thread after the step it is in, and give the leases back. Idempotent."""
        self._watcher.stop()

    async def aclose(self) -> None:
        """End the audits under way. Call it from their event loop."""
        await self._sampler.aclose()

    # ── state ────────────────────────────────────────────────────────────────────────────────────

    def state(self) -> dict[str, dict[str, object]]:
        """The state of each route, as /readyz shows it."""
        return {name: self._route_state(route) for name, route in self._routes.items()}

    def _route_state(self, route: AuditedRoute) -> dict[str, object]:
        name = route.name
        served = self._serving(name)
        certificate = served.certificate
        test = self.tests.get(name)
        if certificate is None:
            summary = "Not calibrated: there is no certificate to watch."
        else:
            summary = "The watch has not begun." if test is None else test.reason
        problem = self._watcher.problems.get(name)
        return {
            "alarm": bool(served.alarm),
            "says": summary,
            "certificate": None if certificate is None else certificate.digest[:16],
            "labels": 0 if test is None else test.labels,
            "loss": None if test is None else test.recent,
            "max_loss": None if test is None else test.max_loss,
            "audits": dict(self._sampler.outcomes.get(name, {})),
            "waits": self._sampler.pause_reason(name) or _idle_reason(route),
            **({} if problem is None else {"problem": problem}),
        }

    def gauges(self) -> Iterable[tuple[str, str, dict[str, float]]]:
        """(name, help, value by route) for Prometheus."""
        served = {name: self._serving(name) for name in self._routes}
        tests = dict(self.tests)
        yield (
            "suffice_watch_alarm",
            "1 while a route's certificate is not relied on.",
            {name: float(bool(s.alarm)) for name, s in served.items()},
        )
        yield (
            "suffice_watch_loss",
            "Mean loss of about the last hundred labels.",
            {name: t.recent for name, t in tests.items() if t.recent is not None},
        )
        yield (
            "suffice_watch_labels",
            "Labels that the watch has counted.",
            {name: float(t.labels) for name, t in tests.items()},
        )


def _idle_reason(route: AuditedRoute) -> str | None:
    if route.spec.sample_rate > 0.0 and route.spec.judge is None:
        return "its judge cannot be called"
    return None
