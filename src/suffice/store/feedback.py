"""Feedback: every change of a score in the order it was stored, and the decisions they are about.

A change is a row that stays. A learner that keeps the last `seq` it has read gets each change once,
replaced scores too, whatever is killed when: see `feedback_since`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from msgspec import DecodeError

from suffice.store import schema
from suffice.store.database import Database, count
from suffice.store.rows import mended, predictions_of, unpacked
from suffice.types import Feedback, FeedbackEvent

_PAGE = 1000
_FRESH_S = 2.0  # a decision this young may still be in the memory of the worker that made it
_WRITTEN_WITHIN_S = 0.15
UPSTREAM_ERROR = "implicit:upstream_error"  # about the first model tried, not the one that answered

_log = logging.getLogger("suffice.store")

_d, _f = schema.decisions, schema.feedback
_before = _f.alias("before")

_SCORED = (
    _d.c.id,
    _d.c.created_s,
    _d.c.route,
    _d.c.chosen,
    _d.c.model,
    _d.c.policy,
    _d.c.policy_version,
    _d.c.snapshot,
    _d.c.basis,
    _d.c.propensity,
    _d.c.difficulty,
    _d.c.cost_usd,
    _d.c.latency_s,
    _d.c.status,
    _d.c.session,
    _d.c.key_id,
    _d.c.features,
    _d.c.features_schema,
    _d.c.embedding,
    _d.c.detail,
    _f.c.seq,
    _f.c.score,
    _f.c.weight,
    _f.c.source,
    _f.c.kind,
    _f.c.key,
    _f.c.created_s.label("scored_s"),
)

_REPLACE = sa.text("UPDATE feedback SET replaced_by = :new WHERE seq = :old")


class FeedbackTable(Database):
    """The feedback part of the store."""

    def _settle(self, decision_ids: set[str]) -> None:
        """Write those of the decisions that wait in memory. Raises StoreError where one cannot be
        written now."""
        raise NotImplementedError

    def flush(self, timeout_s: float = 10.0) -> bool:
        raise NotImplementedError

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def add_feedback(self, feedback: Feedback, *, key_id: str | None = None) -> bool:
        """Store a score; the same (decision, source, key) again replaces it. False: no such
        decision, or none of the key `key_id` (None = whoever asks may score all).

        Raises StoreError where the store is down: feedback is never taken and dropped.
        """
        return self.add_feedback_batch((feedback,), key_id=key_id)[0]

    def add_feedback_batch(
        self, batch: Sequence[Feedback], *, key_id: str | None = None
    ) -> list[bool]:
        """`add_feedback` for many in one transaction: all that can be stored, or StoreError."""
        self._settle({f.decision_id for f in batch})
        stored = self._store(batch, key_id)
        late = [i for i, done in enumerate(stored) if not done and _fresh(batch[i].decision_id)]
        if late:  # another worker's, which writes it in a moment
            time.sleep(_WRITTEN_WITHIN_S)
            again = self._store([batch[i] for i in late], key_id)
            for i, done in zip(late, again, strict=True):
                stored[i] = done
        return stored

    def _store(self, batch: Sequence[Feedback], key_id: str | None) -> list[bool]:
        ids = {f.decision_id for f in batch if _possible(f.decision_id)}
        with self._writing("take feedback") as connection:
            query = sa.select(_d.c.id).where(_d.c.id.in_(ids))
            if key_id is not None:
                query = query.where(_d.c.key_id == key_id)
            # A decision is never removed, so this may be read before the transaction's first write.
            known = {row[0] for row in connection.execute(query).all()}
            latest = {(f.decision_id, f.source, f.key or ""): f for f in batch}
            given = {at: f for at, f in latest.items() if at[0] in known}
            if given:
                _write(connection, given)
        return [f.decision_id in known for f in batch]

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def feedback(self, decision_id: str) -> Sequence[dict[str, Any]]:
        """What counts now for a decision, oldest first."""
        f = _f
        return self._rows(
            sa.select(
                f.c.score,
                f.c.verdict,
                f.c.source,
                f.c.kind,
                f.c.weight,
                f.c.comment,
                f.c.created_s,
                f.c.key,
            )
            .where(f.c.decision_id == decision_id, f.c.replaced_by.is_(None))
            .order_by(f.c.created_s, f.c.seq)
        )

    def feedback_since(
        self, seq: int, limit: int = _PAGE, *, route: str | None = None
    ) -> list[FeedbackEvent]:
        """Changes of scores after `seq`, at most `limit`, in the order they were stored.

        Numbers become visible in their order, so a reader that goes on from the last `seq` it got
        misses none and gets none twice. A decision that cannot be read is logged and left out.
        """
        query = (
            sa.select(
                *_SCORED,
                _f.c.previous_seq,
                _before.c.score.label("previous_score"),
                _before.c.weight.label("previous_weight"),
            )
            .select_from(_f)
            .join(_d, _d.c.id == _f.c.decision_id)
            .outerjoin(_before, _before.c.seq == _f.c.previous_seq)
            .order_by(_f.c.seq)
            .limit(limit)
        )
        if route is not None:
            query = query.where(_d.c.route == route)
        while True:
            rows = self._rows(query.where(_f.c.seq > seq))
            found = [label for row in rows if (label := _readable(row)) is not None]
            if found or len(rows) < limit:
                return found
            seq = rows[-1]["seq"]  # a whole page that cannot be read is not the end

    def training_rows(
        self,
        *,
        since_s: float | None = None,
        route: str | None = None,
        unlabelled: bool = False,
        on_corrupt: Callable[[str, str], None] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Decisions with each score that counts now, oldest decision first: the columns of
        `decisions` that learning needs, `predictions` (a list of types.Prediction), the vectors as
        bytes (features float32, embedding float16, little endian), and seq, score, weight, source,
        kind, key, scored_s.

        unlabelled: also decisions nobody has scored; their score is None. on_corrupt(id, why): told
        of each row that cannot be read, which is left out; None = it is logged.
        """
        self.flush()
        seq = sa.func.coalesce(_f.c.seq, 0)
        on = sa.and_(_f.c.decision_id == _d.c.id, _f.c.replaced_by.is_(None))
        query = (
            sa.select(*_SCORED)
            .select_from(_d)
            .join(_f, on, isouter=unlabelled)
            .order_by(_d.c.id, seq)
            .limit(_PAGE)
        )
        if since_s is not None:
            query = query.where(_d.c.created_s >= since_s)
        if route is not None:
            query = query.where(_d.c.route == route)
        tell = on_corrupt or _warn
        page = query
        while True:  # page by page: whoever reads may take long, and write meanwhile
            rows = self._rows(page)
            for row in rows:
                last, at = row["id"], row["seq"] or 0
                try:
                    row["predictions"] = list(predictions_of(row.pop("detail")).predictions)
                except (DecodeError, ValueError) as error:
                    tell(row["id"], str(error))
                    continue
                yield row
            if len(rows) < _PAGE:
                return
            page = query.where(_d.c.id >= last, sa.or_(_d.c.id > last, seq > at))


def _warn(decision_id: str, why: str) -> None:
    _log.warning("decision %s cannot be read and is left out: %s", decision_id, why)


def _possible(decision_id: str) -> bool:
    """Can a decision have this id at all? PostgreSQL fails on texts that it cannot hold."""
    return 0 < len(decision_id) <= 64 and decision_id.isascii() and decision_id.isprintable()


def _fresh(decision_id: str) -> bool:
    """Was a decision of this id made just now? Ids begin with their time in milliseconds."""
    try:
        made_s = int(decision_id.removeprefix("dec_")[:11], 16) / 1e3
    except ValueError:
        return False
    return -_FRESH_S < time.time() - made_s < _FRESH_S


def _write(connection: sa.Connection, given: dict[tuple[str, str, str], Feedback]) -> None:
    """One row for each change. `count` comes first: it keeps every other writer out."""
    seq = count(connection, "feedback", len(given)) - len(given)
    ids = {at[0] for at in given}
    current = {
        (row.decision_id, row.source, row.key): row
        for row in connection.execute(
            sa.select(_f).where(_f.c.decision_id.in_(ids), _f.c.replaced_by.is_(None))
        ).all()
    }
    now_s = time.time()
    replaced, fresh = [], []
    for at, f in given.items():
        before = current.get(at)
        said = (f.score, f.verdict, f.weight, f.kind, f.comment)
        if before is not None:
            if said == (before.score, before.verdict, before.weight, before.kind, before.comment):
                continue  # sent again: nothing has changed
            replaced.append({"old": before.seq, "new": seq + 1})
        seq += 1
        fresh.append(
            {
                "seq": seq,
                "decision_id": at[0],
                "source": mended(at[1]),
                "key": mended(at[2]),
                "score": f.score,
                "verdict": f.verdict,
                "weight": f.weight,
                "kind": f.kind,
                "comment": mended(f.comment),
                "created_s": f.created_s or now_s,
                "previous_seq": None if before is None else before.seq,
            }
        )
    if replaced:
        connection.execute(_REPLACE, replaced)
    if fresh:
        connection.execute(sa.insert(_f), fresh)


def _readable(row: dict[str, Any]) -> FeedbackEvent | None:
    try:
        return _label(row)
    except (DecodeError, ValueError) as error:
        _warn(row["id"], str(error))
        return None


def _label(given: dict[str, Any]) -> FeedbackEvent:
    row = dict(given)
    row["decision_id"] = row.pop("id")
    row["predictions"] = predictions_of(row.pop("detail")).predictions
    row["signals"] = unpacked(row.pop("features"), "<f4")
    row["embedding"] = unpacked(row["embedding"], "<f2")
    row["feedback_at_s"] = row.pop("scored_s")
    row["scored_model"] = row["chosen"] if row["source"] == UPSTREAM_ERROR else row["model"]
    return FeedbackEvent(**row)
