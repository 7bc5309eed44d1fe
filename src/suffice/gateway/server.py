"""Running the gateway: one process, many workers, or a child process for demos and tests."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from suffice.errors import ConfigError, JobError

if TYPE_CHECKING:
    from suffice.gateway.app import App
    from suffice.router import Router

CONFIG_ENV = "SUFFICE_CONFIG"  # how workers of one gateway learn which file to read


def check_port(host: str, port: int) -> None:
    """Check that a port is free, before anything else is started.

    Args:
        host: address to bind.
        port: port to bind.

    Raises:
        ConfigError: it cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {reason}.",
            field="server.port",
            remedy="Stop what uses it, or choose another with --port.",
        ) from None


# The store's thread shares the interpreter with the event loop. At Python's 5 ms a batch being
# written would delay a request by that much; at this interval the delay is not measurable.
SWITCH_INTERVAL_S = 0.001


def _tune_runtime() -> None:
    """Exempt what is alive when serving begins from garbage collection, and collect seldom."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def _serve_one(
    router: Router, host: str, port: int, ready: Callable[[], None] | None
) -> None:
    from granian.constants import HTTPModes, Interfaces
    from granian.server.embed import Server

    from suffice.gateway.app import create_app

    server = Server(
        create_app(router),
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        http=HTTPModes.auto,
        websockets=False,
        log_enabled=False,
        backlog=1024,
    )
    loop = asyncio.get_running_loop()
    task = loop.create_task(server.serve())
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, server.stop)
    if ready is not None:
        await _wait_until_listening(host, port)
        ready()
    await task


async def _wait_until_listening(host: str, port: int, timeout_s: float = 10.0) -> None:
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            _, writer = await asyncio.open_connection(target, port)
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.005)
        else:
            writer.close()
            return


def serve(
    config: str | Path | None = None,
    *,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
    ready: Callable[[str, Router], None] | None = None,
) -> None:
    """Run the gateway until SIGINT or SIGTERM. Blocks.

    Args:
        config: path of a suffice.toml; None = ./suffice.toml, else the environment.
        host: overrides the file.
        port: overrides the file.
        workers: overrides the file.
        ready: called once with the base URL and the router when the port answers.
    """
    from suffice.router import Router

    router = Router.from_config(config, host=host, port=port)
    host, port = router.host, router.port
    check_port(host, port)
    n = workers or router.workers
    url = f"http://{'[' + host + ']' if ':' in host else host}:{port}"
    if n > 1:
        router.close()
        _serve_many(config, host, port, n, lambda: ready(url, router) if ready else None)
        return
    router.warm_up()  # a store that cannot be opened fails here, before anything listens
    _tune_runtime()
    import uvloop

    def announce() -> None:
        if ready is not None:
            ready(url, router)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_one(router, host, port, announce))


def _serve_many(
    config: str | Path | None, host: str, port: int, workers: int, ready: Callable[[], None]
) -> None:
    from granian import Granian
    from granian.constants import Interfaces

    from suffice.budgets import LEDGER_ENV, shared_ledger

    if config is not None:
        os.environ[CONFIG_ENV] = str(Path(config).resolve())
    server = Granian(
        "suffice.gateway.server:worker_app",
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        workers=workers,
        factory=True,
        websockets=False,
        log_enabled=False,
        backlog=1024,
        respawn_failed_workers=True,
    )
    server.on_startup(ready)
    with shared_ledger(workers) as ledger:  # all workers see what each has spent
        os.environ[LEDGER_ENV] = ledger
        server.serve()


def worker_app() -> App:
    """The app of one worker process, over the configuration that the parent was started with."""
    from suffice.gateway.app import create_app
    from suffice.router import Router

    app = create_app(Router.from_config(os.environ.get(CONFIG_ENV)))
    _tune_runtime()
    return app


def _free_port() -> int:
    """Returns a free port outside the range from which systems assign ports.

    Another process that asks for any free port between this check and the start of the child cannot
    get this one.
    """
    while True:
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class BackgroundServer:
    """The real gateway in a child process, for demos, notebooks and tests.

    with BackgroundServer("suffice.toml") as server:
        client = openai.OpenAI(base_url=server.base_url + "/v1", api_key="none")

    Attributes:
        port: 0 until a free one is chosen.
        process: the child; None = not running.
    """

    def __init__(
        self,
        config: str | Path,
        *,
        port: int = 0,
        env: Mapping[str, str] | None = None,
        workers: int = 1,
        timeout_s: float = 20.0,
        cwd: str | Path | None = None,
    ) -> None:
        """Keep the arguments; `start` starts the child.

        Args:
            config: path of a suffice.toml.
            port: 0 = a free one.
            env: added to the child's environment.
            workers: processes of the gateway.
            timeout_s: how long it may take to start.
            cwd: the child's working directory.
        """
        self.config = config
        self.port = port
        self.env = env
        self.workers = workers
        self.timeout_s = timeout_s
        self.cwd = cwd
        self.process: subprocess.Popen[bytes] | None = None
        self._stderr_file: IO[bytes] | None = None

    @property
    def base_url(self) -> str:
        """Without `/v1`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the child."""
        assert self.process is not None, "start() first"
        return self.process.pid

    def start(self) -> Self:
        """Start the child and wait until it listens.

        Returns:
            The server.

        Raises:
            JobError: it did not start within `timeout_s`; has the child's own message.
        """
        if self.port == 0:
            self.port = _free_port()
        command = [sys.executable, "-m", "suffice", "serve", "--config", str(self.config)]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", str(self.workers)]
        self._stderr_file = tempfile.TemporaryFile()  # noqa: SIM115  closed by stop; a pipe that is not read would block
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **(self.env or {})},
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr_file,
        )
        deadline = time.monotonic() + self.timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                message = self._stderr().decode("utf-8", "replace").strip()
                self.stop()
                raise JobError(f"The gateway did not start: {message or 'no reason given'}")
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=0.2):
                    return self
            except OSError:
                time.sleep(0.01)
        self.stop()
        raise JobError(f"The gateway did not answer within {self.timeout_s:g} s.")

    def _stderr(self) -> bytes:
        assert self._stderr_file is not None
        self._stderr_file.seek(0)
        return self._stderr_file.read()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Send SIGTERM, which flushes the store; SIGKILL only after `timeout_s`."""
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._stderr_file is not None:
            self._stderr_file.close()
            self._stderr_file = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
