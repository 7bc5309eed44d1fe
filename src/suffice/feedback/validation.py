"""Feedback as it is given -> Feedback. Bad input is refused here, naming the field."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from suffice.errors import BadRequestError, UnprocessableError
from suffice.types import Feedback

BATCH = 1000  # scores in one batch
AHEAD_S = 300.0  # how far a client's clock may be ahead of ours
_VERDICTS: dict[str, float] = {"good": 1.0, "bad": 0.0}
_FIELDS = ("decision_id", "score", "verdict", "source", "comment", "key", "created")
_LONGEST = {"decision_id": 256, "source": 64, "key": 128, "comment": 16_384}


def checked(given: Mapping[str, Any], now_s: float) -> Feedback:
    """One score with its fields checked.

    given: decision_id; exactly one of score (a number in [0, 1]) and verdict ("good" or "bad"); and
    optional source, comment, key, created (unix seconds or ISO 8601, without a zone UTC; at most
    five minutes after `now_s`). None counts as not given.

    Raises BadRequest where a field is missing or of a wrong type, Unprocessable where it is out of
    range. `param` names the field.
    """
    there = {k: v for k, v in given.items() if v is not None}
    for name in there:
        if name not in _FIELDS:
            raise BadRequestError(
                f"`{name}`: There is no such field. Known: {', '.join(_FIELDS)}.",
                param=name,
                code="invalid_value",
            )
    texts = {name: _text(there[name], name) for name in _LONGEST if name in there}
    if "decision_id" not in texts:
        raise _wrong("decision_id", "Expected the id of a decision, got none")
    score, verdict = _judged(there.get("score"), there.get("verdict"))
    source = texts.get("source", "user")
    if source.startswith("implicit:"):
        raise _outside("source", "names that begin with 'implicit:' are the gateway's own")
    if source == "audit":
        raise _outside("source", "'audit' is the gateway's own")
    return Feedback(
        decision_id=texts["decision_id"],
        score=score,
        verdict=verdict,
        source=source,
        comment=texts.get("comment"),
        key=texts.get("key"),
        created_s=_created_s(there.get("created"), now_s),
    )


def _judged(score: Any, verdict: Any) -> tuple[float, Literal["good", "bad"] | None]:
    if score is not None and verdict is not None:
        raise _outside("score", "Expected either `score` or `verdict`, got both")
    if verdict is not None:
        if not isinstance(verdict, str):
            raise _wrong("verdict", f"Expected 'good' or 'bad', got {_shown(verdict)}")
        if verdict not in _VERDICTS:
            raise _outside("verdict", f"Expected 'good' or 'bad', got {_shown(verdict)}")
        return _VERDICTS[verdict], verdict  # type: ignore[return-value]
    if score is None:
        raise _wrong("score", "Expected a number from 0 to 1, or `verdict` instead; got neither")
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        raise _wrong("score", f"Expected a number from 0 to 1, got {_shown(score)}")
    if not 0.0 <= score <= 1.0:  # also catches NaN
        raise _outside("score", f"Expected a number from 0 to 1, got {_shown(score)}")
    return float(score), None


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _wrong(name, f"Expected text, got {_shown(value)}")
    longest = _LONGEST[name]
    if len(value) > longest or (not value and name != "comment"):
        least = 0 if name == "comment" else 1
        raise _outside(name, f"Expected {least} to {longest} characters, got {len(value)}")
    if "\0" in value:
        raise _outside(name, "Expected text without zero bytes")
    return value


def _created_s(value: Any, now_s: float) -> float:
    if value is None:
        return now_s
    if isinstance(value, str):
        try:
            when = dt.datetime.fromisoformat(value)
        except ValueError:
            raise _outside(
                "created", f"Expected unix seconds or ISO 8601, got {_shown(value)}"
            ) from None
        if when.tzinfo is None:
            when = when.replace(tzinfo=dt.UTC)
        at_s = (when - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)).total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        at_s = float(value)
    else:
        raise _wrong("created", f"Expected unix seconds or ISO 8601, got {_shown(value)}")
    if not math.isfinite(at_s) or at_s < 0.0:
        raise _outside("created", f"Expected a time since 1970, got {_shown(value)}")
    if at_s > now_s + AHEAD_S:
        hint = "; these look like milliseconds" if at_s > 1e11 else ""
        raise _outside("created", f"{_shown(value)} lies in the future{hint}")
    return at_s


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _wrong(field: str, what: str) -> BadRequestError:
    return BadRequestError(f"`{field}`: {what}.", param=field, code="invalid_value")


def _outside(field: str, what: str) -> UnprocessableError:
    return UnprocessableError(f"`{field}`: {what}.", param=field)


def checked_batch(
    batch: Sequence[Mapping[str, Any]], now_s: float
) -> list[Feedback | dict[str, Any]]:
    """Each item `checked`, or {"decision_id", "status": "invalid", "message", "param"}.

    Raises Unprocessable for a batch that is empty or too long.
    """
    if not 1 <= len(batch) <= BATCH:
        raise _outside("feedback", f"Expected 1 to {BATCH} scores, got {len(batch)}")
    return [_checked_item(item, now_s) for item in batch]


def _checked_item(item: Any, now_s: float) -> Feedback | dict[str, Any]:
    if not isinstance(item, Mapping):
        return {
            "decision_id": None,
            "status": "invalid",
            "message": f"Expected an object, got {_shown(item)}.",
            "param": None,
        }
    try:
        return checked(item, now_s)
    except (BadRequestError, UnprocessableError) as error:
        return {
            "decision_id": item.get("decision_id"),
            "status": "invalid",
            "message": str(error),
            "param": error.param,
        }
