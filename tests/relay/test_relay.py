"""relay, and copy_stream with a stream that is not of this package: the loop does what the pump
does."""

from __future__ import annotations

import socket
import ssl
import struct
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.streams import (
    clog,
    drain,
    pattern,
    receive_all,
    stream_and_peer,
    tcp_sockets,
    unix_sockets,
    until,
    until_blocked,
)

import trio_uring

if TYPE_CHECKING:
    from collections.abc import Callable

PAIRS = ["ours-ours", "ours-trio", "trio-ours", "trio-trio"]


def make(kind: str, sock: socket.socket) -> Any:
    return (
        trio_uring.SocketStream(sock)
        if kind == "ours"
        else trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    )


class Between:
    """client - a, relayed to b - server; the clients are streams of trio."""

    def __init__(self, kinds: str = "ours-ours", sockets: Callable[[], Any] = unix_sockets) -> None:
        (client, a), (b, server) = sockets(), sockets()
        self.client, self.server = make("trio", client), make("trio", server)
        first, second = kinds.split("-")
        self.a, self.b = make(first, a), make(second, b)
        self.result: Any = None
        self.done = trio.Event()

    async def run(self, *expected: type[Exception], **named: Any) -> None:
        try:
            self.result = await trio_uring.relay(self.a, self.b, **named)
        except expected as exc:
            self.result = exc
        self.done.set()

    async def aclose(self) -> None:
        for stream in (self.client, self.a, self.b, self.server):
            await trio.aclose_forcefully(stream)


async def send_and_end(stream: Any, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


@pytest.mark.parametrize("kinds", PAIRS)
@pytest.mark.parametrize("sockets", [unix_sockets, tcp_sockets])
async def test_both_ways_at_once_to_both_ends(kinds, sockets):
    there, back = pattern(1_200_000), pattern(700_001, start=8)
    between = Between(kinds, sockets)
    got = {}

    async def collect(name: str, stream: Any) -> None:
        got[name] = await receive_all(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(between.run)
        nursery.start_soon(send_and_end, between.client, there)
        nursery.start_soon(send_and_end, between.server, back)
        nursery.start_soon(collect, "there", between.server)
        nursery.start_soon(collect, "back", between.client)
    assert got == {"there": there, "back": back}
    assert between.result == (len(there), len(back))
    assert (between.result.a_to_b, between.result.b_to_a) == between.result
    await between.aclose()


@pytest.mark.parametrize("kinds", PAIRS)
async def test_half_close_is_carried_over_and_the_answer_still_comes(kinds):
    between = Between(kinds)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(between.run)
        await send_and_end(between.client, b"question")
        assert await receive_all(between.server) == b"question"
        assert not between.done.is_set()
        await between.server.send_all(b"answer")
        assert await between.client.receive_some() == b"answer"
        await between.server.send_eof()
        assert await between.client.receive_some() == b""
        await between.done.wait()
    assert between.result == (8, 6)
    await between.a.aclose()  # nothing of it was closed
    await between.aclose()


@pytest.mark.parametrize("kinds", PAIRS)
async def test_an_error_in_one_direction_ends_the_other_and_comes_alone(kinds):
    between = Between(kinds, tcp_sockets)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(between.run, trio.BrokenResourceError)
        await between.client.send_all(b"x")
        assert await between.server.receive_some() == b"x"
        between.client.socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        await between.client.aclose()
        await between.done.wait()
    assert type(between.result) is trio.BrokenResourceError
    await between.b.send_all(b"free")
    assert await between.server.receive_some() == b"free"
    await between.aclose()


async def test_progress_has_both_numbers():
    told: list[tuple[int, int]] = []
    between = Between()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: between.run(progress=lambda *counts: told.append(counts)))
        await between.client.send_all(b"four")
        await between.server.receive_some()
        await send_and_end(between.server, b"sixsix")
        await between.client.receive_some()
        await between.client.send_eof()
        await between.done.wait()
    assert told[-1] == (4, 6) == between.result
    await between.aclose()


async def test_an_exception_of_progress_leaves_relay_alone():
    def progress(*_: int) -> None:
        raise ZeroDivisionError

    between = Between()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: between.run(ZeroDivisionError, progress=progress))
        await between.client.send_all(b"four")
        await between.done.wait()
    assert type(between.result) is ZeroDivisionError
    await between.aclose()


@pytest.mark.parametrize("kinds", PAIRS)
async def test_a_cancelled_relay_leaves_both_streams_usable(kinds):
    between = Between(kinds)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(between.run)
        await between.client.send_all(b"through")
        assert await between.server.receive_some() == b"through"
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert not trio_uring.current_operations()
    await between.client.send_all(b"later")
    assert await between.a.receive_some() == b"later"
    await between.b.send_all(b"later")
    assert await between.server.receive_some() == b"later"
    await between.aclose()


async def test_a_stream_that_knows_no_end_is_relayed_all_the_same():
    left, right = trio.testing.memory_stream_pair()
    stream, peer = stream_and_peer()
    peer.setblocking(False)
    results = []

    async def run() -> None:
        results.append(await trio_uring.relay(stream, NoEnd(right)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        peer.send(b"in")
        assert await left.receive_some() == b"in"
        peer.shutdown(socket.SHUT_WR)
        await left.send_all(b"out")
        await until(lambda: drain(peer) == b"out", "the answer")
        await left.send_eof()
    assert results == [(2, 3)]
    await stream.aclose()
    peer.close()


class NoEnd(trio.abc.Stream):
    """As TLS: it cannot be half closed."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def send_all(self, data: Any) -> None:
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> Any:
        return await self.inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.inner.aclose()


async def test_over_tls():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("AECDH:@SECLEVEL=0")  # anonymous: no certificate to make
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname = False
    asking.verify_mode = ssl.CERT_NONE
    asking.set_ciphers("AECDH:@SECLEVEL=0")
    asking.maximum_version = ssl.TLSVersion.TLSv1_2
    (outer, inner), (ours, peer) = unix_sockets(), unix_sockets()
    client = trio.SSLStream(trio_uring.SocketStream(outer), asking)
    tls = trio.SSLStream(trio_uring.SocketStream(inner), context, server_side=True)
    plain, server = trio_uring.SocketStream(ours), trio_uring.SocketStream(peer)
    data = pattern(300_000)
    results: list[Any] = []

    async def run() -> None:
        results.append(await trio_uring.relay(tls, plain))

    async def talk() -> None:
        await client.send_all(data)
        await client.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        nursery.start_soon(talk)
        assert await receive_all(server) == data
        await server.send_eof()
    assert results == [(len(data), 0)]
    for stream in (tls, plain, server):
        await trio.aclose_forcefully(stream)


# -- the loop of copy_stream


@pytest.mark.parametrize("kinds", PAIRS)
async def test_cancelled_in_a_send_the_rest_goes_back(kinds):
    """With the loop too, where source or sink are trio's: no byte is lost or doubled."""
    data = pattern(3_000_000)
    between = Between(kinds)
    told: list[int] = []
    got = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_and_end, between.client, data)
        for _ in range(4):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as copies:
                    copies.start_soon(
                        lambda: trio_uring.copy_stream(between.a, between.b, progress=told.append)
                    )
                    await until_quiet(told)
                    scope.cancel()
            before = len(got)
            with trio.move_on_after(0):
                while True:
                    got += await between.server.receive_some()
            while len(got) - before < told[-1]:
                got += await between.server.receive_some()
            assert len(got) - before == told[-1]
            if kinds.endswith("ours"):
                assert between.b.bytes_sent == told[-1]
        copies_rest: list[int] = []

        async def finish() -> None:
            copies_rest.append(await trio_uring.copy_stream(between.a, between.b))

        nursery.start_soon(finish)
        while len(got) < len(data):
            got += await between.server.receive_some()
    assert got == data
    await between.aclose()


async def until_quiet(told: list[int]) -> None:
    before, quiet = -1, 0
    while quiet < 20:
        await trio.lowlevel.checkpoint()
        now = len(told)
        quiet, before = (quiet + 1, now) if now == before and told else (0, now)


@pytest.mark.parametrize("kinds", PAIRS)
async def test_max_bytes_of_the_loop_takes_no_byte_more(kinds):
    between = Between(kinds)
    await between.client.send_all(b"0123456789")
    with trio.testing.assert_checkpoints():
        assert await trio_uring.copy_stream(between.a, between.b, max_bytes=0) == 0
    assert await trio_uring.copy_stream(between.a, between.b, max_bytes=4) == 4
    assert await between.server.receive_some() == b"0123"
    assert await between.a.receive_some() == b"456789"
    await between.aclose()


@pytest.mark.parametrize("kinds", ["ours-trio", "trio-trio"])
async def test_memory_streams_and_a_busy_sink(kinds):
    between = Between(kinds)
    near, far = trio.testing.memory_stream_one_way_pair()
    await between.client.send_all(b"to memory")
    await between.client.send_eof()
    assert await trio_uring.copy_stream(between.a, near) == 9
    assert await far.receive_some() == b"to memory"
    await near.aclose()
    assert await trio_uring.copy_stream(far, between.b) == 0
    await between.aclose()


async def test_the_loop_gives_everything_back_to_a_busy_sink():
    between = Between("ours-trio")
    clog(between.b.socket.fileno())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(between.b.send_all, b"busy")
        await trio.testing.wait_all_tasks_blocked()
        await between.client.send_all(b"data")
        with pytest.raises(trio.BusyResourceError):
            await trio_uring.copy_stream(between.a, between.b)
        assert await between.a.receive_some() == b"data"
        nursery.cancel_scope.cancel()
    await between.aclose()


async def test_time_limits_of_the_streams_do_not_apply_to_a_copy():
    for kinds in ("ours-ours", "ours-trio"):
        between = Between(kinds)
        between.a.receive_timeout = 0
        if kinds == "ours-ours":
            between.b.send_timeout = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_uring.copy_stream, between.a, between.b)
            await until_blocked(between.a.socket.fileno())
            await between.client.send_all(b"late")
            assert await between.server.receive_some() == b"late"
            nursery.cancel_scope.cancel()
        await between.aclose()
