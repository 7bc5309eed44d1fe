"""The public API as a user's type checker sees it. `make types` checks this file; nothing runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import assert_type

import openai

from suffice import (
    AsyncClient,
    Client,
    ConfigError,
    Decision,
    Features,
    Feedback,
    Objective,
    Policy,
    Prediction,
    Router,
    SufficeError,
)
from suffice.gateway import BackgroundServer
from suffice.providers.fake import FakeUpstream, ReceivedRequest
from suffice.types import Candidate, PlanStep, Session


def routers() -> Router:
    Router.from_config()
    Router.from_config("suffice.toml")
    return assert_type(Router.from_config(Path("suffice.toml"), port=8484), Router)


def decisions(router: Router) -> None:
    decision = router.route("What is the weather?")
    assert_type(decision, Decision)
    assert_type(decision.id, str)
    assert_type(decision.model, str)
    assert_type(decision.reason, str)
    assert_type(decision.plan, tuple[PlanStep, ...])
    assert_type(decision.predictions, tuple[Prediction, ...])
    assert_type(decision.predictions[0].quality, float | None)
    assert_type(decision.objective, Objective)
    messages: list[Mapping[str, object]] = [{"role": "user", "content": "Hi"}]
    assert_type(router.route(messages, route="auto", objective="best"), Decision)
    assert_type(router.feedback(decision.id, 1.0), Feedback)
    router.close()


def errors() -> str:
    try:
        Router.from_config("missing.toml")
    except ConfigError as error:
        assert_type(error, ConfigError)
        base: SufficeError = error
        return str(base)
    return ""


def clients() -> openai.OpenAI:
    with Client("suffice.toml") as client:
        reply = client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "Hi"}]
        )
        assert_type(reply.choices[0].message.content, str | None)
        return client


async def async_clients() -> None:
    async with AsyncClient("suffice.toml") as client:
        stream = await client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        async for chunk in stream:
            assert_type(chunk.model, str)


def fakes() -> None:
    script = {"models": {"small": {"reply": "Hi.", "actions": [{"status": 503}, "ok"]}}}
    with FakeUpstream(script) as fake, BackgroundServer("suffice.toml") as server:
        assert_type(fake.base_url, str)
        assert_type(fake.requests[-1], ReceivedRequest)
        assert_type(server.base_url, str)


class AlwaysFirst:
    """A policy of a user's own satisfies the Protocol without inheriting from anything."""

    name = "always-first"

    @property
    def version(self) -> str:
        return "1"

    def decide(
        self,
        x: Features,
        candidates: tuple[Candidate, ...],
        objective: Objective,
        session: Session | None = None,
        *,
        id: str = "",
        seed: int = 0,
        max_output_tokens: int | None = None,
    ) -> Decision:
        first = candidates[0].model.name
        return Decision(
            id=id,
            model=first,
            plan=(PlanStep(first),),
            predictions=(),
            reason=first,
            policy=self.name,
            policy_version=self.version,
            objective=objective,
            basis="prior",
        )


policy: Policy = AlwaysFirst()
