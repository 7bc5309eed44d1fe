"""The policy registry: immutable snapshots, and which of them each route serves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from suffice.errors import ArtifactError, UsageError
from suffice.store import schema
from suffice.store.engine import Database, next_sequence
from suffice.store.protocols import Row
from suffice.store.records import PolicySnapshot, Promotion
from suffice.store.snapshot import verify_snapshot

_s, _p, _c = schema.snapshots, schema.promotions, schema.counters

_PUT = sa.text(
    f"INSERT INTO snapshots ({', '.join(c.name for c in _s.c)})"
    f" VALUES ({', '.join(':' + c.name for c in _s.c)}) ON CONFLICT DO NOTHING"
)


class SqlRegistry:
    """PolicyRegistry over one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, snapshot: PolicySnapshot) -> bool:
        """Store a snapshot.

        Returns:
            False if the version exists already; it is not changed.

        Raises:
            ArtifactError: Digest or version do not belong to the content.
            StoreError: The write failed.
        """
        verify_snapshot(snapshot)
        row = msgspec.structs.asdict(snapshot)
        row["card"] = msgspec.json.encode(snapshot.card).decode()
        with self._database.write("keep a snapshot") as connection:
            result = connection.execute(_PUT, row)
        return result.rowcount == 1

    def get(self, version: str) -> PolicySnapshot:
        """The snapshot of that version.

        Returns:
            The snapshot, with content that matches its digest.

        Raises:
            ArtifactError: It does not exist, or it was changed in the database.
        """
        rows = self._database.rows(sa.select(_s).where(_s.c.version == version))
        if not rows:
            raise ArtifactError(
                f"There is no snapshot {version!r}.", remedy="`suffice snapshots` lists them."
            )
        row = rows[0]
        try:
            row["card"] = msgspec.json.decode(row["card"])
        except msgspec.DecodeError as error:
            raise ArtifactError(f"Snapshot {version}: its card is damaged: {error}.") from None
        snapshot = PolicySnapshot(**row)
        verify_snapshot(snapshot)
        return snapshot

    def snapshots(self, route: str | None = None) -> list[Row]:
        """All columns but the content, newest first; `bytes` is the size of the content."""
        columns = [c for c in _s.c if c.name != "content"]
        query = sa.select(*columns, sa.func.length(_s.c.content).label("bytes"))
        query = query.order_by(_s.c.created_s.desc(), _s.c.version)
        if route is not None:
            query = query.where(_s.c.route == route)
        rows = self._database.rows(query)
        for row in rows:
            row["card"] = msgspec.json.decode(row["card"])
        return rows

    def current(self, route: str) -> str | None:
        """The version that the route serves. None: the configured policy."""
        last = self.promotions(route, 1)
        return last[0].version if last else None

    def promotions(self, route: str, limit: int = 100) -> list[Promotion]:
        """The route's history, newest first."""
        query = sa.select(_p).where(_p.c.route == route)
        rows = self._database.rows(query.order_by(_p.c.generation.desc()).limit(limit))
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
        """Make a snapshot the one that the route serves. Promoting it twice changes nothing.

        Args:
            route: The route.
            version: The snapshot's version.
            by: Who promotes it.
            now_s: Unix time.
            forced: Promoted although the evidence did not suffice.
            evidence: The figures that it was decided on.

        Returns:
            The new entry of the route's history, or the last one if it is current already.

        Raises:
            ArtifactError: There is no such snapshot, or it is damaged.
            UsageError: The snapshot belongs to another route.
        """
        snapshot = self.get(version)
        if snapshot.route != route:
            raise UsageError(
                f"Snapshot {version} was learned for route {snapshot.route!r}, not {route!r}.",
                remedy=f"Promote it for {snapshot.route!r}.",
            )
        with self._database.write("promote a snapshot") as connection:
            # First, because it locks out every other promotion until this one is stored.
            generation = next_sequence(connection, "generation")
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
            _insert(connection, entry)
        return entry

    def rollback(self, route: str, *, by: str, now_s: float) -> Promotion:
        """Undo the route's last promotion that is not undone yet.

        Returns:
            The new entry of the route's history.

        Raises:
            UsageError: The route serves its configured policy.
        """
        with self._database.write("roll back") as connection:
            generation = next_sequence(connection, "generation")
            served: list[str | None] = [None]
            for promotion in _history(connection, route):
                if promotion.kind == "promote":
                    served.append(promotion.version)
                else:
                    served.pop()
            if len(served) == 1:
                raise UsageError(
                    f"Route {route!r} uses its configured policy; there is nothing to undo."
                )
            entry = Promotion(
                generation=generation,
                route=route,
                version=served[-2],
                previous=served[-1],
                promoted_at_s=now_s,
                by=by[:128],
                kind="rollback",
            )
            _insert(connection, entry)
        return entry

    def generation(self) -> int:
        """A number that rises with every promotion and rollback.

        It is one row, so that every worker can read it every second.

        Returns:
            0 if no route was ever promoted.
        """
        rows = self._database.rows(sa.select(_c.c.value).where(_c.c.name == "generation"))
        return int(rows[0]["value"])


def _promotion(row: Row) -> Promotion:
    evidence = row["evidence"]
    row["evidence"] = None if evidence is None else msgspec.json.decode(evidence)
    row["by"] = row.pop("made_by")
    row["promoted_at_s"] = row.pop("at_s")
    row["forced"] = bool(row["forced"])
    return Promotion(**row)


def _history(connection: sa.Connection, route: str) -> list[Promotion]:
    """The route's promotions and rollbacks, oldest first."""
    query = sa.select(_p).where(_p.c.route == route).order_by(_p.c.generation)
    return [_promotion(dict(row)) for row in connection.execute(query).mappings()]


def _insert(connection: sa.Connection, promotion: Promotion) -> None:
    row = msgspec.structs.asdict(promotion)
    row["made_by"] = row.pop("by")  # `by` is a keyword of SQL
    row["at_s"] = row.pop("promoted_at_s")
    if promotion.evidence is not None:
        row["evidence"] = msgspec.json.encode(promotion.evidence).decode()
    connection.execute(sa.insert(_p), row)
