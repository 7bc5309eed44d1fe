"""Compare the measured coverage of each package with its floor in pyproject.toml.

Usage: python scripts/check_coverage.py   (after `coverage run -m pytest` and `coverage combine`)

The floors are in `[tool.suffice.coverage]`: percent of lines and branches, package -> floor. A package
or module without a floor of its own has `default`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def percents() -> dict[str, float]:
    """Package or module of `suffice` -> percent of its lines and branches that ran."""
    command = [sys.executable, "-m", "coverage", "json", "-q", "-o", "-"]
    report = json.loads(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout)
    ran: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for name, file in report["files"].items():
        parts = Path(name).parts
        package = parts[len(parts) - 1 - parts[::-1].index("suffice") + 1].removesuffix(".py")
        summary = file["summary"]
        ran[package] += summary["covered_lines"] + summary.get("covered_branches", 0)
        total[package] += summary["num_statements"] + summary.get("num_branches", 0)
    return {name: 100 * ran[name] / count for name, count in sorted(total.items()) if count}


def main() -> int:
    """Print a table; 1 if a package is below its floor."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    floors = settings["tool"]["suffice"]["coverage"]
    measured = percents()
    failed = []
    for package, percent in measured.items():
        floor = floors.get(package, floors["default"])
        low = percent < floor
        failed += [package] if low else []
        print(f"{package:16} {percent:6.1f} %   floor {floor:3} %{'   TOO LOW' if low else ''}")
    if unknown := set(floors) - {"default"} - set(measured):
        print(f"floors for packages that do not exist: {', '.join(sorted(unknown))}")
    return 1 if failed or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
