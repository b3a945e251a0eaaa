"""Every kind of operation, cancelled once and then repeated: a cancel changes nothing.

Rules of this file: the cancel comes when the operation is in the kernel (or, as a second case,
still queued), and the same stream must then do what was asked. At the end of each test nothing is
in flight.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from support.child import FLAGS, in_child, stream_pair, use_ring
from support.peer import HOST

import trio_uring

MOMENTS = ("queued", "in flight")


async def cancelled(operation: Callable[[], Awaitable[Any]], moment: str) -> None:
    """Runs the operation, and cancels it at that moment; it must be cancelled, because it cannot be
    done."""
    scopes: list[trio.CancelScope] = []

    async def run() -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            await operation()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        if moment == "in flight":
            await trio.testing.wait_all_tasks_blocked()
        else:
            while not scopes:
                await trio.lowlevel.checkpoint()
        scopes[0].cancel()
    assert scopes[0].cancelled_caught


async def finish(*streams: Any) -> None:
    for stream in streams:
        await stream.aclose()
    assert trio_uring.current_statistics().in_flight == 0


def pipe_streams() -> tuple[trio_uring.SendStream, trio_uring.ReceiveStream]:
    read_fd, write_fd = os.pipe()
    return trio_uring.SendStream(write_fd), trio_uring.ReceiveStream(read_fd)


def ends(kind: str) -> Any:
    return stream_pair() if kind == "socket" else pipe_streams()


class CancelsOther(trio.abc.Instrument):
    """Cancels the other one of two tasks when the first of them is woken."""

    def __init__(self) -> None:
        self.scopes: dict[trio.lowlevel.Task, trio.CancelScope] = {}
        self.waits = False

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if self.waits and task in self.scopes:
            self.waits = False
            for other, scope in self.scopes.items():
                if other is not task:
                    scope.cancel()


@pytest.mark.parametrize("call", ["receive_some", "receive_into", "send_all"])
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_a_cancel_in_the_midst_of_waking_loses_no_result(flags: str, call: str) -> None:
    """Both operations are done, and one task is woken already; as a destructor may do it."""
    use_ring(flags=flags)
    pairs = [stream_pair(), stream_pair()]
    other = CancelsOther()
    trio.lowlevel.add_instrument(other)
    came: list[bytes] = []

    async def run(sender: trio_uring.SocketStream, receiver: trio_uring.SocketStream) -> None:
        with trio.CancelScope() as scope:
            other.scopes[trio.lowlevel.current_task()] = scope
            if call == "send_all":
                other.waits = len(other.scopes) == 2
                await sender.send_all(b"data")
            elif call == "receive_some":
                came.append(await receiver.receive_some())
            else:
                buffer = bytearray(4)
                await receiver.receive_into(buffer)
                came.append(bytes(buffer))
        if call == "send_all" and not sender.bytes_sent:
            await sender.send_all(b"data")
        if call == "send_all" or scope.cancelled_caught:
            with trio.move_on_after(30):  # if it was lost, it does not come
                came.append(await receiver.receive_some())

    async with trio.open_nursery() as nursery:
        for pair in pairs:
            nursery.start_soon(run, *pair)
        if call != "send_all":
            await trio.testing.wait_all_tasks_blocked()
            for sender, _ in pairs:
                os.write(sender.socket.fileno(), b"data")
            other.waits = True
    trio.lowlevel.remove_instrument(other)
    assert came == [b"data", b"data"]
    await finish(*pairs[0], *pairs[1])


@pytest.mark.parametrize("kind", ["socket", "pipe"])
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_receives(flags: str, kind: str) -> None:
    use_ring(flags=flags)
    sender, receiver = ends(kind)
    into = bytearray(100)
    for number in range(20):
        moment = MOMENTS[number % 2]
        await cancelled(receiver.receive_some, moment)
        await cancelled(lambda: receiver.receive_into(into), moment)
        message = b"message %02d" % number
        await sender.send_all(message[:4])
        await cancelled(lambda: receiver.receive_exactly(10), moment)
        await sender.send_all(message[4:])
        assert await receiver.receive_exactly(10) == message
    into.append(0)  # not exported any more
    await finish(sender, receiver)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", ["socket", "pipe"])
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_sends(flags: str, kind: str, many: bool) -> None:
    """What `bytes_sent` says after the cancel is what the other end gets, to the byte."""
    use_ring(flags=flags)
    sender, receiver = ends(kind)
    for moment in MOMENTS * 3:
        data = os.urandom(2**21)
        view = memoryview(data)
        sent_data = [view[:5], view[5 : 2**20], view[2**20 :]] if many else view
        await cancelled(partial(sender.send_all, sent_data), moment)
        sent = sender.bytes_sent
        assert sent < len(data)
        if sent:
            assert await receiver.receive_exactly(sent) == data[:sent]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send_all, view[sent:])
            assert await receiver.receive_exactly(len(data) - sent) == data[sent:]
        await cancelled(receiver.receive_some, moment)  # not a byte more
    await finish(sender, receiver)


@in_child()
async def test_waiting_to_send() -> None:
    sender, receiver = stream_pair()
    with trio.move_on_after(0):
        await sender.send_all(bytes(2**22))
    await trio.testing.wait_all_tasks_blocked()
    await cancelled(lambda: sender.send_all(bytes(2**22)), "in flight")
    for moment in MOMENTS:
        await cancelled(sender.wait_send_all_might_not_block, moment)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.receive_exactly, sender.bytes_sent)
        await sender.wait_send_all_might_not_block()
        nursery.cancel_scope.cancel()
    await finish(sender, receiver)


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_accept(flags: str) -> None:
    use_ring(flags=flags)
    [listener] = await trio_uring.open_tcp_listeners(0, host=HOST)
    for moment in MOMENTS * 10:
        await cancelled(listener.accept, moment)
        client = socket.create_connection(listener.socket.getsockname())
        server = await listener.accept()
        assert server.socket.getpeername() == client.getsockname()
        await server.aclose()
        client.close()
    await finish(listener)


@in_child()
async def test_accept_cancelled_while_connections_arrive() -> None:
    """Every connection is accepted once or waits in the backlog: none is lost, and no
    descriptor."""
    [listener] = await trio_uring.open_tcp_listeners(0, host=HOST)
    address = listener.socket.getsockname()
    accepted: list[Any] = []
    clients = []
    for number in range(200):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(accept_into, listener, accepted)
                await trio.testing.wait_all_tasks_blocked()
                clients.append(socket.create_connection(address))
                for _ in range(number % 3):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
    while len(accepted) < len(clients):
        accepted.append(await listener.accept())
    assert {server.socket.getpeername() for server in accepted} == {
        client.getsockname() for client in clients
    }
    for client in clients:
        client.close()
    await finish(listener, *accepted)


async def accept_into(listener: trio_uring.SocketListener, accepted: list[Any]) -> None:
    accepted.append(await listener.accept())


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_connect(flags: str) -> None:
    """A full backlog holds the connect up; once cancelled, its socket is closed, and a later
    connect works."""
    use_ring(flags=flags)
    listener = socket.socket()
    listener.bind((HOST, 0))
    listener.listen(0)
    address = listener.getsockname()
    waiting = []
    for _ in range(4):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(address)
        waiting.append(sock)
    await cancelled(lambda: trio_uring.open_tcp_stream(*address), "in flight")
    for sock in waiting:
        sock.close()
    listener.close()
    [other] = await trio_uring.open_tcp_listeners(0, host=HOST)
    stream = await trio_uring.open_tcp_stream(HOST, other.socket.getsockname()[1])
    await finish(stream, await other.accept(), other)
