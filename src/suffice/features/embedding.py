"""The static token table: WordPiece ids -> a vector, by a weighted mean of frozen rows.

z = sum(w[t] T[t]) / sum(w[t]) over the pieces t of the text. Everything that is linear in z can be
folded into the table once (`compile_heads`). A decision is then one gather and one sum, for any
dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 256
_ROWS = 4096  # rows unpacked at a time, so that folding heads needs 4 MB, not 31


class StaticEmbedding:
    """A table of token vectors of 4 bits per number.

    Args:
        packed: uint8 (n_pieces, n_dimensions / 2), two signed numbers each, plus 8. The low half
            holds the even dimensions, the high half the odd ones.
        scale: float32 (n_dimensions,).
        weight: float32 (n_pieces,); 0 = the piece does not count.
        digest: the SHA-256 of the table.
    """

    def __init__(
        self,
        packed: NDArray[np.uint8],
        scale: NDArray[np.float32],
        weight: NDArray[np.float32],
        digest: str = "",
    ) -> None:
        self.packed = packed
        self.scale = scale
        self.weight = weight
        self.digest = digest
        self._even, self._odd = scale[0::2], scale[1::2]

    def embed(self, ids: NDArray[np.int32] | Sequence[int]) -> NDArray[np.float32]:
        """Embed a text by the ids of its pieces.

        Returns:
            float32 (n_dimensions,). Zeros, which are the mean text, if no piece counts.
        """
        vector = np.zeros(len(self.scale), np.float32)
        index = np.asarray(ids, np.intp)
        if not len(index):
            return vector
        w = self.weight[index]
        total = float(w.sum())
        if total > 0.0:
            rows = self.packed[index]
            w /= total
            vector[0::2] = (w @ (rows & 15).astype(np.float32) - 8.0) * self._even
            vector[1::2] = (w @ (rows >> 4).astype(np.float32) - 8.0) * self._odd
        return vector

    def compile_heads(self, heads: NDArray[np.floating]) -> NDArray[np.float32]:
        """Fold heads that are linear in z into one row per piece.

        Args:
            heads: (n_dimensions, h).

        Returns:
            float32 (n_pieces, h + 1): each piece's weighted part of every head, and its weight in
            the last column.
        """
        n = len(self.weight)
        folded = np.empty((n, heads.shape[1] + 1), np.float32)
        folded[:, -1] = self.weight
        low = (heads[0::2] * self._even[:, None]).astype(np.float32)
        high = (heads[1::2] * self._odd[:, None]).astype(np.float32)
        for start in range(0, n, _ROWS):
            rows = self.packed[start : start + _ROWS]
            part = ((rows & 15).astype(np.float32) - 8.0) @ low
            part += ((rows >> 4).astype(np.float32) - 8.0) @ high
            folded[start : start + _ROWS, :-1] = part * self.weight[start : start + _ROWS, None]
        return folded


class _TableCard(msgspec.Struct):
    schema: str
    bits: int
    digest: str


_TABLE = Path(__file__).with_name("table.npz")


@cache
def default_digest() -> str:
    """The digest of the shipped token table, without its arrays."""
    with np.load(_TABLE) as file:
        card = msgspec.json.decode(file["card"].tobytes(), type=_TableCard)
    if card.schema != "table-1" or card.bits != 4:
        raise ValueError(f"table.npz: expected schema table-1 of 4 bits, got {card}")
    return card.digest


@cache
def load_default() -> StaticEmbedding:
    """The shipped token table, made by scripts/build_table.py."""
    digest = default_digest()
    with np.load(_TABLE) as file:
        return StaticEmbedding(file["packed"], file["scale"], file["weight"], digest)
