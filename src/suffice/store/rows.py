"""Records to rows and back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.types import Features, Prediction, RequestRecord

Embed = Callable[[Features], "NDArray[np.float32] | None"]

_log = logging.getLogger("suffice.store")

_encode = msgspec.json.encode
_decode = msgspec.json.decode

# The order is that of the insert statements; tuples cost less than dictionaries.
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
    # Later versions add at the end, so that a spooled line of an earlier one is a beginning of this.
    "embedding",
    "snapshot",
]
DECISION_0001 = DECISION[:28]  # the shortest line there is
BINARY = [DECISION.index("features"), DECISION.index("embedding")]  # no JSON as they are
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

Row = tuple[Any, ...]
Shadow = Callable[[RequestRecord], Mapping[str, Any] | None]


class _Detail(msgspec.Struct):
    plan: Any
    predictions: Any
    reason: str
    objective: Any
    excluded: Any
    seed: int
    dialect: str
    metadata: Any
    explored: bool
    shadow: Any


def to_rows(
    r: RequestRecord, keep_prompts: bool, embed: Embed | None = None, shadow: Shadow | None = None
) -> tuple[Row, list[Row]]:
    """(the decision's row, its attempts' rows), in the order of DECISION and ATTEMPT. shadow: what
    another policy would have decided, to stand beside it."""
    d, u, x = r.decision, r.usage, r.features
    detail = _Detail(
        d.plan,
        d.predictions,
        d.reason,
        d.objective,
        d.excluded,
        d.seed,
        r.dialect,
        r.metadata,
        d.explored,
        None if shadow is None else _shadowed(r, shadow),
    )
    row = (
        d.id,
        r.created_s,
        r.request_id,
        d.route,
        d.model,
        r.model,
        d.policy,
        d.policy_version,
        d.basis,
        float(d.propensity),  # a NumPy scalar would be bound as a blob
        None if d.difficulty is None else float(d.difficulty),
        r.status,
        len(r.attempts),
        r.stream,
        None if r.session is None else r.session[:256],
        r.key_id,
        None if u is None else u.input_tokens,
        None if u is None else u.output_tokens,
        None if u is None else u.cached_input_tokens,
        r.cost_usd,
        r.latency_s,
        r.first_chunk_s,
        r.overhead_ms,
        None if x is None else x.signals.tobytes(),
        None if x is None else x.schema,
        _encode(detail).decode(),
        r.prompt.decode("utf-8", "replace") if keep_prompts and r.prompt is not None else None,
        r.error,
        None if x is None or embed is None else _embedded(d.id, x, embed),
        d.snapshot,
    )
    tries = [
        (
            d.id,
            a.number,
            a.model,
            a.outcome,
            a.started_s,
            a.latency_s,
            a.first_chunk_s,
            a.status,
            a.error,
            None if a.usage is None else a.usage.input_tokens,
            None if a.usage is None else a.usage.output_tokens,
            a.cost_usd,
            a.finish_reason,
        )
        for a in r.attempts
    ]
    return row, tries


def _shadowed(r: RequestRecord, shadow: Shadow) -> Mapping[str, Any] | None:
    try:
        return shadow(r)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # Its word is worth less than the record.
        _log.error("what the shadow of %s would have done: %s", r.decision.id, error)
        return None


def _embedded(decision_id: str, x: Features, embed: Embed) -> bytes | None:
    """float16 (n_dimensions,), little endian; None where there is nothing to embed."""
    try:
        found = embed(x)
    except (ValueError, TypeError, IndexError) as error:
        # An embedding is worth less than its record.
        _log.error("the ask of %s cannot be embedded: %s", decision_id, error)
        return None
    return None if found is None else np.asarray(found, "<f2").tobytes()


def unpack_vector(blob: bytes | None, kind: str) -> NDArray[np.float32] | None:
    """A stored vector, float32 (n,). kind: "<f4" for features, "<f2" for embeddings."""
    return None if blob is None else np.frombuffer(blob, kind).astype(np.float32)


class _Predictions(msgspec.Struct):
    predictions: tuple[Prediction, ...]


predictions_of = msgspec.json.Decoder(_Predictions).decode


def sanitize_row(row: Row) -> Row:
    """The row as any database can hold it: whole numbers within 32 bits, texts without lone
    surrogates and zero bytes. For rows that were refused."""
    return tuple(map(sanitize_value, row))


def sanitize_value(value: Any) -> Any:
    """One value of a row, `sanitize_row`."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "")
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-(2**31), min(2**31 - 1, value))
    return value


def to_dict(row: Mapping[str, Any], tries: list[dict[str, Any]]) -> dict[str, Any]:
    """A stored decision as it is shown: the detail unfolded, the feature vector as a list."""
    out = dict(row)
    out.update(_decode(out.pop("detail")))
    blob = out.pop("features_blob", None)
    vector = unpack_vector(blob, "<f4")
    if vector is not None:
        out["feature_vector"] = vector.tolist()
    out.pop("embedding", None)  # 256 numbers that tell nobody anything
    if out.get("prompt") is not None:
        out["prompt"] = _decode(out["prompt"])
    out["stream"] = bool(out["stream"])
    out["attempts"] = tries
    return out
