"""Closing the transport waits for the client's threads: a process may end right after it."""

from __future__ import annotations

import _thread
import asyncio
import threading
import time

from suffice.providers.fake import FakeUpstream
from suffice.providers.transport import HTTPTransport


async def _ask_and_close(url: str) -> float:
    transport = HTTPTransport()
    await transport.get(url, [], 10.0)
    began = time.monotonic()
    await transport.aclose()
    return time.monotonic() - began


def test_closing_waits_for_a_foreign_thread_that_is_in_python(fake: FakeUpstream) -> None:
    inside, leave, left = threading.Event(), threading.Event(), threading.Event()

    def foreign() -> None:  # as a thread of the HTTP client on its way back from a call into Python
        inside.set()
        leave.wait(0.15)
        left.set()

    _thread.start_new_thread(foreign, ())
    inside.wait()
    asyncio.run(_ask_and_close(f"{fake.base_url}/models"))
    assert left.is_set()


def test_a_foreign_thread_that_stays_does_not_hold_the_close_up(fake: FakeUpstream) -> None:
    inside, leave, left = threading.Event(), threading.Event(), threading.Event()

    def foreign() -> None:
        inside.set()
        leave.wait(30.0)
        left.set()

    _thread.start_new_thread(foreign, ())
    inside.wait()
    try:
        assert asyncio.run(_ask_and_close(f"{fake.base_url}/models")) < 10.0
        assert not left.is_set()
    finally:
        leave.set()
        left.wait(10.0)


def test_an_unused_transport_closes_at_once() -> None:
    asyncio.run(HTTPTransport().aclose())
