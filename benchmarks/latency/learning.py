"""What learning adds to a request: the same traffic through three real gateways, `learning` off,
shadow and on.

    python benchmarks/latency/learning.py [--rounds 8] [--requests 300] [--per-s 100]

The providers are simulated and answer at once. First every answer is scored by the client, so the
learner takes in labels and refits every few seconds while it is measured: a route's first minutes,
the worst there is, as a day later there is a refit in ten minutes. Then none is: what is left is what
learning costs the requests themselves. The gateways are asked in turn, each for a short
round, in an order that changes, so that what else the machine does falls on all of them alike. The
figure is the time before the first upstream call, `x-suffice-overhead-ms`, of all rounds together.
One core each is not to be had everywhere: the load of the machine is reported with the figures. Loopback
only, bounded. Writes learning.json here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2  # comes with the official client
import numpy as np

from suffice.gateway import BackgroundServer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "quality" / "end_to_end"))
sys.path.insert(0, str(HERE.parent / "quality"))

import simulation  # noqa: E402
import traffic  # noqa: E402
from runner import provenance, write_json  # noqa: E402

MODES = ("off", "shadow", "on")
AT_ONCE = 4
SETTLED_S = 5.0  # after the last score, for the last refit


async def played(
    client: Any, base_url: str, world: Any, stream: list[Any], per_s: float, scored: bool
) -> list[float]:
    """Milliseconds before the upstream call of each request, at most `per_s` sent a second. scored:
    so is each answer."""
    gate = asyncio.Semaphore(AT_ONCE)
    out: list[float] = []

    async def post(path: str, body: dict[str, Any]) -> Any:
        answer = await client.post(base_url + path, json=body)
        if answer.status_code != 200:
            raise SystemExit(f"{path}: {answer.status_code} {answer.content[:300]!r}")
        return answer.headers

    async def one(r: Any) -> None:
        async with gate:
            ask = {"model": "auto", "messages": [{"role": "user", "content": r.prompt}]}
            head = await post("/v1/chat/completions", ask)
            out.append(float(head["x-suffice-overhead-ms"]))
            if not scored:
                return
            good = world.good(r, simulation.MODELS.index(head["x-suffice-model"]))
            label = {"decision_id": head["x-suffice-decision-id"], "score": float(good)}
            await post("/v1/feedback", label)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for i, r in enumerate(stream):
            await asyncio.sleep(max(0.0, began + i / per_s - time.perf_counter()))
            tasks.create_task(one(r))
    return out


async def measured(
    urls: dict[str, str], world: Any, rounds: int, n: int, per_s: float
) -> dict[bool, dict[str, list[list[float]]]]:
    """Whether answers were scored -> mode -> rounds of milliseconds. A first round each, twice as
    long, is thrown away."""
    stream = simulation.requests(1, (2 * rounds + 2) * n, missing=0.0)
    client = httpx2.AsyncClient(timeout=60.0)
    for url in urls.values():
        await played(client, url, world, stream[: 2 * n], per_s, True)
    names = list(urls)
    out: dict[bool, dict[str, list[list[float]]]] = {}
    at = 2 * n
    for scored in (True, False):
        out[scored] = {mode: [] for mode in names}
        if not scored:
            await asyncio.sleep(SETTLED_S)
        for i in range(rounds):
            for mode in names[i % len(names) :] + names[: i % len(names)]:
                part = stream[at : at + n]
                out[scored][mode].append(
                    await played(client, urls[mode], world, part, per_s, scored)
                )
            at += n
    await client.aclose()
    return out


def summary(rounds: list[list[float]]) -> dict[str, Any]:
    """Of all requests, and the medians of the rounds' own figures, which one bad moment of the
    machine does not move."""
    each = np.array([np.percentile(r, [50, 90, 99]) for r in rounds])
    p50, p90, p99 = np.percentile(np.concatenate(rounds), [50, 90, 99])
    names = ("p50_ms", "p90_ms", "p99_ms")
    typical = dict(zip(names, np.round(np.median(each, axis=0), 3).tolist(), strict=True))
    return {
        "requests": sum(map(len, rounds)),
        "p50_ms": round(float(p50), 3),
        "p90_ms": round(float(p90), 3),
        "p99_ms": round(float(p99), 3),
        "median_round": typical,
    }


def added(rows: dict[str, Any]) -> dict[str, Any]:
    """What a typical round has more than one with learning off."""
    off = rows["off"]["median_round"]
    return {
        mode: {k: round(v - off[k], 3) for k, v in rows[mode]["median_round"].items()}
        for mode in MODES[1:]
    }


def learned(path: Path) -> dict[str, Any]:
    """How much was explored and refitted, as the gateway's store has it."""
    import sqlite3

    with sqlite3.connect(path.with_suffix(".db")) as connection:
        details = [json.loads(d) for (d,) in connection.execute("SELECT detail FROM decisions")]
        (snapshots,) = connection.execute("SELECT count(*) FROM snapshots").fetchone()
    connection.close()
    return {
        "snapshots": snapshots,
        "explored_share": round(float(np.mean([bool(d.get("explored")) for d in details])), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--per-s", type=float, default=100.0)
    parser.add_argument("--objective", default=f"{{ worth_usd = {simulation.WORTH_USD} }}")
    parser.add_argument("--out", type=Path, default=HERE / "learning.json")
    args = parser.parse_args()
    world = simulation.world(1)
    before = os.getloadavg()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, traffic.upstream() as fake:
        folder = Path(name)
        paths, urls = {}, {}
        with ExitStack() as servers:
            for mode in MODES:
                paths[mode] = traffic.config(
                    folder, world, fake.base_url, mode, objective=args.objective
                )
                server = servers.enter_context(BackgroundServer(paths[mode], cwd=folder))
                urls[mode] = server.base_url
            found = asyncio.run(measured(urls, world, args.rounds, args.requests, args.per_s))
        # The stores are whole once their gateways have ended.
        labelled = {mode: {**summary(found[True][mode]), **learned(paths[mode])} for mode in MODES}
        unlabelled = {mode: summary(found[False][mode]) for mode in MODES}
    results = {
        **provenance(),
        "load": {"before": before, "after": os.getloadavg()},
        "rounds": args.rounds,
        "requests": args.requests,
        "per_s": args.per_s,
        "at_once": AT_ONCE,
        "objective": args.objective,
        "took_s": round(time.perf_counter() - began, 1),
        "learning": labelled,
        "added_ms": added(labelled),
        "learning_without_labels": unlabelled,
        "added_ms_without_labels": added(unlabelled),
    }
    write_json(args.out, results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
