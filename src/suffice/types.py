"""Frozen records and Protocols shared by all rooms. No logic lives here.

Units are in the names: `_s` seconds, `_ms` milliseconds, `_usd` US dollars, `_usd_per_mtok` US
dollars per million tokens, `_tokens` tokens. A value of None always means *unknown*, never zero.
Records are `msgspec.Struct`: cheap to make on the request path and encodable as JSON as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]

# ── catalog ──────────────────────────────────────────────────────────────────────────────────────


class Price(msgspec.Struct, frozen=True):
    """List price of a model. None = unknown. `source` names where it came from, `dated` when."""

    input_usd_per_mtok: float | None = None
    output_usd_per_mtok: float | None = None
    cached_input_usd_per_mtok: float | None = None  # None: cached tokens cost as much as uncached
    cache_write_usd_per_mtok: float | None = None  # None: writing the cache costs as plain input
    source: str = "unknown"
    dated: str | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one reply. input_tokens INCLUDES cached and cache-written ones; output_tokens
    INCLUDES reasoning. `estimated` marks counts of our own where the upstream gave none."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False


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
    """A model that may take the query, with what is known of its speed right now.

    first_chunk_s / output_tokens_per_s: observed on this gateway where there is traffic, else the
    catalog's prior, else None.
    """

    model: Model
    first_chunk_s: float | None = None
    output_tokens_per_s: float | None = None


class ExcludedModel(msgspec.Struct, frozen=True):
    """A model of the route that a hard limit ruled out, and which limit."""

    model: str
    reason: str = msgspec.field(name="why")
    permanent: bool = True  # waiting will not help


# ── query ────────────────────────────────────────────────────────────────────────────────────────


class Message(msgspec.Struct, frozen=True):
    """One message in canonical form. `text` joins the text parts; other parts are only counted."""

    role: str
    text: str = ""
    images: int = 0
    audio: int = 0
    tool_calls: int = 0
    is_tool_result: bool = False


class RoutingOptions(msgspec.Struct, frozen=True):
    """What a client asked of the router itself (body fields and headers of GATEWAY.md)."""

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
    """What a client asks, parsed once by the gateway.

    fields: the request body's top-level fields as raw JSON, in order, OUR OWN FIELDS ALREADY
    REMOVED; what we do not know survives the trip. `dialect` is the inbound dialect.
    """

    dialect: str
    model: str
    messages: tuple[Message, ...]
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
    """A query as numbers. Made by the features room only, for serving and training alike.

    signals: float32 (n_signals,), in the order of `suffice.features.SIGNAL_NAMES`.
    token_ids: int32 (n_tokens,), the capped last human ask, for compiled heads; None until asked.
    embedding: float32 (n_dimensions,), the same ask as a point, where it was recorded without ids.
    input_tokens: estimate for the WHOLE prompt (all messages, tools), for windows and cost.
    """

    signals: NDArray[np.float32]
    user_message_chars: int
    user_message_tokens: int  # estimate for the last human ask
    input_tokens: int
    human_turns: int = 1
    follow_up: bool = False  # a short "yes, go ahead": signals are inherited from the asks before
    in_tool_loop: bool = False  # the last message is a tool result, not a human's
    context_chars: int = 0  # tool results, system reminders, pasted context set apart
    token_ids: NDArray[np.int32] | None = None
    embedding: NDArray[np.float32] | None = None
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
    """What the operator wants. `value` is the number of the kind (x of keep_quality, ...)."""

    kind: ObjectiveKind
    value: float | None = None
    confidence: float | None = None  # max_quality_loss only
    cost: float = 0.0  # weights only
    speed: float = 0.0
    quality: float = 0.0


class Session(msgspec.Struct, frozen=True):
    """What the router remembers of a conversation. cached_tokens: prefix the incumbent's provider
    probably still holds, 0 once its cache has expired."""

    key: str
    incumbent: str | None = None
    cached_tokens: int = 0
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
    """One model of a plan, in the order of trying."""

    model: str
    role: Literal["choice", "failover", "fallback"] = "choice"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A ranked plan and everything needed to explain and to replay it."""

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
    """(features, candidates, objective) -> Decision. Pure: no I/O, no clock, no hidden randomness.

    Estimator manners: `__init__` stores its arguments and nothing else, `fit` returns self,
    learned state ends in `_`. `version` changes whenever the same input could decide otherwise.
    """

    name: str

    @property
    def version(self) -> str: ...

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
    ) -> Decision: ...


# ── execution ────────────────────────────────────────────────────────────────────────────────────


class Timeouts(msgspec.Struct, frozen=True):
    connect_s: float = 5.0
    first_chunk_s: float = 30.0
    idle_s: float = 30.0
    total_s: float = 600.0
    # A reply that is not streamed has no first chunk before its last: it gets the total, unless the
    # operator set first_chunk_s on purpose, which then bounds whole replies too.
    first_reply_s: float | None = None


class RetryPolicy(msgspec.Struct, frozen=True):
    """per_model: retries of the same model after a retryable error. max_attempts bounds the whole
    plan. A Retry-After longer than max_wait_s moves on to the next model instead of waiting."""

    per_model: int = 1
    max_attempts: int = 6
    backoff_base_s: float = 0.25
    max_wait_s: float = 5.0


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
    """A provider is a data row: which dialect it speaks, where, and how it is authorised."""

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
    """A model with the provider that serves it: all that execution needs to call it."""

    model: Model
    provider: Provider


# ── records ──────────────────────────────────────────────────────────────────────────────────────


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One request as it goes to the store and to telemetry."""

    decision: Decision
    attempts: tuple[Attempt, ...]
    created_s: float  # unix time
    request_id: str
    status: int  # HTTP status that the client got; 499 = the client left
    model: str | None  # who answered
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
    """A score in [0, 1] for a decision, by (decision, source, key): the same again replaces it.

    created_s: when it was judged, unix time; 0 = now. weight: how much it counts in learning.
    kind: implicit = drawn from what happened, not from anybody's word; source `implicit:<name>`.
    """

    decision_id: str
    score: float
    source: str = "user"
    verdict: Literal["good", "bad"] | None = None  # where that was said instead of a number
    comment: str | None = None
    created_s: float = 0.0
    key: str | None = None
    weight: float = 1.0
    kind: Literal["explicit", "implicit"] = "explicit"


class FeedbackEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a decision's score, with the decision as it was made. What a learner reads.

    seq: rises by the order in which changes were stored, never reused; gaps are normal. Whoever
    adds up `weight * score` takes `previous_*` off again: what the same (decision, source, key)
    said before, where this replaces it.
    scored_model: the model that the score is about: who answered, but for a failed first attempt the one
    that failed. propensity belongs to `chosen`.
    signals: float32 (n_signals,). embedding: float32 (n_dimensions,). None = not recorded.
    """

    seq: int
    decision_id: str
    created_s: float  # of the decision, unix time
    route: str
    chosen: str
    model: str | None  # who answered
    scored_model: str | None
    policy: str
    policy_version: str
    snapshot: str | None
    basis: str
    propensity: float
    predictions: tuple[Prediction, ...]
    difficulty: float | None
    cost_usd: float | None
    latency_s: float
    status: int
    session: str | None
    key_id: str | None
    features_schema: str | None
    signals: NDArray[np.float32] | None
    embedding: NDArray[np.float32] | None
    score: float
    weight: float
    source: str
    kind: Literal["explicit", "implicit"]
    key: str
    feedback_at_s: float  # unix time
    previous_seq: int | None = None
    previous_score: float | None = None
    previous_weight: float | None = None


class PolicySnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable state of a policy. version: hash of route, kind and content, so that what was
    stored under a name can never be another; `suffice.store.make_snapshot` makes one.

    digest: SHA-256 of `content`, hex. card: what it is and how it came about, as JSON would hold
    it. parent: the version it was learned on from.
    """

    version: str
    route: str
    kind: str
    created_s: float
    content: bytes
    digest: str
    parent: str | None = None
    card: Mapping[str, Any] = {}
    created_by: str = ""


class Promotion(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a route's history. version: current from then on, None = the configured policy.

    evidence: the figures it was decided on. forced: promoted although they did not carry it.
    """

    generation: int
    route: str
    version: str | None
    previous: str | None
    promoted_at_s: float = msgspec.field(name="at_s")
    by: str
    kind: Literal["promote", "rollback"]
    forced: bool = False
    evidence: Mapping[str, Any] | None = None


class LearnerState(msgspec.Struct, frozen=True):
    """What a route's learner has learned. cursor: all labels up to this `seq` are in `states`."""

    cursor: int = 0
    states: Mapping[str, bytes] = {}


class Spend(msgspec.Struct, frozen=True):
    """Money spent. `unknown` of the requests have no known cost and are not in `usd`."""

    usd: float
    requests: int
    unknown: int


class StoreHealth(msgspec.Struct, frozen=True):
    """ok: the last write succeeded. pending: records in memory; spooled: records in the spool file;
    lost: records given up since start (0 unless even the spool failed)."""

    ok: bool
    pending: int = 0
    spooled: int = 0
    lost: int = 0
    error: str | None = None


# ── providers ────────────────────────────────────────────────────────────────────────────────────


class Response(Protocol):
    """An upstream's answer."""

    status: int

    def header(self, name: str) -> str | None: ...

    async def read(self, limit: int | None = None) -> bytes:
        """The body, or its first `limit` bytes. Raises UpstreamError of kind cut."""
        ...

    async def read_chunk(self) -> bytes:
        """The bytes that arrived since the last call; empty at the end of the body.

        Raises UpstreamError of kind cut if the body ends early.
        """
        ...

    def drain(self) -> None:
        """Ignore the rest of the body, which is about to end. Does not raise."""
        ...

    async def aclose(self) -> None:
        """Drop the connection unless the body is complete. Does not raise."""
        ...


class Transport(Protocol):
    """Sends one HTTP request. Raises UpstreamError of kind connect, timeout_* or cut only."""

    def prepare(self, urls: Iterable[str]) -> None:
        """Do now what the first call to one of `urls` needs."""
        ...

    async def send(
        self,
        url: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        *,
        stream: bool,
        timeouts: Timeouts,
    ) -> Response: ...

    async def aclose(self) -> None: ...


TelemetryHook = Callable[[RequestRecord], None]
