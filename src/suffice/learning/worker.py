"""The learning worker of a process: ingests feedback, refits routes, serves promoted snapshots.

Nothing here is on the path of a request. Of all workers on a store one learns a route at a time,
which a lease decides. A learner that is killed neither loses nor double-counts a label: its cursor
is compared and set together with what was learned, and what was not saved is read again. A refit
stays due until its snapshot is published.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import msgspec

from suffice.artifacts import artifact as artifacts
from suffice.artifacts.artifact import Artifact
from suffice.background import LeasedWorker
from suffice.errors import ArtifactError, StoreError, UsageError
from suffice.learning import refit_process
from suffice.learning.exploration import ThompsonSampler
from suffice.learning.frozen_posterior import FrozenPosterior
from suffice.learning.label_limits import limits_for_clients
from suffice.learning.route_learner import DEFAULT_EXPLORE_SHARE, RouteLearner
from suffice.learning.warm_start import FeatureSpec
from suffice.policies.trained import TrainedPolicy
from suffice.store.protocols import PolicyRegistry, Store
from suffice.store.snapshot import make_snapshot
from suffice.types import Model

LEASE_S = 30.0
INTERVAL_S = 1.0  # between two steps
SHARED_INTERVAL_S = 10.0  # between two reads of the state by workers that do not learn
PAGE, MAX_PAGES = 500, 20  # labels ingested at a time; pages per step
# The state is some hundred kilobytes per model, and what was not saved is read again. So it is
# saved with each snapshot, else after so many labels and seconds, or after so many seconds.
SAVE_LABELS, SAVE_INTERVAL_S, MAX_SAVE_INTERVAL_S = 500, 5.0, 300.0
CREATOR = "learner"  # of its snapshots and promotions
KIND = "policy"  # of its snapshots

_log = logging.getLogger("suffice.learning")


class LearningRoute(NamedTuple):
    """A route as learning sees it."""

    name: str
    mode: Literal["off", "shadow", "on"]
    models: tuple[Model, ...]
    base: Artifact | None  # that the configuration names; None: a policy that was not trained
    explore_share: float = DEFAULT_EXPLORE_SHARE


class _Saved(NamedTuple):
    """When a learner's state was saved."""

    cursor: int
    at_s: float  # unix time


class LearningWorker:
    """Learns all routes of one process.

    Args:
        routes: The routes.
        store: Where feedback, states and snapshots are.
        make_spec: Makes the features' spec. It is called when it is first needed, because it loads
            the embedding table.
        set_policy: Called with (route, policy, version) to serve another policy. None: the
            configured one.
        owner: Unique to the process.
        clients: Number of API keys.

    Attributes:
        learners: By route: what this process has learned, for routes whose lease it holds.
        posteriors: By route: what to explore by.
        shadow_policies: By route: the newest learned policy.
        problems: By route: why it is not served or learned as it should be.
    """

    def __init__(
        self,
        routes: Sequence[LearningRoute],
        store: Store,
        make_spec: Callable[[], FeatureSpec],
        set_policy: Callable[[str, TrainedPolicy | None, str | None], None],
        *,
        owner: str,
        clients: int = 0,
    ) -> None:
        self.learners: dict[str, RouteLearner] = {}
        self.posteriors: dict[str, FrozenPosterior] = {}
        self.shadow_policies: dict[str, TrainedPolicy] = {}
        self.problems: dict[str, str] = {}
        self._limits = limits_for_clients(clients)
        self._routes = {r.name: r for r in routes}
        self._store = store
        self._make_spec = make_spec
        self._set_policy = set_policy
        self._background = LeasedWorker(
            "learning", self.step, store.leases, owner=owner, lease_s=LEASE_S, log=_log
        )
        self._generation = -1
        self._shared_read_s: dict[str, float] = {}
        self._saved: dict[str, _Saved] = {}
        self._shadow_versions: dict[str, str] = {}
        self._failures: dict[str, str] = {}  # why a route failed in the last step

    @cached_property
    def _spec(self) -> FeatureSpec:
        return self._make_spec()

    def start(self, interval_s: float = INTERVAL_S) -> None:
        """Run `step` in a daemon thread until `stop`."""
        self._background.start(interval_s, delay_s=interval_s)

    def stop(self) -> None:
        """End the thread after the step it is in, and give the leases back."""
        self._background.stop(LEASE_S)

    def step(self, now_s: float) -> None:
        """One round: serve what is current, learn what is new. Raises StoreError."""
        self._sync_snapshots()
        for route in self._routes.values():
            if route.mode == "off":
                continue
            if self._background.hold(f"learn:{route.name}", now_s):
                self._learn_guarded(route, now_s)
            else:
                self.learners.pop(route.name, None)
                if now_s - self._shared_read_s.get(route.name, 0.0) >= SHARED_INTERVAL_S:
                    self._shared_read_s[route.name] = now_s
                    self._read_shared_state(route)

    # ── what is served ───────────────────────────────────────────────────────────────────────────

    def _sync_snapshots(self, loaded: Mapping[str, TrainedPolicy] = {}) -> None:
        """Serve what was promoted or rolled back since the last step.

        Args:
            loaded: By version, policies that need not be loaded.
        """
        registry = self._store.registry
        generation = registry.generation()
        if generation == self._generation:
            return
        self._generation = generation
        for name in self._routes:
            version = registry.current(name)
            learner = self.learners.get(name)
            if learner is not None and learner.serving != version:
                learner.serving = version
                if registry.promotions(name, 1)[0].by != CREATOR:
                    self.learners.pop(name)  # the warm start may be another one: load it again
            if version is None:
                self._set_policy(name, None, None)
                self.problems.pop(name, None)
                continue
            try:
                policy = loaded.get(version) or self._load_policy(version)
            except ArtifactError as error:
                # The policy that is served goes on serving.
                self.problems[name] = str(error)
                _log.error("route %s: snapshot %s is refused: %s", name, version, error)
                continue
            self.problems.pop(name, None)
            self._set_policy(name, policy, version)

    def _load_policy(self, version: str) -> TrainedPolicy:
        content = self._store.registry.get(version).content
        return self._policy(artifacts.unpack(content, version), version)

    def _policy(self, artifact: Artifact, version: str) -> TrainedPolicy:
        """What serves an artifact. Raises ArtifactError if it belongs to other features."""
        artifacts.check_versions(artifact.card, self._spec.schema, self._spec.table, version)
        return TrainedPolicy(artifact)

    def _read_shared_state(self, route: LearningRoute) -> None:
        """Load what the worker that learns this route has saved."""
        name = route.name
        states = self._store.learner_states.load(name, ("explorer", "published")).states
        try:
            if "explorer" in states:
                share = route.explore_share
                sampler = ThompsonSampler.from_state(states["explorer"], explore_share=share)
                self.posteriors[name] = sampler.posterior()
            version = states.get("published", b"").decode()
            if version and self._shadow_versions.get(name) != version:
                self.shadow_policies[name] = self._load_policy(version)
                self._shadow_versions[name] = version
        except ArtifactError as error:
            _log.error("route %s: what the learner knows cannot be used: %s", name, error)

    # ── learning ─────────────────────────────────────────────────────────────────────────────────

    def _learn_guarded(self, route: LearningRoute, now_s: float) -> None:
        """Learn a route; a failure stops neither the thread nor other routes.

        It is logged once, and the route is learned again from what was saved.

        Raises:
            StoreError: The store is away; the next step tries again.
        """
        name = route.name
        try:
            self._learn(route, now_s)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001  a bug in one route must not stop learning
            self.learners.pop(name, None)
            reason = f"learning failed: {type(error).__name__}: {error}"
            if self._failures.get(name) != reason:
                self._failures[name] = self.problems[name] = reason
                _log.error("route %s: %s", name, reason, exc_info=True)
        else:
            reason = self._failures.pop(name, "")
            if reason and self.problems.get(name) == reason:
                del self.problems[name]

    def _learn(self, route: LearningRoute, now_s: float) -> None:
        name = route.name
        learner = self.learners.get(name) or self._load_learner(route, now_s)
        for _ in range(MAX_PAGES):
            events = self._store.feedback.events_since(learner.cursor, PAGE, route=name)
            if events:
                learner.ingest(events, now_s)
            if len(events) < PAGE or self._background.stopping():
                break
        due = learner.refit_due(now_s) and not self._background.stopping()
        if due or self._save_due(learner, now_s):
            states = learner.states()
            saved = self._save(learner, states, now_s)
            if saved and due:
                self._refit(route, learner, states["learner"], now_s)
        self.posteriors[name] = learner.sampler.posterior()

    def _load_learner(self, route: LearningRoute, now_s: float) -> RouteLearner:
        learner = RouteLearner(
            route.name, route.models,
            _warm_start_artifact(route, self._store.registry, self._spec), self._spec,
            self._limits, route.explore_share,
        )  # fmt: skip
        state = self._store.learner_states.load(route.name)
        learner.load(state.states, state.cursor)
        learner.serving = self._store.registry.current(route.name)
        self._read_shared_state(route)
        self.learners[route.name] = learner
        self._saved[route.name] = _Saved(state.cursor, now_s)
        return learner

    def _save_due(self, learner: RouteLearner, now_s: float) -> bool:
        saved = self._saved[learner.route]
        new, elapsed_s = learner.cursor - saved.cursor, abs(now_s - saved.at_s)
        many = new >= SAVE_LABELS and elapsed_s >= SAVE_INTERVAL_S
        return many or (new > 0 and elapsed_s >= MAX_SAVE_INTERVAL_S)

    def _save(self, learner: RouteLearner, states: Mapping[str, bytes], now_s: float) -> bool:
        """Save states and cursor.

        Returns:
            False if another worker moved the cursor; it ingested the same labels.
        """
        name = learner.route
        expected = self._saved[name].cursor
        if self._store.learner_states.save(
            name, states, learner.cursor, expected_cursor=expected, now_s=now_s
        ):
            self._saved[name] = _Saved(learner.cursor, now_s)
            return True
        self.learners.pop(name, None)
        return False

    # ── refits ───────────────────────────────────────────────────────────────────────────────────

    def _refit(
        self, route: LearningRoute, learner: RouteLearner, state: bytes, now_s: float
    ) -> None:
        """Refit a route and publish the snapshot. state: of the learner's regression."""
        started = time.perf_counter()
        posterior = None
        if self._background.running:  # then there may be requests to slow down
            posterior = refit_process.posterior_in_subprocess(
                learner.regression, state, self._background.stopping
            )
            if posterior is None:
                return
        content = artifacts.pack(learner.build_artifact(now_s, posterior))
        elapsed_s = time.perf_counter() - started
        _log.info(
            "route %s: refitted through label %d in %.2f s", route.name, learner.cursor, elapsed_s
        )
        version = self._publish(route, content, now_s)
        learner.on_published(now_s)
        self._save(learner, {**learner.compact_states(), "published": version.encode()}, now_s)

    def _publish(self, route: LearningRoute, content: bytes, now_s: float) -> str:
        """Store the snapshot and promote it if learning is on. Returns its version."""
        name, registry = route.name, self._store.registry
        artifact = artifacts.unpack(content)
        snapshot = make_snapshot(
            route=name,
            kind=KIND,
            content=content,
            created_s=now_s,
            parent=registry.current(name),
            card=msgspec.to_builtins(artifact.card),
            created_by=CREATOR,
        )
        version = snapshot.version
        registry.put(snapshot)
        policy = self.shadow_policies[name] = self._policy(artifact, version)
        self._shadow_versions[name] = version
        if route.mode != "on":
            return version
        last = list(registry.promotions(name, 1))
        if last and last[0].kind == "rollback":
            return version  # an operator rolled back: the learner does not overrule that
        evidence = {"rule": "learning is on", **artifact.card.figures}
        try:
            registry.promote(name, version, by=CREATOR, now_s=now_s, evidence=evidence)
        except (ArtifactError, UsageError) as error:
            _log.error("route %s: its snapshot was not promoted: %s", name, error)
        else:
            self._sync_snapshots({version: policy})
        return version


def _warm_start_artifact(
    route: LearningRoute, registry: PolicyRegistry, spec: FeatureSpec
) -> Artifact | None:
    """The snapshot that an operator promoted and learning continued from, if there is one.

    Returns:
        Else the artifact that the configuration names.
    """
    rows = {s["version"]: s for s in registry.snapshots(route.name)}
    version = registry.current(route.name)
    while version is not None and version in rows:
        row = rows.pop(version)
        if row["created_by"] != CREATOR:
            try:
                artifact = artifacts.unpack(registry.get(version).content, version)
                artifacts.check_versions(artifact.card, spec.schema, spec.table, version)
            except ArtifactError as error:
                _log.error("route %s: no warm start from %s: %s", route.name, version, error)
                break
            return artifact
        version = row["parent"]
    return route.base
