"""The upstreams of one router: the provider, the dialect and the transport of each model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from suffice import dialects
from suffice.budgets import AnyReservation
from suffice.catalog import price_usd
from suffice.dialects import Dialect
from suffice.execution import UpstreamReply
from suffice.transport import Transport
from suffice.types import Deployment, Model, Provider, Query, Timeouts, Usage


class _Upstream(NamedTuple):
    deployment: Deployment
    dialect: Dialect


class Upstreams:
    """Calls models by name."""

    def __init__(
        self,
        models: Iterable[Model],
        providers: Mapping[str, Provider],
        transport: Callable[[], Transport],
    ) -> None:
        """Pair each model with its provider and its dialect.

        Args:
            models: the models in use.
            providers: all of their providers, by name.
            transport: what sends the requests; asked for when the first one is sent.
        """
        spoken = {name: make() for name, make in dialects.DIALECTS.items()}
        self._transport = transport
        self._upstreams = {
            m.name: _Upstream(
                Deployment(m, providers[m.provider]), spoken[providers[m.provider].dialect]
            )
            for m in models
        }

    def model(self, name: str) -> Model:
        """A model by its full name."""
        return self._upstreams[name].deployment.model

    def cost_of(self, model: str, usage: Usage | None) -> float | None:
        """USD of a reply at the model's list price; None if a price that is needed is unknown."""
        return price_usd(self._upstreams[model].deployment.model, usage)

    def has_larger_window(self, model: str, than: str) -> bool:
        """Whether a prompt that is too long for `than` may fit `model`."""
        window, other = self.model(model).context_tokens, self.model(than).context_tokens
        return window is None or other is None or window > other

    def caller(self, query: Query, reservation: AnyReservation) -> UpstreamCaller:
        """Calls models for one query, within what its reservation allows."""
        return UpstreamCaller(self, query, reservation)

    async def send(
        self, model: str, query: Query, timeouts: Timeouts, output_limit: int | None
    ) -> UpstreamReply:
        """Send a query to a model.

        Args:
            model: its full name.
            query: what the client asks.
            timeouts: of this attempt.
            output_limit: output tokens that the request is capped at; None = as the client asked.

        Returns:
            A reply that was read whole, or a stream that is open.

        Raises:
            UpstreamError: the call failed; classified.
        """
        deployment, dialect = self._upstreams[model]
        fields = query.fields
        if output_limit is not None:
            fields = dialect.with_max_tokens(fields, deployment, output_limit)
        url, headers, body = dialect.build_request(fields, deployment, stream=query.stream)
        if query.headers:
            headers = (*headers, *query.headers)
        response = await self._transport().send(
            url, headers, body, stream=query.stream, timeouts=timeouts
        )
        return await dialects.open_response(dialect, response, deployment, stream=query.stream)


class UpstreamCaller:
    """The engine's way to call models for one query."""

    __slots__ = ("_query", "_reservation", "_upstreams")

    def __init__(self, upstreams: Upstreams, query: Query, reservation: AnyReservation) -> None:
        self._upstreams = upstreams
        self._query = query
        self._reservation = reservation

    def has_larger_window(self, model: str, than: str) -> bool:
        """Whether a prompt that is too long for `than` may fit `model`."""
        return self._upstreams.has_larger_window(model, than)

    async def open(self, step_model: str, timeouts: Timeouts) -> UpstreamReply:
        """Send the query to `step_model`. Raises UpstreamError."""
        limit = self._reservation.output_limit(step_model)
        return await self._upstreams.send(step_model, self._query, timeouts, limit)
