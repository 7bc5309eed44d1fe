"""Generates docs/reference/: the commands from their own help, the config from its own schema.

Usage: python scripts/build_reference.py   (tests/test_docs.py checks that it is current)
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from suffice import config

ROOT = Path(__file__).parents[1]
COMMANDS = "demo serve route models doctor feedback".split()


def cli() -> str:
    out = ["# Commands", "", "Generated from `--help`; do not edit."]
    for name in COMMANDS:
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
)


def settings() -> str:
    out = ["# Configuration", "", "Generated from the settings themselves; do not edit.", ""]
    out += ["```toml", config.EXAMPLE_TOML.strip(), "```"]
    for title, model in SECTIONS:
        out += ["", f"## {title}", "", "| key | type | default |", "|---|---|---|"]
        for key, field in model.model_fields.items():
            kind = str(field.annotation).replace("typing.", "").replace("<class '", "")
            kind = kind.replace("'>", "").replace("suffice.config.", "").replace("|", "\\|")
            if field.is_required():
                default = "required"
            elif isinstance(field.default, BaseModel):
                default = "see below"
            else:
                default = f"`{field.default!r}`"
            out.append(f"| `{key}` | {kind} | {default} |")
    return "\n".join(out) + "\n"


def main() -> None:
    folder = ROOT / "docs" / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cli.md").write_text(cli(), encoding="utf-8")
    (folder / "config.md").write_text(settings(), encoding="utf-8")


if __name__ == "__main__":
    main()
