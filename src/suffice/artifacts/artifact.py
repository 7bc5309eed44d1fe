"""A trained policy as one file: an npz of arrays and a JSON card, hashed. Never a pickle.

The card says what the policy was trained on, what it reached and under which licence. The digest
covers card and arrays: a file that was cut, edited or mixed up is refused with the reason.
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
    ConstantEstimator,
    Estimator,
    EstimatorFactory,
    LinearEstimator,
)
from suffice.artifacts.npz import Array, Arrays, hash_arrays, pack_npz, unpack_npz, write_atomically
from suffice.errors import ArtifactError
from suffice.types import FloatArray

SCHEMA = "artifact-1"
MAX_BYTES = 200_000_000
ENTRY_POINTS = "suffice.predictors"
_REMEDY = "Train it again: suffice train."


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """The training card.

    Attributes:
        kind: of the estimator.
        models: (k,) names.
        features: the version of the features that the weights belong to.
        table: the version of the token table that the weights belong to.
        reference: the model that the others are measured against.
        schema: of the file.
        digest: SHA-256 of card and arrays.
        trained_on: the name of the table.
        queries, labels: how many.
        made: ISO date.
        made_by: package and version.
        licence: of the training data.
        seed: of the training.
        scores: "right/wrong" or "graded".
        figures: what cross-validation gave, in words and numbers.
        prices: USD per million input and output tokens at training.
        notes: for people.
    """

    kind: str
    models: tuple[str, ...]
    features: str
    table: str
    reference: str
    schema: str = SCHEMA
    digest: str = ""
    trained_on: str = ""
    queries: int = 0
    labels: int = 0
    made: str = ""
    made_by: str = ""
    licence: str = "unknown"
    seed: int = 0
    scores: str = "unknown"
    figures: Mapping[str, Any] = {}
    prices: Mapping[str, tuple[float, float]] = {}
    notes: tuple[str, ...] = ()


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """A trained policy with a sample of its training queries.

    The sample stands for the route's traffic until there is traffic.

    Attributes:
        card: the training card.
        estimator: what was learned.
        sample_quality: (m, k) predicted.
        sample_cost: (m, k) predicted, in the table's USD; NaN = unknown.
        sample_tokens: (m, k) predicted tokens of the answers; NaN = unknown.
        sample_input: (m,) tokens of the prompts.
        sample_length: (m,) standardised log lengths.
        training_keys: uint64 (n,), hashes of the prompts that were learned from.
    """

    card: Card
    estimator: Estimator
    sample_quality: FloatArray
    sample_cost: FloatArray
    sample_tokens: FloatArray
    sample_input: FloatArray
    sample_length: FloatArray
    training_keys: NDArray[np.uint64]

    @property
    def version(self) -> str:
        """Kind and digest."""
        return f"{self.card.kind}-{self.card.digest[:12]}"

    @property
    def samples(self) -> dict[str, FloatArray]:
        """The arrays of the sample, by their names in the file."""
        return {
            "sample_quality": self.sample_quality,
            "sample_cost": self.sample_cost,
            "sample_tokens": self.sample_tokens,
            "sample_input": self.sample_input,
            "sample_length": self.sample_length,
        }


_SAMPLES = ("sample_quality", "sample_cost", "sample_tokens", "sample_input", "sample_length")


def pack(artifact: Artifact) -> bytes:
    """The bytes of the artifact's file; the same artifact gives the same bytes."""
    arrays: Arrays = {f"e.{n}": np.asarray(a) for n, a in artifact.estimator.arrays().items()}
    for name, sample in artifact.samples.items():
        arrays[name] = np.asarray(sample, np.float32)
    arrays["training_keys"] = np.asarray(artifact.training_keys, np.uint64)
    card = msgspec.structs.replace(artifact.card, digest="")
    card = msgspec.structs.replace(card, digest=_digest(card, arrays))
    return pack_npz(msgspec.json.encode(card, order="deterministic"), arrays)


def save(artifact: Artifact, path: str | Path) -> Artifact:
    """Write the file completely or not at all.

    Returns:
        The artifact with its digest in the card.

    Raises:
        ArtifactError: the file cannot be written.
    """
    file = Path(path)
    raw = pack(artifact)
    write_atomically(raw, file)
    return unpack(raw, str(file))


def load(path: str | Path) -> Artifact:
    """Load the artifact in a file.

    Returns:
        The artifact.

    Raises:
        ArtifactError: there is no file, it is cut, was changed, or has a schema that this version
            cannot read.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ArtifactError(
                f"{file}: is larger than {MAX_BYTES // 10**6} MB, so it is not an artifact."
            )
        raw = file.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{file}: cannot be read: {error.strerror}.",
            remedy="Give the file that suffice train wrote.",
        ) from None
    return unpack(raw, str(file))


def unpack(raw: bytes, name: str = "artifact") -> Artifact:
    """Unpack the bytes of an artifact's file.

    Args:
        raw: the bytes.
        name: for errors.

    Returns:
        The artifact.

    Raises:
        ArtifactError: as `load`.
    """
    plain, arrays = unpack_npz(
        raw,
        msgspec.json.decode,
        max_bytes=4 * MAX_BYTES,
        what=name,
        kind="an artifact",
        remedy=_REMEDY,
    )
    card = _read_card(plain, name)
    if _digest(msgspec.structs.replace(card, digest=""), arrays) != card.digest:
        raise ArtifactError(
            f"{name}: its content does not match its digest {card.digest[:12]}: it was changed "
            "after training.",
            remedy=_REMEDY,
        )
    state = {n[2:]: a for n, a in arrays.items() if n.startswith("e.")}
    try:
        estimator = _find_estimator(card.kind, name)(card.models, state)
        k = len(card.models)
        samples = {n: arrays[n].astype(float) for n in _SAMPLES}
        artifact = Artifact(
            card=card, estimator=estimator, training_keys=arrays["training_keys"], **samples
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ArtifactError(f"{name}: {error}.", remedy=_REMEDY) from None
    if any(a.shape[1:] != (k,) for a in samples.values() if a.ndim == 2):
        message = f"{name}: the columns of the sample are not the models'."
        raise ArtifactError(message, remedy=_REMEDY)
    return artifact


def _read_card(plain: object, name: str) -> Card:
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if schema != SCHEMA:
        raise ArtifactError(
            f"{name}: has schema {schema!r}; this version reads {SCHEMA!r}.", remedy=_REMEDY
        )
    try:
        return msgspec.convert(plain, Card)
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{name}: its card is invalid: {error}.", remedy=_REMEDY) from None


def check_versions(card: Card, features: str, table: str, name: str) -> None:
    """Check that the artifact was trained on the numbers that this version makes.

    Args:
        card: of the artifact.
        features: `features.SCHEMA`.
        table: `features.embedding_version()`.
        name: of the artifact, for errors.

    Raises:
        ArtifactError: it was trained on others.
    """
    for what, trained_on, current in (
        ("features", card.features, features),
        ("the token table", card.table, table),
    ):
        if trained_on != current:
            raise ArtifactError(
                f"{name}: was trained on {what} {trained_on!r}; this version makes {current!r}.",
                remedy=_REMEDY,
            )


def _find_estimator(kind: str, name: str) -> EstimatorFactory:
    factory = ESTIMATORS.get(kind)
    if factory is not None:
        return factory
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == kind:
            installed: EstimatorFactory = entry.load().from_arrays
            return installed
    raise ArtifactError(
        f"{name}: is of the kind {kind!r}, which is not installed.",
        remedy=f"Install the package that offers it (entry point group {ENTRY_POINTS!r}).",
    )


def _digest(card: Card, arrays: Mapping[str, Array]) -> str:
    h = sha256(msgspec.json.encode(card, order="deterministic"))
    hash_arrays(h, arrays)
    return h.hexdigest()


def with_models(artifact: Artifact, more: Artifact) -> Artifact:
    """Add the models of `more` after the artifact's own, whose columns do not change.

    Args:
        artifact: of a linear or constant estimator.
        more: of the same kind, with the same sample of queries.

    Returns:
        The artifact of the models of both.

    Raises:
        ArtifactError: the kinds differ or cannot be joined.
    """
    joined = _concat(artifact.estimator, more.estimator)
    samples, added = artifact.samples, more.samples
    wider = {
        n: np.concatenate([samples[n], added[n]], axis=1)
        for n in ("sample_quality", "sample_cost", "sample_tokens")
    }
    card = msgspec.structs.replace(artifact.card, models=joined.models)
    return msgspec.structs.replace(artifact, estimator=joined, card=card, **wider)


def _concat(old: Estimator, new: Estimator) -> LinearEstimator | ConstantEstimator:
    if isinstance(old, LinearEstimator) and isinstance(new, LinearEstimator):
        return old.concat(new)
    if isinstance(old, ConstantEstimator) and isinstance(new, ConstantEstimator):
        return old.concat(new)
    raise ArtifactError(
        f"A {new.kind!r} column cannot be added to an artifact of the kind {old.kind!r}.",
        remedy=_REMEDY,
    )
