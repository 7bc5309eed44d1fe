"""What learning needs: embeddings, every change of a score in order, snapshots, leases, states."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# SQLite knows one size of integer, and only INTEGER is its row number.
_Big = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create the tables of learning, and turn feedback into a log of changes."""
    op.add_column("decisions", sa.Column("embedding", sa.LargeBinary))
    op.add_column("decisions", sa.Column("snapshot", sa.String(64)))
    op.create_index("decisions_by_route", "decisions", ["route", "created_s", "cost_usd"])
    _counters()
    _feedback()
    _snapshots()
    _learner()


def _counters() -> None:
    op.create_table(
        "counters",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", _Big, nullable=False),
    )
    op.execute("INSERT INTO counters (name, value) VALUES ('feedback', 0), ('generation', 0)")


def _feedback() -> None:
    """Replace one row per score, changed in place, by one row per change.

    SQLite cannot drop a constraint, so the rows are copied to a new table.
    """
    op.create_table(
        "feedback_2",
        sa.Column("seq", _Big, primary_key=True, autoincrement=False),
        sa.Column("decision_id", sa.String(64), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("key", sa.String(128), nullable=False),
        sa.Column("score", sa.Float, nullable=False),
        sa.Column("verdict", sa.String(8)),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("comment", sa.Text),
        sa.Column("created_s", sa.Float, nullable=False),
        sa.Column("previous_seq", _Big),
        sa.Column("replaced_by", _Big),
    )
    op.execute(
        "INSERT INTO feedback_2"
        " (seq, decision_id, source, key, score, weight, kind, comment, created_s)"
        " SELECT id, decision_id, source, key, score, 1.0, 'explicit', comment, created_s"
        " FROM feedback"
    )
    op.drop_table("feedback")
    op.rename_table("feedback_2", "feedback")
    op.create_index(
        "feedback_current",
        "feedback",
        ["decision_id", "source", "key"],
        unique=True,
        sqlite_where=sa.text("replaced_by IS NULL"),
        postgresql_where=sa.text("replaced_by IS NULL"),
    )
    op.execute(
        "UPDATE counters SET value = (SELECT COALESCE(MAX(seq), 0) FROM feedback)"
        " WHERE name = 'feedback'"
    )


def _snapshots() -> None:
    op.create_table(
        "snapshots",
        sa.Column("version", sa.String(64), primary_key=True),
        sa.Column("route", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("created_s", sa.Float, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("parent", sa.String(64)),
        sa.Column("card", sa.Text, nullable=False),
        sa.Column("created_by", sa.String(128), nullable=False),
    )
    op.create_index("snapshots_by_route", "snapshots", ["route", "created_s"])
    op.create_table(
        "promotions",
        sa.Column("generation", _Big, primary_key=True, autoincrement=False),
        sa.Column("route", sa.String(128), nullable=False),
        sa.Column("version", sa.String(64)),
        sa.Column("previous", sa.String(64)),
        sa.Column("at_s", sa.Float, nullable=False),
        sa.Column("made_by", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("forced", sa.Boolean, nullable=False),
        sa.Column("evidence", sa.Text),
    )
    op.create_index("promotions_by_route", "promotions", ["route", "generation"])


def _learner() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("expires_s", sa.Float, nullable=False),
    )
    op.create_table(
        "learner_cursors",
        sa.Column("route", sa.String(128), primary_key=True),
        sa.Column("through_seq", _Big, nullable=False),
        sa.Column("updated_s", sa.Float, nullable=False),
    )
    op.create_table(
        "learner_states",
        sa.Column("route", sa.String(128), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("state", sa.LargeBinary, nullable=False),
        sa.Column("through_seq", _Big, nullable=False),
    )
