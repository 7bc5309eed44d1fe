"""Does the gateway's memory grow? Resident memory over many requests, and its slope.

    python benchmarks/latency/memory.py [--requests 50000] [--connections 16]

Starts the gateway as run.py does, sends requests with wrk in slices, and reads the resident memory
after each slice. The slope is a least-squares line over the second half: the first half contains the
warm-up of caches. Writes memory.json here.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import tempfile
from pathlib import Path

import processes
from load import request_body, run_wrk, upstream_requests
from peers import Server, environment, install
from run import machine, upstreams

HERE = Path(__file__).parent
SLICE_S = 2


def measure(requests: int, connections: int) -> list[tuple[int, float]]:
    """(requests so far, resident MB) after each slice."""
    samples: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory(prefix="suffice-memory-") as name:
        folder = Path(name)
        python = str(environment("pyref") / "bin" / "python")
        with upstreams(folder / "upstreams", python) as ports:
            (folder / "server").mkdir()
            server = Server("suffice", ports.plain, ports.stream, folder / "server")
            try:
                assert server.process is not None
                body, pid = request_body(server.peer.model), server.process.pid
                first = upstream_requests(ports.plain)
                served = 0
                while served < requests:
                    endpoint = server.endpoint()
                    run_wrk(endpoint, ports.plain, body, connections, SLICE_S, folder)
                    processes.wait_until_idle(pid)
                    served = upstream_requests(ports.plain) - first
                    samples.append((served, round(processes.rss_mb(pid), 2)))
            finally:
                server.stop()
    return samples


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--connections", type=int, default=16)
    args = parser.parse_args()
    install("pyref")
    install("suffice")
    samples = measure(args.requests, args.connections)
    tail = samples[len(samples) // 2 :]
    slope = 0.0
    if len(tail) > 1:
        slope = statistics.linear_regression([n for n, _ in tail], [mb for _, mb in tail]).slope
    result = {
        "date": dt.date.today().isoformat(),
        "machine": machine(),
        "requests": samples[-1][0],
        "rss_first_mb": samples[0][1],
        "rss_last_mb": samples[-1][1],
        "slope_kb_per_1000_requests": round(slope * 1e6, 1),
        "samples": samples,
    }
    (HERE / "memory.json").write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{result['requests']} requests: {samples[0][1]} MB after the first slice, "
        f"{samples[-1][1]} MB after the last, {result['slope_kb_per_1000_requests']} kB per 1,000 "
        "requests over the second half"
    )


if __name__ == "__main__":
    main()
