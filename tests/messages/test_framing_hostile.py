"""The codec with bytes from a hostile peer: the right frames, the right error, and no more memory
than it sent.

Rules: no clock and no I/O. A plain decoder that gets all bytes at once says what is right. Memory
is what tracemalloc counts.
"""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.long_cases import long

from trio_uring.framing import SIZE_MAX, FrameDecoder, FrameError, FrameTooLarge

from .test_framing import PREFIXES, SLACK, cut_up, cuts, encoded_size, peak_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_uring.framing import Prefix

pytestmark = pytest.mark.no_ring

MIB = 2**20


def plain_decode(data: bytes, limit: int, prefix: Prefix) -> tuple[list[bytes], str, bytes]:
    """What a decoder must find: the frames, how it ends ("", "too large", "malformed"), and what is
    left at the end."""
    frames, start = [], 0
    while True:
        size, at = 0, start
        if prefix == "u32be":
            if len(data) - start < 4:
                return frames, "", data[start:]
            size, at = int.from_bytes(data[start : start + 4], "big"), start + 4
        else:
            while True:
                if at - start == 5:
                    return frames, "malformed", data[start:]
                if at == len(data):
                    return frames, "", data[start:]
                size |= (data[at] & 0x7F) << 7 * (at - start)
                at += 1
                if data[at - 1] < 0x80:
                    break
            if size > SIZE_MAX:
                return frames, "malformed", data[start:]
        if size > limit:
            return frames, "too large", data[start:]
        if len(data) - at < size:
            return frames, "", data[start:]
        frames.append(data[at : at + size])
        start = at + size


def decode(pieces: Iterable[bytes], decoder: FrameDecoder) -> tuple[list[bytes], str]:
    frames: list[bytes] = []
    try:
        for piece in pieces:
            decoder.feed(piece)
            for frame in decoder:
                frames.append(frame)  # one by one: those before an error count
    except FrameTooLarge:
        return frames, "too large"
    except FrameError:
        return frames, "malformed"
    return frames, ""


# Bytes that look like prefixes more often than any would.
hostile = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from(
            [
                b"\0",
                b"\0\0\0",
                b"\0\0\1\0",
                b"\xff" * 4,
                b"\x80" * 4,
                b"\x80",
                b"\x0f",
                b"\xff\xff\xff\xff\x0f",
            ]
        ),
        st.integers(0, 300).map(lambda size: encoded_size(size, "u32be")),
        st.integers(0, 300).map(lambda size: encoded_size(size, "varint") + bytes(size)),
    ),
    max_size=12,
).map(b"".join)


@given(
    data=hostile,
    sizes=cuts,
    limit=st.sampled_from([0, 1, 5, 256, 70_000, SIZE_MAX]),
    prefix=st.sampled_from(PREFIXES),
)
def test_any_bytes_give_frames_or_the_right_error(
    data: bytes, sizes: list[int], limit: int, prefix: Prefix
) -> None:
    frames, end, left = plain_decode(data, limit, prefix)
    decoder = FrameDecoder(limit, prefix)
    assert decode(cut_up(data, sizes), decoder) == (frames, end)
    if not end:
        assert left.endswith(decoder.partial)
        assert bool(decoder.pending) == bool(left)
        assert decoder.missing >= 1
    else:
        with pytest.raises(FrameError):
            decoder.next_frame()


@given(
    data=hostile,
    sizes=cuts,
    limit=st.sampled_from([0, 256, 70_000]),
    prefix=st.sampled_from(PREFIXES),
)
def test_no_more_is_allocated_than_came_and_the_limit(
    data: bytes, sizes: list[int], limit: int, prefix: Prefix
) -> None:
    pieces = cut_up(data, sizes)
    frames, end, _ = plain_decode(data, limit, prefix)
    decoder = FrameDecoder(limit, prefix)
    got = []
    peak = peak_of(lambda: got.append(decode(pieces, decoder)))
    assert got == [(frames, end)]
    objects = 120 * (len(pieces) + len(frames))  # each is an object and a place in a list
    assert peak <= len(data) + limit + objects + SLACK


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("size", [2**20, 2**28, SIZE_MAX])
def test_a_prefix_alone_allocates_nothing(prefix: Prefix, size: int) -> None:
    decoder = FrameDecoder(SIZE_MAX, prefix)
    data = encoded_size(size, prefix) + b"0123456789"

    def work() -> None:
        assert decode(cut_up(data, [3]), decoder) == ([], "")
        assert decoder.missing == size - 10
        assert decoder.partial == b"0123456789"

    assert peak_of(work) < SLACK


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_over_the_limit_allocates_nothing(prefix: Prefix) -> None:
    data = encoded_size(SIZE_MAX, prefix) + b"x" * 10
    assert peak_of(lambda: decode([data], FrameDecoder(2**20, prefix))) < SLACK


@pytest.mark.parametrize(
    ("step", "size", "prefix"),
    [
        (1, MIB // 16, "u32be"),
        long(1, MIB // 4, "u32be"),
        long(2, MIB, "varint"),
        (5, MIB, "u32be"),
        (100, MIB, "varint"),
        (511, MIB, "u32be"),
        (512, MIB, "varint"),
        (600, MIB, "u32be"),
    ],
)
def test_a_frame_that_drips_is_held_once(step: int, size: int, prefix: Prefix) -> None:
    data = encoded_size(size, prefix) + bytes(size)
    decoder = FrameDecoder(size, prefix)
    view = memoryview(data)[:-1]
    tracemalloc.start()
    try:
        most = 0
        for start in range(0, len(view), step):
            decoder.feed(bytes(view[start : start + step]))
            assert decoder.next_frame() is None
            if start % (4096 * step) == 0:
                most = max(most, tracemalloc.get_traced_memory()[0])
        most = max(most, tracemalloc.get_traced_memory()[0])
        assert tracemalloc.get_traced_memory()[1] < 1.5 * size
    finally:
        tracemalloc.stop()
    assert size < most < 1.5 * size
    decoder.feed(data[-1:])
    assert decoder.next_frame() == bytes(size)


def test_small_frames_that_are_taken_leave_little_behind() -> None:
    """A peer that always leaves a part of a frame in the decoder: what was taken before must not
    pile up."""
    decoder = FrameDecoder(100, "varint")
    stream = encoded_size(7, "varint") + b"1234567"
    data = stream * 40_000
    tracemalloc.start()
    try:
        count = 0
        for start in range(0, len(data), 5):  # 320 kB, never at the end of a frame but by chance
            decoder.feed(data[start : start + 5])
            for frame in decoder:
                assert frame == b"1234567"
                count += 1
        held = tracemalloc.get_traced_memory()[0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 40_000
    assert held < 2**17
    assert peak < 2**17


def test_a_drip_is_not_joined_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear in what came: between the first and the last byte of a frame, nothing takes, joins or
    looks at its bytes."""
    from trio_uring._bytes.chunks import ChunkQueue

    calls = []
    for name in ("take", "peek", "find", "prepend"):
        whole = getattr(ChunkQueue, name)

        def counted(
            self: ChunkQueue, *args: object, name: str = name, whole: object = whole
        ) -> object:
            calls.append((name, *args))
            return whole(self, *args)  # type: ignore[operator]

        monkeypatch.setattr(ChunkQueue, name, counted)
    decoder = FrameDecoder(5000)
    data = encoded_size(5000, "u32be") + bytes(5000)
    assert decode(cut_up(data, [1]), decoder) == ([bytes(5000)], "")
    assert calls == [("take", 4), ("take", 5000)]
    calls.clear()
    varint = FrameDecoder(5000, "varint")
    assert decode(cut_up(encoded_size(5000, "varint") + bytes(5000), [1]), varint) == (
        [bytes(5000)],
        "",
    )
    assert [call for call in calls if call[0] == "take"] == [("take", 2), ("take", 5000)]
    assert [call for call in calls if call[0] != "take"] == [
        ("peek", 5)
    ] * 3  # at no byte, at one, at two
