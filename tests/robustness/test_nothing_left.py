"""Nothing is left after a run, however it ends: no operation, descriptor, pinned buffer or kernel
thread.

Rules of this file: every test ends a run in another way under load, and `Watch` (child.py) checks
what is left. The load's buffers are bytearrays that the test keeps: one that is still pinned cannot
be resized.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from support.child import BY_READINESS, FLAGS, Watch, in_child, use_ring
from support.peer import echo_peer
from support.ports import lone_port
from support.streams import open_descriptors

import trio_uring

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

PAIRS = 40


class Load:
    """Tasks blocked in every kind of operation, and pairs that exchange messages without end."""

    def __init__(self) -> None:
        self.buffers: list[bytearray] = []
        self.messages = 0
        self.sockets: list[socket.socket] = []

    def buffer(self, size: int) -> bytearray:
        self.buffers.append(bytearray(size))
        return self.buffers[-1]

    def check_unpinned(self) -> None:
        assert self.buffers
        for buffer in self.buffers:
            buffer.append(0)  # BufferError while it is exported

    def pair(self) -> tuple[trio_uring.SocketStream, socket.socket]:
        ours, theirs = socket.socketpair()
        self.sockets += [ours, theirs]
        return trio_uring.SocketStream(ours), theirs

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()

    async def chat(self) -> None:
        ours, theirs = socket.socketpair()
        async with trio_uring.SocketStream(ours) as left, trio_uring.SocketStream(theirs) as right:
            message, into = self.buffer(4000), self.buffer(4000)
            while True:
                await left.send_all([message, message])
                await right.receive_into(into)
                await right.receive_exactly(1)
                self.messages += 1

    async def blocked_receive(self) -> None:
        async with self.pair()[0] as stream:
            await stream.receive_some()

    async def blocked_receive_into(self) -> None:
        async with self.pair()[0] as stream:
            await stream.receive_into(self.buffer(65536))

    async def blocked_send(self) -> None:
        async with self.pair()[0] as stream:
            await stream.send_all(self.buffer(2**22))

    async def blocked_send_list(self) -> None:
        async with self.pair()[0] as stream:
            await stream.send_all([self.buffer(2**20) for _ in range(8)])

    async def blocked_accept(self) -> None:
        async with (await trio_uring.open_tcp_listeners(0, host="127.0.0.1"))[0] as listener:
            await listener.accept()

    # Numbers that are no stream's yet are closed by nobody whom an interrupt hits.
    @trio.lowlevel.enable_ki_protection
    async def blocked_pipe(self) -> None:
        read_fd, write_fd = os.pipe()
        async with (
            trio_uring.ReceiveStream(read_fd) as reader,
            trio_uring.SendStream(write_fd) as writer,
        ):
            await self.blocked_on(reader, writer)

    @trio.lowlevel.disable_ki_protection
    async def blocked_on(
        self, reader: trio_uring.ReceiveStream, writer: trio_uring.SendStream
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.send_all, self.buffer(2**20))

    def start(self, nursery: trio.Nursery) -> None:
        for _ in range(PAIRS):
            nursery.start_soon(self.chat)
        for kind in (
            self.blocked_receive,
            self.blocked_receive_into,
            self.blocked_send,
            self.blocked_send_list,
        ):
            nursery.start_soon(kind)
            nursery.start_soon(kind)
        nursery.start_soon(self.blocked_accept)
        nursery.start_soon(self.blocked_pipe)

    async def until_busy(self) -> None:
        """Until messages go and as many operations are in flight as there are blocked tasks."""
        while self.messages < 10 * PAIRS or trio_uring.current_statistics().in_flight < 10:
            await trio.lowlevel.checkpoint()


def types_raised(main: Any, *arguments: Any) -> set[type[BaseException]]:
    """What a run raised, without groups; and without tracebacks, whose frames would hold buffers
    and streams."""
    found: set[type[BaseException]] = set()
    try:
        trio.run(main, *arguments)
    except BaseException as exc:
        collect_types(exc, found)
    gc.collect()
    return found


def collect_types(exc: BaseException, found: set[type[BaseException]]) -> None:
    if isinstance(exc, BaseExceptionGroup):
        for one in exc.exceptions:
            collect_types(one, found)
    else:
        found.add(type(exc))


@contextlib.contextmanager
def load() -> Iterator[Load]:
    """A load for one run; afterwards nothing of it may be left."""
    watch, running = Watch(), Load()
    yield running
    running.close()
    for _ in range(3):  # the frames of a run that crashed are destroyed one after another
        gc.collect()
    running.check_unpinned()
    watch.check_left()


async def run_until(running: Load, end: Any) -> None:
    async with trio.open_nursery() as nursery:
        running.start(nursery)
        await running.until_busy()
        end(nursery)


def raise_error(_: trio.Nursery) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_after_a_normal_end(flags: str) -> None:
    use_ring(flags=flags)
    with load() as running:
        trio.run(run_until, running, lambda nursery: nursery.cancel_scope.cancel())


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_after_an_exception(flags: str) -> None:
    use_ring(flags=flags)
    with load() as running:
        assert types_raised(run_until, running, raise_error) == {ZeroDivisionError}


@in_child()
def test_after_a_system_task_crashed() -> None:
    async def crash() -> None:
        raise ZeroDivisionError

    with load() as running:
        end = partial(trio.lowlevel.spawn_system_task, crash)
        assert types_raised(run_until, running, lambda _: end()) == {trio.TrioInternalError}


async def break_trio() -> None:
    """An abort function that answers nonsense: trio's scheduler gives up on the spot, with all
    tasks where they are."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await trio.lowlevel.wait_task_rescheduled(lambda _: "nonsense")  # type: ignore[arg-type, return-value]


async def block_and_break(
    streams: list[trio_uring.SocketStream], buffer: bytearray, seconds: float
) -> None:
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(stream.receive_some)
        nursery.start_soon(streams[0].send_all, buffer)
        await trio.testing.wait_all_tasks_blocked()
        assert trio_uring.current_statistics().in_flight >= len(streams)
        time.sleep(seconds)  # noqa: ASYNC251
        await break_trio()


@pytest.mark.long
@pytest.mark.parametrize("seconds", [0, 2])
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_after_trio_itself_crashed(flags: str, seconds: float) -> None:
    """Also when its last pass took longer than the end of a run waits for the kernel."""
    use_ring(flags=flags)
    with load() as running:
        streams = [running.pair()[0] for _ in range(PAIRS)]
        buffer = running.buffer(2**22)
        assert types_raised(block_and_break, streams, buffer, seconds) == {trio.TrioInternalError}
        del streams


async def interrupted(running: Load, after: int) -> None:
    async with trio.open_nursery() as nursery:
        running.start(nursery)
        with echo_peer(1, "int", os.getpid(), after, 1) as [sock]:
            async with trio_uring.SocketStream(sock) as stream:
                while True:
                    await stream.send_all(b"message")
                    await stream.receive_some()


@in_child()
def test_after_ctrl_c_in_the_middle_of_load() -> None:
    for after in range(1, 61, 3):
        with load() as running:
            assert types_raised(interrupted, running, after) == {KeyboardInterrupt}


@in_child()
def test_after_ctrl_c_while_the_main_task_sleeps() -> None:
    """trio gives KeyboardInterrupt to the main task, which is blocked in the kernel at that
    time."""
    ours, theirs = socket.socketpair()

    async def main() -> None:
        async with trio_uring.SocketStream(ours) as stream:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(interrupt_when_blocked)
                await stream.receive_some()

    async def interrupt_when_blocked() -> None:
        while trio_uring.current_statistics().in_flight < 1:
            await trio.lowlevel.checkpoint()
        os.kill(os.getpid(), signal.SIGINT)

    assert types_raised(main) == {KeyboardInterrupt}
    theirs.close()


async def thousand(cancelled: list[int]) -> None:
    before = len(open_descriptors())
    async with trio.open_nursery() as nursery:
        pairs = [socket.socketpair() for _ in range(1000)]
        for index, pair in enumerate(pairs):
            for sock in pair:
                nursery.start_soon(one_of_a_thousand, sock, index % 2 == 0, cancelled)
        while trio_uring.current_statistics().in_flight < 2000:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    statistics = trio_uring.current_statistics()
    assert statistics.in_flight == statistics.queued == statistics.pinned == 0
    assert len(open_descriptors()) <= before + 1  # the ring


async def one_of_a_thousand(sock: socket.socket, sends: bool, cancelled: list[int]) -> None:
    async with trio_uring.SocketStream(sock) as stream:
        try:
            if sends:
                await stream.send_all(bytes(2**20))
            else:
                await stream.receive_some()
        except trio.Cancelled:
            cancelled.append(1)
            raise


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_after_a_thousand_connections_cancelled_at_once(flags: str) -> None:
    use_ring(flags=flags)
    cancelled: list[int] = []
    trio.run(thousand, cancelled)
    assert len(cancelled) == 2000


async def closed_under(operation: Any, *arguments: Any, close: Any) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed, operation, *arguments)
        await trio.testing.wait_all_tasks_blocked()
        while not BY_READINESS and trio_uring.current_statistics().in_flight < 1:
            await trio.lowlevel.checkpoint()
        await close()
    assert trio_uring.current_statistics().in_flight == 0


async def expect_closed(operation: Any, *arguments: Any) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await operation(*arguments)


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_after_a_close_under_a_blocked_task(flags: str) -> None:
    use_ring(flags=flags)
    for operation in ("receive_some", "receive_into", "receive_exactly", "send_all", "send_list"):
        running = Load()
        stream, peer = running.pair()
        buffer = running.buffer(2**22)
        arguments: dict[str, Any] = {
            "receive_into": buffer,
            "receive_exactly": 100,
            "send_list": [buffer, buffer],
        }
        method = stream.send_all if operation == "send_list" else getattr(stream, operation)
        given = [] if operation == "receive_some" else [arguments.get(operation, buffer)]
        await closed_under(method, *given, close=stream.aclose)
        peer.setblocking(False)  # the FIN has gone by now, or this raises BlockingIOError
        while peer.recv(2**20):
            pass
        running.close()
        del given, arguments
        running.check_unpinned()


@in_child()
async def test_after_a_close_under_a_blocked_accept_and_pipe() -> None:
    [listener] = await trio_uring.open_tcp_listeners(lone_port(), host="127.0.0.1")
    address = listener.socket.getsockname()
    await closed_under(listener.accept, close=listener.aclose)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    read_fd, write_fd = os.pipe()
    async with trio_uring.SendStream(write_fd) as writer:
        reader = trio_uring.ReceiveStream(read_fd)
        await closed_under(reader.receive_some, close=reader.aclose)
        with pytest.raises(trio.BrokenResourceError):
            await writer.send_all(b"nobody reads this")


async def resize_in_except(
    operation: Any, buffer: bytearray, error: type[Exception], cause: Any
) -> None:
    """Resizes the buffer where programs do: in the except clause, while the exception's traceback
    holds the frames."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cause)
        try:
            await operation()
        except error:
            del buffer[:1]  # BufferError while it is exported
        else:
            pytest.fail(f"no {error}")


@pytest.mark.parametrize("operation", ["send_all", "send_list", "receive_into"])
@in_child()
async def test_a_buffer_can_be_resized_as_soon_as_its_call_has_raised(operation: str) -> None:
    """As with trio's SocketStream, which releases its view of the buffer whatever happens."""
    for error in (trio.TooSlowError, trio.ClosedResourceError):
        running = Load()
        stream, _ = running.pair()
        buffer = running.buffer(2**22)
        method = stream.receive_into if operation == "receive_into" else stream.send_all
        call = partial(
            method, [buffer, buffer] if operation == "send_list" else buffer, timeout=0.01
        )
        cause: Any = trio.lowlevel.checkpoint
        if error is trio.ClosedResourceError:
            call.keywords.clear()
            cause = partial(close_when_blocked, stream)
        await resize_in_except(call, buffer, error, cause)
        await stream.aclose()
        running.close()


async def close_when_blocked(stream: trio_uring.SocketStream) -> None:
    await trio.testing.wait_all_tasks_blocked()
    await stream.aclose()
