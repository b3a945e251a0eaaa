"""What the tests of the observers share: streams that do as they are told, and runs without a ring.

Rules of this file: a fake has no checkpoint of its own.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
import trio

from trio_uring._network.network import NetworkStream
from trio_uring._network.simulated import run_deterministically


def without_ring(function):
    """Makes a test that opens no ring of an async function."""

    @functools.wraps(function)
    def run(**kwargs: Any) -> None:
        run_deterministically(functools.partial(function, **kwargs))

    del run.__wrapped__  # pytest-trio would look through it
    run.__signature__ = inspect.signature(function)
    return pytest.mark.no_ring(run)


class Fake(NetworkStream):
    """A stream that does what `behave` says, without a checkpoint, and notes every call."""

    remote_address = ("peer", 1)
    local_address = ("here", 2)
    bytes_sent = 3

    def __init__(self, behave: Any = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.behave = behave
        self.send_timeout: float | None = None
        self.receive_timeout: float | None = None

    async def _call(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any = None
    ) -> Any:
        self.calls.append((name, *args, kwargs))
        return result if self.behave is None else await self.behave()

    async def send_all(self, *args, **kwargs):
        await self._call("send_all", args, kwargs)

    async def send_all_vectored(self, *args, **kwargs):
        await self._call("send_all_vectored", args, kwargs)

    async def wait_send_all_might_not_block(self):
        await self._call("wait_send_all_might_not_block", (), {})

    async def send_eof(self):
        await self._call("send_eof", (), {})

    async def receive_some(self, *args, **kwargs):
        return await self._call("receive_some", args, kwargs, b"some")

    async def receive_into(self, *args, **kwargs):
        return await self._call("receive_into", args, kwargs, 2)

    async def receive_exactly(self, *args, **kwargs):
        return await self._call("receive_exactly", args, kwargs, b"exactly")

    async def receive_until(self, *args, **kwargs):
        return await self._call("receive_until", args, kwargs, b"until")

    def peek(self, *args):
        self.calls.append(("peek", *args))
        return b"peek"

    async def aclose(self):
        await self._call("aclose", (), {})


class Plain(trio.abc.Stream):
    """No more than trio.abc.Stream has."""

    async def send_all(self, data):
        self.sent = data

    async def wait_send_all_might_not_block(self):
        pass

    async def receive_some(self, max_bytes=None):
        return b"plain"

    async def aclose(self):
        pass


def every_call(stream: Any) -> list[tuple[str, Any]]:
    """The operation and a call of it, for each method that is an operation."""
    return [
        ("send", lambda: stream.send_all(b"data")),
        ("send", lambda: stream.send_all([b"da", b"ta"])),
        ("send", lambda: stream.send_all_vectored(iter([b"data"]))),
        ("receive", lambda: stream.receive_some()),
        ("receive", lambda: stream.receive_some(5, timeout=1)),
        ("receive", lambda: stream.receive_into(bytearray(4))),
        ("receive", lambda: stream.receive_exactly(4)),
        ("receive", lambda: stream.receive_until(b"\n", 4)),
        ("close", lambda: stream.aclose()),
    ]
