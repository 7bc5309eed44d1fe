"""Policy snapshots: kept for ever as they are, and which of them each route uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from suffice.errors import ArtifactError, UsageError
from suffice.store import schema
from suffice.store.database import Database, count
from suffice.store.versions import verify
from suffice.types import PolicySnapshot, Promotion

_s, _p, _c = schema.snapshots, schema.promotions, schema.counters

_PUT = sa.text(
    f"INSERT INTO snapshots ({', '.join(c.name for c in _s.c)})"
    f" VALUES ({', '.join(':' + c.name for c in _s.c)}) ON CONFLICT DO NOTHING"
)


class Snapshots(Database):
    """The part of the store that holds what policies have learned."""

    def put_snapshot(self, snapshot: PolicySnapshot) -> bool:
        """Keep a snapshot. False: it was there already, and stays as it is.

        Raises ArtifactError where its digest or version is not that of its bytes.
        """
        verify(snapshot)
        row = msgspec.structs.asdict(snapshot)
        row["card"] = msgspec.json.encode(snapshot.card).decode()
        with self._writing("keep a snapshot") as connection:
            done = connection.execute(_PUT, row)
        return done.rowcount == 1

    def get_snapshot(self, version: str) -> PolicySnapshot:
        """Raises ArtifactError where there is none, or it was changed in the database."""
        rows = self._rows(sa.select(_s).where(_s.c.version == version))
        if not rows:
            raise ArtifactError(
                f"There is no snapshot {version!r}.", remedy="`snapshots` lists those there are."
            )
        row = rows[0]
        try:
            row["card"] = msgspec.json.decode(row["card"])
        except msgspec.DecodeError as error:
            raise ArtifactError(f"Snapshot {version}: its card is damaged: {error}.") from None
        found = PolicySnapshot(**row)
        verify(found)
        return found

    def snapshots(self, route: str | None = None) -> list[dict[str, Any]]:
        """All but their content, newest first; `bytes` is its size."""
        columns = [c for c in _s.c if c.name != "content"]
        query = sa.select(*columns, sa.func.length(_s.c.content).label("bytes"))
        query = query.order_by(_s.c.created_s.desc(), _s.c.version)
        if route is not None:
            query = query.where(_s.c.route == route)
        rows = self._rows(query)
        for row in rows:
            row["card"] = msgspec.json.decode(row["card"])
        return rows

    def current(self, route: str) -> str | None:
        """The version that the route uses; None = the configured policy."""
        last = self.promotions(route, 1)
        return last[0].version if last else None

    def promotions(self, route: str, limit: int = 100) -> list[Promotion]:
        """The route's history, newest first."""
        rows = self._rows(
            sa.select(_p).where(_p.c.route == route).order_by(_p.c.generation.desc()).limit(limit)
        )
        return [_promotion(row) for row in rows]

    def promote(
        self,
        route: str,
        version: str,
        *,
        by: str,
        now_s: float,
        forced: bool = False,
        evidence: Mapping[str, Any] | None = None,
    ) -> Promotion:
        """Make a snapshot the one that the route uses. Promoting it again changes nothing.

        Raises ArtifactError where there is no such snapshot or it is damaged, UsageError where it
        is another route's.
        """
        found = self.get_snapshot(version)
        if found.route != route:
            raise UsageError(
                f"Snapshot {version} was learned for route {found.route!r}, not {route!r}.",
                remedy=f"Promote it for {found.route!r}.",
            )
        with self._writing("promote a snapshot") as connection:
            # First, so that nobody else promotes between the look and the leap.
            generation = count(connection, "generation")
            history = _history(connection, route)
            if history and history[-1].version == version:
                connection.rollback()
                return history[-1]
            entry = Promotion(
                generation=generation,
                route=route,
                version=version,
                previous=history[-1].version if history else None,
                promoted_at_s=now_s,
                by=by[:128],
                kind="promote",
                forced=forced,
                evidence=evidence,
            )
            _enter(connection, entry)
        return entry

    def rollback(self, route: str, *, by: str, now_s: float) -> Promotion:
        """Undo the last promotion that is not undone yet: back to what the route used before it.

        Raises UsageError where there is none.
        """
        with self._writing("roll back") as connection:
            generation = count(connection, "generation")
            history = _history(connection, route)
            used: list[str | None] = [None]
            for p in history:
                if p.kind == "promote":
                    used.append(p.version)
                else:
                    used.pop()
            if len(used) == 1:
                raise UsageError(
                    f"Route {route!r} uses its configured policy; there is nothing to undo."
                )
            entry = Promotion(
                generation=generation,
                route=route,
                version=used[-2],
                previous=used[-1],
                promoted_at_s=now_s,
                by=by[:128],
                kind="rollback",
            )
            _enter(connection, entry)
        return entry

    def generation(self) -> int:
        """A number that rises with every promotion and rollback: one look at one row, so that each
        worker can ask every second."""
        rows = self._rows(sa.select(_c.c.value).where(_c.c.name == "generation"))
        return int(rows[0]["value"])


def _promotion(fields: dict[str, Any]) -> Promotion:
    evidence = fields["evidence"]
    fields["evidence"] = None if evidence is None else msgspec.json.decode(evidence)
    fields["promoted_at_s"] = fields.pop("at_s")
    fields["by"] = fields.pop("made_by")
    fields["forced"] = bool(fields["forced"])
    return Promotion(**fields)


def _history(connection: sa.Connection, route: str) -> list[Promotion]:
    """Oldest first."""
    query = sa.select(_p).where(_p.c.route == route).order_by(_p.c.generation)
    return [_promotion(dict(row)) for row in connection.execute(query).mappings()]


def _enter(connection: sa.Connection, p: Promotion) -> None:
    row = msgspec.structs.asdict(p)
    row["at_s"] = row.pop("promoted_at_s")
    row["made_by"] = row.pop("by")  # `by` is a word of SQL
    if p.evidence is not None:
        row["evidence"] = msgspec.json.encode(p.evidence).decode()
    connection.execute(sa.insert(_p), row)
