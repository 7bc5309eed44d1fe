"""Splits that never let one question, or one session, stand on both sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import Table


def connected_groups(table: Table) -> NDArray[np.intp]:
    """(n,) number of what must stay together: queries that share a normalised prompt or a group,
    directly or through others."""
    parent = list(range(len(table)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    columns: list[Sequence[object]] = [table.keys]
    if table.group is not None:
        columns.append(table.group)
    for column in columns:
        first: dict[object, int] = {}
        for i, value in enumerate(column):
            j = first.setdefault(value, i)
            if j != i:
                a, b = root(i), root(j)
                parent[max(a, b)] = min(a, b)
    return np.unique([root(i) for i in range(len(table))], return_inverse=True)[1]


def group_kfold(clusters: NDArray[np.intp], count: int, seed: int) -> NDArray[np.intp]:
    """(n,) fold of each query, 0 to count - 1 (fewer where there are fewer clusters): whole
    clusters, largest first into the smallest fold, equals in random order."""
    sizes = np.bincount(clusters)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold = np.zeros(len(sizes), np.intp)
    filled = np.zeros(min(count, len(sizes)), np.int64)
    for c in order:
        at = int(np.argmin(filled))
        fold[c] = at
        filled[at] += sizes[c]
    return np.asarray(fold[clusters])
