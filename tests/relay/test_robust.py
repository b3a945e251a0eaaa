"""The driver fails, the run ends or crashes, the process forks, Ctrl-C comes: during copies.

Rules of this file: as in tests/robustness, each test has its own process, which checks that nothing
is left.
"""

from __future__ import annotations

import gc
import os
import signal
import tempfile
import warnings
from typing import Any

import pytest
import trio
import trio.testing
from support.by_hand import run_by_hand
from support.child import EVERY_FLAGS, driver, expect_log, in_child, use_ring
from support.faulty import FaultyRing, drain_fails
from support.relay import Line, pumps_only
from support.streams import clog, pattern

import trio_uring
from trio_uring._relay.pipes import pipes
from trio_uring._ring import uring as _ring
from trio_uring._ring.op import Opcode


async def close(*lines: Line) -> None:
    for ends in lines:
        await ends.source.aclose()
        await ends.sink.aclose()
        ends.near.close()
        ends.far.close()


async def expect_broken(call: Any, *arguments: Any) -> None:
    with pytest.raises(trio.BrokenResourceError, match="driver has failed"):
        await call(*arguments)


def three() -> list[Line]:
    """An idle one, one with a send that blocks, one that will have a full pipe."""
    lines = [Line("unix") for _ in range(3)]
    clog(lines[1].sink._lease.fd)
    return lines


async def fill(lines: list[Line]) -> None:
    for ends in lines[1:]:
        try:
            for _ in range(100):
                ends.near.send(pattern(65536))
                await trio.lowlevel.checkpoint()
        except BlockingIOError:
            pass
    await trio.testing.wait_all_tasks_blocked()


@pumps_only
@pytest.mark.parametrize("flags", EVERY_FLAGS)
@in_child()
def test_a_failed_driver_ends_every_copy(flags: str) -> None:
    async def main() -> None:
        lines = three()
        with tempfile.TemporaryFile() as file:
            file.write(bytes(3_000_000))
            file.flush()
            blocked = Line("unix")
            async with trio.open_nursery() as nursery:
                for ends in lines:
                    nursery.start_soon(
                        expect_broken, trio_uring.copy_stream, ends.source, ends.sink
                    )
                nursery.start_soon(expect_broken, trio_uring.send_file, blocked.sink, file)
                await fill(lines)
                assert pipes(driver()).count == 1
                drain_fails(1)
                lines[0].near.send(b"something for the drain")
        for ends in lines:
            assert not ends.source._receiving.held
            assert not ends.sink._sending.held
            await expect_broken(trio_uring.copy_stream, ends.source, ends.sink)
        await close(*lines, blocked)

    use_ring(FaultyRing, flags=flags)
    trio.run(main)
    expect_log("driver has failed")


class Refusing(_ring.UringRing):
    """Refuses operations of one opcode as it would a bad argument."""

    refused: int | None = None

    def submit(self, op: Any) -> bool:
        if op.opcode == self.refused:
            raise ZeroDivisionError("injected")
        return super().submit(op)


@pumps_only
@pytest.mark.parametrize("opcode", ["SEND", "RECV", "POLL_ADD"])
@in_child()
def test_an_operation_that_is_refused_ends_its_copy_only(opcode: str) -> None:
    """In the flush of a pass, and in that of a reap."""

    async def main() -> None:
        other, ends = Line("unix"), Line("unix")
        ring: Any = driver().ring
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_uring.copy_stream, other.source, other.sink)
            await trio.testing.wait_all_tasks_blocked()
            data = pattern(ends.near.send(pattern(200_000)))
            ring.refused = Opcode[opcode]
            with pytest.raises(ZeroDivisionError):
                await trio_uring.copy_stream(ends.source, ends.sink)
            ring.refused = None
            sent = ends.read()
            rest = b""
            while len(sent) + len(rest) < len(data):
                rest += await ends.source.receive_some()
            assert sent + rest == data
            other.near.send(b"untouched")
            assert await other.read_exactly(9) == b"untouched"
            nursery.cancel_scope.cancel()
        await close(other, ends)

    use_ring(Refusing)
    trio.run(main)


@pytest.mark.parametrize("flags", EVERY_FLAGS)
@in_child()
def test_the_run_ends_with_copies_in_system_tasks(flags: str) -> None:
    lines: list[Line] = []

    async def copy(ends: Line) -> None:
        with trio.CancelScope(shield=False):
            await trio_uring.copy_stream(ends.source, ends.sink)

    async def main() -> None:
        lines.extend(three())
        for ends in lines:
            trio.lowlevel.spawn_system_task(copy, ends)
        await fill(lines)

    use_ring(flags=flags)
    trio.run(main)
    assert lines[1].source._receiving.kept is not None
    assert lines[2].source._receiving.kept is not None
    trio.run(close, *lines)


@in_child()
def test_a_run_that_crashes_leaves_nothing_of_its_copies() -> None:
    lines: list[Line] = []

    async def main() -> None:
        lines.extend(three())
        async with trio.open_nursery() as nursery:
            for ends in lines:
                nursery.start_soon(trio_uring.copy_stream, ends.source, ends.sink)
            await fill(lines)
            with trio.CancelScope() as scope:
                scope.cancel()
                await trio.lowlevel.wait_task_rescheduled(lambda _: "nonsense")  # type: ignore[arg-type, return-value]

    use_ring()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(trio.TrioInternalError):
            trio.run(main)
    gc.collect()  # a loop ends with its coroutine, which nobody has any more
    trio.run(next_run, lines)
    os._exit(0)


@pumps_only
@in_child()
def test_a_run_that_crashes_in_the_pass_in_which_copies_begin() -> None:
    lines: list[Line] = []
    queued = 0

    async def main() -> None:
        nonlocal queued
        async with trio.open_nursery() as nursery:
            while not queued:  # trio decides who comes first in a pass
                lines.append(Line("unix"))
                nursery.start_soon(trio_uring.copy_stream, lines[-1].source, lines[-1].sink)
                await trio.lowlevel.checkpoint()
                queued = len(driver().queue)
            with trio.CancelScope() as scope:
                scope.cancel()
                await trio.lowlevel.wait_task_rescheduled(lambda _: "nonsense")  # type: ignore[arg-type, return-value]

    use_ring()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(trio.TrioInternalError):
            trio.run(main)
    assert not any(ends.source._receiving.held or ends.sink._sending.held for ends in lines)
    os._exit(0)


async def next_run(lines: list[Line]) -> None:
    """The streams go on in another run, with what the copies had held."""
    for ends in lines[1:]:
        rest = await ends.source.receive_some()
        assert rest
    lines[0].near.send(b"again")
    assert await trio_uring.copy_stream(lines[0].source, lines[0].sink, max_bytes=5) == 5
    await close(*lines)


@pumps_only
@in_child()
async def test_a_forked_child_is_refused() -> None:
    """What the parent has used is the parent's."""
    lines, parents = three(), driver()
    await lines[0].sink.send_all(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio_uring.copy_stream, lines[2].source, lines[2].sink)
        await fill(lines)
        pid = os.fork()
        if not pid:
            try:
                with pytest.raises(RuntimeError, match="forked"):
                    run_by_hand(trio_uring.copy_stream(lines[0].source, lines[0].sink))
                assert not lines[0].source._receiving.held
                assert not lines[0].sink._sending.held
                assert pipes(parents)._idle == []
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert (
            os.waitstatus_to_exitcode((await trio.to_thread.run_sync(os.waitpid, pid, 0))[1]) == 0
        )
        nursery.cancel_scope.cancel()
    await close(*lines)


@in_child()
def test_interrupts_lose_nothing() -> None:
    """Ctrl-C again and again, from a timer of real time, in copies with a callback."""
    data = pattern(30_000_000)
    ends: Any = None
    got = bytearray()
    position = 0
    interrupts = 0
    copy_stream = trio_uring.copy_stream  # imported now: an interrupt would cut that short, too

    # the copy is to be interrupted, not what the test counts with
    @trio.lowlevel.enable_ki_protection
    async def feed() -> None:
        nonlocal position
        while position < len(data):
            try:
                # The last bytes come when there has been an interrupt.
                stop = position + 65536 if interrupts else min(position + 65536, len(data) - 1)
                position += ends.near.send(data[position:stop])
            except BlockingIOError:
                pass
            await trio.lowlevel.checkpoint()

    # the timer runs only while trio has its own handler
    @trio.lowlevel.enable_ki_protection
    async def within_a_timer() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        try:
            await main()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    @trio.lowlevel.disable_ki_protection
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed)

            @trio.lowlevel.enable_ki_protection
            async def drain() -> None:
                while len(got) < len(data):
                    got.extend(ends.read())
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

            nursery.start_soon(drain)
            await copy_stream(ends.source, ends.sink, progress=lambda _: None)

    async def make() -> None:
        nonlocal ends
        ends = Line("unix")

    trio.run(make)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    while len(got) < len(data):
        try:
            trio.run(within_a_timer)
        except BaseException as exc:
            interrupts += "KeyboardInterrupt" in repr(exc)  # by itself, or in a group
        if interrupts > 5:
            break
    signal.signal(signal.SIGALRM, signal.SIG_IGN)

    async def finish() -> None:
        got.extend(ends.read())
        trailing = bytearray()
        ends.near.close()
        async for chunk in ends.source:
            trailing.extend(chunk)
        assert got + trailing == data[:position]
        await close(ends)

    assert interrupts
    trio.run(finish)
