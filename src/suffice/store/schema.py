"""The tables, for SQLite and PostgreSQL alike. Changes are made by migrations, never here alone."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

HEAD = "0003"  # the migration that these tables are the result of

metadata = MetaData()

# SQLite knows one size of integer, and only INTEGER is its row number.
_Big = BigInteger().with_variant(Integer, "sqlite")

decisions = Table(
    "decisions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created_s", Float, nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("route", String(128), nullable=False),
    Column("chosen", String(256), nullable=False),  # plan[0]
    Column("model", String(256)),  # the model that answered; null = none
    Column("policy", String(64), nullable=False),
    Column("policy_version", String(64), nullable=False),
    Column("basis", String(16), nullable=False),
    Column("propensity", Float, nullable=False),
    Column("difficulty", Float),
    Column("status", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("session", String(256)),
    Column("key_id", String(64)),
    Column("input_tokens", Integer),
    Column("output_tokens", Integer),
    Column("cached_input_tokens", Integer),
    Column("cost_usd", Float),  # null = unknown
    Column("latency_s", Float, nullable=False),
    Column("first_chunk_s", Float),
    Column("overhead_ms", Float, nullable=False),
    Column("features", LargeBinary),  # float32, little endian
    Column("features_schema", String(64)),
    Column("detail", Text, nullable=False),  # JSON: the rest of the decision
    Column("prompt", Text),  # JSON of the messages, only with keep_prompts
    Column("error", Text),
    Column("embedding", LargeBinary),  # float16, little endian: the embedding of the query
    Column("snapshot", String(64)),  # the policy snapshot that decided; null = none
    # JSON: a single successful attempt, which then has no row in `attempts`; null = see `attempts`
    Column("only_attempt", Text),
    # What a route has spent since a time is read from the index alone.
    Index("decisions_by_route", "route", "created_s", "cost_usd"),
    # Ids begin with the time, so the key orders by time too; without rowid it is one b-tree.
    sqlite_with_rowid=False,
)

attempts = Table(
    "attempts",
    metadata,
    Column("decision_id", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("model", String(256), nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("started_s", Float, nullable=False),
    Column("latency_s", Float, nullable=False),
    Column("first_chunk_s", Float),
    Column("status", Integer),
    Column("error", Text),
    Column("input_tokens", Integer),
    Column("output_tokens", Integer),
    Column("cost_usd", Float),
    Column("finish_reason", String(64)),
    sqlite_with_rowid=False,
)

counters = Table(
    "counters",
    metadata,
    # 'feedback': the last seq given out. 'generation': the last promotion. The writer that raises one holds
    # its row until it commits, so that numbers become visible in the order they were given out.
    Column("name", String(32), primary_key=True),
    Column("value", _Big, nullable=False),
)

# One row per change of a score. Only `replaced_by` is ever updated: a learner reads each row once.
feedback = Table(
    "feedback",
    metadata,
    Column("seq", _Big, primary_key=True, autoincrement=False),
    Column("decision_id", String(64), nullable=False),
    Column("source", String(64), nullable=False),
    Column("key", String(128), nullable=False),
    Column("score", Float, nullable=False),
    Column("verdict", String(8)),
    Column("weight", Float, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("comment", Text),
    Column("created_s", Float, nullable=False),
    Column("previous_seq", _Big),  # the row that this one replaces
    Column("replaced_by", _Big),  # null = the score counts now
    Index(
        "feedback_current",
        "decision_id",
        "source",
        "key",
        unique=True,
        # The migrations say the same for PostgreSQL; here it would import that dialect, 45 ms.
        sqlite_where=text("replaced_by IS NULL"),
    ),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("version", String(64), primary_key=True),
    Column("route", String(128), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("created_s", Float, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("digest", String(64), nullable=False),  # SHA-256 of content
    Column("parent", String(64)),
    Column("card", Text, nullable=False),  # JSON
    Column("created_by", String(128), nullable=False),
    Index("snapshots_by_route", "route", "created_s"),
)

# Which snapshot is current is the last entry of its route: pointer and history cannot disagree.
promotions = Table(
    "promotions",
    metadata,
    Column("generation", _Big, primary_key=True, autoincrement=False),
    Column("route", String(128), nullable=False),
    Column("version", String(64)),  # null = back to the configured policy
    Column("previous", String(64)),
    Column("at_s", Float, nullable=False),
    Column("made_by", String(128), nullable=False),
    Column("kind", String(16), nullable=False),  # promote | rollback
    Column("forced", Boolean, nullable=False),
    Column("evidence", Text),  # JSON
    Index("promotions_by_route", "route", "generation"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("owner", String(128), nullable=False),
    Column("expires_s", Float, nullable=False),
)

learner_cursors = Table(
    "learner_cursors",
    metadata,
    Column("route", String(128), primary_key=True),
    Column("through_seq", _Big, nullable=False),
    Column("updated_s", Float, nullable=False),
)

learner_states = Table(
    "learner_states",
    metadata,
    Column("route", String(128), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("state", LargeBinary, nullable=False),
    Column("through_seq", _Big, nullable=False),
)
