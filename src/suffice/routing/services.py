"""What a router opens and runs beside requests: store, transport, learning, certificate monitoring."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice import features, monitoring
from suffice.artifacts.artifact import Artifact
from suffice.artifacts.certificate import Certificate
from suffice.budgets import UNLIMITED
from suffice.learning.warm_start import FeatureSpec
from suffice.learning.worker import LearningRoute, LearningWorker
from suffice.policies.trained import TrainedPolicy
from suffice.routing.policy_loader import certificate_path
from suffice.transport import Transport
from suffice.types import Features, Feedback, Message, Policy, RequestRecord

if TYPE_CHECKING:
    from suffice.catalog import Catalog
    from suffice.config import ResolvedConfig
    from suffice.execution import Engine
    from suffice.learning.frozen_posterior import FrozenPosterior
    from suffice.routing.response import RoutedResponse
    from suffice.routing.routes import Route, RouteTable
    from suffice.routing.shadow import ShadowDecider
    from suffice.routing.upstreams import Upstreams
    from suffice.store.protocols import Store
    from suffice.telemetry import Metrics, Telemetry


class Services:
    """The handles of one router. Each is opened at its first use and closed by `close`."""

    def __init__(
        self,
        config: ResolvedConfig,
        routes: RouteTable,
        catalog: Catalog,
        engine: Engine,
        telemetry: Telemetry,
        metrics: Metrics,
        shadow: ShadowDecider,
        *,
        transport: Transport | None = None,
        store: Store | None = None,
    ) -> None:
        """Keep what the services are made of; nothing is opened yet.

        Args:
            config: the resolved configuration.
            routes: what learning and monitoring change.
            catalog: the models in use.
            engine: makes the calls of audits.
            telemetry: observes what monitoring records.
            metrics: counts audits.
            shadow: is given the policies that learning keeps as shadows.
            transport: None = HTTP.
            store: None = the one that the configuration names.
        """
        self.learning: LearningWorker | None = None
        self.monitor: monitoring.CertificateMonitor | None = None
        self._config = config
        self._routes = routes
        self._catalog = catalog
        self._engine = engine
        self._telemetry = telemetry
        self._metrics = metrics
        self._shadow = shadow
        self._transport = transport
        self._store = store

    @property
    def store(self) -> Store:
        """The store; opened at its first use, so that explaining a decision touches no disk."""
        if self._store is None:
            from suffice.store import open_store

            settings = self._config.settings.store
            learns = any(spec.learning != "off" for spec in self._config.routes.values())
            self._store = open_store(
                settings.url,
                keep_prompts=settings.keep_prompts,
                # 27 us per record on the store's thread: only if something is learned from it.
                embed=_embed if learns else None,
                shadow=self._shadow.decide,
            )
        return self._store

    @property
    def transport(self) -> Transport:
        """What sends the upstream requests; made at its first use."""
        if self._transport is None:
            from suffice.providers.transport import HTTPTransport

            self._transport = HTTPTransport()
        return self._transport

    def warm_up(self) -> None:
        """Open store and transport and decide once per route, so that no client waits for it."""
        self.store.warm_up()
        models, providers = self._config.models, self._config.providers
        self.transport.prepare(providers[m.provider].base_url for m in models)
        for route in self._routes:
            self._warm_up_policy(route, route.serving.policy)

    def _warm_up_policy(self, route: Route, policy: Policy) -> None:
        """Let a policy decide once, so that what it computes per pool is there."""
        pool, _ = self._catalog.eligible(
            route.pool, required_capabilities=frozenset(), input_tokens=1
        )
        x = features.extract((Message("user", "warm up"),))
        policy.decide(x, self._engine.latency.candidates(pool), route.objective)

    # ── learning ─────────────────────────────────────────────────────────────────────────────────

    def start_learning(self, *, thread: bool = True) -> LearningWorker:
        """Make the learning worker of this process, unless there is one, and start its thread.

        Args:
            thread: False = no thread; the caller calls `step`.

        Returns:
            The worker.
        """
        if self.learning is None:
            self.learning = LearningWorker(
                [
                    LearningRoute(
                        spec.name,
                        spec.learning,
                        spec.models,
                        _artifact(self._routes[spec.name].configured_policy),
                        spec.explore_share,
                    )
                    for spec in self._config.routes.values()
                ],
                self.store,
                _feature_spec,
                self._set_policy,
                owner=_owner(),
                clients=len(self._config.api_keys),
            )
            self._shadow.policies = self.learning.shadow_policies
        if thread:
            self.learning.start()
        return self.learning

    def _set_policy(self, route: str, policy: Policy | None, version: str | None) -> None:
        # On the learner's thread, so the policy is warm when the next request meets it.
        target = self._routes[route]
        target.set_policy(policy, version, lambda p: self._warm_up_policy(target, p))

    def posterior(self, route: str) -> FrozenPosterior | None:
        """What a route explores by; None until something was learned."""
        return None if self.learning is None else self.learning.posteriors.get(route)

    # ── monitoring ───────────────────────────────────────────────────────────────────────────────

    def start_monitoring(
        self, upstreams: Upstreams, new_id: Callable[[], str], seed: int, *, thread: bool = True
    ) -> monitoring.CertificateMonitor | None:
        """Make the certificate monitor of this process, unless there is one, and start its thread.

        Args:
            upstreams: call the reference model and the judge.
            new_id: makes the ids of the monitor's own calls.
            seed: of the order in which a judge sees two answers.
            thread: False = no thread; the caller calls `step`.

        Returns:
            None if no route is monitored.
        """
        specs = [s for s in self._config.routes.values() if s.audit is not None]
        if self.monitor is None and specs:
            source = self._config.settings.source
            self.monitor = monitoring.CertificateMonitor(
                {
                    s.name: (
                        monitoring.AuditedRoute(s.name, s.audit, s.timeouts),
                        monitoring.WatchedRoute(s.name, s.audit, certificate_path(s, source)),
                    )
                    for s in specs
                    if s.audit is not None
                },
                self.store,
                monitoring.MonitorDependencies(
                    engine=self._engine,
                    caller=lambda query: upstreams.caller(query, UNLIMITED),
                    cost_of=upstreams.cost_of,
                    spend=self.store.spend,
                    record=self.record_internal_call,
                    label=self.store_audit_label,
                    count_outcome=self._metrics.audited,
                    new_id=new_id,
                ),
                self._served_certificate,
                self._set_certificate,
                owner=_owner(),
                seed=seed,
            )
            self._metrics.gauges = self.monitor.gauges
        if thread and self.monitor is not None:
            self.monitor.start()
        return self.monitor

    def sample_for_audit(self, response: RoutedResponse) -> monitoring.AuditSample | None:
        """What collects the answer for an audit, if the decision is among the audited share."""
        if self.monitor is None:
            return None
        return self.monitor.sample(response.decision, response.features, response.query)

    def submit_for_audit(self, response: RoutedResponse, record: RequestRecord) -> None:
        """Hand a recorded answer to the audits, if its decision is among the audited share."""
        if response.audit_sample is not None and self.monitor is not None:
            body = b"" if response.reply is None else response.reply.body
            self.monitor.submit(response.audit_sample, record, body)

    def append(self, record: RequestRecord) -> None:
        """Queue a record for the store."""
        self.store.append(record)

    def record_internal_call(self, record: RequestRecord) -> None:
        """Store the record of a call that no client asked for."""
        self.store.append(record)
        self._telemetry.emit(record)

    def store_audit_label(self, feedback: Feedback) -> None:
        """Store the label of an audit."""
        self.store.feedback.append((feedback,))
        self._telemetry.feedback(feedback)

    def _served_certificate(self, route: str) -> monitoring.ServedCertificate:
        serving = self._routes[route].serving
        return monitoring.ServedCertificate(serving.certificate, serving.alarm)

    def _set_certificate(self, route: str, certificate: Certificate | None, alarm: str) -> None:
        self._routes[route].set_certificate(certificate, alarm)

    def state(self) -> dict[str, object]:
        """The state of the process, as `/readyz` shows it.

        Returns:
            Plain data. Its `status` is "unready" if every model of every route is cooling
            down, "degraded" if the store is down and records are spooled, else "ok".
        """
        health = self.store.health()
        cooling_down = self._engine.breaker.open_models()
        reachable = {name for route in self._routes for name in route.reachable.names}
        status = "ok" if health.ok else "degraded"
        return {
            "status": status if reachable - cooling_down.keys() else "unready",
            "store": msgspec.to_builtins(health),
            "cooling_down": cooling_down,
            "learning": {} if self.learning is None else dict(self.learning.problems),
            "watch": {} if self.monitor is None else self.monitor.state(),
            "warnings": list(self._config.warnings),
        }

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """Stop the threads, then flush and close the store. The transport needs `aclose`."""
        if self.monitor is not None:
            self.monitor.stop()
        if self.learning is not None:
            self.learning.stop()
        if self._store is not None:
            self._store.close()

    async def aclose(self) -> None:
        """Close the upstream connections, then do what `close` does."""
        if self.monitor is not None:
            await self.monitor.aclose()
        if self._transport is not None:
            await self._transport.aclose()
            self._transport = None
        await asyncio.to_thread(self.close)


def _owner() -> str:
    return f"{os.getpid()}-{os.urandom(8).hex()}"


def _artifact(policy: Policy) -> Artifact | None:
    return policy.artifact if isinstance(policy, TrainedPolicy) else None


def _feature_spec() -> FeatureSpec:
    mean, std = features.feature_scaler()
    return FeatureSpec(
        features.SCHEMA,
        features.embedding_version(),
        features.DIMENSIONS,
        mean,
        std,
        features.SIGNAL_NAMES.index("log_prompt_tokens"),
    )


def _embed(x: Features) -> NDArray[np.float32] | None:
    return None if x.token_ids is None and x.embedding is None else features.embed(x)
