"""`suffice doctor`: check the set-up and say how to fix what is wrong."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import typer


class Check(msgspec.Struct):
    """One line of the report."""

    what: str
    ok: bool | None  # None = a warning
    message: str = msgspec.field(name="said")  # the JSON key of the first release


def command(
    config: Path = typer.Option(None, "--config", help="Path of a suffice.toml."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
    timeout_s: float = typer.Option(3.0, "--timeout-s", help="Seconds to wait for a provider."),
) -> None:
    """Check config, keys, reachability and store. Exits with 1 if something is broken."""
    from suffice.cli.output import print_json

    checks = examine(config, timeout_s)
    broken = any(c.ok is False for c in checks)
    if json:
        print_json({"ok": not broken, "checks": checks})
    else:
        for c in checks:
            mark = {True: "ok     ", False: "BROKEN ", None: "note   "}[c.ok]
            typer.echo(f"{mark}{c.what}: {c.message}")
    if broken:
        raise typer.Exit(1)


def examine(config: Path | None, timeout_s: float) -> list[Check]:
    """Run all checks, in order. A broken config ends them."""
    from suffice.config import check_bind, load_settings, resolve
    from suffice.errors import ArtifactError, ConfigError, StoreError
    from suffice.providers.discovery import check_provider
    from suffice.router import Router
    from suffice.store import open_store

    env = os.environ
    try:
        settings = load_settings(config, env)
        resolved = resolve(settings, env, need_keys=False)
    except ConfigError as error:
        return [Check("config", False, str(error))]
    checks = [Check("config", True, f"{settings.source}: {len(resolved.routes)} route(s)")]
    try:
        check_bind(settings.server.host, resolved.api_keys, settings.server.api_keys_env)
    except ConfigError as error:
        checks.append(Check("server", False, str(error)))
    for name, provider in resolved.providers.items():
        if provider.api_key_env and not provider.api_key:
            message = (
                f"set {provider.api_key_env} in the environment; until then its models are not used"
            )
            checks.append(Check(f"provider {name}", False, message))
            continue
        problem = asyncio.run(check_provider(provider, timeout_s))
        message = f"answers at {provider.base_url}" if problem is None else problem
        if problem is not None and provider.local:
            message += " Start it, or remove it from the config."
        checks.append(Check(f"provider {name}", problem is None, message))
    for warning in resolved.warnings:
        checks.append(Check("note", None, warning))
    try:
        policies = {s.policy for s in Router(resolved, env=env).config.routes.values()}
        checks.append(Check("policies", True, ", ".join(sorted(policies))))
    except (ArtifactError, ConfigError) as error:
        checks.append(Check("policies", False, str(error)))
    try:
        open_store(settings.store.url).close()
        checks.append(Check("store", True, settings.store.url.rpartition("@")[2]))
    except StoreError as error:
        checks.append(Check("store", False, str(error)))
    return checks
