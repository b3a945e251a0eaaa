"""Scripted streams that record what they were asked, and pairs of streams of every kind.

Rules: a scripted stream gives one piece, or the first part of one, for each receive, and takes it
only in the step in which it returns it, so that a cancelled receive takes nothing. Nothing here
knows a clock.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import outcome
import trio
import trio.testing

from trio_uring import NetworkConfig, ReceiveStream, SendStream
from trio_uring._messages.vectored import TrioTransport
from trio_uring._network.network import BufferedNetworkStream

from .streams import unix_sockets, unix_streams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable


# -- scripted


class HiccupError(Exception):
    """An error after which a stream goes on: what wraps it must neither lose a byte nor take it for
    the end."""


class ScriptedReceiver(trio.abc.ReceiveStream):
    """Receives what `arrive`, `fail` and `end` say.

    Attributes:
        requests: the max_bytes of every receive, in order.
        given: how many bytes it has given.
    """

    def __init__(self, pieces: Iterable[bytes] = (), *, ended: bool = False) -> None:
        # None is the end.
        self.pieces: deque[bytes | BaseException] = deque(piece for piece in pieces if piece)
        self.ended = ended
        self.closed = False
        self.requests: list[int | None] = []
        self.given = 0
        self._lot = trio.lowlevel.ParkingLot()
        self._busy = False

    def arrive(self, *pieces: bytes) -> None:
        self.pieces.extend(piece for piece in pieces if piece)
        self._lot.unpark_all()

    def fail(self, error: BaseException) -> None:
        """One receive raises it."""
        self.pieces.append(error)
        self._lot.unpark_all()

    def end(self) -> None:
        self.ended = True
        self._lot.unpark_all()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._busy:
            raise trio.BusyResourceError("the scripted stream is busy")
        self.requests.append(max_bytes)
        self._busy = True
        try:
            await trio.lowlevel.checkpoint()
            while not self.pieces and not self.ended and not self.closed:
                await self._lot.park()
        finally:
            self._busy = False
        if self.closed:
            raise trio.ClosedResourceError("the scripted stream was closed")
        if not self.pieces:
            return b""
        piece = self.pieces.popleft()
        if isinstance(piece, BaseException):
            raise piece
        if max_bytes is not None and len(piece) > max_bytes:
            self.pieces.appendleft(piece[max_bytes:])
            piece = piece[:max_bytes]
        self.given += len(piece)
        return piece

    async def aclose(self) -> None:
        self.closed = True
        self._lot.unpark_all()
        await trio.lowlevel.checkpoint()


class ScriptedIntoReceiver(ScriptedReceiver):
    """Also receives into memory.

    Attributes:
        into: the memory that each receive_into was given (its owner, its size); not the memory
            itself, which is not ours.
    """

    def __init__(self, pieces: Iterable[bytes] = (), *, ended: bool = False) -> None:
        super().__init__(pieces, ended=ended)
        self.into: list[tuple[object, int]] = []

    async def receive_into(self, buffer: Any) -> int:
        with memoryview(buffer) as view:
            self.into.append((view.obj, view.nbytes))
            piece = await self.receive_some(view.nbytes)
            with view.cast("B") as flat:
                flat[: len(piece)] = piece
            return len(piece)


class Late(ScriptedReceiver):
    """What it has comes together with aclose: too late for a receive that another task closed."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        super().__init__()
        self._late = list(pieces)

    async def aclose(self) -> None:
        self.arrive(*self._late)
        await trio.lowlevel.checkpoint()


async def until_resumed(
    coro: Coroutine[Any, Any, Any], between: Callable[[], Coroutine[Any, Any, Any]]
) -> Any:
    """Runs a call to its first checkpoint, then `between`, then the rest of the call. The order is
    not the scheduler's."""
    coro.send(None)
    await between()
    try:
        coro.send(outcome.Value(None))
    except StopIteration as done:
        return done.value
    raise AssertionError("the call has a second checkpoint")


class Lockstep:
    """A trio run in a thread, which does one step at a time."""

    def __init__(self) -> None:
        self.clock = trio.testing.MockClock()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: trio.run(self._main, clock=self.clock))
        self._thread.start()
        self._started.wait()

    async def _main(self) -> None:
        async with trio.open_nursery() as self.nursery:
            self._token = trio.lowlevel.current_trio_token()
            self._end = trio.Event()
            self._started.set()
            await self._end.wait()
            self.nursery.cancel_scope.cancel()

    def do(self, step: Callable[[], Any]) -> Any:
        """Runs `step` in the run, and then everything that can run."""

        async def run() -> Any:
            result = step()
            await trio.testing.wait_all_tasks_blocked()
            return result

        return trio.from_thread.run(run, trio_token=self._token)

    def finish(self) -> None:
        trio.from_thread.run_sync(self._end.set, trio_token=self._token)
        self._thread.join()


# -- pairs of every kind: both ends send and receive


def trio_pair() -> tuple[Any, Any]:
    left, right = unix_sockets()
    return tuple(trio.SocketStream(trio.socket.from_stdlib_socket(sock)) for sock in (left, right))  # type: ignore[return-value]


def network_stream(transport: Any, read_buffer_size: int = 65536) -> BufferedNetworkStream:
    return BufferedNetworkStream(
        transport, NetworkConfig(read_buffer_size=read_buffer_size), ("left", 1), ("right", 2)
    )


def pipe_pair() -> tuple[Any, Any]:
    (left_read, right_write), (right_read, left_write) = os.pipe(), os.pipe()
    return (
        trio.StapledStream(SendStream(left_write), ReceiveStream(left_read)),
        trio.StapledStream(SendStream(right_write), ReceiveStream(right_read)),
    )


def stapled_pair() -> tuple[Any, Any]:
    (left_send, right_receive), (right_send, left_receive) = (
        trio.testing.memory_stream_one_way_pair() for _ in range(2)
    )
    return trio.StapledStream(left_send, left_receive), trio.StapledStream(
        right_send, right_receive
    )


def tls_pair() -> tuple[Any, Any]:
    """TLS over the ring. Anonymous: a certificate would add nothing here."""
    streams = []
    for server_side, transport in zip((True, False), unix_streams()):
        context = ssl.SSLContext(
            ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT
        )
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("aNULL:@SECLEVEL=0")
        streams.append(trio.SSLStream(transport, context, server_side=server_side))
    return tuple(streams)  # type: ignore[return-value]


PAIRS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "ring": unix_streams,
    "trio": trio_pair,
    "memory": trio.testing.memory_stream_pair,
    "stapled": stapled_pair,
    "pipes": pipe_pair,
    "network": lambda: tuple(map(network_stream, unix_streams())),  # type: ignore[dict-item,return-value]
    "unbuffered": lambda: tuple(network_stream(stream, 0) for stream in unix_streams()),  # type: ignore[dict-item,return-value]
    "trio network": lambda: tuple(network_stream(TrioTransport(stream)) for stream in trio_pair()),  # type: ignore[dict-item,return-value]
    "tls": tls_pair,
}


@contextlib.asynccontextmanager
async def connected(kind: str) -> AsyncIterator[tuple[Any, Any]]:
    """A pair of streams, ready to use, and closed at the end."""
    left, right = PAIRS[kind]()
    try:
        if kind == "tls":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(left.do_handshake)
                nursery.start_soon(right.do_handshake)
        yield left, right
    finally:
        for stream in (left, right):
            await trio.aclose_forcefully(stream)
