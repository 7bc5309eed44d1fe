"""What a learner keeps: the lease that makes it the only one, and its state with its place in the
feedback, written together."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import sqlalchemy as sa

from suffice.store import schema
from suffice.store.database import Database
from suffice.types import LearnerState

_l, _c, _s = schema.leases, schema.learner_cursors, schema.learner_states

# One statement each, so that of two workers asking at once exactly one gets it.
_ACQUIRE = sa.text(
    "INSERT INTO leases (name, owner, expires_s) VALUES (:name, :owner, :expires_s)"
    " ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, expires_s = excluded.expires_s"
    " WHERE leases.owner = excluded.owner OR leases.expires_s <= :now_s"
)
_PLACE = sa.text(
    "INSERT INTO learner_cursors (route, through_seq, updated_s) VALUES (:route, 0, :now_s)"
    " ON CONFLICT DO NOTHING"
)
_KEEP = sa.text(
    "INSERT INTO learner_states (route, name, state, through_seq)"
    " VALUES (:route, :name, :state, :through_seq)"
    " ON CONFLICT (route, name) DO UPDATE SET"
    " state = excluded.state, through_seq = excluded.through_seq"
)


class Learner(Database):
    """The part of the store that belongs to the learner."""

    def acquire_lease(self, name: str, owner: str, ttl_s: float, now_s: float) -> bool:
        """Become the one holder of `name` for `ttl_s` seconds. True also for who holds it already.

        owner: unique to a process. now_s: unix time; clocks of machines that share the store may
        differ by much less than ttl_s. Who holds a lease without knowing that it has lapsed does no
        harm: see `save_learner_state`.
        """
        given = {"name": name, "owner": owner, "expires_s": now_s + ttl_s, "now_s": now_s}
        with self._writing("lend a lease") as connection:
            return connection.execute(_ACQUIRE, given).rowcount == 1

    def renew_lease(self, name: str, owner: str, ttl_s: float, now_s: float) -> bool:
        """Hold it for `ttl_s` seconds from now. False: it has lapsed, or is another's."""
        mine = sa.and_(_l.c.name == name, _l.c.owner == owner, _l.c.expires_s > now_s)
        with self._writing("renew a lease") as connection:
            done = connection.execute(
                sa.update(_l).where(mine).values(expires_s=now_s + ttl_s),
            )
            return done.rowcount == 1

    def release_lease(self, name: str, owner: str) -> bool:
        """Give it back. False: it was not the owner's."""
        with self._writing("release a lease") as connection:
            done = connection.execute(
                sa.delete(_l).where(_l.c.name == name, _l.c.owner == owner),
            )
            return done.rowcount == 1

    def learner_state(self, route: str, names: Collection[str] | None = None) -> LearnerState:
        """What was saved last; empty with cursor 0 where nothing was. names: read only these, since
        some are a megabyte; None = all."""
        of_route = _s.c.route == _c.c.route
        wanted = of_route if names is None else sa.and_(of_route, _s.c.name.in_(names))
        rows = self._rows(  # one statement: no save comes between cursor and states
            sa.select(_c.c.through_seq, _s.c.name, _s.c.state)
            .select_from(_c)
            .outerjoin(_s, wanted)
            .where(_c.c.route == route)
        )
        if not rows:
            return LearnerState()
        states = {r["name"]: bytes(r["state"]) for r in rows if r["name"] is not None}
        return LearnerState(int(rows[0]["through_seq"]), states)

    def save_learner_state(
        self,
        route: str,
        states: Mapping[str, bytes],
        cursor: int,
        *,
        expected_cursor: int,
        now_s: float,
    ) -> bool:
        """Keep `states` by their names, into which all feedback up to `cursor` has gone.

        States and cursor change in one transaction, and only where the cursor is still
        `expected_cursor`, the one that the states were loaded with. So a learner killed anywhere,
        or one whose lease has lapsed unnoticed, neither loses nor counts twice. Names not given
        stay as they are. False: another learner has moved on; load again.
        """
        with self._writing("keep what was learned") as connection:
            connection.execute(_PLACE, {"route": route, "now_s": now_s})
            moved = connection.execute(
                sa.update(_c)
                .where(_c.c.route == route, _c.c.through_seq == expected_cursor)
                .values(through_seq=cursor, updated_s=now_s)
            )
            if moved.rowcount != 1:
                return False
            if states:
                connection.execute(
                    _KEEP,
                    [
                        {"route": route, "name": n, "state": s, "through_seq": cursor}
                        for n, s in states.items()
                    ],
                )
        return True
