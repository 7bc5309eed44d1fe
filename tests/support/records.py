"""A record to store, a child process to store it from, a database of an earlier version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa

from suffice import features
from suffice.store import engine as opening
from suffice.store.rows import ATTEMPT, DECISION_0001, attempt_row, to_rows
from suffice.types import (
    Attempt,
    Decision,
    Feedback,
    Objective,
    PlanStep,
    Prediction,
    RequestRecord,
    Usage,
)


def record(n: int, **more: Any) -> RequestRecord:
    """Record number n: one good attempt of p/a for a cent."""
    decision = Decision(
        id=f"dec_{n:011x}",
        model="p/a",
        plan=(PlanStep("p/a"), PlanStep("p/b", "failover")),
        predictions=(Prediction("p/a", 0.7, 0.001, 0.5, 1.0),),
        reason="p/a: because.",
        policy="default",
        policy_version="default-1",
        objective=Objective(kind="keep_quality", value=0.95),
        basis="prior",
        route="auto",
        **more.pop("decision", {}),
    )
    usage = more.pop("usage", Usage(input_tokens=10, output_tokens=5))
    fields: dict[str, Any] = {
        "attempts": (Attempt("p/a", 1, "ok", 1000.0 + n, 0.2, usage=usage, cost_usd=0.01),),
        "created_s": 1000.0 + n,
        "request_id": f"req_{n}",
        "status": 200,
        "model": "p/a",
        "usage": usage,
        "cost_usd": 0.01,
        "features": features.extract_text("hello there"),
        "prompt": b'[{"role":"user","content":"a secret"}]',
    }
    return RequestRecord(decision=decision, **{**fields, **more})


def with_vectors(n: int) -> RequestRecord:
    """Record number n, with an embedding, a session and a key."""
    x = features.extract_text("hello there")
    point = np.linspace(-2, 2, 256, dtype=np.float32)
    return record(n, features=msgspec.structs.replace(x, embedding=point), session="s", key_id="k")


def score(n: int, value: float, **more: Any) -> Feedback:
    """A score of record number n."""
    return Feedback(decision_id=f"dec_{n:011x}", score=value, created_s=2000.0, **more)


def child(code: str, *args: object) -> subprocess.Popen[str]:
    """Run `code` in a Python of its own, where `record` and `open_store` are at hand."""
    head = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from records import record\nfrom suffice.store import open_store\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def at_0001(url: str, decisions: int, feedback: list[dict[str, Any]]) -> None:
    """A database as version 0.1.0 left it."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option(
        "script_location", str(Path(opening.__file__).parent / "migrations").replace("%", "%%")
    )
    engine = opening.create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for n in range(decisions):
            r = record(n)
            row, attempts = (
                to_rows(r, False).decision,
                [attempt_row(r.decision.id, a) for a in r.attempts],
            )
            for table, names, values in (
                ("decisions", DECISION_0001, row[: len(DECISION_0001)]),
                *(("attempts", ATTEMPT, a) for a in attempts),
            ):
                marks = ", ".join(f":{name}" for name in names)
                connection.execute(
                    sa.text(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})"),
                    dict(zip(names, values, strict=True)),
                )
        for f in feedback:
            connection.execute(
                sa.text(
                    "INSERT INTO feedback (decision_id, source, key, score, comment, created_s)"
                    " VALUES (:decision_id, :source, :key, :score, :comment, :created_s)"
                ),
                f,
            )
    engine.dispose()
