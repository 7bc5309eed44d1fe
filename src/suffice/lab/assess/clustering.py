"""Clusters of similar queries: k-means on the static embedding.

The number of clusters is the largest on which two halves of the queries agree: each half is
clustered separately, both clusterings label all queries, and their adjusted Rand index (Hubert and
Arabie 1985) must reach MIN_AGREEMENT. A coarse split is always allowed. Silhouettes were flat on
real queries and did not separate the numbers.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_CLUSTERS = 20
QUERIES_PER_CLUSTER = 20  # at least, on average
MIN_AGREEMENT = 0.4
_NUMBERS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20)
_SAMPLE = 4000
_COARSE_QUERIES = 75  # per cluster of the coarse split, which is shown without agreement
_COARSE_MAX = 6  # clusters of the coarse split


class Clustering(NamedTuple):
    """Clusters of n queries."""

    labels: NDArray[np.intp]
    """(n,) numbered by size, largest first."""
    similarity: NDArray[np.float32]
    """(n,) cosine to the cluster's centre."""
    stability: float | None
    """Agreement of two halves at this number; None for one cluster."""


def directions(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns directions from the table's mean query, (n, n_dimensions).

    What all queries share (a template, a system text) has no influence.
    """
    v = vectors - vectors.mean(axis=0)
    return np.asarray(v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9), np.float32)


def cluster(vectors: NDArray[np.float32], number: int | None = None, seed: int = 0) -> Clustering:
    """Cluster queries.

    Args:
        vectors: (n, n_dimensions), n >= 1.
        number: How many clusters, at most one per distinct query. None: chosen by agreement, 1 for
            fewer than 40 queries.
        seed: Seed of k-means and of the halves.

    Returns:
        The clustering.
    """
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Repeated prompts may leave fewer distinct points than clusters; those stay empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return _cluster(directions(vectors), number, seed)


def merge(clustering: Clustering, number: NDArray[np.intp]) -> Clustering:
    """Merge clusters. number: (k,) the new cluster of each; largest first again."""
    labels = number[clustering.labels]
    order = np.argsort(-np.bincount(labels), kind="stable")
    return clustering._replace(labels=np.argsort(order)[labels].astype(np.intp))


def _cluster(points: NDArray[np.float32], number: int | None, seed: int) -> Clustering:
    n = len(points)
    distinct = len(np.unique(points.round(4), axis=0)) if n <= 100 * MAX_CLUSTERS else n
    if number is None:
        most = min(MAX_CLUSTERS, n // QUERIES_PER_CLUSTER, distinct)
        number, stability = choose_number(points, most, seed)
    else:
        number = min(number, distinct)
        stability = agreement(points, number, seed) if 1 < number <= n // 4 else None
    if number < 2:
        return Clustering(np.zeros(n, np.intp), points @ points.mean(axis=0), None)
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(number, n_init=8, batch_size=2048, random_state=seed).fit(points)
    order = np.argsort(-np.bincount(means.labels_, minlength=number), kind="stable")
    labels = np.argsort(order)[means.labels_]
    centres = means.cluster_centers_[order]
    used = np.unique(labels)  # k-means may leave one empty
    labels = np.searchsorted(used, labels).astype(np.intp)
    centres = centres[used]
    similarity = np.einsum("nd,nd->n", points, centres[labels].astype(np.float32))
    return Clustering(labels, similarity, stability)


def choose_number(points: NDArray[np.float32], most: int, seed: int) -> tuple[int, float | None]:
    """The number of clusters, and how well two halves agree on them."""
    if most < 2:
        return 1, None
    tried = [(k, agreement(points, k, seed)) for k in _NUMBERS if k <= most]
    coarse = min(_COARSE_MAX, len(points) // _COARSE_QUERIES)
    accepted = ((k, a) for k, a in reversed(tried) if a >= MIN_AGREEMENT or k <= coarse)
    return next(accepted, (1, None))


def agreement(points: NDArray[np.float32], k: int, seed: int) -> float:
    """Adjusted Rand index of the clusterings of two halves, mean of two splits."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng(seed)
    indices = []
    for _ in range(2):
        sample = points[rng.permutation(len(points))[:_SAMPLE]]
        half = len(sample) // 2
        a, b = (
            KMeans(k, n_init=2, max_iter=50, random_state=seed).fit(part).predict(sample)
            for part in (sample[:half], sample[half:])
        )
        indices.append(float(adjusted_rand_score(a, b)))
    return float(np.mean(indices))
