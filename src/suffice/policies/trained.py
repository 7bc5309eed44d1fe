"""The policy that serves a trained artifact: predicted quality, cost and latency of each candidate,
and the objective solved over them.

Everything linear is folded into one row per token once (`fold`): a decision is then one gather and
one sum over the ask's tokens, whatever the dimension of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from math import exp
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from suffice import features
from suffice.artifacts.artifact import Artifact
from suffice.artifacts.estimators import ConstantEstimator, FloatArray, LinearEstimator
from suffice.names import match_model
from suffice.policies import priors
from suffice.policies.base import (
    PredictivePolicy,
    PreparedPool,
    QueryPredictions,
    Ranking,
    impute_worst,
    randomize,
)
from suffice.policies.traffic import (
    LagrangianSolution,
    PredictionSample,
    PredictionWindow,
    min_cost_for_quality,
    quantile_rank,
    quantile_table,
)
from suffice.types import Candidate, Features, Model, Objective

_POOLS = 256  # whose solutions are remembered
_PRIOR_ROWS = 256  # of the training sample, kept beside the route's own traffic


class UntrainedPrior:
    """How an untrained model is placed: its quality is the anchor column's, plus `gap`, plus
    `slope` x standardised log length of the ask."""

    __slots__ = ("gap", "slope")

    def __init__(self, gap: float, slope: float) -> None:
        self.gap = gap
        self.slope = slope


class TrainedPool:
    """A pool's part that only this policy needs. columns: (n_candidates,), -1 = untrained, then
    `guesses` has it; scale: (n_candidates,) USD now over USD at training; scores: quantiles of
    the predicted gap between the reference and the cheapest; mix: the solution of keep_quality."""

    __slots__ = ("cheapest", "columns", "ends", "guesses", "mix", "scale", "scores")

    def __init__(
        self, columns: list[int], guesses: list[UntrainedPrior | None], scale: list[float]
    ) -> None:
        self.columns = columns
        self.guesses = guesses
        self.scale = scale
        self.cheapest = 0
        self.scores: tuple[float, ...] = (0.0, 1.0)
        self.mix: LagrangianSolution | None = None
        self.ends: tuple[int, int] | None = None  # the two to mix, where no query differs


class SolvedPool(NamedTuple):
    """What of a pool does not depend on how fast its models are lately, which changes by the second."""

    models: tuple[Model, ...]
    lead: list[float]
    more: TrainedPool


class TrainedPolicy(PredictivePolicy):
    """Serves one artifact.

    traffic: the route's own predictions,
    None = the artifact's sample. folded: of an earlier policy over the same artifact, so that a
    fresh picture of the traffic costs no fresh fold.
    """

    name = "trained"

    def __init__(
        self,
        artifact: Artifact,
        *,
        traffic: PredictionSample | None = None,
        folded: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__()
        self._solved: dict[tuple[tuple[str, ...], Objective], SolvedPool] = {}
        self.artifact = artifact
        self.traffic = traffic
        self._estimator = artifact.estimator
        linear = isinstance(self._estimator, LinearEstimator)
        self._linear: LinearEstimator | None = self._estimator if linear else None
        self._folded = folded
        if self._linear is not None:
            e, k = self._linear, len(self._linear.models)
            # Qualities, then what the cost is made from: tokens where learned, else dollars.
            keep = np.r_[:k, -k:0] if e.has_tokens or e.has_cost else np.r_[:k]
            self._dense = e.vectors[:, keep].astype(np.float32)
            if folded is None:
                self._folded = features.compile_heads(self._dense)
            self._mean, self._per = e.mean, (1.0 / e.std).astype(np.float32)
            self._signals = e.signals[:, keep].astype(np.float32)
            self._intercept = e.intercept[keep]
        told = f"{artifact.version}/1/"
        if traffic is not None:
            told += blake2b(
                traffic.quality.tobytes() + traffic.cost.tobytes(), digest_size=8
            ).hexdigest()
        self._version = f"{artifact.version}-{blake2b(told.encode(), digest_size=4).hexdigest()}"

    def traffic_window(self) -> PredictionWindow:
        """What remembers a route's traffic for this policy."""
        return PredictionWindow()

    def with_traffic(self, sketch: PredictionWindow) -> TrainedPolicy:
        """The same policy on the route's own picture of the traffic."""
        fresh = type(self)(self.artifact, traffic=sketch.sample(), folded=self._folded)
        return fresh.with_certificate(self.certificate, self.alarm)

    @property
    def score_version(self) -> str:
        """Of the predictions, for certificates: the traffic is no part of it."""
        return self.artifact.version

    # ── what it expects ──────────────────────────────────────────────────────────────────────────

    def head_outputs(
        self, x: Features
    ) -> tuple[list[float], list[float] | None, list[float] | None]:
        """(k qualities and the standardised log length, k USD of the training table, k output
        tokens); None where not learned; tokens go before dollars, since prices change."""
        k = len(self.artifact.card.models)
        e = self._linear
        if e is None:
            signals, vectors = x.signals[None], features.embed(x)[None]
            q, c = self._estimator.predict(signals, vectors)
            t = self._estimator.output_tokens(signals, vectors)
            cost = None if np.isnan(c).any() else c[0].tolist()
            return [*q[0].tolist(), 0.0], cost, None if t is None else t[0].tolist()
        # The deviation is not folded into the weights: what is clipped is the standardised signal.
        z = (x.signals - self._mean) * self._per
        np.clip(z, -e.clip, e.clip, out=z)
        y = z @ self._signals
        if x.embedding is not None or x.token_ids is None:
            y += features.embed(x) @ self._dense
        elif len(x.token_ids):
            assert self._folded is not None
            rows = self._folded.take(x.token_ids, axis=0).sum(axis=0)
            if rows[-1] > 0.0:
                y += rows[:-1] / rows[-1]
        out: list[float] = (y + self._intercept).tolist()
        cost = tokens = None
        if e.has_tokens:
            tokens = [exp(v) for v in out[k:]]
        elif e.has_cost:
            cost = [exp(v) for v in out[k:]]
        elif not np.isnan(e.cost).any():
            cost = e.cost.tolist()
        return [*out[:k], float(z[0])], cost, tokens

    def predict(
        self, pool: PreparedPool, x: Features, limit: int | None, incumbent: int | None, cached: int
    ) -> QueryPredictions:
        more: TrainedPool = pool.more
        learned, usd, tokens = self.head_outputs(x)
        anchor = learned[self.reference_column]
        quality: list[float] = []
        cost: list[float | None] = []
        speed: list[float | None] = []
        typical = sum(tokens) / len(tokens) if tokens else 0.0
        for i, c in enumerate(pool.candidates):
            column = more.columns[i]
            guess = more.guesses[i]
            q = learned[column] if guess is None else anchor + guess.gap + guess.slope * learned[-1]
            quality.append(q)
            if tokens is None:
                out = priors.output_tokens(min(1.0, max(0.0, 1.0 - q)), None)
            else:
                out = int(tokens[column] if guess is None else typical) + 1
            if limit is not None and out > limit:
                out = limit
            held = cached if i == incumbent else 0
            if tokens is None and usd is not None and guess is None:
                cost.append(_scaled(usd[column] * more.scale[i], c.model, held))
            else:
                cost.append(priors.cost_usd(c.model, x.input_tokens, out, held))
            speed.append(priors.latency_s(c, out))
        score = _gap(quality, pool.best, more.cheapest)
        return QueryPredictions(
            quality, cost, speed, quantile_rank(more.scores, score), score, "trained"
        )

    @property
    def reference_column(self) -> int:
        models = self.artifact.card.models
        return models.index(self.artifact.card.reference)

    # ── the pool ─────────────────────────────────────────────────────────────────────────────────

    def prepare_pool(self, candidates: tuple[Candidate, ...], objective: Objective) -> PreparedPool:
        models = tuple([c.model for c in candidates])
        key = (tuple([m.name for m in models]), objective)
        solved = self._solved.get(key)
        if solved is not None and solved.models == models:
            return PreparedPool(candidates, objective, solved.lead, solved.more)
        pool = self._solve(candidates, objective)
        if len(self._solved) >= _POOLS:
            self._solved.clear()
        self._solved[key] = SolvedPool(models, pool.lead, pool.more)
        return pool

    def _solve(self, candidates: tuple[Candidate, ...], objective: Objective) -> PreparedPool:
        models = self.artifact.card.models
        columns = [match_model(c.model.name, models) for c in candidates]
        means = self.artifact.sample_quality.mean(axis=0)
        more = TrainedPool(
            [-1 if c is None else c for c in columns],
            self._guesses(candidates, columns, means),
            [self._price_ratio(c.model, models) for c in candidates],
        )
        traffic = self._traffic_of(candidates, more)
        lead = traffic.quality.mean(axis=0).tolist()
        pool = PreparedPool(candidates, objective, lead, more)
        worst = np.nanmax(np.where(np.isnan(traffic.cost), -np.inf, traffic.cost), initial=0.0)
        cost = np.where(np.isnan(traffic.cost), max(float(worst), 0.0) * 1.01 + 1e-9, traffic.cost)
        more.cheapest = int(np.argmin(cost.mean(axis=0)))
        best, cheapest = pool.best, more.cheapest
        gaps = traffic.quality[:, best] - (
            traffic.quality[:, cheapest] if cheapest != best else 2 * traffic.quality[:, best] - 1.0
        )
        more.scores = quantile_table(gaps.tolist())
        if objective.kind == "keep_quality":
            keep = objective.value or 0.0
            if isinstance(self._estimator, ConstantEstimator):
                # It knows nothing of single queries, so their length must not decide either: then
                # long asks would go to the cheap model, which are rather the hard ones.
                quality, usual = traffic.quality[:1], cost.mean(axis=0, keepdims=True)
                more.mix = min_cost_for_quality(quality, usual, keep, best)
                more.ends = more.mix.choose(quality[0].tolist(), usual[0].tolist())
            else:
                more.mix = min_cost_for_quality(traffic.quality, cost, keep, best)
        return pool

    def _guesses(
        self, candidates: tuple[Candidate, ...], columns: list[int | None], means: FloatArray
    ) -> list[UntrainedPrior | None]:
        """Untrained candidates are placed by their prior quality, on the scale of the trained ones:
        priors are shifted by what they are off on average on the models that are in both."""
        prior_qualities, _ = priors.quality_priors(candidates)
        both = [
            (means[c], p) for c, p in zip(columns, prior_qualities, strict=True) if c is not None
        ]
        shift = float(np.mean([m - p for m, p in both])) if both else 0.0
        anchor = float(means[self.reference_column])
        out: list[UntrainedPrior | None] = []
        for column, prior in zip(columns, prior_qualities, strict=True):
            if column is not None:
                out.append(None)
                continue
            gap = min(1.0, max(0.0, prior + shift)) - anchor
            out.append(UntrainedPrior(gap, priors.length_slope(gap)))
        return out

    def _price_ratio(self, model: Model, models: Sequence[str]) -> float:
        """What the model costs now over what it did at training, 1 where either is unknown."""
        column = match_model(model.name, models)
        then = None if column is None else self.artifact.card.prices.get(models[column])
        now = priors.list_price(model)
        if then is None or now is None:
            return 1.0
        before = (3 * then[0] + then[1]) / 4
        return now / before if before > 0 else 1.0

    def _traffic_of(self, candidates: tuple[Candidate, ...], more: TrainedPool) -> PredictionSample:
        """The sample of training queries as this pool would see it, then the route's own."""
        a = self.artifact
        names = tuple(c.model.name for c in candidates)
        rows = slice(None) if self.traffic is None else slice(0, _PRIOR_ROWS)
        base = a.sample_quality[rows]
        anchor, length = base[:, self.reference_column], a.sample_length[rows]
        quality, cost = [], []
        for i, c in enumerate(candidates):
            guess, column = more.guesses[i], more.columns[i]
            q = anchor + guess.gap + guess.slope * length if guess else base[:, column]
            quality.append(q)
            cost.append(self._sample_usd(c.model, column, more.scale[i], rows))
        found = PredictionSample(names, np.stack(quality, axis=1), np.stack(cost, axis=1))
        own = self.traffic
        if own is None or not set(names) <= set(own.names) or not len(own.quality):
            return found
        at = [own.names.index(n) for n in names]
        return PredictionSample(
            names,
            np.concatenate([found.quality, own.quality[:, at]]),
            np.concatenate([found.cost, own.cost[:, at]]),
        )

    def _sample_usd(self, model: Model, column: int, scale: float, rows: slice) -> FloatArray:
        a = self.artifact
        n = len(a.sample_input[rows])
        tokens = a.sample_tokens[rows]
        if not np.isnan(tokens).all():
            out = tokens[:, column] if column >= 0 else np.nanmean(tokens, axis=1)
        elif column >= 0 and not np.isnan(a.sample_cost[rows, column]).any():
            return np.asarray(a.sample_cost[rows, column] * scale)
        else:
            out = np.full(n, 400.0)
        p = model.price
        if p.input_usd_per_mtok is None or p.output_usd_per_mtok is None:
            return np.full(n, np.nan)
        usd = a.sample_input[rows] * p.input_usd_per_mtok + out * p.output_usd_per_mtok
        return np.asarray(usd / 1e6)

    # ── objectives over traffic ──────────────────────────────────────────────────────────────────

    def rank(
        self, pool: PreparedPool, view: QueryPredictions, objective: Objective, seed: int
    ) -> Ranking:
        more: TrainedPool = pool.more
        if more.mix is None:
            return super().rank(pool, view, objective, seed)
        cost = impute_worst(view.cost, 1e-9)
        ends = more.ends or more.mix.choose(view.quality, cost)
        top, shares = randomize(*ends, more.mix.share, seed)
        merit = [q - more.mix.low * c for q, c in zip(view.quality, cost, strict=True)]
        order = sorted(range(len(merit)), key=lambda i: (-merit[i], i))
        order.remove(top)
        order.insert(0, top)
        spread = [shares.get(i, 0.0) for i in range(len(order))] if len(shares) > 1 else None
        return Ranking(order, "", spread)

    def _how_hard(self, view: QueryPredictions, x: Features) -> str:
        return ""


def _gap(quality: list[float], best: int, cheapest: int) -> float:
    return quality[best] - quality[cheapest] if cheapest != best else 1.0 - quality[best]


def _scaled(usd: float, model: Model, held: int) -> float:
    """Predicted USD less what `held` cached tokens save."""
    p = model.price
    if not held or p.input_usd_per_mtok is None or p.cached_input_usd_per_mtok is None:
        return usd
    return max(0.0, usd - held * (p.input_usd_per_mtok - p.cached_input_usd_per_mtok) / 1e6)
