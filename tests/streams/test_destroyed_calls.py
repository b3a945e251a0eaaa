"""Calls whose coroutine is destroyed (coro.close()) while they wait, and what the stream does next.

Rules of this file: tasks are destroyed from within the run, by closing their coroutine. What the
nursery then makes of its dead child does not matter, so each scenario is finished before the
nursery is. The tests in tests/robustness/test_destroyed.py drive coroutines by hand; here the next
call comes in the same pass.
"""

from __future__ import annotations

import os
import threading
from array import array
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.by_hand import park
from support.streams import LADDER, on_ring, stream_and_peer, waits_are_ours
from trio._core._traps import WaitTaskRescheduled

import trio_uring
from trio_uring._bytes import outgoing
from trio_uring._descriptors.direction import INTO, RECEIVE
from trio_uring._driver.run import install
from trio_uring._ring.uring import UringRing
from trio_uring._streams import send as _send

if TYPE_CHECKING:
    import socket


@waits_are_ours
async def test_what_a_destroyed_receive_exactly_got_stays_in_order():
    stream, peer = stream_and_peer()
    coro = stream.receive_exactly(10)
    assert isinstance(coro.send(None), WaitTaskRescheduled)
    operation = stream._receiving.operations[RECEIVE]
    operation.task = None  # nobody is to be rescheduled: this coroutine is driven by hand
    peer.send(b"AAAA")
    while operation.state.in_kernel or trio_uring.current_statistics().queued:
        await trio.lowlevel.checkpoint()
    # It waits for the rest.
    assert isinstance(coro.send(operation), WaitTaskRescheduled)
    operation.task = None
    while trio_uring.current_statistics().queued:
        await trio.lowlevel.checkpoint()
    peer.send(b"BBBB")
    coro.close()
    assert await stream.receive_exactly(8) == b"AAAABBBB"
    await stream.aclose()
    peer.close()


@waits_are_ours
async def test_what_a_destroyed_receive_into_got_is_kept():
    stream, peer = stream_and_peer()
    buffer = bytearray(16)
    coro = stream.receive_into(buffer)
    await park(coro)
    peer.send(b"AAAA")
    coro.close()
    assert await stream.receive_exactly(4) == b"AAAA"
    buffer.append(0)
    await stream.aclose()
    peer.close()


@waits_are_ours
@pytest.mark.parametrize("provided", [True, False])
def test_what_a_receive_had_that_was_destroyed_when_it_was_done_is_kept(provided):
    async def scenario() -> None:
        install(UringRing(LADDER, provide_buffers=provided))
        stream, peer = stream_and_peer()
        coro = stream.receive_some()
        await park(coro)
        # Nobody is to be rescheduled: this coroutine is driven by hand.
        stream._receiving.operations[RECEIVE].task = None
        peer.send(b"AAAA")
        while stream._receiving.operations[RECEIVE].state.in_kernel:
            await trio.lowlevel.checkpoint()
        coro.close()
        peer.send(b"BBBB")
        assert await stream.receive_exactly(8) == b"AAAABBBB"
        await stream.aclose()
        peer.close()

    trio.run(scenario)


@waits_are_ours
async def test_accept_after_a_destroyed_accept_in_the_same_pass():
    [listener] = await trio_uring.open_tcp_listeners(0, host="127.0.0.1")
    coro = listener.accept()
    await park(coro)
    coro.close()
    with trio.move_on_after(0):
        await listener.accept()
    await listener.aclose()


@waits_are_ours
async def test_a_wait_for_a_destroyed_call_is_cancelled_in_the_pass_in_which_that_is_done():
    """The task is woken once, by the cancel, and what came is kept."""
    stream, peer = stream_and_peer()
    coro = stream.receive_some()
    await park(coro)
    coro.close()
    peer.send(b"AAAA")
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.receive_some()
    assert scope.cancelled_caught
    assert await stream.receive_some() == b"AAAA"
    await stream.aclose()
    peer.close()


@waits_are_ours
async def test_a_wait_for_a_destroyed_call_that_is_cancelled_does_not_end_another_task_s():
    """A call of the socket holds no direction meanwhile: the second waits for the same operation
    before the first has resumed."""
    stream, peer = stream_and_peer()
    sock, scope, got = stream.socket, trio.CancelScope(), []
    coro = sock.recv(10)
    await park(coro)
    coro.close()
    way = stream._receiving
    operation = way.left
    drop, operation.engine.errands[:] = list(operation.engine.errands), []

    async def first() -> None:
        with scope:
            await sock.recv(10)

    async def second() -> None:
        got.append(await sock.recv(10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        assert operation.task is not None
        peer.send(b"AAAA")
    assert got == [b"AAAA"]
    operation.engine.errands += drop
    await stream.aclose()
    peer.close()


@waits_are_ours
async def test_a_cancel_that_came_too_late_is_not_the_next_call_s():
    """What was done won over the cancel; then the coroutine was destroyed."""
    stream, peer = stream_and_peer()
    coro = stream.receive_some()
    await park(coro)
    operation = stream._receiving.operations[RECEIVE]

    def never() -> None:
        raise AssertionError("the dead task's cancellation reached another task")

    peer.send(b"x")
    operation.task = None  # nobody is to be rescheduled: this coroutine is driven by hand
    while operation.state.in_kernel:
        await trio.lowlevel.checkpoint()
    operation.raise_cancel = never  # as a cancel leaves it that the kernel did not find in time
    coro.close()
    assert await stream.receive_some() == b"x"

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()
    peer.close()


CALLS = ["receive_some", "receive_into", "recv", "recv_into"]


def call_of(stream: trio_uring.SocketStream, call: str, buffer: bytearray) -> Any:
    method = getattr(stream.socket if call.startswith("recv") else stream, call)
    return method(buffer if call.endswith("into") else len(buffer))


@waits_are_ours
@pytest.mark.parametrize("call", CALLS)
async def test_a_call_that_is_destroyed_while_its_completion_is_reaped(call):
    """As a garbage collection may do at any allocation: it is drained, and nobody was told."""
    stream, peer = stream_and_peer()
    buffer = bytearray(4)
    coro = call_of(stream, call, buffer)
    await park(coro)
    engine = trio_uring._driver.run.current_driver().engine
    check_done = engine.check_done

    def destroy(ring: Any, done: Any) -> None:
        coro.close()
        check_done(ring, done)

    engine.check_done = destroy
    peer.send(b"AAAA")
    for _ in range(5):
        await trio.lowlevel.checkpoint()
    engine.check_done = check_done
    peer.send(b"BBBB")
    assert await stream.receive_exactly(8) == b"AAAABBBB"
    buffer.append(0)
    await stream.aclose()
    peer.close()


@waits_are_ours
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("submitted", [False, True])
async def test_a_call_that_is_destroyed_in_another_thread(call, submitted):
    """As a garbage collection does that runs there."""
    for _ in range(20):
        stream, peer = stream_and_peer()
        buffer = bytearray(4)
        coro = call_of(stream, call, buffer)
        if submitted:
            await park(coro)
        else:
            coro.send(None)
        peer.send(b"AAAA")
        thread = threading.Thread(target=coro.close)
        thread.start()
        thread.join()
        peer.send(b"BBBB")
        assert await stream.receive_exactly(8) == b"AAAABBBB"
        buffer.append(0)
        await stream.aclose()
        peer.close()


async def send_later(peer: socket.socket, data: bytes) -> None:
    await trio.testing.wait_all_tasks_blocked()
    peer.send(data)


@waits_are_ours
async def test_a_cancelled_and_destroyed_call_cancels_no_other_task():
    stream, peer = stream_and_peer()
    coro = stream.receive_some()
    await park(coro)
    operation = stream._receiving.operations[RECEIVE]

    def never() -> None:
        raise AssertionError("the dead task's cancellation reached another task")

    operation.abort(never)
    coro.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_later, peer, b"x")
        # In this same pass: it waits for the destroyed one to be over.
        assert await stream.receive_some() == b"x"
    await stream.aclose()
    peer.close()


@waits_are_ours
async def test_a_destroyed_send_does_not_stop_the_next():
    stream, peer = stream_and_peer()
    coro = stream.send_all(bytes(2**22))
    await park(coro)
    coro.close()
    async with trio.open_nursery() as nursery, trio_uring.SocketStream(peer) as sink:

        async def drain() -> None:
            async for _ in sink:
                pass

        nursery.start_soon(drain)
        for _ in range(10):
            await stream.send_all(b"next")
        assert stream.bytes_sent == 4
        await stream.aclose()


@pytest.mark.parametrize("size", [1000, 1001, 5000])
async def test_no_operation_asks_for_more_than_its_length_can_say(size, monkeypatch):
    """A length has 32 bits in the kernel: larger buffers go in parts. Here with a smaller limit."""
    for module in (outgoing, _send):
        monkeypatch.setattr(module, "SEND_MAX", 1000)
    stream, peer = stream_and_peer()
    data = bytes(range(250)) * 20
    # An array: the accelerator, which has its own limit, leaves those to Python.
    await stream.send_all(array("B", data[:size]))
    assert stream.bytes_sent == size
    assert trio_uring.current_statistics().operations["SEND"].submitted == -(-size // 1000)
    received = b""
    while len(received) < size:
        received += peer.recv(10000)
    assert received == data[:size]
    await stream.aclose()
    peer.close()


@pytest.mark.parametrize(
    ("kind", "by"),
    [
        ("pipe", "a call"),
        ("socket", "a call"),
        pytest.param("socket", "a completion", marks=waits_are_ours),
    ],
)
async def test_bytes_of_a_receive_into_that_was_done_and_never_resumed_stay_in_the_stream(kind, by):
    """Its operation was over when the coroutine was destroyed."""
    if kind == "socket" and by == "a call" and on_ring():
        pytest.skip("on a ring a socket's receive is never tried by a call")
    if kind == "pipe":
        read, write = os.pipe()
        stream: Any = trio_uring.ReceiveStream(read)
    else:
        stream, peer = stream_and_peer()
        write = peer.detach()
    buffer = bytearray(8)
    coro = stream.receive_into(buffer)
    if by == "a call":
        os.write(write, b"here")
        # It is done, and gives the other tasks their turn.
        assert not isinstance(coro.send(None), WaitTaskRescheduled)
    else:
        await park(coro)
        operation = stream._receiving.operations[INTO]
        operation.task = None  # nobody is to be rescheduled: this coroutine is driven by hand
        os.write(write, b"here")
        while operation.state.in_kernel:
            await trio.lowlevel.checkpoint()
    coro.close()
    buffer.append(0)  # BufferError while it is exported
    os.write(write, b" and there")
    assert await stream.receive_some() == b"here"
    assert await stream.receive_some() == b" and there"
    # A result that was taken is not kept.
    os.write(write, b"last")
    view = memoryview(buffer)
    assert await stream.receive_into(view) == 4
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.receive_into(view)
    assert stream._receiving.kept is None
    await stream.aclose()
    os.close(write)
