"""Queries that are alike: k-means on the static embedding.

How many clusters: as many as the data show twice. Queries are halved, each half is clustered by
itself, and both clusterings label them all; the largest number at which the two agree (adjusted
Rand index, Hubert & Arabie 1985) to AGREE is taken, and a coarse cut at the least. Silhouettes were
flat on real queries and chose by accident.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST = 20
QUERIES_EACH = 20  # never more clusters than one for so many queries
AGREE = 0.4
_NUMBERS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20)
_SAMPLE = 4000
_COARSE_EACH = 75  # queries a cluster of the coarse cut: what is not found twice still shows
_COARSE_MOST = 6  # what there is, and the stability is told


class Found(NamedTuple):
    """labels: (n,) numbered by size, largest first. near: (n,) cosine to the cluster's centre.
    stability: agreement of two halves at this number; None for one cluster."""

    labels: NDArray[np.intp]
    near: NDArray[np.float32]
    stability: float | None


def points_of(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Directions from the table's own mean query, so that what all share (a template, a system
    text) counts for nothing. (n, n_dimensions)."""
    v = vectors - vectors.mean(axis=0)
    return np.asarray(v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9), np.float32)


def find(vectors: NDArray[np.float32], number: int | None = None, seed: int = 0) -> Found:
    """vectors: (n, n_dimensions), n >= 1. number: how many clusters, at most one a different query;
    None: chosen as the module says, 1 below 40 queries."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Repeated prompts may leave fewer different points than clusters: those stay empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return _find(points_of(vectors), number, seed)


def renumbered(found: Found, number: NDArray[np.intp]) -> Found:
    """Clusters put together: number (k,) is the new one of each; largest first again."""
    labels = number[found.labels]
    order = np.argsort(-np.bincount(labels), kind="stable")
    return found._replace(labels=np.argsort(order)[labels].astype(np.intp))


def _find(points: NDArray[np.float32], number: int | None, seed: int) -> Found:
    n = len(points)
    different = len(np.unique(points.round(4), axis=0)) if n <= 100 * MOST else n
    if number is None:
        number, stability = choose(points, min(MOST, n // QUERIES_EACH, different), seed)
    else:
        number = min(number, different)
        stability = agreement(points, number, seed) if 1 < number <= n // 4 else None
    if number < 2:
        return Found(np.zeros(n, np.intp), points @ points.mean(axis=0), None)
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(number, n_init=8, batch_size=2048, random_state=seed).fit(points)
    order = np.argsort(-np.bincount(means.labels_, minlength=number), kind="stable")
    labels = np.argsort(order)[means.labels_]
    centres = means.cluster_centers_[order]
    kept = np.unique(labels)  # k-means may leave one empty
    labels = np.searchsorted(kept, labels).astype(np.intp)
    centres = centres[kept]
    near = np.einsum("nd,nd->n", points, centres[labels].astype(np.float32))
    return Found(labels, near, stability)


def choose(points: NDArray[np.float32], most: int, seed: int) -> tuple[int, float | None]:
    """(number of clusters, how well two halves agree on them)."""
    if most < 2:
        return 1, None
    seen = [(k, agreement(points, k, seed)) for k in _NUMBERS if k <= most]
    coarse = min(_COARSE_MOST, len(points) // _COARSE_EACH)
    return next(((k, a) for k, a in reversed(seen) if a >= AGREE or k <= coarse), (1, None))


def agreement(points: NDArray[np.float32], k: int, seed: int) -> float:
    """Adjusted Rand index of two halves' clusterings, mean of two splits."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng(seed)
    seen = []
    for _ in range(2):
        sample = points[rng.permutation(len(points))[:_SAMPLE]]
        half = len(sample) // 2
        a, b = (
            KMeans(k, n_init=2, max_iter=50, random_state=seed).fit(part).predict(sample)
            for part in (sample[:half], sample[half:])
        )
        seen.append(float(adjusted_rand_score(a, b)))
    return float(np.mean(seen))
