"""Records to rows and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..types import Record

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
]
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


class _Detail(msgspec.Struct):
    plan: Any
    predictions: Any
    reason: str
    objective: Any
    excluded: Any
    seed: int
    dialect: str
    metadata: Any


def to_rows(r: Record, keep_prompts: bool) -> tuple[Row, list[Row]]:
    """(the decision's row, its attempts' rows), in the order of DECISION and ATTEMPT."""
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


def repaired(row: Row) -> Row:
    """The row as any database can hold it: whole numbers within 32 bits, texts without lone
    surrogates and zero bytes. For rows that were refused."""
    return tuple(map(_repaired, row))


def _repaired(value: Any) -> Any:
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
    if blob is not None:
        import numpy as np

        out["feature_vector"] = np.frombuffer(blob, dtype="<f4").tolist()
    if out.get("prompt") is not None:
        out["prompt"] = _decode(out["prompt"])
    out["stream"] = bool(out["stream"])
    out["attempts"] = tries
    return out
