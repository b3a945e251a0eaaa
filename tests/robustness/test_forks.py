"""Forks in the middle of a run: the child goes on in it or leaves it, and the parent does not
notice.

Rules of this file: a child ends with os._exit, and its exit code says what it saw. The parent's
thread is blocked meanwhile, so that what the kernel shows of the parent's ring and of trio's epoll
instance is exactly the same before and after.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from support.child import FLAGS, driver, in_child, open_rings, pair, stream_pair, use_ring
from support.long_cases import examples
from support.streams import open_descriptors

import trio_uring
from trio_uring._ring import uring as _ring

pytestmark = pytest.mark.uring_only("by readiness, a forked child has what trio gives it")

LOOPS = tuple(flags for flags in FLAGS if flags != "task coop")
OK, FAILED = 0, 13


def state(link: str) -> list[str]:
    """What the kernel tells of this process's descriptors of a kind: what was submitted, and what
    is registered."""
    infos = [
        Path(f"/proc/self/fdinfo/{fd}")
        for fd, target in open_descriptors().items()
        if link in target
    ]
    lines = [f"{info.name} {line}" for info in infos for line in info.read_text().splitlines()]
    return [line for line in lines if line.split()[1] in ("SqHead:", "SqTail:", "SQEs:", "tfd:")]


class Forked(BaseException):
    """Leaves the run of a child."""


async def fork(in_the_child: Callable[[], Awaitable[None]]) -> None:
    """Runs it in a forked child, which goes on in this run; it is over there when this has
    raised."""
    before = state("io_uring"), state("eventpoll")
    pid = os.fork()
    if pid == 0:
        await in_the_child()
        raise Forked
    assert wait_for(pid) == OK
    assert (state("io_uring"), state("eventpoll")) == before


def run(main: Callable[[], Awaitable[None]]) -> None:
    """trio.run, in which `fork` may be called."""
    parent = os.getpid()
    try:
        trio.run(main)
    except BaseException as exc:
        if os.getpid() == parent:
            raise
        os._exit(OK if only_forked(exc) else FAILED)
    if os.getpid() != parent:
        os._exit(FAILED)


def only_forked(exc: BaseException) -> bool:
    if isinstance(exc, Forked):
        return True
    parts = getattr(exc, "exceptions", ())
    if parts and all(map(only_forked, parts)):
        return True
    traceback.print_exception(exc)
    return False


async def talk(left: trio_uring.SocketStream, right: trio_uring.SocketStream) -> None:
    for number in range(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.send_all, [b"%03d" % number, bytes(2**16)])
            assert await right.receive_exactly(3 + 2**16) == b"%03d" % number + bytes(2**16)


async def use_new_streams() -> None:
    left, right = stream_pair()
    async with left, right:
        await talk(left, right)
        with trio.move_on_after(0.01) as scope:
            await left.receive_some()
        assert scope.cancelled_caught
        await trio_uring.copy_stream(right, left, max_bytes=0)
    reading, writing = os.pipe()
    async with (
        trio_uring.SendStream(writing) as sender,
        trio_uring.ReceiveStream(reading) as receiver,
    ):
        await sender.send_all(b"through a pipe")
        assert await receiver.receive_some() == b"through a pipe"
    assert trio_uring.current_statistics().in_flight == 0


async def use_all_of_trio() -> None:
    """What the child's run needs of trio's own epoll instance, and would take away from the
    parent's."""
    await trio.to_thread.run_sync(trio.from_thread.run_sync, lambda: None)
    left, right = trio.socket.socketpair()
    with left, right, trio.move_on_after(0.01) as scope:
        await left.recv(1)
    assert scope.cancelled_caught


async def nothing() -> None:
    pass


async def use_everything() -> None:
    await use_all_of_trio()
    await use_new_streams()
    await use_all_of_trio()


class Parent:
    """Tasks blocked in all kinds of waits, over a fork."""

    def __init__(self, in_the_child: Callable[[], Awaitable[None]]) -> None:
        self.in_the_child = in_the_child
        self.woke: list[str] = []

    async def receive(self, what: str, receive: Callable[[], Awaitable[bytes]]) -> None:
        assert await receive() == what.encode()
        self.woke.append(what)

    async def main(self) -> None:
        stream, peer = pair()
        sock, other = trio.socket.socketpair()
        reading, writing = os.pipe()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.receive, "ring", stream.receive_some)
            nursery.start_soon(self.receive, "stock", lambda: sock.recv(100))
            nursery.start_soon(self.receive, "foreign", lambda: self.foreign(reading))
            await trio.testing.wait_all_tasks_blocked()
            await fork(self.in_the_child)
            peer.send(b"ring")
            os.write(other.fileno(), b"stock")
            os.write(writing, b"foreign")
        assert sorted(self.woke) == ["foreign", "ring", "stock"]
        await trio.to_thread.run_sync(trio.from_thread.run_sync, lambda: None)
        await use_new_streams()
        await stream.aclose()
        for each in (sock, other, peer):
            each.close()
        os.close(reading)
        os.close(writing)

    @staticmethod
    async def foreign(fd: int) -> bytes:
        await trio.lowlevel.wait_readable(fd)
        return os.read(fd, 100)


@pytest.mark.parametrize(
    "what", ["nothing", "use_new_streams", "use_all_of_trio", "use_everything"]
)
@pytest.mark.parametrize("flags", LOOPS)
@in_child()
def test_a_child_goes_on_in_its_parents_run_and_leaves_it(flags: str, what: str) -> None:
    """Its tasks are cancelled there, those that were blocked in the parent's operations too."""
    use_ring(flags=flags)
    run(Parent(globals()[what]).main)


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_new_streams_work_in_a_child_that_stays_in_the_run(flags: str) -> None:
    """Also with a task that waits for the ring, where the child shares trio's epoll instance as in
    any run of trio."""
    use_ring(flags=flags)
    stream, peer = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, stream, b"after the fork")
        await trio.testing.wait_all_tasks_blocked()
        before = state("io_uring")
        pid = os.fork()
        if pid == 0:
            await exit_after(use_new_streams)
        assert wait_for(pid) == OK
        assert state("io_uring") == before
        peer.send(b"after the fork")
    await stream.aclose()
    peer.close()


async def exit_after(use: Callable[[], Awaitable[Any]]) -> None:
    code = FAILED
    try:
        await use()
        code = OK
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


async def expect(stream: trio_uring.SocketStream, data: bytes) -> None:
    assert await stream.receive_some() == data


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_a_child_of_a_child(flags: str) -> None:
    use_ring(flags=flags)
    left, right = stream_pair()
    await talk(left, right)
    pid = os.fork()
    if pid == 0:
        await use_new_streams()
        second = os.fork()
        if second == 0:
            await exit_after(use_new_streams)
        code = wait_for(second)
        await exit_after(use_new_streams if code == OK else fail)
    assert wait_for(pid) == OK
    await talk(left, right)
    await left.aclose()
    await right.aclose()


async def fail() -> None:
    raise AssertionError("the child's child failed")


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_what_is_the_parents_is_not_used_whatever_is_asked_of_it(flags: str) -> None:
    """Operations that the parent has made before, and kinds that it has not."""
    use_ring(flags=flags)
    stream, peer = stream_pair()
    await stream.send_all(b"x")
    assert await peer.receive_some() == b"x"
    pid = os.fork()
    if pid == 0:
        await exit_after(lambda: refused(stream))
    assert wait_for(pid) == OK
    await talk(stream, peer)
    await stream.aclose()
    await peer.aclose()


async def refused(stream: trio_uring.SocketStream) -> None:
    for use in (
        lambda: stream.send_all(b"x"),
        lambda: stream.send_all([b"x", b"y"]),
        lambda: stream.send_all([bytearray(1), b"y"]),
        stream.receive_some,
        lambda: stream.receive_into(bytearray(9)),
        lambda: stream.receive_exactly(9),
        stream.wait_send_all_might_not_block,
    ):
        with pytest.raises(RuntimeError, match="forked"):
            await use()
    await stream.aclose()  # this process's descriptor, and nothing else


def wait_for(pid: int) -> int:
    """The exit code of a child, for which the thread waits."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -- a fork in one thread while another one's run ends


@in_child()
def test_a_fork_while_a_ring_is_being_closed() -> None:
    """Its memory is freed by then: a child that knew of it still would free it again."""
    codes: list[int] = []
    real = _ring.lib

    class Lib:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        @staticmethod
        def tu_close(c: Any) -> int:
            result = int(real.tu_close(c))
            pid = os.fork()
            if pid == 0:
                os._exit(OK if not open_rings() else FAILED)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            return result

    _ring.lib = Lib()
    for _ in range(10):
        assert _ring.UringRing().close()
    assert codes == [OK] * 10


@in_child()
def test_forks_while_runs_in_other_threads_begin_and_end() -> None:
    stop = threading.Event()

    async def main() -> None:
        assert driver() is not None

    def cycle() -> None:
        while not stop.is_set():
            trio.run(main)

    threads = [threading.Thread(target=cycle) for _ in range(3)]
    for thread in threads:
        thread.start()
    codes = []
    forks = examples(200)
    for _ in range(forks):
        pid = os.fork()
        if pid == 0:
            os._exit(OK)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    stop.set()
    for thread in threads:
        thread.join()
    assert codes == [OK] * forks
