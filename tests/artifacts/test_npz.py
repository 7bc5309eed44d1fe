"""States of online learners are unpacked unchanged, or refused with the reason."""

from __future__ import annotations

import zipfile
from io import BytesIO

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.artifacts.npz import pack_state, unpack_state
from suffice.errors import ArtifactError


class Card(msgspec.Struct, frozen=True):
    name: str
    n: int


ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([1, 2], np.int64)}
RAW = pack_state("thing-1", Card("x", 3), ARRAYS)


def forged(**members: bytes) -> bytes:
    """The same file with members replaced and its checksums corrected."""
    buffer = BytesIO()
    with zipfile.ZipFile(BytesIO(RAW)) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            name = info.filename.removesuffix(".npy")
            new.writestr(info.filename, members.get(name, old.read(info)))
    return buffer.getvalue()


def test_a_state_is_unpacked_unchanged_and_packs_to_the_same_bytes() -> None:
    card, arrays = unpack_state(RAW, "thing-1", Card)
    assert card == Card("x", 3)
    assert all(
        np.array_equal(arrays[n], a) and arrays[n].dtype == a.dtype for n, a in ARRAYS.items()
    )
    assert pack_state("thing-1", card, arrays) == RAW


@given(st.integers(0, len(RAW) - 1), st.integers(1, 255), st.booleans())
def test_damage_is_refused_with_one_error_class(index: int, flip: int, cut: bool) -> None:
    bad = RAW[:index]
    if not cut:
        bad += bytes([RAW[index] ^ flip]) + RAW[index + 1 :]
    try:
        card, arrays = unpack_state(bad, "thing-1", Card)
    except ArtifactError as error:
        assert "state" in str(error)
        return
    # Bits of the archive that are never read can differ; the content cannot.
    assert pack_state("thing-1", card, arrays) == RAW


def test_a_changed_state_is_refused_with_the_reason() -> None:
    buffer = BytesIO()
    np.save(buffer, np.arange(6.0).reshape(2, 3) + 1.0)
    for bad, reason in (
        (forged(a=buffer.getvalue()), "does not match its digest"),
        (
            forged(a=b"\x93NUMPY\x01\x00\x08\x00{'descr'\n"),
            "is not a state of kind thing, or was cut",
        ),
        (forged(card=b"nothing"), "is not a state of kind thing, or was cut"),
        (b"", "is not a state of kind thing, or was cut"),
    ):
        with pytest.raises(ArtifactError, match=reason):
            unpack_state(bad, "thing-1", Card)
    with pytest.raises(ArtifactError, match="schema 'thing-1'; this version reads 'thing-2'"):
        unpack_state(RAW, "thing-2", Card)


def test_a_pickle_is_never_read() -> None:
    buffer = BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ArtifactError):
        unpack_state(forged(a=buffer.getvalue()), "thing-1", Card)
