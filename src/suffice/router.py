"""The spine: builds the rooms from Settings and holds the straight line from query to record.

    Query -> features -> candidates -> decision -> attempts -> reply -> record

Everything a request goes through is in `Router.answer`; read that first.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from math import nan
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from suffice import (
    budgets,
    catalog,
    dialects,
    execution,
    features,
    learning,
    monitoring,
    policies,
    telemetry,
)
from suffice.artifacts import certificate
from suffice.errors import (
    AllAttemptsFailedError,
    BadRequestError,
    ConfigError,
    ModelNotFoundError,
    NoEligibleModelError,
    NotFoundError,
    UpstreamError,
)
from suffice.feedback import implicit
from suffice.feedback.validation import checked, checked_batch
from suffice.pool import Pool
from suffice.store.protocols import Store
from suffice.types import (
    NO_OPTIONS,
    Attempt,
    Decision,
    Deployment,
    ExcludedModel,
    Features,
    Feedback,
    Message,
    Model,
    Objective,
    PlanStep,
    Policy,
    Prediction,
    Query,
    RequestRecord,
    RetryPolicy,
    RoutingOptions,
    Session,
    Timeouts,
    Transport,
    Usage,
)

if TYPE_CHECKING:
    from suffice.config import ResolvedConfig, Settings

_CACHE_S = 300.0  # how long a provider is assumed to keep a prompt's prefix (5 minutes to an hour)
_SESSION_S = 3600.0  # how long an idle conversation is remembered
_MAX_SESSIONS = 20_000
_SPEND_NEW = 0.01  # weight of a new query in a route's mean spend


class Route(msgspec.Struct, frozen=True):
    """A named pool with its policy and objective; `bypass` marks one concrete model."""

    name: str
    pool: Pool
    policy: Policy | None
    objective: Objective
    fallbacks: Pool = Pool()
    fallback_max_usd_per_query: float | None = None
    timeouts: Timeouts = Timeouts()
    retries: RetryPolicy = RetryPolicy()
    bypass: bool = False
    snapshot: str | None = None  # of the learned policy that decides
    explores: bool = False
    implicit: Mapping[str, float] = {}

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of the pool."""
        return self.pool.models


class SessionStore:
    """What is remembered of conversations: bounded in number and in idle time."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[str, int, float, frozenset[str]]] = OrderedDict()

    def get(self, key: str | None, now_s: float) -> Session | None:
        found = self._known.get(key) if key is not None else None
        if found is None or key is None:
            return None
        model, tokens, seen_s, failed = found
        idle_s = now_s - seen_s
        if idle_s > _SESSION_S:
            del self._known[key]
            return None
        return Session(key, model, tokens if idle_s <= _CACHE_S else 0, failed)

    def put(self, key: str | None, reply: execution.Reply, input_tokens: int, now_s: float) -> None:
        if key is None:
            return
        known = self._known
        before = known.get(key)
        failed = before[3] if before else frozenset()
        if len(reply.attempts) > 1:
            failed |= {a.model for a in reply.attempts if a.outcome not in ("ok", "cancelled")}
        known[key] = (reply.model, input_tokens, now_s, failed - {reply.model})
        known.move_to_end(key)
        if len(known) > _MAX_SESSIONS:
            known.popitem(last=False)


class RoutedResponse:
    """What `Router.answer` gives back. Exactly one Record comes of it, whatever happens."""

    __slots__ = (
        "_input_tokens",
        "_recorded",
        "_reservation",
        "_router",
        "_started",
        "_x",
        "decision",
        "audit_sample",
        "overhead_ms",
        "query",
        "reply",
    )

    def __init__(
        self,
        router: Router,
        query: Query,
        x: Features,
        decision: Decision,
        started: float,
        reservation: budgets.AnyReservation = budgets.UNLIMITED,
    ) -> None:
        self._router = router
        self._reservation = reservation
        self._x = x
        self._started = started
        self._recorded = False
        self.query = query
        self.decision = decision
        self.reply: execution.Reply | None = None
        self.audit_sample = router._draw(decision, x, query)
        self.overhead_ms = (perf_counter() - started) * 1e3

    @property
    def _reply(self) -> execution.Reply:
        assert self.reply is not None, "the plan has not been run"
        return self.reply

    @property
    def model(self) -> str:
        return self._reply.model

    @property
    def status(self) -> int:
        return self._reply.status

    @property
    def body(self) -> bytes:
        return self._reply.body

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        return tuple(self._reply.attempts)

    @property
    def usage(self) -> Usage | None:
        return self._reply.usage

    @property
    def cost_usd(self) -> float | None:
        return self._reply.cost_usd

    @property
    def explain(self) -> bool:
        return self.query.options.explain

    @property
    def predicted_usd(self) -> float | None:
        model = self._reply.model
        return next((p.cost_usd for p in self.decision.predictions if p.model == model), None)

    def explanation(self) -> dict[str, Any]:
        told = msgspec.structs.replace(self.decision, features=features.explain(self._x))
        return self._router.explain(told)

    async def events(self, *, include_usage: bool) -> AsyncIterator[bytes]:
        """Bytes of server-sent events, without the terminator; records the request at the end.

        The usage chunk is dropped unless the client asked for it. Raises UpstreamError when the
        upstream fails after the commit point.
        """
        status, error = 499, "the client left"
        drawn = self.audit_sample
        try:
            async for event in self._reply.events:
                if drawn is not None:
                    drawn.append_event(event.raw)
                if event.kind == "usage" and not include_usage:
                    continue
                if event.kind != "done":
                    yield event.raw
            status, error = 200, ""
        except UpstreamError as failed:
            status, error = 502, failed.message
            raise
        finally:
            await self._reply.aclose()
            self.record(status, error or None)

    async def aclose(self) -> None:
        """Close the upstream; a stream that was never read is recorded as one the client left."""
        await self._reply.aclose()
        self.record(499, "the client left")

    def record(self, status: int, error: str | None = None, *, attempts: Any = None) -> None:
        """Hand the one Record of this request to the store and to telemetry, and settle its money."""
        if self._recorded:
            return
        self._recorded = True
        self._reservation.settle_all()
        self._router._record(self, status, error, attempts)


class UpstreamCaller:
    """Adapts one query to execution's Caller: dialect and transport of whichever model is tried."""

    __slots__ = ("_query", "_reservation", "_router")

    def __init__(self, router: Router, query: Query, reservation: budgets.AnyReservation) -> None:
        self._router = router
        self._query = query
        self._reservation = reservation

    async def open(self, step_model: str, timeouts: Any) -> Any:
        query = self._query
        target = self._router._targets[step_model]
        dialect = self._router._dialects[target.provider.dialect]
        fields = query.fields
        limit = self._reservation.output_limit(step_model)
        if limit is not None:
            fields = dialect.with_max_tokens(fields, target, limit)
        url, headers, body = dialect.build_request(fields, target, stream=query.stream)
        if query.headers:
            headers = (*headers, *query.headers)
        response = await self._router.transport.send(
            url, headers, body, stream=query.stream, timeouts=timeouts
        )
        return await dialects.open_response(dialect, response, target, stream=query.stream)


class Router:
    """Evaluates queries, picks models, runs them with failover and records what happened.

    Build it with `Router.from_config(path)` or `Router(settings)`. In-process use needs no server:
    `route` calls nothing, `answer` runs the whole line, `feedback` scores a decision afterwards.
    Close it with `close()` (or `await aclose()`), which flushes the store.
    """

    def __init__(
        self,
        settings: Settings | ResolvedConfig,
        *,
        env: Mapping[str, str] | None = None,
        seed: int | None = None,
        clock: Callable[[], float] = time.time,
        transport: Transport | None = None,
        store: Store | None = None,
    ) -> None:
        """Build the router; nothing is opened or called yet.

        Args:
            settings: a parsed or a resolved configuration.
            env: the environment that keys are read from; None = the process's own.
            seed: of exploration and retries; None = random.
            clock: unix seconds, for daily budgets.
            transport: sends the upstream requests; None = HTTP.
            store: keeps the decisions; None = the one that the settings name.

        Raises:
            ConfigError: a setting is wrong.
            ArtifactError: a trained policy or a certificate cannot be used.
        """
        from suffice import config

        env = os.environ if env is None else env
        resolved = (
            settings
            if isinstance(settings, config.ResolvedConfig)
            else config.resolve(settings, env)
        )
        own = resolved.settings
        self._resolved = resolved
        self.warnings: tuple[str, ...] = resolved.warnings
        self.api_keys: tuple[str, ...] = resolved.api_keys
        self.host, self.port, self.workers = own.server.host, own.server.port, own.server.workers
        self.max_body_bytes = own.server.max_body_bytes
        self._keep_prompts = own.store.keep_prompts
        self._catalog = catalog.Catalog(resolved.models)
        self._targets = {
            m.name: Deployment(m, resolved.providers[m.provider]) for m in resolved.models
        }
        self._specs = dict(resolved.routes)
        self._budgets = budgets.Budgets(
            {name: spec.objective for name, spec in self._specs.items()},
            lambda name: self._targets[name].model,
            clock,
            ledger=env.get(budgets.LEDGER_ENV),
            source=own.source,
        )
        self._configured = {name: self._make_policy(spec) for name, spec in self._specs.items()}
        self._policies = dict(self._configured)
        self._snapshots: dict[str, str] = {}  # route -> the learned policy that decides
        self._learning: learning.LearningWorker | None = None
        self._audit: monitoring.CertificateMonitor | None = None
        self._implicit = {
            name: spec.implicit_feedback
            for name, spec in self._specs.items()
            if spec.implicit_feedback
        }
        self._repeats = implicit.RegenerationDetector()
        # A policy that solves its objective over traffic says what it wants to remember of it.
        self._sketches = {
            name: policy.traffic_window()
            for name, policy in self._policies.items()
            if isinstance(policy, policies.TrafficAware)
        }
        self._spend: dict[str, float] = {}  # route that explores -> mean USD a query
        self._pools: dict[tuple[str, ...], Pool] = {}
        self._breaker = execution.CircuitBreaker(execution.CircuitBreakerSettings(), time.monotonic)
        self._health = execution.LatencyTracker(time.monotonic)
        self._engine = execution.Engine(self._breaker, self._health)
        self._dialects = {name: make() for name, make in dialects.DIALECTS.items()}
        self._transport: Transport | None = transport
        self._store: Store | None = store
        self._metrics = telemetry.Metrics()
        self._telemetry = telemetry.Telemetry([self._metrics])
        self._sessions = SessionStore()
        self._random = random.Random(os.urandom(16) if seed is None else seed)

    @classmethod
    def from_config(
        cls,
        path: str | Path | None = None,
        *,
        env: Mapping[str, str] | None = None,
        host: str | None = None,
        port: int | None = None,
        store_url: str | None = None,
    ) -> Router:
        """A router from a suffice.toml (None: ./suffice.toml, else what the environment offers).

        host, port, store_url override the file. Raises ConfigError or StoreError.
        """
        from suffice import config

        env = os.environ if env is None else env
        settings = config.load_settings(path, env)
        server: dict[str, Any] = {
            k: v for k, v in (("host", host), ("port", port)) if v is not None
        }
        if server:
            settings = settings.model_copy(
                update={"server": settings.server.model_copy(update=server)}
            )
        if store_url is not None:
            settings = settings.model_copy(
                update={"store": settings.store.model_copy(update={"url": store_url})}
            )
        router = cls(config.resolve(settings, env), env=env)
        config.check_bind(router.host, router.api_keys, settings.server.api_keys_env)
        return router

    @classmethod
    def for_dry_run(
        cls, path: str | Path | None = None, *, env: Mapping[str, str] | None = None
    ) -> Router:
        """A router that can decide but need not be able to call: keys are not asked for. With no
        config and nothing in the environment it routes over an example pool of catalog models."""
        from suffice import config

        env = os.environ if env is None else env
        try:
            settings = config.load_settings(path, env)
        except ConfigError:
            if path is not None or Path(config.DEFAULT_FILE).exists():
                raise
            names = ("openai/gpt-6-luna", "openai/gpt-6.1-terra", "openai/gpt-6.1-sol")
            settings = config.Settings(
                routes={
                    "auto": config.RouteSettings(models=names, objective={"keep_quality": 0.95})
                },
                source=EXAMPLE_POOL,
            )
        return cls(config.resolve(settings, env, need_keys=False), env=env)

    for_explaining = for_dry_run  # the former name, kept for one release

    # ── the straight line ────────────────────────────────────────────────────────────────────────

    async def answer(self, query: Query, started: float | None = None) -> RoutedResponse:
        """One query through the whole house. started: `perf_counter()` when it came in.

        Raises RequestError, NoCandidate, or PlanExhausted when every attempt failed.
        """
        started = perf_counter() if started is None else started
        route = self.resolve(query.model)
        x, decision, reservation = self._evaluate(query, route, serves=True)
        tried: list[
            Attempt
        ] = []  # filled as the plan is walked, for a client that leaves meanwhile
        affordable = self._affordable(route, x, decision) if route.fallbacks else None
        decision = reservation.reserve_first(decision, tried, affordable)
        affordable = reservation.attempt_guard(affordable)
        answer = RoutedResponse(self, query, x, decision, started, reservation)
        try:
            answer.reply = await self._engine.run(
                decision.plan,
                UpstreamCaller(self, query, reservation),
                stream=query.stream,
                timeouts=route.timeouts,
                retries=route.retries,
                cost_of=self._cost_of,
                seed=decision.seed,
                input_tokens=x.input_tokens,
                has_larger_window=self._larger_window,
                guard=affordable,
                attempts=tried,
            )
        except AllAttemptsFailedError as error:
            error.decision, error.overhead_ms = decision, answer.overhead_ms
            answer.record(_status_of(error.last), str(error), attempts=error.attempts)
            raise
        except asyncio.CancelledError:
            answer.record(499, "the client left", attempts=tried)
            raise
        except BaseException:
            reservation.settle_all()
            raise
        if not query.stream:
            answer.record(answer.reply.status)
        return answer

    def _evaluate(
        self, query: Query, route: Route, *, serves: bool = False
    ) -> tuple[Features, Decision, budgets.AnyReservation]:
        """Features, candidates within the hard limits, and the policy's decision, with the money that
        it may spend. Calls nothing. serves: the decision will be carried out."""
        x = features.extract(query.messages, extra_tokens=_schema_tokens(query.fields))
        pool, excluded = self._catalog.eligible(
            self._pool(query.options, route),
            required_capabilities=query.required_capabilities,
            input_tokens=x.input_tokens,
            max_output_tokens=query.max_output_tokens,
            options=query.options if query.options is not NO_OPTIONS else None,
        )
        if not pool:
            raise _no_candidate(route, excluded)
        pool, cooling = self._breaker.available(pool)
        decision_id = self._new_id()
        seed = self._random.getrandbits(32)
        if route.bypass or route.policy is None:
            decision = _bypass(pool.models[0], x, query.max_output_tokens, decision_id)
            decision = self._finish(decision, query, route, x, excluded + cooling, pool)
            return x, decision, budgets.UNLIMITED
        options = query.options
        objective = self._objective(options, route)
        session = (
            self._sessions.get(query.session, time.time()) if len(query.messages) > 1 else None
        )
        reservation = self._budgets.reserve(route.name, objective, query, x)
        decision = route.policy.decide(
            x,
            self._health.candidates(pool),
            objective,
            session,
            id=decision_id,
            seed=seed,
            max_output_tokens=query.max_output_tokens,
        )
        self._learn_traffic(route, decision)
        if reservation.is_limited:
            if serves:
                reservation.restore(self.store)
            paced = objective is route.objective and not options.order
            decision = reservation.rerank(decision, session, paced=paced, commit=serves)
        elif (
            route.explores
            and x.human_turns == 1
            and decision.propensity == 1.0
            and decision.basis != "certified"  # exploring would break what was promised
            # Who asks for models, an order or an objective of their own has not left us the choice.
            and objective is route.objective
            and options.models is None
            and not options.order
            and session is None
            and not x.in_tool_loop
        ):
            decision = self._explored(decision, route)
        if route.explores and serves:
            self._spent(route, decision)
        decision = self._finish(decision, query, route, x, excluded + cooling, pool)
        return x, reservation.filter_plan(decision), reservation

    def _finish(
        self,
        decision: Decision,
        query: Query,
        route: Route,
        x: Features,
        excluded: tuple[ExcludedModel, ...],
        pool: Pool,
    ) -> Decision:
        """The decision with the route's own part: fallbacks, client's wishes, what was left out."""
        plan = decision.plan
        options = query.options
        if options is not NO_OPTIONS:
            plan = _wished(plan, options, {m.name: m for m in pool.models})
        if route.fallbacks and options.allow_fallbacks:
            fit, _ = self._catalog.eligible(
                route.fallbacks,
                required_capabilities=query.required_capabilities,
                input_tokens=x.input_tokens,
            )
            planned = {s.model for s in plan}
            plan += tuple(PlanStep(m.name, "fallback") for m in fit.models if m.name not in planned)
        return msgspec.structs.replace(
            decision,
            route=route.name,
            model=plan[0].model,
            plan=plan,
            excluded=excluded,
            snapshot=route.snapshot,
        )

    # ── parts of the line ────────────────────────────────────────────────────────────────────────

    def resolve(self, name: str) -> Route:
        """A route by name, or one concrete model as a bypass. Raises ModelNotFound."""
        route = self._routes.get(name)
        if route is not None:
            return route
        bare = name.removeprefix("suffice/")
        route = self._routes.get(bare)
        if route is not None:
            return route
        try:
            model = self._catalog.get(name)
        except ModelNotFoundError:
            raise ModelNotFoundError(name, [*self._specs, *self._catalog.names()]) from None
        spec = next(iter(self._specs.values()))
        return Route(
            model.name,
            self._catalog.pool((model,)),
            None,
            Objective(kind="best"),
            timeouts=spec.timeouts,
            retries=spec.retries,
            bypass=True,
        )

    def _pool(self, options: RoutingOptions, route: Route) -> Pool:
        """The route's models, or those the client asked for in this call."""
        names = options.models
        if names is None:
            return route.pool
        pool = self._pools.get(names)
        if pool is None:
            pool = self._catalog.pool(dict.fromkeys(m for n in names for m in self._named(n)))
            if len(self._pools) >= 1024:
                self._pools.clear()
            self._pools[names] = pool
        return pool

    def _named(self, name: str) -> tuple[Model, ...]:
        try:
            return self.resolve(name).models
        except ModelNotFoundError as error:
            error.param = "models"
            raise

    def _objective(self, options: RoutingOptions, route: Route) -> Objective:
        if options.objective is None:
            if options.sort is not None:
                return Objective(kind="cheapest" if options.sort == "price" else "fastest")
            return route.objective
        try:
            asked = policies.parse_objective(options.objective)
            if asked.kind == "usd_per_day":
                raise ValueError("objective.usd_per_day: a budget is the route's, not a request's")
        except ValueError as error:
            raise BadRequestError(
                f"{error}.", param="suffice.objective", code="invalid_value"
            ) from None
        return asked

    def _learn_traffic(self, route: Route, decision: Decision) -> None:
        """The route's own traffic takes the place of what was shipped or trained on."""
        sketch = self._sketches.get(route.name)
        if sketch is None or not sketch.add(decision):
            return
        policy: Any = route.policy
        fresh = policy.with_traffic(sketch)
        if self._policies[route.name] is policy:  # else an alarm or a promotion came in between
            self._policies[route.name] = fresh
            self.__dict__.pop("_routes", None)

    def _explored(self, decision: Decision, route: Route) -> Decision:
        """The decision, now and then with another model in front, to learn from it; with the
        probabilities at which that was drawn."""
        posterior = self._learning.posteriors.get(route.name) if self._learning else None
        told = decision.predictions
        if posterior is None:
            return decision
        names: list[str] = []
        quality: list[float] = []
        cost: list[float] = []
        for p in told:
            if p.quality is None:
                return decision
            names.append(p.model)
            quality.append(p.quality)
            cost.append(nan if p.cost_usd is None else p.cost_usd)
        chosen = names.index(decision.model)
        o = route.objective
        drawn = posterior.sample(
            names,
            quality,
            cost,
            chosen,
            seed=decision.seed,
            quality_per_usd=1.0 / o.value if o.kind == "worth_usd" and o.value else 0.0,
            spend_usd=self._spend.get(route.name),
        )
        propensity = drawn.propensities[drawn.action]
        if propensity == 1.0:
            return decision
        spread = zip(told, drawn.propensities, strict=True)
        predictions = tuple([msgspec.structs.replace(p, propensity=q) for p, q in spread])
        if not drawn.explored:
            return msgspec.structs.replace(decision, predictions=predictions, propensity=propensity)
        model = names[drawn.action]
        first = [s for s in decision.plan if s.model == model]
        rest = [PlanStep(s.model, "failover") for s in decision.plan if s.model != model]
        return msgspec.structs.replace(
            decision,
            model=model,
            plan=tuple([PlanStep(s.model, "choice") for s in first] + rest),
            predictions=predictions,
            propensity=propensity,
            reason=f"{model}: explored (one of {propensity:.2%} of new conversations) instead of "
            f"{decision.model}, to learn how well it does.",
            explored=True,
        )

    def _spent(self, route: Route, decision: Decision) -> None:
        """The route's mean predicted USD a query, of the last hundred or so."""
        model = decision.model
        usd = next((p.cost_usd for p in decision.predictions if p.model == model), None)
        if usd is not None:
            mean = self._spend.get(route.name, usd)
            self._spend[route.name] = mean + _SPEND_NEW * (usd - mean)

    def _draw(self, decision: Decision, x: Features, query: Query) -> monitoring.AuditSample | None:
        """The decision, where it is among the share that is audited."""
        return None if self._audit is None else self._audit.sample(decision, x, query)

    def _cost_of(self, model: str, usage: Usage | None) -> float | None:
        return catalog.price_usd(self._targets[model].model, usage)

    def _larger_window(self, model: str, than: str) -> bool:
        a, b = self._targets[model].model.context_tokens, self._targets[than].model.context_tokens
        return a is None or b is None or a > b

    def _affordable(self, route: Route, x: Features, decision: Decision) -> Any:
        """A check of fallback steps: they must not cost more than the operator agreed to."""
        ceiling = route.fallback_max_usd_per_query
        if ceiling is None:
            known = [p.cost_usd for p in decision.predictions if p.cost_usd is not None]
            ceiling = max(known, default=None)
        output = 80 + int(700 * (decision.difficulty or 0.5))

        def check(step: PlanStep) -> str | None:
            if step.role != "fallback" or ceiling is None:
                return None
            usage = Usage(input_tokens=x.input_tokens, output_tokens=output)
            cost = self._cost_of(step.model, usage)
            if cost is None:
                return "a fallback of unknown price"
            if cost > ceiling * 1.0001:
                return f"a fallback at ${cost:.6f} is above the ceiling of ${ceiling:.6f}"
            return None

        return check

    def _record(
        self, answer: RoutedResponse, status: int, error: str | None, attempts: Any
    ) -> None:
        reply, query = answer.reply, answer.query
        tries: tuple[Attempt, ...] = tuple(attempts if reply is None else reply.attempts)
        if attempts is None and reply is None:
            tries = ()
        now_s = time.time()
        record = RequestRecord(
            decision=answer.decision,
            attempts=tries,
            created_s=now_s,
            request_id=query.request_id,
            status=status,
            model=reply.model if reply is not None else None,
            usage=reply.usage if reply is not None else None,
            cost_usd=reply.cost_usd if reply is not None else execution.sum_cost_usd(tries),
            latency_s=perf_counter() - answer._started,
            first_chunk_s=reply.first_chunk_s if reply is not None else None,
            overhead_ms=answer.overhead_ms,
            dialect=query.dialect,
            stream=query.stream,
            session=query.session,
            key_id=query.key_id,
            features=answer._x,
            prompt=bytes(query.fields["messages"]) if self._keep_prompts else None,
            error=error,
            metadata=query.options.metadata,
        )
        if reply is not None and status < 400:
            self._sessions.put(query.session, reply, answer._x.input_tokens, now_s)
        self.store.append(record)
        self._telemetry.emit(record)
        enabled = self._implicit.get(record.decision.route)
        if enabled:
            self._heard(answer, record, enabled)
        if answer.audit_sample is not None and self._audit is not None:
            self._audit.submit(
                answer.audit_sample, record, reply.body if reply is not None else b""
            )

    def _heard(
        self, answer: RoutedResponse, record: RequestRecord, enabled: Mapping[str, float]
    ) -> None:
        """Scores that the reply gives itself: a broken schema, a refusal, asked again, ..."""
        query = answer.query
        asked_s = record.created_s - record.latency_s
        repeats = None
        if "retried" in enabled and record.status < 400:
            repeats = self._repeats.observe(
                record.decision.id, query, asked_s=asked_s, answered_s=record.created_s
            )
        found = implicit.detect_implicit_feedback(
            record.decision,
            query.fields,
            record.attempts,
            answer.reply.body if answer.reply is not None and not query.stream else b"",
            enabled=enabled,
            now_s=record.created_s,
            max_output_tokens=query.max_output_tokens,
            repeats=repeats,
        )
        if found:
            self.store.feedback.append(found)
            for f in found:
                self._telemetry.feedback(f)

    def _make_policy(self, spec: Any) -> Policy:
        if policies.is_path(spec.policy):
            policy: Any = policies.load_trained(self._beside_config(spec.policy))
        else:
            try:
                policy = policies.make(spec.policy, features.SIGNAL_NAMES)
            except ValueError as error:
                raise ConfigError(
                    f"{error}.",
                    field=f"routes.{spec.name}.policy",
                    source=self._resolved.settings.source,
                ) from None
        return self._certified(policy, spec)

    def _certified(self, policy: Any, spec: Any) -> Policy:
        """The policy under the route's certificate: the one it names, else the one that lies beside
        its artifact."""
        path = self._certificate_file(spec)
        if path is None or (spec.certificate is None and not path.exists()):
            return policy  # type: ignore[no-any-return]
        if not isinstance(policy, policies.Certifiable):
            raise ConfigError(
                f"The policy {spec.policy!r} cannot be certified.",
                field=f"routes.{spec.name}.certificate",
                source=self._resolved.settings.source,
            )
        return policy.with_certificate(certificate.load(path))

    def _certificate_file(self, spec: Any) -> Path | None:
        """Where a route's certificate is or would be; None where the config names no place for it."""
        if spec.certificate is not None:
            return Path(self._beside_config(spec.certificate))
        if policies.is_path(spec.policy):
            return certificate.default_path(self._beside_config(spec.policy))
        return None

    def _serving(self, route: str) -> monitoring.ServedCertificate:
        policy: Any = self._policies[route]
        told = getattr(self._configured[route], "certificate", None)
        return monitoring.ServedCertificate(told, getattr(policy, "alarm", ""))

    def _rely(self, route: str, told: certificate.Certificate | None, alarm: str) -> None:
        """Serve a route under another certificate, or under an alarm, from the next request on."""
        for held in (self._configured, self._policies):
            policy: Any = held[route]
            if isinstance(policy, policies.Certifiable):
                held[route] = policy.with_certificate(told, alarm)
        self.__dict__.pop("_routes", None)

    def _beside_config(self, name: str) -> str:
        """A file named in the config: beside the config, else from where we are."""
        beside = Path(self._resolved.settings.source).parent / name
        return str(beside if beside.exists() else name)

    # ── what users of the class call ─────────────────────────────────────────────────────────────

    @functools.cached_property
    def _routes(self) -> dict[str, Route]:
        return {
            name: Route(
                name,
                self._catalog.pool(spec.models),
                self._policies[name],
                spec.objective,
                self._catalog.pool(spec.fallbacks),
                spec.fallback_max_usd_per_query,
                timeouts=spec.timeouts,
                retries=spec.retries,
                snapshot=self._snapshots.get(name),
                explores=spec.learning == "on" and spec.explore_share > 0.0,
                implicit=spec.implicit_feedback,
            )
            for name, spec in self._specs.items()
        }

    @property
    def routes(self) -> Mapping[str, Route]:
        """Routes by name."""
        return self._routes

    @property
    def version(self) -> str:
        """Of the package."""
        from importlib.metadata import version

        return version("suffice")

    @property
    def source(self) -> str:
        """Where the settings came from: a file's path, or words."""
        return str(self._resolved.settings.source)

    def route_specs(self) -> tuple[Any, ...]:
        """The routes as the config gives them, every name in them resolved."""
        return tuple(self._specs.values())

    def route_names(self) -> tuple[str, ...]:
        return tuple(self._specs)

    def models(self) -> tuple[Model, ...]:
        """The catalog in use."""
        return self._catalog.models()

    @property
    def _learns(self) -> bool:
        return any(spec.learning != "off" for spec in self._specs.values())

    @property
    def store(self) -> Store:
        """The store; opened at its first use, so that explaining a decision touches no disk."""
        if self._store is None:
            from suffice.store import open_store

            own = self._resolved.settings.store
            self._store = open_store(
                own.url,
                keep_prompts=own.keep_prompts,
                # 27 us a record on the store's thread: only where something is learned from it.
                embed=_embedded if self._learns else None,
                shadow=self._shadow,
            )
        return self._store

    @property
    def transport(self) -> Transport:
        """What sends the upstream requests; made at its first use."""
        if self._transport is None:
            from suffice.providers.transport import HTTPTransport

            self._transport = HTTPTransport()
        return self._transport

    @property
    def budgets(self) -> budgets.Budgets:
        """The money limits of all routes."""
        return self._budgets

    def decide(self, query: Query) -> Decision:
        """The Decision for a parsed query. Calls and stores nothing."""
        x, decision, _ = self._evaluate(query, self.resolve(query.model))
        return msgspec.structs.replace(decision, features=features.explain(x))

    def route(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        route: str = "auto",
        objective: Any = None,
        models: Sequence[str] | None = None,
        tools: Sequence[Any] | None = None,
        response_format: Any = None,
        max_tokens: int | None = None,
        session: str | None = None,
    ) -> Decision:
        """Evaluate and select without calling anything: needs no keys and no network.

        messages: a prompt, or messages in OpenAI's shape. Raises BadRequest, ModelNotFound,
        NoCandidate.
        """
        from suffice.dialects.openai_request import parse_chat

        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        body: dict[str, Any] = {"model": route, "messages": messages}
        own = {"objective": objective, "models": models, "session": session}
        given = {k: v for k, v in own.items() if v is not None}
        optional = {"tools": tools, "response_format": response_format, "max_tokens": max_tokens}
        body.update({k: v for k, v in optional.items() if v is not None})
        if given:
            body["suffice"] = given
        return self.decide(parse_chat(msgspec.json.encode(body), {}))

    def explain(self, decision: Decision) -> dict[str, Any]:
        """A decision as plain data, ready for JSON."""
        plain = msgspec.to_builtins(decision)
        assert isinstance(plain, dict)
        return {"object": "decision", **plain}

    def decision(self, decision_id: str) -> dict[str, Any] | None:
        """A recorded decision with its attempts and feedback; None where there is none."""
        found = self.store.decision(decision_id)
        if found is not None and found.get("feature_vector") is not None:
            # Kept as numbers only; what stood out is worked out when somebody asks.
            found["features"] = features.explain_vector(found["feature_vector"])
        return found

    def feedback(
        self,
        decision_id: str,
        score: float | None = None,
        *,
        verdict: str | None = None,
        source: str = "user",
        comment: str | None = None,
        key: str | None = None,
        created_s: float | str | None = None,
        key_id: str | None = None,
    ) -> Feedback:
        """Score a decision in [0, 1], or give the verdict "good" (1) or "bad" (0). The same
        (decision, source, key) again replaces the score.

        created_s: when it was judged, unix time or ISO 8601; None = now. key_id: the client's key,
        which scores its own decisions only; None = any. Raises BadRequest or Unprocessable that
        names the field, NotFound for an unknown decision, StoreError where it cannot be stored.
        """
        fields = {
            "decision_id": decision_id,
            "score": score,
            "verdict": verdict,
            "source": source,
            "comment": comment,
            "key": key,
            "created": created_s,
        }
        given = checked(fields, time.time())
        if not self.store.feedback.add(given, key_id=key_id):
            raise NotFoundError(f"There is no decision {decision_id!r}.", param="decision_id")
        self._telemetry.feedback(given)
        return given

    def feedback_batch(
        self, batch: Sequence[Mapping[str, Any]], *, key_id: str | None = None
    ) -> list[dict[str, Any]]:
        """`feedback` for up to 1,000 at once. Each item: decision_id, score or verdict, and optional
        source, comment, key, created.

        One result for each, in order: decision_id, status ("stored", "not_found" or "invalid") and,
        where it was not stored, a message. Raises Unprocessable for an empty or longer batch,
        StoreError where nothing can be stored now.
        """
        items = checked_batch(batch, time.time())
        scores = [f for f in items if isinstance(f, Feedback)]
        stored = iter(self.store.feedback.add_batch(scores, key_id=key_id))
        results: list[dict[str, Any]] = []
        for f in items:
            if not isinstance(f, Feedback):
                results.append(f)
                continue
            done: dict[str, Any] = {"decision_id": f.decision_id, "status": "stored"}
            if next(stored):
                self._telemetry.feedback(f)
            else:
                message = f"There is no decision {f.decision_id!r}."
                done.update(status="not_found", message=message, param="decision_id")
            results.append(done)
        return results

    def ready(self) -> dict[str, Any]:
        """ok, or degraded (serving, but the store is down and records are spooled)."""
        health = self.store.health()
        return {
            "status": "ok" if health.ok else "degraded",
            "store": msgspec.to_builtins(health),
            "cooling_down": self._breaker.open_models(),
            "learning": dict(self._learning.problems) if self._learning is not None else {},
            "watch": self._audit.state() if self._audit is not None else {},
            "budgets": self._budgets.totals(),
            "warnings": list(self.warnings),
        }

    def metrics(self) -> bytes:
        """Prometheus text."""
        return self._metrics.render()

    def warm_up(self) -> None:
        """Open store and transport and decide once, so that no client pays for the first time."""
        self.store.warm_up()
        self._budgets.restore(self.store)
        self.transport.prepare(target.provider.base_url for target in self._targets.values())
        for name, route in self._routes.items():
            if route.policy is not None:
                self._warm(name, route.policy)

    def _warm(self, route: str, policy: Policy) -> None:
        """Let the policy decide once, so that what it works out for a pool is there."""
        pool = self._routes[route].pool
        pool, _ = self._catalog.eligible(pool, required_capabilities=frozenset(), input_tokens=1)
        x = features.extract((Message("user", "warm up"),))
        policy.decide(x, self._health.candidates(pool), self._specs[route].objective)

    def start_learning(self, *, thread: bool = True) -> learning.LearningWorker:
        """The learning of this process, begun where it was not: a background thread that follows
        promotions and, where it holds the route's lease, learns from feedback. thread False: no
        thread; the caller calls `step`."""
        if self._learning is None:
            routes = [
                learning.LearningRoute(
                    name,
                    spec.learning,
                    spec.models,
                    getattr(self._configured[name], "artifact", None),
                    spec.explore_share,
                )
                for name, spec in self._specs.items()
            ]
            owner = f"{os.getpid()}-{os.urandom(8).hex()}"
            self._learning = learning.LearningWorker(
                routes, self.store, _facts, self._swap, owner=owner, clients=len(self.api_keys)
            )
        if thread:
            self._learning.start()
        return self._learning

    def start_monitoring(self, *, thread: bool = True) -> monitoring.CertificateMonitor | None:
        """The audits and the watch over certificates of this process, begun where they were not;
        None where no route has them. thread False: no thread; the caller calls `step`."""
        watched = {n: s.audit for n, s in self._specs.items() if s.audit is not None}
        if self._audit is None and watched:
            calls = monitoring.MonitorDependencies(
                engine=self._engine,
                caller=lambda query: UpstreamCaller(self, query, budgets.UNLIMITED),
                cost_of=self._cost_of,
                spend=self.store.spend,
                record=self._aside,
                label=self._labelled,
                counted=self._metrics.audited,
                new_id=self._new_id,
            )
            routes = {
                n: (
                    monitoring.AuditedRoute(n, own, self._specs[n].timeouts),
                    monitoring.WatchedRoute(n, own, self._certificate_file(self._specs[n])),
                )
                for n, own in watched.items()
            }
            self._audit = monitoring.CertificateMonitor(
                routes,
                self.store,
                calls,
                self._serving,
                self._rely,
                owner=f"{os.getpid()}-{os.urandom(8).hex()}",
                seed=self._random.getrandbits(32),
            )
            self._metrics.gauges = self._audit.gauges
        if thread and self._audit is not None:
            self._audit.start()
        return self._audit

    def _aside(self, record: RequestRecord) -> None:
        """A call that no client asked for."""
        self.store.append(record)
        self._telemetry.emit(record)

    def _labelled(self, feedback: Feedback) -> None:
        self.store.feedback.append((feedback,))
        self._telemetry.feedback(feedback)

    def _new_id(self) -> str:
        return f"dec_{int(time.time() * 1000):011x}{self._random.getrandbits(64):016x}"

    def _shadow(self, record: RequestRecord) -> dict[str, Any] | None:
        """What the learned policy would have decided, where it only looks on. Asked on the store's
        thread. A conversation counts as begun by the model that it has."""
        decision, x = record.decision, record.features
        spec = self._specs.get(decision.route)
        if self._learning is None or spec is None or spec.learning != "shadow" or x is None:
            return None
        policy = self._learning.shadow_policies.get(decision.route)
        if policy is None:
            return None
        pool = self._catalog.pool(self._targets[p.model].model for p in decision.predictions)
        session = Session("", decision.model) if x.human_turns > 1 or x.in_tool_loop else None
        told = policy.decide(
            x, self._health.candidates(pool), decision.objective, session, seed=decision.seed
        )
        return {
            "model": told.model,
            "policy_version": told.policy_version,
            "propensity": told.propensity,
            "quality": next(p.quality for p in told.predictions if p.model == told.model),
        }

    def _swap(self, route: str, policy: Any, version: str | None) -> None:
        """Serve another policy from the next request on; None: the configured one."""
        if version == self._snapshots.get(route):
            return
        serves = self._configured[route] if policy is None else policy
        if policy is not None:
            own: Any = self._configured[route]
            told, alarm = getattr(own, "certificate", None), getattr(own, "alarm", "")
            serves = policy.with_certificate(told, alarm)
            self._warm(route, serves)  # on the learner's thread, not on that of the next request
        if version is None:
            self._snapshots.pop(route, None)
        else:
            self._snapshots[route] = version
        self._policies[route] = serves
        if isinstance(serves, policies.TrafficAware):
            self._sketches[route] = serves.traffic_window()
        self.__dict__.pop("_routes", None)

    def close(self) -> None:
        """Flush and close the store. The transport of a running loop is closed by `aclose`."""
        if self._audit is not None:
            self._audit.stop()
        if self._learning is not None:
            self._learning.stop()
        self._budgets.close()
        if self._store is not None:
            self._store.close()

    async def aclose(self) -> None:
        """Close the upstream connections, then flush and close the store."""
        if self._audit is not None:
            await self._audit.aclose()
        if self._transport is not None:
            await self._transport.aclose()
            self._transport = None
        await asyncio.to_thread(self.close)


EXAMPLE_POOL = "an example pool (no config, no keys)"


def _facts() -> learning.FeatureSpec:
    mean, deviation = features.feature_scaler()
    return learning.FeatureSpec(
        features.SCHEMA,
        features.embedding_version(),
        features.DIMENSIONS,
        mean,
        deviation,
        features.SIGNAL_NAMES.index("log_prompt_tokens"),
    )


def _embedded(x: Features) -> Any:
    return None if x.token_ids is None and x.embedding is None else features.embed(x)


def _status_of(error: UpstreamError) -> int:
    return {"rate_limit": 429, "overloaded": 503, "bad_request": 400}.get(error.kind, 502)


def _schema_tokens(fields: Mapping[str, msgspec.Raw]) -> int:
    """About how many tokens tools and a response format add to the prompt."""
    total = 0
    for name in ("tools", "functions", "response_format"):
        raw = fields.get(name)
        if raw is not None:
            total += len(bytes(raw)) // 4
    return total


def _no_candidate(route: Route, excluded: tuple[ExcludedModel, ...]) -> NoEligibleModelError:
    reasons = {e.model: e.reason for e in excluded}
    listed = "; ".join(f"{m}: {reason}" for m, reason in reasons.items()) or "its pool is empty"
    return NoEligibleModelError(
        f"No model of {route.name!r} can take this query. {listed}.",
        reasons=reasons,
        permanent=all(e.permanent for e in excluded),
    )


def _bypass(model: Model, x: Features, limit: int | None, decision_id: str) -> Decision:
    """A concrete model was asked for: recorded, not routed."""
    return Decision(
        id=decision_id,
        model=model.name,
        plan=(PlanStep(model.name),),
        predictions=(Prediction(model.name, None, None, None, 1.0),),
        reason=f"{model.name} was asked for by name: recorded, not routed.",
        policy="bypass",
        policy_version="bypass-1",
        objective=Objective(kind="best"),
        basis="bypass",
    )


def _wished(
    plan: tuple[PlanStep, ...], options: RoutingOptions, models: Mapping[str, Model]
) -> tuple[PlanStep, ...]:
    """The plan by the client's own order of providers, and without failover where it said so."""
    if options.order:
        rank = {p: i for i, p in enumerate(options.order)}
        order = sorted(plan, key=lambda s: rank.get(models[s.model].provider, len(rank)))
        plan = tuple(
            PlanStep(s.model, "choice" if i == 0 else "failover") for i, s in enumerate(order)
        )
    return plan if options.allow_fallbacks else plan[:1]
