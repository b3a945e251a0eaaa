"""The driver and the streams over a seeded FakeRing with faults: thousands of small, repeatable
worlds.

Rules of this file: MockClock with autojump, no kernel ring, no wall clock; everything runs twice,
with the ring as trio's loop and with a task that waits for it. The message of a failing test has
its seed; run it alone with TRIO_URING_SEEDS=seed:seed+1. For a longer run, set
TRIO_URING_SEEDS=0:200000.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket

import pytest
import trio
import trio.testing
from support.long_cases import examples

import trio_uring
from trio_uring._driver import run as _driver
from trio_uring.testing import FakeRing, use_ring

FIRST, _, LAST = os.environ.get("TRIO_URING_SEEDS", f"0:{examples(300)}").partition(":")
SEEDS = range(int(FIRST), int(LAST))
FAULTS = {errno.EINTR: 0.02, errno.EAGAIN: 0.02}
PATTERN = bytes(range(256)) * 600


@pytest.fixture(params=_driver.WAYS, autouse=True)
def way(request, monkeypatch):
    monkeypatch.setenv(_driver.VARIABLE, request.param)
    return request.param


class World:
    """Two streams over one FakeRing, a sender and a receiver that are cancelled at random, and what
    each has seen."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.ring = FakeRing(
            seed,
            short=self.random.choice([0, 0.3, 0.9]),
            slow=self.random.choice([0, 0.3, 0.8]),
            refuse=self.random.choice([0, 0.1, 0.4]),
            faults=self.random.choice([{}, FAULTS, {**FAULTS, errno.ENOBUFS: 0.05}]),
            sq_entries=self.random.choice([1, 2, 64]),
            provided_buffers=self.random.random() < 0.8,
        )
        self.capacity = self.random.choice([1, 100, 5000])
        # Bytes; not thousands of steps for one message.
        self.sizes = [0, 1, 10, min(3000, 100 * self.capacity)]
        self.sent = 0
        self.received = bytearray()

    async def run(self) -> None:
        use_ring(self.ring)
        a, b = socket.socketpair()
        self.ring.connect(a.fileno(), b.fileno(), self.capacity)
        self.sender, self.receiver = trio_uring.SocketStream(a), trio_uring.SocketStream(b)
        async with self.sender, self.receiver, trio.open_nursery() as nursery:
            nursery.start_soon(self.receive_all)
            await self.send_all()
            self.ring.shutdown(a.fileno())
        statistics = trio_uring.current_statistics()
        assert (statistics.in_flight, statistics.queued, statistics.pinned) == (0, 0, 0)

    async def send_all(self) -> None:
        for _ in range(self.random.randint(1, 8)):
            size = self.random.choice(self.sizes)
            starts = [
                (self.sent + number * size) % 256 for number in range(self.random.randint(1, 4))
            ]
            data = [PATTERN[start : start + size] for start in starts]
            whole = b"".join(data)
            if self.random.random() < 0.7:
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self.cancel_soon, scope)
                        await self.sender.send_all(data)
                        nursery.cancel_scope.cancel()
            else:
                await self.sender.send_all(data)
                assert self.sender.bytes_sent == len(whole)
            self.sent += self.sender.bytes_sent
            assert self.sender.bytes_sent <= len(whole)
            self.check(whole[: self.sender.bytes_sent])

    def check(self, part: bytes) -> None:
        start = (self.sent - len(part)) % 256
        assert part == PATTERN[start : start + len(part)]

    async def cancel_soon(self, scope: trio.CancelScope) -> None:
        for _ in range(self.random.randint(0, 6)):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async def receive_all(self) -> None:
        ended = False
        while not ended:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    if self.random.random() < 0.6:
                        nursery.start_soon(self.cancel_soon, scope)
                    ended = await self.receive_one()
                    nursery.cancel_scope.cancel()

    async def receive_one(self) -> bool:
        kind = self.random.choice(["some", "into", "exactly"])
        if kind == "some":
            chunk = await self.receiver.receive_some(self.random.choice([None, 1, 5000]))
            self.received += chunk
            return not chunk
        if kind == "into":
            count = await self.receiver.receive_into(
                into := bytearray(self.random.choice([1, 50, 9000]))
            )
            self.received += into[:count]
            return not count
        # What came is still in the stream, for the other calls.
        with contextlib.suppress(trio_uring.IncompleteReadError):
            self.received += await self.receiver.receive_exactly(self.random.choice([1, 7, 400]))
        return False


def test_no_byte_is_lost_whatever_the_ring_does():
    for seed in SEEDS:
        world = World(seed)
        try:
            trio.run(world.run, clock=trio.testing.MockClock(autojump_threshold=0))
            assert (
                bytes(world.received) == (PATTERN * (world.sent // len(PATTERN) + 1))[: world.sent]
            )
        except BaseException as exc:
            raise AssertionError(f"seed {seed}: {exc!r}") from exc
        finally:
            world.ring.close()


@pytest.mark.parametrize(
    "code", sorted({*errno.errorcode} - {errno.EAGAIN, errno.EINTR, errno.ECANCELED})
)
@pytest.mark.parametrize("opcode", ["SEND", "RECV"])
def test_every_errno_has_its_exception(code, opcode):
    """Injected at completion: a documented exception, the stream stays closable, and nothing
    hangs."""

    async def main() -> None:
        ring = FakeRing()
        use_ring(ring)
        a, b = socket.socketpair()
        ring.connect(a.fileno(), b.fileno())
        stream = trio_uring.SocketStream(a)
        ring.script(trio_uring._ring.op.Opcode[opcode], [-code])
        expected = (
            trio.ClosedResourceError
            if code in (errno.EBADF, errno.ENOTSOCK)
            else trio.BrokenResourceError
        )
        # All provided buffers were in use: made again.
        if code == errno.ENOBUFS and opcode == "RECV":
            ring.script(trio_uring._ring.op.Opcode.RECV, [0])
            assert await stream.receive_some() == b""
        else:
            with pytest.raises(expected) as caught:
                await (stream.send_all(b"x") if opcode == "SEND" else stream.receive_some())
            assert expected is trio.ClosedResourceError or caught.value.__cause__.errno == code
        await stream.aclose()
        b.close()

    trio.run(main)


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EINTR])
def test_what_says_again_is_made_again_without_spinning(code):
    async def main() -> None:
        ring = FakeRing()
        use_ring(ring)
        a, b = socket.socketpair()
        ring.connect(a.fileno(), b.fileno())
        ring.script(trio_uring._ring.op.Opcode.RECV, [-code, -code])
        async with trio_uring.SocketStream(a) as stream, trio_uring.SocketStream(b) as peer:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.send_all, b"hello")
                assert await stream.receive_some() == b"hello"
            counts = trio_uring.current_statistics().operations
            assert counts["RECV"].submitted == 3
            assert counts["POLL_ADD"].submitted == 2, (
                "between two attempts it waits until the descriptor is ready"
            )

    trio.run(main)
