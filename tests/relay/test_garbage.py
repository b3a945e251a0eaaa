"""A copy that is over leaves nothing behind, even without a garbage collection.

Rules of this file: the collector is off. A stream that somebody still refers to keeps its
descriptor open, so every way in which a copy may end is tested.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import struct
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.by_hand import park
from support.streams import clog, tcp_sockets, until

import trio_uring
from trio_uring._relay import copy as _copy
from trio_uring._relay.pipes import pipes

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDINGS = ["end", "cancelled", "source broken", "sink broken", "sink closed", "progress"]


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def raise_it(*_: int) -> None:
    raise ZeroDivisionError


def go_away(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def zeros() -> Any:
    file = open(os.memfd_create("zeros"), "w+b")  # noqa: SIM115  # the caller closes it
    file.truncate(50_000_000)
    return file


async def used(ending: str, how: str) -> list[weakref.ref[Any]]:
    """Uses two streams in a copy that ends so; weak references to them, and to their sockets."""
    (near, source), (sink, far) = tcp_sockets(), tcp_sockets()
    streams = trio_uring.SocketStream(source), trio_uring.SocketStream(sink)
    progress = raise_it if ending == "progress" else None
    near.send(b"some")
    file = zeros() if how == "send_file" else None

    async def call() -> None:
        if how == "relay":
            await trio_uring.relay(*streams, progress=progress)
        elif how == "send_file":
            await trio_uring.send_file(
                streams[1], file, count=4 if ending == "end" else None, progress=progress
            )
        else:
            await trio_uring.copy_stream(*streams, progress=progress)

    async def run() -> None:
        with contextlib.suppress(
            trio.BrokenResourceError, trio.ClosedResourceError, ZeroDivisionError
        ):
            await call()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await until(lambda: streams[1].bytes_sent or ending == "progress", "the first bytes")
        if ending == "end":
            near.close()
            far.shutdown(socket.SHUT_WR)
        elif ending == "cancelled":
            nursery.cancel_scope.cancel()
        elif ending == "source broken" and how != "send_file":
            go_away(near)
        elif ending == "sink closed":
            await streams[1].aclose()
        elif ending in ("sink broken", "source broken"):
            go_away(far)
            near.send(b"more")
            await trio.sleep(0.01)
            if near.fileno() >= 0:
                near.send(b"more")
    for sock in (near, far):
        sock.close()
    if file is not None:
        file.close()
    found: list[weakref.ref[Any]] = [weakref.ref(stream) for stream in streams]
    found += [weakref.ref(stream.socket) for stream in streams]
    for stream in streams:
        await stream.aclose()
    return found


@pytest.mark.parametrize("pumps", [True, False])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("how", ["copy_stream", "relay", "send_file"])
async def test_the_streams_are_freed_at_once(how, ending, pumps, monkeypatch):
    if not pumps:
        monkeypatch.setattr(_copy, "can_pump", lambda *_: False)
    references = await used(ending, how)
    assert [reference() for reference in references] == [None] * 4


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_and_their_descriptors_if_nobody_closes_them():
    trio_uring.current_statistics()  # what the driver has open is open from now on
    before = set(os.listdir("/proc/self/fd"))

    async def copy() -> None:
        (near, source), (sink, far) = tcp_sockets(), tcp_sockets()
        with near, far:
            streams = trio_uring.SocketStream(source), trio_uring.SocketStream(sink)
            near.send(b"some")
            with trio.move_on_after(0.01):
                await trio_uring.copy_stream(*streams)

    await copy()
    await trio.testing.wait_all_tasks_blocked()
    assert set(os.listdir("/proc/self/fd")) - before <= {*map(str, driver_descriptors())}


def driver_descriptors() -> list[int]:
    """Pipes that the driver keeps for the next copy."""
    engine = trio_uring._driver.run.current_driver().engine
    idle = pipes(engine)._idle if engine.pumps else []
    return [fd for pipe in idle for fd in (pipe._read, pipe._write)]


@pytest.mark.uring_only("where nothing completes by itself, a copy is a loop")
async def test_a_destroyed_copy_that_fails_afterwards():
    async def destroyed() -> list[weakref.ref[Any]]:
        (near, source), (sink, far) = tcp_sockets(), tcp_sockets()
        streams = trio_uring.SocketStream(source), trio_uring.SocketStream(sink)
        clog(sink.fileno())
        near.send(b"some")
        coro = trio_uring.copy_stream(*streams)
        await park(coro)
        await trio.testing.wait_all_tasks_blocked()
        go_away(far)
        coro.close()
        await until(lambda: not streams[0]._receiving.held, "the end of it")
        near.close()
        for stream in streams:
            await stream.aclose()
        return [weakref.ref(stream) for stream in streams]

    assert [reference() for reference in await destroyed()] == [None, None]
