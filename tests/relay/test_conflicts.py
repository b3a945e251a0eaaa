"""A copy holds its directions of both sockets, also against `.socket` and the halves of a split
stream.

Rules of this file: every conflict is tested in both orders, and while the copy waits for its other
stream.
"""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import trio
import trio.testing
from support.relay import line
from support.streams import clog, unix_sockets

import trio_uring
from trio_uring._relay import copy as _copy

from .test_copy import Copying, until_rest


async def refused(call: Any, *args: Any) -> None:
    with pytest.raises(trio.BusyResourceError):
        await call(*args)


@pytest.mark.parametrize("pumps", [True, False])
async def test_the_socket_receives_nothing_while_a_copy_waits_for_its_sink(pumps, monkeypatch):
    if not pumps:
        monkeypatch.setattr(_copy, "can_pump", lambda *_: False)
    async with line() as ends, trio.open_nursery() as nursery:
        clog(ends.sink._lease.fd)
        copying = Copying(ends, nursery)
        await ends.write(b"held")
        await until_rest(ends)
        await ends.write(b" and not held" * 3_000)
        await until_rest(ends)
        await refused(ends.source.socket.recv, 100)
        await refused(ends.source.socket.recv_into, bytearray(1))
        await copying.cancel()
        assert (await ends.source.receive_some(4)) == b"held"
        while await ends.source.socket.recv(2**20):  # it is free again
            ends.end()


@pytest.mark.parametrize("pumps", [True, False])
async def test_the_socket_sends_nothing_while_a_copy_waits_for_its_source(pumps, monkeypatch):
    if not pumps:
        monkeypatch.setattr(_copy, "can_pump", lambda *_: False)
    async with line() as ends, trio.open_nursery() as nursery:
        copying = Copying(ends, nursery)
        await until_rest(ends)
        await refused(ends.sink.socket.send, b"x")
        await refused(ends.sink.socket.sendmsg, [b"x"])
        await copying.cancel()
        assert await ends.sink.socket.send(b"x") == 1


async def test_a_file_that_is_sent_keeps_the_sending_direction_only():
    left, right = (trio_uring.SocketStream(sock) for sock in unix_sockets())
    with tempfile.TemporaryFile() as file:
        file.write(bytes(10_000_000))
        file.flush()
        async with left, right, trio.open_nursery() as nursery:
            nursery.start_soon(trio_uring.send_file, left, file)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await refused(left.socket.send, b"x")
            await right.send_all(b"the other direction")
            assert await left.socket.recv(100) == b"the other direction"
            nursery.cancel_scope.cancel()
        assert not left._sending.held


async def first_then(first: Any, second: Any) -> None:
    """The second call is refused while the first one waits."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await refused(second)
        nursery.cancel_scope.cancel()


async def test_one_half_and_the_socket_do_not_receive_at_once():
    ours, peer = unix_sockets()
    send, receive = trio_uring.SocketStream(ours).split()
    by_socket = lambda: receive.socket.recv(10)  # noqa: E731
    into = lambda: receive.receive_into(bytearray(10))  # noqa: E731
    for call in (receive.receive_some, into):
        await first_then(by_socket, call)
        await first_then(call, by_socket)
    peer.send(b"whole")
    assert await receive.receive_some() == b"whole"
    clog(ours.fileno())
    for call in (lambda: send.send_all(b"x"), send.wait_send_all_might_not_block):
        await first_then(lambda: send.socket.send(b"x"), call)
        await first_then(call, lambda: send.socket.send(b"x"))
    await send.aclose()
    await receive.aclose()
    peer.close()


async def test_a_copy_of_halves_keeps_them_from_the_socket():
    async with line() as ends:
        sending, source = ends.source.split()
        sink, receiving = ends.sink.split()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_uring.copy_stream, source, sink)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await refused(source.socket.recv, 1)
            await refused(sink.socket.send, b"x")
            assert await source.socket.send(b"x") == 1
            nursery.cancel_scope.cancel()
        for half in (sending, source, sink, receiving):
            await half.aclose()
