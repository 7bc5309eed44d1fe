"""Frozen records and Protocols shared by all packages, without logic.

Units are in the names: `_s` seconds, `_ms` milliseconds, `_usd` US dollars, `_usd_per_mtok` US
dollars per million tokens, `_tokens` tokens. A value of None always means *unknown*, never zero.
Records are `msgspec.Struct`: cheap to make on the request path, and JSON without conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]

# ── catalog ──────────────────────────────────────────────────────────────────────────────────────


class Price(msgspec.Struct, frozen=True):
    """List price of a model."""

    input_usd_per_mtok: float | None = None
    output_usd_per_mtok: float | None = None
    cached_input_usd_per_mtok: float | None = None  # None: cached tokens cost as much as uncached
    cache_write_usd_per_mtok: float | None = None  # None: writing the cache costs as plain input
    source: str = "unknown"  # where it is from
    dated: str | None = None  # ISO date


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one reply."""

    input_tokens: int = 0  # includes cached and cache-written tokens
    output_tokens: int = 0  # includes reasoning tokens
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False  # our own count, because the upstream gave none


class Model(msgspec.Struct, frozen=True):
    """A catalog entry. `name` is `provider/upstream`, the name clients may ask for."""

    name: str
    provider: str
    upstream: str
    price: Price = Price()
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    capabilities: frozenset[str] | None = None  # None = unknown (assumed able, said so)
    quality: float | None = None  # prior in [0, 1]: how often it suffices
    quality_source: str = "unknown"  # "config" | "catalog" | "unknown"
    first_chunk_s: float | None = None  # prior time to the first chunk
    output_tokens_per_s: float | None = None


class Candidate(msgspec.Struct, frozen=True):
    """A model that may take the query, with its speed: observed here, else the catalog's prior."""

    model: Model
    first_chunk_s: float | None = None
    output_tokens_per_s: float | None = None


class ExcludedModel(msgspec.Struct, frozen=True):
    """A model of the route that a hard limit rules out."""

    model: str
    reason: str = msgspec.field(name="why")
    permanent: bool = True  # waiting will not help


# ── query ────────────────────────────────────────────────────────────────────────────────────────


class Message(msgspec.Struct, frozen=True):
    """One message in canonical form."""

    role: str
    text: str = ""  # the text parts, joined; other parts are only counted
    images: int = 0
    audio: int = 0
    tool_calls: int = 0
    is_tool_result: bool = False


class RoutingOptions(msgspec.Struct, frozen=True):
    """What a client asks of the router itself."""

    objective: Any = None  # a string or a mapping, parsed by policies.objectives
    models: tuple[str, ...] | None = None  # ordered pool for this call
    only: tuple[str, ...] | None = None  # providers
    ignore: tuple[str, ...] = ()  # providers
    order: tuple[str, ...] = ()  # providers, preferred order
    allow_fallbacks: bool = True
    require_parameters: bool = False
    sort: str | None = None  # "price" | "latency" | "throughput"
    max_input_usd_per_mtok: float | None = None
    max_output_usd_per_mtok: float | None = None
    explain: bool = False
    session: str | None = None
    metadata: Mapping[str, Any] | None = None


NO_OPTIONS = RoutingOptions()  # of a client that asks for nothing; compare with `is`


class Query(msgspec.Struct, frozen=True):
    """What a client asks, parsed once by the gateway."""

    dialect: str  # that the client speaks
    model: str  # a route's name or a model's
    messages: tuple[Message, ...]
    # The body's top-level fields as raw JSON, in order, without our own: unknown ones survive.
    fields: dict[str, msgspec.Raw]
    stream: bool = False
    include_usage: bool = False  # stream_options.include_usage as the client sent it
    required_capabilities: frozenset[str] = (
        frozenset()
    )  # capabilities without which it cannot be answered
    max_output_tokens: int | None = None
    options: RoutingOptions = NO_OPTIONS
    session: str | None = None  # explicit key, or the hash of first system + first user message
    request_id: str = ""
    headers: tuple[tuple[str, str], ...] = ()  # extra headers to pass upstream (traceparent)
    key_id: str | None = None


class Features(msgspec.Struct, frozen=True):
    """A query as numbers; made by `suffice.features` only, for serving and training alike."""

    signals: Float32Array  # (n_signals,), in the order of `features.SIGNAL_NAMES`
    user_message_chars: int  # of the last user message
    user_message_tokens: int  # estimate for the last user message
    input_tokens: int  # estimate for the whole prompt: all messages and tools
    human_turns: int = 1
    follow_up: bool = False  # a short "yes, go ahead" inherits the signals of earlier messages
    in_tool_loop: bool = False  # the last message is a tool result, not a human's
    context_chars: int = 0  # tool results, reminders, pasted context: not part of the message
    token_ids: NDArray[np.int32] | None = None  # (n_tokens,), of the messages the signals are from
    embedding: Float32Array | None = None  # (n_dimensions,), if it was recorded without ids
    schema: str = "1"


# ── decision ─────────────────────────────────────────────────────────────────────────────────────

ObjectiveKind = Literal[
    "keep_quality",
    "max_quality_loss",
    "max_usd_per_query",
    "usd_per_day",
    "max_latency_s",
    "worth_usd",
    "weights",
    "cheapest",
    "best",
    "fastest",
    "balanced",
]


class Objective(msgspec.Struct, frozen=True):
    """What the operator wants."""

    kind: ObjectiveKind
    value: float | None = None  # the number of the kind
    confidence: float | None = None  # max_quality_loss only
    cost: float = 0.0  # weights only
    speed: float = 0.0
    quality: float = 0.0


class Session(msgspec.Struct, frozen=True):
    """What the router remembers of a conversation."""

    key: str
    incumbent: str | None = None  # the model that answered last
    cached_tokens: int = 0  # prefix that its provider probably still holds; 0 = expired
    failed: frozenset[str] = frozenset()  # models that failed in this conversation


class Prediction(msgspec.Struct, frozen=True):
    """What a policy expects of one candidate for this query. None = unknown."""

    model: str
    quality: float | None
    cost_usd: float | None
    latency_s: float | None
    propensity: float  # probability with which the policy could have chosen it
    # USD of leaving the incumbent's cached prefix, counted in the choice.
    switching_cost_usd: float = msgspec.field(default=0.0, name="switch_usd")


class PlanStep(msgspec.Struct, frozen=True):
    """One model of a plan."""

    model: str
    role: Literal["choice", "failover", "fallback"] = "choice"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A ranked plan, and everything that explains and replays it."""

    id: str
    model: str  # plan[0].model
    plan: tuple[PlanStep, ...]
    predictions: tuple[Prediction, ...]  # one per candidate
    reason: str  # one sentence
    policy: str
    policy_version: str
    objective: Objective
    basis: Literal["prior", "trained", "certified", "bypass"]
    propensity: float = 1.0
    difficulty: float | None = None  # share of traffic that is easier, in [0, 1]
    score: float | None = None  # the policy's own difficulty score before it became a quantile
    features: tuple[tuple[str, float], ...] = ()  # the signals that mattered, strongest first
    excluded: tuple[ExcludedModel, ...] = ()
    route: str = ""
    seed: int = 0
    snapshot: str | None = None  # version of the learned policy that decided; None = as configured
    explored: bool = False  # another than the policy's choice, to learn from it


@runtime_checkable
class Policy(Protocol):
    """(features, candidates, objective) -> Decision. Pure: no I/O, no clock, no hidden randomness."""

    name: str

    @property
    def version(self) -> str:
        """Changes whenever the same input could decide otherwise."""
        ...

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
        """Rank the candidates. `seed` is the only source of randomness."""
        ...


# ── execution ────────────────────────────────────────────────────────────────────────────────────


class Timeouts(msgspec.Struct, frozen=True):
    """Limits of one request's attempts."""

    connect_s: float = 5.0
    first_chunk_s: float = 30.0
    idle_s: float = 30.0
    total_s: float = 600.0
    # A reply that is not streamed has no first chunk before its last: it gets the total, unless the
    # operator set first_chunk_s on purpose, which then bounds whole replies too.
    first_reply_s: float | None = None


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often failed attempts are repeated."""

    per_model: int = 1  # retries of the same model after a retryable error
    max_attempts: int = 6  # of the whole plan
    backoff_base_s: float = 0.25
    max_wait_s: float = 5.0  # a longer Retry-After moves on to the next model instead


class Attempt(msgspec.Struct, frozen=True):
    """One call of one model."""

    model: str
    number: int  # 1-based within the request
    outcome: str  # "ok" or an errors.UpstreamKind
    started_s: float  # unix time
    latency_s: float
    first_chunk_s: float | None = None
    status: int | None = None
    error: str | None = None
    usage: Usage | None = None
    cost_usd: float | None = None
    finish_reason: str | None = None


class Provider(msgspec.Struct, frozen=True):
    """Which dialect a provider speaks, where, and how calls are authorised."""

    name: str
    dialect: str
    base_url: str
    api_key_env: str | None = None
    api_key: str | None = None  # resolved from the environment at start; never logged or stored
    auth: Literal["bearer", "x-api-key", "api-key", "none"] = "bearer"
    headers: tuple[tuple[str, str], ...] = ()
    local: bool = False

    def __repr__(self) -> str:  # a key must not reach a log through a repr
        return f"Provider({self.name!r}, {self.dialect!r}, {self.base_url!r})"


class Deployment(msgspec.Struct, frozen=True):
    """A model with the provider that serves it."""

    model: Model
    provider: Provider


# ── records ──────────────────────────────────────────────────────────────────────────────────────


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One request as the store and telemetry observe it."""

    decision: Decision
    attempts: tuple[Attempt, ...]
    created_s: float  # unix time
    request_id: str
    status: int  # HTTP status that the client got; 499 = client disconnected
    model: str | None  # that answered
    usage: Usage | None = None
    cost_usd: float | None = None  # sum over attempts; None = some price unknown
    latency_s: float = 0.0
    first_chunk_s: float | None = None
    overhead_ms: float = 0.0  # our own time before the first byte went upstream
    dialect: str = "openai"
    stream: bool = False
    session: str | None = None
    key_id: str | None = None
    features: Features | None = None
    prompt: bytes | None = None  # JSON of the messages, only with keep_prompts
    error: str | None = None
    metadata: Mapping[str, Any] | None = None


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """A score of a decision. The same (decision, source, key) again replaces it."""

    decision_id: str
    score: float  # in [0, 1]
    source: str = "user"
    verdict: Literal["good", "bad"] | None = None  # if it was given instead of a score
    comment: str | None = None
    created_s: float = 0.0  # when it was scored, unix time; 0 = now
    key: str | None = None  # tells scores of one source apart
    weight: float = 1.0  # in learning
    # implicit: detected in the reply or in what followed; its source is `implicit:<name>`.
    kind: Literal["explicit", "implicit"] = "explicit"


TelemetryHook = Callable[[RequestRecord], None]
