"""Hashes of prompts, by which an artifact knows the queries that it was trained on."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import Table


def key_hashes(table: Table) -> NDArray[np.uint64]:
    """uint64 (n,): hashes of the normalised prompts."""
    raw = b"".join(blake2b(k.encode(), digest_size=8).digest() for k in table.keys)
    return np.frombuffer(raw, "<u8")


def trained_on(table: Table, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """(n,) queries whose hashes are among the training keys."""
    if not len(keys):
        return np.zeros(len(table), bool)
    return np.isin(key_hashes(table), keys)


def count_trained_on(table: Table, keys: NDArray[np.uint64]) -> int:
    """Number of queries whose hashes are among the training keys."""
    return int(trained_on(table, keys).sum())
