"""What the stream tests share: connected pairs, clogging, waiting for the ring, and checks after a
run.

Rules: nothing in here sleeps and hopes. Waiting means giving the scheduler passes until a condition
holds, and failing with the condition's name if that takes more than PASSES_MAX and SECONDS_MAX, as
another thread or process may get no processor for a while. Every pair owns its descriptors until a
stream takes them.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import struct
import tempfile
import termios
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trio_uring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

waits_are_ours = pytest.mark.uring_only(
    "a wait of trio's own outlives a coroutine that is destroyed in it"
)

# Of a ring that a test gives to its run.
LADDER = "coop" if os.environ.get("TRIO_URING_DRIVER") == "task" else "defer"
PASSES_MAX = 100_000
SECONDS_MAX = 30  # of the real clock
TINY = 4608  # bytes: the least SO_SNDBUF that Linux takes


# -- runs


def open_descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def checked_run(
    main: Callable[..., Awaitable[Any]],
    *args: Any,
    run: Callable[..., Any] = trio.run,
    **kwargs: Any,
) -> Any:
    """trio.run, or `run`, which fails if the ring or a descriptor was left in use."""
    before = open_descriptors()
    result = run(partial(_checked_main, main, *args), **kwargs)
    after = open_descriptors()
    assert len(after) <= len(before), (
        f"descriptors left open: {sorted(set(after.items()) - set(before.items()))}"
    )
    return result


async def _checked_main(main: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    result = await main(*args)
    for _ in range(10):  # what an abandoned coroutine left is cancelled in the next pass
        if not trio_uring.current_operations():
            break
        await trio.lowlevel.checkpoint()
    statistics = trio_uring.current_statistics()
    left = trio_uring.current_operations()
    assert (statistics.in_flight, statistics.queued, statistics.pinned) == (0, 0, 0), (
        statistics,
        left,
    )
    return result


# -- waiting


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Gives the scheduler passes until `condition()` is true, and returns what it was."""
    count, end = 0, time.monotonic() + SECONDS_MAX
    while not (found := condition()):
        count += 1
        if count > PASSES_MAX and time.monotonic() > end:
            raise AssertionError(f"after {count} passes still not: {what}")
        await trio.lowlevel.checkpoint()
    return found


async def passes(count: int) -> None:
    for _ in range(count):
        await trio.lowlevel.checkpoint()


def operations_on(fd: int) -> list[trio_uring.OperationInFlight]:
    return [op for op in trio_uring.current_operations() if op.fd == fd]


async def until_blocked(fd: int, count: int = 1) -> list[trio_uring.OperationInFlight]:
    """Until `count` operations on `fd` wait in the kernel, or without a ring for the descriptor."""

    def in_kernel() -> list[trio_uring.OperationInFlight]:
        found = [op for op in operations_on(fd) if op.state in ("SUBMITTED", "WAITING")]
        return found if len(found) >= count else []

    found: list[trio_uring.OperationInFlight] = await until(
        in_kernel, f"{count} operations in the kernel on {fd}"
    )
    return found


def on_ring() -> bool:
    return trio_uring.backend_info().backend == "uring"


def count_of(opcode: str) -> trio_uring.OperationCounts:
    return trio_uring.current_statistics().operations.get(
        opcode, trio_uring.OperationCounts(0, 0, 0, 0, 0)
    )


# -- pairs


def unix_sockets(send_buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    if send_buffer is not None:
        for sock in pair:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    return pair


def tcp_sockets(buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        if buffer is not None:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        client = socket.socket()
        if buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        client.connect(server.getsockname())
        return client, server.accept()[0]


def fifo_descriptors() -> tuple[int, int]:
    """(read end, write end) of a FIFO with a name in the file system."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "fifo")
        os.mkfifo(path)
        read = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        write = os.open(path, os.O_WRONLY)
        os.set_blocking(read, True)
        return read, write


def unix_streams(
    send_buffer: int | None = None,
) -> tuple[trio_uring.SocketStream, trio_uring.SocketStream]:
    left, right = unix_sockets(send_buffer)
    return trio_uring.SocketStream(left), trio_uring.SocketStream(right)


def stream_and_peer() -> tuple[trio_uring.SocketStream, socket.socket]:
    left, right = unix_sockets()
    return trio_uring.SocketStream(left), right


def pipe_streams() -> tuple[trio_uring.SendStream, trio_uring.ReceiveStream]:
    read, write = os.pipe()
    return trio_uring.SendStream(write), trio_uring.ReceiveStream(read)


@contextlib.asynccontextmanager
async def closing(*resources: trio.abc.AsyncResource | socket.socket) -> AsyncIterator[None]:
    """Closes everything at the end, whatever happened."""
    try:
        yield
    finally:
        for resource in resources:
            if isinstance(resource, trio.abc.AsyncResource):
                await trio.aclose_forcefully(resource)
            else:
                resource.close()


@contextlib.asynccontextmanager
async def receiving(stream: trio_uring.SocketStream) -> AsyncIterator[list[bytes]]:
    """Meanwhile a task is blocked in a receive on `stream`; at the end it has received, and the
    list has what."""
    got: list[bytes] = []

    async def receive() -> None:
        got.append(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await until_blocked(stream.socket.fileno())
        yield got


# -- clogging, draining


def clog(fd: int) -> int:
    """Writes to `fd` until it takes no more, and returns how many bytes it took. Its blocking mode
    stays as it was."""
    blocking, taken = os.get_blocking(fd), 0
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            taken += os.write(fd, b"c" * 65536)
    os.set_blocking(fd, blocking)
    return taken


def clog_tcp(*directions: tuple[socket.socket, socket.socket]) -> list[int]:
    """As clog, for each (sender, receiver); also waits until nothing makes room any more."""
    taken = [clog(sender.fileno()) for sender, _ in directions]
    for _ in range(5000):
        if all(_at_rest(*ends, count) for ends, count in zip(directions, taken)):
            more = [clog(sender.fileno()) for sender, _ in directions]
            if not any(more):
                return taken
            taken = [count + one for count, one in zip(taken, more)]
        # The kernel's timers are all that this waits for: delayed acknowledgements (40 ms), and the
        # one that fills what is left of a window if it is less than a segment (200 ms).
        time.sleep(0.001)
    raise AssertionError("TCP does not come to rest")


def _at_rest(sender: socket.socket, receiver: socket.socket, taken: int) -> bool:
    """Whether each byte is either acknowledged or stuck, in front of a window that is closed."""
    stuck = _queued(sender, termios.TIOCOUTQ)
    info = sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    [window] = struct.unpack_from("I", info, 228)  # tcpi_snd_wnd
    return window == 0 and taken == stuck + _queued(receiver, termios.FIONREAD)


def _queued(sock: socket.socket, what: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(sock, what, count)
    return count[0]


def drain(sock: socket.socket) -> bytes:
    """Everything that can be received now."""
    sock.setblocking(False)
    parts = []
    with contextlib.suppress(BlockingIOError):
        while chunk := sock.recv(1 << 20):
            parts.append(chunk)
    return b"".join(parts)


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


# -- data


def pattern(count: int, start: int = 0) -> bytes:
    """`count` bytes that tell where in the stream they belong: a run that was lost, doubled or
    moved does not match."""
    first = start // 8
    words = b"".join(number.to_bytes(8, "big") for number in range(first, (start + count) // 8 + 1))
    return words[start - 8 * first :][:count]


def skip_bytes(buffers: Iterable[Any], count: int) -> Iterator[memoryview]:
    """What is left of `buffers` after their first `count` bytes."""
    for item in buffers:
        view = memoryview(item).cast("B") if memoryview(item).nbytes else memoryview(b"")
        gone = min(count, view.nbytes)
        count -= gone
        if gone < view.nbytes or not view.nbytes:
            yield view[gone:]
