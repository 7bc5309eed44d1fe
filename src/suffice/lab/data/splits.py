"""Splits that keep each question and each session on one side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import Table


def connected_groups(table: Table) -> NDArray[np.intp]:
    """Number the sets of queries that share a normalised prompt or a group, directly or through others.

    Returns:
        (n,) the number of each query's set, from 0.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(table)
    sources, targets = [], []
    for column in (table.keys, table.group or ()):
        first: dict[str, int] = {}
        for i, value in enumerate(column):
            sources.append(i)
            targets.append(first.setdefault(value, i))
    graph = coo_array((np.ones(len(sources), np.int8), (sources, targets)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], np.intp)


def group_kfold(groups: NDArray[np.intp], count: int, seed: int) -> NDArray[np.intp]:
    """Assign whole groups to folds of about equal size.

    The largest group goes first, into the smallest fold; groups of equal size are in random order.

    Args:
        groups: (n,) numbers from 0.
        count: Number of folds; fewer are made if there are fewer groups.
        seed: Of the random order.

    Returns:
        (n,) fold of each row, from 0.
    """
    # scikit-learn's GroupKFold either ignores sizes (shuffle=True) or orders equal groups by an
    # unstable sort, which differs between machines.
    sizes = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of = np.zeros(len(sizes), np.intp)
    fold_sizes = np.zeros(min(count, len(sizes)), np.int64)
    for group in order:
        fold = int(np.argmin(fold_sizes))
        fold_of[group] = fold
        fold_sizes[fold] += sizes[group]
    return np.asarray(fold_of[groups])
