"""Streams and sockets that a garbage collection closes, in the middle of trio or of the driver.

Rules of this file: each collection comes at a point that is known, from a hook in front of what is
there, or after every few allocations. The collector is off otherwise. What closes is a finalizer of
a cycle. A number that becomes free is taken by a stranger at once, whom nobody may read.
"""

from __future__ import annotations

import contextlib
import gc
import random
import socket
import weakref
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing
from support.child import FLAGS, driver, in_child, use_ring
from support.enters import Seam
from support.long_cases import examples
from support.streams import passes

import trio_uring
from trio_uring import _accelerator
from trio_uring._driver import engine as _engine
from trio_uring._driver.operation import TaskOperation

pytestmark = pytest.mark.uring_only("about the kernel's ring")


class Cyclic:
    """An object that only the garbage collector frees."""

    def __init__(self) -> None:
        self.itself = self


class Garbage:
    """Collected when `collect` is called; then its finalizer closes a socket.

    As soon as the socket's number is free, a stranger has it, with something to read.
    """

    def __init__(self, sock: Any) -> None:
        self.number = sock.fileno()
        self.collected = False
        self.strangers: list[socket.socket] = []
        self._real_close = sock.lease._close
        sock.lease._close = self._close
        weakref.finalize(Cyclic(), self._finalize, sock)

    def collect(self) -> None:
        if not self.collected:
            gc.collect()
            assert self.collected

    def _finalize(self, sock: Any) -> None:
        self.collected = True
        sock.close()

    def _close(self) -> None:
        self._real_close()
        while self.number not in [sock.fileno() for sock in self.strangers]:
            for sock in socket.socketpair():
                sock.send(b"x")
                self.strangers.append(sock)

    def check(self) -> None:
        """The socket was closed, and nobody has read the strangers'."""
        assert self.strangers
        for sock in self.strangers:
            assert sock.recv(10, socket.MSG_DONTWAIT) == b"x"
        for sock in self.strangers:
            sock.close()


class Collector(Seam):
    """Calls a function in front of what enters or drains the ring."""

    def __init__(self, before: dict[str, Callable[[], object]]) -> None:
        super().__init__()
        self.before = before
        self.armed = False

    def _call(self, name: str) -> None:
        if self.armed and name in self.before:
            self.before[name]()

    def enter(self, *arguments: Any) -> int:
        self._call("enter")
        return super().enter(*arguments)

    def turn(self, *arguments: Any) -> int:
        self._call("turn")
        return super().turn(*arguments)


def sockets() -> tuple[Any, Any]:
    ours, theirs = socket.socketpair()
    return trio_uring.UringSocket(ours), theirs


async def expect_closed(receive: Callable[[], Any]) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await receive()


@contextlib.contextmanager
def hooked(owner: Any, name: str, hook: Callable[[], object]) -> Iterator[None]:
    """Calls `hook` before each call of a function."""
    real = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        hook()
        return real(*arguments)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, real)


async def check_end(peer: socket.socket) -> None:
    """The peer sees the end at once."""
    await passes(3)
    assert peer.recv(10, socket.MSG_DONTWAIT) == b""
    peer.close()


@pytest.mark.parametrize("moment", ["queued", "in the kernel"])
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_while_trio_delivers_a_cancel(flags: str, moment: str) -> None:
    """trio is about to wake the task; closing does not."""
    use_ring(flags=flags)
    gc.disable()
    sock, peer = sockets()
    stream = trio_uring.SocketStream(sock)
    garbage, scope, armed = Garbage(sock), trio.CancelScope(), False

    async def receive() -> None:
        with scope, contextlib.suppress(trio.ClosedResourceError):
            while await stream.receive_some():
                pass

    def collect() -> None:
        if armed:
            garbage.collect()

    with hooked(TaskOperation, "abort", collect):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            while moment == "queued" and not driver().queue:  # trio decides who runs first
                peer.send(b"x")
                await trio.lowlevel.checkpoint()
            armed = True
            scope.cancel()
            assert garbage.collected
    garbage.check()
    await check_end(peer)


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_while_the_queue_is_written(flags: str, which: int) -> None:
    """What is closed has its operation written before, now or after."""
    use_ring(flags=flags)
    gc.disable()
    socks, peers = zip(*(sockets() for _ in range(3)), strict=True)
    streams = [trio_uring.SocketStream(sock) for sock in socks]
    await streams[0].send_all(b"x")
    engine, garbage = driver(), Garbage(socks[which])
    made: list[int] = []

    def collect() -> None:
        made.append(1)
        if len(made) == 2:
            garbage.collect()

    # Each stream's first receive makes its entry when it is written.
    with hooked(engine.ring, "_make_entry", collect):
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(expect_closed, stream.receive_some)
            await passes(4)
            for sock in socks:
                sock.close()
    assert len(made) >= 2
    garbage.check()
    assert peers[0].recv(1) == b"x"
    for peer in peers:
        await check_end(peer)


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_between_a_call_s_check_and_its_operation(flags: str) -> None:
    use_ring(flags=flags)
    gc.disable()
    sock, peer = sockets()
    stream = trio_uring.SocketStream(sock)
    await stream.send_all(array("B", b"x"))
    garbage = Garbage(sock)
    with hooked(_engine, "current_task", garbage.collect):
        # Of an array, it is Python's in any case.
        await expect_closed(lambda: stream.send_all(array("B", b"y")))
    garbage.check()
    assert peer.recv(1) == b"x"
    await check_end(peer)


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_in_front_of_the_wait(flags: str) -> None:
    """The wait ends at once, and wakes who waited for what was closed."""
    sock, peer = sockets()
    garbage = Garbage(sock)
    collector = Collector({"turn": garbage.collect, "enter": garbage.collect})
    use_ring(flags=flags)
    gc.disable()
    stream = trio_uring.SocketStream(sock)
    other, theirs = sockets()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed, stream.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        theirs.send(b"x")
        collector.armed = True
        await trio_uring.SocketStream(other).receive_some()
        assert garbage.collected
    garbage.check()
    await check_end(peer)
    other.close()
    theirs.close()


@pytest.mark.skipif(_accelerator.hot is not None, reason="Python's own way to take completions")
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_between_the_drain_and_its_completions(flags: str) -> None:
    """What C has copied for Python is not overwritten."""
    use_ring(flags=flags)
    gc.disable()
    sock, peer = sockets()
    stream = trio_uring.SocketStream(sock)
    other, theirs = sockets()
    garbage, got = Garbage(sock), []

    class View:
        def __getitem__(self, key: Any) -> Any:
            if isinstance(key, slice):
                garbage.collect()
            return view[key]

        def release(self) -> None:
            view.release()

    async def receive() -> None:
        got.append(await trio_uring.SocketStream(other).receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed, stream.receive_some)
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        view, driver().ring._view = driver().ring._view, View()
        theirs.send(b"ours")
    assert got == [b"ours"]
    garbage.check()
    await check_end(peer)
    other.close()
    theirs.close()


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_at_every_allocation(flags: str) -> None:
    """Almost: every few. Sockets in use are closed wherever that is; the others go on."""
    for seed in range(examples(10)):
        print("seed", seed, flush=True)
        use_ring(flags=flags)
        trio.run(load, random.Random(seed))


USES: list[Callable[[Any], Any]] = [
    lambda stream: stream.receive_some(),
    lambda stream: stream.receive_some(timeout=20),
    lambda stream: stream.receive_into(bytearray(10)),
    lambda stream: stream.send_all(bytes(2**22)),
]


async def use(stream: Any, call: Callable[[Any], Any]) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await call(stream)


async def load(rnd: random.Random) -> None:
    gc.disable()
    live = [sockets() for _ in range(4)]
    moved = [0] * len(live)

    async def echo(index: int) -> None:
        stream, peer = trio_uring.SocketStream(live[index][0]), live[index][1]
        for number in range(30):
            with trio.move_on_after(rnd.choice((0, 0.001, 1))) as scope:
                await stream.receive_some()
            if not scope.cancelled_caught:
                moved[index] += 1
            peer.send(bytes([number]))
        await stream.aclose()
        peer.close()

    async def doom() -> None:
        for _ in range(15):
            sock, peer = sockets()
            stream = trio_uring.SocketStream(sock)
            cancelled = rnd.random() < 0.3
            async with trio.open_nursery() as nursery:
                nursery.start_soon(use, stream, rnd.choice(USES))
                await passes(rnd.randrange(4))
                weakref.finalize(Cyclic(), sock.close)
                await passes(rnd.randrange(4))
                if cancelled:
                    nursery.cancel_scope.cancel()
                gc.collect()  # it may have become old while it was made
            await passes(3)
            while peer.recv(2**22, socket.MSG_DONTWAIT):  # an error, if the end is not there
                pass
            peer.close()

    gc.enable()
    before = gc.get_threshold()
    gc.set_threshold(rnd.choice((1, 10, 30, 100)), 1, 1)
    try:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for index in range(len(live)):
                    nursery.start_soon(echo, index)
                for _ in range(3):
                    nursery.start_soon(doom)
    finally:
        gc.set_threshold(*before)
    assert all(moved)
