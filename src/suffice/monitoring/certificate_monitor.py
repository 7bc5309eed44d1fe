"""The watch over each route's certificate, fed from stored feedback, and what follows from an alarm.

    feedback since the cursor -> Watch -> saved with the cursor in one transaction     lease holder
    saved watch               -> alarm -> the reference serves                         every worker
    another certificate file  -> served from then on, with a watch of its own          every worker

Of all workers on a store one feeds a watch at a time. One that is killed anywhere neither loses nor
double-counts a label: the cursor is compared and set with the watch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from suffice.artifacts import certificate as certificates
from suffice.artifacts.certificate import Certificate
from suffice.errors import ArtifactError
from suffice.monitoring import sequential_test as watches
from suffice.monitoring.labelling import SOURCE
from suffice.monitoring.sampling import label_key
from suffice.monitoring.sequential_test import SequentialTest
from suffice.store.protocols import Store
from suffice.types import FeedbackEvent

if TYPE_CHECKING:
    from suffice.config import AuditSpec  # pydantic: 100 ms

LEASE_S = 10.0
_PAGE = 500  # labels taken in at a time
_PAGES = 20  # at most in one step, so that other routes get their turn
_COUNTED = 2048  # decisions remembered as counted: a second label of one is no new evidence
_STATE = "watch"

_log = logging.getLogger("suffice.audit")


class WatchedRoute(NamedTuple):
    """A route whose certificate is watched. file: where its certificate is, or would be."""

    name: str
    spec: AuditSpec
    file: Path | None


class ServedCertificate(NamedTuple):
    """What the router serves a route under. alarm: '' = none."""

    certificate: Certificate | None
    alarm: str


class _State(msgspec.Struct, frozen=True):
    """began_s: unix time; older decisions are another certificate's. counted: 8 bytes a decision,
    the newest at the end."""

    digest: str
    began_s: float
    watch: dict[str, Any]
    counted: bytes = b""


class LocalWatch(NamedTuple):
    """A watch in memory. cursor: all feedback up to this seq is in it."""

    digest: str
    began_s: float
    watch: SequentialTest
    counted: tuple[bytes, ...]
    cursor: int

    def encoded(self) -> bytes:
        counted = b"".join(self.counted[-_COUNTED:])
        return msgspec.json.encode(_State(self.digest, self.began_s, self.watch.to_dict(), counted))


def place(route: str, certificate: Certificate) -> str:
    """The name that a certificate's watch is kept and leased under."""
    return f"watch:{route}:{certificate.digest[:16]}"


def loss_of(
    x: FeedbackEvent, certificate: Certificate, trusted: frozenset[str], began_s: float
) -> float | None:
    """What a score says of the gross loss of a decision; None where it is no label of this watch:
    of another certificate or source, of a model that was not the one decided on, or a second word.

    Of an audit: 1 - score. Of a trusted source: max(0, 1 - score) where cheap served, the reference
    taken as perfect, which can only make the loss look larger; 0 where the reference served.
    """
    if x.basis != "certified" or x.previous_seq is not None or x.propensity < 0.5:
        return None  # propensity: one that was explored was not the certificate's choice
    if x.status >= 400 or x.model is None or x.model != x.chosen:
        return None
    if x.source == SOURCE:
        return 1.0 - x.score if x.key == label_key(certificate) else None
    if x.source not in trusted or x.created_s < began_s:
        return None
    names = [p.model for p in x.predictions]
    reference = certificate.find_reference(names)
    if reference is None:
        return None
    return 0.0 if names[reference] == x.model else max(0.0, 1.0 - x.score)


class CertificateWatcher:
    """The watches of one process. Blocking: `step` belongs to a thread of its own.

    serving(route): what it is served under now; rely(route, certificate, alarm): serve it under
    this. owner: unique to the process.
    """

    def __init__(
        self,
        routes: Mapping[str, WatchedRoute],
        store: Store,
        serving: Callable[[str], ServedCertificate],
        rely: Callable[[str, Certificate | None, str], None],
        *,
        owner: str,
    ) -> None:
        self._routes = routes
        self._store = store
        self._serving = serving
        self._rely = rely
        self._owner = owner
        self._held: dict[str, float] = {}  # place -> until when its lease is held
        self._mine: dict[str, LocalWatch] = {}  # place -> the watch that this process feeds
        self._files: dict[str, tuple[int, int, int]] = {}
        self.watches: dict[str, SequentialTest] = {}  # route -> as it was when last looked at
        self.problems: dict[str, str] = {}

    def step(self, now_s: float) -> None:
        """One round. Raises StoreError."""
        for name, route in self._routes.items():
            self._follow_file(route)
            told = self._serving(name).certificate
            if told is None:
                continue
            at = place(name, told)
            if self._holds(at, now_s):
                self._feed(route, told, at, now_s)
            else:
                self._mine.pop(at, None)
                self._look(name, told, at)
            self._obey(name, told)

    def recall(self) -> None:
        """Obey alarms that are in the store already. Raises StoreError."""
        for name in self._routes:
            told = self._serving(name).certificate
            if told is not None:
                self._look(name, told, place(name, told))
                self._obey(name, told)

    def release(self) -> None:
        """Give the leases back. Raises StoreError."""
        for at in list(self._held):
            self._store.leases.release(at, self._owner)
        self._held.clear()

    # ── the certificate's file ───────────────────────────────────────────────────────────────────

    def _follow_file(self, route: WatchedRoute) -> None:
        """A file that was replaced (calibration replaces it whole) is served from now on. One that
        cannot be used is said, and the one before goes on."""
        if route.file is None:
            return
        stamp = _stamp(route.file)
        if stamp is None or stamp == self._files.get(route.name):
            return
        self._files[route.name] = stamp
        try:
            found = certificates.load(route.file)
        except ArtifactError as error:
            self.problems[route.name] = str(error)
            _log.error("route %s: its new certificate is refused: %s", route.name, error)
            return
        self.problems.pop(route.name, None)
        now = self._serving(route.name).certificate
        if now is None or now.digest != found.digest:
            self.watches.pop(route.name, None)
            self._rely(route.name, found, "")
            _log.warning("route %s: served under a new certificate from now on", route.name)

    # ── labels ───────────────────────────────────────────────────────────────────────────────────

    def _holds(self, at: str, now_s: float) -> bool:
        if now_s < self._held.get(at, 0.0) - LEASE_S / 2:
            return True
        if self._store.leases.acquire(at, self._owner, LEASE_S, now_s):
            self._held[at] = now_s + LEASE_S
            return True
        self._held.pop(at, None)
        return False

    def _feed(self, route: WatchedRoute, told: Certificate, at: str, now_s: float) -> None:
        mine = self._mine.get(at)
        if mine is None:
            mine = self._loaded(route, told, at) or self._begun(route, told, at, now_s)
        for _ in range(_PAGES):
            labels = self._store.feedback.events_since(mine.cursor, _PAGE, route=route.name)
            if not labels:
                break
            before = mine
            mine = _taken(before, labels, told, route.spec.trusted_sources)
            if not self._store.learner_states.save(
                at,
                {_STATE: mine.encoded()},
                mine.cursor,
                expected_cursor=before.cursor,
                now_s=now_s,
            ):
                # Another worker has fed it: what was taken here is in its watch as well.
                self._mine.pop(at, None)
                self._look(route.name, told, at)
                return
            self._mine[at] = mine
        self._mine[at] = mine
        self.watches[route.name] = mine.watch

    def _begun(self, route: WatchedRoute, told: Certificate, at: str, now_s: float) -> LocalWatch:
        watch = watches.begin(told.max_loss, route.spec.false_alarm_rate)
        cursor = self._store.learner_states.load(at).cursor
        mine = LocalWatch(told.digest, now_s, watch, (), cursor)
        self._store.learner_states.save(
            at, {_STATE: mine.encoded()}, cursor, expected_cursor=cursor, now_s=now_s
        )
        return mine

    def _loaded(self, route: WatchedRoute, told: Certificate, at: str) -> LocalWatch | None:
        """The watch as it was saved; None where there is none, or none that can be read."""
        saved = self._store.learner_states.load(at)
        raw = saved.states.get(_STATE)
        if raw is None:
            return None
        try:
            state = msgspec.json.decode(raw, type=_State)
            watch = SequentialTest.from_dict(state.watch)
        except (msgspec.DecodeError, ValueError) as error:
            _log.error("route %s: its watch cannot be read and begins anew: %s", route.name, error)
            return None
        n = len(state.counted) // 8
        counted = tuple(state.counted[8 * i : 8 * i + 8] for i in range(n))
        return LocalWatch(state.digest, state.began_s, watch, counted, saved.cursor)

    def _look(self, name: str, told: Certificate, at: str) -> None:
        found = self._loaded(self._routes[name], told, at)
        if found is not None:
            self.watches[name] = found.watch

    # ── what follows ─────────────────────────────────────────────────────────────────────────────

    def _obey(self, name: str, told: Certificate) -> None:
        """Serve the reference while there is an alarm. Looked at in every round, so that a policy
        put there by somebody else (a promotion) does not end it."""
        watch = self.watches.get(name)
        now = self._serving(name)
        if watch is None or not watch.alarmed or now.certificate is not told or now.alarm:
            return
        self._rely(name, told, alarm_of(watch))
        _log.warning(
            "route %s: the watch over its certificate raised an alarm; its reference model serves "
            "until there is another certificate (suffice calibrate). %s",
            name,
            watch.reason,
        )


def alarm_of(watch: SequentialTest) -> str:
    """An alarm in a few words, for the reason of each decision."""
    return (
        f"the watch raised an alarm: the loss is {watch.recent or 0.0:.2f} lately where "
        f"{watch.max_loss:g} is certified"
    )


def _taken(mine: LocalWatch, labels: Any, told: Certificate, trusted: frozenset[str]) -> LocalWatch:
    watch, counted = mine.watch, mine.counted
    known = set(counted)
    for x in labels:
        loss = loss_of(x, told, trusted, mine.began_s)
        mark = blake2b(x.decision_id.encode(), digest_size=8).digest()
        if loss is None or mark in known:
            continue
        watch = watch.update(min(1.0, max(0.0, loss)))
        known.add(mark)
        counted = (*counted[-_COUNTED + 1 :], mark)
    return mine._replace(watch=watch, counted=counted, cursor=labels[-1].seq)


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    """Which file is there now; None = none."""
    if file is None:
        return None
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
