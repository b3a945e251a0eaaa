"""Copies that are cancelled again and again: what goes in comes out once, in order.

Rules: everything random comes from a seed. On the FakeRing, sends and receives are short, slow and
refused; on the kernel's ring, the cancels race with real data. A run fails if no cancel hit a copy
that held something.
"""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from support.long_cases import examples
from support.streams import TINY, passes, pattern, tcp_sockets, unix_sockets

import trio_uring
from trio_uring.testing import FakeRing, use_ring

if TYPE_CHECKING:
    from collections.abc import Callable

faults = st.fixed_dictionaries(
    {
        errno.EINTR: st.sampled_from([0.0, 0.1]),
        errno.EAGAIN: st.sampled_from([0.0, 0.1]),
        errno.ENOBUFS: st.sampled_from([0.0, 0.3]),
    }
)


@settings(max_examples=examples(60))
@given(
    seed=st.integers(0, 2**32),
    short=st.sampled_from([0.0, 0.5, 1.0]),
    slow=st.sampled_from([0.0, 0.5]),
    refuse=st.sampled_from([0.0, 0.3]),
    faults=faults,
    capacity=st.sampled_from([100, 5000, 300_000]),
    provided=st.booleans(),
    size=st.integers(1, 20_000),
    limit=st.sampled_from([None, 3000]),
)
def test_on_a_ring_that_does_everything_it_may(
    seed, short, slow, refuse, faults, capacity, provided, size, limit
):
    async def main() -> None:
        ring = FakeRing(
            seed, short=short, slow=slow, refuse=refuse, faults=faults, provided_buffers=provided
        )
        use_ring(ring)
        (near, source), (sink, far) = unix_sockets(), unix_sockets()
        for one, other in ((near, source), (sink, far)):
            ring.connect(
                one.fileno(), other.fileno(), capacity if limit is None else max(capacity, 5000)
            )
        streams = [trio_uring.SocketStream(sock) for sock in (near, source, sink, far)]
        await conserved(
            streams, random.Random(seed), pattern(size), lambda: ring.shutdown(near.fileno()), limit
        )
        for stream in streams:
            await stream.aclose()
        assert not ring.table

    trio.run(main)


async def conserved(
    streams: Any, rng: random.Random, data: bytes, end: Callable[[], object], limit: int | None
) -> int:
    """Sends, copies with cancels, and receives; returns how many cancels gave bytes back."""
    near, source, sink, far = streams
    got = bytearray()
    copied = given_back = 0

    async def send() -> None:
        await near.send_all(data)
        end()

    async def receive() -> None:
        while len(got) < len(data):
            got.extend(await far.receive_some(rng.choice([None, 1000, 65536])))
            if rng.random() < 0.3:
                await passes(rng.randrange(4))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(receive)
        while copied < len(data):
            told = [0]
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as racing:
                    racing.start_soon(cancel_after, rng.randrange(12), scope)
                    count = await trio_uring.copy_stream(
                        source, sink, max_bytes=limit, progress=told.append
                    )
                    assert count == sink.bytes_sent
                    racing.cancel_scope.cancel()
            assert told[-1] == sink.bytes_sent or (scope.cancelled_caught and not sink.bytes_sent)
            assert limit is None or sink.bytes_sent <= limit
            copied += sink.bytes_sent if not scope.cancelled_caught else told[-1]
            given_back += source._receiving.kept is not None
            assert not source._receiving.held
            assert not sink._sending.held
    assert bytes(got) == data
    return given_back


async def cancel_after(count: int, scope: trio.CancelScope) -> None:
    await passes(count)
    scope.cancel()


@pytest.mark.parametrize(
    "sockets", [lambda: unix_sockets(TINY), lambda: tcp_sockets(65536), unix_sockets]
)
@pytest.mark.parametrize("seed", range(3))
async def test_on_the_kernels_ring(sockets, seed):
    pairs = sockets(), sockets()
    streams = [trio_uring.SocketStream(sock) for sock in (*pairs[0], *pairs[1])]
    data = random.Random(0).randbytes(2_000_000)

    given_back = rounds = 0
    while given_back < 20 and rounds < 100:
        rounds += 1
        given_back += await conserved(
            streams, random.Random(f"{seed} {rounds}"), data, lambda: None, None
        )
    assert given_back >= 20
    for stream in streams:
        await stream.aclose()
