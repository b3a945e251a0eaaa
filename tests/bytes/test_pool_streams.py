"""Buffers of a BufferPool on the ring: what the kernel holds is never given out again.

Rules of this file: "in use" is compared with what the test itself holds, never with an earlier
answer of the pool.
"""

from __future__ import annotations

import contextlib
import gc
import random
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.pool import in_use, in_use_by_size, one_buffer
from support.streams import (
    TINY,
    clog,
    closing,
    drain,
    passes,
    pattern,
    unix_sockets,
    until,
    until_blocked,
)
from trio._core._traps import WaitTaskRescheduled

import trio_uring
from trio_uring import SocketStream
from trio_uring._bytes.pool import BufferPool

if TYPE_CHECKING:
    pass

# -- on a stream


async def test_a_buffer_that_the_kernel_receives_into_is_in_use_until_it_is_done() -> None:
    pool, (left, peer) = one_buffer(), unix_sockets()
    stream, counts = SocketStream(left), []

    async def receive() -> None:
        # Nobody but the call has the view.
        counts.append(await stream.receive_into(pool.try_alloc(4096)))

    async with closing(stream, peer), trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await until_blocked(left.fileno())
        for _ in range(5):
            gc.collect()
            assert in_use(pool) == 1
            assert pool.try_alloc(1) is None
            await trio.lowlevel.checkpoint()
        peer.send(b"hello")
        await until(lambda: counts, "received")
        assert counts == [5]
        assert in_use(pool) == 0
        with pool.try_alloc(5) as view:
            assert view == b"hello", "it was this buffer that the kernel wrote into"


async def test_a_view_that_its_owner_released_while_the_kernel_has_it() -> None:
    pool, (left, peer) = one_buffer(), unix_sockets()
    stream, counts = SocketStream(left), []

    async def receive(view: memoryview) -> None:
        counts.append(await stream.receive_into(view))

    async with closing(stream, peer), trio.open_nursery() as nursery:
        with pool.try_alloc(4096) as view:
            rest = view[3:]
            nursery.start_soon(receive, view)
            await until_blocked(left.fileno())
        del view
        assert in_use(pool) == 1
        peer.send(b"abcdef")
        await until(lambda: counts, "received")
        assert rest[:3] == b"def"
        assert in_use(pool) == 1
        rest.release()
        assert in_use(pool) == 0


@pytest.mark.parametrize("how", ["cancelled", "timeout", "closed", "end of stream"])
async def test_a_receive_that_ends_otherwise_gives_the_buffer_back(how: str) -> None:
    pool, (left, peer) = one_buffer(), unix_sockets()
    stream, ended = SocketStream(left), []

    async def receive(scope: trio.CancelScope) -> None:
        with scope, pool.try_alloc(4096) as view:
            ended.append(in_use(pool))
            with contextlib.suppress(trio.ClosedResourceError, trio.TooSlowError):
                await stream.receive_into(view, timeout=0.001 if how == "timeout" else None)
        ended.append(in_use(pool))

    async with closing(stream, peer), trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(receive, scope)
        await until(lambda: ended, "started")
        if how != "timeout":
            await until_blocked(left.fileno())
            assert pool.try_alloc(1) is None
        if how == "cancelled":
            scope.cancel()
        elif how == "closed":
            await stream.aclose()
        elif how == "end of stream":
            peer.close()
    assert ended == [1, 0]


async def park(coro: Any) -> None:
    """Runs a call by hand until it waits for the kernel, and its operation has been submitted."""
    while not isinstance(coro.send(None), WaitTaskRescheduled):
        await trio.lowlevel.checkpoint()
    await until(lambda: not trio_uring.current_statistics().queued, "submitted")


@pytest.mark.uring_only("what a destroyed call leaves in the ring; trio's own waits know of none")
async def test_a_destroyed_receive_keeps_the_buffer_until_the_kernel_has_let_go() -> None:
    pool, (left, peer) = one_buffer(), unix_sockets()
    stream = SocketStream(left)
    async with closing(stream, peer):
        coro = stream.receive_into(pool.try_alloc(4096))
        await park(coro)
        assert trio_uring.current_statistics().pinned == 1
        coro.close()
        del coro
        gc.collect()
        assert trio_uring.current_statistics().in_flight == 1
        assert in_use(pool) == 1
        assert pool.try_alloc(1) is None
        await until(lambda: in_use(pool) == 0, "the buffer is back")
        assert trio_uring.current_statistics().pinned == 0
        peer.send(b"after")
        with pool.try_alloc(100) as view:
            assert await stream.receive_into(view) == 5
            assert view[:5] == b"after"
        assert in_use(pool) == 0


async def test_buffers_that_are_being_sent_are_in_use_until_the_kernel_has_them_all() -> None:
    left, peer = unix_sockets(TINY)
    stream, done = SocketStream(left), []
    pool = BufferPool(min_size=4096, max_size=2**16, max_bytes_per_class=2**16)

    async def send() -> None:
        with pool.try_alloc(10) as header, pool.try_alloc(60_000) as body:
            header[:], body[:] = b"0123456789", pattern(60_000)
            await stream.send_all([header, body, header[:5]])
        done.append(in_use(pool))

    async with closing(stream, peer), trio.open_nursery() as nursery:
        clogged = clog(left.fileno())
        nursery.start_soon(send)
        await until_blocked(left.fileno())
        assert in_use_by_size(pool) == {4096: 1, 65536: 1}
        assert pool.try_alloc(60_000) is None
        with pool.try_alloc(4096) as other:
            other[:] = b"\xff" * 4096  # not the header's memory
        received = bytearray()
        while not done:
            assert in_use_by_size(pool) == {4096: 1, 65536: 1}
            received += drain(peer)
            await trio.lowlevel.checkpoint()
        assert done == [0]
        received += drain(peer)
    assert received[clogged:] == b"0123456789" + pattern(60_000) + b"01234"


async def test_a_cancelled_send_gives_its_buffers_back() -> None:
    left, peer = unix_sockets(TINY)
    stream = SocketStream(left)
    pool = BufferPool(min_size=4096, max_size=4096, max_bytes_per_class=8192)
    async with closing(stream, peer):
        clog(left.fileno())
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, [pool.try_alloc(4096), pool.try_alloc(4096)])
                await until_blocked(left.fileno())
                assert in_use(pool) == 2
                assert pool.try_alloc(1) is None
                scope.cancel()
        assert scope.cancelled_caught
        gc.collect()  # the exception's traceback and the frames in it may be a cycle
        assert in_use(pool) == 0


async def relay(
    source: SocketStream, target: SocketStream, pool: BufferPool, cuts: random.Random
) -> None:
    while True:
        with pool.alloc(cuts.randint(1, 3000)) as view:
            with trio.move_on_after(0 if cuts.random() < 0.1 else 1000):
                count = await source.receive_into(view)
                if not count:
                    return await target.send_eof()
                with trio.CancelScope(shield=True):
                    await target.send_all([view[: count // 2], view[count // 2 : count]])


async def test_many_relays_through_one_small_pool_mix_nothing_up() -> None:
    """Each relays a text of its own through buffers of a pool that is often exhausted, and is now
    and then cancelled."""
    pool = BufferPool(min_size=1024, max_size=4096, max_bytes_per_class=4096)
    texts = [(b"%03d;" % number) * 8000 for number in range(12)]
    results: dict[int, bytes] = {}

    async def one(number: int) -> None:
        (a, b), (c, d) = unix_sockets(), unix_sockets()
        streams = [SocketStream(sock) for sock in (a, b, c, d)]
        async with closing(*streams), trio.open_nursery() as nursery:
            nursery.start_soon(relay, streams[1], streams[2], pool, random.Random(number))
            nursery.start_soon(send, streams[0], texts[number])
            results[number] = b"".join([chunk async for chunk in streams[3]])

    async def send(stream: SocketStream, text: bytes) -> None:
        await stream.send_all(text)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        for number in range(len(texts)):
            nursery.start_soon(one, number)
    assert [results[number] for number in range(len(texts))] == texts
    await passes(2)
    gc.collect()
    assert in_use(pool) == 0
    assert pool.heap_allocations > 0
    assert sum(each.allocations for each in pool.statistics()) > 100
