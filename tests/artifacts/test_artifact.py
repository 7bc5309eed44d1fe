"""An artifact is loaded as it was saved, or refused with the reason."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.trained_artifacts import KINDS, artifact, saved

from suffice import features
from suffice.artifacts import artifact as artifacts
from suffice.errors import ArtifactError


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_artifact_is_loaded_unchanged(kind: str, tmp_path: Path) -> None:
    made = artifact(kind)
    loaded = artifacts.load(saved(tmp_path, kind))
    assert loaded.card == made.card
    assert loaded.version == made.version
    rng = np.random.default_rng(0)
    signals = rng.normal(2, 1, (50, len(features.SIGNAL_NAMES))).astype(np.float32)
    vectors = rng.normal(size=(50, 256)).astype(np.float32)
    for a, b in zip(
        loaded.estimator.predict(signals, vectors),
        made.estimator.predict(signals, vectors),
        strict=True,
    ):
        assert np.array_equal(a, b)
    assert np.array_equal(loaded.training_keys, made.training_keys)
    assert list(tmp_path.iterdir()) == [tmp_path / f"{kind}.npz"]


def test_the_same_artifact_gives_the_same_bytes() -> None:
    assert artifacts.pack(artifact("linear")) == artifacts.pack(artifact("linear"))


def changed(raw: bytes, **arrays: np.ndarray) -> bytes:
    with np.load(BytesIO(raw)) as file:
        original = {n: file[n] for n in file.files}
    buffer = BytesIO()
    np.savez(buffer, **{**original, **arrays})
    return buffer.getvalue()


def test_a_changed_weight_is_refused() -> None:
    raw = artifacts.pack(artifact("constant"))
    with pytest.raises(ArtifactError, match="digest"):
        artifacts.unpack(changed(raw, **{"e.quality": np.array([0.99, 0.1])}))


def test_a_changed_card_is_refused() -> None:
    raw = artifacts.pack(artifact("constant"))
    card = msgspec.structs.replace(artifacts.unpack(raw).card, labels=10**6)
    encoded = np.frombuffer(msgspec.json.encode(card), np.uint8)
    with pytest.raises(ArtifactError, match="digest"):
        artifacts.unpack(changed(raw, card=encoded))


def test_another_schema_is_refused_by_name() -> None:
    raw = artifacts.pack(artifact("constant"))
    card = msgspec.structs.replace(artifacts.unpack(raw).card, schema="artifact-9")
    encoded = np.frombuffer(msgspec.json.encode(card), np.uint8)
    with pytest.raises(ArtifactError, match=r"artifact-9.*artifact-1.*suffice train"):
        artifacts.unpack(changed(raw, card=encoded))


@settings(max_examples=40)
@given(st.binary(max_size=300))
def test_any_other_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(ArtifactError):
        artifacts.unpack(raw)


@settings(max_examples=40)
@given(st.data())
def test_a_cut_file_is_refused(data: st.DataObject) -> None:
    raw = artifacts.pack(artifact("constant"))
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(ArtifactError):
        artifacts.unpack(raw[:cut])


@settings(max_examples=60)
@given(st.data())
def test_a_flipped_byte_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    raw = bytearray(artifacts.pack(artifact("constant")))
    index = data.draw(st.integers(0, len(raw) - 1))
    raw[index] ^= data.draw(st.integers(1, 255))
    try:
        unpacked = artifacts.unpack(bytes(raw))
    except ArtifactError:
        return
    assert unpacked.card == artifact("constant").card  # a byte of the zip that is never read


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    np.savez(path, card=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="artifact"):
        artifacts.load(path)


def test_a_file_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = artifacts.pack(artifact("linear"))
    monkeypatch.setattr(artifacts, "MAX_BYTES", 1000)
    with pytest.raises(ArtifactError, match="too large when unpacked"):
        artifacts.unpack(raw)


def test_a_missing_file_is_an_error_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No such file"):
        artifacts.load(tmp_path / "none.npz")


def test_arrays_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    made = artifact("constant")
    mismatched = msgspec.structs.replace(
        made, card=msgspec.structs.replace(made.card, models=("a", "b", "c"))
    )
    with pytest.raises(ArtifactError, match="3 models"):
        artifacts.unpack(artifacts.pack(mismatched))


def test_an_unknown_kind_is_an_error_that_names_what_to_install() -> None:
    made = artifact("constant")
    odd = msgspec.structs.replace(made, card=msgspec.structs.replace(made.card, kind="acme"))
    with pytest.raises(ArtifactError, match=r"acme.*suffice\.predictors"):
        artifacts.unpack(artifacts.pack(odd))


def test_features_of_another_version_are_refused() -> None:
    card = artifact("linear").card
    artifacts.check_versions(card, card.features, card.table, "x")
    with pytest.raises(ArtifactError, match=rf"features '{features.SCHEMA}'.*'ask-99'"):
        artifacts.check_versions(card, "ask-99", card.table, "x")
    with pytest.raises(ArtifactError, match="token table"):
        artifacts.check_versions(card, card.features, "other", "x")


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    target = tmp_path / "folder.npz"
    target.mkdir()
    with pytest.raises(ArtifactError, match="cannot be written"):
        artifacts.save(artifact("constant"), target)
    assert list(tmp_path.iterdir()) == [target]


def test_an_artifact_is_a_plain_zip_of_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(saved(tmp_path)) as file:
        assert all(n.endswith(".npy") for n in file.namelist())
