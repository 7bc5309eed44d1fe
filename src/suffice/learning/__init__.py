"""What happened refines what happens next: one background thread a process that reads feedback,
refits the head of each route, keeps snapshots, and swaps in the one that is current.

    labels since the cursor -> Learner, Explorer; now and then saved with the cursor, in one transaction
    enough new labels       -> refit -> artifact -> snapshot in the store -> promoted where learning is on
    another generation      -> every worker loads the current snapshot and serves it

Nothing here is on a request's path. Of all workers on a store one learns at a time (a lease); a
learner that is killed anywhere neither loses nor double-counts a label: the cursor is compared and
set with what was learned, and what was not saved yet is read again. Likewise a refit that was due is
due until its snapshot is published. It joins what the policies, the store and the features room
offer, and is built by the router.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.artifacts import artifact as artifacts
from suffice.artifacts.artifact import Artifact, Card
from suffice.artifacts.estimators import LinearEstimator
from suffice.artifacts.npz import pack_state, unpack_state
from suffice.errors import ArtifactError, StoreError, UsageError
from suffice.learning import refit_process
from suffice.learning.exploration import FrozenPosterior, ThompsonSampler
from suffice.learning.label_limits import SourceLimits
from suffice.learning.regression import (
    CLIP,
    NEW_LABELS,
    PRIOR_LABELS,
    VECTOR_SCALE,
    Fit,
    LabelBatch,
    OnlineRegression,
    Prior,
)
from suffice.names import match_model
from suffice.policies.priors import length_slope, output_tokens, quality_priors
from suffice.policies.trained import TrainedPolicy
from suffice.store.protocols import Store
from suffice.store.snapshot import make_snapshot
from suffice.types import FeedbackEvent, Model

Mode = Literal["off", "shadow", "on"]
Float32Array = NDArray[np.float32]
FloatArray = NDArray[np.float64]

EVERY_S = 1.0  # between two looks at the store
LEASE_S = 30.0
_SHARED_S = 10.0  # between two looks of a worker that does not learn at what the learner knows
_PAGE, _PAGES = 500, 20  # labels taken in at a time; times a round
# What was learned is some hundred kilobytes a model, and what was not saved is only read again: it is
# written when a snapshot is made of it, else after so many labels (and seconds), or so many seconds.
_SAVE_LABELS, _SAVE_S, _SAVE_AT_LAST_S = 500, 5.0, 300.0
_FIRST, _GROWTH = 50.0, 0.1  # labels before the first refit; new ones, as a share, before the next
# Between two refits passes this share of the time that there have been labels, up to the most: a busy
# route makes at most 144 snapshots a day.
_REST, _MOST_REST_S = 0.02, 600.0
_KNOWN_LABELS = 100.0  # from which on a model's level is known to about 0.04
_USUAL_TOKENS = float(output_tokens(0.5, None))  # of an answer, before there were any
_TOKEN_LABELS = 20.0  # what that counts for
_TOKEN_MEMORY = 0.998  # what an answer's length is worth after each further one of the model
_MOST_TOKENS = 1e6
EXPLORED = 0.02  # of the traffic, where nothing else is said
_SAMPLE = 512  # labelled queries on whose predictions the next snapshot's objective is solved
_SAMPLE_SCHEMA = "sample-1"

_log = logging.getLogger("suffice.learning")


class FeatureSpec(NamedTuple):
    """What learning needs to know of the features room. mean, deviation: (n_signals,) over training
    prompts; prompt: the place of log(1 + prompt tokens) among the signals."""

    schema: str
    table: str
    n_dimensions: int
    mean: Float32Array
    deviation: Float32Array
    prompt: int


class RouteLearner:
    """What one route has learned, in memory. Pure but for its own state: no clock, no store."""

    def __init__(
        self,
        route: str,
        models: Sequence[Model],
        base: Artifact | None,
        facts: FeatureSpec,
        limits: SourceLimits | None = None,
        share: float = EXPLORED,
    ) -> None:
        self.route = route
        self.share = share  # of the traffic that may be explored
        self.limits = limits_of(0) if limits is None else limits
        self.models = tuple(models)
        self.names = tuple(m.name for m in models)
        self.base = base
        self.facts = facts
        self.learner = self._fresh()
        self.explorer = ThompsonSampler(self._known(), share=share)
        self.serving: str | None = None  # the snapshot that decides, None: the configured policy
        self.cursor = 0
        self.counted = 0.0  # what labels have counted for since the last refit
        self.began_s: float | None = None  # when the first labels were taken in
        self.refitted_s: float | None = None
        self._tokens: dict[str, tuple[float, float]] = {}  # weight and sum of answers' tokens
        self._signals: list[Float32Array] = []
        self._vectors: list[Float32Array] = []

    # ── the warm start ───────────────────────────────────────────────────────────────────────────

    def _fresh(self) -> OnlineRegression:
        f = self.facts
        return OnlineRegression(
            self.names, f.mean, f.deviation, f.n_dimensions, prior=self.prior(), limits=self.limits
        )

    def _known(self) -> list[str]:
        models = self.base.card.models if self.base is not None else ()
        return [n for n in self.names if match_model(n, models) is not None]

    def prior(self) -> Prior:
        """Weights over the learner's design: the served artifact's, where it has the model; else
        its prior quality, falling with the length of the ask as the default policy has it."""
        f = self.facts
        s, k = len(f.mean), len(self.names)
        quality = np.array(quality_priors(self.models))
        weights = np.zeros((s + f.n_dimensions, k))
        labels = np.full(k, NEW_LABELS)
        gap = quality.max() - quality
        weights[0] = [length_slope(-g) for g in gap.tolist()]
        intercept = quality.copy()
        base = self.base
        if base is None:
            return Prior(weights, intercept, labels)
        e = base.estimator
        columns = [match_model(n, base.card.models) for n in self.names]
        means = base.sample_quality.mean(axis=0)
        both = [(means[c], q) for c, q in zip(columns, quality, strict=True) if c is not None]
        # Priors are on another scale than what was learned: shifted by what they are off on average.
        shift = float(np.mean([m - q for m, q in both])) if both else 0.0
        for j, c in enumerate(columns):
            if c is None:
                intercept[j] = min(1.0, max(0.0, quality[j] + shift))
                continue
            labels[j] = PRIOR_LABELS
            if isinstance(e, LinearEstimator):
                own = e.signals[:, c]
                weights[:s, j] = own * f.deviation / e.std
                weights[s:, j] = e.vectors[:, c] / VECTOR_SCALE
                intercept[j] = e.intercept[c] + float(own @ ((f.mean - e.mean) / e.std))
            else:
                weights[:, j] = 0.0
                intercept[j] = means[c]
        return Prior(weights, intercept, labels)

    # ── learning ─────────────────────────────────────────────────────────────────────────────────

    def load(self, states: Mapping[str, bytes], cursor: int) -> None:
        """Take over what was saved. Models that have left the route are dropped, new ones start
        from their prior; one that only changed its provider goes on. A state that cannot be used is
        said, and learning starts anew from all feedback there is."""
        self.cursor = cursor
        try:
            if "learner" in states:
                saved = OnlineRegression.from_state(states["learner"])
                if len(saved.mean) + saved.n_dimensions != len(self.learner.prior.weights):
                    raise ArtifactError("learner state: was learned on other features.")
                saved.models = self._renamed(saved.models)
                self.learner = saved.with_models(self.names, self.prior())
                self.learner.ration.limits = self.limits  # those of now
            if "explorer" in states:
                self.explorer = ThompsonSampler.from_state(states["explorer"], share=self.share)
                self.explorer.retain(self.names)
            if "sample" in states:
                card, arrays = unpack_state(states["sample"], _SAMPLE_SCHEMA, _SampleCard)
                self._signals = list(arrays["signals"].astype(np.float32))
                self._vectors = list(arrays["vectors"].astype(np.float32))
                self.counted = card.counted
                self.began_s, self.refitted_s = card.began_s, card.refitted_s
                saved_tokens = zip(
                    self._renamed(tuple(card.tokens)), card.tokens.values(), strict=True
                )
                self._tokens = {n: t for n, t in saved_tokens if n in self.names}
        except (ArtifactError, ValueError) as error:
            _log.error("route %s: what was learned cannot be used: %s", self.route, error)
            self.learner, self.explorer = (
                self._fresh(),
                ThompsonSampler(self._known(), share=self.share),
            )
            self._signals, self._vectors, self._tokens = [], [], {}
            self.counted, self.began_s, self.refitted_s = 0.0, None, None
            self.cursor = 0

    def _renamed(self, saved: tuple[str, ...]) -> tuple[str, ...]:
        """The saved models as they are called now, each its own: `a/m` is `b/m` after a move."""
        gone = {n: n for n in saved}
        for name in self.names:
            if name not in saved:
                at = match_model(name, saved)
                if at is not None and saved[at] not in self.names:
                    gone[saved[at]] = name
        now = tuple(gone[n] for n in saved)
        return now if len(set(now)) == len(now) else saved

    def states(self) -> dict[str, bytes]:
        """All of it, to be saved with the cursor."""
        return {"learner": self.learner.state(), **self.small_states()}

    def small_states(self) -> dict[str, bytes]:
        """All but what labels alone change: some 300 kB whatever the models."""
        f = self.facts
        n = len(self._signals)
        arrays: dict[str, NDArray[Any]] = {
            "signals": np.array(self._signals, np.float32).reshape(n, len(f.mean)),
            "vectors": np.array(self._vectors, np.float16).reshape(n, f.n_dimensions),
        }
        return {
            "explorer": self.explorer.state(),
            "sample": pack_state(
                _SAMPLE_SCHEMA,
                _SampleCard(self.counted, self.began_s, self.refitted_s, self._tokens),
                arrays,
            ),
        }

    def take(self, labels: Sequence[FeedbackEvent], now_s: float) -> int:
        """Learn from labels in their order; returns how many counted. A label whose decision was
        recorded without vectors, or with those of another version, is passed over."""
        usable = [x for x in labels if self._usable(x)]
        models = [self._served(x.scored_model) for x in usable]
        rows = LabelBatch(
            ids=np.array([x.seq for x in usable], np.int64),
            signals=np.array([x.signals for x in usable], np.float32).reshape(
                len(usable), len(self.facts.mean)
            ),
            vectors=np.array([x.embedding for x in usable], np.float32).reshape(
                len(usable), self.facts.n_dimensions
            ),
            models=[m or "" for m in models],
            scores=np.array([x.score for x in usable], float),
            sources=[source_of(x) for x in usable],
            times_s=np.array([x.feedback_at_s for x in usable], float),
            weights=np.array([_weight(x.weight) for x in usable], float),
            replaced=np.array(
                [np.nan if x.previous_score is None else x.previous_score for x in usable], float
            ),
            replaced_weights=np.array([_weight(x.previous_weight or 0.0) for x in usable], float),
        )
        taken = self.learner.observe(rows)
        for x, model, counted in zip(usable, models, taken.counted.tolist(), strict=True):
            if counted > 0.0 and model is not None:
                self._explore(x, model, counted)
                self._count_tokens(x, model)
                assert x.signals is not None
                assert x.embedding is not None
                self._signals.append(x.signals)
                self._vectors.append(x.embedding)
        if taken.learned and self.began_s is None:
            self.began_s = now_s
        del self._signals[:-_SAMPLE], self._vectors[:-_SAMPLE]
        self.counted += float(taken.counted.sum())
        if labels:
            self.cursor = labels[-1].seq
        return taken.learned

    def _usable(self, x: FeedbackEvent) -> bool:
        f = self.facts
        return (
            x.features_schema == f.schema
            and x.signals is not None
            and x.embedding is not None
            and len(x.signals) == len(f.mean)
            and len(x.embedding) == f.n_dimensions
        )

    def _served(self, judged: str | None) -> str | None:
        """The route's model that a label is about; None: it has none any more."""
        at = None if judged is None else match_model(judged, self.names)
        return None if at is None else self.names[at]

    def _explore(self, x: FeedbackEvent, model: str, weight: float) -> None:
        if x.snapshot != self.serving:
            return  # what another policy predicted says nothing of how wrong this one is
        offline = next((p.quality for p in x.predictions if p.model == x.scored_model), None)
        if offline is not None and -10.0 <= offline <= 10.0:
            self.explorer.update(model, offline, x.score, weight)

    def _count_tokens(self, x: FeedbackEvent, name: str) -> None:
        """How long the model's answers are, from what they cost: a retry's cost is not one's."""
        price = self.models[self.names.index(name)].price
        i, o = price.input_usd_per_mtok, price.output_usd_per_mtok
        if x.cost_usd is None or x.scored_model != x.model or x.status >= 400 or i is None or not o:
            return
        assert x.signals is not None
        tokens = (x.cost_usd * 1e6 - float(np.expm1(x.signals[self.facts.prompt])) * i) / o
        if not 0.0 < tokens < _MOST_TOKENS:
            return
        weight, total = self._tokens.get(name, (0.0, 0.0))
        self._tokens[name] = (weight * _TOKEN_MEMORY + 1.0, total * _TOKEN_MEMORY + tokens)

    def tokens(self) -> FloatArray:
        """(k,) mean output tokens of each model's answers, few of them shrunken to those of all."""
        pairs = np.array([self._tokens.get(n, (0.0, 0.0)) for n in self.names])
        weight, total = pairs[:, 0], pairs[:, 1]
        usual = _TOKEN_LABELS * _USUAL_TOKENS
        usual = float((total.sum() + usual) / (weight.sum() + _TOKEN_LABELS))
        return np.asarray((total + _TOKEN_LABELS * usual) / (weight + _TOKEN_LABELS))

    def due(self, now_s: float) -> bool:
        """Whether enough has been learned since the last refit for another."""
        if self.counted < max(_FIRST, _GROWTH * float(self.learner.labels.sum())):
            return False
        if self.refitted_s is None or self.began_s is None:
            return True
        rest_s = min(_MOST_REST_S, _REST * (now_s - self.began_s))
        return now_s - self.refitted_s >= rest_s or now_s < self.refitted_s

    def published(self, now_s: float) -> None:
        """A snapshot of what is known now is in the store. Its predictions hold what the labels had
        to say of each model's level, so the explorer must not correct them by the same again."""
        self.counted = 0.0
        self.refitted_s = now_s
        sure = self.learner.labels >= _KNOWN_LABELS
        known = {n for n, s in zip(self.names, sure.tolist(), strict=True) if s}
        known |= set(self._known())
        self.explorer = ThompsonSampler([n for n in self.names if n in known], share=self.share)

    def refit(self, now_s: float, fit: Fit | None = None) -> Artifact:
        """The artifact of what is known now. The same state gives the same artifact within a day.
        fit: what the learner makes of it; None = worked out here."""
        fit = self.learner.refit() if fit is None else fit
        f, base = self.facts, self.base
        s, k = len(f.mean), len(self.names)
        e = LinearEstimator(
            self.names, f.mean, f.deviation, CLIP, fit.weights[:s], fit.weights[s:] * VECTOR_SCALE,
            fit.intercept, np.full(k, np.nan),
        )  # fmt: skip
        e = _with_tokens(e, base, self.tokens())
        n = len(self._signals)
        signals = np.array(self._signals, np.float32).reshape(n, s)
        vectors = np.array(self._vectors, np.float32).reshape(n, f.n_dimensions)
        quality, cost = e.predict(signals, vectors)
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


def source_of(x: FeedbackEvent) -> str:
    """Whose labels the limits count together: the client by its key, whatever it calls itself."""
    return x.key_id or ""


def limits_of(clients: int) -> SourceLimits:
    """What one of so many clients (API keys) may teach a route. With none nobody can be told apart,
    and a single one has nobody to harm: then there is no limit. Few must be allowed more than an
    even share each, or they would hold each other up."""
    if clients < 2:
        return SourceLimits(share=1.0)
    return SourceLimits(share=max(0.2, 1.5 / clients), least=300.0)


def _weight(told: float) -> float:
    return min(1.0, max(0.0, told))


class _SampleCard(msgspec.Struct, frozen=True):
    counted: float
    began_s: float | None = None
    refitted_s: float | None = None
    tokens: dict[str, tuple[float, float]] = {}


def _with_tokens(e: LinearEstimator, base: Artifact | None, usual: FloatArray) -> LinearEstimator:
    """The learned qualities with a head for the tokens of an answer: that of the artifact they
    started from where it has one for the model, else the mean of the route's answers. Without one
    a policy would guess the length from the quality."""
    k = len(e.models)
    signals, vectors = np.zeros((len(e.mean), k)), np.zeros((len(e.vectors), k))
    intercept = np.log(usual)
    old = base.estimator if base is not None else None
    if (
        base is not None
        and isinstance(old, LinearEstimator)
        and old.has_tokens
        and np.array_equal(old.mean, e.mean)
        and np.array_equal(old.std, e.std)
    ):
        for j, n in enumerate(e.models):
            c = match_model(n, base.card.models)
            if c is not None:
                at = c - len(old.models)
                signals[:, j], vectors[:, j] = old.signals[:, at], old.vectors[:, at]
                intercept[j] = old.intercept[at]
    return msgspec.structs.replace(
        e,
        signals=np.concatenate([e.signals, signals], axis=1),
        vectors=np.concatenate([e.vectors, vectors], axis=1),
        intercept=np.append(e.intercept, intercept),
        has_tokens=True,
    )


# ── the thread ───────────────────────────────────────────────────────────────────────────────────


class LearningRoute(NamedTuple):
    """A route as learning sees it. base: the artifact that the config names, None for a policy
    that was not trained."""

    name: str
    mode: Mode
    models: tuple[Model, ...]
    base: Artifact | None
    explore: float = EXPLORED


class LearningWorker:
    """All routes of one process.

    facts: asked for in the first round that needs them, since the table of tokens is loaded for them.
    swap(route, policy, version): serve this from now on; policy None = the configured one. owner:
    unique to the process. clients: how many API keys there are. `step` does one round and is what
    tests call; `start` repeats it.
    """

    def __init__(
        self,
        routes: Sequence[LearningRoute],
        store: Store,
        facts: Callable[[], FeatureSpec],
        swap: Callable[[str, TrainedPolicy | None, str | None], None],
        *,
        owner: str,
        clients: int = 0,
    ) -> None:
        self._limits = limits_of(clients)
        self._routes = {r.name: r for r in routes}
        self._store = store
        self._ask_facts = facts
        self._swap = swap
        self._owner = owner
        self._learners: dict[str, RouteLearner] = {}
        self._held: dict[str, float] = {}  # route -> until when the lease is held
        self._generation = -1
        self._looked: dict[str, float] = {}
        self._saved: dict[str, tuple[int, float]] = {}  # route -> cursor saved, and when
        self.posteriors: dict[str, FrozenPosterior] = {}  # route -> what to explore by
        self.shadow_policies: dict[str, TrainedPolicy] = {}
        self.problems: dict[str, str] = {}  # route -> why it is not served or learned as it should
        self._shown: dict[str, str] = {}  # route -> version of its shadow
        self._failed: dict[str, str] = {}  # route -> why it could not learn in the last round
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @cached_property
    def _facts(self) -> FeatureSpec:
        return self._ask_facts()

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
                self._store.leases.release(_lease(name), self._owner)
            except StoreError as error:
                _log.warning("route %s: its lease runs out by itself: %s", name, error)
        self._held.clear()

    def _forever(self, every_s: float) -> None:
        waits = ""
        while not self._stop.wait(every_s):
            try:
                self.step(time.time())
                waits = ""
            except StoreError as error:
                if str(error) != waits:  # once, not every second
                    waits = str(error)
                    _log.warning("learning waits for the store: %s", error)

    def step(self, now_s: float) -> None:
        """One round: serve what is current, learn what is new. Raises StoreError."""
        self.follow()
        for route in self._routes.values():
            if route.mode == "off":
                continue
            if self._holds(route.name, now_s):
                self._try(route, now_s)
            else:
                self._learners.pop(route.name, None)
                if now_s - self._looked.get(route.name, 0.0) >= _SHARED_S:
                    self._looked[route.name] = now_s
                    self._look(route)

    # ── what is current ──────────────────────────────────────────────────────────────────────────

    def follow(self, made: Mapping[str, TrainedPolicy] = {}) -> None:
        """Serve what was promoted or rolled back since the last look. made: by version, policies
        that need not be read back."""
        generation = self._store.registry.generation()
        if generation == self._generation:
            return
        self._generation = generation
        for name in self._routes:
            version = self._store.registry.current(name)
            mine = self._learners.get(name)
            if mine is not None and mine.serving != version:
                mine.serving = version
                if self._store.registry.promotions(name, 1)[0].by != "learner":
                    self._learners.pop(name)  # it may be another warm start: taken over anew
            if version is None:
                self._swap(name, None, None)
                self.problems.pop(name, None)
                continue
            try:
                policy = made.get(version) or self._stored(version)
            except ArtifactError as error:
                # The one that serves goes on serving.
                self.problems[name] = str(error)
                _log.error("route %s: snapshot %s is refused: %s", name, version, error)
                continue
            self.problems.pop(name, None)
            self._swap(name, policy, version)

    def _stored(self, version: str) -> TrainedPolicy:
        content = self._store.registry.get(version).content
        return self.policy(artifacts.unpack(content, version), version)

    def policy(self, found: Artifact, name: str) -> TrainedPolicy:
        """What serves an artifact. Raises ArtifactError where it belongs to other features."""
        artifacts.check_versions(found.card, self._facts.schema, self._facts.table, name)
        return TrainedPolicy(found)

    def _look(self, route: LearningRoute) -> None:
        """A worker that does not learn takes over what the learner knows."""
        saved = self._store.learner_states.load(route.name, ("explorer", "published")).states
        try:
            if "explorer" in saved:
                known = ThompsonSampler.from_state(saved["explorer"], share=route.explore)
                self.posteriors[route.name] = known.posterior()
            version = saved.get("published", b"").decode()
            if version and self._shown.get(route.name) != version:
                self.shadow_policies[route.name] = self._stored(version)
                self._shown[route.name] = version
        except ArtifactError as error:
            _log.error("route %s: what the learner knows cannot be used: %s", route.name, error)

    # ── learning ─────────────────────────────────────────────────────────────────────────────────

    def _holds(self, name: str, now_s: float) -> bool:
        until = self._held.get(name, 0.0)
        if now_s < until - LEASE_S / 2:
            return True
        if self._store.leases.acquire(_lease(name), self._owner, LEASE_S, now_s):
            self._held[name] = now_s + LEASE_S
            return True
        self._held.pop(name, None)
        return False

    def _try(self, route: LearningRoute, now_s: float) -> None:
        """One route's failure stops neither the thread nor the other routes: it is said once, and
        tried again from what was saved."""
        try:
            self._learn(route, now_s)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, learning must not end unnoticed
            self._learners.pop(route.name, None)
            why = f"learning failed: {type(error).__name__}: {error}"
            if self._failed.get(route.name) != why:
                self._failed[route.name] = self.problems[route.name] = why
                _log.error("route %s: %s", route.name, why, exc_info=True)
        else:
            why = self._failed.pop(route.name, "")
            if why and self.problems.get(route.name) == why:
                del self.problems[route.name]

    def _learn(self, route: LearningRoute, now_s: float) -> None:
        name = route.name
        mine = self._learners.get(name) or self._take_over(route, now_s)
        for _ in range(_PAGES):
            labels = self._store.feedback.events_since(mine.cursor, _PAGE, route=name)
            if labels:
                mine.take(labels, now_s)
            if len(labels) < _PAGE or self._stop.is_set():
                break
        due = mine.due(now_s) and not self._stop.is_set()  # whoever stops the gateway waits
        if due or self._unsaved(mine, now_s):
            states = mine.states()
            kept = self._save(route, mine, states, now_s)
            raw = self._refitted(route, mine, states["learner"], now_s) if kept and due else None
            if raw is not None:
                version = self._publish(route, raw, now_s)
                mine.published(now_s)
                done = {**mine.small_states(), "published": version.encode()}
                if not self._store.learner_states.save(
                    name, done, mine.cursor, expected_cursor=mine.cursor, now_s=now_s
                ):
                    self._learners.pop(name, None)
        self.posteriors[name] = mine.explorer.posterior()

    def _take_over(self, route: LearningRoute, now_s: float) -> RouteLearner:
        base = self._base(route)
        mine = RouteLearner(
            route.name, route.models, base, self._facts, self._limits, route.explore
        )
        saved = self._store.learner_states.load(route.name)
        mine.load(saved.states, saved.cursor)
        mine.serving = self._store.registry.current(route.name)
        self._look(route)
        self._learners[route.name] = mine
        self._saved[route.name] = (saved.cursor, now_s)
        return mine

    def _base(self, route: LearningRoute) -> Artifact | None:
        """The warm start: what an operator promoted and the learner goes on from, else the artifact
        that the config names."""
        made = {s["version"]: s for s in self._store.registry.snapshots(route.name)}
        version = self._store.registry.current(route.name)
        while version is not None and version in made:
            row = made.pop(version)
            if row["created_by"] != "learner":
                try:
                    found = artifacts.unpack(self._store.registry.get(version).content, version)
                    artifacts.check_versions(
                        found.card, self._facts.schema, self._facts.table, version
                    )
                except ArtifactError as error:
                    _log.error("route %s: no warm start from %s: %s", route.name, version, error)
                    break
                return found
            version = row["parent"]
        return route.base

    def _unsaved(self, mine: RouteLearner, now_s: float) -> bool:
        """Whether it is time to save what was taken in."""
        cursor, at_s = self._saved[mine.route]
        new, passed_s = mine.cursor - cursor, abs(now_s - at_s)
        many = new >= _SAVE_LABELS and passed_s >= _SAVE_S
        return many or (new > 0 and passed_s >= _SAVE_AT_LAST_S)

    def _save(
        self, route: LearningRoute, mine: RouteLearner, states: Mapping[str, bytes], now_s: float
    ) -> bool:
        """False: another learner has moved on; what was taken in here is in its state as well."""
        if self._store.learner_states.save(
            route.name, states, mine.cursor, expected_cursor=self._saved[route.name][0],
            now_s=now_s,
        ):  # fmt: skip
            self._saved[route.name] = (mine.cursor, now_s)
            return True
        self._learners.pop(route.name, None)
        return False

    def _refitted(
        self, route: LearningRoute, mine: RouteLearner, state: bytes, now_s: float
    ) -> bytes | None:
        """state: the learner's. None: stopped meanwhile. It stays due until a snapshot is published."""
        started = time.perf_counter()
        fit = None
        if self._thread is not None:  # there is traffic beside it
            fit = refit_process.refit(mine.learner, state, self._stop.is_set)
            if fit is None:
                return None
        raw = artifacts.pack(mine.refit(now_s, fit))
        took = time.perf_counter() - started
        _log.info("route %s: refitted through label %d in %.2f s", route.name, mine.cursor, took)
        return raw

    def _publish(self, route: LearningRoute, raw: bytes, now_s: float) -> str:
        """Keep the snapshot and, where learning is on, promote it. Its version."""
        found = artifacts.unpack(raw)
        made = make_snapshot(
            route=route.name,
            kind="brain",
            content=raw,
            created_s=now_s,
            parent=self._store.registry.current(route.name),
            card=msgspec.to_builtins(found.card),
            created_by="learner",
        )
        self._store.registry.put(made)
        policy = self.shadow_policies[route.name] = self.policy(found, made.version)
        self._shown[route.name] = made.version
        if route.mode != "on":
            return made.version
        last = list(self._store.registry.promotions(route.name, 1))
        if last and last[0].kind == "rollback":
            return made.version  # an operator undid it: the learner does not overrule that
        evidence: dict[str, Any] = {"rule": "learning is on", **found.card.figures}
        try:
            self._store.registry.promote(
                route.name, made.version, by="learner", now_s=now_s, evidence=evidence
            )
        except (ArtifactError, UsageError) as error:
            _log.error("route %s: its snapshot was not promoted: %s", route.name, error)
        else:
            self.follow({made.version: policy})
        return made.version


def _lease(route: str) -> str:
    return f"learn:{route}"
