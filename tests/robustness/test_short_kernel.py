"""A kernel interrupted, busy or short of memory during a run: nothing is lost, spins or hangs.

Rules of this file: such answers of io_uring_enter are injected at the seam to C; everything else is
the kernel's. Spinning is found by counting: the enters for a number of messages, and the passes
while a thread of another kind waits.
"""

from __future__ import annotations

import errno
import random
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from support.child import FLAGS, Passes, driver, in_child, pair, stream_pair, use_ring
from support.enters import PASSING, Seam
from support.peer import echo_peer

import trio_uring

pytestmark = pytest.mark.uring_only("it is about what io_uring_enter answers")

SHORTAGES = ["EAGAIN", "EBUSY", "ENOMEM"]


class Enters(Seam):
    """Stands in for io_uring_enter: `answer` may give a code in its place; None: the kernel is
    entered."""

    def __init__(self, answer: Callable[[], str | None]) -> None:
        self.answer = answer
        self.count = self.refused = 0
        super().__init__()

    def refusal(self) -> int:
        self.count += 1
        code = self.answer()
        self.refused += code is not None
        return -getattr(errno, code) if code else 0

    def enter(self, *arguments: Any) -> int:
        return self.refusal() or super().enter(*arguments)

    def turn(self, c: Any, least: int, flags: int, seconds: float, out: Any, most: int) -> int:
        code = self.refusal()
        if not code:
            return super().turn(c, least, flags, seconds, out, most)
        out[1] = code
        return self.drain(c, out, most)


async def echoed(stream: trio_uring.SocketStream, messages: int) -> None:
    async with stream:
        for number in range(messages):
            await stream.send_all([number.to_bytes(8, "little"), bytes(100)])
            assert await stream.receive_exactly(108) == number.to_bytes(8, "little") + bytes(100)


@pytest.mark.parametrize("code", PASSING)
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_now_and_then(flags: str, code: str) -> None:
    use_ring(flags=flags)
    chance = random.Random(code)
    enters = Enters(lambda: code if chance.random() < 0.2 else None)
    with echo_peer(4) as socks:
        async with trio.open_nursery() as nursery:
            for sock in socks:
                nursery.start_soon(echoed, trio_uring.SocketStream(sock), 300)
    statistics = trio_uring.current_statistics()
    assert (statistics.in_flight, statistics.queued) == (0, 0)
    print(enters.count, enters.refused)
    assert enters.refused > 50
    assert enters.count < 4 * 4 * 300


async def pass_some_time() -> tuple[int, float]:
    """How many passes there are while a thread waits for a fifth of a second and nothing else
    happens, and how many there may be: it may take longer."""
    passes = Passes()
    trio.lowlevel.add_instrument(passes)
    began = time.monotonic()
    await trio.to_thread.run_sync(select.select, [], [], [], 0.2)
    most = PASSES_MAX * (time.monotonic() - began)
    trio.lowlevel.remove_instrument(passes)
    return passes.count, most


PASSES_MAX = 1500  # in a second; each takes a millisecond, and who spins makes many thousands


@pytest.mark.parametrize("count", [1, 600])
@pytest.mark.parametrize("code", SHORTAGES)
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_for_a_while(flags: str, code: str, count: int) -> None:
    """With little that waits for it, and with more than the queue has slots. The rest of trio goes
    on meanwhile."""
    use_ring(flags=flags)
    short = False
    enters = Enters(lambda: code if short else None)
    pairs = [stream_pair() for _ in range(count)]
    async with trio.open_nursery() as nursery:
        await trio.testing.wait_all_tasks_blocked()
        short = True
        for left, _ in pairs:
            nursery.start_soon(expect, left, b"afterwards")
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        before = enters.count
        passes, most = await pass_some_time()
        print(passes, enters.count - before)
        assert passes < most
        assert enters.count - before < 5 * most
        short = False
        for _, right in pairs:
            nursery.start_soon(right.send_all, b"afterwards")
    for streams in pairs:
        for stream in streams:
            await stream.aclose()


async def expect(stream: trio_uring.SocketStream, data: bytes) -> None:
    assert await stream.receive_exactly(len(data)) == data


@pytest.mark.parametrize("code", SHORTAGES)
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_in_the_middle_of_a_copy(flags: str, code: str) -> None:
    """Whose steps no task wakes for."""
    use_ring(flags=flags)
    short = False
    Enters(lambda: code if short else None)
    left, source = stream_pair()
    sink, right = stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio_uring.copy_stream, source, sink)
        for number in range(5):
            async with trio.open_nursery() as turn:
                turn.start_soon(expect, right, bytes([number]) * 100_000)
                turn.start_soon(left.send_all, bytes([number]) * 100_000)
                for _ in range(number):
                    await trio.lowlevel.checkpoint()
                short = True
                passes, most = await pass_some_time()
                print(passes)
                assert passes < most
                short = False
        await left.send_eof()
    for stream in (left, source, sink, right):
        await stream.aclose()


@pytest.mark.parametrize("code", SHORTAGES)
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_a_close_while_the_kernel_is_short(flags: str, code: str) -> None:
    """The entry with the number of what is closed has not gone yet: it is closed when it has, and
    wakes its task then."""
    use_ring(flags=flags)
    short = False
    Enters(lambda: code if short else None)
    stream, peer = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed, stream)
        await trio.testing.wait_all_tasks_blocked()
        short = True
        await stream.aclose()
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        short = False
    peer.setblocking(True)
    assert peer.recv(1) == b""
    peer.close()


@in_child()
async def test_what_names_a_descriptor_is_in_the_kernel_before_it_is_closed() -> None:
    """Also when one enter takes a part of what is written: the entries that are left may name
    it."""
    stream, peer = pair()
    await stream.send_all(b"x")
    ours, ready, closed = driver(), True, []
    ours.ring.ready = lambda: ready  # type: ignore[method-assign]
    ours.closing.append(lambda: closed.append(1))
    ours.wrote()
    assert (closed, ours.dirty) == ([], True)
    ready = False
    ours.wrote()
    assert (closed, ours.dirty) == ([1], False)
    del ours.ring.ready
    await stream.aclose()
    peer.close()


async def expect_closed(stream: trio_uring.SocketStream) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()


@pytest.mark.parametrize("code", SHORTAGES)
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_idle_is_not_told_while_entries_wait(flags: str, code: str) -> None:
    """wait_all_tasks_blocked returns when nothing can happen; what is about to be submitted can."""
    use_ring(flags=flags)
    stream, peer = pair()
    left = 30
    got: list[bytes] = []

    def answer() -> str | None:
        nonlocal left
        left -= 1
        return code if left >= 0 else None

    async def receive() -> None:
        got.append(await stream.receive_some())

    peer.send(b"there")
    async with trio.open_nursery() as nursery:
        Enters(answer)
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        assert got == [b"there"]
    await stream.aclose()
    peer.close()


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_a_cancel_that_enters_together_with_its_target(flags: str) -> None:
    """In the same pass, or within the next, whatever the kernel makes of it: thousands, of which
    none is lost."""
    use_ring(flags=flags)
    streams, peers = [], []
    for _ in range(200):
        ours, theirs = socket.socketpair()
        streams.append(trio_uring.SocketStream(ours))
        peers.append(theirs)
    chance = random.Random(1)
    cancelled = done = 0

    async def receive(stream: trio_uring.SocketStream, peer: socket.socket) -> None:
        nonlocal cancelled, done
        for _ in range(20):
            with trio.CancelScope() as scope:
                sends = chance.random() < 0.3
                nursery.start_soon(cancel_soon, scope, peer if sends else None)
                await stream.receive_some()
            cancelled += scope.cancelled_caught
            if scope.cancelled_caught and sends:
                await stream.receive_some()
            done += 1

    async def cancel_soon(scope: trio.CancelScope, peer: socket.socket | None) -> None:
        for _ in range(chance.randrange(3)):
            await trio.lowlevel.checkpoint()
        if peer is not None:
            peer.send(b"x")
        scope.cancel()

    async with trio.open_nursery() as nursery:
        for stream, peer in zip(streams, peers):
            nursery.start_soon(receive, stream, peer)
    print(cancelled, done)
    assert done == 200 * 20
    assert cancelled > 1000
    for stream, peer in zip(streams, peers):
        await stream.aclose()
        peer.close()
