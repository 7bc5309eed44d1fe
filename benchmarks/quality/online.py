"""Learning from feedback alone: cumulative regret, and recovery from what changes mid-stream.

    python benchmarks/quality/online.py --data DATA --out benchmarks/quality/results --seeds 20 \
        --paretobandit SITE_PACKAGES

DATA holds paretobandit_val. Its queries come in a random order per seed; the model that is taken is
scored, the others are not. The value of an answer is score - LAMBDA x USD, at LAMBDA 0 (quality
alone) and 5 (a point of quality is worth 0.2 cents). Cold: nothing is known but the models' prices.
Warm: 100 queries of the table, not in the stream, were labelled for every model.

`suffice` is OnlineRegression (refitted every 200 labels) and ThompsonSampler at their defaults.
Baselines: the best constant found online (20 labels a model in turn, then the best shrunken mean:
explore, then commit), the constant that only follows (no exploration), and the package paretobandit
on the same stream, with the same vectors: once their first 25 principal components, whitened, as
its own pipeline does, and (at LAMBDA 5) once all 281 numbers; its reward is the value, its cost
penalty off, forgetting 0.997 and alpha 0.05 cold, 0.01 warm, as it publishes. SITE_PACKAGES is
where it is installed; without it, it is left out and the results say so. Cost a query of each model
is known to ours from prices (the table's mean); to the package it is part of the reward.

Regret is against the single model that is best on the stream in hindsight, and against an oracle
that sees every score. The learner's hyperpriors were chosen on other tables; the explorer's form, not
its constants, was corrected after looking at runs on this one, which flatters it a little.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, NamedTuple, Protocol

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from runner import arguments, publish

from suffice.learning.exploration import ThompsonSampler
from suffice.learning.label_limits import SourceLimits
from suffice.learning.regression import LabelBatch, OnlineRegression, design, uninformed_prior
from suffice.policies.priors import price_priors

LLAMA, MISTRAL, FLASH, PRO = (
    "meta-llama/llama-3.1-8b-instruct",
    "mistralai/mistral-large-2512",
    "google/gemini-2.5-flash",
    "google/gemini-2.5-pro",
)
LAMBDAS = (0.0, 5.0)
CHANGE, BACK = 600, 1200  # queries into the stream
REFIT = 200
FloatArray = NDArray[np.float64]


class Stream(NamedTuple):
    """signals (n, s), vectors (n, d), score and cost (n, k), price (k,): mean USD of each model."""

    signals: NDArray[np.float32]
    vectors: NDArray[np.float32]
    score: FloatArray
    cost: FloatArray
    price: FloatArray
    models: tuple[str, ...]

    def rows(self, at: NDArray[np.intp]) -> Stream:
        return self._replace(
            signals=self.signals[at], vectors=self.vectors[at],
            score=self.score[at], cost=self.cost[at],
        )  # fmt: skip

    def only(self, models: tuple[str, ...]) -> Stream:
        at = [self.models.index(m) for m in models]
        return self._replace(
            score=self.score[:, at], cost=self.cost[:, at], price=self.price[at], models=models
        )


class Changes(NamedTuple):
    """score, cost: (n, k) as they are over the stream. price_at: (n, k) as the config has it.
    there: (n, k) whether the model is on the route."""

    score: FloatArray
    cost: FloatArray
    price_at: FloatArray
    there: NDArray[np.bool_]


class Player(Protocol):
    def take(self, i: int, price: FloatArray, there: NDArray[np.bool_]) -> int: ...
    def learn(self, i: int, j: int, score: float, value: float) -> None: ...


def load(data: Path) -> Stream:
    from suffice.lab.data.load import load_table
    from suffice.lab.predictors.base import extract_table

    table = load_table(data / "paretobandit_val").select_models((LLAMA, MISTRAL, FLASH, PRO))
    table = table.take(table.complete)
    x = extract_table(table)
    assert table.cost_usd is not None
    return Stream(
        x.signals,
        x.vectors,
        table.score,
        table.cost_usd,
        np.nanmean(table.cost_usd, axis=0),
        table.models,
    )


# ── players ──────────────────────────────────────────────────────────────────────────────────────


class Ours:
    """Learner and Explorer as the router uses them. explore=False: the learner alone."""

    def __init__(
        self, stream: Stream, warm: Stream | None, lam: float, seed: int, explore: bool = True
    ) -> None:
        from suffice.features import feature_scaler

        self.stream, self.lam, self.seed = stream, lam, seed
        self.share = 0.02 if explore else 0.0
        mean, deviation = feature_scaler()
        p = len(mean) + stream.vectors.shape[1]
        guess = price_priors(stream.price.tolist())
        prior = uninformed_prior(stream.models, guess, p)
        # The benchmark has one client, whom it trusts.
        limits = SourceLimits(share=1.0)
        self.learner = OnlineRegression(
            stream.models, mean, deviation, stream.vectors.shape[1], prior=prior, limits=limits
        )
        if warm is not None:
            n, k = warm.score.shape
            self.learner.partial_fit(
                rows_of(warm, np.repeat(np.arange(n), k), np.tile(np.arange(k), n), 0)
            )
        self.explorer = ThompsonSampler(
            stream.models if warm is not None else (), explore_share=self.share
        )
        self.fit = self.learner.posterior()
        self.x = design(stream.signals, stream.vectors, mean, deviation)
        self.first = self.learner.cursor + 1
        self.waiting: list[tuple[int, int, float]] = []
        self.spent, self.count = 0.0, 0

    def take(self, i: int, price: FloatArray, there: NDArray[np.bool_]) -> int:
        at = np.flatnonzero(there)
        names = [self.stream.models[j] for j in at]
        offline = (self.fit.intercept + self.x[i] @ self.fit.weights)[at]
        quality, _ = self.explorer.posterior().quality(names, offline.tolist())
        chosen = int(np.argmax(quality - self.lam * price[at]))
        mean = self.spent / self.count if self.count else None
        draw = self.explorer.posterior().sample(
            names, offline.tolist(), price[at].tolist(), chosen,
            seed=self.seed * 100_003 + i, quality_per_usd=self.lam, spend_usd=mean,
        )  # fmt: skip
        j = int(at[draw.action])
        self.offline_quality = float(offline[draw.action])
        self.spent += float(self.stream.cost[i, j])
        self.count += 1
        return j

    def learn(self, i: int, j: int, score: float, value: float) -> None:
        self.explorer.update(self.stream.models[j], self.offline_quality, score)
        self.waiting.append((i, j, score))
        if len(self.waiting) == REFIT:
            at = np.array([w[0] for w in self.waiting])
            arm = np.array([w[1] for w in self.waiting])
            rows = rows_of(self.stream, at, arm, self.first)
            self.learner.partial_fit(_scored(rows, np.array([w[2] for w in self.waiting])))
            self.first += REFIT
            self.waiting.clear()
            self.fit = self.learner.posterior()


def rows_of(s: Stream, at: NDArray[np.intp], arm: NDArray[np.intp], first: int) -> LabelBatch:
    n = len(at)
    return LabelBatch(
        np.arange(first, first + n), s.signals[at], s.vectors[at],
        [s.models[j] for j in arm], s.score[at, arm], ["user"] * n, np.zeros(n),
    )  # fmt: skip


def _scored(rows: LabelBatch, scores: FloatArray) -> LabelBatch:
    return LabelBatch(
        rows.ids, rows.signals, rows.vectors, rows.models, scores, rows.sources, rows.times_s
    )


class Constant:
    """The best constant by shrunken means; 20 labels of each model in turn first, if `explore`."""

    def __init__(
        self, stream: Stream, warm: Stream | None, lam: float, seed: int, explore: bool = True
    ) -> None:
        self.lam = lam
        prior = np.array(price_priors(stream.price.tolist()))
        self.sum, self.n = 20.0 * prior, np.full(len(prior), 20.0)
        if warm is not None:
            self.sum += warm.score.sum(axis=0)
            self.n += len(warm.score)
        self.turns = 20 if explore and warm is None else 0
        self.taken = np.zeros(len(prior))

    def take(self, i: int, price: FloatArray, there: NDArray[np.bool_]) -> int:
        short = there & (self.taken < self.turns)
        value = np.where(there, self.sum / self.n - self.lam * price, -np.inf)
        j = int(np.argmin(np.where(short, self.taken, np.inf)) if short.any() else value.argmax())
        self.taken[j] += 1
        return j

    def learn(self, i: int, j: int, score: float, value: float) -> None:
        # Geometric forgetting, so that it too can follow a change.
        self.sum[j] = self.sum[j] * 0.997 + score
        self.n[j] = self.n[j] * 0.997 + 1.0


class Pareto:
    """The package paretobandit on the same vectors."""

    def __init__(
        self, stream: Stream, warm: Stream | None, lam: float, seed: int, pca: bool = True
    ) -> None:
        from pareto_bandit import BanditRouter
        from pareto_bandit.feature_service import FeatureService
        from pareto_bandit.types import RouterConfig

        from suffice.features import feature_scaler

        mean, deviation = feature_scaler()
        self.stream = stream
        x = design(stream.signals, stream.vectors, mean, deviation)
        w = None if warm is None else design(warm.signals, warm.vectors, mean, deviation)
        if pca:
            both = x if w is None else np.concatenate([x, w])
            centre = both.mean(axis=0)
            _, sizes, axes = np.linalg.svd(both - centre, full_matrices=False)
            scale = sizes[:25] / np.sqrt(len(both))
            x = (x - centre) @ axes[:25].T / scale
            w = None if w is None else (w - centre) @ axes[:25].T / scale
        self.x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        self.router = BanditRouter.create(
            model_registry={
                m: {"input_cost_per_m": p * 1e3, "output_cost_per_m": p * 1e3}
                for m, p in zip(stream.models, stream.price.tolist(), strict=True)
            },
            priors="none",
            feature_service=FeatureService.for_precomputed(dimension=x.shape[1] + 1),
            alpha=0.05 if warm is None else 0.01,
            forgetting_factor=0.997,
            cost_penalty=0.0,
            bandit_seed=seed,
            config=RouterConfig(reward_min=-2.0, reward_max=1.0),
        )
        if warm is not None and w is not None:
            w = np.concatenate([w, np.ones((len(w), 1))], axis=1)
            for i, row in enumerate(warm.score - lam * warm.cost):
                for m, value in zip(stream.models, row.tolist(), strict=True):
                    self.router.update(m, w[i], value, advance_time=False)

    def take(self, i: int, price: FloatArray, there: NDArray[np.bool_]) -> int:
        model, log = self.router.route(self.x[i])
        self.request = log.request_id
        return self.stream.models.index(model)

    def learn(self, i: int, j: int, score: float, value: float) -> None:
        self.router.process_feedback(self.request, value)


class Joining(Pareto):
    """A model that joins later is registered then."""

    def __init__(self, stream: Stream, warm: Stream | None, lam: float, seed: int) -> None:
        self.late = stream.models[-1]
        self.price = float(stream.price[-1])
        old = stream.only(stream.models[:-1])
        super().__init__(old, None if warm is None else warm.only(old.models), lam, seed)
        self.stream = stream
        self.joined = False

    def take(self, i: int, price: FloatArray, there: NDArray[np.bool_]) -> int:
        if there[-1] and not self.joined:
            self.router.register_model(
                self.late, input_cost_per_m=self.price * 1e3, output_cost_per_m=self.price * 1e3
            )
            self.joined = True
        return super().take(i, price, there)


# ── games ────────────────────────────────────────────────────────────────────────────────────────


def play(player: Player, world: Changes, lam: float) -> tuple[FloatArray, NDArray[np.intp]]:
    """(value (n,), model taken (n,))."""
    n = len(world.score)
    value, taken = np.empty(n), np.empty(n, np.intp)
    for i in range(n):
        j = player.take(i, world.price_at[i], world.there[i])
        assert world.there[i, j], "a model that is not on the route was taken"
        score = float(world.score[i, j])
        value[i] = score - lam * float(world.cost[i, j])
        taken[i] = j
        player.learn(i, j, score, float(value[i]))
    return value, taken


def still(s: Stream) -> Changes:
    n, k = s.score.shape
    return Changes(s.score, s.cost, np.tile(s.price, (n, 1)), np.ones((n, k), bool))


def price_cut(s: Stream) -> Changes:
    """The most expensive model costs a twentieth from CHANGE on."""
    w = still(s)
    cost, price = w.cost.copy(), w.price_at.copy()
    cost[CHANGE:, -1] /= 20.0
    price[CHANGE:, -1] /= 20.0
    return w._replace(cost=cost, price_at=price)


def quality_drop(s: Stream) -> Changes:
    """The model in use loses a quarter of its score from CHANGE to BACK; the players are not informed."""
    w = still(s)
    score = w.score.copy()
    score[CHANGE:BACK, s.models.index(MISTRAL)] *= 0.75
    return w._replace(score=score)


def new_model(s: Stream) -> Changes:
    """The last model joins at CHANGE, with nothing known but its price."""
    w = still(s)
    there = w.there.copy()
    there[:CHANGE, -1] = False
    return w._replace(there=there)


Factory = Callable[[Stream, "Stream | None", float, int], Player]


def players(rival: bool, lam: float) -> dict[str, Factory]:
    """The two expensive variants play at lambda 5 only."""
    out: dict[str, Factory] = {
        "suffice": Ours,
        "suffice, no exploration": lambda s, w, lam, seed: Ours(s, w, lam, seed, explore=False),
        "constant, 20 labels each first": Constant,
        "constant, follows": lambda s, w, lam, seed: Constant(s, w, lam, seed, explore=False),
    }
    if rival:
        out["paretobandit, 25 components"] = Pareto
        out["paretobandit, all 281"] = lambda s, w, lam, seed: Pareto(s, w, lam, seed, pca=False)
    if lam == 0.0:
        out.pop("suffice, no exploration")
        out.pop("paretobandit, all 281", None)
    return out


def regret(value: FloatArray, world: Changes, lam: float) -> dict[str, float]:
    all_ = np.where(world.there, world.score - lam * world.cost, -np.inf)
    whole = world.there.all(axis=0)
    best = float(all_[:, whole].mean(axis=0).max())
    return {
        "value": float(value.mean()),
        "regret_best_single": float(best - value.mean()) * len(value),
        "regret_oracle": float(all_.max(axis=1).mean() - value.mean()) * len(value),
    }


def interval(values: list[float]) -> dict[str, float]:
    v = np.array(values)
    half = 1.96 * float(v.std(ddof=1)) / np.sqrt(len(v)) if len(v) > 1 else float("nan")
    return {"mean": float(v.mean()), "low": float(v.mean() - half), "high": float(v.mean() + half)}


class Played(NamedTuple):
    """What one seed gave: figures by game and player, and curves."""

    figures: dict[str, dict[str, dict[str, float]]]
    curves: dict[str, FloatArray]


def settled(data: Stream, seed: int, rival: bool) -> Played:
    """Nothing changes: cold and warm, both lambdas. Curves: regret so far to the best single."""
    s3 = data.only((LLAMA, MISTRAL, PRO))
    order = np.random.default_rng(seed).permutation(len(s3.score))
    stream = s3.rows(order[100:])
    world = still(stream)
    out = Played({}, {})
    for lam in LAMBDAS:
        single = (world.score - lam * world.cost).mean(axis=0).max()
        for start in ("cold", "warm"):
            game = f"lambda {lam:g}, {start}"
            out.figures[game] = {}
            for name, make in players(rival, lam).items():
                warm = s3.rows(order[:100]) if start == "warm" else None
                value, taken = play(make(stream, warm, lam, seed), world, lam)
                row = regret(value, world, lam)
                for j, m in enumerate(stream.models):
                    row[f"share of {m}"] = float((taken == j).mean())
                out.figures[game][name] = row
                out.curves[f"{game}|{name}"] = np.cumsum(single - value)
    return out


def shifting(data: Stream, seed: int, rival: bool) -> Played:
    """What changes mid-stream, at lambda 5, warm from 100 labels of the models there at the start.
    Figures: mean value below the best single model of that time. Curves: value."""
    lam = 5.0
    games: dict[str, tuple[Stream, Callable[[Stream], Changes]]] = {
        "price cut": (data.only((LLAMA, MISTRAL, PRO)), price_cut),
        "quality drop": (data.only((LLAMA, MISTRAL, PRO)), quality_drop),
        "new model": (data.only((LLAMA, PRO, MISTRAL)), new_model),
    }
    out = Played({}, {})
    for game, (pool, change) in games.items():
        order = np.random.default_rng(seed).permutation(len(pool.score))
        stream, warm = pool.rows(order[100:]), pool.rows(order[:100])
        world = change(stream)
        all_ = np.where(world.there, world.score - lam * world.cost, -np.inf)
        makers = {
            n: f
            for n, f in players(rival, lam).items()
            if n in ("suffice", "constant, follows", "paretobandit, 25 components")
        }
        if game == "new model":
            makers = {n: late(f) for n, f in makers.items()}
            if rival:
                makers["paretobandit, 25 components"] = Joining
        out.figures[game] = {}
        for name, make in makers.items():
            value, _ = play(make(stream, warm, lam, seed), world, lam)
            out.figures[game][name] = {
                what: float(all_[part].mean(axis=0).max() - value[part].mean())
                for what, part in (
                    ("before", slice(0, CHANGE)),
                    ("first 200 after", slice(CHANGE, CHANGE + 200)),
                    ("200 to 400 after", slice(CHANGE + 200, CHANGE + 400)),
                    ("400 to 600 after", slice(CHANGE + 400, BACK)),
                    ("first 200 after 1200", slice(BACK, BACK + 200)),
                    ("from 200 after 1200", slice(BACK + 200, None)),
                )
            }
            out.curves[f"{game}|{name}"] = value
        for j, m in enumerate(stream.models):
            alone = world.score[:, j] - lam * world.cost[:, j]
            out.curves[f"{game}|({m})"] = np.where(world.there[:, j], alone, np.nan)
    return out


def gather(parts: list[Played]) -> tuple[dict[str, Any], dict[str, FloatArray]]:
    """Intervals over seeds; mean curves."""
    figures = {
        game: {
            name: {
                what: interval([p.figures[game][name][what] for p in parts]) for what in row
            }
            for name, row in rows.items()
        }
        for game, rows in parts[0].figures.items()
    }  # fmt: skip
    return figures, {k: np.mean([p.curves[k] for p in parts], axis=0) for k in parts[0].curves}


def late(make: Factory) -> Factory:
    """The last model's warm labels are withheld: it was not there."""

    def build(s: Stream, warm: Stream | None, lam: float, seed: int) -> Player:
        if warm is None:
            return make(s, None, lam, seed)
        player = make(s, None, lam, seed)
        n, k = warm.score.shape
        if isinstance(player, Ours):
            rows = rows_of(warm, np.repeat(np.arange(n), k - 1), np.tile(np.arange(k - 1), n), 0)
            player.learner.partial_fit(rows)
            player.explorer = ThompsonSampler(s.models[:-1], explore_share=player.share)
            player.fit = player.learner.posterior()
            player.first = player.learner.cursor + 1
        elif isinstance(player, Constant):
            player.sum[:-1] += warm.score[:, :-1].sum(axis=0)
            player.n[:-1] += n
            player.taken[:-1] += player.turns
        return player

    return build


def plot(settled_: dict[str, FloatArray], shifting_: dict[str, FloatArray], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    keys = list(dict.fromkeys(k.split("|")[0] for k in settled_))
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for ax, key in zip(axes.flat, keys, strict=True):
        for full, line in settled_.items():
            if full.startswith(key + "|"):
                ax.plot(line, label=full.split("|")[1])
        ax.axhline(0.0, color="0.6", lw=0.8)
        ax.set(title=key, xlabel="queries", ylabel="cumulative regret to best single")
    axes.flat[0].legend(fontsize=8)
    figure.savefig(out / "online.png", dpi=110)
    plt.close(figure)

    games = list(dict.fromkeys(k.split("|")[0] for k in shifting_))
    figure, axes = plt.subplots(1, len(games), figsize=(15, 4.5), layout="constrained")
    box = np.ones(75) / 75.0
    for ax, game in zip(axes.flat, games, strict=True):
        for full, line in shifting_.items():
            name = full.split("|")[1]
            if not full.startswith(game + "|"):
                continue
            single = name.startswith("(")
            ax.plot(
                np.arange(len(line) - 74) + 37, np.convolve(line, box, mode="valid"),
                label=name.strip("()"), lw=1.0 if single else 1.6, ls=":" if single else "-",
                color="0.5" if single else None,
            )  # fmt: skip
        ax.axvline(CHANGE, color="0.7", lw=0.8)
        if game == "quality drop":
            ax.axvline(BACK, color="0.7", lw=0.8)
        ax.set(title=game, xlabel="queries", ylabel="value, mean of 75 queries and all seeds")
    axes.flat[-1].legend(fontsize=7)
    figure.savefig(out / "online_changes.png", dpi=110)
    plt.close(figure)


def prepare(site_packages: Path | None) -> bool:
    """Make the rival importable; whether it is."""
    if site_packages is None:
        return False
    sys.path.append(str(site_packages))  # last: everything else stays ours
    import pareto_bandit  # noqa: F401

    logging.disable(logging.WARNING)  # it warns of every model without a quality
    return True


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--paretobandit", type=Path, help="site-packages that hold paretobandit")
    args = parser.parse_args()
    rival = prepare(args.paretobandit)
    data = load(args.data)
    began = time.perf_counter()
    with ProcessPoolExecutor(args.jobs, initializer=prepare, initargs=(args.paretobandit,)) as pool:
        seeds = range(args.seeds)
        calm_ = [pool.submit(settled, data, s, rival) for s in seeds]
        moved_ = [pool.submit(shifting, data, s, rival) for s in seeds]
        for n, one in enumerate(as_completed([*calm_, *moved_]), 1):
            one.result()
            print(f"\r{n} of {2 * len(seeds)}", end="", file=sys.stderr, flush=True)
        calm, calm_curves = gather([f.result() for f in calm_])
        moved, moved_curves = gather([f.result() for f in moved_])
    result = {
        "seeds": [0, args.seeds - 1],
        "seconds": round(time.perf_counter() - began),
        "paretobandit": version_of(args.paretobandit) if rival else "left out: not installed",
        "settled": calm,
        "changes": moved,
        "refit_seconds": refit_seconds(),
    }
    publish(args.out, "online", __doc__, result)
    for group in (calm, moved):
        for game, rows in group.items():
            for name, row in rows.items():
                means = {w: round(v["mean"], 4) for w, v in row.items() if "share" not in w}
                print(f"{game:18} {name:32} {means}")
    plot(calm_curves, moved_curves, args.out)


def version_of(site_packages: Path) -> str:
    found = [
        d.version for d in distributions(path=[str(site_packages)]) if d.name == "paretobandit"
    ]
    return found[0] if found else "unknown"


def refit_seconds() -> dict[str, float]:
    """One refit of ten models, 5,000 labels, 281 numbers a query."""
    rng = np.random.default_rng(0)
    n, names = 5000, [f"m{i}" for i in range(10)]
    learner = OnlineRegression(
        names,
        np.zeros(25, np.float32),
        np.ones(25, np.float32),
        256,
        limits=SourceLimits(share=1.0),
    )
    rows = LabelBatch(
        np.arange(n), rng.normal(size=(n, 25)).astype(np.float32),
        rng.normal(size=(n, 256)).astype(np.float32) * 0.1,
        [names[i] for i in rng.integers(0, 10, n)], rng.random(n), ["u"] * n, np.zeros(n),
    )  # fmt: skip
    began = time.perf_counter()
    learner.partial_fit(rows)
    observed = time.perf_counter()
    learner.posterior()
    fitted = time.perf_counter()
    raw = learner.state()
    return {
        "observe_5000": observed - began,
        "refit": fitted - observed,
        "state_megabytes": len(raw) / 1e6,
        "state": time.perf_counter() - fitted,
    }


if __name__ == "__main__":
    main()
