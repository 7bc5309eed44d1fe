"""Makes docs/benchmarks/quality.md and its pictures from the committed results.

    python benchmarks/quality/page.py [--results benchmarks/quality/results] [--docs docs/benchmarks]

Reads every results file that exists, and ../latency/decision.json; lists the others as not measured
yet. The text is in templates/. tests/benchmarks/test_quality_runners.py checks that page and results
agree.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import msgspec

sys.path.insert(0, str(Path(__file__).parent))
import formatting
from figures import digest, digest_of, draw, needs
from targets import LABELLED, Results, all_targets

HERE = Path(__file__).parent
_RUN = "python benchmarks/quality/{}.py --data DATA --out benchmarks/quality/results"
COMMANDS = {
    "routellm": _RUN.format("routellm") + " --seeds 16",
    "pool": _RUN.format("pool") + " --seeds 8",
    "certificates": _RUN.format("certificates") + " --splits 100",
    "robustness": _RUN.format("robustness"),
    "training_cost": _RUN.format("training_cost"),
    "decision": "python benchmarks/latency/decision.py --data DATA --litellm PYTHON",
    "end_to_end": "python benchmarks/quality/end_to_end/run.py --out benchmarks/quality/results",
    "online": _RUN.format("online") + " --seeds 20 --paretobandit SITE_PACKAGES",
    "offpolicy": _RUN.format("offpolicy") + " --runs 200 --obp PYTHON",
    "pacing": _RUN.format("pacing") + " --seeds 20",
    "drift_detection": _RUN.format("drift_detection") + " --streams 500",
    "savings": _RUN.format("savings") + " --draws 60",
}
SECTIONS = (
    "routellm", "pool", "certificates", "robustness", "cost", "end_to_end", "online", "offpolicy",
    "pacing", "drift_detection", "savings",
)  # fmt: skip


def load(folder: Path) -> dict[str, Any]:
    """Name -> results, in the order of COMMANDS, of the files that exist."""
    results: dict[str, Any] = {}
    for name in COMMANDS:
        path = folder / f"{name}.json"
        if name == "decision":
            path = folder.parents[1] / "latency" / "decision.json"
        if path.exists():
            content = msgspec.json.decode(path.read_bytes())
            pictures = sorted(p.name for p in folder.glob(f"{name}*.png"))
            results[name] = content | content.get("made", {}) | {"pictures": pictures}
    return results


def header(names: Sequence[str], left: bool = False) -> str:
    """The two head lines of a table: the first column to the left, the others to the right."""
    marks = ["---"] + ["---" if left else "---:"] * (len(names) - 1)
    return f"{row(names)}\n{row(marks)}"


def row(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def seeds(r: dict[str, Any]) -> str:
    """The seeds of a results file, as a range or a number."""
    if r.get("cases") and "seeds" in r["cases"][0]:
        return " or ".join(str(n) for n in sorted({len(case["seeds"]) for case in r["cases"]}))
    if isinstance(r.get("seeds"), list):
        return f"{r['seeds'][0]} to {r['seeds'][-1]}"
    for key in ("splits", "streams"):
        if key in r:
            first = r.get("first_seed", r.get("seed", 0))
            return f"{first} to {first + r[key] - 1}"
    return f"{r['runs']} runs" if "runs" in r else str(r.get("seed", ""))


def build(results: Results) -> str:
    """The page as Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    environment.filters["f"] = lambda value, spec: format(value, spec)
    environment.filters["bold"] = lambda policy: "**trained**" if policy == "trained" else policy
    for function in (header, row, seeds, formatting.ci, formatting.percent, formatting.cell,
                     formatting.over_seeds):  # fmt: skip
        environment.globals[function.__name__] = function
    targets = all_targets(results)
    measured = [t for t in targets if t.margin is not None]
    sections = [(name, results[name]) for name in SECTIONS if name in results]
    cost = {"decision": results.get("decision"), "training": results.get("training_cost")}
    if any(cost.values()):
        place = sum(name in results for name in SECTIONS[: SECTIONS.index("cost")])
        sections.insert(place, ("cost", cost))
    page = environment.get_template("page.md.j2").render(
        targets=targets,
        measured=measured,
        missed=[t for t in measured if t.margin is not None and t.margin < 0],
        results=results,
        sections=sections,
        commands=COMMANDS,
        labelled=LABELLED,
    )
    return page.rstrip("\n") + "\n"


def stale(results: Results, images: Path) -> list[str]:
    """Pictures that are missing or drawn from other results."""
    names = []
    for name, drawing in needs(results).items():
        path = images / name
        if not path.exists() or digest_of(path.read_bytes()) != digest(drawing):
            names.append(name)
    return names


def write(path: Path, raw: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(raw)
    os.replace(temporary, path)


def main() -> None:
    """Write the page and the pictures, and print the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--docs", type=Path, default=HERE.parents[1] / "docs" / "benchmarks")
    args = parser.parse_args()
    results = load(args.results)
    if not results:
        raise SystemExit(f"--results {args.results}: no results there; run `make quality` first.")
    images = args.docs / "img"
    images.mkdir(parents=True, exist_ok=True)
    for name in stale(results, images):
        write(images / name, draw(needs(results)[name]))
    write(args.docs / "quality.md", build(results).encode())
    for target in all_targets(results):
        print(f"{target.met or '-':18} {target.measure}: {target.measured} ({target.target})")


if __name__ == "__main__":
    main()
