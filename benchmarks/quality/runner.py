"""What all runners share: options, the machine and versions of a run, and its results file."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

PACKAGES = ("suffice", "numpy", "scikit-learn", "msgspec", "pyarrow", "paretobandit")


def arguments(doc: str, data: bool = True) -> argparse.ArgumentParser:
    """A parser with --out and, unless `data` is false, a required --data."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results file")
    parser.add_argument("--data", type=Path, required=data, help="folder of the tables")
    return parser


def publish(out: Path, name: str, doc: str, results: dict[str, Any]) -> dict[str, Any]:
    """Write NAME.json with the figures, the method (from the runner's docstring) and the machine."""
    out.mkdir(parents=True, exist_ok=True)
    lines = doc.splitlines()
    usage = max(i for i, line in enumerate(lines) if line.startswith("    python "))
    method = " ".join(" ".join(lines[usage + 1 :]).split())
    value = {"about": lines[0], "method": method, **provenance(), **results}
    write_json(out / f"{name}.json", value)
    return value


def provenance() -> dict[str, Any]:
    """{"machine": ..., "packages": ..., "commit": ..., "date": ...}."""
    cpu = None
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else None
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    return {
        "machine": {
            "cpu": cpu or platform.processor(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "packages": packages,
        "commit": commit or None,
        "date": datetime.now(UTC).date().isoformat(),
    }


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")
    os.replace(temporary, path)
