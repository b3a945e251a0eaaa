"""Streams and sockets that a garbage collection closes, in the middle of trio or of the driver.

Rules of this file: each collection comes at a point that is known, from a hook in front of what is
there, or after every few allocations. The collector is off otherwise. What closes is a finalizer of
a cycle (support/collected.py).
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import socket
import warnings
import weakref
from array import array
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from support.child import FLAGS, driver, expect_log, in_child, use_ring
from support.collected import Collector, Cyclic, Garbage, hooked
from support.long_cases import examples
from support.streams import passes

import trio_uring
from trio_uring import _accelerator
from trio_uring._driver import engine as _engine
from trio_uring._driver.operation import TaskOperation
from trio_uring._driver.phases import ENDING

pytestmark = pytest.mark.uring_only("about the kernel's ring")


def sockets() -> tuple[Any, Any]:
    ours, theirs = socket.socketpair()
    return trio_uring.UringSocket(ours), theirs


async def expect_closed(receive: Callable[[], Any]) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await receive()


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


@pytest.mark.parametrize("moment", ["in the pass that fails", "when nothing was entered yet"])
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_a_driver_that_fails(flags: str, moment: str) -> None:
    """What was about to be closed is closed all the same, and its task is told in a pass."""
    use_ring(flags=flags)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the ring is leaked
        trio.run(fail_after_collection, moment.startswith("in"))
    expect_log("driver has failed")
    expect_log("could not empty its ring")
    os._exit(0)


async def fail_after_collection(in_pass: bool) -> None:
    gc.disable()
    sock, peer = sockets()
    garbage, told = Garbage(sock), []
    stream = trio_uring.SocketStream(sock)
    collector = Collector({"turn": garbage.collect, "enter": garbage.collect} if in_pass else {})

    async def receive() -> None:
        try:
            await stream.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            told.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        collector.armed = collector.fatal = True
        if in_pass:
            other, theirs = sockets()
            with pytest.raises(trio.BrokenResourceError):
                await trio_uring.SocketStream(other).receive_some()
            other.close()
            theirs.close()
        else:
            woken = Woken()
            trio.lowlevel.add_instrument(woken)
            garbage.collect()
            trio.lowlevel.remove_instrument(woken)
            assert not woken.tasks
    assert told
    garbage.check()
    await check_end(peer)


class Woken(trio.abc.Instrument):
    """Lists the tasks that are put into trio's queue."""

    def __init__(self) -> None:
        self.tasks: list[trio.lowlevel.Task] = []

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self.tasks.append(task)


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_at_the_end_of_the_run(flags: str) -> None:
    """While the ring is being emptied."""
    use_ring(flags=flags)
    gc.disable()
    sock, peer = socket.socketpair()

    async def main() -> None:
        ours = trio_uring.UringSocket(sock)
        peer.send(b"x")
        await trio_uring.SocketStream(ours).receive_some()
        engine, collected = driver(), []
        flush = engine.ring.flush

        def collect() -> bool:
            if engine.phase is ENDING and not collected:
                gc.collect()
                assert collected
            return bool(flush())

        def close() -> None:
            collected.append(True)
            ours.lease.close()

        engine.ring.flush = collect
        weakref.finalize(Cyclic(), close)

    trio.run(main)
    assert peer.recv(10, socket.MSG_DONTWAIT) == b""
    peer.close()


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


@pytest.mark.long
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
