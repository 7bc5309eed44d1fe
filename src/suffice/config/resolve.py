"""Resolves the names in the settings to models, providers and routes."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from suffice import catalog, policies
from suffice.config.providers import did_you_mean, resolve_provider
from suffice.config.settings import AuditSettings, RouteSettings, Settings
from suffice.config.specs import AuditSpec, ResolvedConfig, RouteSpec
from suffice.errors import ConfigError, nearest
from suffice.judging import model_family
from suffice.providers.registry import PROVIDERS
from suffice.types import Model, Provider, RetryPolicy, Timeouts

MAX_AUDITED_ROUTE_NAME = 96  # characters; audits and monitoring add their own to the name


def resolve(
    settings: Settings, env: Mapping[str, str], *, need_keys: bool = True
) -> ResolvedConfig:
    """Resolve settings to the records that the router is built from.

    Args:
        settings: The settings.
        env: The environment, which holds the keys.
        need_keys: Whether models whose provider has no key are left out. `doctor` and dry runs, which
            call nothing, keep them.

    Returns:
        Records with nothing left to look up, and warnings.

    Raises:
        ConfigError: A name cannot be resolved.
    """
    return _Resolver(settings, env, need_keys=need_keys).resolve()


def check_bind(host: str, api_keys: tuple[str, ...], keys_env: str) -> None:
    """Refuse a host that other machines can reach if no key protects it.

    Raises:
        ConfigError: The host is not a loopback address and there are no keys.
    """
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and not api_keys:
        raise ConfigError(
            f"{host} is reachable from other machines and no key protects it.",
            field="server.host",
            remedy=f"Put keys into the environment variable {keys_env} (comma-separated), or "
            "listen on 127.0.0.1.",
        )


class _Resolver:
    """One pass over the settings."""

    def __init__(self, settings: Settings, env: Mapping[str, str], *, need_keys: bool) -> None:
        self._settings = settings
        self._env = env
        self._need_keys = need_keys
        self._builtin = {m.name: m for m in catalog.builtin_models()}
        self._warnings = list(settings.warnings)
        self._providers: dict[str, Provider] = {}
        self._models: dict[str, Model] = {}

    def resolve(self) -> ResolvedConfig:
        settings = self._settings
        routed = set(_routed_models(settings))
        for name in dict.fromkeys([*settings.models, *_routed_models(settings)]):
            self._models[name] = self._resolve_model(name)
        self._warn_unused(routed)
        usable = {n: m for n, m in self._models.items() if self._is_usable(m)}
        routes = {
            name: self._resolve_route(name, route, usable)
            for name, route in settings.routes.items()
        }
        if not routes:
            raise ConfigError(
                "There are no routes.",
                field="routes",
                source=settings.source,
                remedy='Add [routes.auto] with models = ["provider/model", ...].',
            )
        return ResolvedConfig(
            settings,
            tuple(usable.values()),
            self._providers,
            routes,
            self._client_keys(),
            tuple(self._warnings),
        )

    def _client_keys(self) -> tuple[str, ...]:
        server = self._settings.server
        keys = self._env.get(server.api_keys_env, "").split(",")
        stripped = tuple(key.strip() for key in keys if key.strip())
        if not stripped and "api_keys_env" in server.model_fields_set:
            self._warnings.append(
                f"server.api_keys_env: the environment variable {server.api_keys_env} holds no key, "
                "so clients need none."
            )
        return stripped

    def _is_usable(self, model: Model) -> bool:
        provider = self._providers[model.provider]
        return not self._need_keys or bool(provider.api_key) or not provider.api_key_env

    # ── models ───────────────────────────────────────────────────────────────────────────────────

    def _resolve_model(self, name: str) -> Model:
        settings = self._settings
        provider, slash, upstream = name.partition("/")
        if not slash or not provider or not upstream:
            close = nearest(name, [*self._builtin, *settings.models])
            raise ConfigError(
                f"{name!r} is not of the form provider/model.",
                field="models",
                source=settings.source,
                remedy=f"Nearest known: {', '.join(close)}." if close else "Write provider/model.",
            )
        overrides = settings.models.get(name)
        local = provider in PROVIDERS and PROVIDERS[provider].local
        model = self._builtin.get(name)
        priced = overrides is not None and overrides.input_usd_per_mtok is not None
        if model is None and not priced and provider in PROVIDERS and not local:
            model = catalog.lookup(provider, upstream)
        if model is None:
            model = Model(name=name, provider=provider, upstream=upstream)
            if local:
                free = {"input_usd_per_mtok": 0.0, "output_usd_per_mtok": 0.0}
                model = catalog.apply_overrides(model, free)
        if overrides is not None:
            model = catalog.apply_overrides(model, overrides.model_dump())
        if not _is_priced(model):
            # An unknown model of a known provider is probably misspelt.
            others = [n for n in self._builtin if n.startswith(f"{provider}/")]
            self._warnings.append(
                f"models.{name}: its price is unknown; costs with it are shown as unknown."
                + did_you_mean(name, others)
            )
        if provider not in self._providers:
            self._providers[provider] = resolve_provider(
                provider, name, settings, self._env, self._warnings, need_keys=self._need_keys
            )
        return model

    def _warn_unused(self, routed: set[str]) -> None:
        """Warn of tables that are probably misspelt: nothing uses them."""
        settings = self._settings
        for name in settings.models:
            provider, _, upstream = name.partition("/")
            if name in routed or name in self._builtin:
                continue
            if provider in PROVIDERS and catalog.lookup(provider, upstream) is not None:
                continue
            self._warnings.append(
                f"models.{name}: no route uses this model and the catalog does not know it."
                + did_you_mean(name, [*routed, *self._builtin])
            )
        used = {m.provider for m in self._models.values()}
        for name in settings.providers:
            if name not in used and name not in PROVIDERS:
                self._warnings.append(
                    f"providers.{name}: no model uses this provider."
                    + did_you_mean(name, [*used, *PROVIDERS])
                )

    # ── routes ───────────────────────────────────────────────────────────────────────────────────

    def _resolve_route(
        self, name: str, route: RouteSettings, usable: Mapping[str, Model]
    ) -> RouteSpec:
        models = tuple(usable[n] for n in dict.fromkeys(route.models) if n in usable)
        if not models:
            variables = {
                str(self._providers[self._models[n].provider].api_key_env) for n in route.models
            }
            raise ConfigError(
                "None of its models can be called: their keys are not in the environment.",
                field=f"routes.{name}.models",
                source=self._settings.source,
                remedy=f"Set {' or '.join(sorted(variables))}.",
            )
        t, r = route.timeouts, route.retries
        return RouteSpec(
            name=name,
            models=models,
            policy=route.policy,
            certificate=route.certificate,
            learning=route.learning,
            explore_share=route.explore_share,
            implicit_feedback={str(signal): w for signal, w in route.implicit_feedback.items()},
            audit=None
            if route.audit is None
            else self._resolve_audit(name, route.audit, models, usable),
            objective=policies.parse_objective(route.objective),
            fallbacks=tuple(usable[n] for n in route.fallbacks if n in usable),
            fallback_max_usd_per_query=route.fallback_max_usd_per_query,
            timeouts=Timeouts(
                t.connect_s, t.first_chunk_s or 30.0, t.idle_s, t.total_s, t.first_chunk_s
            ),
            retries=RetryPolicy(r.per_model, r.max_attempts, r.backoff_base_s, r.max_wait_s),
        )

    def _resolve_audit(
        self,
        route: str,
        audit: AuditSettings,
        models: tuple[Model, ...],
        usable: Mapping[str, Model],
    ) -> AuditSpec:
        field = f"routes.{route}.audit"
        if len(route) > MAX_AUDITED_ROUTE_NAME:
            raise self._audit_error(
                f"An audited route has a name of at most {MAX_AUDITED_ROUTE_NAME} characters.",
                field,
                "Give the route a shorter name.",
            )
        if audit.sample_rate > 0.0 and audit.judge is None:
            raise self._audit_error(
                "Audits need a judge.",
                f"{field}.judge",
                'Add judge = "provider/model", best of another family than the judged models.',
            )
        judge = usable.get(audit.judge or "")
        if audit.judge is not None and judge is None:
            self._warnings.append(f"{field}: {audit.judge} cannot be called: nothing is audited.")
        if judge is not None and audit.sample_rate > 0.0:
            if not _is_priced(judge):
                raise self._audit_error(
                    f"The price of {judge.name} is unknown, so max_usd_per_day could not be kept.",
                    f"{field}.judge",
                    f'Give its prices under [models."{judge.name}"], or take another judge.',
                )
            family = model_family(judge.name)
            relatives = [m.name for m in models if model_family(m.name) == family]
            if relatives:
                self._warnings.append(
                    f"{field}.judge: {judge.name} is of the same family as {', '.join(relatives)}: "
                    "judges favour answers of their own kind."
                )
        return AuditSpec(
            sample_rate=audit.sample_rate,
            judge=judge,
            max_usd_per_day=audit.max_usd_per_day,
            false_alarm_rate=audit.false_alarm_rate,
            trusted_sources=frozenset(audit.trusted_sources),
        )

    def _audit_error(self, message: str, field: str, remedy: str) -> ConfigError:
        return ConfigError(message, field=field, source=self._settings.source, remedy=remedy)


def _routed_models(settings: Settings) -> list[str]:
    """Every model that a route names, in order."""
    names: list[str] = []
    for route in settings.routes.values():
        names += [*route.models, *route.fallbacks]
        if route.audit is not None and route.audit.judge is not None:
            names.append(route.audit.judge)
    return names


def _is_priced(model: Model) -> bool:
    price = model.price
    return price.input_usd_per_mtok is not None and price.output_usd_per_mtok is not None
