"""The policy that serves a trained artifact.

It predicts quality, cost and latency of each model, and solves the objective over the predictions.
Everything linear is folded into one row per token once (`features.compile_heads`). A decision is then
one gather and one sum over the text's tokens, for any dimension of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from suffice import features
from suffice.artifacts.artifact import Artifact
from suffice.artifacts.estimators import ConstantEstimator, LinearEstimator
from suffice.names import match_model
from suffice.policies import priors
from suffice.policies.base import PredictivePolicy
from suffice.policies.heads import HeadOutputs, LinearHeads
from suffice.policies.prepared_pool import PreparedPool, QueryPredictions, Ranking, best_index
from suffice.policies.traffic import (
    LagrangianSolution,
    PredictionSample,
    PredictionWindow,
    min_cost_for_quality,
    quantile_rank,
    quantile_table,
)
from suffice.policies.utility import impute_worst, randomize
from suffice.pool import Pool
from suffice.types import Candidate, Features, FloatArray, Model, Objective

_PRIOR_ROWS = 256  # of the training sample that stay when the route has its own traffic


class UntrainedPrior(NamedTuple):
    """How a model that the artifact does not have is predicted from the artifact's reference.

    Attributes:
        gap: its mean quality less the reference's.
        slope: of the gap on the standardised log length of the message.
    """

    gap: float
    slope: float


class TrainedPool(NamedTuple):
    """What the trained policy computes per pool.

    Attributes:
        columns: (n_models,) of the artifact; -1 = untrained.
        untrained: (n_models,) how untrained models are predicted; None = trained.
        scale: (n_models,) USD now over USD at training.
        cheapest: the index of the model of the lowest mean cost.
        gap_quantiles: of the predicted gap between the reference and the cheapest.
        mixture: the solution of `keep_quality`; None for other objectives.
        constant_choice: the two models to mix if all queries are predicted alike.
    """

    columns: list[int]
    untrained: list[UntrainedPrior | None]
    scale: list[float]
    cheapest: int
    gap_quantiles: tuple[float, ...]
    mixture: LagrangianSolution | None
    constant_choice: tuple[int, int] | None


class TrainedPolicy(PredictivePolicy[TrainedPool]):
    """Serves one artifact.

    Args:
        artifact: what was trained.
        traffic: the route's own predictions; None = the artifact's sample.
        heads: of an earlier policy over the same artifact, so that a new picture of the traffic
            does not fold them again.
    """

    name = "trained"

    def __init__(
        self,
        artifact: Artifact,
        *,
        traffic: PredictionSample | None = None,
        heads: LinearHeads | None = None,
    ) -> None:
        self.artifact = artifact
        self.traffic = traffic
        self._estimator = artifact.estimator
        if heads is None and isinstance(self._estimator, LinearEstimator):
            heads = LinearHeads(self._estimator)
        self._heads = heads
        self._reference_column = artifact.card.models.index(artifact.card.reference)
        hash_input = f"{artifact.version}/1/"
        if traffic is not None:
            content = traffic.quality.tobytes() + traffic.cost.tobytes()
            hash_input += blake2b(content, digest_size=8).hexdigest()
        digest = blake2b(hash_input.encode(), digest_size=4).hexdigest()
        super().__init__(f"{artifact.version}-{digest}")

    def traffic_window(self) -> PredictionWindow:
        """A new, empty window of traffic for this policy."""
        return PredictionWindow()

    def with_traffic(self, window: PredictionWindow) -> TrainedPolicy:
        """Copy the policy with the predictions of a window of traffic."""
        fresh = type(self)(self.artifact, traffic=window.sample(), heads=self._heads)
        return fresh.with_certificate(self.certificate, self.alarm)

    @property
    def score_version(self) -> str:
        """The version of the predictions, for certificates. The traffic is not part of it."""
        return self.artifact.version

    # ── predictions ──────────────────────────────────────────────────────────────────────────────

    def head_outputs(self, x: Features) -> HeadOutputs:
        """Predict quality and cost of each model of the artifact for a query."""
        if self._heads is not None:
            return self._heads(x)
        signals, vectors = x.signals[None], features.embed(x)[None]
        quality, cost = self._estimator.predict(signals, vectors)
        tokens = self._estimator.output_tokens(signals, vectors)
        return HeadOutputs(
            quality[0].tolist(),
            0.0,
            None if np.isnan(cost).any() else cost[0].tolist(),
            None if tokens is None else tokens[0].tolist(),
        )

    def predict(
        self,
        pool: PreparedPool[TrainedPool],
        candidates: tuple[Candidate, ...],
        x: Features,
        max_output_tokens: int | None,
        incumbent: int | None,
        cached_tokens: int,
    ) -> QueryPredictions:
        """Predict from the artifact; models that it does not have from its reference."""
        solution = pool.solution
        heads = self.head_outputs(x)
        tokens, table_usd = heads.output_tokens, heads.cost_usd
        reference_quality = heads.quality[self._reference_column]
        mean_tokens = sum(tokens) / len(tokens) if tokens else 0.0
        n, learned = x.input_tokens, heads.quality
        quality: list[float] = []
        cost: list[float | None] = []
        latency: list[float | None] = []
        for i, (candidate, column, prior, price) in enumerate(
            zip(candidates, solution.columns, solution.untrained, pool.prices, strict=True)
        ):
            if prior is None:
                q = learned[column]
            else:
                q = reference_quality + prior.gap + prior.slope * heads.log_length
            if tokens is None:
                output = priors.output_tokens(min(1.0, max(0.0, 1.0 - q)), None)
            else:
                output = int(tokens[column] if prior is None else mean_tokens) + 1
            if max_output_tokens is not None and output > max_output_tokens:
                output = max_output_tokens
            cached = cached_tokens if i == incumbent else 0
            if tokens is None and table_usd is not None and prior is None:
                usd = _with_cache(table_usd[column] * solution.scale[i], candidate.model, cached)
                cost.append(usd)
            elif cached:
                cost.append(priors.cost_usd(candidate.model, n, output, cached))
            else:
                cost.append(None if price is None else (n * price[0] + output * price[1]) / 1e6)
            quality.append(q)
            latency.append(priors.latency_s(candidate, output))
        score = _gap(quality, pool.reference, solution.cheapest)
        difficulty = quantile_rank(solution.gap_quantiles, score)
        return QueryPredictions(quality, cost, latency, difficulty, score, "trained")

    # ── the pool ─────────────────────────────────────────────────────────────────────────────────

    def prepare_pool(self, pool: Pool, objective: Objective) -> PreparedPool[TrainedPool]:
        """Match a pool with the artifact, and solve the objective over the traffic."""
        models = self.artifact.card.models
        matches = [match_model(name, models) for name in pool.names]
        untrained = self._untrained_priors(pool, matches)
        columns = [-1 if c is None else c for c in matches]
        scale = [self._price_ratio(m, c) for m, c in zip(pool.models, columns, strict=True)]
        traffic = self._traffic_of(pool, columns, untrained, scale)
        unknown = np.isnan(traffic.cost)
        worst = np.nanmax(np.where(unknown, -np.inf, traffic.cost), initial=0.0)
        cost = np.where(unknown, max(float(worst), 0.0) * 1.01 + 1e-9, traffic.cost)
        mean_quality = traffic.quality.mean(axis=0).tolist()
        reference = best_index(mean_quality)
        cheapest = int(np.argmin(cost.mean(axis=0)))
        q = traffic.quality[:, reference]
        # With one model there is no gap: what it lacks to perfect takes its place.
        gaps = q - (traffic.quality[:, cheapest] if cheapest != reference else 2 * q - 1.0)
        mixture = constant_choice = None
        if objective.kind == "keep_quality":
            mixture, constant_choice = self._solve(
                traffic.quality, cost, objective.value or 0.0, reference
            )
        solution = TrainedPool(
            columns,
            untrained,
            scale,
            cheapest,
            quantile_table(gaps.tolist()),
            mixture,
            constant_choice,
        )
        return PreparedPool(pool, objective, mean_quality, reference, solution)

    def _solve(
        self, quality: FloatArray, cost: FloatArray, keep: float, reference: int
    ) -> tuple[LagrangianSolution, tuple[int, int] | None]:
        """The solution of `keep_quality`, and the two models to mix if no query differs."""
        if not isinstance(self._estimator, ConstantEstimator):
            return min_cost_for_quality(quality, cost, keep, reference), None
        # The estimator knows nothing of single queries, so their length must not decide either: long
        # queries, which tend to be hard, would go to the cheap model.
        quality, cost = quality[:1], cost.mean(axis=0, keepdims=True)
        mixture = min_cost_for_quality(quality, cost, keep, reference)
        first, second, _ = mixture.choose(quality[0].tolist(), cost[0].tolist())
        return mixture, (first, second)

    def _untrained_priors(
        self, pool: Pool, matches: Sequence[int | None]
    ) -> list[UntrainedPrior | None]:
        """Place untrained models by their prior quality, on the scale of the trained ones."""
        # The priors are shifted by their mean error on the models that have both.
        means = self.artifact.sample_quality.mean(axis=0)
        quality = priors.quality_priors(pool.models)
        errors = [means[c] - q for c, q in zip(matches, quality, strict=True) if c is not None]
        shift = float(np.mean(errors)) if errors else 0.0
        reference = float(means[self._reference_column])
        untrained: list[UntrainedPrior | None] = []
        for column, q in zip(matches, quality, strict=True):
            if column is not None:
                untrained.append(None)
                continue
            gap = min(1.0, max(0.0, q + shift)) - reference
            untrained.append(UntrainedPrior(gap, priors.length_slope(gap)))
        return untrained

    def _price_ratio(self, model: Model, column: int) -> float:
        """The model's price now over its price at training; 1 if either is unknown."""
        card = self.artifact.card
        then = None if column < 0 else card.prices.get(card.models[column])
        now = priors.list_price(model)
        if then is None or now is None:
            return 1.0
        before = (3 * then[0] + then[1]) / 4
        return now / before if before > 0 else 1.0

    def _traffic_of(
        self,
        pool: Pool,
        columns: Sequence[int],
        untrained: Sequence[UntrainedPrior | None],
        scale: Sequence[float],
    ) -> PredictionSample:
        """The sample of training queries as this pool would be predicted, then the route's own."""
        artifact, recent = self.artifact, self.traffic
        rows = slice(None) if recent is None else slice(0, _PRIOR_ROWS)
        base = artifact.sample_quality[rows]
        reference, length = base[:, self._reference_column], artifact.sample_length[rows]
        quality, cost = [], []
        for i, model in enumerate(pool.models):
            prior = untrained[i]
            if prior is None:
                quality.append(base[:, columns[i]])
            else:
                quality.append(reference + prior.gap + prior.slope * length)
            cost.append(_sample_usd(artifact, model, columns[i], scale[i], rows))
        trained = PredictionSample(pool.names, np.stack(quality, axis=1), np.stack(cost, axis=1))
        if recent is None or not set(pool.names) <= set(recent.names) or not len(recent.quality):
            return trained
        index = [recent.names.index(n) for n in pool.names]
        return PredictionSample(
            pool.names,
            np.concatenate([trained.quality, recent.quality[:, index]]),
            np.concatenate([trained.cost, recent.cost[:, index]]),
        )

    # ── objectives over traffic ──────────────────────────────────────────────────────────────────

    def rank(
        self, pool: PreparedPool[TrainedPool], predictions: QueryPredictions, seed: int
    ) -> Ranking:
        """Rank by the objective; `keep_quality` by the mixture solved over the traffic."""
        solution = pool.solution
        mixture = solution.mixture
        if mixture is None:
            return super().rank(pool, predictions, seed)
        cost = impute_worst(predictions.cost_usd, 1e-9)
        first, second, utility = mixture.choose(predictions.quality, cost)
        if solution.constant_choice is not None:
            first, second = solution.constant_choice
        top, shares = randomize(first, second, mixture.share, seed)
        order = sorted(range(len(utility)), key=utility.__getitem__, reverse=True)
        order.remove(top)
        order.insert(0, top)
        if len(shares) == 1:
            return Ranking(order)
        return Ranking(order, "", [shares.get(i, 0.0) for i in range(len(order))])

    def difficulty_text(self, predictions: QueryPredictions, x: Features) -> str:
        """Empty: the difficulty is a quantile of a predicted gap, which says little to a reader."""
        return ""


def _gap(quality: Sequence[float], reference: int, cheapest: int) -> float:
    if cheapest != reference:
        return quality[reference] - quality[cheapest]
    return 1.0 - quality[reference]


def _with_cache(usd: float, model: Model, cached_tokens: int) -> float:
    """Predicted USD less what the cached tokens save."""
    p = model.price
    if not cached_tokens or p.input_usd_per_mtok is None or p.cached_input_usd_per_mtok is None:
        return usd
    saved = cached_tokens * (p.input_usd_per_mtok - p.cached_input_usd_per_mtok) / 1e6
    return max(0.0, usd - saved)


def _sample_usd(
    artifact: Artifact, model: Model, column: int, scale: float, rows: slice
) -> FloatArray:
    """The predicted cost of a model on the training sample, (m,) USD; NaN = unknown."""
    n = len(artifact.sample_input[rows])
    tokens = artifact.sample_tokens[rows]
    if not np.isnan(tokens).all():
        output = tokens[:, column] if column >= 0 else np.nanmean(tokens, axis=1)
    elif column >= 0 and not np.isnan(artifact.sample_cost[rows, column]).any():
        return np.asarray(artifact.sample_cost[rows, column] * scale)
    else:
        output = np.full(n, 400.0)
    p = model.price
    if p.input_usd_per_mtok is None or p.output_usd_per_mtok is None:
        return np.full(n, np.nan)
    usd = artifact.sample_input[rows] * p.input_usd_per_mtok + output * p.output_usd_per_mtok
    return np.asarray(usd / 1e6)
