"""One task per direction, on a UringSocket together with its stream; closing and detaching under
waiting tasks.

Rules: what is also expected of trio's own sockets is in tests/sockets/test_parity_errors.py.
"""

from __future__ import annotations

import gc
import os
import socket
from types import ModuleType
from typing import Any

import pytest
import trio
import trio.testing
from support.sockets import STREAMS, Sockets, of_kind, of_streams, on_both, stdlib_pair
from support.streams import LADDER, clog, count_of, drain

import trio_uring
import trio_uring.socket
from trio_uring._driver.run import install
from trio_uring._ring.uring import UringRing


def ours() -> Sockets:
    return Sockets(trio_uring.socket)


@pytest.mark.uring_only("about completions")
@of_kind
async def test_a_direction_is_free_when_the_completion_is_reaped(kind: str) -> None:
    """Not when the task resumes: one that was woken earlier in the same pass may take it.

    A stream's bytes belong to the task whose receive they completed. A message stays in the socket
    until a task takes it.
    """
    with ours() as sockets:
        left, right = sockets.pair(kind)
        first: list[bytes] = []

        async def receive() -> None:
            first.append(await right.recv(1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            os.write(left.fileno(), b"a")
            # Reaped in the middle of this pass, by an operation that is done at once; the task has
            # not run since.
            other, peer = sockets.pair("unix")
            os.write(peer.fileno(), b"x")
            lease = right.lease
            trio_uring._driver.run.current_driver().engine.reap_ring()
            assert first == []
            assert not lease.receiving.waiter.state.in_kernel
            os.write(left.fileno(), b"b")
            taken = await right.recv(1)
        assert (first[0], taken) == ((b"a", b"b") if kind in STREAMS else (b"b", b"a"))
        assert await other.recv(1) == b"x"


async def test_a_stream_has_the_socket_s_directions() -> None:
    with ours() as sockets:
        sock, peer = sockets.pair("unix")
        stream = trio_uring.SocketStream(sock)
        assert stream.socket is sock
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            for call in (sock.recv(1), sock.recv_into(bytearray(1)), sock.recvmsg(1)):
                with pytest.raises(trio.BusyResourceError):
                    await call
            assert await sock.send(b"x") == 1
            await peer.send(b"x")
        clog(sock.fileno())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, b"y")
            await trio.testing.wait_all_tasks_blocked()
            for call in (sock.send(b"x"), sock.sendmsg([b"x"]), sock.wait_writable()):
                with pytest.raises(trio.BusyResourceError):
                    await call
            nursery.start_soon(sock.recv, 1)
            await peer.send(b"x")
            drain(peer._sock)
        await stream.aclose()


async def test_a_socket_has_what_a_stream_kept() -> None:
    with ours() as sockets:
        sock, peer = sockets.pair("unix")
        stream = trio_uring.SocketStream(sock)
        for receive in (sock.recv, stream.receive_some, sock.recvfrom):
            await peer.send(b"kept")
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.receive_exactly, 5)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            await peer.send(b" and what came then")
            assert sock.is_readable()
            got = await receive(4)
            assert b"kept" in (got, got[0])
            assert await sock.recv(99) == b" and what came then"
            assert not sock.is_readable()
        await stream.aclose()


async def test_a_socket_has_the_stream_s_directions() -> None:
    with ours() as sockets:
        sock, peer = sockets.pair("unix")
        stream = trio_uring.SocketStream(sock)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sock.recv, 1)
            await trio.testing.wait_all_tasks_blocked()
            for call in (
                stream.receive_some(),
                stream.receive_into(bytearray(1)),
                stream.receive_exactly(1),
            ):
                with pytest.raises(trio.BusyResourceError):
                    await call
            await stream.send_all(b"x")
            await peer.send(b"x")
        for waiting in (sock.send, stream_waits(sock)):
            clog(sock.fileno())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiting, b"y")
                await trio.testing.wait_all_tasks_blocked()
                for call in (
                    stream.send_all(b"x"),
                    stream.send_all([b"x", b"y"]),
                    stream.wait_send_all_might_not_block(),
                ):
                    with pytest.raises(trio.BusyResourceError):
                        await call
                drain(peer._sock)
        await peer.send(b"z")
        assert await stream.receive_some() == b"z"
        await stream.aclose()


def stream_waits(sock: Any) -> Any:
    async def wait(_: bytes) -> None:
        await sock.wait_writable()

    return wait


async def test_a_listener_has_the_socket_s_direction_and_the_other_way_round() -> None:
    with ours() as sockets:
        sock = await sockets.bound("tcp")
        sock.listen()
        listener = trio_uring.SocketListener(sock)
        for waits, refused in ((sock.accept, listener.accept), (listener.accept, sock.accept)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waits)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(trio.BusyResourceError):
                    await refused()
                nursery.cancel_scope.cancel()
        await listener.aclose()


@pytest.mark.parametrize("by", ["socket", "stream", "detach"])
async def test_closing_either_wakes_both(by: str) -> None:
    with ours() as sockets:
        sock, _ = sockets.pair("unix")
        stream = trio_uring.SocketStream(sock)
        clog(sock.fileno())

        async def closed(operation: Any, *arguments: Any) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await operation(*arguments)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed, stream.receive_some)
            nursery.start_soon(closed, sock.send, b"x")
            await trio.testing.wait_all_tasks_blocked()
            if by == "detach":
                os.close(sock.detach())
            elif by == "socket":
                sock.close()
            else:
                await stream.aclose()
        assert sock.fileno() == -1


async def test_a_detached_socket_keeps_its_bytes() -> None:
    """The receive that waited for them has not got them."""
    with ours() as sockets:
        sock, peer = sockets.pair("unix")
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await sock.recv(10)

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            fd = sock.detach()
        await peer.send(b"data")
        assert os.read(fd, 10) == b"data"
        os.close(fd)


async def test_a_duplicate_has_directions_of_its_own() -> None:
    with ours() as sockets:
        sock, peer = sockets.pair("unix-dgram")
        other = sockets.take(sock.dup())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sock.recv, 1)
            nursery.start_soon(other.recv, 1)
            await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked()
            sock_gone = sock.fileno()
            await peer.send(b"x")
            await peer.send(b"y")
        assert sock.fileno() == sock_gone


@of_kind
async def test_a_forgotten_socket_is_freed_at_once(kind: str) -> None:
    """Without the garbage collector, as trio's are, with the warning that the socket module
    gives."""
    left, right = map(trio_uring.UringSocket, stdlib_pair(kind))
    gc.disable()
    try:
        await left.send(b"x")
        assert await right.recv(5) == b"x"
        await left.sendmsg([b"x"])
        assert (await right.recvmsg(5))[0] == b"x"
        await trio.lowlevel.checkpoint()
        fd = left.fileno()
        with pytest.warns(ResourceWarning, match="unclosed"):
            del left
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
    finally:
        gc.enable()
    right.close()


RECEIVES: dict[str, Any] = {"recv": 9, "recv_into": bytearray(9), "recvfrom": 9, "recvmsg": 9}


@of_kind
@pytest.mark.parametrize("holder", RECEIVES)
async def test_every_call_finds_the_direction_taken(kind: str, holder: str) -> None:
    """Whatever was used before, and has an operation to use again."""
    with ours() as sockets:
        left, right = sockets.pair(kind)
        for call, argument in RECEIVES.items():
            await left.send(b"x")
            await getattr(right, call)(argument)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(getattr(right, holder), RECEIVES[holder])
            await trio.testing.wait_all_tasks_blocked()
            for call, argument in RECEIVES.items():
                with pytest.raises(trio.BusyResourceError):
                    await getattr(right, call)(argument)
            await left.send(b"x")


async def test_a_message_larger_than_the_large_buffers() -> None:
    data = bytes(150_000)
    with ours() as sockets:
        left, right = sockets.pair("unix-dgram")
        for size in (10, 200_000, 200_000, 10, 200_000):
            await left.send(data)
            assert await right.recv(size) == data[:size]
            await left.send(data)
            assert (await right.recvmsg(size))[0] == data[:size]


async def test_a_forgotten_stream_is_freed_at_once() -> None:
    left, right = socket.socketpair()
    gc.disable()
    try:
        stream = trio_uring.SocketStream(trio_uring.UringSocket(left))
        right.send(b"x")
        assert await stream.receive_some() == b"x"
        await stream.send_all(b"x")
        await trio.lowlevel.checkpoint()
        fd = left.fileno()
        del left
        with pytest.warns(ResourceWarning, match="unclosed"):
            del stream
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
    finally:
        gc.enable()
    right.close()


@pytest.mark.uring_only("about provided buffers")
@of_streams
@pytest.mark.parametrize("provided", [True, False])
def test_more_sockets_than_large_buffers(kind: str, provided: bool) -> None:
    """All that wait get what comes in one pass, when the ring is out of large buffers, or has
    none."""

    async def scenario() -> None:
        install(UringRing(LADDER, provide_buffers=provided))
        with ours() as sockets:
            pairs = [sockets.pair(kind) for _ in range(40)]
            # Who has filled a small buffer asks for a large one.
            for size in (5, 4096, 60000, 60000, 5):
                got = [b""] * len(pairs)

                async def receive(index: int, got: list[bytes] = got, size: int = size) -> None:
                    while len(got[index]) < size:
                        got[index] += await pairs[index][1].recv(65536)

                async with trio.open_nursery() as nursery:
                    for index in range(len(pairs)):
                        nursery.start_soon(receive, index)
                    await trio.testing.wait_all_tasks_blocked()
                    for index, (left, _) in enumerate(pairs):
                        os.write(left.fileno(), bytes([index]) * size)
                assert got == [bytes([index]) * size for index in range(len(pairs))]
            if provided:
                assert trio_uring.current_statistics().buffers_exhausted

    trio.run(scenario)


@pytest.mark.uring_only("about provided buffers")
async def test_a_socket_that_waits_holds_no_buffer() -> None:
    with ours() as sockets:
        pairs = [sockets.pair(kind) for kind in ("unix", "udp", "unix-dgram") for _ in range(5)]
        async with trio.open_nursery() as nursery:
            for index, (_, right) in enumerate(pairs):
                nursery.start_soon(right.recv if index % 2 else right.recvfrom, 65536)
            for _, right in pairs:
                await trio.testing.wait_all_tasks_blocked()
                assert right.lease.receiving.waiter.buffers in ((), None)
                assert right.lease.receiving.waiter.buffer is None
            nursery.cancel_scope.cancel()


@pytest.mark.uring_only("who takes")
async def test_what_the_ring_takes() -> None:
    """The bytes of streams. For all else it waits."""
    with ours() as sockets:
        left, right = sockets.pair("tcp")
        await left.send(b"xy")
        assert await right.recv(1) == b"x"
        assert await right.recv_into(bytearray(1)) == 1
        assert (count_of("SEND").completed, count_of("RECV").completed) == (1, 2)
        for kind, sends in (("udp", "sendmsg"), ("unix-dgram", "send"), ("tcp", "sendmsg")):
            left, right = sockets.pair(kind)
            for receives in ("recvmsg", "recvfrom", *(() if kind == "tcp" else ("recv",))):
                before = count_of("POLL_ADD").completed
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(getattr(right, receives), 1)
                    await trio.testing.wait_all_tasks_blocked()
                    await getattr(left, sends)([b"x"] if sends == "sendmsg" else b"x")
                assert count_of("POLL_ADD").completed == before + 1
            await left.wait_writable()
        server = await sockets.bound("tcp")
        server.listen()
        client = sockets.new("tcp")
        await client.connect(server.getsockname())
        sockets.take((await server.accept())[0])
        used = {
            name
            for name, count in trio_uring.current_statistics().operations.items()
            if count.submitted
        }
        assert used == {"SEND", "RECV", "POLL_ADD"}
        assert (count_of("SEND").completed, count_of("RECV").completed) == (1, 2)


async def test_a_connect_that_was_interrupted_is_taken_up_again() -> None:
    """As by a plain socket of trio's: the kernel goes on connecting, and the next connect waits for
    it."""
    with ours() as sockets:
        server = await sockets.bound("tcp")
        server.listen(0)
        sockets.take(socket.create_connection(server.getsockname()))  # fills the backlog
        client = sockets.new("tcp")
        with pytest.raises(BlockingIOError):
            client._sock.connect(server.getsockname())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.connect, server.getsockname())
            await trio.testing.wait_all_tasks_blocked()
            sockets.take((await server.accept())[0])
        sockets.take((await server.accept())[0])
        assert client.getpeername() == server.getsockname()


@on_both
def test_outside_of_trio(library: ModuleType) -> None:
    left, right = library.socketpair()
    with pytest.raises(RuntimeError, match="must be called from async context"):
        left.close()
    assert left.fileno() >= 0
    with left, right:
        pass
    assert (left.fileno(), right.fileno()) == (-1, -1)
    left.close()
