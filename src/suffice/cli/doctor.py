"""`suffice doctor`: what is wrong with this set-up, and how to mend it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import typer


class Check(msgspec.Struct):
    """One line of the report. ok None: a warning, nothing is broken."""

    what: str
    ok: bool | None
    said: str


def command(
    config: Path = typer.Option(None, "--config", help="A suffice.toml."),
    json: bool = typer.Option(False, "--json", help="One JSON object."),
    timeout_s: float = typer.Option(3.0, "--timeout-s", help="How long to wait for a provider."),
) -> None:
    """Check config, keys, reachability and store. Exit code 1 where something is broken."""
    from suffice.cli.output import print_json

    checks = examine(config, timeout_s)
    broken = any(c.ok is False for c in checks)
    if json:
        print_json({"ok": not broken, "checks": checks})
    else:
        for c in checks:
            mark = {True: "ok     ", False: "BROKEN ", None: "note   "}[c.ok]
            typer.echo(f"{mark}{c.what}: {c.said}")
    if broken:
        raise typer.Exit(1)


def examine(config: Path | None, timeout_s: float) -> list[Check]:
    """All checks, in order; a broken config ends them."""
    from suffice.config import check_bind, load_settings, resolve
    from suffice.errors import ArtifactError, ConfigError, StoreError
    from suffice.providers.discovery import check_provider
    from suffice.router import Router
    from suffice.store import open_store

    env = os.environ
    try:
        settings = load_settings(config, env)
        found = resolve(settings, env, need_keys=False)
    except ConfigError as error:
        return [Check("config", False, str(error))]
    checks = [Check("config", True, f"{settings.source}: {len(found.routes)} route(s)")]
    try:
        check_bind(settings.server.host, found.api_keys, settings.server.api_keys_env)
    except ConfigError as error:
        checks.append(Check("server", False, str(error)))
    for name, provider in found.providers.items():
        if provider.api_key_env and not provider.api_key:
            told = (
                f"set {provider.api_key_env} in the environment; its models are left out till then"
            )
            checks.append(Check(f"provider {name}", False, told))
            continue
        problem = asyncio.run(check_provider(provider, timeout_s))
        told = f"answers at {provider.base_url}" if problem is None else problem
        if problem is not None and provider.local:
            told += " Start it, or take it out of the config."
        checks.append(Check(f"provider {name}", problem is None, told))
    for warning in found.warnings:
        checks.append(Check("note", None, warning))
    try:
        policies = {s.policy for s in Router(found, env=env).route_specs()}
        checks.append(Check("policies", True, ", ".join(sorted(policies))))
    except (ArtifactError, ConfigError) as error:
        checks.append(Check("policies", False, str(error)))
    try:
        open_store(settings.store.url).close()
        checks.append(Check("store", True, settings.store.url.rpartition("@")[2]))
    except StoreError as error:
        checks.append(Check("store", False, str(error)))
    return checks
