"""Leases of background work, and the states of learners with their cursors."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import sqlalchemy as sa

from suffice.store import schema
from suffice.store.engine import Database
from suffice.store.records import LearnerState

_l, _c, _s = schema.leases, schema.learner_cursors, schema.learner_states

# One statement, so that exactly one of two workers that ask at the same time gets the lease.
_ACQUIRE = sa.text(
    "INSERT INTO leases (name, owner, expires_s) VALUES (:name, :owner, :expires_s)"
    " ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, expires_s = excluded.expires_s"
    " WHERE leases.owner = excluded.owner OR leases.expires_s <= :now_s"
)
_ADD_CURSOR = sa.text(
    "INSERT INTO learner_cursors (route, through_seq, updated_s) VALUES (:route, 0, :now_s)"
    " ON CONFLICT DO NOTHING"
)
_SAVE_STATE = sa.text(
    "INSERT INTO learner_states (route, name, state, through_seq)"
    " VALUES (:route, :name, :state, :through_seq)"
    " ON CONFLICT (route, name) DO UPDATE SET"
    " state = excluded.state, through_seq = excluded.through_seq"
)


class SqlLeases:
    """Leases over one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def acquire(self, name: str, owner: str, ttl_s: float, now_s: float) -> bool:
        """Take or extend a lease.

        A process that holds a lease without knowing that it has expired does no harm, because
        states are saved by compare-and-set.

        Args:
            name: What the lease is for.
            owner: Unique to the process.
            ttl_s: The lease expires after this many seconds.
            now_s: Unix time. Clocks of machines that share a store may differ by much less than
                `ttl_s`.

        Returns:
            False if another owner holds the lease.
        """
        values = {"name": name, "owner": owner, "expires_s": now_s + ttl_s, "now_s": now_s}
        with self._database.write("take a lease") as connection:
            return connection.execute(_ACQUIRE, values).rowcount == 1

    def release(self, name: str, owner: str) -> bool:
        """Give a lease back. Returns False if the owner did not hold it."""
        with self._database.write("release a lease") as connection:
            is_holder = sa.and_(_l.c.name == name, _l.c.owner == owner)
            return connection.execute(sa.delete(_l).where(is_holder)).rowcount == 1


class SqlLearnerStates:
    """LearnerStates over one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self, name: str, keys: Collection[str] | None = None) -> LearnerState:
        """The state saved last; empty, with cursor 0, if there is none.

        Args:
            name: Of the learner; for the learner of a route, the route's name.
            keys: The parts to read, since some are a megabyte. None: all.

        Returns:
            The state, with the cursor that it belongs to.
        """
        of_learner = _s.c.route == _c.c.route
        wanted = of_learner if keys is None else sa.and_(of_learner, _s.c.name.in_(keys))
        rows = self._database.rows(  # one statement, so that cursor and states belong together
            sa.select(_c.c.through_seq, _s.c.name, _s.c.state)
            .select_from(_c)
            .outerjoin(_s, wanted)
            .where(_c.c.route == name)
        )
        if not rows:
            return LearnerState()
        states = {r["name"]: bytes(r["state"]) for r in rows if r["name"] is not None}
        return LearnerState(int(rows[0]["through_seq"]), states)

    def save(
        self,
        name: str,
        states: Mapping[str, bytes],
        cursor: int,
        *,
        expected_cursor: int,
        now_s: float,
    ) -> bool:
        """Save states and cursor in one transaction, if the cursor was not moved meanwhile.

        So a learner that is killed, or whose lease expired unnoticed, neither loses nor
        double-counts feedback.

        Args:
            name: Of the learner.
            states: The parts to save. Parts that are not given are not changed.
            cursor: All feedback up to this sequence number is contained in the states.
            expected_cursor: The cursor that the states were loaded with.
            now_s: Unix time.

        Returns:
            False if another learner moved the cursor; nothing was saved. Load again.
        """
        with self._database.write("keep what was learned") as connection:
            connection.execute(_ADD_CURSOR, {"route": name, "now_s": now_s})
            moved = connection.execute(
                sa.update(_c)
                .where(_c.c.route == name, _c.c.through_seq == expected_cursor)
                .values(through_seq=cursor, updated_s=now_s)
            )
            if moved.rowcount != 1:
                return False
            if states:
                connection.execute(
                    _SAVE_STATE,
                    [
                        {"route": name, "name": key, "state": state, "through_seq": cursor}
                        for key, state in states.items()
                    ],
                )
        return True
