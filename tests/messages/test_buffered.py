"""BufferedReceiveStream over scripted streams: how it receives, and what it raises when it cannot.

Rules: the wrapped stream records what it was asked for. Nothing here needs a kernel, but the run is
checked like every other. Timeouts run on a MockClock.
"""

from __future__ import annotations

import array
import contextlib
import copy
import math
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st
from support.scripted import HiccupError, ScriptedIntoReceiver, ScriptedReceiver
from trio.testing import wait_all_tasks_blocked

from trio_uring import BufferedReceiveStream, DelimiterNotFound, IncompleteReadError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Reader = Callable[..., Awaitable[Any]]

# Every way to receive; each wants the bytes "abcd", and from an idle stream waits.
READS: dict[str, Reader] = {
    "some": lambda stream, **options: stream.receive_some(4, **options),
    "into": lambda stream, **options: into(stream, 4, **options),
    "exactly": lambda stream, **options: stream.receive_exactly(4, **options),
    "until": lambda stream, **options: stream.receive_until(b"d", 8, **options),
}
every_read = pytest.mark.parametrize("read", READS.values(), ids=READS)
unbuffered_too = pytest.mark.parametrize("buffer_size", [0, 1, 7, 65536])


async def into(stream: BufferedReceiveStream, size: int, **options: Any) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: await stream.receive_into(buffer, **options)])


async def caught(
    read: Callable[[], Awaitable[Any]], kind: type[BaseException], into: list[BaseException]
) -> None:
    with pytest.raises(kind) as info:
        await read()
    into.append(info.value)


# -- how it receives


async def test_small_reads_are_served_from_one_receive() -> None:
    peer = ScriptedReceiver([b"one\ntwo\nthree and more"])
    stream = BufferedReceiveStream(peer, 64)
    assert await stream.receive_some(1) == b"o"
    assert stream.peek() == b"ne\ntwo\nthree and more"
    assert await stream.receive_until(b"\n", 10) == b"ne\n"
    assert await stream.receive_exactly(4) == b"two\n"
    assert await into(stream, 6) == b"three "
    assert stream.peek(3) == b"and"
    assert await stream.receive_some() == b"and more"
    assert peer.requests == [64]
    assert stream.peek() == b""


async def test_the_default_buffer_is_64_kib() -> None:
    peer = ScriptedReceiver([b"abc"])
    assert await BufferedReceiveStream(peer).receive_some(1) == b"a"
    assert peer.requests == [65536]


async def test_large_reads_go_straight_to_the_wrapped_stream() -> None:
    data = bytes(range(256)) * 10
    peer = ScriptedReceiver([data, data, data])
    stream = BufferedReceiveStream(peer, 64)
    assert await stream.receive_some(len(data)) is data  # without a copy
    assert await stream.receive_some() is data
    assert await stream.receive_exactly(len(data)) is data
    assert peer.requests == [len(data), None, len(data)]
    assert stream.peek() == b""


async def test_receive_into_gives_the_callers_own_memory_to_the_wrapped_stream() -> None:
    peer = ScriptedIntoReceiver([b"a" * 100, b"b" * 64, b"c" * 10, b"d" * 10])
    stream = BufferedReceiveStream(peer, 64)
    large, just, small = bytearray(1000), bytearray(64), bytearray(63)
    assert await stream.receive_into(large) == 100
    assert await stream.receive_into(just) == 64
    assert peer.into[0][0] is large
    assert peer.into[1][0] is just
    assert [size for _, size in peer.into] == [1000, 64]
    assert (large[:101], just) == (b"a" * 100 + b"\0", b"b" * 64)
    # One receive for the buffer, which can serve more reads.
    assert await stream.receive_into(small) == 10
    assert len(peer.into) == 2
    assert small[:11] == b"c" * 10 + b"\0"
    words = array.array("Q", [0]) * 100
    assert await stream.receive_into(words) == 10
    assert peer.into[2] == (words, 800)
    assert words.tobytes()[:11] == b"d" * 10 + b"\0"
    for buffer in (large, just, small):
        buffer.append(0)  # nothing holds on to it


async def test_receive_into_takes_buffered_bytes_first() -> None:
    peer = ScriptedIntoReceiver([b"abcdef", b"ghijkl"])
    stream = BufferedReceiveStream(peer, 10)
    assert await stream.receive_some(1) == b"a"
    large = array.array("I", [0] * 100)
    assert await stream.receive_into(large) == 5
    assert large.tobytes()[:6] == b"bcdef\0"
    assert peer.into == []
    assert await stream.receive_into(large) == 6
    assert len(peer.into) == 1


async def test_receive_into_without_a_receive_into() -> None:
    peer = ScriptedReceiver([b"abcdef", b"gh"])
    stream = BufferedReceiveStream(peer, 4)
    large = bytearray(8)
    assert await stream.receive_into(large) == 6
    assert large == b"abcdef\0\0"
    assert await stream.receive_into(memoryview(large)[2:4]) == 2
    assert large == b"abghef\0\0"
    assert peer.requests == [8, 4]


async def test_an_exact_read_asks_for_what_is_missing_or_for_a_buffer() -> None:
    peer = ScriptedReceiver([b"0123456789"] * 4)
    stream = BufferedReceiveStream(peer, 16)
    assert await stream.receive_exactly(35) == b"0123456789" * 3 + b"01234"
    assert peer.requests == [35, 25, 16, 16]
    assert stream.peek() == b"56789"


@pytest.mark.parametrize("straight", [False, True])
async def test_unbuffered_never_receives_ahead(straight: bool) -> None:
    peer = (ScriptedIntoReceiver if straight else ScriptedReceiver)(
        [b"abcdefghij--\r-\r\r\nk\r\nl"]
    )
    stream = BufferedReceiveStream(peer, 0)
    assert (await stream.receive_some(2), peer.given) == (b"ab", 2)
    assert (await into(stream, 3), peer.given) == (b"cde", 5)
    assert (await stream.receive_exactly(5), peer.given) == (b"fghij", 10)
    assert (await stream.receive_until(b"\r\n", 100), peer.given) == (b"--\r-\r\r\n", 17)
    assert (await stream.receive_until(b"k", 1), peer.given) == (b"k", 18)
    assert (await stream.receive_until(b"\r\n", 2), peer.given) == (b"\r\n", 20)
    assert stream.peek() == stream.peek(5) == b""
    assert await stream.receive_some() == b"l"
    assert peer.requests == [2, 3, 5, 2, 2, 2, 1, 1, 2, None]


async def test_unbuffered_peek_is_empty_even_when_an_interrupted_read_left_bytes() -> None:
    peer = ScriptedReceiver([b"abc"])
    stream = BufferedReceiveStream(peer, 0)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_exactly, 5)
            await wait_all_tasks_blocked()
            assert peer.requests == [5, 2]
            scope.cancel()
    assert scope.cancelled_caught
    assert stream.peek() == b""
    assert await stream.receive_some(2) == b"ab"
    assert await stream.receive_some() == b"c"
    assert len(peer.requests) == 2


@pytest.mark.parametrize(
    ("delimiter", "limit", "data"),
    [(b"\r\n", 5, b"abcd..."), (b"\r\n", 3, b"ab\r..."), (b"END", 4, b"abE...")],
)
async def test_unbuffered_until_receives_no_more_than_max_bytes(
    delimiter: bytes, limit: int, data: bytes
) -> None:
    peer = ScriptedReceiver([data])
    stream = BufferedReceiveStream(peer, 0)
    with pytest.raises(DelimiterNotFound):
        await stream.receive_until(delimiter, limit)
    assert peer.given <= limit


ab = st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=6).map(b"".join)


@given(delimiter=ab, before=st.lists(ab, max_size=6).map(b"".join), cut=st.integers(1, 9))
@example(delimiter=b"aab", before=b"a", cut=9)
def test_unbuffered_until_stops_exactly_behind_any_delimiter(
    delimiter: bytes, before: bytes, cut: int
) -> None:
    data = before + delimiter + b"ab" * 10
    end = data.find(delimiter) + len(delimiter)

    async def main() -> None:
        peer = ScriptedReceiver([data[start : start + cut] for start in range(0, len(data), cut)])
        assert await BufferedReceiveStream(peer, 0).receive_until(delimiter, 100) == data[:end]
        assert peer.given == end

    trio.run(main)


# -- ends and errors


@unbuffered_too
async def test_the_end_within_an_exact_read_loses_nothing(buffer_size: int) -> None:
    peer = ScriptedReceiver([b"ab", b"cde"], ended=True)
    stream = BufferedReceiveStream(peer, buffer_size)
    for count in (6, 100, 6):
        with pytest.raises(
            IncompleteReadError, match=f"after 5 of the {count} bytes asked for"
        ) as info:
            await stream.receive_exactly(count)
        assert (info.value.partial, info.value.expected) == (b"abcde", count)
        assert isinstance(info.value, EOFError)
    with pytest.raises(IncompleteReadError, match="after 5 bytes, before the delimiter") as info:
        await stream.receive_until(b"\n", 100)
    assert (info.value.partial, info.value.expected) == (b"abcde", None)
    assert stream.peek() == (b"abcde" if buffer_size else b"")
    assert await stream.receive_until(b"b", 100) == b"ab"
    assert await stream.receive_exactly(3) == b"cde"
    assert await stream.receive_exactly(0) == b""
    for read in ("some", "into"):
        assert await READS[read](stream) == b""
    with pytest.raises(IncompleteReadError, match="after 0 of the 4") as info:
        await stream.receive_exactly(4)
    assert info.value.partial == b""


@unbuffered_too
async def test_a_line_that_is_too_long_stays(buffer_size: int) -> None:
    peer = ScriptedReceiver([b"abc", b"def", b"gh\n"])
    stream = BufferedReceiveStream(peer, buffer_size)
    for limit in (4, 8, 1):
        with pytest.raises(
            DelimiterNotFound, match=rf"b'\\n' is not in the first {limit} bytes"
        ) as info:
            await stream.receive_until(b"\n", limit)
        assert (info.value.delimiter, info.value.max_bytes) == (b"\n", limit)
        assert isinstance(info.value, ValueError)
    assert await stream.receive_until(b"\n", 9) == b"abcdefgh\n"  # inclusive


async def test_a_delimiter_may_be_any_bytes_like_object() -> None:
    stream = BufferedReceiveStream(ScriptedReceiver([b"a\r", b"\nb"]))
    assert await stream.receive_until(memoryview(b"\r\n"), 3) == b"a\r\n"
    assert await stream.receive_until(bytearray(b"b"), 3) == b"b"


@every_read
@unbuffered_too
async def test_an_error_of_the_wrapped_stream_passes_and_loses_nothing(
    read: Reader, buffer_size: int
) -> None:
    error = HiccupError("scripted")
    peer = ScriptedReceiver()
    stream = BufferedReceiveStream(peer, buffer_size)
    peer.fail(error)
    with pytest.raises(HiccupError) as info:
        await read(stream)
    assert info.value is error
    peer.arrive(b"ab")
    peer.fail(error)
    peer.arrive(b"cd")
    got = b""
    while len(got) < 4:
        with contextlib.suppress(HiccupError):
            got += await read(stream)
    assert got == b"abcd"


WRONG: list[tuple[Callable[[BufferedReceiveStream], Any], type[Exception], str]] = [
    (lambda stream: stream.receive_some(0), ValueError, "max_bytes must be >= 1"),
    (lambda stream: stream.receive_some(-1), ValueError, "max_bytes must be >= 1"),
    (lambda stream: stream.receive_some(1.5), TypeError, "interpreted as an integer"),
    (lambda stream: stream.receive_exactly(-1), ValueError, "count must be >= 0"),
    (lambda stream: stream.receive_exactly("1"), TypeError, "interpreted as an integer"),
    (lambda stream: stream.receive_exactly(None), TypeError, "interpreted as an integer"),
    (lambda stream: stream.receive_until(b"", 1), ValueError, "delimiter must be 1 byte or more"),
    (
        lambda stream: stream.receive_until(b"ab", 1),
        ValueError,
        "max_bytes must be at least the length of the delimiter",
    ),
    (
        lambda stream: stream.receive_until("a", 1),
        TypeError,
        "bytes-like object is required, not 'str'",
    ),
    (lambda stream: stream.receive_until(b"a", 1.0), TypeError, "interpreted as an integer"),
    (lambda stream: stream.receive_into(b"1234"), TypeError, "writable, C-contiguous"),
    (
        lambda stream: stream.receive_into(memoryview(bytearray(8))[::2]),
        TypeError,
        "writable, C-contiguous",
    ),
    (lambda stream: stream.receive_into(bytearray()), ValueError, "not empty"),
    (lambda stream: stream.receive_into(5), TypeError, "bytes-like"),
    (lambda stream: stream.receive_some(1, timeout=-1), ValueError, "must be"),
    (lambda stream: stream.receive_exactly(1, timeout=math.nan), ValueError, "must"),
]


@pytest.mark.parametrize(("call", "kind", "message"), WRONG)
async def test_wrong_arguments_change_nothing(
    call: Callable[..., Any], kind: type[Exception], message: str
) -> None:
    peer = ScriptedReceiver([b"abcd"])
    stream = BufferedReceiveStream(peer, 2)
    with pytest.raises(kind, match=message):
        await call(stream)
    assert peer.requests == []
    assert await stream.receive_exactly(4) == b"abcd"


async def test_wrong_arguments_of_peek_and_of_the_class() -> None:
    stream = BufferedReceiveStream(ScriptedReceiver())
    with pytest.raises(ValueError, match="max_bytes must be >= 0"):
        stream.peek(-1)
    with pytest.raises(TypeError):
        stream.peek(0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"wraps a trio.abc.ReceiveStream, not 5"):
        BufferedReceiveStream(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="buffer_size must be >= 0"):
        BufferedReceiveStream(ScriptedReceiver(), -1)
    with pytest.raises(TypeError):
        BufferedReceiveStream(ScriptedReceiver(), 1.5)  # type: ignore[arg-type]


async def test_a_delimiter_that_is_a_number_is_none() -> None:
    stream = BufferedReceiveStream(ScriptedReceiver([b"line\n"], ended=True))
    with pytest.raises(TypeError):
        await stream.receive_until(10, 100)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [IncompleteReadError(b"ab", 5), DelimiterNotFound(b"x", 5)])
async def test_errors_can_be_copied_and_pickled(error: Exception) -> None:
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is type(error)
        assert vars(again) == vars(error)
        assert str(again) == str(error)
