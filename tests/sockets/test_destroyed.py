"""Socket calls whose coroutine is destroyed while they wait: no byte is lost or duplicated, nothing
stays open.

Rules: a coroutine is driven by hand to where it waits; the next call comes in the same pass. Until
the coroutine is closed, its operation would wake the test's own task, so whatever completes it in
between is done without waiting, or the operation is made to forget the task.
"""

from __future__ import annotations

import array
import os
import socket
from typing import Any

import outcome
import pytest
import trio
import trio.testing
from support.sockets import Sockets, of_messages, of_streams
from support.streams import LADDER, TINY, clog, drain, open_descriptors, until
from trio._core._traps import WaitTaskRescheduled

import trio_uring
import trio_uring.socket
from trio_uring._accelerator import hot
from trio_uring._driver.run import install
from trio_uring._ring.op import DONE
from trio_uring._ring.uring import UringRing

pytestmark = pytest.mark.uring_only("what a destroyed call leaves in the ring")

RECEIVES = ("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into")


def receive(sock: Any, call: str, flags: int = 0) -> Any:
    buffer = bytearray(100)
    arguments: dict[str, Any] = {
        "recv_into": (buffer, 0, flags),
        "recvfrom_into": (buffer, 0, flags),
        "recvmsg": (100, 100, flags),
        "recvmsg_into": ([buffer], 100, flags),
    }
    return getattr(sock, call)(*arguments.get(call, (100, flags)))


async def parked(coro: Any, submitted: bool = True) -> None:
    message = coro.send(None)
    while not isinstance(message, WaitTaskRescheduled):
        await trio.lowlevel.checkpoint()
        message = coro.send(outcome.Value(None))
    while submitted and trio_uring.current_statistics().queued:
        await trio.lowlevel.checkpoint()


@of_streams
@pytest.mark.parametrize("call", RECEIVES)
@pytest.mark.parametrize("provided", [True, False])
@pytest.mark.parametrize("when", ["queued", "submitted", "sent", "done"])
def test_no_byte_of_a_stream_is_lost(kind: str, call: str, provided: bool, when: str) -> None:
    async def scenario() -> None:
        install(UringRing(LADDER, provide_buffers=provided))
        with Sockets(trio_uring.socket) as sockets:
            left, right = sockets.pair(kind)
            for later in (*RECEIVES, call):
                coro = receive(right, call)
                await parked(coro, when != "queued")
                if when in ("sent", "done"):
                    os.write(left.fileno(), b"AA")
                if when == "done":
                    # Nobody is to be rescheduled: it is driven by hand.
                    right.lease.receiving.waiter.task = None
                    await until(lambda: not right.lease.receiving.waiter.state.in_kernel, "reaped")
                    assert right.lease.receiving.kept is None
                coro.close()
                os.write(left.fileno(), b"BBBB" if when in ("queued", "submitted") else b"BB")
                assert await received(right, later, 2) + await received(right, "recv", 2) in (
                    b"AABB",
                    b"BBBB",
                )
                assert not right.is_readable()

    trio.run(scenario)


async def received(sock: Any, call: str, count: int) -> bytes:
    if call == "recv":
        return await sock.recv(count)  # type: ignore[no-any-return]
    if call in ("recvfrom", "recvmsg"):
        return (await getattr(sock, call)(count))[0]  # type: ignore[no-any-return]
    buffer = bytearray(count)
    got = await getattr(sock, call)([buffer] if call == "recvmsg_into" else buffer)
    assert (got[0] if isinstance(got, tuple) else got) == count
    return bytes(buffer)


async def test_a_frame_that_is_kept_keeps_no_buffer() -> None:
    """As a traceback does: the caller may resize its buffer as soon as the kernel is done with
    it."""
    with Sockets(trio_uring.socket) as sockets:
        _, right = sockets.pair("tcp")
        buffer = bytearray(10)
        coro = right.recv_into(buffer)
        await parked(coro)
        op = right.lease.receiving.waiter
        frame = coro.cr_await.cr_frame if hot is None else None  # in C there is none
        coro.close()
        await until(lambda: not op.state.in_kernel, "reaped")
        buffer.append(0)
        assert frame is None or frame.f_code.co_name == "_complete"


@pytest.mark.parametrize("flags", [socket.MSG_PEEK, socket.MSG_TRUNC])
@pytest.mark.parametrize("call", RECEIVES)
async def test_what_was_only_looked_at_is_not_kept(call: str, flags: int) -> None:
    with Sockets(trio_uring.socket) as sockets:
        left, right = sockets.pair("tcp")
        coro = receive(right, call, flags)
        await parked(coro)
        os.write(left.fileno(), b"AABB")
        right.lease.receiving.waiter.task = None
        await until(lambda: not right.lease.receiving.waiter.state.in_kernel, "reaped")
        coro.close()
        assert right.lease.receiving.kept is None
        if flags == socket.MSG_PEEK:
            assert await right.recv(10) == b"AABB"


async def test_what_is_kept_can_be_looked_at() -> None:
    with Sockets(trio_uring.socket) as sockets:
        left, right = sockets.pair("tcp")
        coro = right.recv(10)
        await parked(coro)
        os.write(left.fileno(), b"AABB")
        op = right.lease.receiving.waiter
        op.task = None
        await until(lambda: not op.state.in_kernel, "reaped")
        coro.close()
        assert right.lease.receiving.kept.peek(99) == b"AABB"
        await left.send(b"C")
        assert await right.recv(2, socket.MSG_PEEK) == b"AA"
        assert right.is_readable()
        for expected in (b"AAB", b"B", b"C"):
            assert await right.recv(3) == expected


@of_messages
@pytest.mark.parametrize("call", RECEIVES)
async def test_the_next_message_comes_right_after(kind: str, call: str) -> None:
    with Sockets(trio_uring.socket) as sockets:
        left, right = sockets.pair(kind)
        for _ in range(5):
            coro = receive(right, call)
            await parked(coro)
            coro.close()
            assert await right.send(b"the other direction is free") == 27
            await trio.testing.wait_all_tasks_blocked()
            await left.send(b"data")
            assert await right.recv(10) == b"data"
        assert len(right.lease.receiving.operations) <= 3


@pytest.mark.parametrize("call", ["recvmsg", "recvmsg_into"])
@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("kind", ["unix", "unix-dgram"])
async def test_descriptors_that_nobody_received_are_the_next_one_s(
    kind: str, call: str, done: bool
) -> None:
    """Nothing takes them before a task is there to have them."""
    with Sockets(trio_uring.socket) as sockets:
        left, right = sockets.pair(kind)
        coro = receive(right, call)
        await parked(coro)
        before = len(open_descriptors())
        fds = array.array("i", [0, 0])
        socket.socket.sendmsg(left._sock, [b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        op = right.lease.receiving.waiter
        if done:
            op.task = None
            await until(lambda: not op.state.in_kernel, "reaped")
        coro.close()
        await until(lambda: not op.state.in_kernel, "reaped")
        await trio.lowlevel.checkpoint()
        assert len(open_descriptors()) == before
        data, control, _, _ = await right.recvmsg(5, socket.CMSG_SPACE(8))
        assert data == b"x"
        for fd in array.array("i", control[0][2]):
            os.close(fd)
        assert len(open_descriptors()) == before


@pytest.mark.parametrize("done", [False, True])
async def test_a_connection_that_nobody_accepted_is_the_next_one_s(done: bool) -> None:
    with Sockets(trio_uring.socket) as sockets:
        server = await sockets.bound("unix")
        server.listen()
        coro = server.accept()
        await parked(coro)
        op, before = server.lease.receiving.waiter, len(open_descriptors())
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(server.getsockname())
            if done:
                op.task = None
                await until(lambda: not op.state.in_kernel, "reaped")
            coro.close()
            await until(lambda: not op.state.in_kernel, "reaped")
            assert len(open_descriptors()) == before + 1
            accepted = sockets.take((await server.accept())[0])
            client.send(b"x")
            assert await accepted.recv(1) == b"x"


@pytest.mark.parametrize("call", ["send", "sendmsg", "wait_writable"])
@pytest.mark.parametrize("submitted", [False, True])
async def test_a_destroyed_send(call: str, submitted: bool) -> None:
    with Sockets(trio_uring.socket) as sockets:
        left, right = sockets.pair("unix")
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, TINY)
        taken, buffer = clog(left.fileno()), bytearray(b"lost")
        arguments: dict[str, Any] = {"send": (buffer,), "sendmsg": ([buffer],)}
        coro = getattr(left, call)(*arguments.get(call, ()))
        if call == "send" and submitted:
            await parked(coro, submitted=False)
            op = left.lease.sending.waiter
            op.task = None  # nobody is to be rescheduled: it is driven by hand
            await until(lambda: op.state is DONE, "refused, for there is no room")
            assert isinstance(coro.send(op), WaitTaskRescheduled)
            await until(lambda: not trio_uring.current_statistics().queued, "submitted")
        else:
            await parked(coro, submitted)
        coro.close()
        assert len(drain(right._sock)) >= taken
        assert await left.send(b"next") == 4
        assert drain(right._sock)[-4:] == b"next"
        buffer.append(0)


async def test_closing_right_after() -> None:
    with Sockets(trio_uring.socket) as sockets:
        left, right = sockets.pair("tcp")
        coro = right.recv(10)
        await parked(coro)
        coro.close()
        right.close()
        assert await left.recv(1) == b""


async def test_two_calls_after_a_destroyed_one() -> None:
    """One waits for what it left, the other finds the direction taken."""
    with Sockets(trio_uring.socket) as sockets:
        left, right = sockets.pair("tcp")
        coro = right.recv(10)
        await parked(coro)
        coro.close()
        got: list[object] = []

        async def receive_one() -> None:
            try:
                got.append(await right.recv(1))
            except trio.BusyResourceError:
                got.append("busy")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_one)
            nursery.start_soon(receive_one)
            await until(lambda: got == ["busy"], "refused")
            await left.send(b"x")
        assert got == ["busy", b"x"]


@pytest.mark.parametrize("call", RECEIVES)
@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize("when", ["in the kernel", "reaped"])
async def test_a_stream_goes_on_where_the_socket_was(call: str, into: bool, when: str) -> None:
    with Sockets(trio_uring.socket) as sockets:
        left, right = sockets.pair("unix")
        coro = receive(right, call)
        await parked(coro)
        os.write(left.fileno(), b"AA")
        op = right.lease.receiving.waiter
        coro.close()
        if when == "reaped":
            await until(lambda: not op.state.in_kernel, "reaped")
        os.write(left.fileno(), b"BB")
        stream = trio_uring.SocketStream(right)
        if into:
            buffer = bytearray(2)
            assert await stream.receive_into(buffer) == 2
            assert buffer == b"AA"
        assert await stream.receive_exactly(2 if into else 4) == (b"BB" if into else b"AABB")
        await stream.aclose()


async def test_a_call_that_comes_before_what_was_left_is_noticed() -> None:
    """One task waits for it, it is reaped, and another task receives before the first resumes: the
    order of bytes stays."""
    with Sockets(trio_uring.socket) as sockets:
        left, right = sockets.pair("unix")
        coro = right.recv(10)
        await parked(coro)
        op, got = right.lease.receiving.waiter, []
        coro.close()

        async def receive_one() -> None:
            try:
                got.append(await right.recv(2))
            except trio.BusyResourceError:
                got.append(b"busy")

        async with trio.open_nursery() as nursery:
            os.write(left.fileno(), b"AABB")
            nursery.start_soon(receive_one)
            await until(lambda: op.task is not None or not op.state.in_kernel, "settling")
            trio_uring._driver.run.current_driver().engine.reap_ring()
            await receive_one()
            os.write(left.fileno(), b"CC")
        # Of two calls that both end in this pass, either task may resume first.
        assert sorted(chunk for chunk in got if chunk != b"busy") in ([b"AA", b"BB"], [b"AA"])


@pytest.mark.parametrize("first", ["recv", "receive_some"])
@pytest.mark.parametrize("second", ["recv", "receive_some"])
@pytest.mark.parametrize("left", ["recv", "receive_some"])
async def test_one_task_waits_for_what_was_left(left: str, first: str, second: str) -> None:
    """Another one, by the socket or by a stream on it, does not receive beside it."""
    with Sockets(trio_uring.socket) as sockets:
        peer, sock = sockets.pair("unix")
        stream = trio_uring.SocketStream(sock)
        calls = {"recv": lambda: sock.recv(9), "receive_some": stream.receive_some}
        coro = calls[left]()
        await parked(coro)
        coro.close()
        got: list[object] = []

        async def receive(call: str) -> None:
            try:
                got.append(await calls[call]())
            except trio.BusyResourceError:
                got.append("busy")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, first)
            nursery.start_soon(receive, second)
            await trio.testing.wait_all_tasks_blocked()
            assert got == ["busy"]
            os.write(peer.fileno(), b"one")
        assert got == ["busy", b"one"]
        await stream.aclose()
