"""A hundred thousand receives, cancelled in the kernel while bytes are on their way: each byte
comes once.

The hundred thousand are the long case, for each length of the queue; the others do fewer.

Rules of this file: each byte that a peer sends is known by its place in the stream, so a byte that
is lost or comes twice is found at once. The peers are plain sockets, which the ring knows nothing
of. A seed decides what happens when: TRIO_URING_SEED=<n> repeats a run. The run ends when the
kernel has given back enough operations as cancelled, never by the clock.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket

import pytest
import trio
from support.child import in_child, use_ring
from support.long_cases import examples, long
from support.streams import passes

import trio_uring
from trio_uring import _accelerator

SEED = int(os.environ.get("TRIO_URING_SEED", "20261127"))
PARTS = 4  # of the long case, each with a seed of its own and in a process of its own
CANCELS = examples(25_000)  # of a part: those that the kernel says it has done
PAIRS = 50
PERIOD = 65_521  # bytes, a prime: no size of buffer divides it
PATTERN = random.Random(0).randbytes(PERIOD) * 10  # more than a receive returns
MOST = 40_000  # bytes at once
QUEUES = {"normal": {}, "tiny": {"sq_entries": 4}}
CASES = [
    ("defer", SEED),
    *(long("defer", SEED + part) for part in range(1, PARTS)),
    long("coop", SEED),
    ("task coop", SEED),
]


class Pair:
    """A stream that receives and is cancelled, and the socket that sends to it."""

    def __init__(self, seed: str) -> None:
        ours, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        self.stream = trio_uring.SocketStream(ours)
        self.random = random.Random(seed)
        self.sent = self.received = 0
        self.sums = hashlib.blake2b(), hashlib.blake2b()
        self.scope = trio.CancelScope()
        self.cancelled = self.wins = 0

    def send(self) -> None:
        start, size = self.sent % PERIOD, self.random.choice((1, 10, 100, 1000, 5000, MOST))
        with contextlib.suppress(BlockingIOError):
            count = self.peer.send(PATTERN[start : start + size])
            self.sums[0].update(PATTERN[start : start + count])
            self.sent += count

    def cancel(self) -> None:
        self.scope.cancel()

    def happens(self) -> None:
        """What happens to this pair before the next pass, if anything."""
        steps = self.random.choice(
            ((), (self.send,), (self.cancel,), (self.cancel, self.send), (self.send, self.cancel))
        )
        for step in steps:
            step()

    async def receive_some(self) -> bytes:
        how = self.random.randrange(6)
        if how == 0:
            return await self.stream.receive_exactly(self.random.choice((3, 3000)))
        if how < 3:
            into = bytearray(self.random.choice((10, MOST)))
            return bytes(into[: await self.stream.receive_into(into)])
        return await self.stream.receive_some(self.random.choice((None, 100)))

    async def receive(self) -> None:
        """Again and again, cancelled or not."""
        while True:
            with trio.CancelScope() as self.scope:
                self.check(await self.receive_some())
                self.wins += self.scope.cancel_called
            self.cancelled += self.scope.cancelled_caught

    def check(self, data: bytes) -> None:
        start = self.received % PERIOD
        assert data == PATTERN[start : start + len(data)], f"wrong after byte {self.received}"
        self.sums[1].update(data)
        self.received += len(data)

    async def finish(self) -> None:
        self.peer.close()
        async for data in self.stream:
            for start in range(0, len(data), MOST):
                self.check(data[start : start + MOST])
        await self.stream.aclose()
        assert self.received == self.sent
        assert self.sums[0].digest() == self.sums[1].digest()


def cancelled_by_kernel() -> int:
    return sum(of.cancelled for of in trio_uring.current_statistics().operations.values())


@pytest.mark.uring_only("no kernel cancels anything")
@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize(("flags", "seed"), CASES)
@in_child()
async def test_every_byte_comes_once(flags: str, queue: str, seed: int) -> None:
    use_ring(flags=flags, **QUEUES[queue])
    chance, pairs = random.Random(seed), [Pair(f"{seed} {number}") for number in range(PAIRS)]
    async with trio.open_nursery() as nursery:
        for pair in pairs:
            nursery.start_soon(pair.receive)
        while cancelled_by_kernel() < CANCELS:
            for _ in range(20):
                await passes(chance.randrange(1, 4))
                for pair in chance.sample(pairs, PAIRS // 2):
                    pair.happens()
        nursery.cancel_scope.cancel()
    for pair in pairs:
        await pair.finish()
    show(seed, pairs)
    assert sum(pair.sent for pair in pairs) > CANCELS
    assert sum(pair.wins for pair in pairs) > CANCELS / 100


def show(seed: int, pairs: list[Pair]) -> None:
    statistics = trio_uring.current_statistics()
    print(
        f"TRIO_URING_SEED={seed}: {sum(pair.sent for pair in pairs)} bytes, "
        f"{sum(pair.cancelled for pair in pairs)} calls cancelled, "
        f"{sum(pair.wins for pair in pairs)} returned bytes although cancelled; "
        f"{cancelled_by_kernel()} operations cancelled by the kernel, which was asked "
        f"{statistics.operations['ASYNC_CANCEL'].submitted} times; {statistics.passes} passes, "
        f"{statistics.sq_full} times a full queue, accelerator {_accelerator.hot is not None}"
    )
