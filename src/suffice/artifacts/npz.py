"""Arrays and a card as bytes, and bytes as a file: what artifacts, certificates and the states of
learners have in common.

An npz of plain arrays, never a pickle; the same content gives the same bytes. Whatever cannot be
read is an ArtifactError.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.errors import ArtifactError

Arrays = dict[str, NDArray[Any]]
CARD = "card"
_T = TypeVar("_T")

# What damaged bytes may raise on their way to arrays.
_UNREADABLE = (
    ValueError,
    TypeError,
    LookupError,
    OSError,
    EOFError,
    MemoryError,
    RuntimeError,  # a zip that says it is encrypted; NotImplementedError, an unknown compression
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    msgspec.MsgspecError,
    SyntaxError,  # the header of an array is a literal of Python's, which NumPy parses
    TokenError,
)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def pack_npz(card: bytes, arrays: Mapping[str, NDArray[Any]], level: int | None = None) -> bytes:
    """The bytes of an npz with the card, JSON, beside the arrays. level: of compression, 1 fast to
    9 small; None: zlib's own."""
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        # np.savez would write the time of day into it.
        for name, array in sorted({**arrays, CARD: np.frombuffer(card, np.uint8)}.items()):
            buffer = BytesIO()
            np.lib.format.write_array(buffer, np.asarray(array, order="C"), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, buffer.getvalue(), compresslevel=level)
    return out.getvalue()


def unpack_npz(
    raw: bytes, decode: Callable[[bytes], _T], *, most_bytes: int, what: str, none: str, remedy: str
) -> tuple[_T, Arrays]:
    """(card, arrays) of bytes that `pack_npz` made.

    decode: of the card's JSON. Raises ArtifactError, which begins with `what`: cut, damaged, without
    a card (`none` says in words that it is not what it should be), or larger unpacked than
    `most_bytes`.
    """
    arrays: Arrays = {}
    try:
        with zipfile.ZipFile(BytesIO(raw)) as file:
            if sum(i.file_size for i in file.infolist()) > most_bytes:
                raise ArtifactError(f"{what}: unpacks to more than any of ours holds.")
            for info in file.infolist():
                # Whole first, which checks its sum: a damaged header must not reach a parser.
                data = BytesIO(file.read(info))
                name = info.filename.removesuffix(".npy")
                arrays[name] = np.lib.format.read_array(data, allow_pickle=False)
        if CARD not in arrays:
            raise ArtifactError(f"{what}: holds no card, so it {none}.", remedy=remedy)
        return decode(arrays.pop(CARD).tobytes()), arrays
    except ArtifactError:
        raise
    except _UNREADABLE as error:
        said = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ArtifactError(f"{what}: {none}, or was cut: {said}.", remedy=remedy) from None


def hash_arrays(into: _Hash, arrays: Mapping[str, NDArray[Any]], lead: str = "") -> None:
    """Names, types, shapes and content of all arrays, in the order of their names."""
    for name in sorted(arrays):
        a = np.asarray(arrays[name], order="C")
        into.update(f"{lead}{name}/{a.dtype.str}/{a.shape}/".encode())
        into.update(a.tobytes())


def write_atomically(raw: bytes, path: Path) -> None:
    """A file, whole or not at all. Raises ArtifactError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(raw)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ArtifactError(
            f"{path}: it cannot be written: {error.strerror}.", remedy="Give another --out."
        ) from None


MAX_STATE_BYTES = 500_000_000  # unpacked; the largest state of ours is a tenth of that
_REMEDY = "Go back to an earlier snapshot, or start without one."


def pack_state(schema: str, card: Any, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """schema: kind and version, such as "explorer-1". card: a msgspec Struct of plain values."""
    inner = msgspec.json.encode(card, order="deterministic")
    head = msgspec.json.encode(
        {"schema": schema, "digest": _digest(schema, inner, arrays), "card": msgspec.Raw(inner)}
    )
    return pack_npz(head, arrays, level=0)


def unpack_state(raw: bytes, schema: str, card: type[_T]) -> tuple[_T, dict[str, NDArray[Any]]]:
    """(card, arrays) of bytes that `pack_state` made. Raises ArtifactError: cut, changed, or of another
    schema."""
    kind = schema.rpartition("-")[0]
    head, arrays = unpack_npz(
        raw,
        msgspec.json.Decoder(_Header).decode,
        most_bytes=MAX_STATE_BYTES,
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


def mismatch_error(schema: str, what: str) -> ArtifactError:
    """The error for a state whose parts do not fit together."""
    kind = schema.rpartition("-")[0]
    return ArtifactError(f"{kind} state: parts do not fit together: {what}.", remedy=_REMEDY)


class _Header(msgspec.Struct, frozen=True):
    schema: str
    digest: str
    card: msgspec.Raw


def _digest(schema: str, card: bytes, arrays: Mapping[str, NDArray[Any]]) -> str:
    h = sha256(f"{schema}\0".encode() + card)
    hash_arrays(h, arrays, lead="\0")
    return h.hexdigest()
