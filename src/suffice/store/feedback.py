"""Feedback: every change of a decision's score, in the order in which the changes were stored.

A change is a row that is never deleted. A reader that keeps the last `seq` it has read gets each
change exactly once, replaced scores included, whichever process is killed when.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

import sqlalchemy as sa
from msgspec import DecodeError

from suffice.errors import StoreError
from suffice.store import schema
from suffice.store.engine import Database, next_sequence
from suffice.store.protocols import Row
from suffice.store.records import FeedbackEvent
from suffice.store.rows import predictions_of, sanitize_value, unpack_vector
from suffice.store.spool import BATCH
from suffice.types import Feedback

_PAGE = 1000
_RECENT_S = 5.0  # a younger decision may still be in the memory of the worker that made it
_RETRY_S = 0.1  # between two looks for a recent decision
MAX_PENDING_FEEDBACK = 10_000  # queued scores; when there are more, the oldest are dropped
UPSTREAM_ERROR = "implicit:upstream_error"  # about the first model tried, not the one that answered

_log = logging.getLogger("suffice.store")

_d, _f = schema.decisions, schema.feedback
_previous = _f.alias("previous")

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


class SqlFeedback:
    """FeedbackLog over one database.

    Args:
        database: Where the scores are stored.
        ensure_written: Writes those of the decisions that wait in memory. It raises StoreError if
            one of them cannot be written now.
    """

    def __init__(self, database: Database, ensure_written: Callable[[set[str]], None]) -> None:
        self._database = database
        self._ensure_written = ensure_written
        self._pending: deque[Feedback] = deque()
        self.lost = 0

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def append(self, feedback: Sequence[Feedback]) -> None:
        """Queue scores of decisions that were appended before. Never blocks, never raises.

        This is for implicit feedback. While the database is down the scores wait in memory only,
        and a score of an unknown decision is dropped.
        """
        self._pending.extend(feedback)
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        while len(self._pending) > MAX_PENDING_FEEDBACK:
            self._pending.popleft()
            self.lost += 1

    @property
    def pending(self) -> int:
        """Number of queued scores."""
        return len(self._pending)

    def write_pending(self, n: int) -> None:
        """Write the `n` oldest queued scores. Keeps them queued and raises StoreError if it fails."""
        batch = [self._pending.popleft() for _ in range(min(n, len(self._pending)))]
        try:
            for i in range(0, len(batch), BATCH):
                self._store(batch[i : i + BATCH], None)
        except StoreError:
            self._pending.extendleft(reversed(batch))  # storing a score twice changes nothing
            self._drop_oldest()
            raise

    def warm_up(self) -> None:
        """Compile and run the statement that looks decisions up. Writes nothing."""
        self._store((), None)

    def add(self, feedback: Feedback, *, key_id: str | None = None) -> bool:
        """Store a score; the same (decision, source, key) again replaces it.

        Args:
            feedback: The score.
            key_id: Only decisions of this API key may be scored. None: all.

        Returns:
            False if there is no such decision.

        Raises:
            StoreError: The score was not stored. Feedback is never accepted and then dropped.
        """
        return self.add_batch((feedback,), key_id=key_id)[0]

    def add_batch(self, batch: Sequence[Feedback], *, key_id: str | None = None) -> list[bool]:
        """`add` for many scores in one transaction: all of them are stored, or StoreError."""
        self._ensure_written({f.decision_id for f in batch})
        stored = self._store(batch, key_id)
        # Another worker may have made the decision and writes it within moments.
        while recent := [
            i for i, done in enumerate(stored) if not done and _is_recent(batch[i].decision_id)
        ]:
            time.sleep(_RETRY_S)
            retried = self._store([batch[i] for i in recent], key_id)
            for i, done in zip(recent, retried, strict=True):
                stored[i] = done
        return stored

    def _store(self, batch: Sequence[Feedback], key_id: str | None) -> list[bool]:
        ids = {f.decision_id for f in batch if _is_valid_id(f.decision_id)}
        with self._database.write("take feedback") as connection:
            query = sa.select(_d.c.id).where(_d.c.id.in_(ids))
            if key_id is not None:
                query = query.where(_d.c.key_id == key_id)
            # Decisions are not removed meanwhile, so reading before the first write is safe.
            known = {row[0] for row in connection.execute(query).all()}
            latest = {(f.decision_id, f.source, f.key or ""): f for f in batch}
            changes = {key: f for key, f in latest.items() if key[0] in known}
            if changes:
                _write(connection, changes)
        return [f.decision_id in known for f in batch]

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def current(self, decision_id: str) -> list[Row]:
        """The scores that count now for a decision, oldest first."""
        return self._database.rows(
            sa.select(
                _f.c.score,
                _f.c.verdict,
                _f.c.source,
                _f.c.kind,
                _f.c.weight,
                _f.c.comment,
                _f.c.created_s,
                _f.c.key,
            )
            .where(_f.c.decision_id == decision_id, _f.c.replaced_by.is_(None))
            .order_by(_f.c.created_s, _f.c.seq)
        )

    def events_since(
        self, seq: int, limit: int = _PAGE, *, route: str | None = None
    ) -> list[FeedbackEvent]:
        """Changes of scores after `seq`, at most `limit`, in the order in which they were stored.

        Numbers become visible in their order. So a reader that continues from the last `seq` it
        got misses no change and gets none twice. A row that cannot be read is logged and skipped.

        Returns:
            The changes, fewer than `limit` only if there are no more.
        """
        query = (
            sa.select(
                *_SCORED,
                _f.c.previous_seq,
                _previous.c.score.label("previous_score"),
                _previous.c.weight.label("previous_weight"),
            )
            .select_from(_f)
            .join(_d, _d.c.id == _f.c.decision_id)
            .outerjoin(_previous, _previous.c.seq == _f.c.previous_seq)
            .order_by(_f.c.seq)
            .limit(limit)
        )
        if route is not None:
            query = query.where(_d.c.route == route)
        while True:
            rows = self._database.rows(query.where(_f.c.seq > seq))
            events = [event for row in rows if (event := _event_or_none(row)) is not None]
            if events or len(rows) < limit:
                return events
            seq = rows[-1]["seq"]  # every row of a full page was unreadable: try the next page


def _is_valid_id(decision_id: str) -> bool:
    """Whether a decision can have this id. PostgreSQL fails on texts that it cannot store."""
    return 0 < len(decision_id) <= 64 and decision_id.isascii() and decision_id.isprintable()


def _is_recent(decision_id: str) -> bool:
    """Whether a decision of this id was made just now. Ids begin with their time in milliseconds."""
    try:
        made_s = int(decision_id.removeprefix("dec_")[:11], 16) / 1e3
    except ValueError:
        return False
    return -_RECENT_S < time.time() - made_s < _RECENT_S


def _write(connection: sa.Connection, changes: dict[tuple[str, str, str], Feedback]) -> None:
    """Insert one row per change. `next_sequence` comes first: it locks out all other writers."""
    seq = next_sequence(connection, "feedback", len(changes)) - len(changes)
    ids = {decision_id for decision_id, _, _ in changes}
    current = {
        (row.decision_id, row.source, row.key): row
        for row in connection.execute(
            sa.select(_f).where(_f.c.decision_id.in_(ids), _f.c.replaced_by.is_(None))
        ).all()
    }
    now_s = time.time()
    replaced, inserted = [], []
    for (decision_id, source, key), f in changes.items():
        previous = current.get((decision_id, source, key))
        content = (f.score, f.verdict, f.weight, f.kind, f.comment)
        if previous is not None:
            p = previous
            if content == (p.score, p.verdict, p.weight, p.kind, p.comment):
                continue  # sent again: nothing has changed
            replaced.append({"old": p.seq, "new": seq + 1})
        seq += 1
        inserted.append(
            {
                "seq": seq,
                "decision_id": decision_id,
                "source": sanitize_value(source),
                "key": sanitize_value(key),
                "score": f.score,
                "verdict": f.verdict,
                "weight": f.weight,
                "kind": f.kind,
                "comment": sanitize_value(f.comment),
                "created_s": f.created_s or now_s,
                "previous_seq": None if previous is None else previous.seq,
            }
        )
    if replaced:
        connection.execute(_REPLACE, replaced)
    if inserted:
        connection.execute(sa.insert(_f), inserted)


def _event_or_none(row: Row) -> FeedbackEvent | None:
    try:
        return _event(row)
    except (DecodeError, ValueError) as error:
        _log.warning("decision %s cannot be read and is skipped: %s", row["id"], error)
        return None


def _event(row: Row) -> FeedbackEvent:
    fields = dict(row)
    fields["decision_id"] = fields.pop("id")
    fields["predictions"] = predictions_of(fields.pop("detail")).predictions
    fields["signals"] = unpack_vector(fields.pop("features"), "<f4")
    fields["embedding"] = unpack_vector(fields["embedding"], "<f2")
    first_failed = fields["source"] == UPSTREAM_ERROR
    fields["feedback_at_s"] = fields.pop("scored_s")
    fields["scored_model"] = fields["chosen"] if first_failed else fields["model"]
    return FeedbackEvent(**fields)
