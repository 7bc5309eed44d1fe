"""The tables, for SQLite and PostgreSQL alike. Changes are made by migrations, never here alone."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

HEAD = "0001"  # the migration that these tables are the result of

metadata = MetaData()

decisions = Table(
    "decisions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created_s", Float, nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("route", String(128), nullable=False),
    Column("chosen", String(256), nullable=False),  # plan[0]
    Column("model", String(256)),  # who answered; null = nobody
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

feedback = Table(
    "feedback",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("decision_id", String(64), nullable=False),
    Column("source", String(64), nullable=False),
    Column("key", String(128), nullable=False),
    Column("score", Float, nullable=False),
    Column("comment", Text),
    Column("created_s", Float, nullable=False),
    UniqueConstraint("decision_id", "source", "key", name="feedback_once"),
)
