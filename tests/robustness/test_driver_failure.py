"""The driver fails: every waiting task is told at once; nothing spins, hangs or leaks silently.

Rules of this file: that nothing spins is shown by counting trio's passes while a timer of another
kind runs, never by a clock.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import socket
import warnings
from typing import Any

import pytest
import trio
import trio.testing
from support.child import (
    FLAGS,
    BackendRing,
    Passes,
    driver,
    expect_log,
    in_child,
    open_rings,
    pair,
    use_ring,
)
from support.faulty import FaultyRing, drain_fails
from support.seccomp import IO_URING_ENTER, deny

import trio_uring
from trio_uring._descriptors.direction import RECEIVE
from trio_uring._errors import RingBrokenError

pytestmark = pytest.mark.uring_only("by readiness, there is no driver that could fail")

BLOCKED = 20
LEAK = "trio_uring leaked a ring"


async def expect_broken(operation: Any, *arguments: Any) -> None:
    with pytest.raises(trio.BrokenResourceError, match="driver has failed"):
        await operation(*arguments)


async def break_under_blocked_tasks(
    break_it: Any,
) -> list[tuple[trio_uring.SocketStream, socket.socket]]:
    """Tasks blocked in receives and sends; `break_it`, one more operation, and all of them must
    wake."""
    pairs = [pair() for _ in range(BLOCKED)]
    async with trio.open_nursery() as nursery:
        for index, (stream, _) in enumerate(pairs):
            if index % 2:
                nursery.start_soon(expect_broken, stream.receive_some)
            else:
                nursery.start_soon(expect_broken, stream.send_all, bytes(2**22))
        await trio.testing.wait_all_tasks_blocked()
        assert trio_uring.current_statistics().in_flight == BLOCKED
        break_it()
        pairs.append(pair())
        nursery.start_soon(expect_broken, pairs[-1][0].receive_some)
    return pairs


def forbid_enter() -> None:
    deny(IO_URING_ENTER, errno.EPERM)


async def broken_and_quiet(break_it: Any) -> None:
    """After the failure: operations fail at once, closing works, and data for the lost operations
    spins nothing."""
    pairs = await break_under_blocked_tasks(break_it)
    for stream, _ in pairs[:4]:
        await expect_broken(stream.receive_some)
        await expect_broken(stream.send_all, b"x")
    for _, peer in pairs:
        peer.setblocking(False)
        peer.send(b"completes a receive that nobody waits for")
        with contextlib.suppress(BlockingIOError):
            peer.recv(2**20)
    passes = Passes()
    trio.lowlevel.add_instrument(passes)
    await trio.to_thread.run_sync(some_time)
    assert passes.count < 20, "the failed driver spins"
    trio.lowlevel.remove_instrument(passes)
    for stream, peer in pairs:
        await stream.aclose()
        peer.close()


def some_time() -> None:
    """Some real time passes in another thread: long enough for thousands of passes, were there
    any."""
    select.select([], [], [], 0.2)


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_enter_is_forbidden_in_the_middle_of_a_run(flags: str) -> None:
    use_ring(flags=flags)
    with pytest.warns(ResourceWarning, match=LEAK):
        trio.run(broken_and_quiet, forbid_enter)
    expect_log("driver has failed")
    expect_log("could not empty its ring")
    assert len(open_rings()) == 1  # S7: kept, because the kernel may still write to its memory
    os._exit(0)


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
def test_a_fault_in_drain_is_told_to_everyone_and_leaks_nothing(flags: str) -> None:
    use_ring(FaultyRing, flags=flags)
    trio.run(broken_and_quiet, lambda: drain_fails(1))
    expect_log("driver has failed")


@in_child()
def test_a_drain_that_always_fails_is_leaked_loudly() -> None:
    use_ring(FaultyRing)
    with pytest.warns(ResourceWarning, match=LEAK):
        trio.run(broken_and_quiet, lambda: drain_fails(10**9))
    expect_log("driver has failed")
    assert len(open_rings()) == 1
    os._exit(0)


class SilentRing(BackendRing):
    """Gives nothing back, once told to be silent."""

    silent = False

    def drain(self, *done: Any) -> Any:
        return False if self.silent else super().drain(*done)

    def turn(self, timeout: float, done: Any) -> Any:
        return False if self.silent else super().turn(timeout, done)


@in_child()
def test_a_kernel_that_gives_nothing_back_does_not_hold_up_the_end() -> None:
    """trio crashes with a receive in flight that never completes: the end comes, and the leak is
    loud. What the kernel may still write to is not used in a later run."""
    use_ring(SilentRing)
    ours, theirs = socket.socketpair()
    streams = []

    async def main() -> None:
        stream = trio_uring.SocketStream(ours)
        streams.append(stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            driver().ring.silent = True
            with trio.CancelScope() as scope:  # an answer that makes trio give up on the spot
                scope.cancel()
                await trio.lowlevel.wait_task_rescheduled(lambda _: "nonsense")  # type: ignore[arg-type, return-value]

    with pytest.warns(ResourceWarning, match=LEAK), pytest.raises(trio.TrioInternalError):
        trio.run(main)
    gc.collect()  # the coroutine of the receive, with its task

    async def again() -> None:
        with pytest.raises(RuntimeError, match="did not give back"):
            await streams[0].receive_some()

    SilentRing.turn = BackendRing.turn  # type: ignore[method-assign]
    trio.run(again)
    theirs.close()
    os._exit(0)


@in_child()
async def test_an_operation_that_cannot_be_submitted_fails_alone() -> None:
    """Its error is its own task's, at once: nothing else wakes trio here. Another task's operation
    goes on."""
    stream, peer = pair()
    other, other_peer = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_one, other, b"untouched")
        await trio.testing.wait_all_tasks_blocked()
        operation = stream._receiving.get(RECEIVE)
        operation.flags = "not a number"  # type: ignore[assignment]
        with pytest.raises(TypeError):
            await stream.receive_some()
        operation.flags = 0
        peer.send(b"again")
        assert await stream.receive_some() == b"again"
        other_peer.send(b"untouched")
    for end in (stream, other):
        await end.aclose()
    peer.close()
    other_peer.close()


async def receive_one(stream: trio_uring.SocketStream, expected: bytes) -> None:
    assert await stream.receive_some() == expected


@in_child()
def test_a_run_can_end_after_the_driver_failed_with_tasks_blocked() -> None:
    """Cancelled and failed in the same pass; the next run has a new ring and works."""
    use_ring(FaultyRing)
    ours, theirs = socket.socketpair()

    async def main() -> None:
        async with trio_uring.SocketStream(ours) as stream:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.receive_some)
                    await trio.testing.wait_all_tasks_blocked()
                    drain_fails(1)
                    scope.cancel()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        # Cancelled is absorbed, BrokenResourceError is not
        with pytest.raises(BaseException):  # noqa: B017, PT011
            trio.run(main)
    expect_log("driver has failed")
    theirs.close()
    trio.run(next_run)


async def next_run() -> None:
    stream, peer = pair()
    async with stream:
        peer.send(b"works")
        assert await stream.receive_some() == b"works"
    peer.close()


class BreaksAtItsSecondEnter(BackendRing):
    """Its second enter fails for good: operations of the same pass are in the kernel by then."""

    entered = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._turn_at = 0  # so that a pass calls `turn`

    def flush(self) -> Any:
        self.count()
        return super().flush()

    def turn(self, timeout: float, done: list[Any]) -> bool:
        self.count()
        return super().turn(timeout, done)

    def count(self) -> None:
        self.entered += 1
        if self.entered == 2:
            raise RingBrokenError(errno.EPERM, "injected")


@in_child()
def test_a_failure_within_a_pass_keeps_what_the_kernel_has_pinned() -> None:
    buffers = [bytearray(4000) for _ in range(20)]

    async def receive_into_all_of_them() -> None:
        pairs = [pair() for _ in buffers]
        async with trio.open_nursery() as nursery:
            for (stream, _), buffer in zip(pairs, buffers):
                nursery.start_soon(expect_broken, stream.receive_into, buffer)
        held = driver().ring.table.values()
        assert len(held) >= 8
        assert all(op.pin is not None for op in held)
        resizable = 0
        for buffer in buffers:
            with contextlib.suppress(BufferError):
                buffer.append(0)
                resizable += 1
        assert resizable == len(buffers) - len(held)

    use_ring(BreaksAtItsSecondEnter, sq_entries=16)
    with pytest.warns(ResourceWarning):
        trio.run(receive_into_all_of_them)
    expect_log("driver has failed")
    expect_log("could not empty its ring")
    os._exit(0)


@in_child()
async def test_what_fails_twice_in_a_pass_fails_once() -> None:
    """A pass that has failed goes no further."""
    stream, peer = pair()
    engine = driver()

    def fail(*_: Any) -> None:
        raise MemoryError("injected")

    turn = engine.ring.turn
    engine.ring.turn, engine.ring._turn_at = fail, 0  # so that a pass calls it
    engine.at_flush(fail)
    await expect_broken(stream.receive_some)
    engine.ring.turn = turn
    await trio.lowlevel.checkpoint()
    expect_log("driver has failed")
    await stream.aclose()
    peer.close()
