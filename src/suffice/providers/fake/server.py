"""A scripted fake of a model provider: a real HTTP/1.1 server on loopback, in a thread.

It is our own protocol on asyncio rather than a framework, because it must be able to misbehave
(stall, cut, reset) and to answer thousands of requests per second next to a gateway under test.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import msgspec

from suffice.errors import JobError
from suffice.providers.fake.connection import FakeConnection, ReceivedRequest
from suffice.providers.fake.script import Action, FakeModel, Script, parse_action

_OK = Action()


class FakeUpstream:
    """Speaks OpenAI chat completions by a script.

        with FakeUpstream({"models": {"m": {"reply": "Hi."}}}) as fake:
            ...  # call fake.base_url + "/chat/completions"
            fake.set_down(True)   # connections are refused or dropped from now on
            fake.requests         # what it received

    Args:
        script: a Script or the same as a dictionary.
        port: 0 takes a free one.
        keep: how many requests are remembered.
    """

    def __init__(
        self, script: Script | Mapping[str, object], *, port: int = 0, keep: int = 10_000
    ) -> None:
        self.script = script if isinstance(script, Script) else msgspec.convert(script, Script)
        self.port = port
        self.requests: list[ReceivedRequest] = []
        self._keep = keep
        self._served: dict[str, int] = {}  # requests per model
        self._is_down = False
        self._connections: set[FakeConnection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        """The URL that a provider's `base_url` is set to."""
        return f"http://127.0.0.1:{self.port}/v1"

    # What connections ask, in the server's thread.

    def connected(self, connection: FakeConnection) -> None:
        """A connection is open; it is dropped if the provider is down."""
        self._connections.add(connection)
        if self._is_down:
            connection.transport.abort()

    def disconnected(self, connection: FakeConnection) -> None:
        """A connection is closed."""
        self._connections.discard(connection)

    def record(self, request: ReceivedRequest) -> None:
        """Keep a request; the older half is dropped when there are too many."""
        self.requests.append(request)
        if len(self.requests) > self._keep:
            del self.requests[: self._keep // 2]

    def next_action(self, name: str, model: FakeModel) -> Action:
        """The action for this request to the model `name`."""
        if not model.actions:
            return _OK
        index = self._served.get(name, 0)
        self._served[name] = index + 1
        if index < len(model.actions):
            return parse_action(model.actions[index])
        last = parse_action(model.actions[-1])
        return last if last.repeat else _OK

    # Control, from any thread.

    def start(self) -> Self:
        """Listen. Raises JobError if the port is taken."""
        started = threading.Event()
        failures: list[OSError] = []
        loop = self._loop = asyncio.new_event_loop()

        def run() -> None:
            try:
                loop.run_until_complete(self._listen())
            except OSError as error:
                failures.append(error)
                started.set()
                return
            started.set()
            loop.run_forever()
            loop.run_until_complete(_cancel_tasks())
            loop.close()

        self._thread = threading.Thread(target=run, name="fake-upstream", daemon=True)
        self._thread.start()
        started.wait(10.0)
        if failures:
            raise JobError(f"The fake upstream cannot listen on port {self.port}: {failures[0]}")
        return self

    async def _listen(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: FakeConnection(self), "127.0.0.1", self.port, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def set_down(self, down: bool) -> None:
        """While it is down, open connections are dropped and new ones are reset at once."""

        def apply() -> None:
            self._is_down = down
            if down:
                self._drop_connections()

        self._run_in_loop(apply)

    def set_model(self, name: str, model: FakeModel | Mapping[str, object]) -> None:
        """Change or add a model; its list of actions starts again."""
        new = model if isinstance(model, FakeModel) else msgspec.convert(model, FakeModel)

        def apply() -> None:
            models = {**self.script.models, name: new}
            self.script = msgspec.structs.replace(self.script, models=models)
            self._served.pop(name, None)

        self._run_in_loop(apply)

    def stop(self) -> None:
        """Drop all connections and end the thread."""
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return

        def apply() -> None:
            if self._server is not None:
                self._server.close()
            self._drop_connections()
            loop.call_soon(loop.stop)

        loop.call_soon_threadsafe(apply)
        self._thread.join(5.0)

    def _drop_connections(self) -> None:
        for connection in tuple(self._connections):
            connection.transport.abort()

    def _run_in_loop(self, apply: Callable[[], None]) -> None:
        assert self._loop is not None, "not started"
        done = threading.Event()

        def run() -> None:
            try:
                apply()
            finally:
                done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait(5.0)

    def __enter__(self) -> Self:
        """Start it."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it."""
        self.stop()


async def _cancel_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
