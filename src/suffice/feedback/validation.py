"""Validates feedback from clients: plain fields in, `Feedback` or an error that names the field out."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NoReturn

from suffice.errors import BadRequestError, UnprocessableError
from suffice.types import Feedback

MAX_BATCH = 1000  # scores in one batch
MAX_CLOCK_SKEW_S = 300.0  # how far a client's clock may be ahead of ours
Verdict = Literal["good", "bad"]
_VERDICTS: dict[object, tuple[float, Verdict]] = {"good": (1.0, "good"), "bad": (0.0, "bad")}
_FIELDS = ("decision_id", "score", "verdict", "source", "comment", "key", "created")
_MAX_CHARS = {"decision_id": 256, "source": 64, "key": 128, "comment": 16_384}
_MAX_SHOWN_CHARS = 60  # of a value in an error message


def validate_feedback(payload: Mapping[str, object], now_s: float) -> Feedback:
    """Validate one score.

    Args:
        payload: `decision_id`; exactly one of `score` (a number in [0, 1]) and `verdict` ("good" or
            "bad"); optional `source`, `comment`, `key` and `created` (unix seconds, or ISO 8601
            which is UTC without a zone). None counts as missing.
        now_s: Unix time. `created` may be at most five minutes later.

    Returns:
        The score; `created_s` is `now_s` if the client gave no time.

    Raises:
        BadRequestError: A field is missing, unknown or of a wrong type. `param` names it.
        UnprocessableError: A value is out of range. `param` names the field.
    """
    fields = {k: v for k, v in payload.items() if v is not None}
    for name in fields:
        if name not in _FIELDS:
            raise BadRequestError(
                f"`{name}`: There is no such field. Known: {', '.join(_FIELDS)}.",
                param=name,
                code="invalid_value",
            )
    texts = {name: _parse_text(fields[name], name) for name in _MAX_CHARS if name in fields}
    if "decision_id" not in texts:
        _reject_type("decision_id", "Expected the id of a decision, got none")
    score, verdict = _parse_score(fields.get("score"), fields.get("verdict"))
    source = texts.get("source", "user")
    if source.startswith("implicit:"):
        _reject_value("source", "names that begin with 'implicit:' are the gateway's own")
    if source == "audit":
        _reject_value("source", "'audit' is the gateway's own")
    return Feedback(
        decision_id=texts["decision_id"],
        score=score,
        verdict=verdict,
        source=source,
        comment=texts.get("comment"),
        key=texts.get("key"),
        created_s=_parse_time(fields.get("created"), now_s),
    )


def validate_batch(
    batch: Sequence[Mapping[str, object]], now_s: float
) -> list[Feedback | dict[str, object]]:
    """Validate each item of a batch; an invalid item does not affect the others.

    Args:
        batch: The items, as `validate_feedback` takes them.
        now_s: Unix time.

    Returns:
        One result per item, in their order: the feedback, or why it is invalid as
        {"decision_id", "status": "invalid", "message", "param"}.

    Raises:
        UnprocessableError: The batch is empty or too long.
    """
    if not 1 <= len(batch) <= MAX_BATCH:
        _reject_value("feedback", f"Expected 1 to {MAX_BATCH} scores, got {len(batch)}")
    return [_validate_item(item, now_s) for item in batch]


def _validate_item(item: object, now_s: float) -> Feedback | dict[str, object]:
    if not isinstance(item, Mapping):
        return {
            "decision_id": None,
            "status": "invalid",
            "message": f"Expected an object, got {_shorten(item)}.",
            "param": None,
        }
    try:
        return validate_feedback(item, now_s)
    except (BadRequestError, UnprocessableError) as error:
        return {
            "decision_id": item.get("decision_id"),
            "status": "invalid",
            "message": str(error),
            "param": error.param,
        }


def _parse_score(score: object, verdict: object) -> tuple[float, Verdict | None]:
    if score is not None and verdict is not None:
        _reject_value("score", "Expected either `score` or `verdict`, got both")
    if verdict is not None:
        if not isinstance(verdict, str):
            _reject_type("verdict", f"Expected 'good' or 'bad', got {_shorten(verdict)}")
        if verdict not in _VERDICTS:
            _reject_value("verdict", f"Expected 'good' or 'bad', got {_shorten(verdict)}")
        return _VERDICTS[verdict]
    if score is None:
        _reject_type("score", "Expected a number from 0 to 1, or `verdict` instead; got neither")
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        _reject_type("score", f"Expected a number from 0 to 1, got {_shorten(score)}")
    if not 0.0 <= score <= 1.0:  # also catches NaN
        _reject_value("score", f"Expected a number from 0 to 1, got {_shorten(score)}")
    return float(score), None


def _parse_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        _reject_type(name, f"Expected text, got {_shorten(value)}")
    longest = _MAX_CHARS[name]
    shortest = 0 if name == "comment" else 1
    if not shortest <= len(value) <= longest:
        _reject_value(name, f"Expected {shortest} to {longest} characters, got {len(value)}")
    if "\0" in value:
        _reject_value(name, "Expected text without zero bytes")
    return value


def _parse_time(value: object, now_s: float) -> float:
    """Unix time of `created`; `now_s` if it is missing."""
    if value is None:
        return now_s
    if isinstance(value, str):
        time_s = _parse_iso(value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        time_s = float(value)
    else:
        _reject_type("created", f"Expected unix seconds or ISO 8601, got {_shorten(value)}")
    if not math.isfinite(time_s) or time_s < 0.0:
        _reject_value("created", f"Expected a time since 1970, got {_shorten(value)}")
    if time_s > now_s + MAX_CLOCK_SKEW_S:
        hint = "; these look like milliseconds" if time_s > 1e11 else ""
        _reject_value("created", f"{_shorten(value)} is in the future{hint}")
    return time_s


def _parse_iso(value: str) -> float:
    try:
        parsed = dt.datetime.fromisoformat(value)
    except ValueError:
        _reject_value("created", f"Expected unix seconds or ISO 8601, got {_shorten(value)}")
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=dt.UTC)
    return (parsed - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)).total_seconds()


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 3] + "..."


def _reject_type(field: str, problem: str) -> NoReturn:
    raise BadRequestError(f"`{field}`: {problem}.", param=field, code="invalid_value")


def _reject_value(field: str, problem: str) -> NoReturn:
    raise UnprocessableError(f"`{field}`: {problem}.", param=field)
