"""The servers that the benchmark compares: how each is installed, configured and started.

A new peer is one entry of `PEERS` and, if it reads a config file, one file under `peers/`.
"""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import processes
from load import SERVER_CORE, Endpoint, post, request_body

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = HERE / ".peers"
LOCK = ROOT / "requirements" / "base.txt"


@dataclass(frozen=True)
class Peer:
    """One server. `$NAME` in `command`, `env` and the config file is filled in at the start."""

    label: str
    note: str
    command: str = ""
    requirements: tuple[str, ...] = ()
    distribution: str = ""
    config: str = ""
    env: dict[str, str] = field(default_factory=dict)
    path: str = "/v1/chat/completions"
    stream_path: str = "/v1/chat/completions"
    model: str = "bench"
    stream_model: str = "bench"
    direct: bool = False
    port_from_file: bool = False


PEERS = {
    "direct": Peer(
        label="no gateway",
        note="what the load generator and the upstream do together on one core",
        direct=True,
    ),
    "nginx": Peer(
        label="nginx reverse proxy",
        note="the least that a proxy costs: no parsing, one worker, keep-alive",
        command="nginx -c $FOLDER/nginx.conf",
        config="nginx.conf",
        stream_path="/stream/v1/chat/completions",
    ),
    "pyref": Peer(
        label="bare Python proxy",
        note="Granian + pyreqwest: decode, set the model, forward, decode the reply; no features",
        command="$BIN/granian --interface asgi --host 127.0.0.1 --port $PORT --workers 1 "
        "--runtime-threads 1 --loop uvloop --no-ws --log-level error "
        "--working-dir $PEERS bare_proxy:app",
        requirements=("granian==2.8.7", "pyreqwest==0.15.1", "msgspec==0.22.0", "uvloop==0.23.0"),
        distribution="granian",
        env={"UPSTREAM_PORT": "$UPSTREAM_PORT", "STREAM_PORT": "$STREAM_PORT"},
    ),
    "smg": Peer(
        label="SMG",
        note="Rust; balances replicas of one model; retries and circuit breaker on, as by default",
        command="$BIN/smg launch --host 127.0.0.1 --port $PORT --prometheus-host 127.0.0.1 "
        "--prometheus-port $SPARE_PORT --worker-urls http://127.0.0.1:$UPSTREAM_PORT "
        "http://127.0.0.1:$STREAM_PORT --policy round_robin --disable-tokenizer-autoload "
        "--log-level warn",
        requirements=("smg==1.13.0",),
        distribution="smg",
        env={"HF_HUB_OFFLINE": "1"},
        stream_model="bench-stream",
    ),
    "tensorzero": Peer(
        label="TensorZero",
        note="Rust gateway inside a Python process, the form on PyPI; observability off",
        command="$BIN/python $PEERS/tensorzero_gateway.py $FOLDER/tensorzero.toml $FOLDER/port",
        requirements=("tensorzero==2026.6.0", "openai"),
        distribution="tensorzero",
        config="tensorzero.toml",
        path="/openai/v1/chat/completions",
        stream_path="/openai/v1/chat/completions",
        model="tensorzero::model_name::plain",
        stream_model="tensorzero::model_name::stream",
        port_from_file=True,
    ),
    "suffice": Peer(
        label="suffice",
        note="one worker, the whole request path: evaluation, a decision among three models, "
        "a record in SQLite",
        command="$BIN/suffice serve --config $FOLDER/suffice.toml --port $PORT",
        distribution="suffice",
        config="suffice.toml",
        model="auto",
        stream_model="auto-stream",
    ),
}


def environment(name: str) -> Path:
    """The folder of the virtual environment of a peer."""
    return CACHE / name


def install(name: str) -> None:
    """Install a peer into its own environment. `suffice` is always installed from this checkout."""
    peer = PEERS[name]
    if not peer.distribution:
        return
    home = environment(name)
    marker = home / "installed.json"
    wanted = json.dumps(list(peer.requirements) or [LOCK.read_text()])
    if not marker.exists() or marker.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q"]
        subprocess.run(
            [*pip, *(peer.requirements or ("--require-hashes", "-r", str(LOCK)))], check=True
        )
        marker.write_text(wanted)
    if name == "suffice":
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "--no-deps", "--force-reinstall", str(ROOT)], check=True)


def installation(name: str) -> dict[str, object]:
    """Version, size without bytecode and pip, and number of distributions of a peer."""
    peer = PEERS[name]
    if not peer.distribution:
        return {}
    site = next(environment(name).glob("lib/python*/site-packages"))
    sizes = [
        path.stat().st_size
        for path in site.rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and path.relative_to(site).parts[0].partition("-")[0] not in {"pip", "setuptools"}
    ]
    names = [path.name for path in site.glob("*.dist-info")]
    version = next(n for n in names if n.lower().startswith(peer.distribution + "-"))
    return {
        "version": version.removesuffix(".dist-info").partition("-")[2],
        "installed_mb": round(sum(sizes) / 1e6, 1),
        "distributions": sum(not n.startswith(("pip-", "setuptools-")) for n in names),
    }


class Server:
    """A started peer."""

    def __init__(self, name: str, upstream_port: int, stream_port: int, folder: Path) -> None:
        self.peer = PEERS[name]
        self.folder = folder
        self.port = upstream_port if self.peer.direct else processes.free_port()
        self.stream_port = stream_port if self.peer.direct else self.port
        self.process: subprocess.Popen[bytes] | None = None
        self.start_s: float | None = None
        values = {
            "FOLDER": str(folder),
            "BIN": str(environment(name) / "bin"),
            "PEERS": str(HERE / "peers"),
            "PORT": str(self.port),
            "SPARE_PORT": str(processes.free_port()),
            "UPSTREAM_PORT": str(upstream_port),
            "STREAM_PORT": str(stream_port),
        }
        if not self.peer.direct:
            self._start(values)

    def endpoint(self, stream: bool = False) -> Endpoint:
        """Where to send plain or streaming requests."""
        path = self.peer.stream_path if stream else self.peer.path
        port = self.stream_port if stream else self.port
        return Endpoint(port, path, {}, self.process.pid if self.process else None)

    def stop(self) -> None:
        """End the process, if there is one."""
        if self.process:
            processes.stop(self.process)

    def _start(self, values: dict[str, str]) -> None:
        """Start the process and wait for its first correct answer."""
        peer = self.peer
        if peer.config:
            template = string.Template((HERE / "peers" / peer.config).read_text())
            filled = template.safe_substitute(values)
            (self.folder / peer.config).write_text(filled)
        env = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
        env |= {"HOME": str(self.folder)}
        env |= {key: string.Template(text).substitute(values) for key, text in peer.env.items()}
        command = [string.Template(part).substitute(values) for part in peer.command.split()]
        log = self.folder / "output.log"
        began = time.monotonic()
        self.process = processes.start(command, SERVER_CORE, log, env)
        failure = ""
        while time.monotonic() - began < 60 and self.process.poll() is None:
            try:
                if peer.port_from_file:
                    self.port = self.stream_port = int((self.folder / "port").read_text())
                status, answer = post(self.endpoint(), request_body(peer.model))
            except (OSError, ValueError) as error:
                failure = str(error)
            else:
                if status == 200:
                    self.start_s = time.monotonic() - began
                    return
                failure = f"{status} {answer[:200]!r}"
            time.sleep(0.01)
        self.stop()
        raise RuntimeError(f"{peer.label} did not answer: {failure}\n{log.read_text()[-1000:]}")
