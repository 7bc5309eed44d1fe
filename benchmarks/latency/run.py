"""Compares the gateway with its peers: CPU per request, streams, start, memory, size.

    python benchmarks/latency/run.py [--rounds 3] [--seconds 4] [PEER ...]

Installs the peers of `peers.py` into `.peers/`, then measures them in turn, round after round. The
server runs on core 0; wrk, the stream client and the upstreams run on core 1. Only the loopback
interface is used. Writes results.json here and docs/benchmarks/latency.md.
Needs Linux, two cores, nginx and wrk (apt-get install nginx wrk).
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import re
import shutil
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import page
import processes
from load import (
    CHUNKS,
    INTERVAL_MS,
    LOAD_CORE,
    REPLY,
    post,
    request_body,
    run_streams,
    run_wrk,
)
from peers import PEERS, Server, environment, install, installation

HERE = Path(__file__).parent
CONNECTIONS = (1, 16, 64)
STREAMS = (20, 200)


@dataclass(frozen=True)
class Upstreams:
    """The ports of the two upstreams."""

    plain: int
    stream: int


@contextmanager
def upstreams(folder: Path, python: str) -> Iterator[Upstreams]:
    """nginx with a fixed reply, and the streaming upstream."""
    folder.mkdir()
    ports = Upstreams(processes.free_port(), processes.free_port())
    template = string.Template((HERE / "peers" / "upstream.conf").read_text())
    config = folder / "nginx.conf"
    config.write_text(
        template.safe_substitute(FOLDER=folder, PORT=ports.plain, REPLY=json.dumps(REPLY))
    )
    stream = [python, str(HERE / "stream_upstream.py"), str(ports.stream)]
    commands = {
        ports.plain: ["nginx", "-c", str(config)],
        ports.stream: [*stream, str(CHUNKS), str(INTERVAL_MS)],
    }
    started = []
    try:
        for port, command in commands.items():
            process = processes.start(command, LOAD_CORE, folder / f"{port}.log")
            started.append(process)
            processes.wait_for_port(port, process)
        yield ports
    finally:
        for process in started:
            processes.stop(process)


def measure(name: str, ports: Upstreams, folder: Path, seconds: float) -> dict[str, Any]:
    """One round of one peer."""
    folder.mkdir()
    server = Server(name, ports.plain, ports.stream, folder)
    peer, result = server.peer, dict[str, Any]()
    python = str(environment("pyref") / "bin" / "python")

    def settle() -> None:
        if server.process:
            processes.wait_until_idle(server.process.pid)

    try:
        if server.process:
            time.sleep(1.0)
            result["start_s"] = round(server.start_s or 0.0, 3)
            result["rss_idle_mb"] = round(processes.rss_mb(server.process.pid), 1)
        plain = server.endpoint()
        run_wrk(plain, ports.plain, request_body(peer.model), 16, seconds, folder)  # warm up
        for size in ("small", "large"):
            body = request_body(peer.model, large=size == "large")
            for connections in CONNECTIONS:
                settle()
                load = run_wrk(plain, ports.plain, body, connections, seconds, folder)
                result[f"{size}-{connections}"] = load
        streaming = server.endpoint(stream=True)
        body = request_body(peer.stream_model, stream=True)
        status, text = post(streaming, body)
        if status != 200:
            raise RuntimeError(f"{peer.label} does not stream: {status} {text[:300]!r}")
        for streams in STREAMS:
            settle()
            result[f"stream-{streams}"] = run_streams(streaming, body, streams, seconds, python)
        if server.process:
            result["rss_loaded_mb"] = round(processes.rss_mb(server.process.pid), 1)
    finally:
        server.stop()
    return result


def summarize(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median, least and greatest of every figure over the rounds."""
    summary: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in rounds for key in one):
        values = [one[key] for one in rounds if one.get(key) is not None]
        if values and isinstance(values[0], dict):
            summary[key] = summarize(values)
        elif values and isinstance(values[0], int | float):
            summary[key] = [statistics.median(values), min(values), max(values)]
        elif any(values):
            summary[key] = next(value for value in values if value)
    return summary


def import_time_s() -> float:
    """Seconds that `from suffice import Router` takes over an empty interpreter; median of 5."""
    python = str(environment("suffice") / "bin" / "python")

    def timed(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([python, "-c", code], check=True, cwd="/")
        return time.perf_counter() - began

    empty = statistics.median(timed("pass") for _ in range(5))
    return round(
        statistics.median(timed("from suffice import Router") for _ in range(5)) - empty, 3
    )


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    nginx = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "nginx": nginx.strip().rpartition("/")[2],
        "load_before": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Measure, write results.json and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", nargs="*", choices=[*PEERS, []], help="default: all of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="seconds per load, default 4")
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="results file")
    args = parser.parse_args()
    for tool in ("nginx", "wrk", "taskset"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not installed: apt-get install nginx wrk util-linux")
    names = args.peers or list(PEERS)
    for name in dict.fromkeys(["pyref", *names]):  # the load runs in the bare proxy's environment
        install(name)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    failures: dict[str, str] = {}
    described = machine()
    with tempfile.TemporaryDirectory(prefix="suffice-bench-") as name_of_folder:
        folder = Path(name_of_folder)
        with upstreams(folder / "upstreams", str(environment("pyref") / "bin" / "python")) as ports:
            for number in range(args.rounds):
                for name in names:
                    try:
                        result = measure(name, ports, folder / f"{name}-{number}", args.seconds)
                    except (RuntimeError, OSError) as error:
                        failures[name] = str(error)
                        print(f"round {number + 1}: {name} failed: {error}", file=sys.stderr)
                        continue
                    rounds[name].append(result)
                    cpu = result["small-16"]["cpu_us_per_request"]
                    print(f"round {number + 1}: {name}: {cpu} us per request", file=sys.stderr)
    results = {
        "date": dt.date.today().isoformat(),
        "rounds": args.rounds,
        "seconds": args.seconds,
        "connections": CONNECTIONS,
        "streams": STREAMS,
        "body_bytes": {
            "small": len(request_body("bench").encode()),
            "large": len(request_body("bench", large=True).encode()),
        },
        "machine": described,
        "import_s": import_time_s() if "suffice" in names else None,
        "peers": {
            name: {
                "label": PEERS[name].label,
                "note": PEERS[name].note,
                "failure": failures.get(name, ""),
                **installation(name),
                **summarize(rounds[name]),
            }
            for name in names
        },
    }
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    if args.out == HERE / "results.json":
        page.write(results)
    print(page.render(results))


if __name__ == "__main__":
    main()
