"""A client of an audited route, and labels as they are stored."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.audits import router
from tests.support.common import EASY

import suffice
from suffice import policies
from suffice.artifacts import certificate as certificates
from suffice.monitoring import sampling
from suffice.monitoring.sequential_test import SequentialTest
from suffice.routing.policy_loader import certificate_path
from suffice.routing.selector import DecisionIds
from suffice.types import (
    Attempt,
    Decision,
    Message,
    PlanStep,
    Prediction,
    Query,
    RequestRecord,
    Usage,
)

GOOD, BAD = "one two three four five", "BAD"


class AuditClient:
    """Requests to a router in this loop, and the rounds of its watch by hand."""

    def __init__(self, r: suffice.Router) -> None:
        self.router = r
        monitor = r.start_monitoring(thread=False)
        assert monitor is not None
        self.audit = monitor
        self.client = suffice.AsyncClient(r, max_retries=0)
        self.now_s = time.time()

    async def ask(self, text: str = EASY, n: int = 1, **more: Any) -> list[Any]:
        message: Any = [{"role": "user", "content": text}]
        create = self.client.chat.completions.with_raw_response.create
        return [await create(model="safe", messages=message, **more) for _ in range(n)]

    async def streamed(self, text: str = EASY) -> None:
        message: Any = [{"role": "user", "content": text}]
        stream = await self.client.chat.completions.create(
            model="safe", messages=message, stream=True
        )
        async for _ in stream:
            pass

    async def settled(self) -> None:
        """Every audit is over and its label stored."""
        async with asyncio.timeout(20):
            while self.audit.pending:
                await asyncio.sleep(0.01)
        self.router.store.flush()

    def step(self) -> SequentialTest:
        self.now_s += 1.0
        self.audit.step(self.now_s)
        return self.audit.tests["safe"]

    @property
    def outcomes(self) -> dict[str, int]:
        return dict(self.audit.state()["safe"]["audits"])

    def spent(self) -> Any:
        return self.router.store.spend("audit:safe", 0.0)


def talk(path: Path, work: Callable[[AuditClient], Awaitable[None]], share: float = 1.0) -> None:
    async def run() -> None:
        with router(path, share) as r:
            t = AuditClient(r)
            try:
                await work(t)
            finally:
                await t.client.close()

    asyncio.run(run())


def decided(decision_id: str, model: str, **changed: Any) -> Decision:
    names = ("p/weak", "p/strong")
    base: dict[str, Any] = {
        "id": decision_id, "model": model, "plan": (PlanStep(model),), "reason": "",
        "predictions": tuple(Prediction(n, 0.5, 1e-4, 1.0, float(n == model)) for n in names),
        "policy": "default", "policy_version": "v", "route": "safe", "basis": "certified",
        "objective": policies.parse_objective({"max_quality_loss": 0.05}),
    }  # fmt: skip
    return Decision(**{**base, **changed})


QUERY = Query(dialect="openai", model="safe", messages=(Message("user", EASY),), fields={})


IDS = DecisionIds(random.Random())


def recorded(r: suffice.Router, model: str, n: int, **changed: Any) -> list[str]:
    ids = []
    for _ in range(n):
        d = decided(IDS.new(), model, **changed)
        usage = Usage(10, 10)
        r.store.append(
            RequestRecord(
                decision=d,
                attempts=(Attempt(model, 1, "ok", 1.0, 0.1, usage=usage),),
                created_s=time.time(),
                request_id="r",
                status=200,
                model=model,
                usage=usage,
                cost_usd=1e-4,
            )
        )
        ids.append(d.id)
    return ids


def labelled(r: suffice.Router, ids: Sequence[str], loss: float | Sequence[float]) -> None:
    losses = [loss] * len(ids) if isinstance(loss, float) else loss
    file = certificate_path(r.config.routes["safe"], r.source)
    assert file is not None
    key = sampling.label_key(certificates.load(file))
    r.store.feedback.append(
        [
            suffice.types.Feedback(decision_id=i, score=1.0 - x, source="audit", key=key)
            for i, x in zip(ids, losses, strict=True)
        ]
    )
    r.store.flush()
