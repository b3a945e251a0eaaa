"""A split stream with one half closed and freed: no finalizer touches what the other half uses.

Rules of this file: the half has certainly been freed (a weak reference says so), while the other
one is blocked and between two of its calls.
"""

from __future__ import annotations

import gc
import socket
import warnings
import weakref
from typing import Any

import pytest
import trio
import trio.testing
from support.child import FLAGS, in_child, pair, stream_pair, use_ring

import trio_uring


async def free(halves: list[Any], which: int, close: bool) -> None:
    half, halves[which] = halves[which], None
    gone = weakref.ref(half)
    if close:
        await half.aclose()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del half
        gc.collect()
    assert gone() is None


async def forget(halves: list[Any]) -> None:
    """Closes the half that is left. If the other one was never closed, there is a warning in the
    end, as of any socket."""
    for half in halves:
        if half is not None:
            await half.aclose()
    half = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        halves.clear()
        gc.collect()


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_a_blocked_receive_goes_on(flags: str, close: bool) -> None:
    use_ring(flags=flags)
    for moment in ("blocked", "queued", "between"):
        ours, theirs = socket.socketpair()
        halves: list[Any] = list(trio_uring.SocketStream(ours).split())
        del ours
        got: list[bytes] = []
        async with trio.open_nursery() as nursery:
            if moment != "between":
                nursery.start_soon(receive, halves[1], got)
            if moment == "blocked":
                await trio.testing.wait_all_tasks_blocked()
            elif moment == "queued":
                await trio.lowlevel.checkpoint()
            await free(halves, 0, close)
            if moment == "between":
                nursery.start_soon(receive, halves[1], got)
            theirs.send(b"one")
            await until(got, 1)
            theirs.send(b"two")
            await until(got, 2)
            theirs.close()
        assert got == [b"one", b"two"]
        await forget(halves)


async def receive(stream: trio.abc.ReceiveStream, got: list[bytes]) -> None:
    async for data in stream:
        got.append(bytes(data))


async def until(got: list[bytes], count: int) -> None:
    while len(got) < count:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_a_blocked_send_goes_on(flags: str) -> None:
    use_ring(flags=flags)
    ours, theirs = stream_pair()
    halves: list[Any] = list(ours.split())
    data = bytes(range(256)) * 2**14
    del ours
    async with theirs, trio.open_nursery() as nursery:
        nursery.start_soon(halves[0].send_all, data)
        await trio.testing.wait_all_tasks_blocked()
        await free(halves, 1, False)
        assert await theirs.receive_exactly(len(data)) == data
    await forget(halves)


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_a_copy_goes_on_and_so_does_everybody_else(flags: str, close: bool) -> None:
    use_ring(flags=flags)
    ours, theirs = socket.socketpair()
    sink, out = pair()
    bystander, peer = stream_pair()
    halves: list[Any] = list(trio_uring.SocketStream(ours).split())
    del ours
    copied: list[int] = []
    got: list[bytes] = []

    async def copy() -> None:
        copied.append(await trio_uring.copy_stream(halves[1], sink))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy)
        nursery.start_soon(receive, bystander, got)
        await trio.testing.wait_all_tasks_blocked()
        theirs.send(b"hello")
        await trio.testing.wait_all_tasks_blocked(0.01)
        await free(halves, 0, close)
        theirs.send(b"world")
        theirs.close()
        while not copied:
            await trio.lowlevel.checkpoint()
        await peer.send_all(b"still here")
        await peer.send_eof()
    assert copied == [10]
    assert out.recv(100) == b"helloworld"
    assert b"".join(got) == b"still here"
    for stream in (sink, bystander, peer):
        await stream.aclose()
    await forget(halves)
    out.close()
