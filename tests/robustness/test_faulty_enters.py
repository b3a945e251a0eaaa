"""Streams under load on the kernel's ring, while every enter may be refused, interrupted, done in
part, or answered with completions that are late or in another order: every byte comes once and in
order, nothing hangs, and nothing is left.

Rules of this file: everything is done many times, each from a seed; what the kernel and other
threads do is not. The last seed that is printed is the one that failed; run it alone with
TRIO_URING_SEEDS=seed:seed+1. Faults come in front of C's pass and of Python's alike
(support/enters.py). Which of these makes it is TRIO_URING_ACCELERATOR's to say.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import signal
import socket
import time
import warnings
import weakref
from collections.abc import Awaitable, Callable
from threading import get_ident
from typing import Any

import pytest
import trio
from support.child import FLAGS, driver, in_child, open_rings, stream_pair, use_ring
from support.destroy import CHECKPOINTS, Call, interrupted
from support.enters import Faults
from support.long_cases import examples
from support.streams import passes, tcp_sockets, unix_sockets, until

import trio_uring
from trio_uring._ring.op import Operation

pytestmark = pytest.mark.uring_only("it is about what io_uring_enter answers")

FIRST, _, LAST = os.environ.get("TRIO_URING_SEEDS", f"0:{examples(100)}").partition(":")
AT_ONCE = 20  # seeds of one child
SEEDS = [
    (first, min(first + AT_ONCE, int(LAST))) for first in range(int(FIRST), int(LAST), AT_ONCE)
]
TOO_LONG = 60  # seconds for one seed, of which each takes less than one

PERIOD = 65521
NUMBERED = random.Random("bytes").randbytes(PERIOD) * 10  # more than a receive returns
SIZES = (0, 1, 10, 1000, 5000, 70_000, 300_000)
HOW = ("", "", "cancelled", "destroyed", "both", "deadline")


def numbered(start: int, count: int) -> bytes:
    """Bytes that tell where in the stream they belong."""
    return NUMBERED[start % PERIOD :][:count]


class Doomed(bytearray):
    """A buffer that can have a finalizer."""


class Link:
    """One direction of a connection: what was sent of it, and what has come."""

    def __init__(self, world: World, sender: Any, receiver: Any, sock: Any) -> None:
        self.world, self.rnd = world, world.rnd
        self.sender, self.receiver, self.sock = sender, receiver, sock
        self.sent_least = self.sent_most = self.got = 0

    # -- sending

    async def send_all(self) -> None:
        for _ in range(self.rnd.randint(2, 8)):
            await self.send()
            if self.world.faults.failed or self.sent_least < self.sent_most:
                break
        await self.world.survive(self.sender.send_eof())

    async def send(self) -> None:
        whole = numbered(self.sent_least, self.rnd.choice(SIZES))
        self.sent_most += len(whole)
        call = Call(self.world.guard(self.sender.send_all(self.dress(whole))))
        how = self.rnd.choice(HOW)
        await self.world.interrupt(call, how)
        sent = self.sender.bytes_sent
        assert sent <= len(whole)
        self.sent_least += sent
        # Of a call that was destroyed nobody learns how much the kernel has taken.
        if not call.destroyed and not self.world.faults.failed:
            self.sent_most = self.sent_least

    def dress(self, whole: bytes) -> Any:
        """The same bytes as one of the things that can be sent."""
        cut = self.rnd.randint(0, len(whole))
        kinds: list[Callable[[], Any]] = [
            lambda: whole,
            lambda: bytearray(whole),
            lambda: memoryview(whole),
            lambda: [whole[:cut], bytearray(whole[cut:])],
            lambda: (memoryview(whole)[:cut], b"", whole[cut:]),
            lambda: (
                [whole[i : i + 97] for i in range(0, min(cut, 3000), 97)]
                + [whole[-(-min(cut, 3000) // 97) * 97 :]]
            ),
        ]
        return self.rnd.choice(kinds)()

    # -- receiving

    async def receive_all(self) -> None:
        ended = False
        while not ended and not self.world.faults.failed:
            ended = await self.receive()
        if self.world.faults.failed:
            await self.receiver.aclose()  # the sender may be waiting for it, by trio's epoll
        else:
            assert self.sent_least <= self.got <= self.sent_most

    async def receive(self) -> bool:
        """One call. True: the end has come."""
        count = self.rnd.choice((1, 10, 5000, 100_000))
        buffer = bytearray(count)
        calls: dict[str, Callable[[], Any]] = {
            "receive_some": lambda: self.receiver.receive_some(self.rnd.choice((None, count))),
            "receive_into": lambda: self.receiver.receive_into(buffer),
            "receive_exactly": lambda: self.receive_exactly(min(count, 5000)),
            "recv": lambda: self.sock.recv(count),
            "recv_into": lambda: self.sock.recv_into(buffer),
        }
        name = self.rnd.choice(list(calls))
        call = Call(self.world.guard(calls[name]()))
        how = self.rnd.choice(HOW)
        await self.world.interrupt(call, how)
        if call.result is None:
            return False
        data = buffer[: call.result] if isinstance(call.result, int) else call.result
        expected = numbered(self.got, len(data))
        assert data == expected, f"{name}, {how or 'to its end'}: after {self.got} bytes"
        self.got += len(data)
        return not data

    async def receive_exactly(self, count: int) -> bytes | None:
        try:
            return bytes(await self.receiver.receive_exactly(count))
        except trio_uring.IncompleteReadError:  # what came is there still, for other calls
            return None


class World:
    """What runs from one seed."""

    def __init__(self, seed: int, faults: Faults, fatal: bool = False) -> None:
        self.rnd = rnd = random.Random(seed)
        self.faults, self.fatal = faults, fatal
        fatal_at = rnd.choice((0, 1, 10, 100)) if fatal else -1
        faults.begin(rnd, rnd.choice((0.0, 0.02, 0.1, 0.3)), fatal_at)

    async def run(self) -> None:
        with trio.fail_after(TOO_LONG), signals(self.rnd.choice((0, 0, 0.002))):
            self.faults.use(driver())
            async with trio.open_nursery() as nursery:
                for _ in range(self.rnd.randint(2, 5)):
                    nursery.start_soon(self.connect)
                for other in (self.close, self.doom, self.sleep, self.play, self.call_threads):
                    nursery.start_soon(other)
            if self.fatal:
                await self.check_fatal()
            else:
                await self.check()

    def guard(self, call: Awaitable[Any]) -> Any:
        """As `survive`, where there is something to survive; otherwise the call itself."""
        return self.survive(call) if self.fatal else call

    async def survive(self, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            if not self.faults.failed:
                raise
            return None

    async def interrupt(self, call: Call, how: str) -> None:
        if how == "deadline":
            with trio.move_on_after(self.rnd.choice((0, 0.0003, 0.002))):
                await call
        else:
            await interrupted(call, how, self.rnd)

    # -- what goes on in it

    async def connect(self) -> None:
        make = self.rnd.choice((unix_sockets, tcp_sockets))
        socks = [trio_uring.UringSocket(sock) for sock in make()]
        left, right = (trio_uring.SocketStream(sock) for sock in socks)
        async with trio.open_nursery() as nursery:
            for link in (Link(self, left, right, socks[1]), Link(self, right, left, socks[0])):
                nursery.start_soon(link.send_all)
                nursery.start_soon(link.receive_all)
        await left.aclose()
        await right.aclose()

    async def close(self) -> None:
        """Closes streams that are in use: their numbers are others' at once."""
        for _ in range(10):
            left, right = stream_pair()
            call, data = self.rnd.choice(
                (
                    (left.receive_some, 100),
                    (left.receive_into, bytearray(100)),
                    (left.send_all, bytes(2**22)),
                    (left.send_all, [bytes(2**22), b"x"]),
                )
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.expect_closed, call, data)
                await passes(self.rnd.choice(CHECKPOINTS))
                await left.aclose()
            await right.aclose()

    async def expect_closed(self, call: Callable[[Any], Any], data: Any) -> None:
        try:
            await self.survive(call(data))
        except trio.ClosedResourceError:
            pass
        except OSError as exc:
            if exc.errno != errno.EBADF:  # that is closed before it began
                raise
        else:
            assert self.faults.failed

    async def doom(self) -> None:
        """A destroyed call lets its buffer go when completions are taken, and whoever finalizes
        that closes a socket."""
        for _ in range(5):
            ours, theirs = socket.socketpair()
            sock = trio_uring.UringSocket(ours)
            left, right = stream_pair()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.expect_closed, sock.recv, 10)
                await passes(self.rnd.choice(CHECKPOINTS))
                buffer = Doomed(100)
                finalizer = weakref.finalize(buffer, self.close_here, sock, get_ident())
                call = Call(self.guard(left.receive_into(buffer)))
                del buffer
                await self.interrupt(call, self.rnd.choice(("destroyed", "both", "cancelled")))
                del call
                await passes(self.rnd.choice(CHECKPOINTS))
                finalizer.detach()  # a frame still had it
                sock.close()
            theirs.close()
            await left.aclose()
            await right.aclose()

    def close_here(self, sock: Any, thread: int) -> None:
        if get_ident() == thread:
            self.faults.saw("finalized")
            sock.close()

    async def sleep(self) -> None:
        for _ in range(20):
            await trio.sleep(self.rnd.choice((0, 0.0005, 0.002)))

    async def play(self) -> None:
        """Ping-pong over a channel, and over trio's own sockets."""
        send, receive = trio.open_memory_channel[int](0)
        left, right = trio.socket.socketpair()
        with left, right:
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(send.send, number)
                    await left.send(bytes([await receive.receive()]))
                    assert await right.recv(10) == bytes([number])

    async def call_threads(self) -> None:
        token = trio.lowlevel.current_trio_token()
        for _ in range(5):
            event = trio.Event()
            await trio.to_thread.run_sync(time.sleep, self.rnd.choice((0, 0.001)))
            await trio.to_thread.run_sync(token.run_sync_soon, event.set)
            await event.wait()

    # -- the end

    async def check(self) -> None:
        """Nothing is left, and the counts agree with what was handed over."""
        await until(lambda: not trio_uring.current_statistics().in_flight, "nothing in flight")
        statistics = trio_uring.current_statistics()
        assert (statistics.in_flight, statistics.queued, statistics.pinned) == (0, 0, 0)
        counts = dict(statistics.operations)
        for count in counts.values():
            assert count.submitted == (
                count.completed + count.cancelled + count.failed + count.in_flight
            )
            assert min(count.completed, count.cancelled, count.failed) >= 0
        cancels = counts.pop("ASYNC_CANCEL", None)
        submitted = sum(count.submitted for count in counts.values())
        assert submitted - statistics.direct == self.faults.operations
        if cancels is not None:
            await until(
                lambda: self.faults.cancels == cancels.submitted, "each cancel has been answered"
            )

    async def check_fatal(self) -> None:
        """Every call fails from then on, and descriptors are closed all the same."""
        left, right = stream_pair()
        while not self.faults.failed:
            await self.survive(left.send_all(b"x"))
            await self.survive(right.receive_some())
        for call in (left.send_all(b"x"), left.receive_some(), right.receive_into(bytearray(1))):
            with pytest.raises(trio.BrokenResourceError):
                await call
        await left.aclose()
        await right.aclose()


@contextlib.contextmanager
def signals(seconds: float) -> Any:
    """A signal comes every so many seconds; 0: none does."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_seed(seed: int, flags: str, faults: Faults, fatal: bool = False) -> None:
    print(f"seed {seed}, {flags}", flush=True)
    world = World(seed, faults, fatal)
    sq_entries = world.rnd.choice((4, 32, 256))
    use_ring(
        flags=flags,
        sq_entries=sq_entries,
        cq_entries=world.rnd.choice((sq_entries, None)),
        provide_buffers=world.rnd.random() < 0.7,
    )
    trio.run(world.run)


@pytest.mark.parametrize(("first", "last"), SEEDS)
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_every_byte_comes_once(flags: str, first: int, last: int) -> None:
    faults = Faults()
    seen: dict[str, int] = {}
    for seed in range(first, last):
        run_seed(seed, flags, faults)
        for name, count in faults.seen.items():
            seen[name] = seen.get(name, 0) + count
        assert not open_rings()
        gc.collect()
        operations = [thing for thing in gc.get_objects() if isinstance(thing, Operation)]
        assert not [op for op in operations if op.state.in_kernel or op.pin is not None]
    print(seen)


@pytest.mark.parametrize(("first", "last"), SEEDS)
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_an_answer_that_is_fatal_fails_everybody(flags: str, first: int, last: int) -> None:
    """Once is enough, and what is not on the ring goes on."""
    faults = Faults()
    for seed in range(first, last):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # the ring is leaked, or is not
            run_seed(seed, flags, faults, fatal=True)
        assert faults.failed
    os._exit(0)
