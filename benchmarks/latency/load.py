"""The loads of one round: wrk for plain requests, `stream_client.py` for streams."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import processes

HERE = Path(__file__).parent
SERVER_CORE, LOAD_CORE = 0, 1
CHUNKS, INTERVAL_MS = 50, 20

_SYSTEM = "You are a concise travel assistant."
_QUESTION = (
    "I am in Lyon and need to be in Hamburg by tomorrow 09:00. Compare the night train with an early "
    'flight: total time, rough cost, and which of the two is less likely to be "late".'
)
_SENTENCES = (
    "The importer reads the ledger row by row and updates a running balance per account.",
    "If two rows have the same reference, the later one wins unless it was reversed.",
    "I tried that, but the totals differ by exactly 0.01 on the third page; see below.",
    'The log has one line: "WARN rounding: 12.345 -> 12.34 (half even)".',
    "def total(rows):\n    return sum(round(row.amount * row.rate, 2) for row in rows)",
    "| id | amount | currency |\n|----|--------|----------|\n| 17 | 99.95 | EUR |",
    "Store amounts as integers in minor units and divide only when you print them.",
    "SELECT account, SUM(minor) FROM postings WHERE day <= '2025-12-31' GROUP BY account;",
    "On the test host (8 GB, 2 cores) the job takes 41 s; on my naïve laptop it takes 12 s.",
)
REPLY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1750000000,
    "model": "bench",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "The night train leaves at 22:14 and arrives shortly after eight. "
                "The flight takes less time but depends on one short connection. " * 2,
            },
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 64, "completion_tokens": 52, "total_tokens": 116},
}


@dataclass(frozen=True)
class Endpoint:
    """Where one server answers."""

    port: int
    path: str
    headers: dict[str, str]
    root_pid: int | None


def request_body(model: str, large: bool = False, stream: bool = False) -> str:
    """A chat request of about 350 bytes, or of about 20 kB in 17 messages."""
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _QUESTION}]
    if large:
        generator = random.Random(7)
        messages.pop()
        while len(json.dumps(messages)) < 19_000 or messages[-1]["role"] != "user":
            role = "assistant" if messages[-1]["role"] == "user" else "user"
            text = " ".join(generator.choices(_SENTENCES, k=16))
            messages.append({"role": role, "content": text})
    body: dict[str, object] = {"model": model, "messages": messages, "max_tokens": 256}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body, ensure_ascii=False)


def post(endpoint: Endpoint, body: str, timeout_s: float = 30.0) -> tuple[int, bytes]:
    """One request on a new connection: the status and the body of the response."""
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=timeout_s)
    headers = {"content-type": "application/json"} | endpoint.headers
    try:
        connection.request("POST", endpoint.path, body.encode(), headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def upstream_requests(port: int) -> int:
    """Requests that nginx has served so far, this one included."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/requests")
        return int(connection.getresponse().read().splitlines()[2].split()[2])
    finally:
        connection.close()


def run_wrk(
    endpoint: Endpoint,
    upstream_port: int,
    body: str,
    connections: int,
    seconds: float,
    folder: Path,
) -> dict[str, object]:
    """Closed-loop load. CPU time is taken over the inner part, while every connection is busy."""
    body_file = folder / "body.json"
    body_file.write_text(body, "utf-8")
    url = f"http://127.0.0.1:{endpoint.port}{endpoint.path}"
    script = ["-s", str(HERE / "post.lua")]
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds:g}s",
        "--timeout",
        "60s",
        *script,
        url,
    ]
    headers = "\n".join(f"{name}: {value}" for name, value in endpoint.headers.items())
    wrk = subprocess.Popen(
        ["taskset", "-c", str(LOAD_CORE), *command],
        env=os.environ | {"BODY_FILE": str(body_file), "HEADERS": headers},
        stdout=subprocess.PIPE,
        text=True,
    )
    margin_s = min(1.0, 0.2 * seconds)

    def sample() -> tuple[float, float, int]:
        used = processes.cpu_s(endpoint.root_pid) if endpoint.root_pid else 0.0
        return time.monotonic(), used, upstream_requests(upstream_port)

    time.sleep(margin_s)
    began, cpu_before, served_before = sample()
    time.sleep(seconds - 2 * margin_s)
    ended, cpu_after, served_after = sample()
    output = wrk.communicate(timeout=seconds + 90)[0]
    match = re.search(r"^RESULT (\{.*\})$", output, re.MULTILINE)
    if match is None:
        raise RuntimeError(f"wrk failed: {output[-300:]}")
    figures = json.loads(match[1])
    requests, cpu = served_after - served_before - 1, cpu_after - cpu_before
    return {
        "requests_per_s": round(figures["requests"] / figures["duration_us"] * 1e6, 1),
        "p50_ms": figures["p50_us"] / 1e3,
        "p99_ms": figures["p99_us"] / 1e3,
        "errors": figures["errors"],
        "cpu_us_per_request": round(cpu / requests * 1e6, 1) if cpu and requests > 0 else None,
        "core_percent": round(100 * cpu / (ended - began), 1),
    }


def run_streams(
    endpoint: Endpoint, body: str, streams: int, window_s: float, python: str
) -> dict[str, object]:
    """Keep `streams` streams open for a while and count their chunks."""
    job = {
        "port": endpoint.port,
        "path": endpoint.path,
        "headers": endpoint.headers,
        "body": body,
        "streams": streams,
        "chunks": CHUNKS,
        "window_s": window_s,
        "root_pid": endpoint.root_pid,
    }
    command = ["taskset", "-c", str(LOAD_CORE), python, str(HERE / "stream_client.py")]
    done = subprocess.run(
        command, input=json.dumps(job), capture_output=True, text=True, timeout=240, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the stream client failed: {done.stderr[-500:]}")
    result: dict[str, object] = json.loads(done.stdout)
    return result
