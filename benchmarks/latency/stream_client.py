"""Keeps N streams open against one server and counts what happens to their chunks.

Reads a JSON job on standard input and prints a JSON result. It runs as its own process on the core
of the load, in the interpreter of the bare proxy, which has uvloop.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from processes import cpu_s

try:
    import uvloop
except ImportError:  # slower, but the same figures of the server's CPU time
    uvloop = None  # type: ignore[assignment]  # tested for below

_MARK = re.compile(rb"s(\d+)t(\d+)e")
_RAMP_S = 1.5
_DRAIN_S = 8.0


@dataclass
class Job:
    """What to send and how to count."""

    port: int
    path: str
    headers: dict[str, str]
    body: str
    streams: int
    chunks: int
    window_s: float
    root_pid: int | None = None

    def request(self) -> bytes:
        fields = {"host": f"127.0.0.1:{self.port}", "content-type": "application/json"}
        fields |= {"content-length": str(len(self.body.encode()))} | self.headers
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {self.path} HTTP/1.1\r\n{head}\r\n{self.body}".encode()


@dataclass
class Counts:
    """Totals over all streams; delays in nanoseconds, of chunks inside the window."""

    completed: int = 0
    failed: int = 0
    unfinished: int = 0
    lost: int = 0
    repeated: int = 0
    reordered: int = 0
    merged: int = 0
    without_end: int = 0
    first_chunk_ns: list[int] = field(default_factory=list)
    delay_ns: list[int] = field(default_factory=list)
    first_failure: str = ""


class Connection(asyncio.Protocol):
    """One keep-alive connection that reads one stream after the other until the window ends."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.busy = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.send_request()

    def send_request(self) -> None:
        self.busy = True
        self.raw = self.events = b""
        self.head: bytes | None = None
        self.numbers: list[int] = []
        self.ended = False
        self.sent_ns = time.monotonic_ns()
        self.transport.write(self.run.request)

    def data_received(self, data: bytes) -> None:
        if not self.busy:
            return
        now_ns = time.monotonic_ns()
        self.raw += data
        if self.head is None:
            head, separator, rest = self.raw.partition(b"\r\n\r\n")
            if not separator:
                return
            self.head, self.raw = head.lower(), rest
        if not self.head.startswith(b"http/1.1 200"):
            self.fail(self.head[:100] + b" " + self.raw[:200])
            return
        if b"transfer-encoding: chunked" in self.head:
            finished = self.read_frames(now_ns)
        else:
            self.read_events(self.raw, now_ns)
            self.raw, finished = b"", False
        if finished:
            self.finish()

    def read_frames(self, now_ns: int) -> bool:
        """Take whole frames of the chunked encoding from `raw`; true after the last one."""
        start = 0
        while (line_end := self.raw.find(b"\r\n", start)) >= 0:
            size = int(self.raw[start:line_end].partition(b";")[0], 16)
            end = line_end + 2 + size + 2
            if len(self.raw) < end:
                break
            if size == 0:
                return True
            self.read_events(self.raw[line_end + 2 : end - 2], now_ns)
            start = end
        self.raw = self.raw[start:]
        return False

    def read_events(self, data: bytes, now_ns: int) -> None:
        *events, self.events = (self.events + data).replace(b"\r\n", b"\n").split(b"\n\n")
        counts, inside = (
            self.run.counts,
            self.run.window_starts_ns <= now_ns <= self.run.window_ends_ns,
        )
        for event in events:
            marks = _MARK.findall(event)
            counts.merged += max(0, len(marks) - 1)
            self.ended = self.ended or b"[DONE]" in event
            for number, sent_ns in marks:
                if inside:
                    counts.delay_ns.append(now_ns - int(sent_ns))
                    if not self.numbers and self.sent_ns >= self.run.window_starts_ns:
                        counts.first_chunk_ns.append(now_ns - self.sent_ns)
                self.numbers.append(int(number))

    def finish(self) -> None:
        self.busy = False
        counts, distinct = self.run.counts, set(self.numbers)
        counts.completed += 1
        counts.lost += self.run.job.chunks - len(distinct)
        counts.repeated += len(self.numbers) - len(distinct)
        pairs = zip(self.numbers, self.numbers[1:], strict=False)
        counts.reordered += sum(later < earlier for earlier, later in pairs)
        counts.without_end += not self.ended
        self.next_stream()

    def fail(self, message: bytes) -> None:
        self.busy = False
        self.run.counts.failed += 1
        self.run.counts.first_failure = self.run.counts.first_failure or repr(message)
        self.transport.abort()
        self.run.reopen()

    def next_stream(self) -> None:
        if time.monotonic_ns() >= self.run.window_ends_ns:
            self.transport.close()
            self.run.close_one()
        elif self.transport.is_closing() or b"connection: close" in (self.head or b""):
            self.transport.close()
            self.run.reopen()
        else:
            self.send_request()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.busy:
            return
        if self.head and self.ended and b"transfer-encoding" not in self.head:
            self.finish()  # a reply that ends with its connection
        else:
            self.fail(f"connection lost: {exc}".encode())


class Run:
    """One measurement: a ramp of starts over a second, a window that counts, an orderly end."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.request = job.request()
        self.counts = Counts()
        self.connections: list[Connection] = []
        self.live = job.streams
        self.tasks: set[asyncio.Task[None]] = set()

    async def measure(self) -> dict[str, object]:
        loop = asyncio.get_running_loop()
        self.idle = asyncio.Event()
        self.window_starts_ns = time.monotonic_ns() + int(_RAMP_S * 1e9)
        self.window_ends_ns = self.window_starts_ns + int(self.job.window_s * 1e9)
        for index in range(self.job.streams):
            loop.call_later(index / self.job.streams, self.open)
        await asyncio.sleep(_RAMP_S)
        cpu, chunks, started = self.server_cpu_s(), len(self.counts.delay_ns), time.monotonic()
        await asyncio.sleep(self.job.window_s - 0.05)
        cpu, wall_s = self.server_cpu_s() - cpu, time.monotonic() - started
        chunks = len(self.counts.delay_ns) - chunks
        try:
            await asyncio.wait_for(self.idle.wait(), _DRAIN_S)
        except TimeoutError:
            self.counts.unfinished = sum(connection.busy for connection in self.connections)
        return self.summary(cpu, chunks, wall_s)

    def summary(self, cpu: float, chunks: int, wall_s: float) -> dict[str, object]:
        counts = self.counts
        result: dict[str, object] = {
            name: value for name, value in vars(counts).items() if not isinstance(value, list)
        }
        return result | {
            "chunks_per_s": round(chunks / wall_s, 1),
            "cpu_us_per_chunk": round(cpu / chunks * 1e6, 2) if chunks and cpu else None,
            "core_percent": round(100 * cpu / wall_s, 1),
            "first_chunk_p50_ms": percentile_ms(counts.first_chunk_ns, 0.5),
            "first_chunk_p99_ms": percentile_ms(counts.first_chunk_ns, 0.99),
            "delay_p50_ms": percentile_ms(counts.delay_ns, 0.5),
            "delay_p99_ms": percentile_ms(counts.delay_ns, 0.99),
        }

    def server_cpu_s(self) -> float:
        return cpu_s(self.job.root_pid) if self.job.root_pid else 0.0

    def open(self) -> None:
        task = asyncio.ensure_future(self.connect())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def connect(self) -> None:
        connection = Connection(self)
        try:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: connection, "127.0.0.1", self.job.port)
        except OSError as error:
            self.counts.failed += 1
            self.counts.first_failure = self.counts.first_failure or str(error)
            self.reopen()
        else:
            self.connections.append(connection)

    def reopen(self) -> None:
        if time.monotonic_ns() < self.window_ends_ns:
            asyncio.get_running_loop().call_later(0.05, self.open)
        else:
            self.close_one()

    def close_one(self) -> None:
        self.live -= 1
        if not self.live:
            self.idle.set()


def percentile_ms(values_ns: list[int], share: float) -> float | None:
    """The given quantile of a list of durations; `None` if it is empty."""
    if not values_ns:
        return None
    ordered = sorted(values_ns)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6, 3)


if __name__ == "__main__":
    run = Run(Job(**json.load(sys.stdin)))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if uvloop else None) as runner:
        print(json.dumps(runner.run(run.measure())))
