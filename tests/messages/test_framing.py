"""The codec of frames, without I/O: every boundary, byte by byte, any chunking, and invalid bytes.

Rules: no clock and no I/O. What is expected is computed here from the format's definition, never by
the codec itself. Memory is what tracemalloc counts.
"""

from __future__ import annotations

import copy
import pickle
import struct
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_uring.framing import (
    SIZE_MAX,
    FrameDecoder,
    FrameError,
    FrameTooLarge,
    check_max_size,
    decode_prefix,
    encode_prefix,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trio_uring.framing import Prefix

pytestmark = pytest.mark.no_ring

PREFIXES: list[Prefix] = ["u32be", "varint"]
SLACK = 16 * 1024  # bytes: the objects of a decoder, and of the test

# Both encodings, written out.
BOUNDARIES = [
    (0, "00000000", "00"),
    (1, "00000001", "01"),
    (127, "0000007f", "7f"),
    (128, "00000080", "8001"),
    (16383, "00003fff", "ff7f"),
    (16384, "00004000", "808001"),
    (2**21 - 1, "001fffff", "ffff7f"),
    (2**21, "00200000", "80808001"),
    (2**28 - 1, "0fffffff", "ffffff7f"),
    (2**28, "10000000", "8080808001"),
    (2**32 - 1, "ffffffff", "ffffffff0f"),
]
OVERFLOWS = ["8080808010", "ffffffff1f", "808080808001", "ffffffffff", "8080808080"]


def encoded_size(size: int, prefix: Prefix) -> bytes:
    """The format's definition, by another way than the package's."""
    if prefix == "u32be":
        return struct.pack(">I", size)
    groups = max(1, -(-size.bit_length() // 7))
    return bytes(
        (size >> 7 * index & 0x7F) | (0x80 if index < groups - 1 else 0) for index in range(groups)
    )


def encoded(frames: Iterable[bytes], prefix: Prefix) -> bytes:
    return b"".join(encoded_size(len(frame), prefix) + frame for frame in frames)


def decode_pieces(decoder: FrameDecoder, pieces: Iterable[bytes]) -> list[bytes]:
    frames = []
    for piece in pieces:
        decoder.feed(piece)
        frames += decoder
    return frames


def byte_by_byte(data: bytes) -> list[bytes]:
    return [data[index : index + 1] for index in range(len(data))]


def peak_of(work: Callable[[], object]) -> int:
    """The most bytes that were allocated at a time while `work` ran."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# -- prefixes


@pytest.mark.parametrize(("size", "u32be", "varint"), BOUNDARIES)
def test_boundaries_of_prefixes(size: int, u32be: str, varint: str) -> None:
    for prefix, expected in zip(PREFIXES, map(bytes.fromhex, (u32be, varint))):
        assert encode_prefix(size, prefix) == expected == encoded_size(size, prefix)
        for given_so_far in range(len(expected)):
            assert decode_prefix(expected[:given_so_far], prefix) is None
        assert decode_prefix(expected, prefix) == (size, len(expected))
        assert decode_prefix(expected + b"\xff" * 9, prefix) == (size, len(expected))


def test_the_default_prefix_is_u32be() -> None:
    assert encode_prefix(1) == b"\0\0\0\1"
    assert decode_prefix(b"\0\0\0\1") == (1, 4)
    assert decode_pieces(FrameDecoder(), [b"\0\0\0\1x"]) == [b"x"]


@given(st.integers(0, SIZE_MAX))
def test_any_size_comes_back(size: int) -> None:
    for prefix in PREFIXES:
        assert encode_prefix(size, prefix) == encoded_size(size, prefix)
        assert decode_prefix(encode_prefix(size, prefix), prefix) == (
            size,
            len(encoded_size(size, prefix)),
        )


@pytest.mark.parametrize("prefix", PREFIXES)
def test_sizes_that_no_prefix_can_say(prefix: Prefix) -> None:
    with pytest.raises(FrameTooLarge, match=r"4294967296 .* 4294967295") as caught:
        encode_prefix(2**32, prefix)
    assert (caught.value.size, caught.value.max_size) == (2**32, SIZE_MAX)
    with pytest.raises(ValueError, match="not negative"):
        encode_prefix(-1, prefix)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FrameDecoder(1, "u16"),
        lambda: encode_prefix(1, "u16"),
        lambda: decode_prefix(b"", ""),
    ],
)
def test_unknown_prefixes(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="'u32be' or 'varint', not '"):
        make()


@pytest.mark.parametrize("overflow", OVERFLOWS)
def test_varint_overflow_is_an_error_at_its_fifth_byte(overflow: str) -> None:
    data = bytes.fromhex(overflow)
    assert decode_prefix(data[:4], "varint") is None
    with pytest.raises(FrameError, match="longer than 5 bytes, or larger than"):
        decode_prefix(data[:5], "varint")
    decoder = FrameDecoder(SIZE_MAX, "varint")
    assert decode_pieces(decoder, byte_by_byte(data[:4])) == []
    decoder.feed(data[4:5])
    for _ in range(3):  # and so will every later call say
        with pytest.raises(FrameError, match="longer than 5 bytes") as caught:
            decoder.next_frame()
        assert not isinstance(caught.value, FrameTooLarge)
        with pytest.raises(FrameError, match="longer than 5 bytes"):
            decoder.check()
        decoder.feed(b"\x01x")


@pytest.mark.parametrize("padded", ["8500", "858000", "85808000", "8580808000"])
def test_padded_varints_are_accepted(padded: str) -> None:
    prefix = bytes.fromhex(padded)
    assert decode_prefix(prefix, "varint") == (5, len(prefix))
    decoder = FrameDecoder(5, "varint")
    assert decode_pieces(decoder, byte_by_byte(prefix + b"hello" + prefix + b"world")) == [
        b"hello",
        b"world",
    ]


@pytest.mark.parametrize("bad", [-1, 2**32, 2**40])
def test_limits_that_are_none(bad: int) -> None:
    with pytest.raises(ValueError, match=f"from 0 to 4294967295 bytes, not {bad}"):
        FrameDecoder(bad)
    with pytest.raises(TypeError):
        check_max_size(1.5)  # type: ignore[arg-type]
    assert check_max_size(0) == 0
    assert check_max_size(SIZE_MAX) == SIZE_MAX


# -- the limit


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("limit", [0, 1, 127, 128, 16384])
def test_the_limit_is_inclusive(prefix: Prefix, limit: int) -> None:
    decoder = FrameDecoder(limit, prefix)
    largest = b"x" * limit
    assert decode_pieces(decoder, [encoded([largest, largest], prefix)]) == [largest, largest]
    decoder.feed(encoded_size(limit + 1, prefix))  # its prefix is enough
    for _ in range(3):
        with pytest.raises(
            FrameTooLarge, match=f"a frame of {limit + 1} bytes is larger than the limit of {limit}"
        ) as caught:
            decoder.next_frame()
        assert (caught.value.size, caught.value.max_size) == (limit + 1, limit)
        with pytest.raises(FrameTooLarge):
            decoder.check()
        with pytest.raises(FrameTooLarge):
            next(iter(decoder))
        decoder.feed(b"x")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("cut", [None, 1, 3])
def test_frames_before_a_bad_prefix_are_delivered_first(prefix: Prefix, cut: int | None) -> None:
    good = [b"one", b"", b"three" * 30]
    data = encoded(good, prefix) + encoded_size(1000, prefix) + b"y" * 50
    pieces = (
        [data] if cut is None else [data[start : start + cut] for start in range(0, len(data), cut)]
    )
    decoder, got = FrameDecoder(150, prefix), []
    for piece in pieces:
        decoder.feed(piece)
    for _ in good:
        got.append(decoder.next_frame())
        decoder.check()  # not found yet
    assert got == good
    with pytest.raises(FrameTooLarge):
        decoder.next_frame()


def test_no_error_is_no_error() -> None:
    decoder = FrameDecoder()
    decoder.check()
    assert decoder.next_frame() is None
    decoder.feed(b"")
    assert decoder.next_frame() is None
    assert (decoder.pending, decoder.partial) == (0, b"")


# -- what is known of an incomplete frame


@pytest.mark.parametrize("prefix", PREFIXES)
def test_pending_partial_and_missing_at_every_byte(prefix: Prefix) -> None:
    payload = bytes(range(200))
    head = encoded_size(200, prefix)
    decoder = FrameDecoder(200, prefix)
    for turn in range(3):  # again after whole frames
        data = head + payload
        for index, byte in enumerate(byte_by_byte(data)):
            assert decoder.next_frame() is None
            assert decoder.pending == index
            in_prefix = index < len(head)
            assert decoder.partial == (data[:index] if in_prefix else payload[: index - len(head)])
            at_least = (
                1
                if in_prefix and prefix == "varint"
                else (4 - index if in_prefix else len(data) - index)
            )
            assert decoder.missing == at_least
            decoder.feed(byte)
        assert decoder.next_frame() == payload, turn
    assert decoder.pending == 0


def test_pending_counts_the_padding_of_a_varint() -> None:
    decoder = FrameDecoder(5, "varint")
    assert decode_pieces(decoder, [bytes.fromhex("85808000") + b"he"]) == []
    assert decoder.pending == 6


@pytest.mark.parametrize(
    "given", [lambda buffer: buffer, memoryview], ids=["bytearray", "memoryview"]
)
def test_what_was_fed_still_belongs_to_the_caller(given: Callable[[bytearray], bytes]) -> None:
    decoder = FrameDecoder(100)
    buffer = bytearray(b"\0\0\0\x06ab")
    decoder.feed(given(buffer))
    buffer[:] = b"??????"  # the caller's to use again
    decoder.feed(b"cdef")
    assert decoder.next_frame() == b"abcdef"
    assert buffer == b"??????"


def test_the_error_can_be_copied_and_pickled() -> None:
    error = FrameTooLarge(5, 1)
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(again), vars(again), str(again)) == (FrameTooLarge, vars(error), str(error))


# -- any chunking

payloads = st.lists(
    st.one_of(st.binary(max_size=5), st.binary(max_size=400), st.integers(0, 3000).map(bytes)),
    max_size=12,
)


def cut_up(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in pieces of these sizes, over and over."""
    pieces, start, turn = [], 0, 0
    while start < len(data):
        size = sizes[turn % len(sizes)]
        pieces.append(data[start : start + size])
        start, turn = start + size, turn + 1
    return pieces


cuts = st.lists(
    st.one_of(st.integers(1, 9), st.integers(0, 700), st.integers(1, 5000)), min_size=1, max_size=10
).filter(any)


@given(frames=payloads, sizes=cuts, prefix=st.sampled_from(PREFIXES))
@example(frames=[b"", b"", b""], sizes=[1], prefix="varint")
@example(frames=[bytes(600), b"abc", bytes(511), bytes(513)], sizes=[511, 512, 1], prefix="u32be")
def test_any_chunking_of_any_frames_gives_the_same_frames(
    frames: list[bytes], sizes: list[int], prefix: Prefix
) -> None:
    decoder = FrameDecoder(3000, prefix)
    got = decode_pieces(decoder, cut_up(encoded(frames, prefix), sizes))
    assert got == frames
    assert all(type(frame) is bytes for frame in got)
    assert decoder.pending == 0


@given(frames=payloads, sizes=cuts, prefix=st.sampled_from(PREFIXES), take_each=st.integers(0, 5))
def test_frames_may_be_taken_late(
    frames: list[bytes], sizes: list[int], prefix: Prefix, take_each: int
) -> None:
    decoder, got = FrameDecoder(3000, prefix), []
    for piece in cut_up(encoded(frames, prefix), sizes):
        decoder.feed(piece)
        for _ in range(take_each):
            frame = decoder.next_frame()
            if frame is not None:
                got.append(frame)
    assert got + list(decoder) == frames
