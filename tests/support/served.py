"""What the tests of servers share: listeners whose clients are this process's, and servers.

Rules of this file: connections are pairs of Unix sockets, so that what is sent has arrived, and a
MockClock decides what time it is.
"""

from __future__ import annotations

import contextlib
import math
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from trio_uring import SocketListener, SocketStream, serve_listeners

from .streams import unix_sockets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


class Door(trio.abc.Listener[SocketStream]):
    """A listener with a backlog. An exception in the backlog is what accept raises."""

    def __init__(self) -> None:
        self._put, self._get = trio.open_memory_channel[Any](math.inf)
        self.accepting = self.closed = False

    def knock(self) -> SocketStream:
        """Connects, and returns the client's end."""
        client, server = unix_sockets()
        self.give(SocketStream(server))
        return SocketStream(client)

    def give(self, what: Any) -> None:
        self._put.send_nowait(what)

    @property
    def waiting(self) -> int:
        """How many connections are in the backlog."""
        return self._put.statistics().current_buffer_used

    async def accept(self) -> SocketStream:
        self.accepting = True
        try:
            given = await self._get.receive()
        finally:
            self.accepting = False
        if isinstance(given, BaseException):
            raise given
        assert isinstance(given, SocketStream)
        return given

    async def aclose(self) -> None:
        self.closed = True
        self._put.close()
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                left = self._get.receive_nowait()
                if isinstance(left, SocketStream):
                    await trio.aclose_forcefully(left)
        await trio.lowlevel.checkpoint()


class Listening(SocketListener):
    """Accepts what a door does, as if it came from a socket."""

    def __init__(self, door: Door) -> None:
        super().__init__(socket.create_server(("127.0.0.1", 0)))
        self.door = door

    async def accept(self) -> SocketStream:
        return await self.door.accept()


class Serving:
    """serve_listeners in a task."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.ended = trio.Event()
        self.ended_at = math.inf
        self.scope = trio.CancelScope()

    async def start(
        self, handler: Callable[[Any], Awaitable[object]], listeners: list[Any], options: Any
    ) -> None:
        await self._nursery.start(partial(self._serve, handler, listeners, options))

    async def _serve(self, handler: Any, listeners: Any, options: Any, *, task_status: Any) -> None:
        with self.scope:
            await serve_listeners(handler, listeners, task_status=task_status, **options)
        self.ended_at = trio.current_time()
        self.ended.set()


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[Any], Awaitable[object]], *listeners: Any, **options: Any
) -> AsyncIterator[Serving]:
    """Serves while the block lasts."""
    async with trio.open_nursery() as nursery:
        server = Serving(nursery)
        await server.start(handler, list(listeners), options)
        yield server
        server.scope.cancel()


async def echo(stream: Any) -> None:
    async for chunk in stream:
        await stream.send_all(chunk)


async def ask(client: Any, question: bytes = b"hello") -> None:
    """Has an echo."""
    await client.send_all(question)
    got = b""
    while len(got) < len(question):
        chunk = await client.receive_some()
        assert chunk, got
        got += chunk
    assert got == question


def reset(sock: socket.socket) -> None:
    """Closes a TCP connection so that its peer gets an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
