"""A record to store, and a child process to store it from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from suffice import features
from suffice.types import Attempt, Decision, Objective, Prediction, Record, Step, Usage


def record(n: int, **more: Any) -> Record:
    """Record number n: one good attempt of p/a for a cent."""
    decision = Decision(
        id=f"dec_{n:011x}",
        model="p/a",
        plan=(Step("p/a"),),
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
    }
    return Record(decision=decision, **{**fields, **more})


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
