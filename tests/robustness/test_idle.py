"""When a run is idle: a jumping clock and wait_all_tasks_blocked rely on what the wait returns.

Rules of this file: stock trio says what is right. A program records what happened and when (by its
mock clock), once over trio's own streams and once over the ring's; both must be the same.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest
import trio
import trio.testing
from support.child import EVERY_FLAGS, Passes, driver, in_child, pair, stream_pair, use_ring

import trio_uring

CUSHION = 1  # seconds

Pair = Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]]
Log = list[tuple[str, float]]


def stock_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    left, right = map(trio.socket.from_stdlib_socket, socket.socketpair())
    return trio.SocketStream(left), trio.SocketStream(right)


class Program:
    """Sleeps, sends, receives, times out and asks for idleness; in an order that only the mock
    clock decides."""

    def __init__(self, make_pair: Pair) -> None:
        self.make_pair = make_pair
        self.log: Log = []

    def note(self, what: str) -> None:
        self.log.append((what, trio.current_time()))

    async def main(self) -> Log:
        left, right = self.make_pair()
        quiet, others = self.make_pair()
        clogged, unread = self.make_pair()
        async with left, right, quiet, others, clogged, unread, trio.open_nursery() as nursery:
            nursery.start_soon(self.send, left)
            nursery.start_soon(self.receive, right)
            nursery.start_soon(self.time_out, quiet)
            nursery.start_soon(self.clog, clogged)
        return self.log

    async def send(self, stream: trio.abc.Stream) -> None:
        for number in range(5):
            await trio.sleep(10)
            self.note("sends")
            await stream.send_all(bytes([number]))
        await trio.sleep(100)
        await stream.aclose()

    async def receive(self, stream: trio.abc.Stream) -> None:
        while data := await stream.receive_some(100):
            self.note(f"received {data!r}")
            await trio.testing.wait_all_tasks_blocked(0.001)
            self.note("all were blocked")

    async def time_out(self, stream: trio.abc.Stream) -> None:
        for _ in range(7):
            with trio.move_on_after(7) as scope:
                await stream.receive_some(1)
            assert scope.cancelled_caught
            self.note("nothing came")

    async def clog(self, stream: trio.abc.Stream) -> None:
        with trio.move_on_after(33):
            await stream.send_all(bytes(2**22))
        self.note("clogged")


def run(make_pair: Pair, threshold: float) -> Log:
    return trio.run(
        Program(make_pair).main, clock=trio.testing.MockClock(autojump_threshold=threshold)
    )


@pytest.mark.long
@pytest.mark.parametrize("threshold", [0, 0.05])
@pytest.mark.parametrize("flags", EVERY_FLAGS)
@in_child()
def test_a_clock_that_jumps(flags: str, threshold: float) -> None:
    use_ring(flags=flags)
    stock = sorted(run(stock_pair, threshold))
    assert len(stock) == 5 * 3 + 7 + 1
    for _ in range(3):
        assert sorted(run(stream_pair, threshold)) == stock


@pytest.mark.parametrize("flags", EVERY_FLAGS)
@in_child()
def test_idleness_under_a_clock_that_stands_still(flags: str) -> None:
    """The cushion is real time: in a run with a ring and a task blocked in it, it passes as in any
    other."""
    use_ring(flags=flags)

    async def main() -> None:
        stream, peer = pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            for cushion in (0, 0.001, 0.1):
                await trio.testing.wait_all_tasks_blocked(cushion)
            nursery.cancel_scope.cancel()
        await stream.aclose()
        peer.close()

    trio.run(main, clock=trio.testing.MockClock())


@pytest.mark.parametrize("flags", EVERY_FLAGS)
@in_child()
def test_idleness_in_an_enabled_run_under_a_mock_clock(flags: str) -> None:
    use_ring(flags=flags)

    async def main() -> None:
        await trio.testing.wait_all_tasks_blocked(1)
        assert driver() is not None

    trio_uring.run(main, clock=trio.testing.MockClock())


@pytest.mark.parametrize("flags", EVERY_FLAGS)
@in_child()
async def test_what_comes_within_the_cushion_is_no_idleness(flags: str) -> None:
    use_ring(flags=flags)
    stream, peer = pair()
    got: list[bytes] = []
    gaps: list[float] = []  # seconds, at most

    def send(before: float) -> None:
        for _ in range(20):
            time.sleep(0.01)
            peer.send(b"x")
            now = time.monotonic()
            gaps.append(now - before)
            before = now

    async def receive() -> None:
        while True:
            got.append(await stream.receive_exactly(1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        while not gaps or max(gaps) > CUSHION / 2:  # the thread had no processor for so long
            got.clear()
            gaps.clear()
            thread = threading.Thread(target=send, args=(time.monotonic(),))
            thread.start()
            await trio.testing.wait_all_tasks_blocked(CUSHION)
            received = len(got)
            thread.join()
            while len(got) < 20:
                await trio.lowlevel.checkpoint()
        assert received == 20
        nursery.cancel_scope.cancel()
    await stream.aclose()
    peer.close()


@pytest.mark.parametrize("flags", EVERY_FLAGS)
@in_child()
async def test_an_idle_run_makes_no_pass(flags: str) -> None:
    """Nothing of ours is due at a certain time."""
    use_ring(flags=flags)
    stream, peer = pair()
    passes = Passes()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_some)
        await trio.testing.wait_all_tasks_blocked(0.01)
        trio.lowlevel.add_instrument(passes)
        await trio.sleep(0.5)
        trio.lowlevel.remove_instrument(passes)
        assert passes.count <= 3
        nursery.cancel_scope.cancel()
    await stream.aclose()
    peer.close()


@pytest.mark.parametrize("flags", EVERY_FLAGS)
@in_child()
async def test_a_cancel_that_wakes_nobody_is_no_event(flags: str) -> None:
    """What the kernel answers to it is; a pass or two later all is quiet, and told to be."""
    use_ring(flags=flags)
    for _ in range(50):
        stream, peer = pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await stream.aclose()
        peer.close()
        await trio.testing.wait_all_tasks_blocked(0.001)
