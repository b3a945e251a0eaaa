"""copy_stream between streams of this package: what arrives, what is held, what is left behind."""

from __future__ import annotations

import errno
import fcntl
import signal
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.by_hand import park
from support.relay import BOUND, KINDS, Line, line, pipes_open, pumps_only
from support.streams import (
    clog,
    clog_tcp,
    count_of,
    operations_on,
    pattern,
    receive_all,
    stream_and_peer,
    until,
    until_blocked,
)

import trio_uring
from trio_uring._driver.run import install
from trio_uring._relay import pipes as _pipes
from trio_uring._ring.uring import UringRing

if TYPE_CHECKING:
    from collections.abc import Iterator

WAYS = ["splice", "buffers"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Bulk through pipes; or not, because SIGPIPE is not ignored: splice(2) could end the
    process."""
    before = signal.getsignal(signal.SIGPIPE)
    if request.param == "buffers":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    yield request.param
    signal.signal(signal.SIGPIPE, before)


def by_pump(way: str, kind: str) -> bool:
    """Whether it is no loop: out of a pipe, which may have other readers, pumps are by splice(2)
    only."""
    return (
        way != "loop"
        and trio_uring._driver.run.current_driver().engine.pumps
        and (way == "splice" or kind in ("tcp", "unix"))
    )


class Copying:
    """A copy in a task of its own, and what became of it."""

    def __init__(self, ends: Line, nursery: trio.Nursery, **named: Any) -> None:
        self.ends = ends
        self.result: Any = None
        self.scope = trio.CancelScope()
        self.named = named
        self.done = trio.Event()
        nursery.start_soon(self.run)

    async def run(self) -> None:
        try:
            with self.scope:
                self.result = await trio_uring.copy_stream(
                    self.ends.source, self.ends.sink, **self.named
                )
        except Exception as exc:
            self.result = exc
        self.done.set()

    async def cancel(self) -> None:
        self.scope.cancel()
        await self.done.wait()
        assert self.scope.cancelled_caught


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 70_000, 3_000_000])
async def test_everything_arrives_and_is_counted(way: str, kind: str, size: int) -> None:
    data = pattern(size)
    async with line(kind) as ends, trio.open_nursery() as nursery:
        copying = Copying(ends, nursery)
        nursery.start_soon(write_and_end, ends, data)
        assert await ends.read_exactly(size) == data
        await copying.done.wait()
        assert copying.result == size
        assert ends.sink.bytes_sent == size
        assert ends.read() == b""  # nothing more, and no end
        statistics = trio_uring.current_statistics()
        assert (statistics.bytes_received, statistics.bytes_sent) == (size, size)
        if by_pump(way, kind) and size != 70_000:
            assert (count_of("POLL_ADD").submitted > 2) == (way == "splice" and size > 70_000)


async def write_and_end(ends: Line, data: bytes) -> None:
    await ends.write(data)
    ends.end()


@pytest.mark.parametrize("kind", ["tcp", "pipe"])
@pytest.mark.parametrize("max_bytes", [0, 1, 4096, 50_000, 200_000])
async def test_no_byte_more_is_taken_than_asked_for(way, kind, max_bytes):
    data = pattern(300_000)
    async with line(kind) as ends, trio.open_nursery() as nursery:
        nursery.start_soon(write_and_end, ends, data)
        got = []

        async def collect() -> None:
            got.append(await ends.read_exactly(max_bytes))

        nursery.start_soon(collect)
        assert (
            await trio_uring.copy_stream(ends.source, ends.sink, max_bytes=max_bytes) == max_bytes
        )
        assert ends.source._receiving.kept is None
        assert await receive_all(ends.source) == data[max_bytes:]
        await until(lambda: got, "all of it")
        assert got == [data[:max_bytes]]


async def test_max_bytes_is_checked():
    async with line() as ends:
        with pytest.raises(ValueError, match="max_bytes"):
            await trio_uring.copy_stream(ends.source, ends.sink, max_bytes=-1)
        with pytest.raises(TypeError):
            await trio_uring.copy_stream(ends.source, ends.sink, max_bytes=1.5)
        with trio.testing.assert_checkpoints():
            await trio_uring.copy_stream(ends.source, ends.sink, max_bytes=0)


async def test_what_the_source_had_kept_goes_first(way):
    data = pattern(400_000)
    async with line() as ends, trio.open_nursery() as nursery:
        ends.source._put_back([data[:300_000], data[300_000:300_010]])
        nursery.start_soon(write_and_end, ends, data[300_010:])
        copying = Copying(ends, nursery, max_bytes=5)
        assert await ends.read_exactly(5) == data[:5]
        await copying.done.wait()
        copying = Copying(ends, nursery)
        assert await ends.read_exactly(len(data) - 5) == data[5:]
        await copying.done.wait()
        assert copying.result == len(data) - 5


@pumps_only
async def test_the_task_wakes_once(way):
    """However many chunks there are."""
    data = pattern(2_000_000)
    async with line() as ends, trio.open_nursery() as nursery:
        copying = Copying(ends, nursery)
        await until_blocked(ends.source.socket.fileno())
        [task] = [task for task in nursery.child_tasks if "Copying" in task.name]
        steps = Steps(task)
        trio.lowlevel.add_instrument(steps)
        nursery.start_soon(write_and_end, ends, data)
        assert await ends.read_exactly(len(data)) == data
        await copying.done.wait()
        trio.lowlevel.remove_instrument(steps)
        assert steps.count == 1


@pumps_only
async def test_a_step_does_not_need_a_pass():
    """trio's loop goes on with what was chained, if no task has anything to do. The task way makes
    a pass for each step."""
    by_task = trio_uring._driver.run.current_driver().engine.hooks is not None
    async with line() as ends, trio.open_nursery() as nursery:
        copying = Copying(ends, nursery, max_bytes=100_000)
        await until_blocked(ends.source._receiving.fd)
        assert ends.near.send(pattern(100_000)) == 100_000
        before = trio_uring.current_statistics()
        await copying.done.wait()
        after = trio_uring.current_statistics()
        steps = after.completions - before.completions
        assert steps >= 3
        assert after.passes - before.passes <= (steps + 2 if by_task else 2)


class Steps(trio.abc.Instrument):
    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.task, self.count = task, 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self.task


async def test_small_messages_are_passed_on_as_they_come():
    async with line() as ends, trio.open_nursery() as nursery:
        copying = Copying(ends, nursery)
        for number in range(50):
            message = b"%d" % number
            await ends.write(message)
            assert await ends.read_exactly(len(message)) == message
        ends.end()
        await copying.done.wait()
        assert count_of("RECV").completed == 51


@pumps_only
async def test_bulk_goes_back_to_messages():
    async with line() as ends, trio.open_nursery() as nursery:
        copying = Copying(ends, nursery)
        await ends.write(pattern(100_000))
        await ends.read_exactly(100_000)
        before = count_of("RECV").submitted
        for _ in range(20):
            await ends.write(b"m")
            await ends.read_exactly(1)
        assert 10 <= count_of("RECV").submitted - before <= 14
        await copying.cancel()


# -- memory


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("from_the_start", [True, False])
async def test_a_sink_that_takes_nothing_bounds_what_is_held(way, kind, from_the_start):
    data = pattern(8_000_000)
    async with line(kind) as ends, trio.open_nursery() as nursery:
        clogged = 0
        if from_the_start:
            clogged = clog_sink(ends, kind)
        copying = Copying(ends, nursery)
        nursery.start_soon(write_and_end, ends, data)
        await until_rest(ends)
        assert 0 < held(ends) <= BOUND
        pump, is_pipe = by_pump(way, kind), kind in ("pipe", "fifo")
        assert pipes_open() == (pump and way == "splice" and (is_pipe or not from_the_start))
        ops = operations_on(ends.sink._lease.fd) + operations_on(ends.source._receiving.fd)
        if from_the_start:
            received = count_of("RECV").completed + count_of("READ").completed
            assert received == (0 if pump and is_pipe else 2 if pump and way == "buffers" else 1)
        # Nothing is being received.
        assert {op.opcode for op in ops} <= {"SEND", "WRITE", "POLL_ADD"}
        await copying.cancel()
        rest = ends.source._receiving.kept
        assert 0 < rest.size <= BOUND
        sent = ends.sink.bytes_sent
        assert data[sent : sent + rest.size] == rest.peek(rest.size)
        assert (sent == 0) == from_the_start
        assert len(await ends.read_exactly(clogged)) == clogged
        copying = Copying(ends, nursery)
        assert await ends.read_exactly(len(data)) == data
        await copying.done.wait()


def clog_sink(ends: Line, kind: str) -> int:
    if kind != "tcp":
        return clog(ends.sink._lease.fd)
    [clogged] = clog_tcp((ends.sink.socket, ends.far))
    return clogged


async def until_rest(ends: Line) -> None:
    """Until passes change nothing any more."""
    before, quiet = -1, 0
    while quiet < 20:
        await trio.lowlevel.checkpoint()
        now = trio_uring.current_statistics().bytes_received
        quiet, before = (quiet + 1, now) if now == before else (0, now)


def held(ends: Line) -> int:
    statistics = trio_uring.current_statistics()
    return statistics.bytes_received - statistics.bytes_sent


async def test_an_idle_copy_holds_nothing(way):
    async with line() as ends, trio.open_nursery() as nursery:
        copying = Copying(ends, nursery)
        await ends.write(pattern(500_000)[:60_000])
        await ends.read_exactly(60_000)
        await until_blocked(ends.source.socket.fileno())
        assert trio_uring.current_statistics().pinned == 0
        assert pipes_open() <= _pipes.IDLE_MAX
        await copying.cancel()


@pumps_only
async def test_without_pipes_bulk_goes_through_buffers(monkeypatch):
    def refused() -> None:
        raise OSError(errno.EMFILE, "no descriptors")

    monkeypatch.setattr(_pipes.os, "pipe", refused)
    data = pattern(1_000_000)
    async with line() as ends, trio.open_nursery() as nursery:
        copying = Copying(ends, nursery)
        nursery.start_soon(write_and_end, ends, data)
        assert await ends.read_exactly(len(data)) == data
        await copying.done.wait()
        assert copying.result == len(data)


@pumps_only
async def test_pipes_are_bounded_and_given_back(monkeypatch):
    monkeypatch.setattr(_pipes, "PIPES_MAX", 2)
    pipes = _pipes.pipes(trio_uring._driver.run.current_driver().engine)
    lines = [Line("unix") for _ in range(5)]
    data = pattern(2_000_000)
    async with trio.open_nursery() as nursery:
        copies = [Copying(ends, nursery) for ends in lines]
        for ends in lines:
            nursery.start_soon(write_and_end, ends, data)
        await until_rest(lines[0])
        assert pipes.count == 2
        for copying in copies:
            await copying.cancel()
        assert pipes.count <= 2
        assert not any(pipe.held for pipe in pipes._idle)
        nursery.cancel_scope.cancel()
    for ends in lines:
        rest = ends.source._receiving.kept
        sent = ends.sink.bytes_sent
        assert data[sent : sent + rest.size] == rest.peek(rest.size)
        for end in (ends.source, ends.sink):
            await end.aclose()
        ends.near.close()
        ends.far.close()


# -- conflicts, checkpoints


async def test_both_streams_are_busy_meanwhile():
    async with line() as ends, trio.open_nursery() as nursery:
        copying = Copying(ends, nursery)
        await until_blocked(ends.source.socket.fileno())
        other, peer = stream_and_peer()
        for call in (
            ends.source.receive_some,
            lambda: ends.sink.send_all(b"x"),
            ends.sink.send_eof,
            lambda: trio_uring.copy_stream(ends.source, other),
            lambda: trio_uring.copy_stream(other, ends.sink),
        ):
            with pytest.raises(trio.BusyResourceError):
                await call()
        await ends.source.send_all(b"the other directions are free")
        await copying.cancel()
        with trio.move_on_after(0):
            await other.receive_some()  # the refused copies have left it free
        await ends.sink.send_all(b"x")
        await other.aclose()
        peer.close()


async def test_a_copy_in_a_cancelled_scope_moves_nothing():
    async with line() as ends:
        await ends.sink.send_all(b"earlier")
        await ends.write(b"stays")
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio_uring.copy_stream(ends.source, ends.sink)
        assert scope.cancelled_caught
        assert ends.sink.bytes_sent == 0  # it is where to go on: not what the call before has sent
        assert ends.read() == b"earlier"
        assert await ends.source.receive_some() == b"stays"


async def test_a_copy_of_a_stream_to_itself_is_an_echo():
    stream, peer = stream_and_peer()
    peer.setblocking(False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio_uring.copy_stream, stream, stream)
        for message in (b"once", b"twice"):
            peer.send(message)
            await until(lambda: peer_has(peer), "the echo")
            assert peer.recv(100) == message
        nursery.cancel_scope.cancel()
    await stream.aclose()
    peer.close()


def peer_has(peer: Any) -> bool:
    try:
        return bool(peer.recv(1, 2))  # MSG_PEEK
    except BlockingIOError:
        return False


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_while_idle_nothing_remains(kind):
    async with line(kind) as ends, trio.open_nursery() as nursery:
        for _ in range(3):
            copying = Copying(ends, nursery)
            await until_blocked(ends.source._receiving.fd)
            await copying.cancel()
            assert not trio_uring.current_operations()
            assert all(op.then is None for op in ends.source._lease.operations())
        await ends.write(b"still here")
        assert await ends.source.receive_some() == b"still here"
        # A copy's own operations go with it; those of the stream's directions are used again.
        assert all(isinstance(kind, int) for kind in ends.source._receiving.operations)


async def test_cancelled_after_the_end_of_the_source_with_bytes_to_send(way):
    async with line() as ends, trio.open_nursery() as nursery:
        clog(ends.sink._lease.fd)
        copying = Copying(ends, nursery)
        await ends.write(b"end")
        ends.end()
        await until_rest(ends)
        await copying.cancel()
        assert await ends.source.receive_some() == b"end"
        assert await ends.source.receive_some() == b""


@pytest.mark.uring_only(
    "without a ring nothing is done before a task runs, and so a cancel comes first"
)
async def test_cancelled_when_all_was_done_it_returns():
    """The cancellation is left for the next checkpoint. With DEFER_TASKRUN a cancel would always
    come first."""
    install(UringRing("coop"))
    async with line() as ends, trio.open_nursery() as nursery:
        copying = Copying(ends, nursery)
        await ends.write(b"end")
        assert await ends.read_exactly(3) == b"end"
        await until_blocked(ends.source._receiving.fd)
        ends.end()  # now the kernel has done the last receive
        copying.scope.cancel()
        await copying.done.wait()
        assert copying.result == 3
        assert not copying.scope.cancelled_caught


# -- errors


@pytest.mark.parametrize("which", ["source", "sink"])
@pytest.mark.parametrize("state", ["idle", "from the start", "in the middle"])
async def test_one_of_them_is_closed_meanwhile(way, which, state):
    async with line("pipe") as ends, trio.open_nursery() as nursery:
        # So that what is held goes in parts.
        fcntl.fcntl(ends.sink._lease.fd, fcntl.F_SETPIPE_SZ, 4096)
        clogged = clog(ends.sink._lease.fd) if state == "from the start" else 0
        copying = Copying(ends, nursery)
        if state == "idle":
            await until_blocked(ends.source._receiving.fd)
        else:
            async with trio.open_nursery() as writing:
                writing.start_soon(write_and_end, ends, pattern(3_000_000))
                await until_rest(ends)
                writing.cancel_scope.cancel()
            assert held(ends)
        taken = trio_uring.current_statistics().bytes_received
        await getattr(ends, which).aclose()
        if which == "source":  # what had come before is sent before it is told
            assert (await ends.read_exactly(clogged + taken))[clogged:] == pattern(taken)
        await copying.done.wait()
        assert type(copying.result) is trio.ClosedResourceError
        assert which in str(copying.result)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_closed_sink_did_not_take_goes_back(way, kind):
    data = pattern(200_000)
    async with line(kind) as ends, trio.open_nursery() as nursery:
        clog_sink(ends, kind)
        copying = Copying(ends, nursery)
        async with trio.open_nursery() as writing:
            writing.start_soon(write_and_end, ends, data)
            await until_rest(ends)
            for call in (ends.source.receive_some, lambda: ends.sink.send_all(b"x")):
                with pytest.raises(trio.BusyResourceError):
                    await call()
            await ends.sink.aclose()
            await copying.done.wait()
            assert type(copying.result) is trio.ClosedResourceError
            assert "sink" in str(copying.result)
            assert ends.sink.bytes_sent == 0
            assert await receive_all(ends.source) == data


@pytest.mark.parametrize("kind", KINDS)
async def test_a_source_that_is_closed_while_it_is_idle(way, kind):
    async with line(kind) as ends, trio.open_nursery() as nursery:
        copying = Copying(ends, nursery)
        await ends.write(b"one")
        assert await ends.read_exactly(3) == b"one"
        await until_rest(ends)
        await ends.source.aclose()
        await copying.done.wait()
        assert type(copying.result) is trio.ClosedResourceError
        assert "source" in str(copying.result)
        await ends.sink.send_all(b"free")
        assert await ends.read_exactly(4) == b"free"


@pumps_only
@pytest.mark.parametrize("which", ["source", "sink"])
async def test_closed_in_the_pass_in_which_it_began(which):
    """Nothing of it may reach the kernel: the descriptor's number may be a stranger's by then."""
    queue = trio_uring._driver.run.current_driver().engine.queue
    seen = 0
    for _ in range(100):  # trio decides who comes first in a pass
        async with line() as ends, trio.open_nursery() as nursery:
            copying = Copying(ends, nursery)
            await trio.lowlevel.checkpoint()
            queued = [op for op in queue if op.fd == ends.source._receiving.fd]
            getattr(ends, which)._close()
            if queued:
                seen += 1
                assert queued[0] not in queue
                assert not count_of("RECV").submitted
            await copying.done.wait()
            assert type(copying.result) is trio.ClosedResourceError
        if seen == 3:
            break
    assert seen == 3


async def test_a_broken_sink_is_named_and_what_it_did_not_take_is_given_back(way):
    data = pattern(200_000)
    async with line() as ends, trio.open_nursery() as nursery:
        clog(ends.sink._lease.fd)
        copying = Copying(ends, nursery)
        await ends.write(data)
        await until_rest(ends)
        ends.far.close()
        await copying.done.wait()
        assert type(copying.result) is trio.BrokenResourceError
        assert "sink is broken" in str(copying.result)
        ends.end()
        assert await receive_all(ends.source) == data


async def test_a_broken_source_is_named_after_what_it_gave_was_sent(way):
    async with line("tcp") as ends, trio.open_nursery() as nursery:
        copying = Copying(ends, nursery)
        await ends.write(b"last words")
        assert await ends.read_exactly(10) == b"last words"
        import struct

        ends.near.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER 0: a reset
        ends.end()
        await copying.done.wait()
        assert type(copying.result) is trio.BrokenResourceError
        assert "source is broken" in str(copying.result)
        assert isinstance(copying.result.__cause__, OSError)


async def test_a_socket_that_was_closed_directly():
    async with line() as ends, trio.open_nursery() as nursery:
        copying = Copying(ends, nursery)
        await ends.write(b"one")
        assert await ends.read_exactly(3) == b"one"
        await until_blocked(ends.source._receiving.fd)
        ends.sink.socket.close()
        await ends.write(b"two")
        await copying.done.wait()
        assert type(copying.result) is trio.ClosedResourceError
        assert await ends.source.receive_some() == b"two"


# -- progress


async def test_progress_is_told_up_to_the_end(way):
    told: list[int] = []
    tasks = set()

    def progress(total: int) -> None:
        told.append(total)
        tasks.add(trio.lowlevel.current_task())

    data = pattern(2_000_000)
    async with line() as ends, trio.open_nursery() as nursery:
        copying = Copying(ends, nursery, progress=progress)
        nursery.start_soon(write_and_end, ends, data)
        assert await ends.read_exactly(len(data)) == data
        await copying.done.wait()
    assert told[-1] == len(data)
    assert len(told) > 2
    assert told == sorted(set(told))
    assert len(tasks) == 1


async def test_an_exception_of_progress_stops_the_copy(way):
    class Enough(Exception):
        pass

    def progress(total: int) -> None:
        if total > 300_000:
            raise Enough

    data = pattern(2_000_000)
    async with line() as ends, trio.open_nursery() as nursery:
        copying = Copying(ends, nursery, progress=progress)
        nursery.start_soon(write_and_end, ends, data)
        got = []

        async def collect() -> None:
            got.append(await ends.read_exactly(300_001))

        nursery.start_soon(collect)
        await copying.done.wait()
        assert type(copying.result) is Enough
        assert not any(
            op.task_name and "Copying" in op.task_name for op in trio_uring.current_operations()
        )
        await until(lambda: got, "what was sent")
        sent = ends.sink.bytes_sent
        head = (got[0] + ends.read())[:sent]
        while len(head) < sent:
            head += ends.read()
        rest = await receive_all(ends.source)
        assert head + rest == data


async def test_progress_is_told_the_last_number_when_the_copy_is_cancelled(way):
    told: list[int] = []
    async with line() as ends, trio.open_nursery() as nursery:
        copying = Copying(ends, nursery, progress=told.append)
        nursery.start_soon(write_and_end, ends, pattern(3_000_000))
        await until_rest(ends)
        await copying.cancel()
        assert told[-1] == ends.sink.bytes_sent > 0
        nursery.cancel_scope.cancel()


# -- destroyed, crashed


@pumps_only
async def test_a_destroyed_copy_gives_back_what_it_held(way):
    data = pattern(600_000)
    async with line() as ends, trio.open_nursery() as nursery:
        clogged = clog(ends.sink._lease.fd)
        nursery.start_soon(write_and_end, ends, data)
        coro = trio_uring.copy_stream(ends.source, ends.sink)
        await park(coro)
        await until_rest(ends)
        coro.close()
        await until(
            lambda: not ends.source._receiving.held and not ends.sink._sending.held,
            "the streams are free",
        )
        assert not operations_on(ends.source._receiving.fd) + operations_on(ends.sink._lease.fd)
        await ends.read_exactly(clogged)
        copying = Copying(ends, nursery)
        assert await ends.read_exactly(len(data)) == data
        await copying.done.wait()


@pumps_only
async def test_a_copy_destroyed_before_its_first_flush():
    async with line() as ends:
        await ends.write(b"stays")
        coro = trio_uring.copy_stream(ends.source, ends.sink)
        message = coro.send(None)
        from trio._core._traps import WaitTaskRescheduled

        while not isinstance(message, WaitTaskRescheduled):
            message = coro.send(None)
        coro.close()
        await until(
            lambda: not ends.source._receiving.held and not ends.sink._sending.held,
            "the streams are free",
        )
        assert await ends.source.receive_some() == b"stays"


async def test_stapled_streams_are_looked_into():
    async with line("pipe") as ends, trio.open_nursery() as nursery:
        stapled = trio.StapledStream(ends.sink, ends.source)
        nursery.start_soon(trio_uring.copy_stream, stapled, stapled)
        await ends.write(b"through")
        assert await ends.read_exactly(7) == b"through"
        # Where there are pumps, it is no loop.
        assert pipes_open() == trio_uring._driver.run.current_driver().engine.pumps
        nursery.cancel_scope.cancel()
