"""Generates docs/reference/: commands from their help, the config from its schema, the API from docstrings.

Usage: python scripts/build_reference.py   (tests/test_docs.py checks that it is current)
"""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from suffice import config
from suffice.cli import app

ROOT = Path(__file__).parents[1]

# What each key means. A key of the settings without words here, or words without a key, is an error:
# that is how a new key gets its sentence.
WORDS: dict[str, dict[str, str]] = {
    "[server]": {
        "host": "Address to listen on; one that other machines can reach needs client keys",
        "port": "Port to listen on",
        "workers": "Processes; they share the store",
        "max_body_bytes": "A larger request body is refused with 413",
        "api_keys_env": "Environment variable with the clients' keys, comma-separated",
    },
    "[store]": {
        "url": "URL of the store of decisions, attempts and feedback",
        "keep_prompts": "Whether texts are stored; the feature vector always is",
    },
    "[providers.NAME]": {
        "dialect": "Wire dialect; known providers have a default",
        "base_url": "Base URL; known providers have a default",
        "api_key_env": "Environment variable with its key",
        "auth": "How the key is sent",
        "headers": "Further headers sent with every call",
    },
    '[models."PROVIDER/NAME"]': {
        "input_usd_per_mtok": "USD per million input tokens; unknown stays unknown",
        "output_usd_per_mtok": "USD per million output tokens",
        "cached_input_usd_per_mtok": "USD per million input tokens read from its cache",
        "cache_write_usd_per_mtok": "USD per million input tokens written to its cache",
        "context_tokens": "Context window; longer queries go to other models",
        "max_output_tokens": "Longest answer",
        "capabilities": "What the model can do; a query that needs more goes to other models",
        "quality": "Prior: how often this model suffices on your traffic, 0 to 1",
        "first_chunk_s": "Usual seconds to its first chunk",
        "output_tokens_per_s": "Usual output tokens per second",
    },
    "[routes.NAME]": {
        "models": "The pool, as `provider/model`",
        "policy": "A policy's name, or the artifact that `suffice train` wrote",
        "certificate": "What `suffice calibrate` wrote, for `max_quality_loss`; default: the file "
        "next to the artifact",
        "learning": "`off`, `shadow` (the learned policy decides nothing; its decision is logged with "
        "the served one) or `on`",
        "explore_share": 'With `learning = "on"`: share of new conversations that may try another model',
        "implicit_feedback": "Signals in replies that count as bad scores, with their weights, such as "
        "`{ schema = 0.8 }`",
        "objective": "What to optimise: see [policies](../concepts/policies.md)",
        "fallbacks": "Tried in this order when the whole pool has failed",
        "fallback_max_usd_per_query": "A fallback predicted to cost more is not tried",
        "timeouts": "A table, see below",
        "retries": "A table, see below",
        "audit": "Audits a certified route: a table, see below",
    },
    "audit of a route": {
        "sample_rate": "Share of certified decisions that are audited after the answer, for example 0.005 "
        "to 0.01",
        "judge": "The model that compares the answers, as `provider/model`",
        "max_usd_per_day": "Limit of what audits cost per day; audits stop when it is reached",
        "false_alarm_rate": "Probability of a false alarm over the whole life of a certificate",
        "trusted_sources": "Sources of feedback whose scores count as labels of the sequential test",
    },
    "timeouts of a route": {
        "connect_s": "Seconds to connect",
        "first_chunk_s": "Seconds to the first chunk: 30 for streams unless set; it limits a "
        "reply that is not streamed only if it is set",
        "idle_s": "Seconds between two chunks",
        "total_s": "Seconds for a whole reply",
    },
    "retries of a route": {
        "per_model": "Retries of the same model after a retryable error",
        "max_attempts": "Attempts of one request over all its models",
        "backoff_base_s": "Seconds of back-off before the first retry; it grows, with jitter",
        "max_wait_s": "A longer Retry-After moves on to the next model",
    },
}


def cli() -> str:
    out = ["# Commands", "", "Generated from `--help`; do not edit."]
    for name in app.build().commands:  # type: ignore[attr-defined]  # a click group
        done = subprocess.run(
            [sys.executable, "-m", "suffice", name, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "100", "TERM": "dumb"},
        )
        lines = [line.rstrip() for line in done.stdout.strip().splitlines()]
        out += ["", f"## suffice {name}", "", "```", *lines, "```"]
    return "\n".join(out) + "\n"


SECTIONS: tuple[tuple[str, Any], ...] = (
    ("[server]", config.ServerSettings),
    ("[store]", config.StoreSettings),
    ("[providers.NAME]", config.ProviderSettings),
    ('[models."PROVIDER/NAME"]', config.ModelSettings),
    ("[routes.NAME]", config.RouteSettings),
    ("timeouts of a route", config.TimeoutSettings),
    ("retries of a route", config.RetrySettings),
    ("audit of a route", config.AuditSettings),
)


def settings() -> str:
    out = ["# Configuration", "", "Generated from the settings themselves; do not edit.", ""]
    out += ["```toml", config.EXAMPLE_TOML.strip(), "```"]
    for title, model in SECTIONS:
        out += ["", f"## {title}", "", "| key | meaning | type | default |", "|---|---|---|---|"]
        if set(WORDS[title]) != {*model.model_fields}:
            odd = sorted(set(WORDS[title]) ^ set(model.model_fields))
            raise SystemExit(f"{title}: WORDS and the settings differ in {', '.join(odd)}")
        for key, field in model.model_fields.items():
            kind = str(field.annotation).replace("typing.", "").replace("<class '", "")
            kind = kind.replace("'>", "").replace("suffice.config.", "").replace("|", "\\|")
            if field.is_required():
                default = "required"
            elif isinstance(field.default, BaseModel):
                default = "see below"
            else:
                default = f"`{field.default!r}`"
            out.append(f"| `{key}` | {WORDS[title][key]} | {kind} | {default} |")
    return "\n".join(out) + "\n"


# Modules and their public names, in the order of the page. A class lists its public methods.
API: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "suffice",
        ("Router", "Client", "AsyncClient", "Decision", "Prediction", "Features", "Feedback"),
    ),
    ("suffice", ("Objective", "Policy", "Settings", "ConfigError", "SufficeError")),
    ("suffice.providers.fake", ("FakeUpstream",)),
    ("suffice.lab.predictors.base", ("Predictor",)),
    ("suffice.lab.ope.estimators", ("LoggedData", "ips", "snips", "doubly_robust")),
    ("suffice.lab.ope.intervals", ("estimate_policy_value",)),
)


def api() -> str:
    """The Python API: signatures and docstrings of the public names."""
    lines = ["# Python API", "", "Generated from docstrings; do not edit."]
    for module, names in API:
        for name in names:
            thing = getattr(importlib.import_module(module), name)
            lines += ["", f"## {module}.{name}", "", *entry(name, thing)]
            if inspect.isclass(thing):
                for method, function in public_methods(thing):
                    lines += ["", f"### {name}.{method}", "", *entry(method, function)]
    return "\n".join(lines) + "\n"


def public_methods(cls: type) -> list[tuple[str, Any]]:
    """The documented public methods and class methods that `cls` itself defines."""
    found = []
    for name, member in vars(cls).items():
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            found.append((name, function))
    return found


def entry(name: str, thing: Any) -> list[str]:
    """A code block with the signature, then the docstring."""
    try:
        signature = f"{name}{inspect.signature(thing)}"
    except (TypeError, ValueError):
        signature = name
    signature = signature.replace("'", "")
    doc = inspect.getdoc(thing) or ""
    return ["```text", signature, *(["", *doc.splitlines()] if doc else []), "```"]


def main() -> None:
    folder = ROOT / "docs" / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cli.md").write_text(cli(), encoding="utf-8")
    (folder / "config.md").write_text(settings(), encoding="utf-8")
    (folder / "api.md").write_text(api(), encoding="utf-8")


if __name__ == "__main__":
    main()
