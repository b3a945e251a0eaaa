"""Peers that have half-closed and do not read: sending to them waits, and waiting costs nothing.

A poll in io_uring always includes POLLRDHUP, so one that waits for room to write completes at once
if the peer has sent its end, or if we have shut down our receiving. Trying again and again would
cost a processor at 100 %, or a kernel thread for each peer.

Rules of this file: the kernel says what the waiting costs: the processor time of a second, and
io_uring's worker threads.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from support.child import FLAGS, in_child, iou_threads, use_ring
from support.disks import disk
from support.peer import HOST

import trio_uring

PEERS = 64
# Of processor time, in a second: one peer that is tried again and again takes all of it.
SECONDS_MAX = 0.1
SECONDS = 5  # tried: in each of them, though a machine may charge for what it did not give

Sender = Callable[[trio_uring.SocketStream], Awaitable[Any]]


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server((HOST, 0)) as server:
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


def unix_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def processor_time() -> float:
    """Seconds, of the kernel's threads in this process too."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def send_all(stream: trio_uring.SocketStream) -> None:
    await stream.send_all(bytes(2**23))


async def send_list(stream: trio_uring.SocketStream) -> None:
    await stream.send_all([bytes(2**22), bytearray(2**22)])


async def wait_and_send(stream: trio_uring.SocketStream) -> None:
    """As a program that sends what it can, when it can."""
    while True:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(stream.socket.fileno(), bytes(65536))
        await stream.wait_send_all_might_not_block()


async def send_file(stream: trio_uring.SocketStream) -> None:
    with tempfile.TemporaryFile(dir=disk()) as file:
        file.truncate(2**26)
        await trio_uring.send_file(stream, file)


async def copy_stream(stream: trio_uring.SocketStream) -> None:
    await fed(stream, trio_uring.copy_stream)


async def relay(stream: trio_uring.SocketStream) -> None:
    await fed(stream, trio_uring.relay)


async def fed(stream: trio_uring.SocketStream, copy: Any) -> None:
    """Copies from one of our own, which another task fills."""
    left, right = map(trio_uring.SocketStream, socket.socketpair())
    async with left, right, trio.open_nursery() as nursery:
        nursery.start_soon(send_all_and_end, left)
        await copy(right, stream)


async def send_all_and_end(stream: trio_uring.SocketStream) -> None:
    await send_all(stream)
    await stream.send_eof()


async def send_on_the_socket(stream: trio_uring.SocketStream) -> None:
    while True:
        await stream.socket.send(bytes(2**20))


SENDERS: dict[str, Sender] = {
    sender.__name__: sender
    for sender in (
        send_all,
        send_list,
        wait_and_send,
        send_on_the_socket,
        send_file,
        copy_stream,
        relay,
    )
}


async def cost_of(waiting: list[tuple[str, Any]]) -> float:
    """Processor time of a second in which all of them wait: the least one."""
    async with trio.open_nursery() as nursery:
        for name, stream in waiting:
            nursery.start_soon(SENDERS[name], stream)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert iou_threads() == []
        for _ in range(SECONDS):
            before = processor_time()
            await trio.sleep(1)
            used = processor_time() - before
            if used < SECONDS_MAX:
                break
        assert iou_threads() == []
        nursery.cancel_scope.cancel()
    return used


async def check(waiting: list[tuple[str, Any]]) -> None:
    used = await cost_of(waiting)
    if used >= SECONDS_MAX:
        names = sorted({name for name, _ in waiting})
        pytest.fail(
            str({name: await cost_of([one for one in waiting if one[0] == name]) for name in names})
        )
    print(f"{used:.3f} s")
    statistics = trio_uring.current_statistics()
    assert (statistics.in_flight, statistics.queued) == (0, 0)


def allow_descriptors() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2**14), hard))


@pytest.mark.parametrize("kind", ["tcp_pair", "unix_pair"])
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_peers_that_have_half_closed(flags: str, kind: str) -> None:
    use_ring(flags=flags)
    allow_descriptors()
    waiting, peers = [], []
    for name in SENDERS:
        for _ in range(PEERS):
            ours, theirs = globals()[kind]()
            theirs.shutdown(socket.SHUT_WR)
            waiting.append((name, trio_uring.SocketStream(ours)))
            peers.append(theirs)
    await check(waiting)
    for (_, stream), peer in zip(waiting, peers):
        await stream.aclose()
        peer.close()


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_our_own_half_that_receives_is_closed(flags: str) -> None:
    use_ring(flags=flags)
    allow_descriptors()
    waiting, peers = [], []
    for name in SENDERS:
        # The one is for both halves, and the other asks for the socket.
        if name in ("relay", "wait_and_send"):
            continue
        for _ in range(PEERS):
            ours, theirs = tcp_pair()
            sending, receiving = trio_uring.SocketStream(ours).split()
            await receiving.aclose()
            waiting.append((name, sending))
            peers.append(theirs)
    await check(waiting)
    for (_, stream), peer in zip(waiting, peers):
        await stream.aclose()
        peer.close()


@pytest.mark.parametrize("name", ["send_all", "send_list", "send_file", "copy_stream"])
@pytest.mark.parametrize("kind", ["tcp_pair", "unix_pair"])
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_all_arrives_when_it_reads_after_all(flags: str, kind: str, name: str) -> None:
    """What waited for room goes on as soon as there is some."""
    use_ring(flags=flags)
    ours, theirs = globals()[kind]()
    theirs.shutdown(socket.SHUT_WR)
    count = 0
    async with (
        trio_uring.SocketStream(ours) as stream,
        trio_uring.ReceiveStream(os.dup(theirs.fileno())) as peer,
    ):
        theirs.close()

        async def send() -> None:
            await SENDERS[name](stream)
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.01)
            async for data in peer:
                count += len(data)
    assert count == (2**26 if name == "send_file" else 2**23)


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_a_close_and_a_reset_end_the_wait(flags: str) -> None:
    use_ring(flags=flags)
    for end in ("close", "reset"):
        ours, theirs = tcp_pair()
        theirs.shutdown(socket.SHUT_WR)
        stream = trio_uring.SocketStream(ours)
        error = trio.ClosedResourceError if end == "close" else trio.BrokenResourceError
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, error, stream)
            await trio.testing.wait_all_tasks_blocked(0.01)
            if end == "close":
                await stream.aclose()
            else:
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                theirs.close()
        await stream.aclose()
        theirs.close()


async def expect(error: type[Exception], stream: trio_uring.SocketStream) -> None:
    with pytest.raises(error):
        await send_all(stream)
