"""A pump of small messages has a short way through; these come where it must not be taken."""

from __future__ import annotations

import errno
import socket

import pytest
import trio
from support.child import EVERY_FLAGS, in_child, use_ring
from support.relay import line, pumps_only
from support.streams import (
    clog,
    clog_tcp,
    count_of,
    operations_on,
    passes,
    pattern,
    until_blocked,
)

import trio_uring
from trio_uring._descriptors.provided import BULK_STREAK
from trio_uring._relay.pipes import Pipe

pytestmark = pumps_only


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_messages_wait_for_a_sink_in_order(kind: str) -> None:
    async with line(kind) as ends, trio.open_nursery() as nursery:
        if kind == "tcp":
            [clogged] = clog_tcp((ends.sink.socket, ends.far))
        else:
            clogged = clog(ends.sink._lease.fd)
        nursery.start_soon(trio_uring.copy_stream, ends.source, ends.sink)
        for number in range(5):
            if number < 2:
                await until_blocked(ends.source._receiving.fd)
            ends.near.send(b"%d" % number)
        await until_blocked(ends.sink._lease.fd)
        await ends.read_exactly(clogged)
        assert await ends.read_exactly(5) == b"01234"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("before", range(BULK_STREAK + 1))
async def test_messages_wait_for_a_pipe_that_is_not_yet_empty(before: int) -> None:
    """Bulk goes back to messages after a streak of small ones, of which the last may be stuck."""
    data = pattern(30_000)
    async with line() as ends, trio.open_nursery() as nursery:
        nursery.start_soon(trio_uring.copy_stream, ends.source, ends.sink)
        await ends.write(data[:20_000])
        got = await ends.read_exactly(20_000)
        for _ in range(before):
            await ends.write(data[len(got) : len(got) + 100])
            got += await ends.read_exactly(100)
        clogged = clog(ends.sink._lease.fd)
        for at in range(len(got), len(got) + 500, 100):
            ends.near.send(data[at : at + 100])
            await passes(3)
        await ends.read_exactly(clogged)
        got += await ends.read_exactly(500)
        assert got == data[: len(got)]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("before", range(BULK_STREAK + 1))
@pytest.mark.parametrize("end", ["cancelled", "no splice any more"])
async def test_messages_that_came_after_what_a_pipe_still_holds(
    end: str, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last small one of a streak is stuck in the pipe, and the next is received by the ring."""
    data = pattern(30_000)
    async with line() as ends:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio_uring.copy_stream, ends.source, ends.sink)
                await ends.write(data[:20_000])
                got = await ends.read_exactly(20_000)
                for _ in range(before):
                    await ends.write(data[len(got) : len(got) + 100])
                    got += await ends.read_exactly(100)
                clogged = clog(ends.sink._lease.fd)
                for at in range(len(got), len(got) + 300, 100):
                    ends.near.send(data[at : at + 100])
                    await passes(5)
                end_at = len(got) + 300
                if end == "cancelled":
                    scope.cancel()
                else:
                    monkeypatch.setattr(Pipe, "empty", refuse)
                    await ends.read_exactly(clogged)
                    got += await ends.read_exactly(300)
                    scope.cancel()
        while len(got) < end_at:
            got += await ends.source.receive_some()
        assert got == data[:end_at]


def refuse(self: Pipe, fd: int) -> int:
    raise OSError(errno.EINVAL, "a stand-in")


@pytest.mark.parametrize("flags", EVERY_FLAGS)
@pytest.mark.parametrize("count", [1, 3])
@in_child()
async def test_a_message_that_comes_just_before_the_cancel(flags: str, count: int) -> None:
    """The kernel may have received it already, and the pump may not go on."""
    use_ring(flags=flags)
    async with line() as ends:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio_uring.copy_stream, ends.source, ends.sink)
                await until_blocked(ends.source._receiving.fd)
                for number in range(count):
                    ends.near.send(b"%d" % number)
                scope.cancel()
        assert scope.cancelled_caught
        assert not operations_on(ends.source._receiving.fd)
        got = ends.read()
        while len(got) < count:
            got += await ends.source.receive_some()
        assert got == b"012"[:count]


@pytest.mark.parametrize("which", ["source", "sink"])
async def test_the_socket_below_is_closed_and_its_number_used_again(which: str) -> None:
    """By whoever made the stream of it: nobody tells the pump."""
    near, source = socket.socketpair()
    sink, far = socket.socketpair()
    below = {"source": source, "sink": sink}[which]
    streams = trio_uring.SocketStream(source), trio_uring.SocketStream(sink)
    other, peer = socket.socketpair()
    with near, far, other, peer:
        peer.send(b"for somebody else")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed, *streams, which)
            await until_blocked(streams[0]._receiving.fd)
            number = below.fileno()
            below.close()
            again = other.dup()
            assert again.fileno() == number
            near.send(b"a message")
        with again:
            again.setblocking(False)
            assert again.recv(100) == b"for somebody else"
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(100)
        for stream in streams:
            await trio.aclose_forcefully(stream)


async def expect_closed(source: object, sink: object, which: str) -> None:
    with pytest.raises(trio.ClosedResourceError, match=which):
        await trio_uring.copy_stream(source, sink)


@in_child()
async def test_receives_that_bring_their_memory() -> None:
    """As on kernels before 5.19, which provide no buffers."""
    use_ring(provide_buffers=False)
    async with line() as ends, trio.open_nursery() as nursery:
        nursery.start_soon(trio_uring.copy_stream, ends.source, ends.sink)
        for number in range(10):
            await ends.write(b"%d" % number)
            assert await ends.read_exactly(1) == b"%d" % number
        nursery.cancel_scope.cancel()


async def test_it_is_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether these tests are about anything."""
    from trio_uring._relay.pump import Pump

    finished = []
    monkeypatch.setattr(Pump, "_finished", lambda self, op, handle: finished.append(op))
    async with line() as ends, trio.open_nursery() as nursery:
        nursery.start_soon(trio_uring.copy_stream, ends.source, ends.sink)
        for number in range(10):
            await ends.write(b"%d" % number)
            assert await ends.read_exactly(1) == b"%d" % number
        assert not finished
        assert count_of("SEND").completed == 10
        monkeypatch.undo()
        nursery.cancel_scope.cancel()
