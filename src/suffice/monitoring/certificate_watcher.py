"""The sequential test of each route's certificate, fed from stored feedback, and what an alarm changes.

    feedback since the cursor -> test -> saved with the cursor in one transaction    lease holder
    saved test                -> alarm -> the reference model serves                 every worker
    another certificate file  -> served from then on, with a new test                every worker

Of all workers on a store one feeds a test at a time. If it is killed, no label is lost or counted twice:
the cursor is compared and set together with the test.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from suffice.artifacts import certificate as certificates
from suffice.artifacts.certificate import Certificate
from suffice.background import LeasedWorker
from suffice.errors import ArtifactError, StoreError
from suffice.monitoring import sequential_test
from suffice.monitoring.labelling import AUDIT_SOURCE
from suffice.monitoring.sampling import label_key
from suffice.monitoring.sequential_test import SequentialTest
from suffice.store.protocols import Store
from suffice.store.records import FeedbackEvent

if TYPE_CHECKING:
    from suffice.config import AuditSpec  # pydantic: 100 ms

LEASE_S = 10.0
_PAGE = 500  # labels read at a time
_MAX_PAGES = 20  # per step, so that other routes get their turn
_MAX_COUNTED = 2048  # decisions remembered as counted: a second label of one is not new evidence
_STATE = "watch"  # the name of the state in the store

_log = logging.getLogger("suffice.monitoring")


class WatchedRoute(NamedTuple):
    """A route whose certificate is watched."""

    name: str
    spec: AuditSpec
    file: Path | None
    """Where its certificate is, or would be."""


class ServedCertificate(NamedTuple):
    """What a route is served under."""

    certificate: Certificate | None
    alarm: str
    """'' = none."""


class _SavedWatch(msgspec.Struct, frozen=True):
    """The state as it is stored."""

    digest: str
    began_s: float
    watch: dict[str, Any]  # JSON of a SequentialTest
    counted: bytes = b""  # 8 bytes per decision, the newest at the end


class LocalWatch(NamedTuple):
    """A test in memory."""

    digest: str
    """Of the certificate."""
    began_s: float
    """Unix time. Older decisions belong to another certificate."""
    test: SequentialTest
    counted: tuple[bytes, ...]
    """Digests of the decisions counted last."""
    cursor: int
    """All feedback up to this sequence number is in the test."""

    def encode(self) -> bytes:
        """The state as it is stored."""
        counted = b"".join(self.counted[-_MAX_COUNTED:])
        saved = _SavedWatch(self.digest, self.began_s, self.test.to_dict(), counted)
        return msgspec.json.encode(saved)


class CertificateWatcher:
    """The tests of one process. `step` blocks; it belongs in a separate thread.

    Args:
        routes: The watched routes.
        store: The store that all workers share.
        serving: Returns what a route is served under now.
        set_certificate: (route, certificate, alarm): serve the route under these.
        owner: Unique to the process.
    """

    def __init__(
        self,
        routes: Mapping[str, WatchedRoute],
        store: Store,
        serving: Callable[[str], ServedCertificate],
        set_certificate: Callable[[str, Certificate | None, str], None],
        *,
        owner: str,
    ) -> None:
        self._routes = routes
        self._store = store
        self._serving = serving
        self._set_certificate = set_certificate
        self._worker = LeasedWorker(
            "watch", self.step, store.leases, owner=owner, lease_s=LEASE_S, log=_log
        )
        self._local: dict[str, LocalWatch] = {}  # state key -> the test that this process feeds
        self._files: dict[str, tuple[int, int, int]] = {}  # route -> fingerprint
        self.tests: dict[str, SequentialTest] = {}
        """Route -> its test, as of the last step."""
        self.problems: dict[str, str] = {}
        """Route -> why its certificate file is refused."""

    def start(self, interval_s: float) -> None:
        """Apply alarms that are in the store already, then run steps in a daemon thread."""
        if not self._worker.running:
            try:
                self._apply_saved_alarms()
            except StoreError as error:
                _log.warning("the watch waits for the store: %s", error)
            self._worker.start(interval_s)

    def stop(self) -> None:
        """End the thread after the step it is in, and give the leases back. Idempotent."""
        self._worker.stop()

    def step(self, now_s: float) -> None:
        """Run one round: ingest labels, apply alarms. Raises StoreError."""
        for name, route in self._routes.items():
            self._follow_file(route)
            certificate = self._serving(name).certificate
            if certificate is None:
                continue
            key = state_key(name, certificate)
            if self._worker.hold(key, now_s):
                self._ingest_labels(route, certificate, key, now_s)
            else:
                self._local.pop(key, None)
                self._read_shared_state(name, key)
            self._apply_alarm(name, certificate)

    def _apply_saved_alarms(self) -> None:
        for name in self._routes:
            certificate = self._serving(name).certificate
            if certificate is not None:
                self._read_shared_state(name, state_key(name, certificate))
                self._apply_alarm(name, certificate)

    # ── the certificate's file ───────────────────────────────────────────────────────────────────

    def _follow_file(self, route: WatchedRoute) -> None:
        """Serve under a certificate file that was replaced.

        Calibration replaces the file as a whole. A file that cannot be used is logged, and the previous
        certificate stays in use.
        """
        fingerprint = None if route.file is None else file_fingerprint(route.file)
        if route.file is None or fingerprint is None:
            return
        if fingerprint == self._files.get(route.name):
            return
        self._files[route.name] = fingerprint
        try:
            certificate = certificates.load(route.file)
        except ArtifactError as error:
            self.problems[route.name] = str(error)
            _log.error("route %s: its new certificate is refused: %s", route.name, error)
            return
        self.problems.pop(route.name, None)
        served = self._serving(route.name).certificate
        if served is None or served.digest != certificate.digest:
            self.tests.pop(route.name, None)
            self._set_certificate(route.name, certificate, "")
            _log.warning("route %s: served under a new certificate from now on", route.name)

    # ── labels ───────────────────────────────────────────────────────────────────────────────────

    def _ingest_labels(
        self, route: WatchedRoute, certificate: Certificate, key: str, now_s: float
    ) -> None:
        watch = (
            self._local.get(key)
            or self._load(route.name, key)
            or self._create(route, certificate, key, now_s)
        )
        for _ in range(_MAX_PAGES):
            events = self._store.feedback.events_since(watch.cursor, _PAGE, route=route.name)
            if not events:
                break
            before = watch
            watch = _apply_labels(before, events, certificate, route.spec.trusted_sources)
            if not self._store.learner_states.save(
                key,
                {_STATE: watch.encode()},
                watch.cursor,
                expected_cursor=before.cursor,
                now_s=now_s,
            ):
                # Another worker has fed the test: it has these labels as well.
                self._local.pop(key, None)
                self._read_shared_state(route.name, key)
                return
            self._local[key] = watch
        self._local[key] = watch
        self.tests[route.name] = watch.test

    def _create(
        self, route: WatchedRoute, certificate: Certificate, key: str, now_s: float
    ) -> LocalWatch:
        test = sequential_test.start(certificate.max_loss, route.spec.false_alarm_rate)
        states = self._store.learner_states
        cursor = states.load(key).cursor
        watch = LocalWatch(certificate.digest, now_s, test, (), cursor)
        states.save(key, {_STATE: watch.encode()}, cursor, expected_cursor=cursor, now_s=now_s)
        return watch

    def _load(self, route: str, key: str) -> LocalWatch | None:
        """The test as it was saved; `None` if there is none, or none that can be read."""
        state = self._store.learner_states.load(key)
        raw = state.states.get(_STATE)
        if raw is None:
            return None
        try:
            saved = msgspec.json.decode(raw, type=_SavedWatch)
            test = SequentialTest.from_dict(saved.watch)
        except (msgspec.DecodeError, ValueError) as error:
            _log.error(  # the error says it all
                "route %s: its watch cannot be read and starts again: %s", route, error
            )
            return None
        n = len(saved.counted) // 8
        counted = tuple(saved.counted[8 * i : 8 * i + 8] for i in range(n))
        return LocalWatch(saved.digest, saved.began_s, test, counted, state.cursor)

    def _read_shared_state(self, route: str, key: str) -> None:
        watch = self._load(route, key)
        if watch is not None:
            self.tests[route] = watch.test

    # ── alarms ───────────────────────────────────────────────────────────────────────────────────

    def _apply_alarm(self, name: str, certificate: Certificate) -> None:
        """Serve the reference while there is an alarm.

        This runs in every step, so that a policy that was promoted meanwhile does not end the alarm.
        """
        test = self.tests.get(name)
        served = self._serving(name)
        if test is None or not test.alarmed or served.alarm:
            return
        if served.certificate is not certificate:
            return
        self._set_certificate(name, certificate, alarm_reason(test))
        _log.warning(
            "route %s: the test of its certificate raised an alarm; its reference model serves until "
            "there is another certificate (suffice calibrate). %s",
            name,
            test.reason,
        )


def state_key(route: str, certificate: Certificate) -> str:
    """The name that the test of a certificate is stored and leased under."""
    return f"watch:{route}:{certificate.digest[:16]}"


def loss_of(
    event: FeedbackEvent, certificate: Certificate, trusted: frozenset[str], began_s: float
) -> float | None:
    """The gross loss of a decision, by a score.

    An audit's loss is 1 - score. For a trusted source it is 1 - score if a cheaper model served: the
    reference is taken as perfect, which can only make the loss look larger. It is 0 if the reference
    served.

    Args:
        event: The score.
        certificate: The certificate that is tested.
        trusted: The trusted sources.
        began_s: Unix time at which the test began.

    Returns:
        `None` if the score is not a label of this test: it is about another certificate, from another
        source, about a model that was not the one decided on, or replaces an earlier score.
    """
    if event.basis != "certified" or event.previous_seq is not None or event.propensity < 0.5:
        return None  # propensity: an explored model was not the certificate's choice
    if event.status >= 400 or event.model is None or event.model != event.chosen:
        return None
    if event.source == AUDIT_SOURCE:
        return 1.0 - event.score if event.key == label_key(certificate) else None
    if event.source not in trusted or event.created_s < began_s:
        return None
    names = [p.model for p in event.predictions]
    reference = certificate.find_reference(names)
    if reference is None:
        return None
    return 0.0 if names[reference] == event.model else max(0.0, 1.0 - event.score)


def alarm_reason(test: SequentialTest) -> str:
    """An alarm in a few words, for the reason of each decision."""
    return (
        f"the watch raised an alarm: the loss is {test.recent or 0.0:.2f} lately and "
        f"{test.max_loss:g} is certified"
    )


def file_fingerprint(file: Path) -> tuple[int, int, int] | None:
    """Which file is there now; `None` if there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _apply_labels(
    watch: LocalWatch,
    events: Sequence[FeedbackEvent],
    certificate: Certificate,
    trusted: frozenset[str],
) -> LocalWatch:
    test, counted = watch.test, watch.counted
    known = set(counted)
    for event in events:
        loss = loss_of(event, certificate, trusted, watch.began_s)
        digest = blake2b(event.decision_id.encode(), digest_size=8).digest()
        if loss is None or digest in known:
            continue
        test = test.update(min(1.0, max(0.0, loss)))
        known.add(digest)
        counted = (*counted[-_MAX_COUNTED + 1 :], digest)
    return watch._replace(test=test, counted=counted, cursor=events[-1].seq)
