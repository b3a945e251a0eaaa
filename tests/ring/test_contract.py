"""The Ring protocol's contract: one suite over every ring.

Rules of this file: only the protocol is used, and the world's `pair` and `settle`. What only one
kind of ring can do is tested in a separate file.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import threading
import time
import weakref
from collections.abc import Iterator

import pytest
from support.child import in_child

from trio_uring._ring.base import open_rings
from trio_uring._ring.op import (
    CANCELLING,
    DONE,
    LARGE_GROUP,
    NEW,
    SMALL_GROUP,
    SUBMITTED,
    Opcode,
    Operation,
    OperationStateError,
)

from .conftest import RINGS, World, of_each_ring


def send(fd: int, data) -> Operation:
    op = Operation(Opcode.SEND, fd)
    op.buffer, op.length = data, len(data)
    return op


def receive(fd: int, into: bytearray) -> Operation:
    op = Operation(Opcode.RECV, fd)
    op.buffer, op.length = memoryview(into), len(into)
    return op


def receive_group(fd: int, group: int = SMALL_GROUP, length: int = 4096) -> Operation:
    op = Operation(Opcode.RECV, fd)
    op.group, op.length = group, length
    return op


def submit(world, op: Operation) -> Operation:
    while not world.ring.submit(op):
        world.ring.flush()
        world.ring.drain([])
    return op


def test_bytes_go_from_one_end_to_the_other(world):
    a, b = world.pair()
    into = bytearray(64)
    receiving, sending = submit(world, receive(b, into)), submit(world, send(a, b"x"))
    done = world.settle(receiving, sending)
    assert set(done) == {receiving, sending}
    assert (sending.res, receiving.res, bytes(into[:1])) == (1, 1, b"x")
    assert sending.state is DONE is receiving.state


def test_nothing_happens_before_flush(world):
    a, _ = world.pair()
    op = submit(world, send(a, b"x"))
    assert op.state is SUBMITTED
    assert world.ring.table[op.token] is op
    world.settle(op)
    assert op.token not in world.ring.table


@pytest.mark.parametrize("group", [SMALL_GROUP, LARGE_GROUP])
def test_a_receive_from_a_group_gets_its_own_bytes(world_with_buffers, group):
    world = world_with_buffers
    pairs = [world.pair() for _ in range(6)]
    for number in range(20):
        receiving = [submit(world, receive_group(b, group)) for _, b in pairs]
        sending = [
            submit(world, send(a, bytes([number, index]))) for index, (a, _) in enumerate(pairs)
        ]
        world.settle(*receiving, *sending)
        for index, (a, b) in enumerate(pairs):
            got = receiving[index].chunk
            # A short one: the rest must come too.
            if sending[index].res == 1 or receiving[index].res == 1:
                rest = submit(world, send(a, bytes([number, index])[sending[index].res :] + b"!"))
                world.settle(rest)
                while not got.endswith(b"!"):
                    more = submit(world, receive_group(b, group))
                    world.settle(more)
                    got += more.chunk
                got = got[:-1]
            assert got == bytes([number, index])


def test_end_of_stream_is_zero(world):
    a, b = world.pair()
    op = submit(world, receive(b, bytearray(4)))
    world.ring.flush()
    world.sockets[0].shutdown(1)
    if hasattr(world.ring, "shutdown"):
        world.ring.shutdown(a)
    world.settle(op)
    assert op.res == 0


@pytest.mark.parametrize("opcode", [Opcode.SENDMSG, Opcode.WRITEV])
@pytest.mark.parametrize("start", [0, 1, 2])
def test_a_list_leaves_in_order_from_any_byte(world, opcode, start):
    a, b = world.pair()
    parts = [b"abc", bytearray(b"d"), memoryview(b"efgh")]
    op = Operation(opcode, a)
    op.buffers, op.start, op.length = [memoryview(part) for part in parts], start, 8 - start
    submit(world, op)
    world.settle(op)
    assert 0 < op.res <= 8 - start
    into, got = bytearray(8), b""
    while len(got) < op.res:
        receiving = submit(world, receive(b, into))
        world.settle(receiving)
        got += bytes(into[: receiving.res])
    assert got == b"abcdefgh"[start : start + op.res]


def test_one_buffer_leaves_from_any_byte(world):
    a, b = world.pair()
    op = send(a, b"abc")
    op.start, op.length = 2, 1
    submit(world, op)
    receiving = submit(world, receive(b, into := bytearray(8)))
    world.settle(op, receiving)
    assert (op.res, receiving.res, into[:1]) == (1, 1, b"c")


def test_cancel_is_answered_by_the_operation_itself(world):
    _, b = world.pair()
    op = submit(world, receive(b, bytearray(4)))
    world.ring.flush()
    world.ring.cancel(op)
    assert op.state is CANCELLING
    world.ring.cancel(op)  # asking twice is asking once
    assert world.settle(op) == [op]
    assert op.res == -errno.ECANCELED
    world.ring.cancel(op)  # too late, and harmless
    assert op.state is DONE


def test_cancel_of_an_operation_that_was_not_flushed(world):
    _, b = world.pair()
    op = submit(world, receive(b, bytearray(4)))
    world.ring.cancel(op)
    world.settle(op)
    assert op.res == -errno.ECANCELED


def test_cancel_against_data_is_one_or_the_other(world):
    a, b = world.pair()
    got = b""
    for number in range(256):
        into = bytearray(4)
        receiving = submit(world, receive(b, into))
        sending = submit(world, send(a, bytes([number])))
        if number % 3 == 0:
            world.ring.flush()
        world.ring.cancel(receiving)
        world.settle(receiving, sending)
        assert receiving.res == -errno.ECANCELED or receiving.res > 0
        got += bytes(into[: max(receiving.res, 0)])
    while len(got) < 256:
        receiving = submit(world, receive(b, into := bytearray(300)))
        world.settle(receiving)
        got += bytes(into[: receiving.res])
    assert got == bytes(range(256))


def test_more_cancels_than_slots(world):
    pairs = [world.pair() for _ in range(100)]
    ops = [submit(world, receive(b, bytearray(4))) for _, b in pairs]
    world.ring.flush()
    for op in ops:
        world.ring.cancel(op)
    world.settle(*ops)
    assert {op.res for op in ops} == {-errno.ECANCELED}


def test_more_operations_than_slots_and_completions(world):
    pairs = [world.pair() for _ in range(150)]
    receiving = [submit(world, receive(b, bytearray(4))) for _, b in pairs]
    sending = [submit(world, send(a, b"x")) for a, _ in pairs]
    done = world.settle(*receiving, *sending)
    assert {op.res for op in (*receiving, *sending)} == {1}
    assert len(done) == len(set(done))


def test_a_full_ring_refuses_and_changes_nothing(world):
    _, b = world.pair()
    fds = [world.pair()[1] for _ in range(world.ring.info.sq_entries)]
    ops = [receive(fd, bytearray(1)) for fd in [b, *fds]]
    refused = [op for op in ops if not world.ring.submit(op)]
    assert refused
    assert {op.state for op in refused} == {NEW}
    assert not set(refused) & set(world.ring.table.values())
    assert world.ring.counters.sq_full >= len(refused)


def test_buffers_are_held_until_the_operation_is_done_and_no_longer(world):
    _, b = world.pair()
    buffer = bytearray(8)
    alive = weakref.ref(view := memoryview(buffer))
    op = Operation(Opcode.RECV, b)
    op.buffer, op.length = view, 8
    del view
    submit(world, op)
    world.ring.flush()
    gc.collect()
    assert alive() is not None
    with pytest.raises(BufferError):
        buffer.extend(b"more")
    world.ring.cancel(op)
    with pytest.raises(BufferError):  # asked to stop is not stopped
        buffer.extend(b"more")
    world.settle(op)
    buffer.extend(b"more")
    assert alive() is None
    assert op.pin is None


def test_an_operation_is_used_again_with_a_new_token(world):
    a, b = world.pair()
    op, tokens = send(a, b"x"), set()
    for _ in range(5):
        op.buffer, op.length = b"x", 1
        submit(world, op)
        tokens.add(op.token)
        world.settle(op)
    assert len(tokens) == 5
    assert 0 not in tokens
    assert b


def test_submitting_what_is_in_flight_raises_and_changes_nothing(world):
    _, b = world.pair()
    op = submit(world, receive(b, bytearray(4)))
    before = dict(world.ring.table)
    with pytest.raises(OperationStateError):
        submit(world, op)
    assert world.ring.table == before
    assert op.state is SUBMITTED


def test_poll_tells_what_is_ready(world):
    a, b = world.pair()
    op = Operation(Opcode.POLL_ADD, b)
    op.flags = select.POLLIN
    submit(world, op)
    sending = submit(world, send(a, b"x"))
    world.settle(op, sending)
    assert op.res & select.POLLIN


def test_the_descriptor_is_readable_when_there_is_something_to_drain(world):
    if "DEFER_TASKRUN" in world.ring.info.setup_flags:
        pytest.skip("the descriptor of such a ring wakes nobody: it is waited for by turn")
    a, b = world.pair()
    receiving = submit(world, receive(b, bytearray(4)))
    for _ in range(10):
        world.ring.flush()
        world.ring.drain([])
    poller = select.epoll()
    poller.register(world.ring.fileno(), select.EPOLLIN)
    sending = submit(world, send(a, b"x"))
    while not world.ring.flush():
        pass
    done = []
    while receiving not in done:
        assert poller.poll(10.0), "the ring has completions and its descriptor does not say so"
        world.ring.drain(done)
    assert sending in done
    poller.close()


def until_watched(world, timeout: float = 60.0) -> list[Operation]:
    """Turns until the watched descriptor is readable."""
    done: list[Operation] = []
    for _ in range(1000):
        world.ring.turn(timeout, done)
        if world.ring.watched:
            return done
    raise AssertionError("the watch does not end")


@pytest.mark.parametrize("timeout", [0, -0.0001, -1.0])
def test_turn_does_not_wait_when_the_time_is_up(world, timeout):
    """Nor if it was up before: a collection of garbage may come in between."""
    reading, _ = world.pair()
    assert world.ring.watch(reading)
    world.ring.turn(timeout, [])
    assert not world.ring.watched


def test_turn_does_all_of_a_pass(world):
    """One call: what is queued is submitted, and what is done by then is drained."""
    a, b = world.pair()
    receiving, sending = submit(world, receive(b, bytearray(4))), submit(world, send(a, b"x"))
    done: list[Operation] = []
    while not {receiving, sending} <= set(done):
        before = world.ring.enters
        world.ring.turn(60, done)
        assert world.ring.enters == before + 1
    assert (receiving.res, sending.res) == (1, 1)


def test_turn_wakes_for_data_that_another_thread_sends(kernel_world):
    ring = kernel_world.ring
    a, b = kernel_world.pair()
    into = bytearray(4)
    for number in range(20):
        op = submit(kernel_world, receive(b, into))
        ring.flush()
        sender = threading.Thread(target=os.write, args=(a, bytes([number])))
        sender.start()
        done: list[Operation] = []
        while op not in done:  # a turn that nothing wakes lasts for ever: the test hangs
            ring.turn(1e9, done)
        sender.join()
        assert (op.res, into[0]) == (1, number)


def test_turn_gives_up_when_the_time_is_up(world):
    _, b = world.pair()
    op = submit(world, receive(b, bytearray(4)))
    done: list[Operation] = []
    world.ring.turn(0, done)
    for timeout in (0.001, 0.01):
        world.ring.turn(timeout, done)
    assert done == []
    assert op.state is SUBMITTED


def test_turn_waits_as_long_as_it_is_told(kernel_world):
    began = time.monotonic()
    kernel_world.ring.turn(0.05, [])
    assert time.monotonic() - began >= 0.05


def test_a_turn_without_a_wait_enters_only_if_there_is_something_to_do(kernel_world):
    ring = kernel_world.ring
    while ring.ready():
        ring.turn(0, [])
    enters = ring.enters
    for _ in range(10):
        assert ring.turn(0, []) is False
    assert ring.enters == enters
    a, b = kernel_world.pair()
    op = submit(kernel_world, send(a, b"x"))
    assert ring.ready()
    done: list[Operation] = []
    ring.turn(0, done)
    assert done == [op]
    assert ring.enters == enters + 1
    assert b


def test_a_watched_descriptor_ends_a_turn(world):
    reading, writing = world.pair()
    assert not world.ring.watching
    assert world.ring.watch(reading)
    assert world.ring.watching
    world.ring.turn(0, [])
    assert not world.ring.watched
    writer = threading.Thread(target=os.write, args=(writing, b"x"))
    writer.start()
    assert until_watched(world) == []
    writer.join()
    assert not world.ring.watching, "it is over; whoever wants another asks again"


def test_a_watch_of_what_is_readable_already_is_over_at_once_and_again(world):
    reading, writing = world.pair()
    os.write(writing, b"x")
    for _ in range(3):
        world.ring.watched = False
        assert world.ring.watch(reading)
        until_watched(world)


def test_the_watch_is_of_a_whole_epoll_instance(world):
    """Which is what the loop watches: trio's."""
    reading, writing = world.pair()
    with select.epoll() as poller:
        for _ in range(3):
            poller.register(reading, select.EPOLLIN | select.EPOLLONESHOT)
            world.ring.watched = False
            assert world.ring.watch(poller.fileno())
            world.ring.turn(0, [])
            assert not world.ring.watched
            writer = threading.Thread(target=os.write, args=(writing, b"x"))
            writer.start()
            until_watched(world)
            writer.join()
            assert poller.poll(0) == [(reading, select.EPOLLIN)]
            poller.unregister(reading)
            assert os.read(reading, 8) == b"x"


def test_a_watch_and_operations_do_not_disturb_each_other(world):
    a, b = world.pair()
    reading, writing = world.pair()
    world.ring.watch(reading)
    into = bytearray(8)
    for number in range(10):
        receiving, sending = submit(world, receive(b, into)), submit(world, send(a, b"x"))
        world.settle(receiving, sending)
        assert (receiving.res, sending.res, world.ring.watched) == (1, 1, False), number
    os.write(writing, b"x")
    until_watched(world)
    assert world.ring.table == {}, "a watch is nobody's operation"


def test_counters_add_up(world):
    a, b = world.pair()
    for _ in range(10):
        receiving, sending = submit(world, receive(b, bytearray(4))), submit(world, send(a, b"x"))
        world.settle(receiving, sending)
    counters = world.ring.counters
    assert counters.submitted[Opcode.SEND] == counters.submitted[Opcode.RECV] == 10
    assert counters.moved[Opcode.SEND] == counters.moved[Opcode.RECV] == 10
    assert world.ring.enters > 0


def test_close_with_something_in_flight_leaks_loudly(world):
    _, b = world.pair()
    op = submit(world, receive(b, bytearray(4)))
    world.ring.flush()
    with pytest.warns(ResourceWarning, match="in flight|did not give back"):
        assert not world.ring.close()
    assert op.pin is not None


def test_another_thread_is_refused(world):
    errors = []

    def use() -> None:
        for method in (world.ring.flush, lambda: world.ring.drain([]), world.ring.close):
            try:
                method()
            except RuntimeError as exc:
                errors.append(str(exc))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(errors) == 3
    assert all("another thread" in error for error in errors)


def test_a_closed_ring_is_refused(world):
    assert world.ring in open_rings
    assert world.ring.close()
    assert world.ring.close()
    assert world.ring not in open_rings
    for method in (world.ring.flush, lambda: world.ring.drain([])):
        with pytest.raises(RuntimeError, match="closed"):
            method()


@of_each_ring
@in_child()
def test_a_forked_child_is_refused_and_the_parent_goes_on(name: str) -> None:
    world = World(RINGS[name]())
    a, b = world.pair()
    op = submit(world, receive(b, bytearray(4)))
    world.ring.flush()
    pid = os.fork()
    if pid == 0:
        os._exit(sum(refused_in_a_child(world.ring)))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    sending = submit(world, send(a, b"x"))
    world.settle(op, sending)
    assert (op.res, sending.res) == (1, 1)
    world.close()


def refused_in_a_child(ring) -> Iterator[int]:
    """A bit for each thing that is not as it should be there."""
    yield 1 * (not ring.close())  # it has none
    yield 2 * (ring in open_rings)
    for bit, method in ((4, ring.flush), (8, lambda: ring.drain([]))):
        try:
            method()
        except RuntimeError:
            continue
        yield bit
    try:
        os.fstat(ring.fileno())
    except OSError:
        return
    yield 16


def test_what_is_written_and_refused_leaves_an_operation_as_it_was(world):
    _, b = world.pair()
    op = Operation(Opcode.RECV, b)
    op.buffer, op.length = "not a buffer", 4
    with pytest.raises(TypeError):
        submit(world, op)
    assert op.state is NEW
    assert world.ring.table == {}
    op.buffer = bytearray(4)
    submit(world, op)
    world.ring.cancel(op)
    world.settle(op)
