"""Ring streams beside everything else that a trio program waits for: no task starves or is delayed.

Rules of this file: a delay is counted in trio's passes, from the task step in which the event is
made to the pass in which its waiter runs, and is at most one pass. Stock trio, in a run without a
ring, says how many there must be. A task that starves makes the child hang.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest
import trio
from support.child import BY_READINESS, EVERY_FLAGS, Passes, in_child, use_ring
from support.peer import echo_peer

import trio_uring

PROBES = 60
CHATS = 20
SLEEPER = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]

Event = tuple[Callable[[], object], Callable[[], Awaitable[object]]]
"""What makes it, in a task step; and what waits for it."""


# -- events


@contextlib.asynccontextmanager
async def ring_stream() -> AsyncIterator[Event]:
    ours, theirs = socket.socketpair()
    async with trio_uring.SocketStream(ours) as stream:
        yield partial(theirs.send, b"x"), stream.receive_some
    theirs.close()


@contextlib.asynccontextmanager
async def stock_socket() -> AsyncIterator[Event]:
    ours, theirs = socket.socketpair()
    async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
        yield partial(theirs.send, b"x"), stream.receive_some
    theirs.close()


@contextlib.asynccontextmanager
async def foreign_descriptor() -> AsyncIterator[Event]:
    reading, writing = os.pipe()

    async def wait() -> None:
        await trio.lowlevel.wait_readable(reading)
        os.read(reading, 1)

    yield partial(os.write, writing, b"x"), wait
    os.close(reading)
    os.close(writing)


@contextlib.asynccontextmanager
async def posix_signal() -> AsyncIterator[Event]:
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        yield partial(os.kill, os.getpid(), signal.SIGUSR1), signals.__anext__  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def call_from_a_thread() -> AsyncIterator[Event]:
    parking = trio.lowlevel.ParkingLot()
    token = trio.lowlevel.current_trio_token()

    def make() -> None:
        thread = threading.Thread(target=token.run_sync_soon, args=(parking.unpark,))
        thread.start()
        thread.join()

    yield make, parking.park


@contextlib.asynccontextmanager
async def end_of_a_process() -> AsyncIterator[Event]:
    processes: list[trio.Process] = [await start_process()]

    def make() -> None:
        processes[0].kill()
        poll = select.poll()
        fd = os.pidfd_open(processes[0].pid)
        poll.register(fd, select.POLLIN)
        poll.poll()
        os.close(fd)

    async def wait() -> None:
        await processes[0].wait()
        passes_of_the_end.append(passes.count)
        processes[0] = await start_process()

    yield make, wait
    processes[0].kill()
    await processes[0].wait()


async def start_process() -> trio.Process:
    return await trio.lowlevel.open_process(SLEEPER, stdin=subprocess.PIPE)


passes = Passes()
passes_of_the_end: list[int] = []

EVENTS = {
    "ring stream": ring_stream,
    "stock socket": stock_socket,
    "foreign descriptor": foreign_descriptor,
    "signal": posix_signal,
    "call from a thread": call_from_a_thread,
    "end of a process": end_of_a_process,
}


# -- loads: what all tasks but the probing one do, without an end


async def chat(left: trio.abc.Stream, right: trio.abc.Stream) -> None:
    async with left, right:
        while True:
            await left.send_all(b"x" * 100)
            await right.receive_some()
            await right.send_all(b"x" * 100)
            await left.receive_some()


def ring_chats(nursery: trio.Nursery) -> None:
    for _ in range(CHATS):
        nursery.start_soon(chat, *map(trio_uring.SocketStream, socket.socketpair()))


def stock_chats(nursery: trio.Nursery) -> None:
    for _ in range(CHATS):
        nursery.start_soon(
            chat, *map(trio.SocketStream, map(trio.socket.from_stdlib_socket, socket.socketpair()))
        )


def steps(nursery: trio.Nursery) -> None:
    async def step() -> None:
        while True:
            await trio.lowlevel.checkpoint()

    nursery.start_soon(step)


def nothing(_: trio.Nursery) -> None:
    pass


threads: list[threading.Thread] = []


def until_threads_are_done() -> None:
    """They end when the other ends of their sockets are closed, and close their own."""
    while threads:
        threads.pop().join()


def copies(nursery: trio.Nursery) -> None:
    """Bytes without end, which no task wakes for: other threads send and receive them."""
    for _ in range(2):
        source, sink = socket.socketpair(), socket.socketpair()
        for target, sock in ((pour, source[0]), (swallow, sink[1])):
            thread = threading.Thread(target=target, args=(sock,), daemon=True)
            thread.start()
            threads.append(thread)
        nursery.start_soon(copy, source[1], sink[0])


async def copy(source: socket.socket, sink: socket.socket) -> None:
    async with trio_uring.SocketStream(source) as reading, trio_uring.SocketStream(sink) as writing:
        await trio_uring.copy_stream(reading, writing)


def pour(sock: socket.socket) -> None:
    with sock, contextlib.suppress(OSError):
        while True:
            sock.sendall(bytes(100))


def swallow(sock: socket.socket) -> None:
    with sock, contextlib.suppress(OSError):
        while sock.recv(65536):
            pass


LOADS = {
    "nothing": nothing,
    "steps": steps,
    "stock chats": stock_chats,
    "ring chats": ring_chats,
    "copies": copies,
}


# -- what is counted


async def delay(event: Event) -> int:
    """Passes from the step that makes the event to the one of the task that has waited for it."""
    make, wait = event
    woke = 0

    async def waiter(task_status: trio.TaskStatus[None]) -> None:
        nonlocal woke
        task_status.started()
        await wait()
        woke = passes_of_the_end.pop() if passes_of_the_end else passes.count

    async with trio.open_nursery() as nursery:
        await nursery.start(waiter)
        for _ in range(3):  # until it waits, and what it waits with is in the kernel
            await trio.lowlevel.checkpoint()
        began = passes.count
        make()
    return woke - began


async def delays(event: str, load: str, probes: int) -> int:
    """The longest of many."""
    trio.lowlevel.add_instrument(passes)
    async with EVENTS[event]() as one, trio.open_nursery() as nursery:
        LOADS[load](nursery)
        longest = max([await delay(one) for _ in range(probes)])
        nursery.cancel_scope.cancel()
    until_threads_are_done()
    return longest


@pytest.mark.parametrize("event", list(EVENTS))
@pytest.mark.parametrize("flags", EVERY_FLAGS)
@in_child()
def test_nobody_is_delayed_by_more_than_a_pass(flags: str, event: str) -> None:
    use_ring(flags=flags)
    probes = PROBES if event != "end of a process" else 4
    theirs = trio.run(
        delays, event if event != "ring stream" else "stock socket", "stock chats", probes
    )
    for load in LOADS:
        ours = trio.run(delays, event, load, probes)
        print(f"passes under {load}: {ours}, by trio {theirs}", flush=True)
        assert ours <= theirs + 1


@pytest.mark.parametrize("load", ["steps", "ring chats", "copies"])
@pytest.mark.parametrize("flags", EVERY_FLAGS)
@in_child()
async def test_timers_go_off_under_load(flags: str, load: str) -> None:
    """Also where completions come without an end and no task wakes for them."""
    use_ring(flags=flags)
    async with trio.open_nursery() as nursery:
        LOADS[load](nursery)
        for _ in range(50):
            await trio.sleep(0.001)
        with trio.move_on_after(0.01) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        nursery.cancel_scope.cancel()
    until_threads_are_done()


# -- all of it together


class Program:
    """Everything at once, each so many times."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def ring(self, sock: socket.socket) -> None:
        async with trio_uring.SocketStream(sock) as stream:
            await self.echoed("ring", stream)

    async def stock(self, sock: socket.socket) -> None:
        async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
            await self.echoed("stock", stream)

    async def echoed(self, what: str, stream: trio.abc.Stream) -> None:
        for number in range(1000):
            message, got = number.to_bytes(8, "little"), b""
            await stream.send_all(message)
            while len(got) < 8:
                got += await stream.receive_some(8 - len(got))
            assert got == message
        self.done.append(what)

    async def process(self) -> None:
        code = "import sys; [print(line.strip()[::-1], flush=True) for line in sys.stdin]"
        start = partial(
            trio.run_process,
            [sys.executable, "-S", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(start)
            assert process.stdin is not None
            assert process.stdout is not None
            for number in range(100):
                line, got = b"%d1\n" % number, b""
                await process.stdin.send_all(line)
                while not got.endswith(b"\n"):
                    got += await process.stdout.receive_some()
                assert got == line[-2::-1] + b"\n"
            await process.stdin.aclose()
        self.done.append("process")

    async def signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            for _ in range(100):
                await trio.to_thread.run_sync(os.kill, os.getpid(), signal.SIGUSR1)
                assert await signals.__anext__() == signal.SIGUSR1  # type: ignore[attr-defined]
        self.done.append("signals")

    async def threads(self) -> None:
        def thread() -> None:
            for number in range(100):
                assert trio.from_thread.run(self.from_thread, number) == number
                trio.from_thread.check_cancelled()

        await trio.to_thread.run_sync(thread)
        self.done.append("threads")

    async def from_thread(self, number: int) -> int:
        left, right = map(trio_uring.SocketStream, socket.socketpair())
        async with left, right:
            await left.send_all(b"x")
            assert await right.receive_some() == b"x"
        return number

    async def descriptors(self) -> None:
        reading, writing = os.pipe()
        for _ in range(200):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, os.write, writing, b"x")
                await trio.lowlevel.wait_readable(reading)
                assert os.read(reading, 8) == b"x"
                await trio.lowlevel.wait_writable(writing)
        os.close(reading)
        os.close(writing)
        self.done.append("descriptors")

    async def run(self, socks: list[socket.socket]) -> None:
        async with trio.open_nursery() as nursery:
            for sock in socks[::2]:
                nursery.start_soon(self.ring, sock)
            for sock in socks[1::2]:
                nursery.start_soon(self.stock, sock)
            for part in (self.process, self.signals, self.threads, self.descriptors):
                nursery.start_soon(part)


@pytest.mark.parametrize("flags", EVERY_FLAGS)
@in_child()
async def test_a_mixed_program(flags: str) -> None:
    use_ring(flags=flags)
    program = Program()
    with echo_peer(8) as socks:
        await program.run(socks)
    assert sorted(program.done) == sorted(
        ["ring", "stock"] * 4 + ["process", "signals", "threads", "descriptors"]
    )
    statistics = trio_uring.current_statistics()
    assert (statistics.in_flight, statistics.queued) == (0, 0)
    assert BY_READINESS or statistics.enters > 0
