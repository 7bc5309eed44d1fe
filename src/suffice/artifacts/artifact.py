"""A trained policy as one file: an npz of arrays and a JSON card, hashed. Never a pickle.

The card says what it was trained on, what it reached and under which licence; the digest covers
card and arrays, so a file that was cut, edited or mixed up is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.artifacts.estimators import (
    ESTIMATORS,
    Arrays,
    ConstantEstimator,
    LinearEstimator,
)
from suffice.artifacts.npz import hash_arrays, pack_npz, unpack_npz, write_atomically
from suffice.errors import ArtifactError
from suffice.types import FloatArray

SCHEMA = "artifact-1"
MAX_BYTES = 200_000_000
ENTRY_POINTS = "suffice.predictors"
_RETRAIN = "Train it again: suffice train."


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """The training card. features, table: versions of the features room and of its token table that
    the weights belong to. figures: what cross-validation gave, in words and numbers."""

    kind: str
    models: tuple[str, ...]
    features: str
    table: str
    reference: str  # the model that others are measured against
    schema: str = SCHEMA
    digest: str = ""
    trained_on: str = ""
    queries: int = 0
    labels: int = 0
    made: str = ""  # ISO date
    made_by: str = ""  # package and version
    licence: str = "unknown"
    seed: int = 0
    scores: str = "unknown"  # "right/wrong" | "graded"
    figures: Mapping[str, Any] = {}
    prices: Mapping[str, tuple[float, float]] = {}  # USD per million tokens in and out, at training
    notes: tuple[str, ...] = ()


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """card; estimator: what was learned; sample_quality, sample_cost, sample_tokens: (m, k) what it
    expects of a sample of the training queries (cost in the table's USD, tokens of answers, NaN
    where unknown), sample_input: (m,) their prompt tokens, sample_length: (m,) their standardised
    log length: the route's traffic until there is traffic. training_keys: uint64 (n,), hashes of
    the prompts that were learned from."""

    card: Card
    estimator: Any
    sample_quality: FloatArray
    sample_cost: FloatArray
    sample_tokens: FloatArray
    sample_input: FloatArray
    sample_length: FloatArray
    training_keys: NDArray[np.uint64]

    @property
    def version(self) -> str:
        return f"{self.card.kind}-{self.card.digest[:12]}"


_SAMPLES = ("sample_quality", "sample_cost", "sample_tokens", "sample_input", "sample_length")


def pack(artifact: Artifact) -> bytes:
    """The artifact as the bytes of its file; the same artifact gives the same bytes."""
    arrays: Arrays = {f"e.{n}": np.asarray(a) for n, a in artifact.estimator.arrays().items()}
    for name in _SAMPLES:
        arrays[name] = np.asarray(getattr(artifact, name), np.float32)
    arrays["training_keys"] = np.asarray(artifact.training_keys, np.uint64)
    card = msgspec.structs.replace(artifact.card, digest="")
    card = msgspec.structs.replace(card, digest=_digest(card, arrays))
    return pack_npz(msgspec.json.encode(card, order="deterministic"), arrays)


def save(artifact: Artifact, path: str | Path) -> Artifact:
    """Write the file, whole or not at all. Returns the artifact with its digest in the card.
    Raises ArtifactError where it cannot be written."""
    where = Path(path)
    raw = pack(artifact)
    write_atomically(raw, where)
    return unpack(raw, str(where))


def load(path: str | Path) -> Artifact:
    """The artifact in a file. Raises ArtifactError: none there, cut, tampered with, or of a schema
    that this version cannot read."""
    where = Path(path)
    try:
        if where.stat().st_size > MAX_BYTES:
            raise ArtifactError(
                f"{where}: larger than {MAX_BYTES // 10**6} MB, which no artifact of ours is."
            )
        raw = where.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{where}: it cannot be read: {error.strerror}.",
            remedy="Give the file that suffice train wrote.",
        ) from None
    return unpack(raw, str(where))


def unpack(raw: bytes, name: str = "artifact") -> Artifact:
    """The artifact in the bytes of its file. Raises ArtifactError, as `load`."""
    plain, arrays = unpack_npz(
        raw,
        msgspec.json.decode,
        most_bytes=4 * MAX_BYTES,
        what=name,
        none="is no artifact",
        remedy=_RETRAIN,
    )
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if schema != SCHEMA:
        raise ArtifactError(
            f"{name}: has schema {schema!r}; this version reads {SCHEMA!r}.", remedy=_RETRAIN
        )
    try:
        card = msgspec.convert(plain, Card)
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{name}: its card is wrong: {error}.", remedy=_RETRAIN) from None
    if _digest(msgspec.structs.replace(card, digest=""), arrays) != card.digest:
        raise ArtifactError(
            f"{name}: its content does not match its digest {card.digest[:12]}: it was changed "
            "after training.",
            remedy=_RETRAIN,
        )
    own = {n[2:]: a for n, a in arrays.items() if n.startswith("e.")}
    try:
        estimator = _form(card.kind, name)(card.models, own)
        k = len(card.models)
        samples = {n: arrays[n].astype(float) for n in _SAMPLES}
        if any(a.shape[1:] != (k,) for n, a in samples.items() if a.ndim == 2):
            raise ValueError("the sample's columns are not the models'")
        return Artifact(
            card=card, estimator=estimator, training_keys=arrays["training_keys"], **samples
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ArtifactError(f"{name}: {error}.", remedy=_RETRAIN) from None


def check_versions(card: Card, features: str, table: str, name: str) -> None:
    """Raises ArtifactError where the artifact was trained on other numbers than this version makes.
    features, table: the schema of the features room and the digest of its token table now."""
    for what, had, now in (
        ("features", card.features, features),
        ("the token table", card.table, table),
    ):
        if had != now:
            raise ArtifactError(
                f"{name}: was trained on {what} {had!r}; this version makes {now!r}.",
                remedy=_RETRAIN,
            )


def _form(kind: str, name: str) -> Any:
    form = ESTIMATORS.get(kind)
    if form is not None:
        return form
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == kind:
            return entry.load().from_arrays
    raise ArtifactError(
        f"{name}: is of the kind {kind!r}, which is not installed here.",
        remedy=f"Install the package that offers it (entry point group {ENTRY_POINTS!r}).",
    )


def _digest(card: Card, arrays: Mapping[str, NDArray[Any]]) -> str:
    h = sha256(msgspec.json.encode(card, order="deterministic"))
    hash_arrays(h, arrays)
    return h.hexdigest()


def with_models(artifact: Artifact, more: Artifact) -> Artifact:
    """The artifact with the models of `more` beside its own, whose columns stay as they are. Both
    are of one kind and hold the same sample of queries. Raises ArtifactError."""
    old, new = artifact.estimator, more.estimator
    if type(old) is not type(new) or not isinstance(old, LinearEstimator | ConstantEstimator):
        raise ArtifactError(
            f"A {new.kind!r} column cannot join an artifact of the kind {old.kind!r}.",
            remedy=_RETRAIN,
        )
    merged = old.concat(new)
    wider = {
        n: np.concatenate([getattr(artifact, n), getattr(more, n)], axis=1)
        for n in ("sample_quality", "sample_cost", "sample_tokens")
    }
    card = msgspec.structs.replace(artifact.card, models=merged.models)
    return msgspec.structs.replace(artifact, estimator=merged, card=card, **wider)
