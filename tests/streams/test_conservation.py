"""A long run of cancels on both sides at once: what goes in comes out, by count and by checksum.

Rules: both ends are on the ring, and both are cancelled again and again at random, often just as
bytes come from outside the ring (a cancel that is submitted together with the data would always
win). A seed decides, and is printed: TRIO_URING_SEED=<n> repeats a run. The run ends when it has
seen enough cancels, never by the clock. It fails if the cancels did not reach the kernel or never
lost to data, because then it would have shown nothing.

With DEFER_TASKRUN no cancel loses in the kernel: data completes an operation only when the ring is
entered, and that same call submits the cancel first. So there is a run on a ring without it, where
the data can be there before the cancel.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
from typing import TYPE_CHECKING

import pytest
import trio
from support.long_cases import examples
from support.streams import (
    LADDER,
    TINY,
    closing,
    on_ring,
    operations_on,
    passes,
    tcp_sockets,
    unix_sockets,
)

import trio_uring
from trio_uring._driver.run import install
from trio_uring._ring.uring import UringRing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from socket import socket

    Step = Callable[[trio.CancelScope], Awaitable[None]]

SEED = int(os.environ.get("TRIO_URING_SEED", "20261123"))
# Of each side, at least; TCP buffers more, and so blocks less often.
UNIX_CANCELS, TCP_CANCELS = (examples(9000), examples(1500))
PAIRS = 6  # at once: with few operations in a pass each goes to the kernel alone
BLOCK = random.Random(0).randbytes(1 << 20)
uring_only = pytest.mark.uring_only("without a ring there is one way")


class Side:
    """One end: it works until both ends have been cancelled often enough, and keeps the sum of its
    bytes."""

    other: Side
    # whether receive_exactly is among the receives; then only the stream knows which bytes come
    # next
    exactly = False

    def __init__(self, sock: socket, seed: str) -> None:
        self.sock = sock
        self.stream = trio_uring.SocketStream(sock)
        self.idle = True
        self.random = random.Random(seed)
        self.digest = hashlib.blake2b()
        self.count = 0
        self.cancels = 0
        self.in_time = 0  # cancels that came while the call waited, in the kernel or for readiness
        self.wins = 0  # calls that returned a result although they had been cancelled

    def add(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self.count += len(data)

    async def send_some(self, scope: trio.CancelScope) -> None:
        start, size = self.random.randrange(1 << 19), self.random.choice((1, 700, 5000, 40_000))
        data = memoryview(BLOCK)[start : start + size]
        middle = self.random.randrange(size + 1)
        try:
            with scope:
                await self.stream.send_all(data if middle % 2 else [data[:middle], data[middle:]])
        finally:
            self.add(data[: self.stream.bytes_sent])

    async def receive_some(self, scope: trio.CancelScope) -> None:
        got, how = b"", self.random.randrange(4)
        with scope:
            if how == 0:
                buffer = bytearray(self.random.choice((10, 5000)))
                got = bytes(buffer[: await self.stream.receive_into(buffer)])
            elif how == 1 and self.exactly:
                got = await self.stream.receive_exactly(self.random.choice((3, 3000)))
            else:
                got = await self.stream.receive_some(self.random.choice((None, 100, 65536)))
        self.add(got)

    async def work(self, step: Step) -> None:
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            if self.random.random() < 0.9:
                nursery.start_soon(self.cancel_after, self.random.randrange(5), scope)
            self.idle = False
            try:
                await step(scope)
            finally:
                self.idle = True
            nursery.cancel_scope.cancel()
        self.cancels += scope.cancelled_caught
        self.wins += scope.cancel_called and not scope.cancelled_caught

    async def cancel_after(self, count: int, scope: trio.CancelScope) -> None:
        """Half of the cancels come right after the kernel has bytes for this side, which the ring
        has not yet reported."""
        await passes(count)
        if self.other.idle and self.random.random() < 0.5:
            with contextlib.suppress(BlockingIOError):
                self.other.move_past_the_ring()
        self.in_time += any(
            op.state in ("SUBMITTED", "WAITING") for op in operations_on(self.sock.fileno())
        )
        scope.cancel()

    def move_past_the_ring(self) -> None:
        raise NotImplementedError


class Sender(Side):
    def move_past_the_ring(self) -> None:
        self.add(BLOCK[: self.sock.send(BLOCK[:500])])


class Receiver(Side):
    def move_past_the_ring(self) -> None:
        if not self.exactly:
            self.add(self.sock.recv(9000))


async def finish(sender: Side, receiver: Side) -> None:
    """The last of it, without cancels: a send to its end, then everything to the end of the
    stream."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_sending, sender)
        async for chunk in receiver.stream:
            receiver.add(chunk)


async def end_sending(sender: Side) -> None:
    await sender.stream.send_all(BLOCK)
    sender.add(BLOCK)
    await sender.stream.send_eof()


def tcp_with_small_buffers() -> tuple[socket, socket]:
    return tcp_sockets(65536)


def tiny_unix() -> tuple[socket, socket]:
    return unix_sockets(TINY)


@pytest.mark.parametrize(
    ("make", "cancels"), [(tiny_unix, UNIX_CANCELS), (tcp_with_small_buffers, TCP_CANCELS)]
)
@pytest.mark.parametrize(
    "ladder",
    [
        LADDER,
        *([] if LADDER == "coop" else [pytest.param("coop", marks=[uring_only, pytest.mark.long])]),
    ],
)
async def test_conservation_under_cancels(
    make: Callable[[], tuple[socket, socket]], cancels: int, ladder: str
) -> None:
    print(f"TRIO_URING_SEED={SEED}")
    if on_ring():
        install(UringRing(ladder))
    sides: list[Side] = []
    async with trio.open_nursery() as nursery:
        for number in range(PAIRS):
            nursery.start_soon(
                one_pair, make, f"{SEED} {number}", cancels // PAIRS, number % 2 == 0, sides
            )
    statistics = trio_uring.current_statistics()
    counts = statistics.operations
    cancelled = sum(of.cancelled for of in counts.values())
    in_time, wins = sum(side.in_time for side in sides), sum(side.wins for side in sides)
    print(
        {name: (of.submitted, of.cancelled) for name, of in counts.items()},
        f"{in_time} in time, {wins} wins",
    )
    assert cancelled > cancels / 4
    assert in_time > cancels / 4
    assert wins > cancels / 50
    if on_ring():
        lost = counts["ASYNC_CANCEL"].submitted - cancelled
        print(f"{lost} cancels lost to data")
        assert lost > cancels / 50 or "DEFER_TASKRUN" in statistics.setup_flags


async def one_pair(
    make: Callable[[], tuple[socket, socket]],
    seed: str,
    cancels: int,
    exactly: bool,
    sides: list[Side],
) -> None:
    left, right = make()
    sender, receiver = Sender(left, f"{seed} send"), Receiver(right, f"{seed} receive")
    sender.other, receiver.other, receiver.exactly = receiver, sender, exactly
    sides += sender, receiver

    async def until_enough(side: Side, step: Step, nursery: trio.Nursery) -> None:
        while sender.cancels < cancels or receiver.cancels < cancels:
            await side.work(step)
            if side.cancels * 2 > sender.cancels + receiver.cancels:
                # So that the other side finds the stream full, or empty, and blocks.
                await passes(30)
        nursery.cancel_scope.cancel()

    async with closing(sender.stream, receiver.stream):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_enough, sender, sender.send_some, nursery)
            nursery.start_soon(until_enough, receiver, receiver.receive_some, nursery)
        await finish(sender, receiver)
    print(
        f"sent {sender.count}, cancels {sender.cancels} + {receiver.cancels}, "
        f"wins {sender.wins} + {receiver.wins}"
    )
    assert receiver.count == sender.count
    assert receiver.digest.digest() == sender.digest.digest()
