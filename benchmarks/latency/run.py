"""What the gateway costs: CPU a request, streams, start-up, memory, size. Loopback only, bounded.

nginx is the upstream (one fixed chat completion); wrk makes the load. CPU is utime + stime of all
processes of a server over the requests it served, so it holds on a shared machine better than
latency does. Beside the gateway run, in the same rounds: nginx as a reverse proxy, and a bare
Granian + pyreqwest proxy that parses, routes and records nothing.

Usage: python benchmarks/latency/run.py [--seconds 8] [--rounds 3]
Needs nginx and wrk (apt-get install nginx wrk). Writes results.json here and
docs/benchmarks/latency.md.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TICK = os.sysconf("SC_CLK_TCK")
CONNECTIONS = (1, 32, 64)
REPLY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "small",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "An answer of some length. " * 4},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 70},
}
ASK = {
    "model": "auto",
    "temperature": 0.2,
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {
            "role": "user",
            "content": "Write a short email to my landlord asking to fix the heating, and mention "
            "that it has been broken since Monday.",
        },
    ],
}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        path = Path(f"/proc/{parent}/task/{parent}/children")
        found += [int(c) for c in path.read_text().split()]
    return found


def cpu_s(pid: int) -> float:
    total = 0
    for p in family(pid):
        fields = Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def rss_mb(pid: int) -> float:
    total = 0
    for p in family(pid):
        total += int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{p}/status").read_text())[1])  # type: ignore[index]
    return total / 1024


def wait_port(port: int, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
            return
        except OSError:
            time.sleep(0.005)
    raise SystemExit(f"nothing answers on port {port}")


def nginx(folder: Path, name: str, port: int, location: str) -> subprocess.Popen[bytes]:
    home = folder / name
    home.mkdir()
    config = f"""
worker_processes 1; daemon off; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 2048; }}
http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {home}/body;
proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u;
scgi_temp_path {home}/s;
{location.replace("PORT", str(port))} }}"""
    (home / "nginx.conf").write_text(config)
    process = subprocess.Popen(["nginx", "-c", str(home / "nginx.conf")], stderr=subprocess.DEVNULL)
    wait_port(port)
    return process


def suffice_config(folder: Path, upstream: str, name: str) -> Path:
    rows = ""
    for model, price, quality in (("small", 0.15, 0.6), ("middle", 0.6, 0.8), ("large", 2.5, 0.95)):
        rows += f'[models."p/{model}"]\ninput_usd_per_mtok = {price}\n'
        rows += f"output_usd_per_mtok = {price * 4}\nquality = {quality}\n"
    path = folder / f"{name}.toml"
    path.write_text(
        f'[store]\nurl = "sqlite:///{folder}/{name}.db"\n'
        f'[providers.p]\nbase_url = "{upstream}"\n{rows}'
        '[routes.auto]\nmodels = ["p/small", "p/middle", "p/large"]\n'
        "objective = { keep_quality = 0.95 }\n"
    )
    return path


def load(folder: Path, port: int, connections: int, seconds: int) -> tuple[int, float]:
    """(requests served, requests a second); every answer must be a 200."""
    script = folder / "post.lua"
    script.write_text(
        'wrk.method = "POST"\nwrk.headers["content-type"] = "application/json"\n'
        f"wrk.body = [==[{json.dumps(ASK)}]==]\n"
    )
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "-s", str(script), url]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in out:
        raise SystemExit(f"port {port}: not every answer was a 200\n{out}")
    return int(re.search(r"(\d+) requests in", out)[1]), float(  # type: ignore[index]
        re.search(r"Requests/sec:\s+([\d.]+)", out)[1]  # type: ignore[index]
    )


def measure_cpu(folder: Path, seconds: int, rounds: int) -> dict[str, Any]:
    up, rev, bare, own = (free_port() for _ in range(4))
    reply = json.dumps(REPLY)
    servers = {
        "upstream": nginx(
            folder,
            "upstream",
            up,
            "server { listen 127.0.0.1:PORT; tcp_nodelay on; location / { default_type "
            f"application/json; return 200 '{reply}'; }} }}",
        )
    }
    rows: dict[str, Any] = {}
    try:
        servers["nginx reverse proxy"] = nginx(
            folder,
            "reverse",
            rev,
            f"upstream u {{ server 127.0.0.1:{up}; keepalive 128; }} server {{ listen "
            "127.0.0.1:PORT; location / { proxy_pass http://u; proxy_http_version 1.1; "
            "proxy_set_header Connection ''; } }",
        )
        target = f"http://127.0.0.1:{up}/v1/chat/completions"
        servers["bare Granian + pyreqwest"] = subprocess.Popen(
            [sys.executable, str(HERE / "bare_proxy.py"), str(bare), target]
        )
        config = suffice_config(folder, f"http://127.0.0.1:{up}/v1", "cpu")
        command = [sys.executable, "-m", "suffice", "serve", "--config", str(config)]
        servers["suffice"] = subprocess.Popen(
            [*command, "--port", str(own)], stdout=subprocess.DEVNULL
        )
        ports = {"nginx reverse proxy": rev, "bare Granian + pyreqwest": bare, "suffice": own}
        for name, port in ports.items():
            wait_port(port)
            load(folder, port, 32, 2)  # warm
            rows[name] = {"idle_rss_mb": round(rss_mb(servers[name].pid), 1)}
        for connections in CONNECTIONS:
            figures: dict[str, list[tuple[float, float]]] = {name: [] for name in ports}
            for _ in range(rounds):
                for name, port in ports.items():
                    before = cpu_s(servers[name].pid)
                    served, rate = load(folder, port, connections, seconds)
                    used = cpu_s(servers[name].pid) - before
                    figures[name].append((used / served * 1e6, rate))
            for name, rounds_ in figures.items():
                cpu = [c for c, _ in rounds_]
                rows[name][str(connections)] = {
                    "cpu_us": round(statistics.median(cpu), 1),
                    "cpu_us_min": round(min(cpu), 1),
                    "cpu_us_max": round(max(cpu), 1),
                    "requests_per_s": round(statistics.median(r for _, r in rounds_)),
                }
        rows["suffice"]["rss_after_load_mb"] = round(rss_mb(servers["suffice"].pid), 1)
    finally:
        for process in servers.values():
            process.terminate()
        for process in servers.values():
            process.wait(10)
    return rows


async def _streams(base_url: str, model: str, n: int) -> tuple[list[float], int]:
    """(time to the first content of each stream, streams whose text was not exactly right)."""
    import pyqwest

    expected = " ".join(str(i) for i in range(50))
    transport = pyqwest.HTTPTransport(follow_redirects=False, pool_max_idle_per_host=n)
    client = pyqwest.Client(transport)
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "count"}]}
    raw = json.dumps(body).encode()
    headers = (("content-type", "application/json"),)
    times: list[float] = []
    wrong = 0

    async def one() -> None:
        nonlocal wrong
        began = time.perf_counter()
        data, first = b"", 0.0
        async with client.stream("POST", base_url + "/chat/completions", headers, raw) as response:
            async for chunk in response.content:
                data += bytes(chunk)
                if not first and b'"content":"0"' in data:
                    first = time.perf_counter() - began
        text = ""
        for block in data.decode().split("\n\n"):
            if block.startswith("data: {"):
                for choice in json.loads(block[6:])["choices"]:
                    text += choice["delta"].get("content") or ""
        wrong += text != expected or b"[DONE]" not in data
        times.append(first)

    await asyncio.gather(*(one() for _ in range(n)))
    await transport.aclose()
    return times, wrong


def measure_streams(folder: Path, n: int = 200) -> dict[str, Any]:
    """200 streams of 50 chunks at once through the gateway, and one by one against the upstream."""
    from suffice.gateway import BackgroundServer
    from suffice.providers.fake import FakeUpstream

    model = {
        "reply": " ".join(str(i) for i in range(50)),
        "tokens_per_s": 50.0,
        "output_tokens": 50,
    }
    with FakeUpstream({"models": {"small": model}}) as fake:
        config = suffice_config(folder, fake.base_url, "streams")
        with BackgroundServer(config, cwd=folder) as server:
            base = server.base_url + "/v1"
            asyncio.run(_streams(base, "p/small", 4))
            direct: list[float] = []
            through: list[float] = []
            quick = {**model, "tokens_per_s": 0.0}
            fake.set_model("small", quick)
            for _ in range(60):
                direct += asyncio.run(_streams(fake.base_url, "small", 1))[0]
                through += asyncio.run(_streams(base, "p/small", 1))[0]
            fake.set_model("small", model)
            before = cpu_s(server.pid)
            times, wrong = asyncio.run(_streams(base, "p/small", n))
            used = cpu_s(server.pid) - before
    return {
        "streams": n,
        "chunks_each": 50,
        "wrong_or_lost": wrong + n - len(times),
        "added_first_chunk_ms_median": round(
            (statistics.median(through) - statistics.median(direct)) * 1e3, 2
        ),
        "cpu_us_per_chunk": round(used / (n * 50) * 1e6, 1),
    }


def measure_start(folder: Path) -> dict[str, Any]:
    from suffice.providers.fake import FakeUpstream

    def timed(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - began

    bare = statistics.median(timed("pass") for _ in range(5))
    imported = statistics.median(timed("import suffice") for _ in range(5)) - bare
    routed = statistics.median(timed("from suffice import Router") for _ in range(5)) - bare
    first = []
    with FakeUpstream({"any_model": True}) as fake:
        for i in range(5):
            config = suffice_config(folder, fake.base_url, f"start{i}")
            port = free_port()
            began = time.perf_counter()
            command = [sys.executable, "-m", "suffice", "serve", "--config", str(config)]
            process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL)
            try:
                wait_port(port)
                with socket.create_connection(("127.0.0.1", port)) as s:
                    body = json.dumps(ASK).encode()
                    s.sendall(
                        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: "
                        + str(len(body)).encode()
                        + b"\r\n\r\n"
                        + body
                    )
                    if b" 200 " not in s.recv(65536):
                        raise SystemExit("the first answer was not a 200")
                first.append(time.perf_counter() - began)
            finally:
                process.terminate()
                process.wait(10)
    return {
        "import_suffice_s": round(imported, 3),
        "import_router_s": round(routed, 3),
        "serve_to_first_answer_s": round(statistics.median(first), 3),
    }


def measure_size(folder: Path) -> dict[str, Any]:
    """A fresh environment with the base install, less what pip itself takes."""
    home = folder / "size"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    site = next(home.glob("lib/python*/site-packages"))
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--target", str(site)]
    locked = str(ROOT / "requirements" / "base.txt")
    subprocess.run([*command, "--require-hashes", "-r", locked], check=True)
    subprocess.run([*command, "--no-deps", str(ROOT)], check=True)
    total = sum(f.stat().st_size for f in site.rglob("*") if f.is_file())
    packages = len(list(site.glob("*.dist-info")))
    return {"installed_mb": round(total / 1e6, 1), "packages": packages}


def machine() -> dict[str, Any]:
    names = "granian pyqwest pyreqwest msgspec starlette uvloop sqlalchemy".split()
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "nginx": subprocess.run(
            ["nginx", "-v"], capture_output=True, text=True, check=True
        ).stderr.strip(),
        "packages": {n: version(n) for n in names},
    }


def page(r: dict[str, Any]) -> str:
    m, cpu = r["machine"], r["cpu"]
    bare = cpu["bare Granian + pyreqwest"]
    lines = [
        "# What the gateway costs",
        "",
        "Generated by `benchmarks/latency/run.py` from its `results.json`; do not edit.",
        "",
        f"Measured {r['date']} on {m['cpu']}, {m['cores']} cores, {m['system']}, Python {m['python']}, "
        f"{m['nginx']}; " + ", ".join(f"{k} {v}" for k, v in m["packages"].items()) + ".",
        f"Method: {r['rounds']} rounds of {r['seconds']} s for each server and number of connections, "
        "taken in turn; wrk (1 thread) makes the load, nginx answers as the upstream, all on one "
        "shared machine. CPU is utime + stime of all processes of a server over the requests that it "
        "served: the median of the rounds, with their lowest and highest.",
        "",
        "| server | "
        + " | ".join(f"{c} connection{'s' if c > 1 else ''}" for c in CONNECTIONS)
        + " |",
        "|---|" + "---|" * len(CONNECTIONS),
    ]
    for name, row in cpu.items():
        cells = []
        for c in CONNECTIONS:
            x = row[str(c)]
            times = x["cpu_us"] / bare[str(c)]["cpu_us"]
            cells.append(
                f"{x['cpu_us']:.0f} us ({x['cpu_us_min']:.0f}-{x['cpu_us_max']:.0f}), "
                f"{times:.2f}x bare, {x['requests_per_s']}/s"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    s, b, z = r["streams"], r["start"], r["size"]
    own = cpu["suffice"]
    worst = max(own[str(c)]["cpu_us"] / bare[str(c)]["cpu_us"] for c in CONNECTIONS)
    aims = (
        (
            "CPU a request, worst ratio to the bare proxy",
            f"{worst:.2f}",
            "at most 1.40",
            worst <= 1.4,
        ),
        (
            f"{s['streams']} concurrent streams of {s['chunks_each']} chunks, lost or wrong",
            s["wrong_or_lost"],
            "0",
            s["wrong_or_lost"] == 0,
        ),
        (
            "added time to the first chunk, median",
            f"{s['added_first_chunk_ms_median']} ms",
            "under 2 ms",
            s["added_first_chunk_ms_median"] < 2,
        ),
        ("`import suffice`", f"{b['import_suffice_s']} s", "0.3 s", b["import_suffice_s"] <= 0.3),
        (
            "`suffice serve` to the first answer",
            f"{b['serve_to_first_answer_s']} s",
            "under 1 s",
            b["serve_to_first_answer_s"] < 1,
        ),
        (
            "resident memory, serving",
            f"{own['idle_rss_mb']} MB",
            "under 100 MB",
            own["idle_rss_mb"] < 100,
        ),
        (
            "installed size without extras",
            f"{z['installed_mb']} MB in {z['packages']} packages",
            "under 150 MB",
            z["installed_mb"] < 150,
        ),
    )
    lines += ["", "| what | measured | aim | met |", "|---|---|---|---|"]
    lines += [f"| {w} | {v} | {a} | {'yes' if ok else 'no'} |" for w, v, a, ok in aims]
    lines += [
        "",
        f"The gateway's CPU for one streamed chunk: {s['cpu_us_per_chunk']} us. `import` times are "
        "over an empty interpreter; memory is of the gateway process after a warm-up load, "
        f"{own['rss_after_load_mb']} MB after all rounds.",
        "",
    ]
    if worst > 1.4:
        lines += [
            "The CPU aim is missed. Three things cost more than the bare proxy has in all: our own "
            "Python (reading, evaluating, deciding, keeping the books), the HTTP client, which costs "
            "about twice pyreqwest but ends a call that nobody waits for "
            "([why](../concepts/providers.md)), and writing one decision and one attempt to SQLite.",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for tool in ("nginx", "wrk"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is not installed: apt-get install {tool}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = {
            "date": dt.date.today().isoformat(),
            "seconds": args.seconds,
            "rounds": args.rounds,
            "machine": machine(),
            "cpu": measure_cpu(folder, args.seconds, args.rounds),
            "streams": measure_streams(folder),
            "start": measure_start(folder),
            "size": measure_size(folder),
        }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    target = ROOT / "docs" / "benchmarks" / "latency.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
