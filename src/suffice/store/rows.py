"""Converts records to rows of the tables, and rows to plain data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.store.protocols import Row
from suffice.types import (
    Attempt,
    ExcludedModel,
    Features,
    Objective,
    PlanStep,
    Prediction,
    RequestRecord,
)

Embed = Callable[[Features], "NDArray[np.float32] | None"]
Shadow = Callable[[RequestRecord], Mapping[str, object] | None]
Values = tuple[Any, ...]  # one row, in the order of DECISION or of ATTEMPT

_log = logging.getLogger("suffice.store")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode

# Columns in the order of the insert statements. Tuples cost less than dictionaries.
DECISION = [
    "id",
    "created_s",
    "request_id",
    "route",
    "chosen",
    "model",
    "policy",
    "policy_version",
    "basis",
    "propensity",
    "difficulty",
    "status",
    "attempts",
    "stream",
    "session",
    "key_id",
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cost_usd",
    "latency_s",
    "first_chunk_s",
    "overhead_ms",
    "features",
    "features_schema",
    "detail",
    "prompt",
    "error",
    # Later versions add columns at the end, so a spooled row of an earlier one is a prefix.
    "embedding",
    "snapshot",
    "only_attempt",
]
DECISION_0001 = DECISION[:28]  # the shortest spooled row there is
BINARY = [DECISION.index("features"), DECISION.index("embedding")]  # JSON cannot hold them
ATTEMPT = [
    "decision_id",
    "number",
    "model",
    "outcome",
    "started_s",
    "latency_s",
    "first_chunk_s",
    "status",
    "error",
    "input_tokens",
    "output_tokens",
    "cost_usd",
    "finish_reason",
]


class RecordRows(NamedTuple):
    """The rows of one record."""

    decision: Values
    attempts: list[Values]


class _Detail(msgspec.Struct):
    """The JSON of the column `detail`."""

    plan: tuple[PlanStep, ...]
    predictions: tuple[Prediction, ...]
    reason: str
    objective: Objective
    excluded: tuple[ExcludedModel, ...]
    seed: int
    dialect: str
    metadata: Mapping[str, object] | None
    explored: bool
    shadow: Mapping[str, object] | None


class _OnlyAttempt(msgspec.Struct, array_like=True):
    """The JSON of the column `only_attempt`: what the decision's row does not hold already."""

    started_s: float
    latency_s: float
    first_chunk_s: float | None
    status: int | None
    finish_reason: str | None


_decode_only_attempt = msgspec.json.Decoder(_OnlyAttempt).decode


def to_rows(
    record: RequestRecord,
    keep_prompts: bool,
    embed: Embed | None = None,
    shadow: Shadow | None = None,
) -> RecordRows:
    """The rows of a record.

    Args:
        record: The record.
        keep_prompts: Store the prompt's text.
        embed: Makes the embedding of the query. None: store none.
        shadow: What another policy would have decided, to be stored with the decision.

    Returns:
        The decision's row, and a row per attempt unless the only attempt is in the decision's row.

    Raises:
        TypeError: The record's metadata cannot be JSON.
        ValueError: Likewise.
    """
    decision, x, attempts = record.decision, record.features, record.attempts
    detail = _Detail(
        decision.plan,
        decision.predictions,
        decision.reason,
        decision.objective,
        decision.excluded,
        decision.seed,
        record.dialect,
        record.metadata,
        decision.explored,
        None if shadow is None else _shadow_of(record, shadow),
    )
    row = (
        *_decision_columns(record),
        *_reply_columns(record),
        None if x is None else x.signals.tobytes(),
        None if x is None else x.schema,
        _encode(detail).decode(),
        _prompt(record) if keep_prompts else None,
        record.error,
        None if x is None or embed is None else _embedding(decision.id, x, embed),
        decision.snapshot,
        only := _only_attempt(record, attempts[0]) if len(attempts) == 1 else None,
    )
    if only is not None:
        return RecordRows(row, [])
    return RecordRows(row, [attempt_row(decision.id, a) for a in attempts])


def _decision_columns(record: RequestRecord) -> tuple[object, ...]:
    """The columns from `id` to `difficulty`."""
    decision = record.decision
    return (
        decision.id,
        record.created_s,
        record.request_id,
        decision.route,
        decision.model,
        record.model,
        decision.policy,
        decision.policy_version,
        decision.basis,
        float(decision.propensity),  # a NumPy scalar would be bound as a blob
        None if decision.difficulty is None else float(decision.difficulty),
    )


def _reply_columns(record: RequestRecord) -> tuple[object, ...]:
    """The columns from `status` to `overhead_ms`."""
    usage = record.usage
    return (
        record.status,
        len(record.attempts),
        record.stream,
        None if record.session is None else record.session[:256],
        record.key_id,
        None if usage is None else usage.input_tokens,
        None if usage is None else usage.output_tokens,
        None if usage is None else usage.cached_input_tokens,
        record.cost_usd,
        record.latency_s,
        record.first_chunk_s,
        record.overhead_ms,
    )


def _only_attempt(record: RequestRecord, attempt: Attempt) -> str | None:
    """The JSON of a single successful attempt. None: the decision's row does not determine it."""
    if attempt.outcome != "ok" or attempt.number != 1 or attempt.error is not None:
        return None
    if attempt.model != record.model or attempt.cost_usd != record.cost_usd:
        return None
    if attempt.usage is not record.usage and attempt.usage != record.usage:
        return None
    only = _OnlyAttempt(
        attempt.started_s,
        attempt.latency_s,
        attempt.first_chunk_s,
        attempt.status,
        attempt.finish_reason,
    )
    return _encode(only).decode()


def attempt_row(decision_id: str, attempt: Attempt) -> Values:
    """The row of an attempt in the table `attempts`."""
    usage = attempt.usage
    return (
        decision_id,
        attempt.number,
        attempt.model,
        attempt.outcome,
        attempt.started_s,
        attempt.latency_s,
        attempt.first_chunk_s,
        attempt.status,
        attempt.error,
        None if usage is None else usage.input_tokens,
        None if usage is None else usage.output_tokens,
        attempt.cost_usd,
        attempt.finish_reason,
    )


def _prompt(record: RequestRecord) -> str | None:
    return None if record.prompt is None else record.prompt.decode("utf-8", "replace")


def _shadow_of(record: RequestRecord, shadow: Shadow) -> Mapping[str, object] | None:
    try:
        return shadow(record)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # A record is worth more than what a shadow policy would have decided.
        _log.error("shadow decision of %s failed: %s", record.decision.id, error)
        return None


def _embedding(decision_id: str, x: Features, embed: Embed) -> bytes | None:
    """float16 (n_dimensions,), little endian. None: there is nothing to embed, or it fails."""
    try:
        vector = embed(x)
    except (ValueError, TypeError, IndexError) as error:
        # A record is worth more than its embedding.
        _log.error("the query of %s cannot be embedded: %s", decision_id, error)
        return None
    return None if vector is None else np.asarray(vector, "<f2").tobytes()


def unpack_vector(blob: bytes | None, dtype: str) -> NDArray[np.float32] | None:
    """A stored vector as float32 (n,). dtype: "<f4" for features, "<f2" for embeddings."""
    return None if blob is None else np.frombuffer(blob, dtype).astype(np.float32)


class _Predictions(msgspec.Struct):
    predictions: tuple[Prediction, ...]


predictions_of = msgspec.json.Decoder(_Predictions).decode


def sanitize_row(row: Values) -> Values:
    """The row with values that every database can hold. For rows that were refused."""
    return tuple(map(sanitize_value, row))


def sanitize_value(value: Any) -> Any:
    """Limit an integer to 32 bits; replace lone surrogates and remove zero bytes of a text."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "")
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-(2**31), min(2**31 - 1, value))
    return value


def attempts_of(row: Row, attempt_rows: list[Row]) -> list[Row]:
    """The attempts of a decision, oldest first, without the decision's id.

    Args:
        row: The decision's row.
        attempt_rows: Its rows of the table `attempts`; empty if the only attempt is in `row`.

    Returns:
        One dictionary per attempt, with the columns of the table `attempts`.
    """
    if row["only_attempt"] is not None:
        only = _decode_only_attempt(row["only_attempt"])
        return [
            {
                "number": 1,
                "model": row["model"],
                "outcome": "ok",
                "started_s": only.started_s,
                "latency_s": only.latency_s,
                "first_chunk_s": only.first_chunk_s,
                "status": only.status,
                "error": None,
                "input_tokens": row["input_tokens"],
                "output_tokens": row["output_tokens"],
                "cost_usd": row["cost_usd"],
                "finish_reason": only.finish_reason,
            }
        ]
    return [{k: v for k, v in a.items() if k != "decision_id"} for a in attempt_rows]


def to_dict(row: Row) -> Row:
    """A stored decision as it is shown: the detail unfolded, the feature vector as a list.

    Args:
        row: By column. `attempts` stays the number of attempts.

    Returns:
        A new dictionary.
    """
    shown = dict(row)
    blob = shown.pop("features")
    for internal in ("embedding", "only_attempt"):
        shown.pop(internal, None)
    shown.update(_decode(shown.pop("detail")))
    vector = unpack_vector(blob, "<f4")
    if vector is not None:
        shown["feature_vector"] = vector.tolist()
    if shown.get("prompt") is not None:
        shown["prompt"] = _decode(shown["prompt"])
    shown["stream"] = bool(shown["stream"])
    return shown
