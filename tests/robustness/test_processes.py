"""Processes that fork, die, are killed, or exit with operations in flight; and SIGPIPE.

Rules of this file: how a process ended is read from exit codes and from the other end of its
sockets.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import traceback
from types import FrameType
from typing import Any

import pytest
import trio
import trio.testing
from support.by_hand import run_by_hand
from support.child import FLAGS, in_child, pair, use_ring
from support.peer import HOST, echo_peer
from support.streams import open_descriptors

import trio_uring

OK = 0
RING_LINK = "io_uring"


def in_forked_child(stream: trio_uring.SocketStream, ring_links: int) -> int:
    """What the child sees; returns its exit code."""
    for use in (
        stream.receive_some,
        lambda: stream.send_all(b"from the child"),
        lambda: stream.send_all([b"a", b"b"]),
    ):
        with pytest.raises(RuntimeError, match="forked"):
            run_by_hand(use())
    assert ring_links >= 1
    assert not [link for link in open_descriptors().values() if RING_LINK in link], (
        "the child still holds the ring"
    )
    return OK


def fork_and_wait(stream: trio_uring.SocketStream) -> int:
    ring_links = len([link for link in open_descriptors().values() if RING_LINK in link])
    pid = os.fork()
    if pid == 0:
        code = 11
        try:
            code = in_forked_child(stream, ring_links)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def echo_messages(stream: trio_uring.SocketStream, count: int) -> None:
    for number in range(count):
        message = number.to_bytes(8, "little")
        await stream.send_all(message)
        assert await stream.receive_exactly(8) == message


@pytest.mark.uring_only("by readiness, a child may use its parent's streams as trio's own")
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_fork_in_a_run(flags: str) -> None:
    """The child gets a clear error, and its parent does not notice: no wake-up stolen, no entry
    submitted in its name."""
    use_ring(flags=flags)
    with echo_peer(4) as socks:
        streams = [trio_uring.SocketStream(sock) for sock in socks]
        blocked, peer = pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blocked.receive_some)
            for stream in streams:
                await echo_messages(stream, 10)
            await trio.testing.wait_all_tasks_blocked()
            for stream in streams:
                assert fork_and_wait(stream) == OK
            async with trio.open_nursery() as inner:
                for stream in streams:
                    inner.start_soon(echo_messages, stream, 1000)
            peer.send(b"the blocked receive of before the fork still works")
        for stream in (*streams, blocked):
            await stream.aclose()
        peer.close()


@in_child()
def test_a_forked_child_can_have_a_run_of_its_own() -> None:
    async def parent() -> None:
        stream, peer = pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            assert await trio.to_thread.run_sync(fork_and_run) == OK
            peer.send(b"x")
        await stream.aclose()
        peer.close()

    trio.run(parent)


def fork_and_run() -> int:
    """In a thread without a run: the child's only thread can then start one."""
    pid = os.fork()
    if pid == 0:
        code = 12
        try:
            signal.set_wakeup_fd(-1)  # it is the parent's trio's
            trio.run(talk_to_oneself)
            code = OK
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def talk_to_oneself() -> None:
    ours, theirs = socket.socketpair()
    async with trio_uring.SocketStream(ours) as left, trio_uring.SocketStream(theirs) as right:
        for _ in range(100):
            await left.send_all(b"x")
            assert await right.receive_some() == b"x"


async def echo(stream: trio_uring.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


def serve_until_killed(write_fd: int) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(
                lambda **kw: trio_uring.serve_tcp(echo, 0, host=HOST, **kw)
            )
            os.write(write_fd, struct.pack("=H", listener.socket.getsockname()[1]))

    trio.run(main)


@in_child()
def test_a_killed_server_takes_its_connections_with_it() -> None:
    """SIGKILL in the middle of load, ten times: every client sees the end, and no port or
    descriptor stays behind."""
    assert trio_uring.serve_tcp  # imported here, not by each child
    for _ in range(10):
        read_fd, write_fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            serve_until_killed(write_fd)
            os._exit(1)
        os.close(write_fd)  # or the death of the child would not be seen
        [port] = struct.unpack("=H", os.read(read_fd, 2))
        clients = [socket.create_connection((HOST, port)) for _ in range(10)]
        for client in clients:
            client.sendall(b"x" * 1000)
            assert client.recv(1)
            client.sendall(b"x" * 1000)
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        for client in clients:
            read_to_the_end(client)
            client.close()
        os.close(read_fd)


def read_to_the_end(client: socket.socket) -> None:
    try:
        while client.recv(65536):
            pass
    except ConnectionResetError:
        pass


def reset_connection() -> tuple[socket.socket, Any]:
    """A TCP socket whose peer has sent an RST, and is gone."""
    with socket.create_server((HOST, 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    return ours, theirs


@pytest.mark.parametrize("many", [False, True])
@in_child()
async def test_a_broken_socket_raises_no_sigpipe(many: bool) -> None:
    """Many programs set SIGPIPE back to its default, which kills."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    data = [b"one", b"two"] if many else b"one"
    sock, _ = reset_connection()
    async with trio_uring.SocketStream(sock) as stream:
        for _ in range(3):  # ECONNRESET first, then EPIPE
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(data)
    ours, theirs = socket.socketpair()
    theirs.close()
    async with trio_uring.SendStream(ours) as sender:
        with pytest.raises(trio.BrokenResourceError):
            await sender.send_all(data)


@pytest.mark.parametrize("many", [False, True])
@in_child()
async def test_a_broken_pipe_is_an_error(many: bool) -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    async with trio_uring.SendStream(write_fd) as sender:
        with pytest.raises(trio.BrokenResourceError):
            await sender.send_all([b"one", b"two"] if many else b"one")


@in_child(expect=-signal.SIGPIPE)
async def test_a_broken_pipe_kills_if_the_program_asks_for_it() -> None:
    """As os.write and trio's FdStream: a program that sets SIGPIPE to its default wants to die so
    (`... | head`)."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    await trio_uring.SendStream(write_fd).send_all(b"x")


async def exit_under_load(leave: Any) -> None:
    streams = [pair() for _ in range(50)]
    async with trio.open_nursery() as nursery:
        for index, (stream, _) in enumerate(streams):
            if index % 2:
                nursery.start_soon(stream.receive_some)
            else:
                nursery.start_soon(stream.send_all, bytes(2**22))
        await trio.testing.wait_all_tasks_blocked()
        assert trio_uring.current_statistics().in_flight == 50
        leave(42)


@pytest.mark.parametrize("flags", FLAGS)
@in_child(expect=42)
def test_os_exit_with_operations_in_flight(flags: str) -> None:
    use_ring(flags=flags)
    trio.run(exit_under_load, os._exit)


@pytest.mark.parametrize("flags", FLAGS)
@in_child(expect=42)
def test_sys_exit_with_operations_in_flight(flags: str) -> None:
    use_ring(flags=flags)
    try:
        trio.run(exit_under_load, sys.exit)
    except BaseException as exc:
        matched = exc if isinstance(exc, SystemExit) else exc.exceptions[0]  # type: ignore[attr-defined]
        assert isinstance(matched, SystemExit)
        sys.exit(matched.code)


def in_a_pass(frame: FrameType | None) -> bool:
    """Whether trio is not sleeping: what a handler raises there may hit trio's own code."""
    while frame is not None and frame.f_code.co_name != "unrolled_run":
        frame = frame.f_back
    return frame is not None


@in_child(expect=42)
def test_a_signal_handler_may_exit_while_the_run_sleeps() -> None:
    """As with trio's own I/O manager: the run is over, whatever waits."""

    def leave(_: int, frame: FrameType | None) -> None:
        if in_a_pass(frame):  # after a pause of the process
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        else:
            raise SystemExit(42)

    async def sleep() -> None:
        ours, theirs = socket.socketpair()
        async with trio_uring.SocketStream(ours) as stream:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            await stream.receive_some()
        theirs.close()

    signal.signal(signal.SIGALRM, leave)
    trio.run(sleep)


@in_child(expect=-signal.SIGTERM)
def test_sigterm_with_operations_in_flight() -> None:
    trio.run(exit_under_load, lambda _: os.kill(os.getpid(), signal.SIGTERM))
