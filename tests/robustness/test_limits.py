"""Small limits: tiny queues, few or no buffers, more operations than fit, and promised numbers.

Rules of this file: a limit is made small rather than the load large, and the statistics must say
that it was really reached.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import select
import socket
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from support.child import BY_READINESS, FLAGS, BackendRing, driver, in_child, stream_pair, use_ring
from support.streams import unix_sockets

import trio_uring
from trio_uring._driver.operation import TaskOperation
from trio_uring._ring import setup as _setup
from trio_uring._ring.op import Opcode
from trio_uring._ring.opcodes import POLLIN


async def close_all(*streams: Any) -> None:
    for stream in streams:
        await stream.aclose()


async def receive_and_compare(stream: trio_uring.SocketStream, expected: bytes) -> None:
    assert await stream.receive_exactly(len(expected)) == expected


async def all_at_once(count: int, rounds: int) -> None:
    """`count` receives in one pass, then as many sends in one pass; in every round."""
    pairs = [stream_pair() for _ in range(count)]
    for number in range(rounds):
        message = number.to_bytes(8, "little")
        async with trio.open_nursery() as nursery:
            for _, right in pairs:
                nursery.start_soon(receive_and_compare, right, message)
            await trio.testing.wait_all_tasks_blocked()
            for left, _ in pairs:
                nursery.start_soon(left.send_all, message)
    for pair in pairs:
        await close_all(*pair)


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_more_operations_in_one_pass_than_the_queue_has_slots(flags: str) -> None:
    use_ring(flags=flags)
    await all_at_once(600, 3)
    statistics = trio_uring.current_statistics()
    if not BY_READINESS:  # which has no queue
        assert statistics.sq_entries == 256
        assert statistics.sq_full > 0
    assert statistics.operations["RECV"].submitted >= 600
    assert statistics.in_flight == statistics.queued == 0


async def all_wake_at_once(count: int) -> None:
    """`count` receives that wait for the kernel get their data without a pass in between."""
    pairs = [unix_sockets() for _ in range(count)]
    streams = [trio_uring.SocketStream(ours) for ours, _ in pairs]
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(receive_and_compare, stream, b"together")
        await trio.testing.wait_all_tasks_blocked()
        for _, theirs in pairs:
            theirs.send(b"together")
            theirs.close()
    await close_all(*streams)


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_tiny_queues_overflow_and_lose_nothing(flags: str) -> None:
    use_ring(flags=flags, sq_entries=16, cq_entries=16)
    await all_at_once(300, 10)
    statistics = trio_uring.current_statistics()
    assert statistics.bytes_received == statistics.bytes_sent == 300 * 10 * 8
    await all_wake_at_once(300)
    statistics = trio_uring.current_statistics()
    if not BY_READINESS:  # which has no queues
        assert statistics.sq_full > 0
        assert statistics.cq_entries == 16
        assert statistics.cq_overflows > 0
    assert statistics.bytes_received == 300 * 11 * 8


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_more_cancels_at_once_than_the_queue_has_slots(flags: str) -> None:
    use_ring(flags=flags, sq_entries=16, cq_entries=16)
    pairs = [stream_pair() for _ in range(300)]
    async with trio.open_nursery() as nursery:
        for left, right in pairs:
            nursery.start_soon(left.receive_some)
            nursery.start_soon(right.send_all, bytes(2**16))
        for left, _ in pairs:
            nursery.start_soon(left.send_all, bytes(2**22))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert trio_uring.current_statistics().queued == 0
    for pair in pairs:
        await close_all(*pair)
    assert trio_uring.current_statistics().in_flight == 0


@pytest.mark.parametrize("entries", [1, 2, 4, 8])
@in_child()
async def test_a_ring_smaller_than_its_reserve_is_refused_or_works(entries: int) -> None:
    """Some slots are for cancels only; a ring with no others must not be a driver that spins for
    ever."""
    try:
        BackendRing(sq_entries=entries).close()
    except ValueError:
        return
    use_ring(sq_entries=entries)
    await all_at_once(20, 2)


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_without_provided_buffers(flags: str) -> None:
    """As on kernels before 5.19: messages, bulk and a cancelled receive."""
    use_ring(flags=flags, provide_buffers=False)
    await all_at_once(50, 10)
    left, right = stream_pair()
    with trio.move_on_after(0) as scope:
        await right.receive_some()
    assert scope.cancelled_caught
    await transfer(left, right, 2**24)
    await close_all(left, right)


async def transfer(
    left: trio_uring.SocketStream, right: trio_uring.SocketStream, count: int
) -> None:
    data = os.urandom(2**20) * (count // 2**20)
    digest = hashlib.blake2b()

    async def receive() -> None:
        missing = count
        while missing:
            chunk = await right.receive_some(missing)
            assert chunk
            digest.update(chunk)
            missing -= len(chunk)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await left.send_all(data)
        assert left.bytes_sent == count
    assert digest.digest() == hashlib.blake2b(data).digest()


@pytest.mark.uring_only("epoll has one scratch buffer, and is never short of it")
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_hardly_any_buffers(flags: str) -> None:
    """Two small buffers for 64 connections: receives fail for want of one and are made again;
    everyone gets everything."""
    _setup.SMALL_COUNT = 2  # type: ignore[misc]
    _setup.LARGE_COUNT = 1  # type: ignore[misc]
    use_ring(flags=flags)
    pairs = [stream_pair() for _ in range(64)]
    for left, _ in pairs:
        await left.send_all(b"there before the receive")
    async with trio.open_nursery() as nursery:
        for _, right in pairs:
            nursery.start_soon(receive_and_compare, right, b"there before the receive")
    assert trio_uring.current_statistics().buffers_exhausted > 0
    async with trio.open_nursery() as nursery:
        for left, right in pairs[:8]:
            nursery.start_soon(transfer, left, right, 2**20)
    for pair in pairs:
        await close_all(*pair)


@pytest.mark.uring_only("epoll has one scratch buffer, and is never short of it")
@pytest.mark.parametrize("flags", ["defer", "coop"])
@in_child()
async def test_a_full_queue_gives_buffers_back_before_more_is_submitted(flags: str) -> None:
    """As many buffers as a full queue needs are enough, however many receives one pass makes."""
    _setup.SMALL_COUNT = 8  # type: ignore[misc]
    use_ring(flags=flags, sq_entries=8)
    pairs = [stream_pair() for _ in range(64)]
    for left, _ in pairs:
        await left.send_all(b"there before the receive")
    before = trio_uring.current_statistics().sq_full
    async with trio.open_nursery() as nursery:
        for _, right in pairs:
            nursery.start_soon(receive_and_compare, right, b"there before the receive")
    assert trio_uring.current_statistics().sq_full - before >= 64 // 8 - 1
    assert trio_uring.current_statistics().buffers_exhausted == 0
    for pair in pairs:
        await close_all(*pair)


class Chains:
    """Operations that are chained again and again, and how many steps they make while trio has
    something to do: no clock, but those of one turn of the ring."""

    LATE_MAX = 1000  # steps

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.engine = sock, driver()
        self.due = math.inf  # when trio has
        self.late = 0
        self.wakes: Callable[[], object] | None = None
        self.stopped = False

    def start(self, count: int) -> None:
        for _ in range(count):
            poll = TaskOperation(self.engine, Opcode.POLL_ADD, self.sock.fileno(), self.sock)
            poll.flags = POLLIN
            self.chain(poll)

    def chain(self, poll: TaskOperation) -> None:
        self.engine.chain(poll, functools.partial(self.go_on, poll))

    def go_on(self, poll: TaskOperation) -> None:
        poll.unwrap()
        self.late += trio.current_time() > self.due
        if self.wakes is not None:
            wakes, self.wakes, self.due = self.wakes, None, -math.inf
            wakes()
        if not self.stopped and self.late < self.LATE_MAX:  # or the whole run would hang
            self.chain(poll)

    def check(self) -> None:
        print(self.late)
        assert self.late < self.LATE_MAX
        self.due, self.late = math.inf, 0


@pytest.mark.uring_only("operations are chained in the ring")
@pytest.mark.parametrize("flags", ["defer", "coop"])
@in_child()
async def test_chains_that_keep_the_queue_full_keep_nobody_waiting(flags: str) -> None:
    """As with more relays at work than the queue has slots."""
    use_ring(flags=flags, sq_entries=8)
    ours, theirs = unix_sockets()
    theirs.send(b"always readable")
    chains = Chains(ours)
    chains.start(64)
    for _ in range(5):
        chains.due = trio.current_time() + 0.01
        await trio.sleep_until(chains.due)
        chains.check()
    token, woken = trio.lowlevel.current_trio_token(), trio.Event()
    chains.wakes = lambda: token.run_sync_soon(woken.set)  # as a thread does, in the midst of steps
    await woken.wait()
    chains.check()
    await trio.to_thread.run_sync(os.getpid)
    chains.stopped = True
    await trio.testing.wait_all_tasks_blocked()
    ours.close()
    theirs.close()


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_a_hundred_times_more_messages_than_buffers(flags: str) -> None:
    use_ring(flags=flags)
    pairs = [stream_pair() for _ in range(8)]
    messages = 60_000

    async def send(left: trio_uring.SocketStream) -> None:
        for number in range(messages // len(pairs)):
            await left.send_all(number.to_bytes(8, "little"))

    async def receive(right: trio_uring.SocketStream) -> None:
        for number in range(messages // len(pairs)):
            assert await right.receive_exactly(8) == number.to_bytes(8, "little")

    async with trio.open_nursery() as nursery:
        for left, right in pairs:
            nursery.start_soon(send, left)
            nursery.start_soon(receive, right)
    statistics = trio_uring.current_statistics()
    assert messages > 100 * _setup.SMALL_COUNT
    assert statistics.operations["SEND"].completed >= messages
    for pair in pairs:
        await close_all(*pair)


@pytest.mark.parametrize("many", [False, True])
@in_child()
async def test_a_send_of_64_mib_is_whole(many: bool) -> None:
    left, right = stream_pair()
    block = os.urandom(2**20)
    digest, count = hashlib.blake2b(), 0

    async def receive() -> None:
        nonlocal count
        async for chunk in right:
            digest.update(chunk)
            count += len(chunk)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await left.send_all([block] * 64 if many else block * 64)
        assert left.bytes_sent == 64 * 2**20
        await left.send_eof()
    assert count == 64 * 2**20
    assert digest.digest() == hashlib.blake2b(block * 64).digest()
    assert trio_uring.current_statistics().short_writes > 0
    await close_all(left, right)


@in_child()
async def test_two_sends_on_one_stream_are_refused_and_corrupt_nothing() -> None:
    left, right = stream_pair()
    data = os.urandom(2**22)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.send_all, data)
        await trio.testing.wait_all_tasks_blocked()
        for second in (b"second", [b"sec", b"ond"], b""):
            with pytest.raises(trio.BusyResourceError):
                await left.send_all(second)
        with pytest.raises(trio.BusyResourceError):
            await left.send_eof()
        assert await right.receive_exactly(len(data)) == data
    await left.send_all(b"third")
    assert await right.receive_exactly(5) == b"third"
    await close_all(left, right)


@in_child()
async def test_two_receives_on_one_stream_are_refused_and_lose_nothing() -> None:
    left, right = stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_and_compare, right, b"first")
        await trio.testing.wait_all_tasks_blocked()
        for second in (
            right.receive_some,
            lambda: right.receive_into(bytearray(9)),
            lambda: right.receive_exactly(9),
        ):
            with pytest.raises(trio.BusyResourceError):
                await second()
        await left.send_all(b"first")
    await close_all(left, right)


class Compared(TaskOperation):
    """An operation that counts how often it is compared with another: what a search in a list does,
    and a dict does not."""

    __slots__ = ()
    count = 0

    def __eq__(self, other: object) -> bool:
        Compared.count += 1
        return self is other

    __hash__ = TaskOperation.__hash__


@pytest.mark.uring_only("by readiness, nothing is queued")
@pytest.mark.parametrize("count", [2000, 8000])
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_withdrawing_many_operations_in_one_pass_is_linear(flags: str, count: int) -> None:
    """They are cancelled before the ring has seen any of them."""
    use_ring(flags=flags)
    stream, peer = stream_pair()
    await stream.send_all(b"the driver is there")
    withdrawn = 0

    async def one(scope: trio.CancelScope) -> None:
        nonlocal withdrawn
        op = Compared(driver(), Opcode.POLL_ADD, peer.socket.fileno(), peer)
        op.flags = select.POLLPRI
        if len(driver().queue) == count:  # all others have queued theirs, in this pass
            before = trio_uring.current_statistics().operations
            scope.cancel()
            withdrawn = count - len(driver().queue)
            assert trio_uring.current_statistics().operations == before
        await driver().perform(op)

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            for _ in range(count + 1):
                nursery.start_soon(one, scope)
    assert withdrawn == count
    assert Compared.count <= count
    await close_all(stream, peer)


@pytest.mark.uring_only("by readiness, nothing is in the kernel")
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_cancelling_many_operations_in_one_pass_is_linear(flags: str) -> None:
    """8,000 in the kernel: each is asked once, and answered once."""
    use_ring(flags=flags)
    count = 8000
    stream, peer = stream_pair()
    await stream.send_all(b"the driver is there")

    async def one() -> None:
        op = TaskOperation(driver(), Opcode.POLL_ADD, peer.socket.fileno(), peer)
        op.flags = select.POLLPRI
        await driver().perform(op)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        assert trio_uring.current_statistics().in_flight == count
        before = trio_uring.current_statistics().enters
        nursery.cancel_scope.cancel()
    statistics = trio_uring.current_statistics()
    assert statistics.in_flight == 0
    assert statistics.operations["POLL_ADD"].cancelled == count
    print(statistics.enters - before)
    # With DEFER_TASKRUN an enter that does not wait for many takes 20 completions at a time, since
    # Linux 6.13.
    assert statistics.enters - before < count / 16
    await close_all(stream, peer)
