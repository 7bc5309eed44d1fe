"""Calls one named model with retries, for audits and for `suffice collect`.

The client learns which parameters a model refuses, and estimates what failed calls cost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from suffice.dialects.openai_chat import NEW_LIMIT_PROVIDERS
from suffice.errors import AllAttemptsFailedError, UpstreamError
from suffice.execution import Caller, Engine, Reply, sum_cost_usd
from suffice.execution.attempt import CostOf
from suffice.types import Attempt, Message, Model, PlanStep, Query, RetryPolicy, Timeouts, Usage

T = TypeVar("T")

# Failures after which the upstream may charge for the prompt all the same.
MAY_CHARGE = frozenset(
    {"timeout_first_chunk", "timeout_idle", "timeout_total", "cut", "malformed", "content_filter"}
)


class ModelCall(msgspec.Struct, frozen=True):
    """One call to make."""

    model: Model
    messages: bytes
    """JSON, as it is sent."""
    canonical: tuple[Message, ...]
    """The same messages in our own form."""
    max_output_tokens: int
    temperature: float | None = 0.0
    """`None` = the model's own."""
    required_capabilities: frozenset[str] = frozenset()

    @property
    def output_limit(self) -> int:
        """Output tokens that the call is limited to."""
        return min(self.max_output_tokens, self.model.max_output_tokens or self.max_output_tokens)


class ParameterStyle(NamedTuple):
    """Which parameters a model accepts, learned from what it refuses."""

    limit_name: str
    send_temperature: bool = True

    @classmethod
    def default_for(cls, model: Model) -> ParameterStyle:
        """The style to try first."""
        new = model.provider in NEW_LIMIT_PROVIDERS
        return cls("max_completion_tokens" if new else "max_tokens")

    def after_refusal(self, error: UpstreamError) -> ParameterStyle | None:
        """Another style to try after a refusal; `None` if there is none."""
        message = f"{error.message} {error.param}".lower()
        if "max_completion_tokens" in message and self.limit_name == "max_tokens":
            return self._replace(limit_name="max_completion_tokens")
        if "temperature" in message and self.send_temperature:
            return self._replace(send_temperature=False)
        return None


class ModelClient:
    """Calls models by name.

    Args:
        engine: Runs the attempts.
        caller: Makes the engine's caller for a query.
        cost_of: USD of a model's usage; `None` if the price is unknown.
        retries: How often a failed call is repeated.
    """

    def __init__(
        self,
        engine: Engine,
        caller: Callable[[Query], Caller],
        cost_of: CostOf,
        *,
        retries: RetryPolicy,
    ) -> None:
        self._engine = engine
        self._caller = caller
        self._cost_of = cost_of
        self._retries = retries
        self._styles: dict[str, ParameterStyle] = {}

    def ignored_temperature(self) -> list[str]:
        """Models that refused the temperature and were called at their own."""
        return [name for name, style in self._styles.items() if not style.send_temperature]

    async def ask(self, call: ModelCall, send: Callable[[Query], Awaitable[T]]) -> T:
        """Send a call with the parameters that its model accepts.

        Args:
            call: The call.
            send: Sends one query, most simply by `complete`. It is called again with other parameters
                if the model refuses these.

        Returns:
            What `send` returned.

        Raises:
            AllAttemptsFailedError: `send` failed for another reason.
        """
        name = call.model.name
        while True:
            style = self._styles.setdefault(name, ParameterStyle.default_for(call.model))
            try:
                return await send(build_query(call, style))
            except AllAttemptsFailedError as error:
                if error.last.kind != "bad_request":
                    raise
                if self._styles[name] != style:
                    continue  # another call has learned the style meanwhile
                other = style.after_refusal(error.last)
                if other is None:
                    raise
                self._styles[name] = other

    async def complete(
        self,
        model: str,
        query: Query,
        *,
        timeouts: Timeouts,
        attempts: list[Attempt],
        input_tokens: int = 0,
        seed: int = 0,
    ) -> Reply:
        """Send a query to one model.

        Args:
            model: The model's full name.
            query: The query, not streamed.
            timeouts: The limits of the call with its retries.
            attempts: Each attempt is appended when it ends.
            input_tokens: An estimate, for attempts whose upstream counts none.
            seed: Seeds the jitter of retries.

        Returns:
            The whole reply.

        Raises:
            AllAttemptsFailedError: Every attempt failed.
        """
        return await self._engine.run(
            (PlanStep(model),),
            self._caller(query),
            stream=False,
            timeouts=timeouts,
            retries=self._retries,
            cost_of=self._cost_of,
            seed=seed,
            input_tokens=input_tokens,
            attempts=attempts,
        )

    def estimate_cost(
        self,
        model: str,
        reply: Reply | None,
        attempts: Sequence[Attempt],
        *,
        input_tokens: int,
        output_tokens: int,
    ) -> tuple[Usage | None, float | None]:
        """The usage and the cost of a call with its retries, for a cap that must hold.

        An attempt that broke off is taken to cost its prompt. Tokens that the upstream did not count are
        estimated.

        Args:
            model: The model's full name.
            reply: The reply; `None` if every attempt failed.
            attempts: All attempts.
            input_tokens: An estimate of the prompt.
            output_tokens: An estimate of the answer.

        Returns:
            (usage, USD); each is `None` if unknown.
        """
        broken = sum(a.outcome in MAY_CHARGE for a in attempts)
        prompt_usd = self._cost_of(model, Usage(input_tokens, 0))
        usd = sum_cost_usd([a for a in attempts if a.outcome != "ok"])
        usage = None
        if reply is not None:
            usage = reply.usage or Usage(input_tokens, output_tokens, estimated=True)
            answer_usd = self._cost_of(model, usage)
            usd = None if usd is None or answer_usd is None else usd + answer_usd
        return usage, None if usd is None or prompt_usd is None else usd + broken * prompt_usd


def build_query(call: ModelCall, style: ParameterStyle) -> Query:
    """The query of a call, in OpenAI's form."""
    fields = {
        "model": msgspec.Raw(b'""'),
        "messages": msgspec.Raw(call.messages),
        style.limit_name: msgspec.Raw(b"%d" % call.output_limit),
    }
    if style.send_temperature and call.temperature is not None:
        fields["temperature"] = msgspec.Raw(msgspec.json.encode(call.temperature))
    return Query(
        dialect="openai",
        model=call.model.name,
        messages=call.canonical,
        fields=fields,
        required_capabilities=call.required_capabilities,
        max_output_tokens=call.output_limit,
    )
