"""What happened refines what happens next: one background thread a process that reads feedback,
refits the head of each route, keeps snapshots, and swaps in the one that is current.

    labels since the cursor -> Learner, Explorer -> saved with the cursor in one transaction
    enough new labels       -> refit -> artifact -> snapshot in the store -> promoted where learning is on
    another generation      -> every worker loads the current snapshot and serves it

Nothing here is on a request's path. Of all workers on a store one learns at a time (a lease); a
learner that is killed anywhere neither loses nor double-counts a label (the cursor is compared and
set with what was learned). It joins what the policies, the store and the features room offer, and is
built by the router.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import ArtifactError, StoreError, UsageError
from .policies import artifact as artifacts
from .policies.artifact import Artifact, Card
from .policies.estimators import Constant, Linear
from .policies.explore import Explorer
from .policies.learner import (
    CLIP,
    NEW_LABELS,
    PRIOR_LABELS,
    VECTOR_SCALE,
    Learner,
    Prior,
    Rows,
)
from .policies.naming import column_of
from .policies.predict import priors
from .policies.state import pack, unpack
from .policies.trained import Embed, Fold, TrainedPolicy
from .store.versions import snapshot
from .types import Candidate, Label, Model, Store

Mode = Literal["off", "shadow", "on"]
Singles = NDArray[np.float32]
Floats = NDArray[np.float64]

EVERY_S = 1.0  # between two looks at the store
LEASE_S = 30.0
_SHARED_S = 10.0  # between two looks of a worker that does not learn at what the learner knows
_PAGE = 500  # labels taken in at a time
_FEW, _PATIENCE_S = 20, 5.0  # fewer labels than this wait so long for others
_FIRST, _GROWTH = 50.0, 0.1  # labels before the first refit; new ones, as a share, before the next
_SAMPLE = 512  # labelled queries on whose predictions the next snapshot's objective is solved
_SLOPE, _FULL_GAP = 0.1, 0.25  # a weaker model loses so much a deviation of log length
_SAMPLE_SCHEMA = "sample-1"

_log = logging.getLogger("suffice.learning")


class Facts(NamedTuple):
    """What learning needs to know of the features room. mean, deviation: (n_signals,) over training
    prompts; prompt: the place of log(1 + prompt tokens) among the signals."""

    schema: str
    table: str
    n_dimensions: int
    mean: Singles
    deviation: Singles
    prompt: int
    fold: Fold
    embed: Embed


class RouteLearner:
    """What one route has learned, in memory. Pure but for its own state: no clock, no store."""

    def __init__(
        self, route: str, models: Sequence[Model], base: Artifact | None, facts: Facts
    ) -> None:
        self.route = route
        self.models = tuple(models)
        self.names = tuple(m.name for m in models)
        self.base = base
        self.facts = facts
        self.learner = self._fresh()
        self.explorer = Explorer(self._known())
        self.cursor = 0
        self.counted = 0.0  # what labels have counted for since the last refit
        self._signals: list[Singles] = []
        self._vectors: list[Singles] = []

    # ── the warm start ───────────────────────────────────────────────────────────────────────────

    def _fresh(self) -> Learner:
        f = self.facts
        return Learner(self.names, f.mean, f.deviation, f.n_dimensions, prior=self.prior())

    def _known(self) -> list[str]:
        models = self.base.card.models if self.base is not None else ()
        return [n for n in self.names if column_of(n, models) is not None]

    def prior(self) -> Prior:
        """Weights over the learner's design: the served artifact's, where it has the model; else
        its prior quality, falling with the length of the ask as the default policy has it."""
        f = self.facts
        s, k = len(f.mean), len(self.names)
        quality = np.array(priors(tuple(Candidate(m) for m in self.models))[0])
        weights = np.zeros((s + f.n_dimensions, k))
        labels = np.full(k, NEW_LABELS)
        gap = quality.max() - quality
        weights[0] = -_SLOPE * np.minimum(1.0, gap / _FULL_GAP)
        intercept = quality.copy()
        base = self.base
        if base is None:
            return Prior(weights, intercept, labels)
        e = base.estimator
        columns = [column_of(n, base.card.models) for n in self.names]
        means = base.sample_quality.mean(axis=0)
        both = [(means[c], q) for c, q in zip(columns, quality, strict=True) if c is not None]
        # Priors are on another scale than what was learned: shifted by what they are off on average.
        shift = float(np.mean([m - q for m, q in both])) if both else 0.0
        for j, c in enumerate(columns):
            if c is None:
                intercept[j] = min(1.0, max(0.0, quality[j] + shift))
                continue
            labels[j] = PRIOR_LABELS
            if isinstance(e, Linear):
                own = e.signals[:, c]
                weights[:s, j] = own * f.deviation / e.deviation
                weights[s:, j] = e.vectors[:, c] / VECTOR_SCALE
                intercept[j] = e.intercept[c] + float(own @ ((f.mean - e.mean) / e.deviation))
            else:
                weights[:, j] = 0.0
                intercept[j] = means[c]
        return Prior(weights, intercept, labels)

    # ── learning ─────────────────────────────────────────────────────────────────────────────────

    def load(self, states: Mapping[str, bytes], cursor: int) -> None:
        """Take over what was saved. Models that have left the route are dropped, new ones start
        from their prior. A state of another version is said and learning starts anew."""
        self.cursor = cursor
        try:
            if "learner" in states:
                saved = Learner.from_state(states["learner"])
                if len(saved.mean) + saved.n_dimensions != len(self.learner.prior.weights):
                    raise ArtifactError("learner state: was learned on other features.")
                self.learner = saved.with_models(self.names, self.prior())
            if "explorer" in states:
                self.explorer = Explorer.from_state(states["explorer"])
                self.explorer.retain(self.names)
            if "sample" in states:
                card, arrays = unpack(states["sample"], _SAMPLE_SCHEMA, _SampleCard)
                self._signals = list(arrays["signals"].astype(np.float32))
                self._vectors = list(arrays["vectors"].astype(np.float32))
                self.counted = card.counted
        except (ArtifactError, ValueError) as error:
            _log.error("route %s: what was learned cannot be used: %s", self.route, error)
            self.learner, self.explorer = self._fresh(), Explorer(self._known())
            self._signals, self._vectors = [], []

    def states(self) -> dict[str, bytes]:
        """All of it, to be saved with the cursor."""
        f = self.facts
        n = len(self._signals)
        arrays: dict[str, NDArray[Any]] = {
            "signals": np.array(self._signals, np.float32).reshape(n, len(f.mean)),
            "vectors": np.array(self._vectors, np.float16).reshape(n, f.n_dimensions),
        }
        return {
            "learner": self.learner.state(),
            "explorer": self.explorer.state(),
            "sample": pack(_SAMPLE_SCHEMA, _SampleCard(self.counted), arrays),
        }

    def take(self, labels: Sequence[Label]) -> int:
        """Learn from labels in their order; returns how many counted. A label whose decision was
        recorded without vectors, or with those of another version, is passed over."""
        usable = [x for x in labels if self._usable(x)]
        rows = Rows(
            ids=np.array([x.seq for x in usable], np.int64),
            signals=np.array([x.signals for x in usable], np.float32).reshape(
                len(usable), len(self.facts.mean)
            ),
            vectors=np.array([x.embedding for x in usable], np.float32).reshape(
                len(usable), self.facts.n_dimensions
            ),
            models=[x.judged or "" for x in usable],
            scores=np.array([x.score for x in usable], float),
            sources=[source_of(x) for x in usable],
            times_s=np.array([x.scored_s for x in usable], float),
            weights=np.array([min(1.0, max(0.0, x.weight)) for x in usable], float),
            replaced=np.array(
                [np.nan if x.previous_score is None else x.previous_score for x in usable], float
            ),
            replaced_weights=np.array([x.previous_weight or 0.0 for x in usable], float),
        )
        taken = self.learner.observe(rows)
        for x, counted in zip(usable, taken.counted.tolist(), strict=True):
            if counted > 0.0:
                self._explore(x, counted)
                assert x.signals is not None
                assert x.embedding is not None
                self._signals.append(x.signals)
                self._vectors.append(x.embedding)
        del self._signals[:-_SAMPLE], self._vectors[:-_SAMPLE]
        self.counted += float(taken.counted.sum())
        if labels:
            self.cursor = labels[-1].seq
        return taken.learned

    def _usable(self, x: Label) -> bool:
        f = self.facts
        return (
            x.features_schema == f.schema
            and x.signals is not None
            and x.embedding is not None
            and len(x.signals) == len(f.mean)
            and len(x.embedding) == f.n_dimensions
        )

    def _explore(self, x: Label, weight: float) -> None:
        offline = next((p.quality for p in x.predictions if p.model == x.judged), None)
        if offline is not None and x.judged in self.names:
            self.explorer.update(x.judged, offline, x.score, weight)

    def due(self) -> bool:
        """Whether enough has been learned since the last refit for another."""
        total = float(self.learner.labels.sum())
        return self.counted >= max(_FIRST, _GROWTH * total)

    def refit(self, now_s: float) -> Artifact:
        """The artifact of what is known now."""
        fit = self.learner.refit()
        self.counted = 0.0
        f, base = self.facts, self.base
        s, k = len(f.mean), len(self.names)
        e = Linear(
            self.names, f.mean, f.deviation, CLIP, fit.weights[:s], fit.weights[s:] * VECTOR_SCALE,
            fit.intercept, np.full(k, np.nan),
        )  # fmt: skip
        e = _with_tokens(e, base)
        n = len(self._signals)
        signals = np.array(self._signals, np.float32).reshape(n, s)
        vectors = np.array(self._vectors, np.float32).reshape(n, f.n_dimensions)
        quality, cost = e.expect(signals, vectors)
        tokens = e.output_tokens(signals, vectors)
        card = Card(
            kind=e.kind,
            models=self.names,
            features=f.schema,
            table=f.table,
            reference=self.names[int(np.argmax(quality.mean(axis=0)))],
            trained_on=f"feedback of route {self.route}",
            queries=n,
            labels=int(fit.labels.sum()),
            made=datetime.fromtimestamp(now_s, UTC).date().isoformat(),
            made_by="the learner",
            scores="graded",
            figures={
                "through_seq": self.cursor,
                "labels": dict(zip(self.names, np.round(fit.labels, 1).tolist(), strict=True)),
                "noise": round(fit.noise, 5),
                "log10_width_own": round(fit.own, 3),
                "log10_width_shared": round(fit.shared, 3),
            },
        )
        return Artifact(
            card=card,
            estimator=e,
            sample_quality=quality,
            sample_cost=np.array(cost),
            sample_tokens=np.full(quality.shape, np.nan) if tokens is None else tokens,
            sample_input=np.expm1(signals[:, f.prompt].astype(float)),
            sample_length=((signals[:, 0] - f.mean[0]) / f.deviation[0]).astype(float),
            training_keys=np.empty(0, np.uint64),
        )


def source_of(x: Label) -> str:
    """Whose labels the rate limit counts together: a client's key where there is one."""
    return f"{x.source}/{x.key_id}" if x.key_id else x.source


class _SampleCard(msgspec.Struct, frozen=True):
    counted: float


def _with_tokens(e: Linear, base: Artifact | None) -> Linear:
    """The learned qualities with the token heads of the artifact they started from: feedback says
    nothing of the length of answers."""
    from dataclasses import replace

    old = base.estimator if base is not None else None
    if (
        base is None
        or isinstance(old, Constant)
        or not isinstance(old, Linear)
        or not old.has_tokens
    ):
        return e
    columns = [column_of(n, base.card.models) for n in e.models]
    if any(c is None for c in columns) or not np.array_equal(old.mean, e.mean):
        return e
    at = [c - len(old.models) for c in columns if c is not None]
    return replace(
        e,
        signals=np.concatenate([e.signals, old.signals[:, at]], axis=1),
        vectors=np.concatenate([e.vectors, old.vectors[:, at]], axis=1),
        intercept=np.append(e.intercept, old.intercept[at]),
        has_tokens=True,
    )


# ── the thread ───────────────────────────────────────────────────────────────────────────────────


class Route(NamedTuple):
    """A route as learning sees it. base: the artifact that the config names, None for a policy
    that was not trained."""

    name: str
    mode: Mode
    models: tuple[Model, ...]
    base: Artifact | None


class Learning:
    """All routes of one process.

    swap(route, policy, version): serve this from now on; policy None = the configured one. owner:
    unique to the process. `step` does one round and is what tests call; `start` repeats it.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        store: Store,
        facts: Facts,
        swap: Callable[[str, TrainedPolicy | None, str | None], None],
        *,
        owner: str,
    ) -> None:
        self._routes = {r.name: r for r in routes}
        self._store = store
        self._facts = facts
        self._swap = swap
        self._owner = owner
        self._learners: dict[str, RouteLearner] = {}
        self._held: dict[str, float] = {}  # route -> until when the lease is held
        self._generation = -1
        self._looked: dict[str, float] = {}
        self._saved: dict[str, float] = {}
        self.explorers: dict[str, Explorer] = {}
        self.shadows: dict[str, TrainedPolicy] = {}
        self.problems: dict[str, str] = {}  # route -> why its current snapshot is not served
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, every_s: float = EVERY_S) -> None:
        """Run in a daemon thread until `stop`."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._forever, args=(every_s,), name="suffice-learner", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End the thread, after the round it is in, and give the leases back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(LEASE_S)
        for name in list(self._held):
            try:
                self._store.release_lease(_lease(name), self._owner)
            except StoreError as error:
                _log.warning("route %s: its lease runs out by itself: %s", name, error)
        self._held.clear()

    def _forever(self, every_s: float) -> None:
        while not self._stop.wait(every_s):
            try:
                self.step(time.time())
            except StoreError as error:
                _log.warning("learning waits for the store: %s", error)

    def step(self, now_s: float) -> None:
        """One round: serve what is current, learn what is new. Raises StoreError."""
        self.follow()
        for route in self._routes.values():
            if route.mode == "off":
                continue
            if self._holds(route.name, now_s):
                self._learn(route, now_s)
            else:
                self._learners.pop(route.name, None)
                if now_s - self._looked.get(route.name, 0.0) >= _SHARED_S:
                    self._looked[route.name] = now_s
                    self._look(route)

    # ── what is current ──────────────────────────────────────────────────────────────────────────

    def follow(self) -> None:
        """Serve what was promoted or rolled back since the last look."""
        generation = self._store.generation()
        if generation == self._generation:
            return
        self._generation = generation
        for name in self._routes:
            version = self._store.current(name)
            if version is None:
                self._swap(name, None, None)
                self.problems.pop(name, None)
                continue
            try:
                found = artifacts.unpack(self._store.get_snapshot(version).content, version)
                policy = self.policy(found, version)
            except ArtifactError as error:
                # The one that serves goes on serving.
                self.problems[name] = str(error)
                _log.error("route %s: snapshot %s is refused: %s", name, version, error)
                continue
            self.problems.pop(name, None)
            self._swap(name, policy, version)

    def policy(self, found: Artifact, name: str) -> TrainedPolicy:
        """What serves an artifact. Raises ArtifactError where it belongs to other features."""
        artifacts.check(found.card, self._facts.schema, self._facts.table, name)
        return TrainedPolicy(found, self._facts.fold, self._facts.embed)

    def _look(self, route: Route) -> None:
        """A worker that does not learn takes over what the learner knows."""
        saved = self._store.learner_state(route.name).states
        try:
            if "explorer" in saved:
                self.explorers[route.name] = Explorer.from_state(saved["explorer"])
            newest = self._store.snapshots(route.name)[:1]
            if newest and newest[0]["created_by"] == "learner":
                version = newest[0]["version"]
                content = self._store.get_snapshot(version).content
                self.shadows[route.name] = self.policy(artifacts.unpack(content, version), version)
        except ArtifactError as error:
            _log.error("route %s: what the learner knows cannot be used: %s", route.name, error)

    # ── learning ─────────────────────────────────────────────────────────────────────────────────

    def _holds(self, name: str, now_s: float) -> bool:
        until = self._held.get(name, 0.0)
        if now_s < until - LEASE_S / 2:
            return True
        if self._store.acquire_lease(_lease(name), self._owner, LEASE_S, now_s):
            self._held[name] = now_s + LEASE_S
            return True
        self._held.pop(name, None)
        return False

    def _learn(self, route: Route, now_s: float) -> None:
        mine = self._learners.get(route.name)
        if mine is None:
            mine = RouteLearner(route.name, route.models, route.base, self._facts)
            saved = self._store.learner_state(route.name)
            mine.load(saved.states, saved.cursor)
            self._learners[route.name] = mine
            self._look(route)
        while labels := self._store.feedback_since(mine.cursor, _PAGE, route=route.name):
            # What was learned is some hundred kilobytes a model: not written for every label.
            if len(labels) < _FEW and now_s - self._saved.get(route.name, 0.0) < _PATIENCE_S:
                return
            self._saved[route.name] = now_s
            before = mine.cursor
            mine.take(labels)
            made = self._refitted(route, mine, now_s) if mine.due() else None
            if not self._store.save_learner_state(
                route.name, mine.states(), mine.cursor, expected_cursor=before, now_s=now_s
            ):
                # Another learner has moved on: what was taken in here is in its state as well.
                self._learners.pop(route.name, None)
                return
            self.explorers[route.name] = mine.explorer
            if made is not None:
                self._publish(route, mine, made, now_s)
            if self._stop.is_set():
                return

    def _refitted(self, route: Route, mine: RouteLearner, now_s: float) -> bytes:
        started = time.perf_counter()
        raw = artifacts.pack(mine.refit(now_s))
        took = time.perf_counter() - started
        _log.info("route %s: refitted through label %d in %.2f s", route.name, mine.cursor, took)
        return raw

    def _publish(self, route: Route, mine: RouteLearner, raw: bytes, now_s: float) -> None:
        found = artifacts.unpack(raw)
        made = snapshot(
            route=route.name,
            kind="brain",
            content=raw,
            created_s=now_s,
            parent=self._store.current(route.name),
            card=msgspec.to_builtins(found.card),
            created_by="learner",
        )
        self._store.put_snapshot(made)
        self.shadows[route.name] = self.policy(found, made.version)
        if route.mode != "on":
            return
        last = list(self._store.promotions(route.name, 1))
        if last and last[0].kind == "rollback":
            return  # an operator undid it: the learner does not overrule that
        evidence: dict[str, Any] = {"rule": "learning is on", **found.card.figures}
        try:
            self._store.promote(
                route.name, made.version, by="learner", now_s=now_s, evidence=evidence
            )
        except (ArtifactError, UsageError) as error:
            _log.error("route %s: its snapshot was not promoted: %s", route.name, error)
            return
        self.follow()


def _lease(route: str) -> str:
    return f"learn:{route}"
