"""Where choices are judged: every figure of one policy on one set of queries, and the baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffice.lab import stats
from suffice.lab.data.table import FloatArray
from suffice.lab.evaluate import frontier, metrics
from suffice.lab.evaluate.frontier import random_mixtures, sweep_thresholds, sweep_tradeoffs
from suffice.lab.evaluate.predictions import Predictions
from suffice.lab.evaluate.problem import EvalSet
from suffice.lab.predictors.base import track

BASELINES = ("cheapest", "best", "random", "length", "zero_router", "oracle")
KEEP = 0.95  # operating points keep this part of the best single model's quality


class Scorecard:
    """Judges choices on one set of queries. score, cost: (n, k) of it; clusters: (n,)."""

    def __init__(
        self,
        score: FloatArray,
        cost: FloatArray,
        ground: EvalSet,
        clusters: NDArray[np.intp],
        draws: int,
        seed: int,
    ) -> None:
        self.score, self.cost, self.ground, self.seed = score, cost, ground, seed
        self.singles = np.stack([cost.mean(axis=0), score.mean(axis=0)], axis=1)
        self.redraws = stats.ClusterBootstrap(clusters, draws, seed)
        self.single_draws = np.stack(
            [self.redraws.means(cost), self.redraws.means(score)], axis=2
        )  # (draws, k, 2)
        self.zero = frontier.hull_area(self.singles, self.singles)
        self.zero_draws = np.array([frontier.hull_area(s, s) for s in self.single_draws])
        self.best = frontier.best_single(self.singles)

    def all(self, said: Mapping[str, Predictions], progress: bool = False) -> dict[str, Any]:
        """Every baseline, then every policy."""
        baselines = self.baselines()
        out: dict[str, Any] = {}
        todo = [*BASELINES, *(n for n in said if n not in BASELINES)]
        for name in track(todo, "judging", progress):
            if name in baselines:
                choices, rank, how = baselines[name]
                out[name] = self.judge(choices, rank, how)
            else:
                f = said[name]
                out[name] = self.judge(self.choices(f), f.rank, f.fitted)
        self._settle(out)
        return out

    def choices(self, f: Predictions) -> NDArray[np.intp]:
        """(t, n) which model each query gets at each trade-off."""
        g = self.ground
        if f.rank is not None and g.strong is not None and g.weak is not None:
            return sweep_thresholds(f.rank, g.strong, g.weak)
        return sweep_tradeoffs(f.quality, f.cost)

    def baselines(self) -> dict[str, tuple[NDArray[np.intp], FloatArray | None, str]]:
        g, n = self.ground, len(self.score)
        coin = np.random.default_rng((self.seed, 1)).random(n)
        whole = np.ones((1, n), np.intp)
        order = np.lexsort((-self.singles[:, 1], self.singles[:, 0]))
        hull = frontier.zero_router_hull(self.singles)
        members = [
            next(j for j in order if tuple(self.singles[j]) == tuple(point)) for point in hull
        ]
        gap, mixed = None, random_mixtures(coin, members)
        if g.strong is not None and g.weak is not None:
            mixed = sweep_thresholds(coin, g.strong, g.weak)
            # Ties are broken by the coin: the grid of shares would else have holes.
            gap = self.score[:, g.strong] - self.score[:, g.weak] + 1e-9 * coin
        return {
            "cheapest": (whole * order[0], None, "the cheapest model alone"),
            "best": (whole * self.best, None, "the best model alone, known in hindsight"),
            "random": (mixed, None if gap is None else coin, "a coin"),
            "zero_router": (
                np.repeat(np.array(members)[:, None], n, axis=1),
                None,
                "random mixing of single models, known in hindsight",
            ),
            "oracle": (sweep_tradeoffs(self.score, self.cost), gap, "knows every outcome"),
        }

    def judge(self, choices: NDArray[np.intp], rank: FloatArray | None, how: str) -> dict[str, Any]:
        """The figures of one policy. choices: (t, n)."""
        at = np.arange(len(self.score))
        cost, quality = self.cost[at, choices].T, self.score[at, choices].T  # (n, t)
        points = np.stack([cost.mean(axis=0), quality.mean(axis=0)], axis=1)
        c, q = self.redraws.means(cost), self.redraws.means(quality)
        drawn = np.array(
            [
                frontier.hull_area(p, s)
                for p, s in zip(np.stack([c, q], axis=2), self.single_draws, strict=True)
            ]
        )
        area = frontier.hull_area(points, self.singles)
        out: dict[str, Any] = {
            "curve": points[np.lexsort((points[:, 1], points[:, 0]))].tolist(),
            "area": area,
            "area_ci": stats.basic_interval(drawn, area),
            "gain_over_zero_router": area - self.zero,
            "gain_ci": stats.basic_interval(drawn - self.zero_draws, area - self.zero),
            "qnc": metrics.qnc(points, self.singles),
            "apgr": None,
            "cpt50": None,
            "cpt80": None,
            "apgr_ci": None,
            "fitted": how,
        }
        out |= self._pair(rank) if rank is not None else {}
        out |= self._equal(points)
        low, high = (float(self.singles[:, 0].min()), float(self.singles[:, 0].max()))
        out["aiq_paper"] = metrics.aiq_paper(points, low, high)
        out["operating_point"] = self._operating_point(choices, points)
        out["routerarena"] = None
        if self.ground.unit == "usd":
            scores = [metrics.routerarena(b, 1000 * a) for a, b in points.tolist()]
            out["routerarena"] = max((s for s in scores if s is not None), default=None)
        return out

    def _pair(self, rank: FloatArray) -> dict[str, Any]:
        g = self.ground
        assert g.strong is not None and g.weak is not None
        strong, weak = self.score[:, g.strong], self.score[:, g.weak]
        p = metrics.pair(rank, strong, weak)
        value = p.apgr
        if not np.isfinite(value):
            return {}
        drawn = metrics.apgr_draws(rank, strong, weak, self.redraws)
        return {
            "apgr": value,
            "cpt50": p.cpt(0.5),
            "cpt80": p.cpt(0.8),
            "apgr_ci": stats.basic_interval(drawn, value),
        }

    def _equal(self, points: FloatArray) -> dict[str, Any]:
        """Cost at equal quality and quality at equal cost, beside the zero router's."""
        cost, quality = self.singles[self.best].tolist()
        zero = frontier.zero_router_hull(self.singles)
        return {
            "at_equal_quality": [
                {
                    "of_best": part,
                    "quality": part * quality,
                    "cost": frontier.cost_at(points, self.singles, part * quality),
                    "zero_router_cost": frontier.cost_at(zero, self.singles, part * quality),
                }
                for part in (0.9, 0.95, 0.99, 1.0)
            ],
            "at_equal_cost": [
                {
                    "of_best": part,
                    "cost": part * cost,
                    "quality": frontier.quality_at(points, self.singles, part * cost),
                    "zero_router_quality": frontier.quality_at(zero, self.singles, part * cost),
                }
                for part in (0.25, 0.5, 0.75, 1.0)
            ],
        }

    def _operating_point(self, choices: NDArray[np.intp], points: FloatArray) -> dict[str, Any]:
        """The cheapest point that keeps KEEP of the best model's quality, else the best point."""
        goal = KEEP * self.singles[self.best, 1]
        good = np.flatnonzero(points[:, 1] >= goal)
        if len(good):
            t = int(good[np.argmin(points[good, 0])])
        else:
            t = int(np.argmax(points[:, 1]))
        at = np.arange(len(self.score))
        got = self.score[at, choices[t]]
        gross, net = metrics.losses(got, self.score[:, self.best])
        share = np.bincount(choices[t], minlength=len(self.singles)) / len(self.score)
        return {
            "keeps": KEEP,
            "kept": bool(len(good)),
            "cost": float(points[t, 0]),
            "quality": float(points[t, 1]),
            "gross_loss": gross,
            "net_loss": net,
            "share": dict(zip(self.ground.models, share.tolist(), strict=True)),
            "trade_off": t,
        }

    def _settle(self, out: dict[str, Any]) -> None:
        """What needs all policies at once, or is known exactly."""
        hulls = [frontier.upper_hull(p["curve"]) for p in out.values()]
        dearest = max(float(h[-1, 0]) for h in hulls)
        for p in out.values():
            p["aiq_code"] = metrics.aiq_code(p["curve"], dearest)
        g, zero = self.ground, out["zero_router"]
        zero |= {"gain_over_zero_router": 0.0, "gain_ci": (0.0, 0.0)}
        if g.strong is not None and out["random"]["apgr"] is not None:
            # Mixing at random lies on the straight line from weak to strong.
            zero |= {"apgr": 0.5, "cpt50": 0.5, "cpt80": 0.8, "apgr_ci": (0.5, 0.5)}
