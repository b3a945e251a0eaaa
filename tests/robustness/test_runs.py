"""Every kind of trio.run: in sequence, in threads at once, as a guest, under MockClock, and at its
very end.

Rules of this file: a lost wake-up makes the child hang. trio's random order of tasks is seeded, and
the seed is an argument of the test.
"""

from __future__ import annotations

import os
import queue
import random
import socket
import threading
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from support.child import (
    BY_READINESS,
    FLAGS,
    OF_TASK,
    BackendRing,
    Passes,
    Watch,
    driver,
    in_child,
    open_rings,
    pair,
    remove_hooks,
    use_ring,
)
from support.peer import echo_peer

import trio_uring
from trio_uring._driver import ending as _ending
from trio_uring._driver import trial as _trial
from trio_uring._driver.phases import ENDING

MESSAGES = 300


async def chat(messages: int) -> None:
    """Messages there and back between two streams of this run."""
    ours, theirs = socket.socketpair()
    async with trio_uring.SocketStream(ours) as left, trio_uring.SocketStream(theirs) as right:
        for number in range(messages):
            message = number.to_bytes(4, "little")
            await left.send_all(message)
            assert await right.receive_exactly(4) == message
            await right.send_all(message)
            assert await left.receive_exactly(4) == message


async def chats() -> trio_uring.Statistics:
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(chat, MESSAGES)
    statistics = trio_uring.current_statistics()
    assert statistics.bytes_received == 4 * 2 * 4 * MESSAGES
    assert statistics.in_flight == 0
    return statistics


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_one_run_after_another(flags: str) -> None:
    use_ring(flags=flags)
    for _ in range(10):
        watch = Watch()
        trio.run(chats)
        watch.check_left()


@in_child()
def test_many_empty_runs_leave_nothing() -> None:
    async def look() -> None:
        assert trio_uring.current_statistics().in_flight == 0

    for _ in range(200):
        trio.run(look)


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_runs_in_threads_at_the_same_time(flags: str) -> None:
    use_ring(flags=flags)
    together = threading.Barrier(6)
    finished: list[trio_uring.Statistics] = []

    def thread() -> None:
        together.wait()
        for _ in range(2):
            finished.append(trio.run(chats))

    threads = [threading.Thread(target=thread) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(finished) == 12


@in_child()
async def test_a_stream_of_another_thread_is_refused() -> None:
    stream, peer = pair()
    peer.send(b"x")
    assert await stream.receive_some() == b"x"

    async def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="another thread"):
            await stream.receive_some()

    await trio.to_thread.run_sync(trio.run, elsewhere)
    peer.send(b"y")
    assert await stream.receive_some() == b"y"
    await stream.aclose()
    peer.close()


@in_child()
def test_a_stream_goes_on_in_the_next_run() -> None:
    """As trio's own sockets do."""
    stream, peer = pair()

    async def use() -> None:
        for number in range(5):
            peer.send(bytes([number]))
            assert await stream.receive_some() == bytes([number])
            await stream.send_all(b"answer")
            assert peer.recv(100) == b"answer"

    trio.run(use)
    trio.run(use)
    trio.run(stream.aclose)
    peer.close()


@in_child()
def test_a_pipe_that_was_waited_for_goes_on_in_the_next_run() -> None:
    """The poll that waits for it goes along: it can be cancelled, and ends when the pipe is
    closed."""
    reading, writing = os.pipe()
    stream = trio_uring.ReceiveStream(reading)

    async def wait() -> None:
        with trio.move_on_after(0.01) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        assert trio_uring.current_statistics().in_flight == 0

    async def close() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_until_closed)
            await trio.testing.wait_all_tasks_blocked()
            await stream.aclose()

    async def wait_until_closed() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()

    trio.run(wait)
    trio.run(wait)
    trio.run(close)
    os.close(writing)


@pytest.mark.parametrize("flags", OF_TASK)
@in_child()
def test_as_the_guest_of_another_loop(flags: str) -> None:
    """The host sleeps in queue.get, not in the kernel's ring; trio's epoll is in a worker
    thread."""
    use_ring(flags=flags)
    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
    outcomes: list[Any] = []

    async def guest() -> None:
        await chats()
        with echo_peer(2) as socks:
            async with trio.open_nursery() as nursery:
                for sock in socks:
                    nursery.start_soon(ping_pong, sock)

    trio.lowlevel.start_guest_run(
        guest, run_sync_soon_threadsafe=todo.put, done_callback=outcomes.append
    )
    while not outcomes:
        todo.get()()
    outcomes[0].unwrap()


@in_child()
def test_a_guest_run_never_has_the_ring_for_its_loop() -> None:
    """trio waits in another thread there, and that thread may not enter the ring."""
    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
    outcomes: list[Any] = []

    async def guest() -> None:
        await chat(10)
        statistics = trio_uring.current_statistics()
        assert "DEFER_TASKRUN" not in statistics.setup_flags
        assert BY_READINESS or driver().hooks is not None

    trio.lowlevel.start_guest_run(
        guest, run_sync_soon_threadsafe=todo.put, done_callback=outcomes.append
    )
    while not outcomes:
        todo.get()()
    outcomes[0].unwrap()


@pytest.mark.parametrize("what", ["receive", "send", "wait"])
@pytest.mark.parametrize("flags", OF_TASK)
@in_child()
def test_a_hosts_cancel_is_seen_at_once(flags: str, what: str) -> None:
    """The host cancels while trio waits in its thread, with nothing that would wake it: one that is
    not seen hangs."""
    use_ring(flags=flags)
    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
    outcomes: list[Any] = []
    scopes: list[trio.CancelScope] = []
    passes = Passes()

    async def guest() -> None:
        stream, peer = pair()
        calls = {
            "receive": stream.receive_some,
            "send": partial(stream.send_all, bytes(2**24)),
            "wait": stream.wait_send_all_might_not_block,
        }
        if what == "wait":
            with trio.move_on_after(0):
                await calls["send"]()
        for _ in range(20):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(calls[what])
                    await trio.testing.wait_all_tasks_blocked()
                    scopes.append(scope)
                    passes.count = 0
                    await trio.sleep_forever()
            assert passes.count < 10
        await stream.aclose()
        peer.close()

    trio.lowlevel.start_guest_run(
        guest,
        run_sync_soon_threadsafe=todo.put,
        done_callback=outcomes.append,
        instruments=[passes],
    )
    while not outcomes:
        if scopes and todo.empty():  # trio waits in its thread, or is about to
            scopes.pop().cancel()
        else:
            todo.get()()
    outcomes[0].unwrap()


async def ping_pong(sock: socket.socket) -> None:
    async with trio_uring.SocketStream(sock) as stream:
        for _ in range(1000):
            await stream.send_all(b"ping")
            assert await stream.receive_exactly(4) == b"ping"


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_data_that_is_there_wins_over_a_jumping_clock(flags: str) -> None:
    """With autojump at 0 any pass that finds nothing to do fires the timeout."""
    use_ring(flags=flags)

    async def main() -> None:
        pairs = [pair() for _ in range(50)]
        for number in range(20):
            async with trio.open_nursery() as nursery:
                for stream, peer in pairs:
                    peer.send(bytes([number]))
                    nursery.start_soon(receive_in_time, stream, bytes([number]))
        with trio.move_on_after(1000) as scope:
            await pairs[0][0].receive_some()
        assert scope.cancelled_caught, "the clock must jump when there is no data"
        for stream, peer in pairs:
            await stream.aclose()
            peer.close()

    async def receive_in_time(stream: trio_uring.SocketStream, expected: bytes) -> None:
        with trio.fail_after(0.001):
            assert await stream.receive_some() == expected

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


class RemoveHooks(trio.abc.Instrument):
    """Removes the driver's instrument after a task step, when `when` says so."""

    def __init__(self, when: Any) -> None:
        self.when = when
        self.removed = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.when(driver()):
            self.removed += remove_hooks()


async def under_load(remover: RemoveHooks) -> None:
    """Load from another process and from this one, beside a task that stays blocked."""
    blocked, peer = pair()
    with echo_peer(4) as socks:
        async with trio.open_nursery() as outer:
            outer.start_soon(blocked.receive_some)
            async with trio.open_nursery() as nursery:
                trio.lowlevel.add_instrument(remover)
                for sock in socks:
                    nursery.start_soon(ping_pong, sock)
                nursery.start_soon(chat, MESSAGES)
            trio.lowlevel.remove_instrument(remover)
            outer.cancel_scope.cancel()
    await blocked.aclose()
    peer.close()
    assert trio_uring.current_statistics().in_flight == 0


@pytest.mark.uring_only("by readiness, there is nothing to remove")
@pytest.mark.parametrize("flags", ["task coop", "task plain"])
@pytest.mark.parametrize("moment", ["nothing queued", "in flight", "idle"])
@in_child()
async def test_the_instrument_is_removed_in_the_middle_of_load(moment: str, flags: str) -> None:
    """The task alone is enough to reap, and the next operation brings the instrument back."""
    use_ring(flags=flags)
    when = {
        "nothing queued": lambda driver: not driver.queue,
        "in flight": lambda driver: driver.ring.table and not driver.queue,
        "idle": lambda driver: not driver.queue and len(driver.ring.table) == 1,
    }[moment]
    remover = RemoveHooks(lambda driver: remover.removed < 20 and when(driver))
    await under_load(remover)
    assert 0 < remover.removed <= 20  # the moment does not come at will


@pytest.mark.long
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_a_last_pass_that_blocks_the_thread_for_long(flags: str) -> None:
    """Two seconds in the step of a task after which the run is over: nothing is raised, and the
    ring is closed."""
    use_ring(flags=flags)
    ours, theirs = socket.socketpair()

    async def main() -> None:
        stream = trio_uring.SocketStream(ours)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            nursery.start_soon(stream.send_all, bytes(2**22))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await stream.aclose()
        time.sleep(2)  # noqa: ASYNC251

    trio.run(main)
    theirs.close()


class Late(BackendRing):
    """At the end of the run, the kernel gives nothing back in the first three turns."""

    engine: Any = None
    turns = 0

    def late(self) -> bool:
        return self.engine is not None and self.engine.phase is ENDING and self.turns < 3

    def drain(self, done: Any) -> Any:
        return False if self.late() else super().drain(done)

    def turn(self, timeout: float, done: Any) -> Any:
        if not self.late():
            return super().turn(timeout, done)
        self.turns += 1
        Paused.now += 5
        return False


class Paused:
    """The module `time` of a process that gets no processor for five seconds now and then."""

    now = 0.0
    sleep = staticmethod(time.sleep)

    @classmethod
    def monotonic(cls) -> float:
        return cls.now


@pytest.mark.uring_only("there is no ring to be emptied")
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_a_pause_while_the_ring_is_emptied_leaks_nothing(flags: str) -> None:
    use_ring(Late, flags=flags)
    ours, theirs = socket.socketpair()

    async def main() -> None:
        stream = trio_uring.SocketStream(ours)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            driver().ring.engine = driver()
            with trio.CancelScope() as scope:  # an answer that makes trio give up on the spot
                scope.cancel()
                await trio.lowlevel.wait_task_rescheduled(lambda _: "nonsense")  # type: ignore[arg-type, return-value]

    _ending.time = _trial.time = Paused  # type: ignore[assignment]
    with pytest.raises(trio.TrioInternalError):
        trio.run(main)
    assert Paused.now == 15
    assert not open_rings()
    theirs.close()
    os._exit(0)  # what trio's own coroutines say when they are destroyed is not asked


async def farewell(
    stream: trio_uring.SocketStream, peer: socket.socket, heard: list[bytes], talks: bool
) -> None:
    """Sends, perhaps, and receives data that only comes after a while from another thread; then
    closes."""
    with trio.CancelScope(shield=True):
        if talks:
            await stream.send_all(b"goodbye")
            assert peer.recv(100) == b"goodbye"
        timer = threading.Thread(target=peer.send, args=(b"farewell",))
        timer.start()
        heard.append(await stream.receive_some())
        timer.join()
        await stream.aclose()
        peer.close()


async def last_words(stream: trio_uring.SocketStream, *arguments: Any) -> None:
    """Blocked when the run ends; then it uses the stream all the same."""
    try:
        await stream.receive_some()
    finally:
        await farewell(stream, *arguments)


@pytest.mark.parametrize("talks", [False, True])
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_system_tasks_use_streams_while_the_run_ends(flags: str, talks: bool) -> None:
    use_ring(flags=flags)
    heard: list[bytes] = []

    async def main() -> None:
        for _ in range(3):
            trio.lowlevel.spawn_system_task(last_words, *pair(), heard, talks)
        await trio.testing.wait_all_tasks_blocked()

    for seed in range(20):
        print(f"seed {seed}", flush=True)
        trio._core._run._r.seed(seed)  # type: ignore[attr-defined]
        trio.run(main)
        assert heard == [b"farewell"] * 3
        heard.clear()


async def generator(
    stream: trio_uring.SocketStream, *arguments: Any
) -> AsyncGenerator[bytes, None]:
    try:
        while True:
            yield await stream.receive_some()
    finally:
        await farewell(stream, *arguments)


@pytest.mark.parametrize("talks", [False, True])
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_async_generators_use_streams_while_they_are_finalised(flags: str, talks: bool) -> None:
    """They are finalised when all tasks are gone, the driver's too."""
    use_ring(flags=flags)
    heard: list[bytes] = []
    kept = []  # alive at the end of the run: trio finalises them

    async def main() -> None:
        for _ in range(5):
            stream, peer = pair()
            peer.send(b"first")
            kept.append(generator(stream, peer, heard, talks))
            assert await kept[-1].__anext__() == b"first"

    for seed in range(5):
        print(f"seed {seed}", flush=True)
        trio._core._run._r.seed(seed)  # type: ignore[attr-defined]
        trio.run(main)
        assert heard == [b"farewell"] * 5
        heard.clear()
        kept.clear()


@in_child()
def test_a_server_in_a_system_task_ends_with_the_run() -> None:
    """Its connections are idle, busy or half done; nobody but trio tells it that the run is
    over."""
    socks: list[socket.socket] = []

    async def echo(stream: trio_uring.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    async def serve(task_status: trio.TaskStatus[list[trio_uring.SocketListener]]) -> None:
        await trio_uring.serve_tcp(echo, 0, host="127.0.0.1", task_status=task_status)

    async def main() -> None:
        started = trio.Event()
        ports: list[int] = []

        class Status:
            def started(self, listeners: list[trio_uring.SocketListener]) -> None:
                ports.append(listeners[0].socket.getsockname()[1])
                started.set()

        trio.lowlevel.spawn_system_task(serve, Status())
        await started.wait()
        for _ in range(20):
            stream = await trio_uring.open_tcp_stream("127.0.0.1", ports[0])
            await stream.send_all(b"hello")
            assert await stream.receive_exactly(5) == b"hello"
            if random.Random(len(socks)).random() < 0.5:
                await stream.aclose()
            else:
                idle = socket.socket(fileno=stream.socket.detach())
                socks.append(idle)

    trio.run(main)
    for sock in socks:
        sock.setblocking(True)
        assert sock.recv(1) == b"", "the server's end was not closed"
        sock.close()
