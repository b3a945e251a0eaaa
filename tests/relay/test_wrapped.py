"""Observed streams can do what the stream that they wrap can, over every kind of stream that we
have.

Rules of this file: each test runs over every kind, bare and in each wrapper, and expects the same
of all.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.streams import TINY, pattern, unix_sockets

import trio_uring
from trio_uring._bytes.abilities import abilities, receiving_end, sending_end, unwrapped
from trio_uring._network.network import BufferedNetworkStream

from .test_relay import NoEnd, make

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WRAPPERS = {
    "bare": lambda stream: stream,
    "metered": trio_uring.MeteredStream,
    "audited": trio_uring.AuditedStream,
    "nested": lambda stream: trio_uring.MeteredStream(trio_uring.AuditedStream(stream)),
}


def ours(sock: socket.socket) -> Any:
    return trio_uring.SocketStream(sock)


def halves(sock: socket.socket) -> Any:
    return trio.StapledStream(*ours(sock).split())


def buffered(sock: socket.socket) -> Any:
    send, receive = ours(sock).split()
    return trio.StapledStream(send, trio_uring.BufferedReceiveStream(receive, 100))


def two_descriptors(sock: socket.socket) -> Any:
    """SendStream and ReceiveStream, each on a descriptor of its own."""
    fd = sock.detach()
    return trio.StapledStream(trio_uring.SendStream(os.dup(fd)), trio_uring.ReceiveStream(fd))


def network(sock: socket.socket) -> Any:
    return BufferedNetworkStream(ours(sock), trio_uring.NetworkConfig(), ("here", 1), ("there", 2))


def inner_metered(sock: socket.socket) -> Any:
    """A wrapper within a staple, which is what will be wrapped."""
    send, receive = ours(sock).split()
    return trio.StapledStream(
        trio_uring.MeteredStream(both(send)), trio_uring.MeteredStream(both(receive))
    )


def both(half: Any) -> Any:
    """A half as the trio.abc.Stream that wrappers take."""
    return trio.StapledStream(half, half)


def tls(sock: socket.socket) -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("AECDH:@SECLEVEL=0")  # anonymous: no certificate to make
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return trio.SSLStream(ours(sock), context, server_side=True, https_compatible=True)


def tls_client(sock: socket.socket) -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("AECDH:@SECLEVEL=0")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return trio.SSLStream(ours(sock), context, https_compatible=True)


def trios(sock: socket.socket) -> Any:
    return make("trio", sock)


def unknown(sock: socket.socket) -> Any:
    return NoEnd(ours(sock))


KINDS = {
    function.__name__: function
    for function in (
        ours,
        halves,
        buffered,
        two_descriptors,
        network,
        inner_metered,
        tls,
        trios,
        unknown,
    )
}
TAKE_BACK = {"ours", "halves", "buffered", "two_descriptors", "network", "inner_metered"}
COUNT = TAKE_BACK | {"trios"}
HAVE_EOF = {"ours", "halves", "buffered", "two_descriptors", "network", "inner_metered", "trios"}

of_every_kind = pytest.mark.parametrize("kind", KINDS)
in_every_wrapper = pytest.mark.parametrize("wrapper", WRAPPERS)


@contextlib.asynccontextmanager
async def connection(
    kind: str, wrapper: str, buffer: int | None = None
) -> AsyncIterator[tuple[Any, Any]]:
    """A stream of this kind in this wrapper, and its peer."""
    sock, other = unix_sockets(buffer)
    peer = tls_client(other) if kind == "tls" else trio_uring.SocketStream(other)
    stream = WRAPPERS[wrapper](KINDS[kind](sock))
    try:
        if kind == "tls":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.do_handshake)
                nursery.start_soon(unwrapped(stream, sending_end).do_handshake)
        yield stream, peer
    finally:
        await trio.aclose_forcefully(stream)
        await trio.aclose_forcefully(peer)


@of_every_kind
@in_every_wrapper
async def test_what_is_asked_of_a_stream_is_asked_of_the_one_within(kind, wrapper):
    async with connection(kind, wrapper) as (stream, _):
        assert abilities(stream).takes_back == (kind in TAKE_BACK)
        assert abilities(stream).sends_eof == (kind in HAVE_EOF)
        if wrapper != "bare":
            source = unwrapped(stream, receiving_end)
            for name in ("receive_exactly", "receive_until", "peek"):
                assert hasattr(stream, name) == hasattr(source, name)
            assert hasattr(stream, "send_eof") == abilities(stream).sends_eof
            assert hasattr(stream, "bytes_sent") == (kind in COUNT)


@of_every_kind
@in_every_wrapper
async def test_a_cancelled_copy_from_it_loses_nothing(kind, wrapper):
    data = pattern(100_000)
    async with (
        connection(kind, wrapper) as (stream, peer),
        connection("ours", "bare", TINY) as (sink, far),
    ):
        got = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send_all, data)
            for _ in range(3):
                with trio.move_on_after(0.02):
                    await trio_uring.copy_stream(stream, sink)
                sent = sink.bytes_sent
                received = b""
                while len(received) < sent:
                    received += await far.receive_some()
                got += received
            if abilities(stream).takes_back:  # any receive gives what was taken
                while len(got) < len(data):
                    got += await stream.receive_some()
            else:  # the next copy does
                nursery.start_soon(trio_uring.copy_stream, stream, sink)
                while len(got) < len(data):
                    got += await far.receive_some()
                nursery.cancel_scope.cancel()
        assert got == data


@of_every_kind
@in_every_wrapper
async def test_a_cancelled_receive_frame_loses_nothing(kind, wrapper):
    async with connection(kind, wrapper) as (stream, peer):
        for part in (b"\0\0", b"\0\4", b"ab"):
            await peer.send_all(part)
            with trio.move_on_after(0.02):
                await trio_uring.receive_frame(stream)
        await peer.send_all(b"cd\0\0\0\1e")
        if abilities(stream).takes_back:
            first = b""
            while len(first) < 13:
                first += await stream.receive_some()
            assert first == b"\0\0\0\4abcd\0\0\0\1e"
        else:
            assert await trio_uring.receive_frame(stream) == b"abcd"
            assert await trio_uring.receive_frame(stream) == b"e"


@pytest.mark.parametrize("kind", sorted(COUNT))
@in_every_wrapper
async def test_a_cancelled_copy_to_it_says_how_far_it_came(kind, wrapper):
    data = pattern(200_000)
    async with (
        connection(kind, wrapper, TINY) as (sink, far),
        connection("ours", "bare") as (source, near),
    ):
        got, copied = b"", 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_all, data)
            for _ in range(3):
                told = [0]
                with trio.move_on_after(0.02):  # whatever has gone by then
                    await trio_uring.copy_stream(source, sink, progress=told.append)
                if wrapper != "bare" or kind in ("ours", "network"):
                    assert sink.bytes_sent == told[-1]
                copied += told[-1]
                while len(got) < copied:
                    got += await far.receive_some()
            while len(got) < len(data):
                got += await source.receive_some()
        assert got == data


@pytest.mark.parametrize("kind", sorted(COUNT))
@pytest.mark.parametrize("wrapper", ["metered", "nested"])
async def test_a_copy_in_a_cancelled_scope_begins_to_count_anew(kind, wrapper):
    async with connection(kind, wrapper) as (sink, _), connection("ours", "bare") as (source, _):
        await sink.send_all(b"earlier")
        assert sink.bytes_sent == 7
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio_uring.copy_stream(source, sink)
        assert sink.bytes_sent == 0


@of_every_kind
@in_every_wrapper
async def test_a_relay_ends_what_can_be_ended(kind, wrapper):
    """`hasattr` of a wrapper's class says yes for all of them."""
    async with connection(kind, wrapper) as (b, far), connection("ours", "bare") as (a, near):
        async with trio.open_nursery() as nursery:
            results = []

            async def run() -> None:
                results.append(await trio_uring.relay(a, b))

            nursery.start_soon(run)
            await near.send_all(b"question")
            await near.send_eof()
            assert await far.receive_some() == b"question"
            # Of which the other one keeps the socket open.
            if kind in HAVE_EOF - {"two_descriptors"}:
                assert await far.receive_some() == b""
            await far.send_all(b"answer")
            assert await near.receive_some() == b"answer"
            if kind == "tls":
                await far.aclose()
            else:
                await far.send_eof()
        assert results == [(8, 6)]


@of_every_kind
@pytest.mark.parametrize("wrapper", ["metered", "nested"])
async def test_lists_timeouts_and_frames(kind, wrapper):
    async with connection(kind, wrapper) as (stream, peer):
        source = unwrapped(stream, receiving_end)
        if abilities(source).times_receives:
            stream.receive_timeout = 0
            assert source.receive_timeout == 0
            with pytest.raises(trio.TooSlowError):
                await stream.receive_some()
        with trio.move_on_after(
            0.02
        ) as scope:  # the call's own limit, though that of the stream is over at once
            await stream.receive_some(timeout=math.inf)
        assert scope.cancelled_caught
        with pytest.raises(trio.TooSlowError):
            await stream.receive_into(bytearray(3), timeout=0)
        await stream.send_all([b"on", b"e"], timeout=math.inf)
        assert await peer.receive_some(3) in (b"one", b"on")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_uring.send_frame, peer, [b"fr", b"ame"])
            frame = await trio_uring.receive_frame(stream, timeout=math.inf)
        assert frame == b"frame"


@pytest.mark.parametrize("kind", ["ours", "halves", "two_descriptors", "network", "trios"])
@pytest.mark.parametrize("wrapper", ["metered", "nested"])
async def test_trios_own_checks(kind, wrapper):
    async def pair() -> tuple[Any, Any]:
        left, right = unix_sockets()
        return tuple(WRAPPERS[wrapper](KINDS[kind](sock)) for sock in (left, right))  # type: ignore[return-value]

    await trio.testing.check_two_way_stream(pair, None)
    if kind != "two_descriptors":
        await trio.testing.check_half_closeable_stream(pair, None)
