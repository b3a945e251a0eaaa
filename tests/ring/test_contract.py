"""The Ring protocol's contract: one suite over every ring.

Rules of this file: only the protocol is used, and the world's `pair` and `settle`. What one ring alone can do is tested in a
file of its own.
"""

from __future__ import annotations

import errno
import gc
import select
import weakref

import pytest

from trio_uring._op import (
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
        sending = [submit(world, send(a, bytes([number, index]))) for index, (a, _) in enumerate(pairs)]
        world.settle(*receiving, *sending)
        for index, (a, b) in enumerate(pairs):
            got = receiving[index].chunk
            if sending[index].res == 1 or receiving[index].res == 1:  # a short one: the rest must come too
                rest = submit(world, send(a, bytes([number, index])[sending[index].res :] + b"!"))
                world.settle(rest)
                while not got.endswith(b"!"):
                    more = submit(world, receive_group(b, group))
                    world.settle(more)
                    got += more.chunk
                got = got[:-1]
            assert got == bytes([number, index])
    assert world.ring.buffers_in_use() == 0


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


def test_counters_add_up(world):
    a, b = world.pair()
    for _ in range(10):
        receiving, sending = submit(world, receive(b, bytearray(4))), submit(world, send(a, b"x"))
        world.settle(receiving, sending)
    counters = world.ring.counters
    assert counters.submitted[Opcode.SEND] == counters.submitted[Opcode.RECV] == 10
    assert counters.moved[Opcode.SEND] == counters.moved[Opcode.RECV] == 10
    assert counters.enters > 0


def test_close_with_something_in_flight_leaks_loudly(world):
    _, b = world.pair()
    op = submit(world, receive(b, bytearray(4)))
    world.ring.flush()
    with pytest.warns(ResourceWarning, match="in flight|did not give back"):
        assert not world.ring.close()
    assert op.pin is not None
