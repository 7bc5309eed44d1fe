"""Drives the real gateway with the made-up world: a child process that serves, simulated providers,
the official openai client, feedback."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from simulation import MODELS, PRICES, WORTH_USD, Request, World

from suffice.gateway import BackgroundServer
from suffice.providers.fake import FakeUpstream

ANSWER = "This answer is simulated."


class Sent(NamedTuple):
    """What came back, one element a request in the order they were sent. model: (n,) its number.
    good: (n,) whether the answer was. usd, overhead_ms, at_s (unix time, when sent): (n,)."""

    ids: list[str]
    model: NDArray[np.intp]
    good: NDArray[np.bool_]
    usd: NDArray[np.float64]
    overhead_ms: NDArray[np.float64]
    at_s: NDArray[np.float64]


def upstream() -> FakeUpstream:
    models = {m.partition("/")[2]: {"reply": ANSWER} for m in MODELS}
    return FakeUpstream({"models": models}, keep=100)


def config(
    folder: Path,
    world: World,
    base_url: str,
    learning: str,
    *,
    policy: str = "default",
    objective: str = f"{{ worth_usd = {WORTH_USD} }}",
    name: str = "",
) -> Path:
    """Writes {folder}/{name or learning}.toml, with its store next to it."""
    name = name or learning
    lines = ["[store]", f'url = "sqlite:///{(folder / name).as_posix()}.db"']
    for (model, i, o), guess in zip(PRICES, world.guess, strict=True):
        lines += [
            f"[providers.{model.partition('/')[0]}]", 'dialect = "openai"',
            f'base_url = "{base_url}"', f'[models."{model}"]', f"input_usd_per_mtok = {i}",
            f"output_usd_per_mtok = {o}", f"quality = {guess}",
        ]  # fmt: skip
    lines += [
        "[routes.auto]", f"models = {json.dumps(MODELS)}", f"objective = {objective}",
        f'policy = "{policy}"', f'learning = "{learning}"',
    ]  # fmt: skip
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def drive(path: Path, world: World, stream: list[Request], *, at_once: int, per_s: float) -> Sent:
    """Serve `path` in a child process and send the stream. at_once: requests under way; one makes
    the order of decisions that of the stream. per_s: at most so many are sent in a second."""
    with BackgroundServer(path, port=_port()) as server:
        return asyncio.run(_send(server.base_url, world, stream, at_once, per_s))


def _port() -> int:
    """A free port below those that the kernel hands out: between the look and the listen no other
    connection can take it, as happens where much goes on at once."""
    start = os.getpid() * 7 + int(time.monotonic() * 10)
    for i in range(100):
        port = 20_000 + (start + i) % 10_000
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError("no free port between 20,000 and 30,000")


async def _send(
    base_url: str, world: World, stream: list[Request], at_once: int, per_s: float
) -> Sent:
    import openai

    n = len(stream)
    gate = asyncio.Semaphore(at_once)
    out: list[Any] = [None] * n
    late: dict[int, list[dict[str, Any]]] = {}
    started = time.perf_counter()
    async with openai.AsyncOpenAI(
        base_url=base_url + "/v1", api_key="none", max_retries=0, timeout=60.0
    ) as client:

        async def one(i: int) -> None:
            try:
                out[i], later = await _ask(client, world, stream[i])
                for after, item in later:
                    late.setdefault(i + after, []).append(item)
            finally:
                gate.release()

        async with asyncio.TaskGroup() as tasks:
            for i in range(n):
                await asyncio.sleep(max(0.0, started + i / per_s - time.perf_counter()))
                await gate.acquire()
                tasks.create_task(one(i))
                await _post(client, [x for t in [t for t in late if t <= i] for x in late.pop(t)])
        await _post(client, [x for items in late.values() for x in items])
    ids, model, good, usd, overhead, at = zip(*out, strict=True)
    return Sent(
        list(ids), np.array(model, np.intp), np.array(good, bool), np.array(usd, float),
        np.array(overhead, float), np.array(at, float),
    )  # fmt: skip


async def _ask(
    client: Any, world: World, r: Request
) -> tuple[tuple[Any, ...], list[tuple[int, dict[str, Any]]]]:
    """((id, model, good, USD, overhead, time sent), feedback that comes later as (requests from now,
    what to post)). What comes at once is posted here."""
    at_s = time.time()
    raw = await client.chat.completions.with_raw_response.create(
        model="auto",
        messages=[{"role": "user", "content": r.prompt}],
        metadata={"output_tokens": str(r.output_tokens)},  # only the simulation reads this
    )
    head = raw.headers
    model = MODELS.index(head["x-suffice-model"])
    good = world.good(r, model)
    decision_id = head["x-suffice-decision-id"]
    now: list[dict[str, Any]] = []
    later: list[tuple[int, dict[str, Any]]] = []
    for source in r.sources:
        item = {"decision_id": decision_id, "source": source, **_verdict(source, good)}
        if r.doubt:
            now.append({**item, **_verdict(source, not good)})
            later.append((r.delay or 30, item))
        elif r.delay:
            later.append((r.delay, item))
        else:
            now.append(item)
    await _post(client, now)
    cost, overhead = float(head["x-suffice-cost-usd"]), float(head["x-suffice-overhead-ms"])
    return (decision_id, model, good, cost, overhead, at_s), later


def _verdict(source: str, good: bool) -> dict[str, Any]:
    """Users give a verdict, tests a score of 0 or 1, judges something in between."""
    if source == "user":
        return {"verdict": "good" if good else "bad"}
    return {"score": float(good) if source == "test" else 0.9 if good else 0.1}


async def _post(client: Any, items: list[dict[str, Any]]) -> None:
    if len(items) == 1:
        await client.post("/feedback", body=items[0], cast_to=object)
    elif items:
        stored = await client.post("/feedback", body={"feedback": items}, cast_to=object)
        if stored["stored"] != len(items):
            raise RuntimeError(f"feedback was not stored: {stored}")


# ── what was recorded ────────────────────────────────────────────────────────────────────────────


def replay(path: Path, policy: str, *, since_s: float | None = None) -> dict[str, Any]:
    """What `suffice replay --json` prints, as a user types it."""
    command = [sys.executable, "-m", "suffice", "replay", "--config", str(path), "--policy", policy]
    if since_s is not None:
        from datetime import UTC, datetime

        command += ["--since", datetime.fromtimestamp(since_s, UTC).isoformat()]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def recorded(path: Path, ids: list[str]) -> list[dict[str, Any]]:
    """Each decision in the store next to `path`, in the order of `ids`: created_s, chosen,
    snapshot, propensity, and the detail's plan, predictions, reason, explored, shadow."""
    with sqlite3.connect(path.with_suffix(".db")) as connection:
        rows = connection.execute(
            "SELECT id, created_s, chosen, snapshot, propensity, policy_version, detail FROM decisions"
        ).fetchall()
    connection.close()
    names = ("created_s", "chosen", "snapshot", "propensity", "policy_version")
    found = {
        i: {**dict(zip(names, row, strict=True)), **json.loads(detail)} for i, *row, detail in rows
    }
    return [found[i] for i in ids]


def snapshots(path: Path) -> list[dict[str, Any]]:
    """Oldest first, as the store has them, with `content`; those of one second in order of labels."""
    with sqlite3.connect(path.with_suffix(".db")) as connection:
        rows = connection.execute(
            "SELECT version, created_s, card, content FROM snapshots ORDER BY created_s"
        ).fetchall()
    connection.close()
    return [
        {"version": v, "created_s": s, "card": json.loads(c), "content": b} for v, s, c, b in rows
    ]
