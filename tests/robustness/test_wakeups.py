"""No wake-up is lost: data from another process, 100,000 messages there and back, on every set of setup flags.

Rules of this file: the data comes from a process that shares nothing with ours (a test in one thread cannot see a lost
wake-up). The watchdog is set to an hour, because its tick is itself a wake-up and would cover a loss: here a loss is a hang,
and the child's. That the watchdog finds a loss, and counts it, is a test of its own.
"""

from __future__ import annotations

import os
import select
import socket
import time
from typing import Any

import pytest
import trio

import trio_uring
from trio_uring._deterministic import seeded_scheduler

from .child import FLAGS, BackendRing, driver, expect_log, in_child, no_watchdog, set_watchdog, stream_pair, use_ring
from .peer import echo_peer

MESSAGES = 100_000


async def ping_pong(sock: socket.socket, messages: int) -> None:
    async with trio_uring.SocketStream(sock) as stream:
        for number in range(messages):
            message = number.to_bytes(8, "little")
            await stream.send_all(message)
            assert await stream.receive_exactly(8) == message


@pytest.mark.parametrize("connections", [1, 16])
@pytest.mark.parametrize("flags", FLAGS)
@in_child(hang_seconds=58)
async def test_a_hundred_thousand_ping_pongs(flags: str, connections: int) -> None:
    use_ring(flags=flags)
    no_watchdog()
    with echo_peer(connections) as socks:
        async with trio.open_nursery() as nursery:
            for sock in socks:
                nursery.start_soon(ping_pong, sock, MESSAGES // connections)
    statistics = trio_uring.current_statistics()
    assert statistics.bytes_received == statistics.bytes_sent == 8 * MESSAGES
    assert statistics.rescued == 0
    assert statistics.in_flight == 0
    assert ("DEFER_TASKRUN" in statistics.setup_flags) == (flags == "defer")


class DeafRing(BackendRing):
    """Its descriptor never becomes readable: what a lost wake-up looks like."""

    def fileno(self) -> int:
        if not hasattr(self, "deaf"):
            self.deaf = os.eventfd(0)
        return self.deaf


@in_child()
def test_the_watchdog_finds_and_counts_lost_wakeups() -> None:
    use_ring(DeafRing)
    set_watchdog(0.01)

    async def main() -> int:
        with echo_peer(8) as socks:  # more than are tried without the ring
            async with trio.open_nursery() as nursery:
                for sock in socks:
                    nursery.start_soon(ping_pong, sock, 20)
        os.close(driver().ring.deaf)
        return trio_uring.current_statistics().rescued

    rescued = trio.run(main)
    assert rescued > 0
    assert expect_log("watchdog found completions") >= rescued


@in_child()
def test_what_an_eager_operation_reaps_after_a_long_wait_is_not_taken_for_lost() -> None:
    """A task blocks the thread; then, in one pass: data comes, the watchdog looks, an eager send reaps. Found by seeds."""
    set_watchdog(0.05)

    async def later(deadline: float, send: Any) -> None:
        await trio.sleep_until(deadline)
        await send(b"x")

    async def main() -> int:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        reading = trio_uring.SocketStream(ours)
        sending, drain = stream_pair()

        async def send_plainly(data: bytes) -> None:
            theirs.send(data)

        async def read(stream: trio_uring.SocketStream) -> None:
            async for _ in stream:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, reading)
            for _ in range(12):
                async with trio.open_nursery() as turn:
                    deadline = trio.current_time() + 0.01
                    turn.start_soon(later, deadline, send_plainly)
                    turn.start_soon(later, deadline, sending.send_all)
                    await trio.lowlevel.checkpoint()
                    time.sleep(0.06)  # noqa: ASYNC251  # a task that computes for longer than the watchdog's interval
                await drain.receive_some()
            nursery.cancel_scope.cancel()
        for stream in (reading, sending, drain):
            await stream.aclose()
        theirs.close()
        return trio_uring.current_statistics().rescued

    rescued = []
    for seed in range(6):
        with seeded_scheduler(seed):
            rescued.append(trio.run(main))
    assert rescued == [0] * 6


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("what", ["removed", "disarmed", "disarmed by a task"])
@in_child(hang_seconds=20)
async def test_what_trio_does_late_to_a_number_that_is_ours_now_is_found_and_put_right(flags: str, what: str) -> None:
    use_ring(flags=flags)
    set_watchdog(0.02)
    registration = driver()._registration
    if what == "removed":
        trio.lowlevel.notify_closing(registration._number)
    elif what == "disarmed":  # as by the end of a wait for a descriptor that is closed already
        registration._epoll.modify(registration._number, select.EPOLLONESHOT)
    else:
        with trio.move_on_after(0):
            await trio.lowlevel.wait_writable(registration._number)
    with echo_peer(8) as socks:  # more than are tried without the ring
        async with trio.open_nursery() as nursery:
            for sock in socks:
                nursery.start_soon(ping_pong, sock, 100)
    assert trio_uring.current_statistics().rescued == 1
    expect_log("watchdog found completions")


class SendAfterALongWait(trio.abc.Instrument):
    """Data arrives when trio's wait is over, and before the driver's hooks run: it was too late to wake anyone."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.blocked = False

    def before_io_wait(self, timeout: float) -> None:
        self.blocked = timeout > 1 and trio_uring.current_statistics().in_flight == 1

    def after_io_wait(self, timeout: float) -> None:
        if self.blocked and self.peer.fileno() >= 0:
            self.peer.send(b"x")
            self.peer.close()


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_what_arrives_when_the_watchdog_wakes_is_not_taken_for_lost(flags: str) -> None:
    use_ring(flags=flags)
    set_watchdog(0.05)
    ours, theirs = socket.socketpair()
    trio.lowlevel.add_instrument(SendAfterALongWait(theirs))
    stream = trio_uring.SocketStream(ours)
    assert await stream.receive_some() == b"x"
    for _ in range(5):
        await trio.lowlevel.checkpoint()
    assert trio_uring.current_statistics().rescued == 0
    await stream.aclose()
