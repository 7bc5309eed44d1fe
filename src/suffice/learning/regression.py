"""Learning from feedback alone: the safe head, refitted on the one answer that each query got.

Feedback is partial: only the model that was taken has a score, so there is no gap to regress on.
Every score is instead predicted as

    y = what the warm start expects of the model on x + s(x) + a_model(x) + noise

with a shared term s (harder than thought for all) and one term a model: a hierarchical Bayesian
linear regression. The shared term takes what the models have in common, so that labels of one model
do not move it against the others for nothing. Prior widths of both are averaged by their evidence
(MacKay 1992, "Bayesian interpolation", section 3), which is what keeps it safe: without evidence the
weights stay those of the warm start.

Kept are sufficient statistics: a Gram matrix and a moment a model, O(p^2), whatever the traffic.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.artifacts.npz import mismatch_error, pack_state, unpack_state
from suffice.learning.label_limits import SourceLimiter, SourceLimits

SCHEMA = "learner-1"
VECTOR_SCALE = 4.0  # of the embedding beside standardised signals, as the lab's design has it
CLIP = 4.0  # deviations at which a signal is clipped

# Prior variances of the weights, a model's own and the shared ones, for scores whose variance is
# _UNIT; hyperpriors of log10 width (mean, deviation). Chosen on mmlu_pro and on synthetic topics.
_OWN = (1e-5, 1e-4, 5e-4, 2e-3, 1e-2)
_SHARED = (1e-5, 1e-4, 1e-3, 1e-2)
_OWN_LOG10 = (-3.5, 0.5)
_SHARED_LOG10 = (-4.0, 0.7)
_SIGNALS = 10.0**-0.5  # width of the signals' weights against that of the vectors'
_UNIT = 0.3
_SHARED_INTERCEPT = 0.02
_PSEUDO_LABELS = 20.0  # of a variance
_SCORE_VARIANCE = 0.1  # of scores, before there are any
PRIOR_LABELS = 20.0  # what a model's prior mean counts for
NEW_LABELS = 5.0  # and that of a model nobody has labelled

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]


class Prior(msgspec.Struct, frozen=True):
    """The warm start. weights: (p, k) over `design`, intercept: (k,), labels: (k,) what each
    intercept counts for, in labels."""

    weights: FloatArray
    intercept: FloatArray
    labels: FloatArray


class LabelBatch(msgspec.Struct, frozen=True):
    """Labelled decisions, n of them, in the order of their feedback.

    ids: int64 (n,), the feedback's own increasing number in the store. signals: (n, n_signals) and
    vectors: (n, n_dimensions), as they were at decision time. models: (n,) who answered. scores:
    (n,) in [0, 1]. sources: (n,) whose labels they are (client, key, judge) and times_s: (n,) when
    we received them, for the rate limit.
    weights: (n,) in [0, 1], what each source's labels count for; None: 1. ages: (n,) how many
    labelled decisions ago, beyond its place in the order, each was made; None: 0.
    replaced, replaced_weights: (n,) the score and weight that a row takes the place of, NaN where
    it is the first word on its decision: the old one is taken off again. None: no row is.
    """

    ids: NDArray[np.int64]
    signals: Float32Array
    vectors: Float32Array
    models: Sequence[str]
    scores: FloatArray
    sources: Sequence[str]
    times_s: FloatArray
    weights: FloatArray | None = None
    ages: FloatArray | None = None
    replaced: FloatArray | None = None
    replaced_weights: FloatArray | None = None


class UpdateResult(NamedTuple):
    """What became of rows. learned: counted, wholly or in part. known: seen before, by id. refused:
    out of range, not finite, or of a model that is not on the route. limited: labels that the
    sources' limits took away, in weight. counted: (n,) what each row counts for, 0 for those not
    learned from: what an Explorer should take as its weight."""

    learned: int
    known: int
    refused: int
    limited: float
    counted: FloatArray


class Fit(NamedTuple):
    """weights: (p, k) and intercept: (k,) over `design`. labels: (k,) what was learned from, after
    forgetting. own, shared: evidence-weighted log10 of the prior widths. noise: variance."""

    weights: FloatArray
    intercept: FloatArray
    labels: FloatArray
    own: float
    shared: float
    noise: float


def design(
    signals: Float32Array, vectors: Float32Array, mean: Float32Array, deviation: Float32Array
) -> FloatArray:
    """float64 (n, n_signals + n_dimensions): standardised, clipped signals beside the vectors."""
    z = np.clip((signals - mean) / deviation, -CLIP, CLIP)
    return np.concatenate([z, vectors * VECTOR_SCALE], axis=1).astype(float)


def cold(models: Sequence[str], quality: Sequence[float], p: int) -> Prior:
    """No warm start: each model is expected to do as well as its prior quality, whatever is asked."""
    k = len(models)
    return Prior(np.zeros((p, k)), np.array(quality, float), np.full(k, NEW_LABELS))


class _Spectrum:
    """A symmetric matrix (p + 1, p + 1) plus a diagonal prior of (first, c / base), for any c: one
    eigendecomposition, after which each width costs next to nothing.

    The first row, the intercept, has a prior that no width changes, so it is eliminated first. Of
    NumPy's solvers `eigh` is one that lets other threads run meanwhile; `slogdet`, and `solve` of one
    system, hold them up (numpy 2.4, for matrices of this size).
    """

    def __init__(self, matrix: FloatArray, first: float, base: FloatArray) -> None:
        self._first = first
        self._pivot = float(matrix[0, 0]) + first
        self._row = matrix[0, 1:]
        scale = np.sqrt(base[1:])
        rest = matrix[1:, 1:] - np.outer(self._row, self._row / self._pivot)
        self._values, vectors = np.linalg.eigh(scale[:, None] * rest * scale)
        self._vectors = scale[:, None] * vectors

    def logdet(self, c: float) -> float:
        """Of the sum over the prior alone."""
        rest = np.log(np.abs(self._values / c + 1.0)).sum()
        return float(np.log(abs(self._pivot / self._first)) + rest)

    def solve(self, c: float, y: FloatArray) -> FloatArray:
        """(p + 1,)."""
        v = self._vectors
        rest = v @ ((y[1:] - self._row * (y[0] / self._pivot)) @ v / (self._values + c))
        return np.append((y[0] - self._row @ rest) / self._pivot, rest)

    def inverse(self, c: float) -> FloatArray:
        """(p + 1, p + 1)."""
        v = self._vectors
        out = np.empty((len(v) + 1, len(v) + 1))
        out[1:, 1:] = (v / (self._values + c)) @ v.T
        out[0, 1:] = out[1:, 0] = out[1:, 1:] @ self._row / -self._pivot
        out[0, 0] = (1.0 - self._row @ out[0, 1:]) / self._pivot
        return out


class OnlineRegression:
    """models: (k,) of the route. mean, deviation: (n_signals,) of the signals over training prompts.
    n_dimensions: of the vectors. prior: the warm start; None: quality 0.75 for all. forget: what a
    label is worth after each further label of the same model (0.9995: about 2,000 count). limits:
    what one source may count for.

    Raises ValueError where shapes do not fit. Pure: no clock, no I/O; `observe` and `refit` are for
    a background thread.
    """

    def __init__(
        self,
        models: Sequence[str],
        mean: Float32Array,
        deviation: Float32Array,
        n_dimensions: int,
        *,
        prior: Prior | None = None,
        forget: float = 0.9995,
        limits: SourceLimits | None = None,
    ) -> None:
        if len(set(models)) != len(models) or not models:
            raise ValueError(f"models: expected at least one, each once, got {list(models)}")
        if mean.shape != deviation.shape or mean.ndim != 1 or not (deviation > 0).all():
            raise ValueError("mean, deviation: expected (n_signals,) each, deviation above 0")
        if not 0.9 <= forget <= 1.0:
            raise ValueError(f"forget: expected 0.9 to 1, got {forget!r}")
        self.models = tuple(models)
        self.mean = np.asarray(mean, np.float32)
        self.deviation = np.asarray(deviation, np.float32)
        self.n_dimensions = int(n_dimensions)
        self.forget = forget
        p, k = len(mean) + self.n_dimensions, len(models)
        self.prior = cold(models, [0.75] * k, p) if prior is None else prior
        self._check_prior(self.prior)
        self.ration = SourceLimiter(limits or SourceLimits())
        self.cursor = -1  # id of the last feedback that was taken in
        self._gram = np.zeros((k, p + 1, p + 1))
        self._moment = np.zeros((k, p + 1))
        self._square = np.zeros(k)
        self._weight = np.zeros(k)

    @property
    def labels(self) -> FloatArray:
        """(k,) what each model's labels count for, after forgetting."""
        return self._weight.copy()

    def observe(self, rows: LabelBatch) -> UpdateResult:
        """Take in labelled decisions, each exactly once: rows whose id is not above the cursor were
        taken in before and are passed over. The outcome does not depend on how rows are batched.

        Raises ValueError where the arrays' shapes do not fit, or ids are not ascending; nothing is
        then taken in. A row that is wrong by itself is refused and counted.
        """
        n = len(rows.ids)
        self._check_rows(rows, n)
        fresh = np.asarray(rows.ids) > self.cursor
        at = {m: j for j, m in enumerate(self.models)}
        arm = np.array([at.get(m, -1) for m in rows.models], np.intp)
        w = np.ones(n) if rows.weights is None else np.asarray(rows.weights, float)
        ages = np.zeros(n) if rows.ages is None else np.asarray(rows.ages, float)
        scores = np.asarray(rows.scores, float)
        # Comparisons with NaN are false, so nothing that is not a number passes.
        good = (arm >= 0) & (scores >= 0.0) & (scores <= 1.0) & (w >= 0.0) & (w <= 1.0)
        good &= (ages >= 0.0) & np.isfinite(rows.signals).all(axis=1)
        good &= np.isfinite(rows.vectors).all(axis=1) & np.isfinite(rows.times_s)
        use = np.flatnonzero(fresh & good)
        asked = w[use] * self.forget ** ages[use]
        counted = np.array(
            [
                self.ration.admit(rows.sources[i], float(asked[n]), float(rows.times_s[i]))
                for n, i in enumerate(use.tolist())
            ],
            float,
        )
        if len(use):
            x = design(rows.signals[use], rows.vectors[use], self.mean, self.deviation)
            z = np.concatenate([np.ones((len(use), 1)), x], axis=1)
            for j in np.unique(arm[use]).tolist():
                mine = arm[use] == j
                self._add(j, z[mine], scores[use][mine], counted[mine])
            if rows.replaced is not None and rows.replaced_weights is not None:
                self._take_off(rows.replaced[use], rows.replaced_weights[use], arm[use], z)
        if n:
            self.cursor = max(self.cursor, int(rows.ids[-1]))
        worth = np.zeros(n)
        worth[use] = counted
        return UpdateResult(
            learned=int((counted > 0).sum()),
            known=int((~fresh).sum()),
            refused=int((fresh & ~good).sum()),
            limited=float((asked - counted).sum()),
            counted=worth,
        )

    def _add(self, j: int, z: FloatArray, y: FloatArray, w: FloatArray) -> None:
        """One model's rows, (n, p + 1), oldest first. Only what counts makes older labels fade: a
        flood that the limits take away does not wash out what was learned."""
        later = w.sum() - np.cumsum(w)
        v = w * self.forget**later
        keep = self.forget ** float(w.sum())
        zv = z * v[:, None]
        gram = self._gram[j] * keep + zv.T @ z
        self._gram[j] = (gram + gram.T) / 2.0  # to the last bit, as half of it is stored
        self._moment[j] = self._moment[j] * keep + zv.T @ y
        self._square[j] = self._square[j] * keep + float(v @ (y * y))
        self._weight[j] = self._weight[j] * keep + float(v.sum())

    def _take_off(
        self, old: FloatArray, weight: FloatArray, arm: NDArray[np.intp], z: FloatArray
    ) -> None:
        """Scores that others took the place of. They have faded a little since they were added, and
        a limit may have let in only part of them, so at most what an arm still has is taken off."""
        for i in np.flatnonzero(~np.isnan(old)).tolist():
            j, w = int(arm[i]), min(float(weight[i]), float(self._weight[arm[i]]))
            if w <= 0.0:
                continue
            self._gram[j] -= w * np.outer(z[i], z[i])
            self._moment[j] -= w * old[i] * z[i]
            self._square[j] = max(0.0, self._square[j] - w * old[i] ** 2)
            self._weight[j] -= w

    def refit(self) -> Fit:
        """The posterior mean, averaged by evidence over the prior widths. Exactly the warm start
        where nothing was observed. About k + 5 eigendecompositions of (p, p) matrices."""
        start = np.concatenate([self.prior.intercept[None], self.prior.weights]).T  # (k, p + 1)
        total = float(self._weight.sum())
        if total <= 0.0:
            return Fit(
                self.prior.weights.copy(), self.prior.intercept.copy(), self.labels,
                _OWN_LOG10[0], _SHARED_LOG10[0], _SCORE_VARIANCE,
            )  # fmt: skip
        # Moments of the residuals against the warm start.
        shift = np.einsum("kpq,kq->kp", self._gram, start)
        moment = self._moment - shift
        square = float(
            (self._square - 2.0 * (start * self._moment).sum(1) + (start * shift).sum(1)).sum()
        )
        # Everything is brought to scores of variance _UNIT, in which the widths are stated.
        sums = float(self._moment[:, 0].sum())
        spread = float(self._square.sum()) - sums**2 / total
        variance = (spread + _PSEUDO_LABELS * _SCORE_VARIANCE) / (total + _PSEUDO_LABELS)
        c = float(np.sqrt(max(variance, 1e-4) / _UNIT))
        moment, square = moment / c, square / c**2

        base = np.ones(moment.shape[1])
        base[1 : 1 + len(self.mean)] = _SIGNALS
        spectra = [
            _Spectrum(g, float(n), base) for g, n in zip(self._gram, self.prior.labels, strict=True)
        ]
        cells: list[tuple[float, float, float, float]] = []  # evidence, own, shared, noise
        means: list[FloatArray] = []
        for own in _OWN:
            some, found = self._cells(own, spectra, base, moment, square, total)
            cells += some
            means += found
        evidence = np.array([cell[0] for cell in cells])
        share = np.exp(evidence - evidence.max())
        share /= share.sum()
        best = start + c * np.einsum("c,ckp->kp", share, np.stack(means))
        own_, shared, noise = share @ np.array([cell[1:] for cell in cells])
        return Fit(
            np.ascontiguousarray(best[:, 1:].T), best[:, 0].copy(), self.labels,
            float(own_), float(shared), float(noise) * c**2,
        )  # fmt: skip

    def _cells(
        self,
        own: float,
        spectra: Sequence[_Spectrum],
        base: FloatArray,
        moment: FloatArray,
        square: float,
        total: float,
    ) -> tuple[list[tuple[float, float, float, float]], list[FloatArray]]:
        """Evidence and posterior means (k, p + 1) for one own width and each shared width.

        Given s, the models are independent, so s is solved for with each a integrated out: with
        C = (G + P)^-1, their part of its precision is G - G C G = P - P C P.
        """
        q = moment.shape[1]
        precision, pull = np.zeros((q, q)), np.zeros(q)
        fitted, logdet = 0.0, 0.0
        prior = _UNIT / (base * own)
        for j, spectrum in enumerate(spectra):
            prior[0] = self.prior.labels[j]
            logdet += spectrum.logdet(_UNIT / own)
            gain = spectrum.solve(_UNIT / own, moment[j])
            fitted += float(moment[j] @ gain)
            pull += prior * gain  # m - G C m
            precision -= prior[:, None] * spectrum.inverse(_UNIT / own) * prior
            precision[np.diag_indices(q)] += prior
        common = _Spectrum(precision, _UNIT / _SHARED_INTERCEPT, base)
        cells, means = [], []
        for shared in _SHARED:
            s = common.solve(_UNIT / shared, pull)
            det = logdet + common.logdet(_UNIT / shared)
            left = max(square - fitted - float(pull @ s), 1e-9)
            # The noise has a prior of _PSEUDO_LABELS labels at the scale of the scores.
            noise = (left + _PSEUDO_LABELS * _UNIT) / (total + _PSEUDO_LABELS)
            width = np.log10([own, shared])
            evidence = (
                -0.5 * (total + _PSEUDO_LABELS) * np.log(noise)
                - 0.5 * det
                - 0.5 * ((width[0] - _OWN_LOG10[0]) / _OWN_LOG10[1]) ** 2
                - 0.5 * ((width[1] - _SHARED_LOG10[0]) / _SHARED_LOG10[1]) ** 2
            )
            cells.append((float(evidence), float(width[0]), float(width[1]), float(noise)))
            rest = moment - self._gram @ s
            own_means = [x.solve(_UNIT / own, y) for x, y in zip(spectra, rest, strict=True)]
            means.append(s + np.stack(own_means))
        return cells, means

    def with_models(self, models: Sequence[str], prior: Prior) -> OnlineRegression:
        """The same learner for another pool, in this order: what was learned of models in both is
        kept, removed ones are gone, new ones start from the prior. Also how a newly trained policy
        becomes the warm start: same models, its prior. Raises ValueError where shapes do not fit."""
        out = OnlineRegression(
            models, self.mean, self.deviation, self.n_dimensions,
            prior=prior, forget=self.forget, limits=self.ration.limits,
        )  # fmt: skip
        at = {m: j for j, m in enumerate(self.models)}
        for new, m in enumerate(models):
            if m in at:
                old = at[m]
                out._gram[new], out._moment[new] = self._gram[old], self._moment[old]
                out._square[new], out._weight[new] = self._square[old], self._weight[old]
        out.cursor = self.cursor
        out.ration = self.ration.copy()
        return out

    def state(self) -> bytes:
        """All of it and the cursor, for a snapshot; the same state gives the same bytes."""
        upper = np.triu_indices(self._gram.shape[1])
        card = _Card(self.models, self.n_dimensions, self.forget, self.cursor, self.ration.card())
        return pack_state(
            SCHEMA,
            card,
            {
                "mean": self.mean,
                "deviation": self.deviation,
                "prior_weights": self.prior.weights,
                "prior_intercept": self.prior.intercept,
                "prior_labels": self.prior.labels,
                "gram": self._gram[:, upper[0], upper[1]],  # symmetric: half of it
                "moment": self._moment,
                "square": self._square,
                "weight": self._weight,
            },
        )

    @classmethod
    def from_state(cls, raw: bytes) -> OnlineRegression:
        """Raises ArtifactError: cut, changed, of another schema."""
        card, a = unpack_state(raw, SCHEMA, _Card)
        try:
            prior = Prior(a["prior_weights"], a["prior_intercept"], a["prior_labels"])
            out = cls(
                card.models, a["mean"], a["deviation"], card.n_dimensions,
                prior=prior, forget=card.forget,
            )  # fmt: skip
            upper = np.triu_indices(out._gram.shape[1])
            half = a["gram"]
            for name, mine in (("moment", out._moment), ("square", out._square)):
                if a[name].shape != mine.shape:
                    raise ValueError(f"{name} {a[name].shape}")
            if half.shape != (len(card.models), len(upper[0])):
                raise ValueError(f"gram {half.shape}")
            if a["weight"].shape != out._weight.shape:
                raise ValueError(f"weight {a['weight'].shape}")
            out._gram[:, upper[0], upper[1]] = half
            out._gram[:, upper[1], upper[0]] = half
            out._moment, out._square, out._weight = a["moment"], a["square"], a["weight"]
            out.ration = SourceLimiter.from_card(card.ration)
        except (KeyError, ValueError) as error:
            raise mismatch_error(SCHEMA, str(error)) from None
        out.cursor = card.cursor
        return out

    def _check_prior(self, prior: Prior) -> None:
        k, p = len(self.models), len(self.mean) + self.n_dimensions
        if prior.weights.shape != (p, k):
            raise ValueError(f"prior.weights: expected {(p, k)}, got {prior.weights.shape}")
        for name, a in (("intercept", prior.intercept), ("labels", prior.labels)):
            if a.shape != (k,) or not np.isfinite(a).all():
                raise ValueError(f"prior.{name}: expected {(k,)}, finite, got {a.shape}")
        if not (prior.labels > 0).all():
            raise ValueError("prior.labels: expected above 0")

    def _check_rows(self, rows: LabelBatch, n: int) -> None:
        for name, a, width in (
            ("signals", rows.signals, len(self.mean)),
            ("vectors", rows.vectors, self.n_dimensions),
        ):
            if a.shape != (n, width):
                raise ValueError(f"rows.{name}: expected {(n, width)}, got {a.shape}")
        others: Iterable[tuple[str, Sequence[object] | FloatArray | None]] = (
            ("models", rows.models),
            ("scores", rows.scores),
            ("sources", rows.sources),
            ("times_s", rows.times_s),
            ("weights", rows.weights),
            ("ages", rows.ages),
        )
        for name, b in others:
            if b is not None and len(b) != n:
                raise ValueError(f"rows.{name}: expected {n}, got {len(b)}")
        if n > 1 and not (np.diff(rows.ids) > 0).all():
            raise ValueError("rows.ids: expected ascending, each once")


class _Card(msgspec.Struct, frozen=True):
    models: tuple[str, ...]
    n_dimensions: int
    forget: float
    cursor: int
    ration: msgspec.Raw
