"""Lists of buffers to a TLS stream over ours: not joined on the way, and sent as one operation.

Rules: the ring's statistics count what a list becomes.
"""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import trio
from support.streams import TINY, closing, count_of, pattern, receive_all, until, until_blocked
from support.tls import Tls, clog, connected, receive_count, tls_pair

import trio_uring
from trio_uring import SocketStream, send_all_vectored
from trio_uring._bytes.cork import CORK_MAX, Cork


def sends() -> tuple[int, int]:
    return count_of("SEND").submitted, count_of("SENDMSG").submitted


BUFFERS = [b"header", bytearray(b"body"), memoryview(b"-more-")[1:-1], b"", b"end"]


async def test_a_list_goes_out_as_one_operation() -> None:
    async with connected() as (client, server):
        before = sends()
        await send_all_vectored(client, BUFFERS)
        assert sends() == (before[0], before[1] + 1)
        assert await receive_count(server, 17) == b"headerbodymoreend"
        await client.send_all(b"single")
        assert sends() == (before[0] + 1, before[1] + 1)
        assert await receive_count(server, 6) == b"single"


async def test_each_buffer_reaches_the_tls_layer_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its own memory: nothing is joined or copied before it is encrypted."""
    written: list[Any] = []
    real = trio.SSLStream.send_all

    async def send_all(self: Tls, data: Any) -> None:
        written.append(data if isinstance(data, bytes) else data.obj)
        await real(self, data)

    async with connected() as (client, server):
        monkeypatch.setattr(trio.SSLStream, "send_all", send_all)
        buffers = [b"bytes", bytearray(b"bytearray"), pattern(100_000)]
        await send_all_vectored(client, buffers)
        assert all(one is other for one, other in zip(written, buffers, strict=True))
        assert await receive_count(server, 100_014) == b"bytes" + b"bytearray" + pattern(100_000)


async def test_before_tls_1_3_each_buffer_is_sent_by_itself() -> None:
    """A write may have to wait there for an answer to what it wrote."""
    async with connected(ssl.TLSVersion.TLSv1_2) as (client, server):
        before = sends()
        await send_all_vectored(client, BUFFERS)
        assert sends() == (before[0] + 4, before[1])
        assert await receive_count(server, 17) == b"headerbodymoreend"


async def test_a_list_makes_the_handshake_first() -> None:
    client, server = tls_pair()
    before = sends()
    async with closing(client, server), trio.open_nursery() as nursery:
        nursery.start_soon(send_all_vectored, client, [b"ab", b"cd"])
        assert await receive_count(server, 4) == b"abcd"
        assert sends()[1] == before[1] + 1
    client, server = tls_pair()
    async with closing(client, server), trio.open_nursery() as nursery:
        nursery.start_soon(send_all_vectored, server, [b"ab", b"cd"])
        assert await receive_count(client, 4) == b"abcd"


async def test_what_is_held_back_is_bounded() -> None:
    async with connected() as (client, server):
        data = pattern(4 * CORK_MAX)
        parts = [data[start : start + 10_000] for start in range(0, len(data), 10_000)]
        sizes = []

        async def watch() -> None:
            while True:
                cork = client.transport_stream._cork
                sizes.append(cork._size if cork is not None else 0)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(send_all_vectored, client, parts)
            assert await receive_count(server, len(data)) == data
            nursery.cancel_scope.cancel()
        assert CORK_MAX - 20_000 < max(sizes) < CORK_MAX
        assert client.transport_stream._cork is None


def held(transport: SocketStream) -> int:
    return len(transport._cork._records) if transport._cork is not None else 0


async def test_an_interrupted_list_leaves_a_stream_that_works() -> None:
    """What was encrypted of it goes out with the next send: the peer counts records."""
    async with connected() as (client, server):
        transport = client.transport_stream
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    send_all_vectored, client, [b"%d" % number for number in range(10)]
                )
                await until(lambda: held(transport) >= 3, "three are held back")
                scope.cancel()
        went = b"0123456789"[: held(transport)]
        assert 3 <= len(went) < 10
        before = sends()
        await client.send_all(b"next")
        assert sends() == (before[0], before[1] + 1)
        assert await receive_count(server, len(went) + 4) == went + b"next"
        assert transport._cork is None
        await client.send_all(b"last")
        assert sends() == (before[0] + 1, before[1] + 1)
        assert await receive_count(server, 4) == b"last"


async def test_closing_after_an_interrupted_list() -> None:
    async with connected() as (client, server):
        transport = client.transport_stream
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all_vectored, client, [b"a"] * 10)
                await until(lambda: held(transport) >= 3, "three are held back")
                scope.cancel()
        count = held(transport)
        await client.aclose()
        assert await receive_all(server) == b"a" * count


async def test_a_list_that_is_blocked_and_cancelled() -> None:
    async with connected(buffer=TINY) as (client, _):
        clog(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all_vectored, client, [b"a", b"b"])
            await until_blocked(client.transport_stream.socket.fileno())
            nursery.cancel_scope.cancel()
        assert client.transport_stream._cork is None
        with pytest.raises(trio.BrokenResourceError):
            await send_all_vectored(client, [b"a", b"b"])


async def test_a_list_to_a_peer_that_is_gone() -> None:
    async with connected() as (client, server):
        await server.transport_stream.aclose()
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                await send_all_vectored(client, [b"a", b"b"])
            assert client.transport_stream._cork is None


async def test_a_list_on_a_closed_or_unwrapped_stream() -> None:
    async with connected() as (client, server):
        async with closing(client.transport_stream, server.transport_stream):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.unwrap)
                nursery.start_soon(server.unwrap)
            with pytest.raises(trio.ClosedResourceError):
                await send_all_vectored(client, [b"a", b"b"])


async def test_two_tasks_sending_lists() -> None:
    async with connected(buffer=TINY) as (client, server):
        clog(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all_vectored, client, [b"12", b"34"])
            await until_blocked(client.transport_stream.socket.fileno())
            with pytest.raises(trio.BusyResourceError):
                await send_all_vectored(client, [b"56", b"78"])
            got = b""
            while not got.endswith(b"1234"):
                got += await server.receive_some()
        assert got.strip(b"c") == b"1234"


async def test_the_transports_timeout_is_kept() -> None:
    async with connected(buffer=TINY) as (client, server):
        client.transport_stream.send_timeout = 30.0
        await send_all_vectored(client, [b"a", b"b", b"c"])
        assert await receive_count(server, 3) == b"abc"
        client.transport_stream.send_timeout = 0.01
        clog(client)
        with pytest.raises(trio.TooSlowError):
            await send_all_vectored(client, [b"a", b"b"])


async def test_another_tasks_record_is_not_held_back() -> None:
    """It takes along what is held, so that the order of the records stays."""
    cork = Cork()
    assert cork.holds(b"mine")
    answers = []

    async def other() -> None:
        answers.append(cork.holds(b"theirs"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
    assert answers == [False]
    assert cork.take() == [b"mine", b"theirs"]
    assert cork.empty
    cork.task = None
    assert not cork.holds(b"last")


async def test_frames_over_tls_are_one_operation_each() -> None:
    async with connected() as (client, server):
        before = sends()
        await trio_uring.send_frame(client, bytearray(b"payload"), 100)
        assert sends() == (before[0], before[1] + 1)
        assert await trio_uring.receive_frame(server, 100) == b"payload"
        # Small ones in bytes are joined with their prefix: one record.
        await trio_uring.send_frame(client, b"payload", 100)
        assert sends() == (before[0] + 1, before[1] + 1)
        assert await trio_uring.receive_frame(server, 100) == b"payload"
