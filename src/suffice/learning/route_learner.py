"""What one route has learned from its feedback, in memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.artifacts.artifact import Artifact
from suffice.artifacts.npz import pack_state, unpack_state
from suffice.errors import ArtifactError
from suffice.learning.exploration import ThompsonSampler
from suffice.learning.label_limits import SourceLimits, limits_for_clients
from suffice.learning.learned_artifact import build_artifact
from suffice.learning.posterior import Posterior
from suffice.learning.regression import LabelBatch, OnlineRegression
from suffice.learning.reply_lengths import ReplyLengths
from suffice.learning.warm_start import FeatureSpec, trained_models, warm_start
from suffice.names import match_model
from suffice.store.records import FeedbackEvent
from suffice.types import Model

DEFAULT_EXPLORE_SHARE = 0.02  # of the traffic
MIN_LABELS_FIRST_REFIT = 50.0
REFIT_GROWTH = 0.1  # new labels before the next refit, as a share of all labels
# Pause between two refits, as a share of the time since the first label, up to a maximum. So a busy
# route makes at most 144 snapshots per day.
REFIT_INTERVAL_SHARE, MAX_REFIT_INTERVAL_S = 0.02, 600.0
_KNOWN_LABELS = 100.0  # with so many labels a model's mean quality is known to about 0.04
_MAX_PREDICTION = 10.0  # in absolute value, of a recorded quality
_SAMPLE_QUERIES = 512  # labelled queries on which the next snapshot's objective is solved
_SAMPLE_SCHEMA = "sample-1"

Float32Array = NDArray[np.float32]
FloatArray = NDArray[np.float64]

_log = logging.getLogger("suffice.learning")


class RefitSchedule(msgspec.Struct):
    """When a route is refitted."""

    weight_since_refit: float = 0.0  # what labels counted for since the last refit
    began_s: float | None = None  # when the first labels were ingested, unix time
    refitted_s: float | None = None

    def due(self, labels: float, now_s: float) -> bool:
        """Whether enough was learned since the last refit.

        Args:
            labels: Weight of all labels.
            now_s: Unix time.

        Returns:
            True also if the clock was set back behind the last refit.
        """
        if self.weight_since_refit < max(MIN_LABELS_FIRST_REFIT, REFIT_GROWTH * labels):
            return False
        if self.refitted_s is None or self.began_s is None:
            return True
        pause_s = min(MAX_REFIT_INTERVAL_S, REFIT_INTERVAL_SHARE * (now_s - self.began_s))
        return now_s - self.refitted_s >= pause_s or now_s < self.refitted_s


class RecentQueries:
    """The features of the labelled queries seen last."""

    def __init__(self, signals: Float32Array, vectors: Float32Array) -> None:
        self._signals = list(signals)
        self._vectors = list(vectors)

    def append(self, signals: Float32Array, vector: Float32Array) -> None:
        """Add a query; the oldest is dropped if there are too many."""
        self._signals.append(signals)
        self._vectors.append(vector)
        del self._signals[:-_SAMPLE_QUERIES], self._vectors[:-_SAMPLE_QUERIES]

    def arrays(self, spec: FeatureSpec) -> tuple[Float32Array, Float32Array]:
        """Signals (n, n_signals) and embeddings (n, n_dimensions), oldest first."""
        n = len(self._signals)
        signals = np.array(self._signals, np.float32).reshape(n, len(spec.mean))
        return signals, np.array(self._vectors, np.float32).reshape(n, spec.n_dimensions)


class RouteLearner:
    """Learns from the labels of one route. Pure: no clock and no store.

    Args:
        route: Its name.
        models: Of the route.
        base: The artifact that learning starts from. None: a policy that was not trained.
        spec: Of the features.
        limits: What the labels of one source may count for. None: no limit.
        explore_share: Of the traffic that may be explored.

    Attributes:
        regression: Quality per model.
        sampler: What to explore.
        reply_lengths: Output tokens per model.
        schedule: When to refit.
        serving: Version of the snapshot that decides. None: the configured policy.
        cursor: All feedback up to this sequence number was ingested.
    """

    def __init__(
        self,
        route: str,
        models: Sequence[Model],
        base: Artifact | None,
        spec: FeatureSpec,
        limits: SourceLimits | None = None,
        explore_share: float = DEFAULT_EXPLORE_SHARE,
    ) -> None:
        self.route = route
        self.models = tuple(models)
        self.names = tuple(m.name for m in models)
        self.base = base
        self.spec = spec
        self._explore_share = explore_share
        self._limits = limits_for_clients(0) if limits is None else limits
        self.serving: str | None = None
        self._reset()

    def _reset(self) -> None:
        """Forget everything."""
        spec = self.spec
        self.cursor = 0
        self.regression = OnlineRegression(
            self.names, spec.mean, spec.std, spec.n_dimensions,
            prior=warm_start(self.models, self.base, spec), limits=self._limits,
        )  # fmt: skip
        self.sampler = self._new_sampler(trained_models(self.names, self.base))
        self.reply_lengths = ReplyLengths()
        self.schedule = RefitSchedule()
        self.recent = RecentQueries(
            np.empty((0, len(spec.mean)), np.float32), np.empty((0, spec.n_dimensions), np.float32)
        )

    def _new_sampler(self, known: Sequence[str]) -> ThompsonSampler:
        return ThompsonSampler(known, explore_share=self._explore_share)

    # ── saved states ─────────────────────────────────────────────────────────────────────────────

    def load(self, states: Mapping[str, bytes], cursor: int) -> None:
        """Restore saved states.

        Models that left the route are dropped, new ones start from their prior, and a model that
        only changed its provider keeps its labels. If a state cannot be used, that is logged, and
        everything is learned again from the start of the feedback.

        Args:
            states: What `states` gave.
            cursor: That they were saved with.
        """
        try:
            self._load(states)
        except (ArtifactError, ValueError) as error:
            _log.error("route %s: what was learned cannot be used: %s", self.route, error)
            self._reset()
        else:
            self.cursor = cursor

    def _load(self, states: Mapping[str, bytes]) -> None:
        if "learner" in states:
            saved = OnlineRegression.from_state(states["learner"])
            if len(saved.mean) + saved.n_dimensions != len(self.regression.prior.weights):
                raise ArtifactError("learner state: was learned on other features.")
            saved.models = self._current_names(saved.models)
            self.regression = saved.with_models(self.names, self.regression.prior)
            self.regression.limiter.limits = self._limits  # the settings may have changed
        if "explorer" in states:
            share = self._explore_share
            self.sampler = ThompsonSampler.from_state(states["explorer"], explore_share=share)
            self.sampler.retain(self.names)
        if "sample" in states:
            header, arrays = unpack_state(states["sample"], _SAMPLE_SCHEMA, _SampleHeader)
            self.recent = RecentQueries(
                arrays["signals"].astype(np.float32), arrays["vectors"].astype(np.float32)
            )
            self.schedule = RefitSchedule(
                header.weight_since_refit, header.began_s, header.refitted_s
            )
            names = self._current_names(tuple(header.tokens))
            totals = zip(names, header.tokens.values(), strict=True)
            self.reply_lengths = ReplyLengths({n: t for n, t in totals if n in self.names})

    def _current_names(self, saved: tuple[str, ...]) -> tuple[str, ...]:
        """The saved models by their names of now: `a/m` becomes `b/m` if its provider changed."""
        renamed = {name: name for name in saved}
        for name in self.names:
            if name not in saved:
                index = match_model(name, saved)
                if index is not None and saved[index] not in self.names:
                    renamed[saved[index]] = name
        names = tuple(renamed[name] for name in saved)
        return names if len(set(names)) == len(names) else saved

    def states(self) -> dict[str, bytes]:
        """Everything, to be saved with the cursor."""
        return {"learner": self.regression.state(), **self.compact_states()}

    def compact_states(self) -> dict[str, bytes]:
        """Everything but the regression, which only labels change: about 300 kB."""
        signals, vectors = self.recent.arrays(self.spec)
        schedule = self.schedule
        header = _SampleHeader(
            schedule.weight_since_refit,
            schedule.began_s,
            schedule.refitted_s,
            self.reply_lengths.totals,
        )
        arrays: dict[str, NDArray[np.generic]] = {
            "signals": signals,
            "vectors": vectors.astype(np.float16),
        }
        return {
            "explorer": self.sampler.state(),
            "sample": pack_state(_SAMPLE_SCHEMA, header, arrays),
        }

    # ── learning ─────────────────────────────────────────────────────────────────────────────────

    def ingest(self, events: Sequence[FeedbackEvent], now_s: float) -> int:
        """Learn from labels in their order.

        A label is skipped if its decision was recorded without features, or with those of another
        version.

        Args:
            events: The labels.
            now_s: Unix time.

        Returns:
            How many of them counted.
        """
        usable = [event for event in events if self._usable(event)]
        models = [self._current_model(event.scored_model) for event in usable]
        update = self.regression.partial_fit(self._batch(usable, models))
        for event, model, weight in zip(usable, models, update.counted.tolist(), strict=True):
            if weight > 0.0 and model is not None:
                self._learn_others(event, model, weight)
        if update.learned and self.schedule.began_s is None:
            self.schedule.began_s = now_s
        self.schedule.weight_since_refit += float(update.counted.sum())
        if events:
            self.cursor = events[-1].seq
        return update.learned

    def _usable(self, event: FeedbackEvent) -> bool:
        spec = self.spec
        return (
            event.features_schema == spec.schema
            and event.signals is not None
            and event.embedding is not None
            and len(event.signals) == len(spec.mean)
            and len(event.embedding) == spec.n_dimensions
        )

    def _current_model(self, name: str | None) -> str | None:
        """The route's model that a label is about. None: it left the route."""
        index = None if name is None else match_model(name, self.names)
        return None if index is None else self.names[index]

    def _batch(self, events: Sequence[FeedbackEvent], models: Sequence[str | None]) -> LabelBatch:
        n, spec = len(events), self.spec
        replaced = [np.nan if e.previous_score is None else e.previous_score for e in events]
        return LabelBatch(
            ids=np.array([e.seq for e in events], np.int64),
            signals=np.array([e.signals for e in events], np.float32).reshape(n, len(spec.mean)),
            vectors=np.array([e.embedding for e in events], np.float32).reshape(
                n, spec.n_dimensions
            ),
            models=[model or "" for model in models],
            scores=np.array([e.score for e in events], float),
            sources=[source_of(e) for e in events],
            times_s=np.array([e.feedback_at_s for e in events], float),
            weights=_clip_weights([e.weight for e in events]),
            replaced=np.array(replaced, float),
            replaced_weights=_clip_weights([e.previous_weight or 0.0 for e in events]),
        )

    def _learn_others(self, event: FeedbackEvent, name: str, weight: float) -> None:
        """Update everything but the regression from a label that counted."""
        assert event.signals is not None
        assert event.embedding is not None
        if event.snapshot == self.serving:  # predictions of another policy say nothing about it
            predicted = [p.quality for p in event.predictions if p.model == event.scored_model]
            if predicted and predicted[0] is not None and abs(predicted[0]) <= _MAX_PREDICTION:
                self.sampler.update(name, predicted[0], event.score, weight)
        prompt_tokens = float(np.expm1(event.signals[self.spec.prompt_tokens]))
        self.reply_lengths.update(event, self.models[self.names.index(name)], prompt_tokens)
        self.recent.append(event.signals, event.embedding)

    def refit_due(self, now_s: float) -> bool:
        """Whether enough was learned since the last refit for another one."""
        return self.schedule.due(float(self.regression.labels.sum()), now_s)

    def on_published(self, now_s: float) -> None:
        """Note that a snapshot of the present state is stored.

        Its predictions contain what the labels say about each model's mean quality. So the sampler
        starts from its prior: it must not correct them by the same labels again.
        """
        self.schedule.weight_since_refit = 0.0
        self.schedule.refitted_s = now_s
        enough = self.regression.labels >= _KNOWN_LABELS
        known = {n for n, e in zip(self.names, enough.tolist(), strict=True) if e}
        known |= set(trained_models(self.names, self.base))
        self.sampler = self._new_sampler([n for n in self.names if n in known])

    def build_artifact(self, now_s: float, posterior: Posterior | None = None) -> Artifact:
        """The artifact of the present state. The same state gives the same artifact within a day.

        Args:
            now_s: Unix time.
            posterior: Of the regression. None: it is computed here.

        Returns:
            The artifact.
        """
        posterior = self.regression.posterior() if posterior is None else posterior
        return build_artifact(
            posterior,
            self.names,
            self.spec,
            base=self.base,
            mean_tokens=self.reply_lengths.means(self.names),
            sample=self.recent.arrays(self.spec),
            trained_on=f"feedback of route {self.route}",
            through_seq=self.cursor,
            now_s=now_s,
        )


def source_of(event: FeedbackEvent) -> str:
    """Whose labels the limits count together: the client's API key, not the source that it names."""
    return event.key_id or ""


def _clip_weights(weights: list[float]) -> FloatArray:
    return np.asarray(np.clip(np.array(weights, float), 0.0, 1.0))


class _SampleHeader(msgspec.Struct, frozen=True):
    weight_since_refit: float = msgspec.field(name="counted")
    began_s: float | None = None
    refitted_s: float | None = None
    tokens: dict[str, tuple[float, float]] = {}
