"""Arrays and a card as bytes, and bytes as a file, for artifacts, certificates and learners' states.

An npz of plain arrays, never a pickle. The same content gives the same bytes. Bytes that cannot be
read raise ArtifactError.
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

Array = NDArray[Any]  # of any type of numbers
Arrays = dict[str, Array]
CARD = "card"
MAX_STATE_BYTES = 500_000_000  # unpacked; the largest state is a tenth of that
_STATE_REMEDY = "Go back to an earlier snapshot, or start without one."
_T = TypeVar("_T")

# What damaged bytes can raise on their way to arrays.
_UNREADABLE = (
    ValueError,
    TypeError,
    LookupError,
    OSError,
    EOFError,
    MemoryError,
    RuntimeError,  # an encrypted zip; NotImplementedError: an unknown compression
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    msgspec.MsgspecError,
    SyntaxError,  # the header of an array is a Python literal, which NumPy parses
    TokenError,
)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def pack_npz(card: bytes, arrays: Mapping[str, Array], level: int | None = None) -> bytes:
    """Pack arrays and a card as the bytes of an npz.

    Args:
        card: JSON.
        arrays: by name.
        level: of compression, 1 fast to 9 small; None = zlib's default.

    Returns:
        The bytes, the same for the same content.
    """
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        # np.savez would write the time of day into it.
        for name, array in sorted({**arrays, CARD: np.frombuffer(card, np.uint8)}.items()):
            buffer = BytesIO()
            np.lib.format.write_array(buffer, np.asarray(array, order="C"), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, buffer.getvalue(), compresslevel=level)
    return packed.getvalue()


def unpack_npz(
    raw: bytes, decode: Callable[[bytes], _T], *, max_bytes: int, what: str, kind: str, remedy: str
) -> tuple[_T, Arrays]:
    """Unpack what `pack_npz` made.

    Args:
        raw: the bytes.
        decode: decodes the card's JSON.
        max_bytes: the largest size when unpacked.
        what: the name of the bytes, which an error begins with.
        kind: what the bytes should be, with its article, for errors.
        remedy: for errors.

    Returns:
        The card and the arrays.

    Raises:
        ArtifactError: the bytes are cut, damaged, without a card or too large.
    """
    arrays: Arrays = {}
    try:
        with zipfile.ZipFile(BytesIO(raw)) as file:
            if sum(i.file_size for i in file.infolist()) > max_bytes:
                raise ArtifactError(f"{what}: is too large when unpacked to be {kind}.")
            for info in file.infolist():
                # Read whole first, which checks the checksum: a damaged header must not reach a parser.
                data = BytesIO(file.read(info))
                name = info.filename.removesuffix(".npy")
                arrays[name] = np.lib.format.read_array(data, allow_pickle=False)
        if CARD not in arrays:
            raise ArtifactError(f"{what}: has no card, so it is not {kind}.", remedy=remedy)
        return decode(arrays.pop(CARD).tobytes()), arrays
    except ArtifactError:
        raise
    except _UNREADABLE as error:
        message = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ArtifactError(
            f"{what}: is not {kind}, or was cut: {message}.", remedy=remedy
        ) from None


def hash_arrays(into: _Hash, arrays: Mapping[str, Array], prefix: str = "") -> None:
    """Hash the names, types, shapes and content of all arrays, in the order of their names."""
    for name in sorted(arrays):
        a = np.asarray(arrays[name], order="C")
        into.update(f"{prefix}{name}/{a.dtype.str}/{a.shape}/".encode())
        into.update(a.tobytes())


def write_atomically(raw: bytes, path: Path) -> None:
    """Write a file completely or not at all.

    Raises:
        ArtifactError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(raw)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ArtifactError(
            f"{path}: cannot be written: {error.strerror}.", remedy="Give another --out."
        ) from None


# ── states of learners ───────────────────────────────────────────────────────────────────────────


class _Header(msgspec.Struct, frozen=True):
    schema: str
    digest: str
    card: msgspec.Raw


def pack_state(schema: str, card: msgspec.Struct, arrays: Mapping[str, Array]) -> bytes:
    """Pack what an online learner has learned, with a digest.

    Args:
        schema: kind and version, such as "explorer-1".
        card: plain values.
        arrays: by name.

    Returns:
        The bytes, the same for the same content.
    """
    content = msgspec.json.encode(card, order="deterministic")
    digest = _state_digest(schema, content, arrays)
    header = msgspec.json.encode({"schema": schema, "digest": digest, "card": msgspec.Raw(content)})
    return pack_npz(header, arrays, level=0)


def unpack_state(raw: bytes, schema: str, card: type[_T]) -> tuple[_T, Arrays]:
    """Unpack what `pack_state` made.

    Returns:
        The card and the arrays.

    Raises:
        ArtifactError: the bytes are cut, were changed, or have another schema.
    """
    kind = schema.rpartition("-")[0]
    header, arrays = unpack_npz(
        raw,
        msgspec.json.Decoder(_Header).decode,
        max_bytes=MAX_STATE_BYTES,
        what=f"{kind} state",
        kind=f"a state of kind {kind}",
        remedy=_STATE_REMEDY,
    )
    if header.schema != schema:
        raise ArtifactError(
            f"{kind} state: has schema {header.schema!r}; this version reads {schema!r}.",
            remedy=_STATE_REMEDY,
        )
    if _state_digest(schema, bytes(header.card), arrays) != header.digest:
        raise ArtifactError(
            f"{kind} state: its content does not match its digest {header.digest[:12]}: it was "
            "changed after it was written.",
            remedy=_STATE_REMEDY,
        )
    try:
        return msgspec.json.decode(header.card, type=card), arrays
    except msgspec.MsgspecError as error:
        raise ArtifactError(
            f"{kind} state: its card is invalid: {error}.", remedy=_STATE_REMEDY
        ) from None


def mismatch_error(schema: str, what: str) -> ArtifactError:
    """The error for a state whose parts do not fit together."""
    kind = schema.rpartition("-")[0]
    return ArtifactError(f"{kind} state: parts do not fit together: {what}.", remedy=_STATE_REMEDY)


def _state_digest(schema: str, card: bytes, arrays: Mapping[str, Array]) -> str:
    h = sha256(f"{schema}\0".encode() + card)
    hash_arrays(h, arrays, prefix="\0")
    return h.hexdigest()
