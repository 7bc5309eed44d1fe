"""Scores choices on a set of queries: every figure of every policy, and the baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import FloatArray
from suffice.lab.evaluate import frontier, metrics
from suffice.lab.evaluate.predictions import Predictions
from suffice.lab.evaluate.problem import EvalSet
from suffice.lab.evaluate.result import (
    BASELINES,
    EqualCost,
    EqualQuality,
    ModelMeans,
    OperatingPoint,
    PolicyResult,
)
from suffice.lab.predictors.base import track
from suffice.lab.stats import ClusterBootstrap, basic_interval, weighted_mean

KEEP_QUALITY = 0.95  # operating points keep this part of the best single model's quality


class Choices(NamedTuple):
    """What a policy chooses."""

    models: NDArray[np.intp]
    """(t, n) column of the model for each query at each trade-off."""
    strong_score: FloatArray | None
    """(n,) by which a pair is ranked; None without one."""
    fitted: str
    """How the policy was fitted, for the user."""


class Scorecard:
    """Scores choices on the queries of an evaluation set, or on some of them.

    Attributes:
        singles: (k, 2) mean cost and quality of each single model.
        bootstrap: Of the queries.
    """

    def __init__(
        self,
        eval_set: EvalSet,
        clusters: NDArray[np.intp],
        draws: int,
        seed: int,
        rows: NDArray[np.bool_] | None = None,
    ) -> None:
        """Compute the bootstrap and the figures of the single models.

        Args:
            eval_set: The queries.
            clusters: (n,) their clusters.
            draws: Number of resamples.
            seed: Of the resamples and of random mixing.
            rows: (n,) the queries to score on; None: all.
        """
        selected = np.arange(len(eval_set.rows)) if rows is None else np.flatnonzero(rows)
        self.eval_set = eval_set
        self.seed = seed
        self._quality = eval_set.score[selected]
        self._cost = eval_set.cost[selected]
        self._weight = None if eval_set.weight is None else eval_set.weight[selected]
        self.bootstrap = ClusterBootstrap(clusters[selected], draws, seed, self._weight)
        self.singles = np.stack([self._mean(self._cost), self._mean(self._quality)], axis=1)
        self._single_draws = np.stack(
            [self.bootstrap.means(self._cost), self.bootstrap.means(self._quality)], axis=2
        )  # (draws, k, 2)
        self._zero_area = frontier.hull_area(self.singles, self.singles)
        self._zero_draws = np.array([frontier.hull_area(s, s) for s in self._single_draws])
        self._best = frontier.best_single(self.singles)

    def _mean(self, values: FloatArray) -> FloatArray:
        return weighted_mean(values, self._weight)

    def model_means(self) -> dict[str, ModelMeans]:
        """Quality and cost of each single model."""
        return {
            m: {"quality": float(q), "cost": float(c)}
            for m, (c, q) in zip(self.eval_set.models, self.singles.tolist(), strict=True)
        }

    def score_all(
        self, predictions: Mapping[str, Predictions], progress: bool = False
    ) -> dict[str, PolicyResult]:
        """Score every baseline, then every policy."""
        baselines = self._baselines()
        results: dict[str, PolicyResult] = {}
        names = [*BASELINES, *(n for n in predictions if n not in BASELINES)]
        for name in track(names, "scoring", progress):
            choices = baselines.get(name) or self._choose(predictions[name])
            results[name] = self.score(choices)
        self._finalize(results)
        return results

    def _choose(self, p: Predictions) -> Choices:
        pair = self.eval_set.pair
        if p.strong_score is not None and pair is not None:
            return Choices(
                frontier.sweep_thresholds(p.strong_score, *pair), p.strong_score, p.fitted
            )
        return Choices(frontier.sweep_tradeoffs(p.quality, p.cost), p.strong_score, p.fitted)

    def _baselines(self) -> dict[str, Choices]:
        """Every baseline but length, which is a predictor."""
        n, pair = len(self._quality), self.eval_set.pair
        uniform = np.random.default_rng((self.seed, 1)).random(n)
        everything = np.ones((1, n), np.intp)
        order = np.lexsort((-self.singles[:, 1], self.singles[:, 0]))
        hull = frontier.zero_router_hull(self.singles)
        members = [next(j for j in order if tuple(self.singles[j]) == tuple(p)) for p in hull]
        random = Choices(frontier.random_mixtures(uniform, members), None, "a coin")
        gap = None
        if pair is not None:
            strong, weak = pair
            random = Choices(frontier.sweep_thresholds(uniform, strong, weak), uniform, "a coin")
            # Random numbers break ties: otherwise the grid of shares would have gaps.
            gap = self._quality[:, strong] - self._quality[:, weak] + 1e-9 * uniform
        singles = np.repeat(np.array(members)[:, None], n, axis=1)
        oracle = frontier.sweep_tradeoffs(self._quality, self._cost)
        return {
            "cheapest": Choices(everything * order[0], None, "the cheapest model alone"),
            "best": Choices(
                everything * self._best, None, "the best model alone, known in hindsight"
            ),
            "random": random,
            "zero_router": Choices(
                singles, None, "random mixing of single models, known in hindsight"
            ),
            "oracle": Choices(oracle, gap, "knows every outcome"),
        }

    def score(self, choices: Choices) -> PolicyResult:
        """Compute the figures of one policy."""
        rows = np.arange(len(self._quality))
        cost = self._cost[rows, choices.models].T  # (n, t)
        quality = self._quality[rows, choices.models].T
        points = np.stack([self._mean(cost), self._mean(quality)], axis=1)
        resampled_points = np.stack(
            [self.bootstrap.means(cost), self.bootstrap.means(quality)], axis=2
        )
        resampled = np.array(
            [
                frontier.hull_area(p, s)
                for p, s in zip(resampled_points, self._single_draws, strict=True)
            ]
        )
        area = frontier.hull_area(points, self.singles)
        gain = area - self._zero_area
        low, high = float(self.singles[:, 0].min()), float(self.singles[:, 0].max())
        result: PolicyResult = {
            "curve": points[np.lexsort((points[:, 1], points[:, 0]))].tolist(),
            "area": area,
            "area_ci": basic_interval(resampled, area),
            "gain_over_zero_router": gain,
            "gain_ci": basic_interval(resampled - self._zero_draws, gain),
            "qnc": metrics.qnc(points, self.singles),
            "apgr": None,
            "cpt50": None,
            "cpt80": None,
            "apgr_ci": None,
            "fitted": choices.fitted,
            "at_equal_quality": self._equal_quality(points),
            "at_equal_cost": self._equal_cost(points),
            "aiq_paper": metrics.aiq_paper(points, low, high),
            "aiq_code": 0.0,  # set by _finalize, which knows the range of costs
            "operating_point": self._operating_point(choices.models, points),
            "routerarena": self._routerarena(points),
        }
        if choices.strong_score is not None:
            self._add_pair_metrics(result, choices.strong_score)
        return result

    def _routerarena(self, points: FloatArray) -> float | None:
        if self.eval_set.cost_unit != "usd":
            return None
        scores = [metrics.routerarena(q, 1000 * c) for c, q in points.tolist()]
        return max((s for s in scores if s is not None), default=None)

    def _add_pair_metrics(self, result: PolicyResult, strong_score: FloatArray) -> None:
        if self.eval_set.pair is None:
            return
        strong, weak = (self._quality[:, j] for j in self.eval_set.pair)
        curve = metrics.pair_curve(strong_score, strong, weak, self._weight)
        if not np.isfinite(curve.apgr):
            return
        resampled = metrics.apgr_draws(strong_score, strong, weak, self.bootstrap)
        result["apgr"] = curve.apgr
        result["cpt50"], result["cpt80"] = curve.cpt(0.5), curve.cpt(0.8)
        result["apgr_ci"] = basic_interval(resampled, curve.apgr)

    def _equal_quality(self, points: FloatArray) -> list[EqualQuality]:
        quality = float(self.singles[self._best, 1])
        zero = frontier.zero_router_hull(self.singles)
        return [
            {
                "of_best": part,
                "quality": part * quality,
                "cost": frontier.cost_at(points, self.singles, part * quality),
                "zero_router_cost": frontier.cost_at(zero, self.singles, part * quality),
            }
            for part in (0.9, 0.95, 0.99, 1.0)
        ]

    def _equal_cost(self, points: FloatArray) -> list[EqualCost]:
        cost = float(self.singles[self._best, 0])
        zero = frontier.zero_router_hull(self.singles)
        return [
            {
                "of_best": part,
                "cost": part * cost,
                "quality": frontier.quality_at(points, self.singles, part * cost),
                "zero_router_quality": frontier.quality_at(zero, self.singles, part * cost),
            }
            for part in (0.25, 0.5, 0.75, 1.0)
        ]

    def _operating_point(self, models: NDArray[np.intp], points: FloatArray) -> OperatingPoint:
        good = np.flatnonzero(points[:, 1] >= KEEP_QUALITY * self.singles[self._best, 1])
        if len(good):
            t = int(good[np.argmin(points[good, 0])])
        else:
            t = int(np.argmax(points[:, 1]))
        rows = np.arange(len(self._quality))
        score, reference = self._quality[rows, models[t]], self._quality[:, self._best]
        gross, net = metrics.losses(score, reference, self._weight)
        calls = np.bincount(models[t], self._weight, minlength=len(self.singles))
        share = calls / calls.sum()
        return {
            "keeps": KEEP_QUALITY,
            "kept": bool(len(good)),
            "cost": float(points[t, 0]),
            "quality": float(points[t, 1]),
            "gross_loss": gross,
            "net_loss": net,
            "share": dict(zip(self.eval_set.models, share.tolist(), strict=True)),
            "trade_off": t,
        }

    def _finalize(self, results: dict[str, PolicyResult]) -> None:
        """Set what needs all policies at once, or is known exactly."""
        hulls = [frontier.upper_hull(p["curve"]) for p in results.values()]
        max_cost = max(float(h[-1, 0]) for h in hulls)
        for p in results.values():
            p["aiq_code"] = metrics.aiq_code(p["curve"], max_cost)
        zero = results["zero_router"]
        zero["gain_over_zero_router"], zero["gain_ci"] = 0.0, (0.0, 0.0)
        if self.eval_set.strong is not None and results["random"]["apgr"] is not None:
            # Random mixing is on the straight line from weak to strong.
            zero["apgr"], zero["cpt50"], zero["cpt80"] = 0.5, 0.5, 0.8
            zero["apgr_ci"] = (0.5, 0.5)
