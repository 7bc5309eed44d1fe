"""The static token table: WordPiece ids -> a vector, by a weighted mean of frozen rows.

z = sum(w[t] T[t]) / sum(w[t]) over the pieces t of the ask. Everything that is linear in z can be
folded into the table once (`compile_heads`): then a decision is one gather and one sum, whatever
the dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from io import BytesIO

import msgspec
import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 256
_ROWS = 4096  # rows unpacked at a time, so that folding heads needs 4 MB, not 31


class StaticEmbedding:
    """packed: uint8 (n_pieces, n_dimensions / 2), two signed 4-bit numbers each, low half first,
    plus 8. scale: float32 (n_dimensions,). weight: float32 (n_pieces,), 0 = does not count."""

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
        # A row of the packed table holds the even dimensions in its low halves, the odd in its high.
        self._even, self._odd = scale[0::2], scale[1::2]

    def embed(self, ids: NDArray[np.int32] | Sequence[int]) -> NDArray[np.float32]:
        """float32 (n_dimensions,); zeros, which is the mean ask, where no piece counts."""
        out = np.zeros(len(self.scale), np.float32)
        at = np.asarray(ids, np.intp)
        if not len(at):
            return out
        w = self.weight[at]
        total = float(w.sum())
        if total > 0.0:
            rows = self.packed[at]
            w /= total
            out[0::2] = (w @ (rows & 15).astype(np.float32) - 8.0) * self._even
            out[1::2] = (w @ (rows >> 4).astype(np.float32) - 8.0) * self._odd
        return out

    def compile_heads(self, heads: NDArray[np.floating]) -> NDArray[np.float32]:
        """heads: (n_dimensions, h), linear in z. Returns float32 (n_pieces, h + 1): each piece's
        weighted part of every head, and its weight in the last column."""
        n = len(self.weight)
        out = np.empty((n, heads.shape[1] + 1), np.float32)
        out[:, -1] = self.weight
        low = (heads[0::2] * self._even[:, None]).astype(np.float32)
        high = (heads[1::2] * self._odd[:, None]).astype(np.float32)
        for at in range(0, n, _ROWS):
            rows = self.packed[at : at + _ROWS]
            part = ((rows & 15).astype(np.float32) - 8.0) @ low
            part += ((rows >> 4).astype(np.float32) - 8.0) @ high
            out[at : at + _ROWS, :-1] = part * self.weight[at : at + _ROWS, None]
        return out


@cache
def load_default() -> StaticEmbedding:
    """The table of the package (made by scripts/build_table.py)."""
    with np.load(BytesIO(files(__package__).joinpath("table.npz").read_bytes())) as file:
        card = msgspec.json.decode(file["card"].tobytes())
        if card["schema"] != "table-1" or card["bits"] != 4:
            raise ValueError(f"table.npz: expected schema table-1 of 4 bits, got {card}")
        return StaticEmbedding(file["packed"], file["scale"], file["weight"], card["digest"])
