"""Coroutines destroyed while they wait: coro.close(), closed and collected generators, forgotten
streams.

Rules of this file: a coroutine is driven by hand to the point where it parks, so that destroying it
is deterministic. What the kernel still holds then belongs to the ring; what it delivers later
belongs to the stream.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import warnings
import weakref
from collections.abc import Coroutine
from typing import Any

import outcome
import pytest
import trio
import trio.testing
from support.child import FLAGS, driver, in_child, pair, use_ring
from support.streams import open_descriptors
from trio._core._traps import WaitTaskRescheduled

import trio_uring
from trio_uring._ring.op import Opcode

pytestmark = pytest.mark.uring_only(
    "trio's own wait for a descriptor does not survive that its coroutine is destroyed"
)

SENDS = (Opcode.SEND, Opcode.SENDMSG)  # which never wait: a poll does, after one that found no room


async def parked(operation: Coroutine[Any, Any, Any], submitted: bool) -> None:
    """Runs `operation` to where it waits for the kernel, and if wanted until its operation is
    submitted and not done."""
    message = operation.send(None)
    while True:
        result = None
        if not isinstance(message, WaitTaskRescheduled):
            # So does an operation that was done at once, before it goes on.
            await trio.lowlevel.checkpoint()
        elif submitted and message.abort_func.__self__.opcode in SENDS:  # type: ignore[attr-defined]
            result = await trio.lowlevel.wait_task_rescheduled(message.abort_func)
        else:
            break
        message = operation.send(outcome.Value(result))
    while submitted and trio_uring.current_statistics().queued:
        await trio.lowlevel.checkpoint()
    assert not submitted or trio_uring.current_statistics().in_flight


async def until_idle() -> None:
    statistics = trio_uring.current_statistics()
    while statistics.in_flight or statistics.queued:
        await trio.lowlevel.checkpoint()
        statistics = trio_uring.current_statistics()
    assert statistics.pinned == 0


@pytest.mark.uring_only("there are no entries")
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_a_coroutine_that_is_destroyed_while_its_entry_is_written(flags: str) -> None:
    """As a garbage collection may do at any allocation: the memory that the entry names stays
    pinned."""
    use_ring(flags=flags)
    stream, peer = pair()
    buffer = bytearray(10)
    coro = stream.receive_into(buffer)
    await parked(coro, False)
    ring: Any = driver().ring
    write = ring._write

    def destroy(*arguments: Any) -> Any:
        result = write(*arguments)
        coro.close()
        with pytest.raises(BufferError):
            buffer.append(0)
        return result

    ring._write = destroy
    await trio.lowlevel.checkpoint()
    ring._write = write
    await until_idle()
    buffer.append(0)
    peer.send(b"for the next")
    assert await stream.receive_some() == b"for the next"
    await stream.aclose()
    peer.close()


@pytest.mark.parametrize("operation", ["receive_some", "receive_into", "send_all", "send_list"])
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_a_closed_coroutine_leaves_nothing(flags: str, operation: str) -> None:
    use_ring(flags=flags)
    for submitted in (False, True):
        await destroy_once(operation, submitted)


async def destroy_once(operation: str, submitted: bool) -> None:
    stream, peer = pair()
    buffer = bytearray(2**22)
    argument = {
        "receive_some": (),
        "receive_into": (buffer,),
        "send_all": (buffer,),
        "send_list": ([buffer, buffer],),
    }
    coro = getattr(stream, "send_all" if operation == "send_list" else operation)(
        *argument[operation]
    )
    await parked(coro, submitted)
    coro.close()
    await until_idle()
    buffer.append(0)  # BufferError while it is exported
    if operation.startswith("receive"):
        peer.send(b"for the next")
        assert await stream.receive_some() == b"for the next"
    await stream.aclose()
    peer.close()


@pytest.mark.parametrize("submitted", [False, True])
@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_the_stream_can_be_used_right_after(flags: str, submitted: bool) -> None:
    """In the same pass, while the kernel still has the operation of the destroyed coroutine."""
    use_ring(flags=flags)
    stream, peer = pair()
    for number in range(20):
        coro = stream.receive_some()
        await parked(coro, submitted)
        coro.close()
        message = b"number %d" % number
        peer.send(message)
        assert await stream.receive_exactly(len(message)) == message
    await stream.aclose()
    await until_idle()
    peer.close()


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_a_send_right_after_a_destroyed_send_is_whole(flags: str) -> None:
    use_ring(flags=flags)
    stream, peer = pair()
    coro = stream.send_all(b"a" * 2**22)
    await parked(coro, True)
    coro.close()
    received: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain, trio_uring.SocketStream(peer), received)
        await stream.send_all(b"b" * 2**20)
        await stream.aclose()
    data = b"".join(received)
    assert data.endswith(b"b" * 2**20)
    assert set(data[: -(2**20)]) == {ord("a")}


async def drain(stream: trio_uring.SocketStream, received: list[bytes]) -> None:
    async with stream:
        async for data in stream:
            received.append(data)


@pytest.mark.parametrize("flags", FLAGS)
@in_child()
async def test_data_that_came_for_a_destroyed_receive_is_kept(flags: str) -> None:
    use_ring(flags=flags)
    stream, peer = pair()
    coro = stream.receive_some()
    await parked(coro, True)
    peer.send(b"already in the kernel's hands, ")
    coro.close()
    await until_idle()
    peer.send(b"and what came after")
    expected = b"already in the kernel's hands, and what came after"
    assert await stream.receive_exactly(len(expected)) == expected
    await stream.aclose()
    peer.close()


@in_child()
async def test_an_accept_of_a_destroyed_coroutine_leaves_no_descriptor() -> None:
    [listener] = await trio_uring.open_tcp_listeners(0, host="127.0.0.1")
    address = listener.socket.getsockname()
    trio_uring.current_statistics()
    await trio.testing.wait_all_tasks_blocked()
    before = len(open_descriptors())
    for _ in range(50):
        coro = listener.accept()
        await parked(coro, True)
        with socket.create_connection(address):
            coro.close()
            await until_idle()
        # The cancel was quicker than the connection.
        while select.select([listener.socket], [], [], 0)[0]:
            await (await listener.accept()).aclose()
    assert len(open_descriptors()) == before
    await listener.aclose()


@in_child()
async def test_a_destroyed_generator_leaves_nothing() -> None:
    stream, peer = pair()

    async def messages() -> Any:
        try:
            while True:
                yield await stream.receive_some()
        finally:
            closed.append(1)

    closed: list[int] = []
    generator = messages()
    peer.send(b"one")
    assert await generator.__anext__() == b"one"
    step = generator.__anext__()
    await parked(step, True)
    with pytest.raises(GeneratorExit):
        step.throw(GeneratorExit())
    await generator.aclose()
    await until_idle()
    assert closed == [1]
    peer.send(b"two")
    assert await stream.receive_some() == b"two"
    await stream.aclose()
    peer.close()


@in_child()
async def test_a_forgotten_stream_is_freed_and_its_operation_forgotten() -> None:
    """Nobody holds it any more but the ring, whose operation leases its socket."""
    stream, peer = pair()
    coro = stream.receive_some()
    await parked(coro, True)
    gone = weakref.ref(stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # that it was never closed
        coro.close()
        del coro, stream
        await until_idle()
        await trio.lowlevel.checkpoint()
        gc.collect()
    assert gone() is None
    peer.setblocking(False)
    assert peer.recv(1) == b"", "its descriptor was not closed"
    peer.close()


@in_child()
async def test_a_sent_object_lives_until_the_kernel_is_done() -> None:
    class Buffer(bytearray):
        """A bytearray that can be referred to weakly."""

    stream, peer = pair()
    buffer = Buffer(2**22)
    gone = weakref.ref(buffer)
    coro = stream.send_all(buffer)
    del buffer
    await parked(coro, True)
    gc.collect()
    held = gone()
    assert held is not None
    with pytest.raises(BufferError):
        held.append(0)
    del held
    coro.close()
    await until_idle()
    del coro
    gc.collect()
    assert gone() is None
    await stream.aclose()
    peer.close()


@in_child()
async def test_a_pipe_of_a_destroyed_coroutine_is_usable() -> None:
    read_fd, write_fd = os.pipe()
    async with (
        trio_uring.ReceiveStream(read_fd) as reader,
        trio_uring.SendStream(write_fd) as writer,
    ):
        coro = reader.receive_some()
        await parked(coro, True)
        coro.close()
        await until_idle()
        await writer.send_all(b"through the pipe")
        assert await reader.receive_some() == b"through the pipe"
