"""send_frame and receive_frame over every kind of stream: what arrives, and how few operations it
takes.

Rules: what must be on the wire is computed from the format, not by the codec. Operations are those
that the ring counted.
"""

from __future__ import annotations

import array
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.scripted import PAIRS, connected, network_stream, pipe_pair
from support.streams import (
    TINY,
    clog,
    closing,
    count_of,
    drain,
    pattern,
    receive_all,
    unix_sockets,
    unix_streams,
)
from trio.testing import assert_checkpoints

from trio_uring import BufferedReceiveStream, FrameTooLarge, SocketStream, receive_frame, send_frame
from trio_uring.framing import SIZE_MAX

from .test_framing import PREFIXES, encoded, encoded_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_uring.framing import Prefix

every_kind = pytest.mark.parametrize("kind", PAIRS)
both_prefixes = pytest.mark.parametrize("prefix", PREFIXES)

# Payloads, and the bytes that they are.
PAYLOADS: dict[str, tuple[Any, bytes]] = {
    "bytes": (b"hello", b"hello"),
    "empty": (b"", b""),
    "no buffers": ([], b""),
    "empty buffers": ([b"", bytearray()], b""),
    "bytearray": (bytearray(b"hello"), b"hello"),
    "memoryview": (memoryview(b"-hello-")[1:-1], b"hello"),
    "array": (array.array("H", [0x4141, 0x4242, 0x4343]), b"AABBCC"),
    "view of words": (memoryview(array.array("I", [0x41414141] * 3))[1:], b"A" * 8),
    "list": ([b"he", bytearray(b"l"), memoryview(b"lo")], b"hello"),
    "tuple": ((b"he", b"", b"llo"), b"hello"),
    "deque": (deque([b"he", b"llo"]), b"hello"),
    "list with an array": ([b"x", array.array("H", [0x4141])], b"xAA"),
    "large": (pattern(30_000), pattern(30_000)),
    "many": ([b"ab"] * 2000, b"ab" * 2000),
}


class Listing(trio.abc.SendStream):
    """Writes down what each send_all got: the object that owns the memory, and its bytes."""

    def __init__(self) -> None:
        self.sent: list[tuple[object, bytes]] = []

    async def send_all(self, data: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append((data.obj if isinstance(data, memoryview) else data, bytes(data)))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class Vectored(Listing):
    """A wrapper that forwards lists, like those of other packages may."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[list[bytes], float | None]] = []

    async def send_all_vectored(self, buffers: Any, *, timeout: float | None = None) -> None:
        self.calls.append(([bytes(buffer) for buffer in buffers], timeout))


# -- what arrives


@every_kind
@both_prefixes
async def test_every_payload_over_every_kind(kind: str, prefix: Prefix) -> None:
    async with connected(kind) as (left, right):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for payload, _ in PAYLOADS.values():
                    await send_frame(left, payload, prefix=prefix)

            nursery.start_soon(send)
            for name, (_, expected) in PAYLOADS.items():
                got = await receive_frame(right, prefix=prefix)
                assert got == expected, name
                assert type(got) is bytes


@every_kind
@both_prefixes
async def test_what_is_on_the_wire(kind: str, prefix: Prefix) -> None:
    frames = [b"one", b"", b"x" * 300]
    async with connected(kind) as (left, right):
        for frame in frames:
            await send_frame(left, frame, prefix=prefix)
        got = b""
        while len(got) < len(encoded(frames, prefix)):
            got += await right.receive_some()
        assert got == encoded(frames, prefix)


@every_kind
@both_prefixes
async def test_not_a_byte_is_received_that_belongs_to_what_follows(
    kind: str, prefix: Prefix
) -> None:
    async with connected(kind) as (left, right):
        for frame in (b"", b"hello", b"x" * 300):
            await left.send_all(encoded([frame], prefix) + b"what follows")
            assert await receive_frame(right, prefix=prefix) == frame
            got = b""
            while len(got) < 12:
                got += await right.receive_some()
            assert got == b"what follows"


@every_kind
async def test_the_default_prefix_is_u32be_and_the_default_limit_1_mib(kind: str) -> None:
    async with connected(kind) as (left, right):
        with pytest.raises(FrameTooLarge) as info:
            await send_frame(left, bytes(2**20 + 1))
        assert info.value.max_size == 2**20
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_frame, left, pattern(2**20))
            assert await receive_frame(right) == pattern(2**20)
        await left.send_all(b"\0\x10\0\1")
        with pytest.raises(FrameTooLarge) as info:
            await receive_frame(right)
        assert (info.value.size, info.value.max_size) == (2**20 + 1, 2**20)


# -- in how few operations


@pytest.mark.parametrize("wrap", [lambda stream: stream, network_stream], ids=["stream", "network"])
@both_prefixes
async def test_one_operation_for_prefix_and_payload(
    wrap: Callable[[Any], Any], prefix: Prefix
) -> None:
    left, right = unix_streams()
    stream = wrap(left)
    async with closing(stream, right):
        done = 0
        for payload in (
            bytearray(b"hello"),
            array.array("I", [1, 2]),
            [b"a", b"b", b"c"],
            bytes(5000),
        ):
            await send_frame(stream, payload, prefix=prefix)
            done += 1
            assert count_of("SENDMSG").submitted == done
            assert count_of("SEND").submitted == 0
            await receive_frame(right, prefix=prefix)
        # Small ones in bytes are joined with their prefix. Of which kind that is does not matter.
        for small in b"", b"hello", bytes(4096):
            await send_frame(stream, small, prefix=prefix)
            done += 1
            assert count_of("SENDMSG").submitted + count_of("SEND").submitted == done
            assert await receive_frame(right, prefix=prefix) == small


async def test_one_vectored_operation_through_a_stapled_stream_and_on_pipes() -> None:
    left, right = pipe_pair()
    async with closing(left, right):
        await send_frame(left, [b"a", b"b"])
        assert (count_of("WRITEV").submitted, count_of("WRITE").submitted) == (1, 0)
        assert await receive_frame(right) == b"ab"


async def test_other_streams_get_the_callers_own_memory_and_nothing_joined() -> None:
    stream = Listing()
    payload = [b"x" * 5000, bytearray(b"y" * 3)]
    with assert_checkpoints():
        await send_frame(stream, payload)
    assert stream.sent[0][1] == b"\0\0\x13\x8b"
    assert stream.sent[1][0] is payload[0]
    assert stream.sent[2][0] is payload[1]
    assert len(stream.sent) == 3
    payload[1].append(0)  # type: ignore[attr-defined]  # it is the caller's again
    for one in payload:
        stream.sent.clear()
        await send_frame(stream, one)
        assert [len(stream.sent), stream.sent[1][0] is one] == [2, True]


async def test_a_stream_that_sends_lists_gets_one_call_with_the_timeout() -> None:
    stream = Vectored()
    await send_frame(stream, [b"ab", b"cd"], prefix="varint", timeout=7)
    assert stream.calls == [([b"\x04", b"ab", b"cd"], 7)]
    assert stream.sent == []


async def test_a_buffered_receive_of_many_frames_is_one_operation() -> None:
    left, right = unix_streams()
    stream = BufferedReceiveStream(right)
    async with closing(left, stream):
        await left.send_all(encoded([b"message"] * 50, "u32be"))
        assert [await receive_frame(stream) for _ in range(50)] == [b"message"] * 50
        assert count_of("RECV").submitted == 1


# -- limits


@every_kind
@both_prefixes
async def test_the_limit_is_inclusive_on_both_sides_and_too_much_sends_nothing(
    kind: str, prefix: Prefix
) -> None:
    async with connected(kind) as (left, right):
        for limit in (0, 1, 127, 128):
            await send_frame(left, b"x" * limit, limit, prefix=prefix)
            assert await receive_frame(right, limit, prefix=prefix) == b"x" * limit
            for large in (
                b"x" * (limit + 1),
                [b"x" * limit, b"", bytearray(b"y")],
                memoryview(bytes(limit + 1)),
            ):
                with pytest.raises(FrameTooLarge) as info:
                    await send_frame(left, large, limit, prefix=prefix)
                assert (info.value.size, info.value.max_size) == (limit + 1, limit)
        await (left.aclose() if kind == "tls" else left.send_eof())
        assert await receive_all(right) == b""


async def test_sizes_count_bytes_and_not_items() -> None:
    left, right = unix_streams()
    async with closing(left, right):
        words = array.array("I", [1, 2, 3])
        with pytest.raises(FrameTooLarge) as info:
            await send_frame(left, words, 11)
        assert info.value.size == 12
        with pytest.raises(FrameTooLarge):
            await send_frame(left, [words], 11)
        await send_frame(left, words, 12)
        assert await receive_frame(right) == words.tobytes()


@pytest.mark.parametrize("payload", ["text", 5, None, [b"a", "b"], [b"a", 5], range(3)])
async def test_payloads_that_are_none_send_nothing(payload: Any) -> None:
    left, right = unix_streams()
    async with closing(left, right):
        for stream in (left, network_stream(left), trio.StapledStream(left, left), Listing()):
            with pytest.raises(TypeError):
                await send_frame(stream, payload)
        with pytest.raises(BufferError):
            await send_frame(left, memoryview(b"abcdef")[::2])
        await left.send_eof()
        assert await receive_all(right) == b""


async def test_arguments_that_are_wrong() -> None:
    left, right = unix_streams()
    async with closing(left, right):
        for call in (
            lambda **options: send_frame(left, b"", **options),
            lambda **options: receive_frame(right, **options),
        ):
            for limit in (-1, SIZE_MAX + 1):
                with pytest.raises(ValueError, match="max_size must be from 0 to"):
                    await call(max_size=limit)
            with pytest.raises(TypeError):
                await call(max_size=1.5)
            with pytest.raises(ValueError, match="'u32be' or 'varint', not 'u16'"):
                await call(prefix="u16")
        await left.send_eof()
        assert await receive_all(right) == b""


# -- a send that is cut short


async def test_timeouts_and_cancellation_of_a_send(mock_clock: trio.testing.MockClock) -> None:
    ours, peer = unix_sockets(TINY)
    stream = SocketStream(ours)
    async with closing(stream, peer):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_frame, stream, pattern(500_000))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert 4 < stream.bytes_sent < 500_000  # it says how much went
        assert (
            drain(peer) == (encoded_size(500_000, "u32be") + pattern(500_000))[: stream.bytes_sent]
        )
        clog(ours.fileno())
        for target, options in (
            (stream, {"timeout": 10}),
            (stream, {}),
            (network_stream(stream), {"timeout": 10}),
        ):
            stream.send_timeout = None if options else 10
            async with trio.open_nursery() as nursery:

                async def too_slow(target: Any = target, options: Any = options) -> None:
                    with pytest.raises(trio.TooSlowError):
                        await send_frame(target, b"late", **options)

                nursery.start_soon(too_slow)
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(10)
            assert stream.bytes_sent == 0
