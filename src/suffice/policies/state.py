"""What an online learner has learned, as bytes: an npz of plain arrays and a card, with a digest.

Shared by explorer, pacer and learner, so that the store can keep their snapshots, immutable and
checked. Never a pickle; the same state gives the same bytes.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from hashlib import sha256
from io import BytesIO
from tokenize import TokenError
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError

MAX_BYTES = 500_000_000  # unpacked; the largest state of ours is a tenth of that
_REMEDY = "Go back to an earlier snapshot, or start without one."
_T = TypeVar("_T")


def pack(schema: str, card: Any, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """schema: kind and version, such as "explorer-1". card: a msgspec Struct of plain values."""
    inner = msgspec.json.encode(card, order="deterministic")
    head = msgspec.json.encode(
        {"schema": schema, "digest": _digest(schema, inner, arrays), "card": msgspec.Raw(inner)}
    )
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        # np.savez would write the time of day into it.
        for name, array in sorted({**arrays, "card": np.frombuffer(head, np.uint8)}.items()):
            buffer = BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, buffer.getvalue(), compresslevel=1)
    return out.getvalue()


def unpack(raw: bytes, schema: str, card: type[_T]) -> tuple[_T, dict[str, NDArray[Any]]]:
    """(card, arrays) of bytes that `pack` made. Raises ArtifactError: cut, changed, or of another
    schema."""
    kind = schema.rpartition("-")[0]
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(BytesIO(raw)) as file:
            if sum(i.file_size for i in file.infolist()) > MAX_BYTES:
                raise ArtifactError(f"{kind} state: unpacks to more than any of ours holds.")
            for info in file.infolist():
                # Whole first, which checks its sum: a damaged header must not reach a parser.
                data = BytesIO(file.read(info))
                name = info.filename.removesuffix(".npy")
                arrays[name] = np.lib.format.read_array(data, allow_pickle=False)
        if "card" not in arrays:
            raise ArtifactError(f"{kind} state: holds no card.", remedy=_REMEDY)
        head = msgspec.json.decode(arrays.pop("card").tobytes(), type=_Head)
    except ArtifactError:
        raise
    except (
        ValueError,
        OSError,
        EOFError,
        KeyError,
        # zipfile's word for a compression, an encryption or a version that it cannot read
        NotImplementedError,
        RuntimeError,
        # and NumPy's for a header that was made up
        SyntaxError,
        TokenError,
        zipfile.BadZipFile,
        zlib.error,
        msgspec.MsgspecError,
    ) as error:
        what = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ArtifactError(f"{kind} state: is none, or was cut: {what}.", remedy=_REMEDY) from None
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
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        h.update(f"\0{name}/{a.dtype.str}/{a.shape}/".encode())
        h.update(a.tobytes())
    return h.hexdigest()
