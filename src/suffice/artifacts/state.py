"""What an online learner has learned, as bytes: an npz of plain arrays and a card, with a digest.

Shared by explorer, pacer and learner, so that the store can keep their snapshots, immutable and
checked. Never a pickle; the same state gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, TypeVar

import msgspec
from numpy.typing import NDArray

from suffice.artifacts.npz import hash_arrays, packed, unpacked
from suffice.errors import ArtifactError

MAX_BYTES = 500_000_000  # unpacked; the largest state of ours is a tenth of that
_REMEDY = "Go back to an earlier snapshot, or start without one."
_T = TypeVar("_T")


def pack(schema: str, card: Any, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """schema: kind and version, such as "explorer-1". card: a msgspec Struct of plain values."""
    inner = msgspec.json.encode(card, order="deterministic")
    head = msgspec.json.encode(
        {"schema": schema, "digest": _digest(schema, inner, arrays), "card": msgspec.Raw(inner)}
    )
    return packed(head, arrays, level=0)


def unpack(raw: bytes, schema: str, card: type[_T]) -> tuple[_T, dict[str, NDArray[Any]]]:
    """(card, arrays) of bytes that `pack` made. Raises ArtifactError: cut, changed, or of another
    schema."""
    kind = schema.rpartition("-")[0]
    head, arrays = unpacked(
        raw,
        msgspec.json.Decoder(_Head).decode,
        most_bytes=MAX_BYTES,
        what=f"{kind} state",
        none="is none",
        remedy=_REMEDY,
    )
    if head.schema != schema:
        raise ArtifactError(
            f"{kind} state: has schema {head.schema!r}; this version reads {schema!r}.",
            remedy=_REMEDY,
        )
    if _digest(schema, bytes(head.card), arrays) != head.digest:
        raise ArtifactError(
            f"{kind} state: its content does not match its digest {head.digest[:12]}: it was "
            "changed after it was written.",
            remedy=_REMEDY,
        )
    try:
        return msgspec.json.decode(head.card, type=card), arrays
    except msgspec.MsgspecError as error:
        raise ArtifactError(f"{kind} state: its card is wrong: {error}.", remedy=_REMEDY) from None


def misfit(schema: str, what: str) -> ArtifactError:
    """The error for a state whose parts do not fit together."""
    kind = schema.rpartition("-")[0]
    return ArtifactError(f"{kind} state: parts do not fit together: {what}.", remedy=_REMEDY)


class _Head(msgspec.Struct, frozen=True):
    schema: str
    digest: str
    card: msgspec.Raw


def _digest(schema: str, card: bytes, arrays: Mapping[str, NDArray[Any]]) -> str:
    h = sha256(f"{schema}\0".encode() + card)
    hash_arrays(h, arrays, lead="\0")
    return h.hexdigest()
