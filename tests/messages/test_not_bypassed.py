"""Streams that override methods, subclasses of ours, and wrappers that pass attributes on.

Lists, frames, exact reads and time limits go through those methods, with arguments that they take.
"""

from __future__ import annotations

import math
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.shouting import KINDS, Shouting
from support.streams import closing, drain, unix_sockets

import trio_uring
from trio_uring import BufferedReceiveStream, FrameStream, receive_frame, send_frame
from trio_uring._bytes.abilities import Abilities
from trio_uring._network.network import BufferedNetworkStream

if TYPE_CHECKING:
    import socket

every_kind = pytest.mark.parametrize("kind", KINDS)


def shouting(kind: str) -> tuple[Any, socket.socket]:
    left, right = unix_sockets()
    return KINDS[kind](left), right


@every_kind
@pytest.mark.parametrize("timeout", [None, 5.0, math.inf])
async def test_lists_and_frames_are_sent_by_it(kind: str, timeout: float | None) -> None:
    stream, peer = shouting(kind)
    async with closing(stream, peer):
        await trio_uring.send_all_vectored(stream, [b"one", b"two"], timeout=timeout)
        assert drain(peer) == b"ONETWO"
        await send_frame(stream, b"abc", timeout=timeout)
        assert drain(peer) == b"\0\0\0\3ABC"
        await FrameStream(stream).send(b"d" * 2000, timeout=timeout)
        assert drain(peer) == b"\0\0\7\xd0" + b"D" * 2000
        await FrameStream(stream).send_many([b"e", b"f"], timeout=timeout)
        assert drain(peer) == b"\0\0\0\1E\0\0\0\1F"


@every_kind
@pytest.mark.parametrize("timeout", [None, 5.0, math.inf])
async def test_frames_and_exact_reads_are_received_by_it(kind: str, timeout: float | None) -> None:
    stream, peer = shouting(kind)
    async with closing(stream, peer):
        peer.send(b"\0\0\0\2ab\0\0\0\1c")
        assert await receive_frame(stream, timeout=timeout) == b"AB"
        assert await FrameStream(stream).receive(timeout=timeout) == b"C"
        peer.send(b"exact,into,")
        buffered = BufferedReceiveStream(stream, 0)
        assert await buffered.receive_exactly(6, timeout=timeout) == b"EXACT,"
        memory = bytearray(5)
        assert await buffered.receive_into(memory, timeout=timeout) == 5
        assert memory == b"INTO,"


@every_kind
async def test_its_time_is_limited_from_outside(kind: str) -> None:
    stream, peer = shouting(kind)
    async with closing(stream, peer):
        for receive in (
            lambda: receive_frame(stream, timeout=0.01),
            lambda: FrameStream(stream).receive(timeout=0.01),
            lambda: BufferedReceiveStream(stream).receive_some(timeout=0.01),
        ):
            with pytest.raises(trio.TooSlowError):
                await receive()
        with pytest.raises(trio.TooSlowError):
            await trio_uring.send_all_vectored(stream, [bytes(2**20)] * 8, timeout=0.01)


@pytest.mark.parametrize("kind", ["metered subclass", "metered passing"])
async def test_a_wrapper_limits_the_time_of_what_takes_no_timeout(kind: str) -> None:
    stream, peer = shouting(kind)
    async with closing(stream, peer):
        await stream.send_all(b"abc", timeout=5.0)
        await stream.send_all([b"d", b"e"], timeout=math.inf)
        assert drain(peer) == b"ABCDE"
        peer.send(b"fgh")
        assert await stream.receive_some(2, timeout=5.0) == b"FG"
        memory = bytearray(5)
        assert await stream.receive_into(memory, timeout=5.0) == 1
        assert memory[:1] == b"H"
        with pytest.raises(trio.TooSlowError):
            await stream.receive_some(timeout=0.01)
        for name in ("send_timeout", "receive_timeout"):
            with pytest.raises(AttributeError, match=name):
                setattr(stream, name, 5.0)


@every_kind
async def test_a_network_sends_on_it(kind: str) -> None:
    transport, peer = shouting(kind)
    stream = BufferedNetworkStream(
        transport, trio_uring.NetworkConfig(write_timeout=5.0), ("here", 1), ("there", 2)
    )
    async with closing(stream, peer):
        for data in (b"one", bytearray(b"one"), memoryview(b"one"), [b"o", b"ne"]):
            await stream.send_all(data, timeout=1.0)
            assert drain(peer) == b"ONE"
        peer.send(b"line\nrest")
        assert await stream.receive_until(b"\n", 10) == b"LINE\n"
        assert await stream.receive_some() == b"REST"


async def test_what_a_subclass_buffers_is_not_taken_past_it() -> None:
    class Loud(BufferedReceiveStream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:  # type: ignore[override]
            return (await super().receive_some(max_bytes)).upper()

    left, right = unix_sockets()
    ours = trio_uring.SocketStream(left)
    async with closing(ours, right):
        stream = Loud(ours)
        right.send(b"x\0\0\0\2ab\0\0\0\2cd")
        assert await stream.receive_exactly(1) == b"x"
        assert await receive_frame(stream) == b"AB"
        assert await receive_frame(stream) == b"CD"


async def test_a_subclass_that_says_so_gets_lists() -> None:
    got: list[Any] = []

    class Recording(trio_uring.SocketStream):
        _abilities = Abilities(lists_by="send_all")

        async def send_all(self, data: Any, *, timeout: float | None = None) -> None:
            got.append((data, timeout))
            await super().send_all(data, timeout=timeout)

    left, right = unix_sockets()
    stream = Recording(left)
    async with closing(stream, right):
        await trio_uring.send_all_vectored(stream, [b"one", b"two"], timeout=math.inf)
        assert got == [([b"one", b"two"], math.inf)]
        assert drain(right) == b"onetwo"


async def test_tls_over_a_subclass_hands_it_its_records() -> None:
    """None is held back to be joined with the next: that would go out past the subclass."""

    class Noting(Shouting):
        records: list[bytes]

        async def send_all(self, data: Any) -> None:  # type: ignore[override]
            self.records.append(bytes(data))
            await trio_uring.SocketStream.send_all(self, data)

        async def receive_some(self, max_bytes: int | None = None) -> bytes:  # type: ignore[override]
            return await trio_uring.SocketStream.receive_some(self, max_bytes)

    left, right = unix_sockets()
    below = Noting(left)
    below.records = []
    ends = []
    for transport, protocol in (
        (below, ssl.PROTOCOL_TLS_CLIENT),
        (trio_uring.SocketStream(right), ssl.PROTOCOL_TLS_SERVER),
    ):
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("aNULL:@SECLEVEL=0")
        ends.append(
            trio.SSLStream(
                transport,
                context,
                server_side=protocol == ssl.PROTOCOL_TLS_SERVER,
                https_compatible=True,
            )
        )
    async with closing(*ends):
        async with trio.open_nursery() as nursery:
            for end in ends:
                nursery.start_soon(end.do_handshake)
        before = len(below.records)
        await trio_uring.send_all_vectored(ends[0], [b"one", b"two", b"three"])
        assert len(below.records) == before + 3
        got = b""
        while len(got) < 11:
            got += await ends[1].receive_some()
        assert got == b"onetwothree"
